/* gemm_avx2.h - what the 256-bit GEMM kernels share: the float epilogue, rows of x, nibbles.
 *
 * Included by files compiled for AVX2 and above only.
 * SPDX-License-Identifier: MIT */
#ifndef FL_KERNELS_X86_GEMM_AVX2_H
#define FL_KERNELS_X86_GEMM_AVX2_H

#include "kernels/gemm.h"
#include "kernels/x86/bf16_avx2.h"

#include <string.h>

/* 4 codes of x in every 32-bit lane. */
FL_INLINE __m256i broadcast4(const void *x)
{
    int32_t word;
    memcpy(&word, x, sizeof word);
    return _mm256_set1_epi32(word);
}

FL_INLINE __m256 scale_8(__m256i sum, __m256i zero, const int32_t *col_sum, __m256 x_scale,
                         __m256 w_scale)
{
    const __m256i c = _mm256_loadu_si256((const __m256i *)col_sum);
    const __m256 v = _mm256_cvtepi32_ps(_mm256_sub_epi32(sum, _mm256_mullo_epi32(zero, c)));
    return _mm256_mul_ps(v, _mm256_mul_ps(x_scale, w_scale));
}

FL_INLINE void add_16(__m256 *y0, __m256 *y1, const float *x)
{
    *y0 = _mm256_add_ps(*y0, _mm256_loadu_ps(x));
    *y1 = _mm256_add_ps(*y1, _mm256_loadu_ps(x + 8));
}

/* The count < 16 floats at from, zeros behind them. */
FL_INLINE const float *padded(float to[16], const float *from, int count)
{
    memset(to, 0, 16 * sizeof *to);
    memcpy(to, from, (size_t)count * sizeof *to);
    return to;
}

/* y[m, n..n+15] (less beyond N) from the exact sums of 16 channels, n % 16 == 0. */
FL_INLINE void store_row16(const fl_gemm *g, int m, int n, __m256i s0, __m256i s1)
{
    const int count = g->w->N - n < 16 ? g->w->N - n : 16;
    float w_scale[16], bias[16], residual[16];
    const float *ws = g->w_scale + (g->w_scale_stride ? n : 0);
    const float *b = g->bias ? g->bias + n : NULL;
    const float *r = g->residual ? g->residual + m * g->ldr + n : NULL;
    if (count < 16) { /* w_scale, bias and residual end at N */
        for (int i = 0; i < 16; i++) w_scale[i] = g->w_scale_stride && i < count ? ws[i] : *ws;
        ws = w_scale;
        if (b) b = padded(bias, b, count);
        if (r) r = padded(residual, r, count);
    }
    const bool wide = g->w_scale_stride || count < 16;
    const __m256 w0 = wide ? _mm256_loadu_ps(ws) : _mm256_broadcast_ss(ws);
    const __m256 w1 = wide ? _mm256_loadu_ps(ws + 8) : w0;
    const __m256 x_scale = _mm256_broadcast_ss(g->x_scale + m * g->x_scale_stride);
    const __m256i zero = _mm256_set1_epi32(g->x_zero ? g->x_zero[m * g->x_zero_stride] : 0);

    __m256 y0 = scale_8(s0, zero, g->w->col_sum + n, x_scale, w0);
    __m256 y1 = scale_8(s1, zero, g->w->col_sum + n + 8, x_scale, w1);
    if (b) add_16(&y0, &y1, b);
    if (r) add_16(&y0, &y1, r);
    const int64_t at = m * g->ldy + n;
    if (g->y_bf16) {
        const __m256i packed = _mm256_packus_epi32(bf16_lanes(y0), bf16_lanes(y1));
        uint16_t out[16];
        _mm256_storeu_si256((__m256i *)out, _mm256_permute4x64_epi64(packed, 0xd8));
        memcpy((uint16_t *)g->y + at, out, (size_t)count * sizeof *out);
    } else if (count == 16) {
        _mm256_storeu_ps((float *)g->y + at, y0);
        _mm256_storeu_ps((float *)g->y + at + 8, y1);
    } else {
        float out[16];
        _mm256_storeu_ps(out, y0);
        _mm256_storeu_ps(out + 8, y1);
        memcpy((float *)g->y + at, out, (size_t)count * sizeof *out);
    }
}

/* Sums over stored weights (code + offset) -> y. */
FL_INLINE void store_row16_offset(const fl_gemm *g, int m, int n, __m256i s0, __m256i s1,
                                  int offset)
{
    const __m256i extra = _mm256_set1_epi32(offset * g->x_sum[m]);
    store_row16(g, m, n, _mm256_sub_epi32(s0, extra), _mm256_sub_epi32(s1, extra));
}

#endif
