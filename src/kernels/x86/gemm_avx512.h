/* gemm_avx512.h - what the 512-bit GEMM kernels share: the float epilogue, nibbles.
 *
 * Included by files compiled for AVX-512 F, BW, DQ, VL and above only.
 * SPDX-License-Identifier: MIT */
#ifndef FL_KERNELS_X86_GEMM_AVX512_H
#define FL_KERNELS_X86_GEMM_AVX512_H

#include "kernels/gemm.h"
#include "kernels/x86/bf16_avx512.h"

/* What the epilogue needs of one panel: channels n..n+15, less beyond N. */
typedef struct panel_consts {
    __mmask16 mask;
    __m512 w_scale, bias;
    __m512i col_sum;
} panel_consts;

FL_INLINE panel_consts load_panel(const fl_gemm *g, int n)
{
    const int left = g->w->N - n;
    panel_consts c;
    c.mask = left < 16 ? (__mmask16)((1u << left) - 1) : 0xffff;
    c.w_scale = g->w_scale_stride ? _mm512_maskz_loadu_ps(c.mask, g->w_scale + n)
                                  : _mm512_set1_ps(*g->w_scale);
    c.bias = g->bias ? _mm512_maskz_loadu_ps(c.mask, g->bias + n) : _mm512_setzero_ps();
    c.col_sum = _mm512_loadu_si512(g->w->col_sum + n);
    return c;
}

/* Sums over stored weights (code + offset) of row m -> y. */
FL_INLINE __m512 finish(const fl_gemm *g, const panel_consts *c, int m, __m512i sum, int offset)
{
    const __m512 x_scale = _mm512_set1_ps(g->x_scale[m * g->x_scale_stride]);
    if (offset) sum = _mm512_sub_epi32(sum, _mm512_set1_epi32(offset * g->x_sum[m]));
    if (g->x_zero) {
        const __m512i zero = _mm512_set1_epi32(g->x_zero[m * g->x_zero_stride]);
        sum = _mm512_sub_epi32(sum, _mm512_mullo_epi32(zero, c->col_sum));
    }
    const __m512 y = _mm512_mul_ps(_mm512_cvtepi32_ps(sum), _mm512_mul_ps(x_scale, c->w_scale));
    return g->bias ? _mm512_add_ps(y, c->bias) : y;
}

FL_INLINE void put_panel(const fl_gemm *g, int m, int n, __mmask16 mask, __m512 y)
{
    const int64_t at = m * g->ldy + n;
    if (g->residual)
        y = _mm512_add_ps(y, _mm512_maskz_loadu_ps(mask, g->residual + m * g->ldr + n));
    if (g->y_bf16)
        _mm256_mask_storeu_epi16(
            (uint16_t *)g->y + at, mask,
            _mm512_cvtepi32_epi16(_mm512_srli_epi32(bf16_high(y), 16)));
    else
        _mm512_mask_storeu_ps((float *)g->y + at, mask, y);
}

/* The same for the two panels n.., n + 16.. at once. A panel that is not there has mask 0.
 * stream: past the caches; masks are full then and lines whole. */
FL_INLINE void put_pair(const fl_gemm *g, int m, int n, const panel_consts *c0,
                        const panel_consts *c1, __m512 y0, __m512 y1, bool stream)
{
    static const _Alignas(64) uint16_t odd[32] = {
        1,  3,  5,  7,  9,  11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31,
        33, 35, 37, 39, 41, 43, 45, 47, 49, 51, 53, 55, 57, 59, 61, 63};
    const int64_t at = m * g->ldy + n;
    if (g->residual) {
        const float *r = g->residual + m * g->ldr + n;
        y0 = _mm512_add_ps(y0, _mm512_maskz_loadu_ps(c0->mask, r));
        y1 = _mm512_add_ps(y1, _mm512_maskz_loadu_ps(c1->mask, r + 16));
    }
    if (g->y_bf16) {
        const __m512i both = _mm512_permutex2var_epi16(bf16_high(y0), _mm512_load_si512(odd),
                                                       bf16_high(y1));
        if (stream)
            _mm512_stream_si512((void *)((uint16_t *)g->y + at), both);
        else
            _mm512_mask_storeu_epi16((uint16_t *)g->y + at,
                                     (__mmask32)c0->mask | (__mmask32)c1->mask << 16, both);
    } else if (stream) {
        _mm512_stream_ps((float *)g->y + at, y0);
        _mm512_stream_ps((float *)g->y + at + 16, y1);
    } else {
        _mm512_mask_storeu_ps((float *)g->y + at, c0->mask, y0);
        _mm512_mask_storeu_ps((float *)g->y + at + 16, c1->mask, y1);
    }
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
