/* attention_codes_avx512.h - what the AVX-512 VNNI and the AMX row of attention over codes
 * share: fixed point in three digits, softmax, values.
 *
 * Byte products want signed bytes: X = 16384 H + 128 L1 + L0 with L1 = (L + 64) >> 7, so that
 * L0 is -64..63 and L1 -64..64. Prepared numbers are three rows of bytes, H, L1 and L0 of all
 * terms, 0 from the last term on to the end of a row.
 * SPDX-License-Identifier: MIT */
#ifndef FL_KERNELS_X86_ATTENTION_CODES_AVX512_H
#define FL_KERNELS_X86_ATTENTION_CODES_AVX512_H

#include "kernels/x86/attention_codes_avx2.h"
#include "kernels/x86/math_avx512.h"

#define T      FL_KV_PAGE
#define DIGITS 3

FL_INLINE __mmask16 lanes_under(int n)
{
    return n >= 16 ? (__mmask16)0xffff : n <= 0 ? 0 : (__mmask16)((1u << n) - 1);
}

/* ---- fixed point ------------------------------------------------------------------------- */

typedef struct fixed {
    float step, inv;
} fixed;

/* Of numbers whose largest absolute value has these bits. */
FL_INLINE fixed fixed_of(uint32_t top_bits)
{
    const float top = fl__f32_from_bits(top_bits);
    if (top_bits >= 0x7f800000u) return (fixed){NAN, 0};
    if (top < FL_FIXED_TINY) return (fixed){0, 0};
    return (fixed){top / FL_FIXED_MAX, FL_FIXED_MAX / top};
}

FL_INLINE __m512i max_bits(__m512i top, __m512 x)
{
    const __m512i bits = _mm512_and_si512(_mm512_castps_si512(x), _mm512_set1_epi32(INT32_MAX));
    return _mm512_max_epi32(top, bits);
}

/* Sixteen numbers: 16 bytes in each of three rows. NaN times 0 is no number, hence the mask. */
FL_INLINE void put_fixed(uint8_t *to, size_t row_bytes, __m512i *H, __m512i *L, __m512 x,
                         float inv)
{
    const __mmask16 some = inv > 0 ? 0xffff : 0;
    const __m512i X =
        _mm512_maskz_cvtps_epi32(some, _mm512_mul_ps(x, _mm512_set1_ps(inv)));
    *H = _mm512_srai_epi32(_mm512_add_epi32(X, _mm512_set1_epi32(8192)), 14);
    *L = _mm512_sub_epi32(X, _mm512_slli_epi32(*H, 14));
    const __m512i L1 = _mm512_srai_epi32(_mm512_add_epi32(*L, _mm512_set1_epi32(64)), 7);
    const __m512i L0 = _mm512_sub_epi32(*L, _mm512_slli_epi32(L1, 7));
    _mm_storeu_si128((__m128i *)(void *)to, _mm512_cvtepi32_epi8(*H));
    _mm_storeu_si128((__m128i *)(void *)(to + row_bytes), _mm512_cvtepi32_epi8(L1));
    _mm_storeu_si128((__m128i *)(void *)(to + 2 * row_bytes), _mm512_cvtepi32_epi8(L0));
}

/* T of sixteen lanes: sums over H and over L, zeros make up zero_h, zero_l. */
FL_INLINE __m512 total(const int32_t *sums, int ld, __m512i zero_h, __m512i zero_l)
{
    const __m512i h = _mm512_sub_epi32(_mm512_loadu_si512(sums), zero_h);
    const __m512i l = _mm512_sub_epi32(_mm512_loadu_si512(sums + ld), zero_l);
    return _mm512_fmadd_ps(_mm512_cvtepi32_ps(h), _mm512_set1_ps(16384.0f),
                           _mm512_cvtepi32_ps(l));
}

/* ---- softmax ----------------------------------------------------------------------------- */

/* What a row of probabilities leaves for its values. */
typedef struct weights {
    float c, step;
    int32_t zero_h, zero_l;
} weights;

FL_INLINE float max_lane(__m512 v)
{
    const __m256 h = _mm256_max_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
    __m128 m = _mm_max_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
    m = _mm_max_ps(m, _mm_movehl_ps(m, m));
    return _mm_cvtss_f32(_mm_max_ss(m, _mm_movehdup_ps(m)));
}

/* s[0..T) = scores; returns the largest of the first n, or `top`. */
FL_INLINE float scores(__m512 s[T / 16], const int32_t *sums, const fl_codes_head *head, int n,
                       float top, const fl_codes_grids *g)
{
    const __m512i sum_h = _mm512_set1_epi32(head->sum_h);
    const __m512i sum_l = _mm512_set1_epi32(head->sum_l);
    const __m512 step = _mm512_set1_ps(head->step);
    __m512 tops = _mm512_set1_ps(top);
    for (int t = 0; t < T; t += 16) {
        const __m512i zero = _mm512_loadu_si512(g->k_zero + t);
        const __m512 y = total(sums + t, T, _mm512_mullo_epi32(zero, sum_h),
                               _mm512_mullo_epi32(zero, sum_l));
        s[t / 16] = _mm512_mul_ps(y, _mm512_mul_ps(step, _mm512_loadu_ps(g->k_scale + t)));
        /* second operand where either is NaN */
        tops = _mm512_mask_max_ps(tops, lanes_under(n - t), s[t / 16], tops);
    }
    return max_lane(tops);
}

/* w: three rows of T bytes. */
FL_INLINE weights softmax_row(uint8_t *w, float *m, float *l, const int32_t *sums,
                              const fl_codes_head *head, int n, const fl_codes_grids *g)
{
    __m512 s[T / 16];
    if (n == 0) {
        memset(w, 0, DIGITS * T);
        return (weights){1, 0, 0, 0};
    }
    const float top = scores(s, sums, head, n, *m, g);
    const __m512 vtop = _mm512_set1_ps(top), none = _mm512_set1_ps(-INFINITY);
    __m512 sum = _mm512_setzero_ps();
    __m512i largest = _mm512_setzero_si512(), zero_h = largest, zero_l = largest, H, L;
    for (int t = 0; t < T; t += 16) {
        const __m512 x = s[t / 16];
        const __mmask16 seen =
            _mm512_mask_cmp_ps_mask(lanes_under(n - t), x, none, _CMP_NEQ_UQ);
        const __m512 p = _mm512_maskz_mov_ps(seen, exp_avx512(_mm512_sub_ps(x, vtop)));
        s[t / 16] = _mm512_maskz_mul_ps(seen, p, _mm512_loadu_ps(g->v_scale + t));
        sum = _mm512_add_ps(sum, p);
        largest = max_bits(largest, s[t / 16]);
    }
    const fixed f = fixed_of((uint32_t)_mm512_reduce_max_epi32(largest));
    for (int t = 0; t < T; t += 16) {
        const __m512i zero = _mm512_loadu_si512(g->v_zero + t);
        put_fixed(w + t, T, &H, &L, s[t / 16], f.inv);
        zero_h = _mm512_add_epi32(zero_h, _mm512_mullo_epi32(H, zero));
        zero_l = _mm512_add_epi32(zero_l, _mm512_mullo_epi32(L, zero));
    }
    const float c = *m == -INFINITY ? 0.0f : expf(*m - top);
    *l = *l * c + _mm512_reduce_add_ps(sum);
    *m = top;
    return (weights){c, f.step, _mm512_reduce_add_epi32(zero_h),
                     _mm512_reduce_add_epi32(zero_l)};
}

FL_INLINE void add_values(float *o, const int32_t *sums, int ld, const weights *w)
{
    const __m512i zero_h = _mm512_set1_epi32(w->zero_h), zero_l = _mm512_set1_epi32(w->zero_l);
    const __m512 c = _mm512_set1_ps(w->c), step = _mm512_set1_ps(w->step);
    for (int d = 0; d < ld; d += 16) {
        const __m512 y = total(sums + d, ld, zero_h, zero_l);
        const __m512 old = _mm512_mul_ps(_mm512_loadu_ps(o + d), c);
        _mm512_storeu_ps(o + d, _mm512_fmadd_ps(y, step, old));
    }
}

/* ---- pages ------------------------------------------------------------------------------- */

/* Rows of prepared numbers against a block's codes. */
typedef struct product {
    const uint8_t *x;     /* digit i of row r at x + (DIGITS * r + i) * row_bytes */
    const uint8_t *codes; /* [n_terms / 4][n_lanes][4] */
    int32_t *sums;        /* [rows][2][n_lanes] over H, over L */
    int row_bytes, n_terms, n_lanes;
} product;
typedef void sum_codes_fn(const product *p, int rows);

/* Rows [r0, r0 + rows) on page p, whose codes and grids are spread. */
FL_INLINE void run_block(const fl_attention_codes *a, const fl_codes_work *work,
                         const fl_codes_grids *g, int p, int r0, int rows,
                         sum_codes_fn *sum_codes)
{
    const int ld = fl__attention_ld(a->D), terms = fl__codes_terms(a->D);
    const fl_codes_head *heads = a->x;
    const uint8_t *x = (const uint8_t *)a->x + fl__codes_heads_bytes(a->n_rows);
    const product keys = {.x = x + (size_t)r0 * DIGITS * (size_t)terms,
                          .codes = work->k,
                          .sums = work->sums,
                          .row_bytes = terms,
                          .n_terms = a->D,
                          .n_lanes = T};
    const product values = {.x = work->w,
                            .codes = work->v,
                            .sums = work->sums,
                            .row_bytes = T,
                            .n_terms = T,
                            .n_lanes = ld};
    weights left[FL_CODES_ROWS];
    sum_codes(&keys, rows);
    for (int r = 0; r < rows; r++)
        left[r] = softmax_row(work->w + DIGITS * T * r, a->m + r0 + r, a->l + r0 + r,
                              work->sums + 2 * T * r, heads + r0 + r,
                              fl__codes_seen(a, r0 + r, p), g);
    sum_codes(&values, rows);
    for (int r = 0; r < rows; r++)
        add_values(a->o + (int64_t)(r0 + r) * ld, work->sums + 2 * ld * r, ld, &left[r]);
}

/* All pages, max_rows rows at a time. */
FL_INLINE void run_pages(const fl_attention_codes *a, int max_rows, sum_codes_fn *sum_codes)
{
    const fl_codes_work work = fl__codes_work(a->work, a->D);
    fl_codes_grids g;
    for (int p = 0; p < a->n_pages; p++) {
        spread_page(&work, &g, a, p);
        for (int r0 = 0; r0 < a->n_rows; r0 += max_rows) {
            const int rows = a->n_rows - r0 < max_rows ? a->n_rows - r0 : max_rows;
            if (fl__codes_seen(a, r0 + rows - 1, p) > 0)
                run_block(a, &work, &g, p, r0, rows, sum_codes);
        }
    }
}

#endif
