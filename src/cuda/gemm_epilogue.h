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

/* A thread's part of an output matrix: rows 8 i + j from its first token on, i = 0.., j = 0, 1,
 * of which `left` exist; two neighbouring elements of each. */
typedef struct pairs {
    uint8_t *at;
    int64_t step; /* bytes of a row */
    int left;
} pairs;

DEV pairs pairs_at(const outputs *o, const void *base, int64_t ld, int width, int m, int n)
{
    pairs p = {(uint8_t *)base + (m * ld + n) * width, ld * width, o->M - m};
    return p;
}

/* r[token]: two channels of each. */
DEV void load_pairs(float2 r[2], const pairs *p, int i)
{
#pragma unroll
    for (int j = 0; j < 2; j++)
        if (8 * i + j < p->left) r[j] = *(const float2 *)(p->at + (8 * i + j) * p->step);
}

DEV void store_pairs(const pairs *p, int i, const float v[2][2], bool f32)
{
#pragma unroll
    for (int j = 0; j < 2; j++) {
        uint8_t *to = p->at + (8 * i + j) * p->step;
        if (8 * i + j >= p->left) continue;
        if (f32) *(float2 *)to = make_float2(v[j][0], v[j][1]);
        else *(uint32_t *)to = bf16x2(v[j][0], v[j][1]);
    }
}

/* y of the tile: of this thread channels n, n + 1 and every fourth pair of tokens from m on. */
template <int SHIFT, int TOK, bool F32, bool ADD>
DEV void store(const int32_t *acc, const outputs *o, const channel_scales *c, uint32_t scales,
               int m, int n, int lane)
{
    const pairs y = pairs_at(o, o->y, o->ldy, F32 ? 4 : 2, m, n);
    const pairs add = pairs_at(o, o->residual, o->ldr, 4, m, n);
    const int AHEAD = TOK < 128 ? 2 : 4; /* groups of 8 tokens in flight */
    float2 r[AHEAD][2];
    uint32_t t[4];
    if (n >= o->N) return;
    load_tokens(t, scales, 0, lane);
#pragma unroll
    for (int i = 0; ADD && i < AHEAD; i++) load_pairs(r[i], &add, i);
#pragma unroll
    for (int i = 0; i < TOK / 8; i++) {
        const int ahead = i + AHEAD;
        float2 *at = r[i % AHEAD];
        float v[2][2];
        scale_tokens<SHIFT, TOK>(v, acc, i, c, t, scales, lane);
#pragma unroll
        for (int j = 0; ADD && j < 2; j++) {
            v[j][0] = __fadd_rn(v[j][0], at[j].x);
            v[j][1] = __fadd_rn(v[j][1], at[j].y);
        }
        if (ADD && ahead < TOK / 8) load_pairs(at, &add, ahead);
        store_pairs(&y, i, v, F32);
    }
}

/* Lanes of neighbouring channel pairs trade outputs, so that one has both of a token. */
template <int SHIFT, int TOK>
DEV void store_gated(const int32_t *acc, const outputs *o, const channel_scales *c,
                     uint32_t scales, int m, int n, int lane)
{
    const int odd = lane / 4 % 2, left = n < o->N ? o->M - m - odd : 0;
    uint32_t t[4];
    load_tokens(t, scales, 0, lane);
    uint8_t *to = (uint8_t *)o->y + ((m + odd) * o->ldy + n / 4 * 2) * 2;
#pragma unroll
    for (int i = 0; i < TOK / 8; i++) {
        float v[2][2], y[2];
        scale_tokens<SHIFT, TOK>(v, acc, i, c, t, scales, lane);
#pragma unroll
        for (int j = 0; j < 2; j++) y[j] = gated(v[j][0], v[j][1]);
        const float other = __shfl_xor_sync(0xffffffffu, odd ? y[0] : y[1], 4);
        if (8 * i < left)
            *(uint32_t *)(to + 16 * i * o->ldy) =
                odd ? bf16x2(other, y[1]) : bf16x2(y[0], other);
    }
}

/* Tokens m, m + 1, m + 8, m + 9, .. up to TOK, channels n and n + 1. */
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
