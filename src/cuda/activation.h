/* activation.h - reading rows of activations and making codes, one inline function each.
 * SPDX-License-Identifier: MIT */
#ifndef FL_CUDA_ACTIVATION_H
#define FL_CUDA_ACTIVATION_H

#include "cuda/sm90.h"
#include "cuda/transform_args.h"

#include <float.h>

DEV void prefetch_l2(const void *p, uint32_t n_bytes)
{
    asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(p), "r"(n_bytes & ~15u)
                 : "memory");
}

DEV float warp_sum(float v)
{
#pragma unroll
    for (int i = 16; i > 0; i /= 2) v += __shfl_xor_sync(0xffffffffu, v, i);
    return v;
}

/* Of values >= 0, whose bits order as they do. */
DEV float warp_max(float v)
{
    return __uint_as_float(__reduce_max_sync(0xffffffffu, __float_as_uint(fabsf(v))));
}

/* ---- rows -------------------------------------------------------------------------------- */

/* 4 or 8 values from bf16, aligned to their size. */
template <int n> DEV void load_bf16(float *v, const uint16_t *from)
{
    uint32_t w[n / 2];
    if (n == 8) *(uint4 *)w = *(const uint4 *)from;
    else *(uint2 *)w = *(const uint2 *)from;
#pragma unroll
    for (int i = 0; i < n / 2; i++) {
        v[2 * i] = __uint_as_float(w[i] << 16);
        v[2 * i + 1] = __uint_as_float(w[i] & 0xffff0000u);
    }
}

template <int n> DEV void load_f32(float *v, const float *from)
{
    if (n == 1) *v = *from;
#pragma unroll
    for (int i = 0; i + 4 <= n; i += 4) *(float4 *)(v + i) = *(const float4 *)(from + i);
}

template <int F, int n> DEV void load_values(float *v, const fl_cuda_row *x, int64_t m, int c)
{
    if (F == FRONT_F32) load_f32<n>(v, (const float *)x->x + m * x->ldx + c);
    else load_bf16<n>(v, (const uint16_t *)x->x + m * x->ldx + c);
}

/* The first read of a row: adds what is to be added, in memory too. */
template <int F, int n> DEV void load_first(float *v, const fl_cuda_row *x, int64_t m, int c)
{
    load_values<F, n>(v, x, m, c);
    if (F != FRONT_F32 || !x->add) return;
    alignas(16) float w[n];
    if (x->add_f32) load_f32<n>(w, (const float *)x->add + m * x->ld_add + c);
    else load_bf16<n>(w, (const uint16_t *)x->add + m * x->ld_add + c);
    float *to = (float *)x->x + m * x->ldx + c;
#pragma unroll
    for (int i = 0; i < n; i++) v[i] = __fadd_rn(v[i], w[i]);
#pragma unroll
    for (int i = 0; i < n; i += 4)
        *(float4 *)(to + i) = make_float4(v[i], v[i + 1], v[i + 2], v[i + 3]);
}

/* x / (1 + exp(-x)) by two approximate instructions: 2^-22 relative near 0, |x| 2^-23 below. */
DEV float silu(float x)
{
    float e, r;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(e) : "f"(x * -1.4426950408889634f));
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(1.0f + e));
    return x * r;
}

template <int n> DEV void multiply(float *v, const float *by)
{
    alignas(16) float w[n];
    load_f32<n>(w, by);
#pragma unroll
    for (int i = 0; i < n; i++) v[i] = __fmul_rn(v[i], w[i]);
}

/* Of a normed row: the mean (0 without layer_norm) and 1 / sqrt(mean square + eps). */
typedef struct row_stats {
    float mean, factor;
} row_stats;

DEV bool is_normed(const fl_cuda_row *x)
{
    return x->gain || x->layer_norm;
}

DEV float norm_factor(float squares, int n, float eps)
{
    return 1.0f / sqrtf(squares / (float)n + eps);
}

/* Values from channel c on, read and gated: normed, rectified, times premul. */
template <int n> DEV void finish_row(float *v, const fl_cuda_row *x, int c, row_stats stats)
{
    if (is_normed(x)) {
#pragma unroll
        for (int i = 0; i < n; i++)
            v[i] = __fmul_rn(x->layer_norm ? v[i] - stats.mean : v[i], stats.factor);
    }
    if (x->gain) multiply<n>(v, x->gain + c);
    if (x->bias) {
        alignas(16) float w[n];
        load_f32<n>(w, x->bias + c);
#pragma unroll
        for (int i = 0; i < n; i++) v[i] = __fadd_rn(v[i], w[i]);
    }
    if (x->relu) {
#pragma unroll
        for (int i = 0; i < n; i++) v[i] = fmaxf(v[i], 0.0f);
    }
    if (x->premul) multiply<n>(v, x->premul + c);
}

/* v = silu(v) * up */
template <int n> DEV void gate_row(float *v, const fl_cuda_row *x, int64_t m, int c)
{
    float w[n];
    load_bf16<n>(w, x->up + m * x->ldx + c);
#pragma unroll
    for (int i = 0; i < n; i++) v[i] = silu(v[i]) * w[i];
}

/* What the row is before it is rounded. */
template <int F, int n>
DEV void load_row(float *v, const fl_cuda_row *x, int64_t m, int c, row_stats stats)
{
    load_values<F, n>(v, x, m, c);
    if (F == FRONT_SILU) gate_row<n>(v, x, m, c);
    if (F != FRONT_BARE) finish_row<n>(v, x, c, stats);
}

/* ---- codes ------------------------------------------------------------------------------- */

/* fl_token_grid of kernels/quantize_rows.h. */
typedef struct token_grid {
    float scale, inv_scale, lo, hi;
    int zero;
} token_grid;

DEV token_grid make_grid(const fl_cuda_grid *s, float top, float bottom)
{
    const int q_top = (1 << s->bits) - 1, q_max = q_top / 2;
    const bool clips = s->clip_max != 1.0f || s->clip_min != 1.0f;
    token_grid g = {0, 0, (float)-(clips ? q_max + 1 : q_max), (float)q_max, 0};
    top = __fmul_rn(top, s->clip_max);
    bottom = __fmul_rn(bottom, s->clip_min);
    if (s->asymmetric) g.scale = __fdiv_rn(__fadd_rn(top, bottom), (float)q_top);
    else g.scale = __fdiv_rn(fmaxf(top, bottom), (float)q_max);
    if (!(g.scale >= FLT_MIN)) g.scale = 1.0f;
    g.inv_scale = __fdiv_rn(1.0f, g.scale);
    if (!s->asymmetric) return g;
    const float z = fminf(fmaxf(rintf(__fmul_rn(bottom, g.inv_scale)), 0.0f), (float)q_top);
    g.lo = -z;
    g.hi = (float)q_top - z;
    g.zero = (int)z - (s->bits == 8 ? 128 : 0);
    return g;
}

/* The low byte is rne(t) for |t| <= 2^22: 1.5 * 2^23 puts the units in the last bit. */
DEV uint32_t rounded(float t)
{
    return __float_as_uint(__fadd_rn(t, 12582912.0f));
}

DEV uint32_t four_bytes(uint32_t a, uint32_t b, uint32_t c, uint32_t d)
{
    return __byte_perm(__byte_perm(a, b, 0x0040), __byte_perm(c, d, 0x0040), 0x5410);
}

DEV uint32_t add_zero(uint32_t codes, int zero)
{
    return zero ? __vadd4(codes, (uint32_t)(zero & 255) * 0x01010101u) : codes;
}

/* lo and hi are whole, so that clamping may come before rounding; a NaN becomes lo. */
DEV uint32_t four_codes(const token_grid *g, const float *v)
{
    uint32_t t[4];
#pragma unroll
    for (int i = 0; i < 4; i++)
        t[i] = rounded(fminf(fmaxf(__fmul_rn(v[i], g->inv_scale), g->lo), g->hi));
    return add_zero(four_bytes(t[0], t[1], t[2], t[3]), g->zero);
}

DEV int sum_codes(uint32_t codes, int sum)
{
    return __dp4a((int)codes, 0x01010101, sum);
}

#endif
