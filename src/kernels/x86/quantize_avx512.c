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

/* Sums of four signed bytes each. */
FL_INLINE __m512i sum_bytes(__m512i bytes, __m512i ones)
{
    return _mm512_madd_epi16(_mm512_maddubs_epi16(ones, bytes), _mm512_set1_epi16(1));
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
    __m512 most[4], least[4];
    float hi[16], lo[16];
    int c = 0;
    for (int i = 0; i < 4; i++) most[i] = least[i] = _mm512_setzero_ps();
    for (; c + 64 <= n; c += 64)
        for (int i = 0; i < 4; i++) {
            const __m512 v = load_scaled(x, premul, c + 16 * i, 0xffff);
            most[i] = _mm512_max_ps(v, most[i]); /* NaN: the second operand stays */
            least[i] = _mm512_min_ps(v, least[i]);
        }
    for (; c < n; c += 16) {
        const __m512 v = load_scaled(x, premul, c, tail_mask(n - c));
        most[0] = _mm512_max_ps(v, most[0]);
        least[0] = _mm512_min_ps(v, least[0]);
    }
    for (int i = 1; i < 4; i++) {
        most[0] = _mm512_max_ps(most[0], most[i]);
        least[0] = _mm512_min_ps(least[0], least[i]);
    }
    _mm512_storeu_ps(hi, most[0]);
    _mm512_storeu_ps(lo, least[0]);
    *top = *bottom = 0;
    for (int i = 0; i < 16; i++) {
        *top = hi[i] > *top ? hi[i] : *top;
        *bottom = -lo[i] > *bottom ? -lo[i] : *bottom;
    }
}

/* What makes codes of a row. Bounds are whole and within -255..255. */
typedef struct grid {
    __m512 inv_scale, hi;
    __m512i lo_16, hi_16, zero_16, order;
} grid;

/* Sixteen values as integers. A NaN, and what no integer reaches, becomes the lowest one: right
 * for NaN and below, so that `far` ones, from 2^31 up, are cut down to hi first. */
FL_INLINE __m512i token_ints(const float *x, const float *premul, int c, __mmask16 mask,
                             const grid *g, bool far)
{
    const __m512 v = _mm512_mul_ps(load_scaled(x, premul, c, mask), g->inv_scale);
    /* NaN: the second operand stays */
    return _mm512_cvtps_epi32(far ? _mm512_min_ps(g->hi, v) : v);
}

/* Codes of channels c..c+63 but those from n on, which are 0. */
FL_INLINE __m512i token_codes(const float *x, const float *premul, int c, int n, const grid *g,
                              bool far)
{
    __m512i q[4];
    for (int i = 0; i < 4; i++) {
        const int left = n - c - 16 * i;
        q[i] = token_ints(x, premul, c + 16 * i, left > 0 ? tail_mask(left) : 0, g, far);
    }
    __m512i a = _mm512_packs_epi32(q[0], q[1]), b = _mm512_packs_epi32(q[2], q[3]);
    a = _mm512_min_epi16(_mm512_max_epi16(a, g->lo_16), g->hi_16);
    b = _mm512_min_epi16(_mm512_max_epi16(b, g->lo_16), g->hi_16);
    const __m512i codes = _mm512_packs_epi16(_mm512_add_epi16(a, g->zero_16),
                                             _mm512_add_epi16(b, g->zero_16));
    const __mmask64 there = n - c >= 64 ? ~0ull : (1ull << (n - c)) - 1;
    return _mm512_maskz_mov_epi8(there, _mm512_permutexvar_epi32(g->order, codes));
}

/* All codes of a row, whose end is written whole: ld is a multiple of 64. Returns their sum. */
FL_INLINE int32_t put_codes(int8_t *codes, const float *x, const fl_quantize_token *spec,
                            const grid *g, bool far)
{
    const __m512i ones = _mm512_set1_epi8(1);
    const int n = spec->n_channels;
    const float *premul = spec->premul;
    __m512i sums = _mm512_setzero_si512();
    int c = 0;
    for (; c + 64 <= n; c += 64) {
        const __m512i q = premul ? token_codes(x, premul, c, c + 64, g, far)
                                 : token_codes(x, NULL, c, c + 64, g, far);
        _mm512_storeu_si512(codes + c, q);
        sums = _mm512_add_epi32(sums, sum_bytes(q, ones));
    }
    if (c < n) {
        const __m512i q = token_codes(x, premul, c, n, g, far);
        _mm512_storeu_si512(codes + c, q);
        sums = _mm512_add_epi32(sums, sum_bytes(q, ones));
        c += 64;
    }
    memset(codes + c, 0, (size_t)(spec->ld - c));
    return sum_lanes(sums);
}

void fl__quantize_token_avx512(int8_t *codes, int32_t *x_sum, float *scale, int32_t *zero,
                               const float *x, const fl_quantize_token *spec)
{
    float top, bottom;
    row_range(&top, &bottom, x, spec->premul, spec->n_channels);
    const fl_token_grid t = fl__token_grid(spec, top, bottom);
    const grid g = {.inv_scale = _mm512_set1_ps(t.inv_scale),
                    .hi = _mm512_set1_ps(t.hi),
                    .lo_16 = _mm512_set1_epi16((short)t.lo),
                    .hi_16 = _mm512_set1_epi16((short)t.hi),
                    .zero_16 = _mm512_set1_epi16((short)t.zero),
                    .order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7,
                                               11, 15)};
    if (top * t.inv_scale < 1e9f) *x_sum = put_codes(codes, x, spec, &g, false);
    else *x_sum = put_codes(codes, x, spec, &g, true); /* clipped to next to nothing, or inf */
    *scale = t.scale;
    *zero = t.zero;
}
