/* quantize_avx2.c - quantisation of one row, 32 channels per step.
 *
 * Clamping comes before rounding here, after it in the definition: the bounds are whole
 * numbers, so both give the same code, and the conversion to int rounds (to nearest even) for
 * free. max(v, lo) returns lo for NaN, as the definition asks.
 * SPDX-License-Identifier: MIT */
#include "kernels/quantize_rows.h"

#include <immintrin.h>
#include <string.h>

#define STEP 32 /* codes per store */

typedef struct {
    __m256i first_lo, first_hi, zero;
    __m256 inv_scale;
} static_consts;

static inline __m256 load_scaled(const float *x, const float *premul)
{
    const __m256 v = _mm256_loadu_ps(x);
    return premul ? _mm256_mul_ps(v, _mm256_loadu_ps(premul)) : v;
}

static inline __m256i clamp_to_int(__m256 v, __m256 lo, __m256 hi)
{
    return _mm256_cvtps_epi32(_mm256_min_ps(_mm256_max_ps(v, lo), hi));
}

static inline __m256i first_digits(const fl_quantize_static *s, const static_consts *k,
                                   const float *x, int c)
{
    const __m256 v = load_scaled(x + c, s->premul ? s->premul + c : NULL);
    const __m256i q = clamp_to_int(_mm256_mul_ps(v, k->inv_scale), _mm256_loadu_ps(s->lo + c),
                                   _mm256_loadu_ps(s->hi + c));
    return _mm256_add_epi32(_mm256_min_epi32(_mm256_max_epi32(q, k->first_lo), k->first_hi),
                            k->zero);
}

/* 4 x 8 int32 -> 32 bytes in order. */
static inline void store_codes(int8_t *to, const __m256i c[4])
{
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    const __m256i low = _mm256_packs_epi32(c[0], c[1]), high = _mm256_packs_epi32(c[2], c[3]);
    const __m256i bytes = _mm256_packs_epi16(low, high);
    _mm256_storeu_si256((__m256i *)to, _mm256_permutevar8x32_epi32(bytes, order));
}

static inline __m256i sum_of(const __m256i c[4])
{
    return _mm256_add_epi32(_mm256_add_epi32(c[0], c[1]), _mm256_add_epi32(c[2], c[3]));
}

static inline int32_t sum_lanes(__m256i v)
{
    int32_t lane[8], sum = 0;
    _mm256_storeu_si256((__m256i *)lane, v);
    for (int i = 0; i < 8; i++) sum += lane[i];
    return sum;
}

/* 8 extra digits. Channels repeat and skip, so their floats are gathered and done again. */
static inline __m256i extra_digits(const fl_quantize_static *s, const static_consts *k,
                                   const float *x, int e)
{
    const __m256i src = _mm256_loadu_si256((const __m256i *)(s->extra_src + e));
    const __m256i off = _mm256_loadu_si256((const __m256i *)(s->extra_off + e));
    __m256 v = _mm256_i32gather_ps(x, src, 4);
    if (s->premul) v = _mm256_mul_ps(v, _mm256_i32gather_ps(s->premul, src, 4));
    const __m256i q = clamp_to_int(_mm256_mul_ps(v, k->inv_scale),
                                   _mm256_i32gather_ps(s->lo, src, 4),
                                   _mm256_i32gather_ps(s->hi, src, 4));
    const __m256i left = _mm256_sub_epi32(_mm256_abs_epi32(q), off);
    const __m256i size = _mm256_min_epi32(_mm256_max_epi32(left, _mm256_setzero_si256()),
                                          _mm256_set1_epi32(s->cap));
    return _mm256_add_epi32(_mm256_sign_epi32(size, q), k->zero);
}

void fl__quantize_static_avx2(int8_t *codes, int32_t *x_sum, const float *x,
                              const fl_quantize_static *spec)
{
    const static_consts k = {_mm256_set1_epi32(spec->first_lo),
                             _mm256_set1_epi32(spec->first_hi), _mm256_set1_epi32(spec->zero),
                             _mm256_set1_ps(spec->inv_scale)};
    const int n = spec->n_channels, n_codes = n + spec->n_extra;
    __m256i sums = _mm256_setzero_si256(), code[4];
    int32_t sum = 0;
    int c = 0, e = 0;
    for (; c + STEP <= n; c += STEP) {
        for (int i = 0; i < 4; i++) code[i] = first_digits(spec, &k, x, c + i * 8);
        store_codes(codes + c, code);
        sums = _mm256_add_epi32(sums, sum_of(code));
    }
    for (; c < n; c++) {
        codes[c] = (int8_t)fl__first_digit(spec, fl__static_code(spec, x, c));
        sum += codes[c];
    }
    for (; e + STEP <= spec->n_extra; e += STEP) {
        for (int i = 0; i < 4; i++) code[i] = extra_digits(spec, &k, x, e + i * 8);
        store_codes(codes + n + e, code);
        sums = _mm256_add_epi32(sums, sum_of(code));
    }
    for (; e < spec->n_extra; e++) {
        const int q = fl__static_code(spec, x, spec->extra_src[e]);
        codes[n + e] = (int8_t)fl__extra_digit(spec, q, spec->extra_off[e]);
        sum += codes[n + e];
    }
    memset(codes + n_codes, 0, (size_t)(spec->ld - n_codes));
    *x_sum = sum + sum_lanes(sums);
}

/* Largest of v and 0 in *top, of -v and 0 in *bottom; a NaN leaves both alone. */
static void row_range(float *top, float *bottom, const float *x, const float *premul, int n)
{
    __m256 most = _mm256_setzero_ps(), least = _mm256_setzero_ps();
    float hi[8], lo[8];
    int c = 0;
    for (; c + 8 <= n; c += 8) {
        const __m256 v = load_scaled(x + c, premul ? premul + c : NULL);
        most = _mm256_max_ps(v, most); /* NaN: the second operand stays */
        least = _mm256_min_ps(v, least);
    }
    _mm256_storeu_ps(hi, most);
    _mm256_storeu_ps(lo, least);
    *top = *bottom = 0;
    for (int i = 0; i < 8; i++) {
        *top = hi[i] > *top ? hi[i] : *top;
        *bottom = -lo[i] > *bottom ? -lo[i] : *bottom;
    }
    for (; c < n; c++) {
        const float v = premul ? x[c] * premul[c] : x[c];
        *top = v > *top ? v : *top;
        *bottom = -v > *bottom ? -v : *bottom;
    }
}

void fl__quantize_token_avx2(int8_t *codes, int32_t *x_sum, float *scale, int32_t *zero,
                             const float *x, const fl_quantize_token *spec)
{
    const int n = spec->n_channels;
    const float *premul = spec->premul;
    float top, bottom;
    row_range(&top, &bottom, x, premul, n);
    const fl_token_grid grid = fl__token_grid(spec, top, bottom);
    const __m256 inv = _mm256_set1_ps(grid.inv_scale);
    const __m256 lo = _mm256_set1_ps(grid.lo), hi = _mm256_set1_ps(grid.hi);
    const __m256i z = _mm256_set1_epi32(grid.zero);
    __m256i sums = _mm256_setzero_si256(), code[4];
    int32_t sum = 0;
    int c = 0;
    for (; c + STEP <= n; c += STEP) {
        for (int i = 0; i < 4; i++) {
            const int at = c + i * 8;
            const __m256 v = load_scaled(x + at, premul ? premul + at : NULL);
            code[i] = _mm256_add_epi32(clamp_to_int(_mm256_mul_ps(v, inv), lo, hi), z);
        }
        store_codes(codes + c, code);
        sums = _mm256_add_epi32(sums, sum_of(code));
    }
    for (; c < n; c++) {
        codes[c] = (int8_t)fl__token_code(&grid, premul ? x[c] * premul[c] : x[c]);
        sum += codes[c];
    }
    memset(codes + n, 0, (size_t)(spec->ld - n));
    *x_sum = sum + sum_lanes(sums);
    *scale = grid.scale;
    *zero = grid.zero;
}
