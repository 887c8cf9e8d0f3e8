/* gemm_epilogue.h - from the sums of tensor core fragments to y, for every GEMM whose A operand
 * is the weights.
 *
 * A thread has, of each fragment of 16 channels x 8 tokens, acc[4 i + j]: token 2 (lane % 4) +
 * j % 2, row lane / 4 + 8 (j / 2). Rows r and r + 8 are channels 2r and 2r + 1 (the layouts of
 * gemm_cuda.h), so a thread stores pairs, and eight lanes fill the 32 (bf16) or 64 bytes of a
 * token: whole sectors, straight from registers. Scale and zero point of the tile's tokens lie
 * in shared memory, 8 bytes each.
 * SPDX-License-Identifier: MIT */
#ifndef FL_CUDA_GEMM_EPILOGUE_H
#define FL_CUDA_GEMM_EPILOGUE_H

#include "cuda/gemm_cuda.h"

#include "cuda/sm90.h"

typedef enum output_kind { OUTPUT_F32, OUTPUT_BF16, OUTPUT_GATED } output_kind;

/* What of fl_cuda_gemm the epilogue reads. */
typedef struct outputs {
    const float *x_scale, *w_scale, *bias, *residual;
    const int32_t *x_zero, *col_sum;
    void *y;
    int64_t ldy, ldr;
    int x_scale_stride, x_zero_stride, w_scale_stride;
    int M, N;
    output_kind kind;
} outputs;

static inline outputs outputs_of(const fl_cuda_gemm *g)
{
    outputs o = {};
    o.x_scale = g->x_scale;
    o.x_scale_stride = g->x_scale_stride;
    o.x_zero = g->x_zero;
    o.x_zero_stride = g->x_zero_stride;
    o.w_scale = g->w_scale;
    o.w_scale_stride = g->w_scale_stride;
    o.bias = g->bias;
    o.residual = g->residual;
    o.ldr = g->ldr;
    o.col_sum = g->w->col_sum;
    o.y = g->y;
    o.ldy = g->ldy;
    o.M = g->M;
    o.N = g->w->N;
    o.kind = g->gated ? OUTPUT_GATED : g->y_bf16 ? OUTPUT_BF16 : OUTPUT_F32;
    return o;
}

DEV void load_token(float *scale, int32_t *zero, const outputs *o, int m)
{
    *scale = m < o->M ? o->x_scale[(int64_t)m * o->x_scale_stride] : 0.0f;
    *zero = m < o->M && o->x_zero ? o->x_zero[(int64_t)m * o->x_zero_stride] : 0;
}

/* Into shared memory, for token i of the tile. */
DEV void keep_token(uint32_t scales, int i, float scale, int32_t zero)
{
    asm volatile("st.shared.v2.b32 [%0], {%1, %2};" ::"r"(scales + 8 * i),
                 "r"(__float_as_uint(scale)), "r"(zero)
                 : "memory");
}

/* What a thread needs of its channels n and n + 1. */
typedef struct channel_scales {
    float scale[2], bias[2];
    int32_t sum[2];
} channel_scales;

DEV channel_scales load_channels(const outputs *o, int n)
{
    channel_scales c;
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const bool in = n < o->N;
        c.scale[i] = in ? o->w_scale[(int64_t)(n + i) * o->w_scale_stride] : 0.0f;
        c.bias[i] = in && o->bias ? o->bias[n + i] : -0.0f; /* y + -0.0 is y, bit for bit */
        c.sum[i] = in ? o->col_sum[n + i] : 0;
    }
    return c;
}

template <int SHIFT>
DEV float scaled(int32_t acc, const channel_scales *c, int i, float x_scale, int32_t x_zero)
{
    const int32_t sum = (acc >> SHIFT) - x_zero * c->sum[i];
    return __fadd_rn(__fmul_rn((float)sum, __fmul_rn(x_scale, c->scale[i])), c->bias[i]);
}

/* x_scale and x_zero of tokens 8 i + 2 (lane % 4) and one more. */
DEV void load_tokens(uint32_t t[4], uint32_t scales, int i, int lane)
{
    lds128(t, scales + 8 * (8 * i + 2 * (lane % 4)));
}

/* v[token][channel] of these tokens; t is of i, and becomes that of i + 1. */
template <int SHIFT, int TOK>
DEV void scale_tokens(float v[2][2], const int32_t *acc, int i, const channel_scales *c,
                      uint32_t t[4], uint32_t scales, int lane)
{
    uint32_t next[4] = {};
    if (i + 1 < TOK / 8) load_tokens(next, scales, i + 1, lane);
#pragma unroll
    for (int j = 0; j < 4; j++)
        v[j % 2][j / 2] = scaled<SHIFT>(acc[4 * i + j], c, j / 2, __uint_as_float(t[j % 2 * 2]),
                                        (int32_t)t[j % 2 * 2 + 1]);
#pragma unroll
    for (int j = 0; j < 4; j++) t[j] = next[j];
}

/* Predicated rather than behind branches, which would keep the scheduler from working on
 * several tokens at a time. In the order written, so that a residual may be y itself. */
DEV void store_if(bool there, uint64_t to, uint32_t v)
{
    asm volatile("{\n.reg .pred there;\nsetp.ne.b32 there, %0, 0;\n"
                 "@there st.global.b32 [%1], %2;\n}" ::"r"((int)there),
                 "l"(to), "r"(v));
}

DEV void store_if(bool there, uint64_t to, float v0, float v1)
{
    asm volatile("{\n.reg .pred there;\nsetp.ne.b32 there, %0, 0;\n"
                 "@there st.global.v2.f32 [%1], {%2, %3};\n}" ::"r"((int)there),
                 "l"(to), "f"(v0), "f"(v1));
}

DEV void load_if(bool there, uint64_t from, float v[2])
{
    v[0] = v[1] = -0.0f;
    asm volatile("{\n.reg .pred there;\nsetp.ne.b32 there, %2, 0;\n"
                 "@there ld.global.v2.f32 {%0, %1}, [%3];\n}"
                 : "+f"(v[0]), "+f"(v[1])
                 : "r"((int)there), "l"(from));
}

/* Where a thread's pair of channels is in a matrix: its first token's row, and the bytes of a
 * row. */
typedef struct place {
    uint64_t at;
    int64_t row;
} place;

DEV place place_of(const void *base, int64_t ld, int width, int m, int n)
{
    const place p = {__cvta_generic_to_global((const uint8_t *)base + (m * ld + n) * width),
                     ld * width};
    return p;
}

/* y of the tile: of this thread channels n, n + 1 and every fourth pair of tokens from m on. */
template <int SHIFT, int TOK, bool F32, bool ADD>
DEV void store(const int32_t *acc, const outputs *o, const channel_scales *c, uint32_t scales,
               int m, int n, int lane)
{
    const int AHEAD = TOK < 128 ? 2 : 4; /* groups of 8 tokens in flight */
    const int left = n < o->N ? o->M - m : 0;
    place y = place_of(o->y, o->ldy, F32 ? 4 : 2, m, n);
    place add = place_of(o->residual, o->ldr, 4, m, n);
    float r[AHEAD][2][2];
    uint32_t t[4];
    load_tokens(t, scales, 0, lane);
#pragma unroll
    for (int i = 0; ADD && i < AHEAD; i++, add.at += 8 * add.row)
#pragma unroll
        for (int j = 0; j < 2; j++) load_if(8 * i + j < left, add.at + j * add.row, r[i][j]);
#pragma unroll
    for (int i = 0; i < TOK / 8; i++, y.at += 8 * y.row) {
        float v[2][2];
        scale_tokens<SHIFT, TOK>(v, acc, i, c, t, scales, lane);
#pragma unroll
        for (int j = 0; j < 2; j++) {
            float *at = r[i % AHEAD][j];
            const int ahead = 8 * (i + AHEAD) + j;
            if (ADD) {
                v[j][0] = __fadd_rn(v[j][0], at[0]);
                v[j][1] = __fadd_rn(v[j][1], at[1]);
                if (ahead < TOK) load_if(ahead < left, add.at + j * add.row, at);
            }
            if (F32) store_if(8 * i + j < left, y.at + j * y.row, v[j][0], v[j][1]);
            else store_if(8 * i + j < left, y.at + j * y.row, bf16x2(v[j][0], v[j][1]));
        }
        add.at += 8 * add.row;
    }
}

/* Lanes of neighbouring channel pairs trade outputs, so that one has both of a token. */
template <int SHIFT, int TOK>
DEV void store_gated(const int32_t *acc, const outputs *o, const channel_scales *c,
                     uint32_t scales, int m, int n, int lane)
{
    const int odd = lane / 4 % 2, left = n < o->N ? o->M - m - odd : 0;
    place y = place_of(o->y, o->ldy, 2, m + odd, n / 4 * 2);
    uint32_t t[4];
    load_tokens(t, scales, 0, lane);
#pragma unroll
    for (int i = 0; i < TOK / 8; i++) {
        float v[2][2], out[2];
        scale_tokens<SHIFT, TOK>(v, acc, i, c, t, scales, lane);
#pragma unroll
        for (int j = 0; j < 2; j++) out[j] = gated(v[j][0], v[j][1]);
        const float other = __shfl_xor_sync(0xffffffffu, odd ? out[0] : out[1], 4);
        store_if(8 * i < left, y.at, odd ? bf16x2(other, out[1]) : bf16x2(out[0], other));
        y.at += 8 * y.row;
    }
}

template <int SHIFT, int TOK>
DEV void store_tile(const int32_t *acc, const outputs *o, const channel_scales *c,
                    uint32_t scales, int m, int n, int lane)
{
    const bool f32 = o->kind == OUTPUT_F32;
    if (o->kind == OUTPUT_GATED) store_gated<SHIFT, TOK>(acc, o, c, scales, m, n, lane);
    else if (o->residual && f32) store<SHIFT, TOK, true, true>(acc, o, c, scales, m, n, lane);
    else if (o->residual) store<SHIFT, TOK, false, true>(acc, o, c, scales, m, n, lane);
    else if (f32) store<SHIFT, TOK, true, false>(acc, o, c, scales, m, n, lane);
    else store<SHIFT, TOK, false, false>(acc, o, c, scales, m, n, lane);
}

#endif
