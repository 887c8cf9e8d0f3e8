/* quantize_avx512.c - quantisation of one row, 16 channels per step, the last ones under a
 * mask.
 *
 * As quantize_avx2.c: clamping before rounding, which is the same for whole bounds.
 * SPDX-License-Identifier: MIT */
#include "kernels/quantize_rows.h"
#include "kernels/x86/simd.h"

#include <string.h>

FL_INLINE __mmask16 tail_mask(int left)
{
    return left < 16 ? (__mmask16)((1u << left) - 1) : 0xffff;
}

FL_INLINE __m512 load_scaled(const float *x, const float *premul, int c, __mmask16 mask)
{
    const __m512 v = _mm512_maskz_loadu_ps(mask, x + c);
    return premul ? _mm512_mul_ps(v, _mm512_maskz_loadu_ps(mask, premul + c)) : v;
}

/* max(v, lo) is lo for NaN. */
FL_INLINE __m512i clamp_to_int(__m512 v, __m512 lo, __m512 hi)
{
    return _mm512_cvtps_epi32(_mm512_min_ps(_mm512_max_ps(v, lo), hi));
}

/* Stores the codes under mask and adds them to *sums. */
FL_INLINE void put(int8_t *to, __m512i codes, __mmask16 mask, __m512i *sums)
{
    _mm_mask_storeu_epi8(to, mask, _mm512_cvtepi32_epi8(codes));
    *sums = _mm512_mask_add_epi32(*sums, mask, *sums, codes);
}

FL_INLINE int32_t sum_lanes(__m512i v)
{
    int32_t lane[16], sum = 0;
    _mm512_storeu_si512(lane, v);
    for (int i = 0; i < 16; i++) sum += lane[i];
    return sum;
}

/* Digits of 16 extra positions: channels repeat and skip, so their floats are gathered and
 * quantised again. */
FL_INLINE __m512i extra_digits(const fl_quantize_static *s, const float *x, int e,
                               __mmask16 mask)
{
    const __m512 none = _mm512_setzero_ps();
    const __m512i src = _mm512_maskz_loadu_epi32(mask, s->extra_src + e);
    const __m512i off = _mm512_maskz_loadu_epi32(mask, s->extra_off + e);
    __m512 v = _mm512_mask_i32gather_ps(none, mask, src, x, 4);
    if (s->premul)
        v = _mm512_mul_ps(v, _mm512_mask_i32gather_ps(none, mask, src, s->premul, 4));
    const __m512i q = clamp_to_int(_mm512_mul_ps(v, _mm512_set1_ps(s->inv_scale)),
                                   _mm512_mask_i32gather_ps(none, mask, src, s->lo, 4),
                                   _mm512_mask_i32gather_ps(none, mask, src, s->hi, 4));
    const __m512i zero = _mm512_setzero_si512();
    const __m512i left = _mm512_sub_epi32(_mm512_abs_epi32(q), off);
    const __m512i size =
        _mm512_min_epi32(_mm512_max_epi32(left, zero), _mm512_set1_epi32(s->cap));
    const __mmask16 negative = _mm512_movepi32_mask(q);
    const __m512i digit = _mm512_mask_sub_epi32(size, negative, zero, size);
    return _mm512_add_epi32(digit, _mm512_set1_epi32(s->zero));
}

void fl__quantize_static_avx512(int8_t *codes, int32_t *x_sum, const float *x,
                                const fl_quantize_static *spec)
{
    const __m512i first_lo = _mm512_set1_epi32(spec->first_lo);
    const __m512i first_hi = _mm512_set1_epi32(spec->first_hi);
    const __m512i zero = _mm512_set1_epi32(spec->zero);
    const __m512 inv_scale = _mm512_set1_ps(spec->inv_scale);
    const int n = spec->n_channels, n_codes = n + spec->n_extra;
    __m512i sums = _mm512_setzero_si512();

    for (int c = 0; c < n; c += 16) {
        const __mmask16 mask = tail_mask(n - c);
        const __m512 v = load_scaled(x, spec->premul, c, mask);
        const __m512i q = clamp_to_int(_mm512_mul_ps(v, inv_scale),
                                       _mm512_maskz_loadu_ps(mask, spec->lo + c),
                                       _mm512_maskz_loadu_ps(mask, spec->hi + c));
        const __m512i digit = _mm512_min_epi32(_mm512_max_epi32(q, first_lo), first_hi);
        put(codes + c, _mm512_add_epi32(digit, zero), mask, &sums);
    }
    for (int e = 0; e < spec->n_extra; e += 16) {
        const __mmask16 mask = tail_mask(spec->n_extra - e);
        put(codes + n + e, extra_digits(spec, x, e, mask), mask, &sums);
    }
    memset(codes + n_codes, 0, (size_t)(spec->ld - n_codes));
    *x_sum = sum_lanes(sums);
}

/* Largest of v and 0 in *top, of -v and 0 in *bottom; a NaN leaves both alone. */
static void row_range(float *top, float *bottom, const float *x, const float *premul, int n)
{
    __m512 most = _mm512_setzero_ps(), least = _mm512_setzero_ps();
    float hi[16], lo[16];
    for (int c = 0; c < n; c += 16) {
        const __m512 v = load_scaled(x, premul, c, tail_mask(n - c));
        most = _mm512_max_ps(v, most); /* NaN: the second operand stays */
        least = _mm512_min_ps(v, least);
    }
    _mm512_storeu_ps(hi, most);
    _mm512_storeu_ps(lo, least);
    *top = *bottom = 0;
    for (int i = 0; i < 16; i++) {
        *top = hi[i] > *top ? hi[i] : *top;
        *bottom = -lo[i] > *bottom ? -lo[i] : *bottom;
    }
}

void fl__quantize_token_avx512(int8_t *codes, int32_t *x_sum, float *scale, int32_t *zero,
                               const float *x, const fl_quantize_token *spec)
{
    const int n = spec->n_channels;
    float top, bottom;
    row_range(&top, &bottom, x, spec->premul, n);
    const fl_token_grid grid = fl__token_grid(spec, top, bottom);
    const __m512 inv_scale = _mm512_set1_ps(grid.inv_scale);
    const __m512 lo = _mm512_set1_ps(grid.lo), hi = _mm512_set1_ps(grid.hi);
    const __m512i z = _mm512_set1_epi32(grid.zero);
    __m512i sums = _mm512_setzero_si512();
    for (int c = 0; c < n; c += 16) {
        const __mmask16 mask = tail_mask(n - c);
        const __m512 v = _mm512_mul_ps(load_scaled(x, spec->premul, c, mask), inv_scale);
        put(codes + c, _mm512_add_epi32(clamp_to_int(v, lo, hi), z), mask, &sums);
    }
    memset(codes + n, 0, (size_t)(spec->ld - n));
    *x_sum = sum_lanes(sums);
    *scale = grid.scale;
    *zero = grid.zero;
}
