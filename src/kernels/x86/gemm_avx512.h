/* gemm_avx512.h - what the 512-bit GEMM kernels share: the float epilogue, nibbles.
 *
 * Included by files compiled for AVX-512 F, BW, DQ, VL and above only.
 * SPDX-License-Identifier: MIT */
#ifndef FL_KERNELS_X86_GEMM_AVX512_H
#define FL_KERNELS_X86_GEMM_AVX512_H

#include "kernels/gemm.h"
#include "kernels/x86/simd.h"

/* 16 floats to bf16: nearest even, NaN stays NaN. */
FL_INLINE __m256i bf16_16(__m512 y)
{
    const __m512i u = _mm512_castps_si512(y);
    const __m512i high = _mm512_srli_epi32(u, 16);
    const __m512i odd = _mm512_and_si512(high, _mm512_set1_epi32(1));
    const __m512i bias = _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff));
    const __m512i rounded = _mm512_srli_epi32(_mm512_add_epi32(u, bias), 16);
    const __m512i quiet = _mm512_or_si512(high, _mm512_set1_epi32(0x40));
    const __mmask16 is_nan = _mm512_cmp_ps_mask(y, y, _CMP_UNORD_Q);
    return _mm512_cvtepi32_epi16(_mm512_mask_blend_epi32(is_nan, rounded, quiet));
}

/* y[m, n..n+15] (less beyond N) from the sums over stored weights (code + offset), n % 16 == 0. */
FL_INLINE void store_zmm(const fl_gemm *g, int m, int n, __m512i sum, int offset)
{
    const int left = g->w->N - n;
    const __mmask16 mask = left < 16 ? (__mmask16)((1u << left) - 1) : 0xffff;
    const __m512 w_scale = g->w_scale_stride ? _mm512_maskz_loadu_ps(mask, g->w_scale + n)
                                             : _mm512_set1_ps(*g->w_scale);
    const __m512 x_scale = _mm512_set1_ps(g->x_scale[m * g->x_scale_stride]);
    const int32_t zero = g->x_zero ? g->x_zero[m * g->x_zero_stride] : 0;
    const __m512i col_sum = _mm512_loadu_si512(g->w->col_sum + n);

    sum = _mm512_sub_epi32(sum, _mm512_set1_epi32(offset * g->x_sum[m]));
    sum = _mm512_sub_epi32(sum, _mm512_mullo_epi32(_mm512_set1_epi32(zero), col_sum));
    __m512 y = _mm512_mul_ps(_mm512_cvtepi32_ps(sum), _mm512_mul_ps(x_scale, w_scale));
    if (g->bias) y = _mm512_add_ps(y, _mm512_maskz_loadu_ps(mask, g->bias + n));
    const int64_t at = m * g->ldy + n;
    if (g->y_bf16)
        _mm256_mask_storeu_epi16((uint16_t *)g->y + at, mask, bf16_16(y));
    else
        _mm512_mask_storeu_ps((float *)g->y + at, mask, y);
}

/* One 64-byte row of nibbles: input channels k..k+3, then k+4..k+7, as bytes 0..15. */
FL_INLINE __m512i low_nibbles(__m512i row)
{
    return _mm512_and_si512(row, _mm512_set1_epi8(15));
}

FL_INLINE __m512i high_nibbles(__m512i row)
{
    return _mm512_and_si512(_mm512_srli_epi16(row, 4), _mm512_set1_epi8(15));
}

#endif
