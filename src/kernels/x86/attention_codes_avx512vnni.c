/* attention_codes_avx512vnni.c - attention over codes for AVX-512 VNNI: four rows at a time,
 * vpdpbusd of a lane's four codes with four terms' digits, broadcast; all sums of 32 lanes in
 * registers. SPDX-License-Identifier: MIT */
#include "kernels/x86/attention_codes_avx512.h"

#define ROWS 4

static row_layout layout_of(int terms)
{
    return (row_layout){.block = 1,
                        .block_bytes = DIGITS * (size_t)terms,
                        .step = 64,
                        .apart = (size_t)terms};
}

void fl__attention_prepare_avx512vnni(void *x, const float *q, int64_t q_stride, int n_rows,
                                      int group, int D, float scale)
{
    const row_layout layout = layout_of(fl__codes_terms(D));
    prepare_rows(x, &layout, q, q_stride, n_rows, group, D, scale);
}

/* Rows of prepared numbers against codes. */
typedef struct product {
    const uint8_t *x;     /* digit i of row r at x + (DIGITS * r + i) * row_bytes */
    const uint8_t *codes; /* [n_terms / 4][n_lanes][4] */
    int32_t *sums;        /* [rows][2][n_lanes] over H, over L */
    int row_bytes, n_terms, n_lanes;
} product;

/* Sums of lanes [lane, lane + 16 vecs). */
FL_INLINE void sum_tile(const product *p, int lane, int rows, int vecs)
{
    __m512i acc[ROWS * DIGITS][2];
    const uint8_t *codes = p->codes + 4 * lane;
    const size_t row_bytes = (size_t)p->row_bytes;
    for (int i = 0; i < DIGITS * rows; i++)
        for (int v = 0; v < vecs; v++) acc[i][v] = _mm512_setzero_si512();
    for (int t = 0; t < p->n_terms; t += 4, codes += 4 * p->n_lanes) {
        __m512i four[2];
        for (int v = 0; v < vecs; v++) four[v] = _mm512_loadu_si512(codes + 64 * v);
        for (int i = 0; i < DIGITS * rows; i++) {
            int32_t digits;
            memcpy(&digits, p->x + (size_t)i * row_bytes + t, sizeof digits);
            const __m512i x = _mm512_set1_epi32(digits);
            for (int v = 0; v < vecs; v++) {
                acc[i][v] = _mm512_dpbusd_epi32(acc[i][v], four[v], x);
                FL_KEEP(acc[i][v]);
            }
        }
    }
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < vecs; v++) {
            int32_t *to = p->sums + 2 * r * p->n_lanes + lane + 16 * v;
            const __m512i l1 = _mm512_slli_epi32(acc[DIGITS * r + 1][v], 7);
            _mm512_storeu_si512(to, acc[DIGITS * r][v]);
            _mm512_storeu_si512(to + p->n_lanes,
                                _mm512_add_epi32(l1, acc[DIGITS * r + 2][v]));
        }
}

/* Where 16 lanes are left over, the tile before them is summed again with them. */
FL_INLINE void sum_rows(const product *p, int rows)
{
    int lane = 0;
    for (; lane + 32 <= p->n_lanes; lane += 32) sum_tile(p, lane, rows, 2);
    if (p->n_lanes < 32) sum_tile(p, 0, rows, 1);
    else if (lane < p->n_lanes) sum_tile(p, p->n_lanes - 32, rows, 2);
}

static void sum_codes(const product *p, int rows)
{
    switch (rows) {
    case 1: sum_rows(p, 1); break;
    case 2: sum_rows(p, 2); break;
    case 3: sum_rows(p, 3); break;
    default: sum_rows(p, 4); break;
    }
}

/* T of sixteen lanes whose zeros make up zero_h, zero_l. */
FL_INLINE __m512 total_of(const int32_t *sums, int ld, __m512i zero_h, __m512i zero_l)
{
    return total(_mm512_sub_epi32(_mm512_loadu_si512(sums), zero_h),
                 _mm512_sub_epi32(_mm512_loadu_si512(sums + ld), zero_l));
}

/* Scores of one row on page p. */
FL_INLINE __m512 page_scores(float *s, const int32_t *sums, const fl_codes_head *head, int n,
                             __m512 tops, const fl_codes_work *work, int p)
{
    const __m512i sum_h = _mm512_set1_epi32(head->sum_h);
    const __m512i sum_l = _mm512_set1_epi32(head->sum_l);
    const __m512 step = _mm512_set1_ps(head->step);
    for (int t = p * T; t < (p + 1) * T; t += 16, sums += 16) {
        const __m512i zero = _mm512_loadu_si512(work->k_zero + t);
        const __m512 y = total_of(sums, T, _mm512_mullo_epi32(zero, sum_h),
                                  _mm512_mullo_epi32(zero, sum_l));
        tops = put_scores(s, y, step, work->k_scale, t, n, tops);
    }
    return tops;
}

FL_INLINE void put_values(float *o, const int32_t *sums, int ld, const weights *w)
{
    const __m512i zero_h = _mm512_set1_epi32(w->zero_h), zero_l = _mm512_set1_epi32(w->zero_l);
    const __m512 step = _mm512_set1_ps(w->step);
    for (int d = 0; d < ld; d += 16)
        _mm512_storeu_ps(o + d, _mm512_mul_ps(total_of(sums + d, ld, zero_h, zero_l), step));
}

/* Rows [r0, r0 + rows) against all pages, whose codes and grids are spread. */
static void run_block(const fl_attention_codes *a, const fl_codes_work *work, int r0, int rows)
{
    const int ld = fl__attention_ld(a->D), terms = fl__codes_terms(a->D);
    const int n_pages = pages_seen(a, r0, rows);
    const row_layout layout = layout_of(FL_CODES_KEYS);
    const fl_codes_head *heads = a->x;
    const uint8_t *x = (const uint8_t *)a->x + fl__codes_heads_bytes(a->n_rows);
    product keys = {.x = x + (size_t)r0 * DIGITS * (size_t)terms,
                    .codes = work->k,
                    .sums = work->sums,
                    .row_bytes = terms,
                    .n_terms = a->D,
                    .n_lanes = T};
    const product values = {.x = work->w,
                            .codes = work->v,
                            .sums = work->sums,
                            .row_bytes = FL_CODES_KEYS,
                            .n_terms = n_pages * T,
                            .n_lanes = ld};
    __m512 tops[ROWS];
    weights left[ROWS];
    for (int r = 0; r < rows; r++) tops[r] = _mm512_set1_ps(-INFINITY);
    for (int p = 0; p < n_pages; p++, keys.codes += fl__codes_page_bytes(a->D)) {
        sum_codes(&keys, rows);
        for (int r = 0; r < rows; r++)
            tops[r] = page_scores(work->s + r * FL_CODES_KEYS, work->sums + 2 * T * r,
                                  heads + r0 + r, fl__codes_seen(a, r0 + r), tops[r], work, p);
    }
    for (int r = 0; r < rows; r++)
        left[r] = softmax_row(work->w + DIGITS * FL_CODES_KEYS * r, &layout, a->m + r0 + r,
                              a->l + r0 + r, work->s + r * FL_CODES_KEYS, max_lane(tops[r]),
                              n_pages * T, work->v_scale, work->v_zero);
    sum_codes(&values, rows);
    for (int r = 0; r < rows; r++)
        put_values(a->o + (int64_t)(r0 + r) * ld, work->sums + 2 * ld * r, ld, &left[r]);
}

void fl__attention_codes_avx512vnni(const fl_attention_codes *a)
{
    const fl_codes_work work = fl__codes_work(a->work, a->D);
    spread_pages(&work, a);
    for (int r0 = 0; r0 < a->n_rows; r0 += ROWS)
        run_block(a, &work, r0, a->n_rows - r0 < ROWS ? a->n_rows - r0 : ROWS);
}
