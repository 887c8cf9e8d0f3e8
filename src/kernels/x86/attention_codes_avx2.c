/* attention_codes_avx2.c - attention over codes for AVX2.
 *
 * The pages' codes are spread to one per byte, then one to four query rows at a time: sums over
 * codes for the scores page by page, softmax row by row, sums for the values over all pages. H
 * and L are 16-bit numbers; of a word with four codes of a lane, mask and shift make two pairs
 * of 16 bits, and vpmaddwd takes a pair of terms at once, all sums in registers. Prepared
 * numbers are 16 bytes for four terms: H 0, 2, H 1, 3, L 0, 2, L 1, 3.
 * SPDX-License-Identifier: MIT */
#include "kernels/x86/attention_codes_avx2.h"
#include "kernels/x86/math_avx2.h"

#define T    FL_KV_PAGE
#define ROWS 4

FL_INLINE __m256i load_ints(const int32_t *from)
{
    return _mm256_loadu_si256((const __m256i *)(const void *)from);
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

FL_INLINE __m256i max_bits(__m256i top, __m256 x)
{
    const __m256i bits = _mm256_and_si256(_mm256_castps_si256(x), _mm256_set1_epi32(INT32_MAX));
    return _mm256_max_epi32(top, bits);
}

FL_INLINE uint32_t largest_lane(__m256i v)
{
    __m128i m = _mm_max_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    m = _mm_max_epi32(m, _mm_shuffle_epi32(m, 0x4e));
    return (uint32_t)_mm_cvtsi128_si32(_mm_max_epi32(m, _mm_shuffle_epi32(m, 0xb1)));
}

FL_INLINE int32_t sum_ints(__m256i v)
{
    __m128i s = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(s, _mm_shuffle_epi32(s, 0xb1)));
}

/* Eight numbers: 32 prepared bytes. NaN times 0 is no number, hence the mask. */
FL_INLINE void put_fixed(int16_t *to, __m256i *H, __m256i *L, __m256 x, float inv)
{
    const __m256i some = inv > 0 ? _mm256_set1_epi32(-1) : _mm256_setzero_si256();
    __m256i X = _mm256_cvtps_epi32(_mm256_mul_ps(x, _mm256_set1_ps(inv)));
    X = _mm256_and_si256(X, some);
    *H = _mm256_srai_epi32(_mm256_add_epi32(X, _mm256_set1_epi32(8192)), 14);
    *L = _mm256_sub_epi32(X, _mm256_slli_epi32(*H, 14));
    __m256i both = _mm256_packs_epi32(*H, *L); /* H 0..3, L 0..3 | H 4..7, L 4..7 */
    both = _mm256_shufflehi_epi16(_mm256_shufflelo_epi16(both, 0xd8), 0xd8);
    _mm256_storeu_si256((__m256i *)(void *)to, both);
}

FL_INLINE __m256 load_part(const float *x, int n)
{
    if (n >= 8) return _mm256_loadu_ps(x);
    const __m256i there =
        _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
    return _mm256_maskload_ps(x, there);
}

static size_t row_words(int D) /* int16 of a prepared row */
{
    return (size_t)fl__codes_terms(D) * 2;
}

void fl__attention_prepare_avx2(void *x, const float *q, int64_t q_stride, int n_rows,
                                int group, int D, float scale)
{
    fl_codes_head *heads = x;
    int16_t *to = (int16_t *)(void *)((uint8_t *)x + fl__codes_heads_bytes(n_rows));
    for (int r = 0; r < n_rows; r++, to += row_words(D)) {
        const float *from = q + r / group * q_stride + r % group * D;
        __m256i top = _mm256_setzero_si256(), sum_h = top, sum_l = top, H, L;
        for (int d = 0; d < D; d += 8) top = max_bits(top, load_part(from + d, D - d));
        const fixed f = fixed_of(largest_lane(top));
        for (int d = 0; d < D; d += 8) {
            put_fixed(to + 2 * d, &H, &L, load_part(from + d, D - d), f.inv);
            sum_h = _mm256_add_epi32(sum_h, H);
            sum_l = _mm256_add_epi32(sum_l, L);
        }
        heads[r] = (fl_codes_head){f.step * scale, sum_ints(sum_h), sum_ints(sum_l), 0};
    }
}

/* ---- sums over codes --------------------------------------------------------------------- */

/* Rows of prepared numbers against a block's codes. */
typedef struct product {
    const int16_t *x;
    size_t x_stride; /* int16 */
    const uint8_t *codes;
    int32_t *sums; /* [rows][2][n_lanes] */
    int n_fours, n_lanes;
} product;

FL_INLINE __m256i pair_sums(const int16_t *x, __m256i even, __m256i odd)
{
    int32_t a, b;
    memcpy(&a, x, sizeof a);
    memcpy(&b, x + 2, sizeof b);
    return _mm256_add_epi32(_mm256_madd_epi16(even, _mm256_set1_epi32(a)),
                            _mm256_madd_epi16(odd, _mm256_set1_epi32(b)));
}

/* Sums of lanes [lane, lane + 8 vecs). */
FL_INLINE void sum_tile(const product *p, int lane, int rows, int vecs)
{
    __m256i h[ROWS][2], l[ROWS][2];
    const uint8_t *codes = p->codes + 4 * lane;
    const int16_t *x = p->x, *const end = x + 8 * p->n_fours;
    for (int r = 0; r < rows; r++)
        for (int i = 0; i < vecs; i++) h[r][i] = l[r][i] = _mm256_setzero_si256();
    for (; x < end; x += 8, codes += 4 * p->n_lanes)
        for (int i = 0; i < vecs; i++) {
            const __m256i four =
                _mm256_load_si256((const __m256i *)(const void *)(codes + 32 * i));
            const __m256i even = _mm256_and_si256(four, _mm256_set1_epi32(0x00ff00ff));
            const __m256i odd = _mm256_srli_epi16(four, 8);
            for (int r = 0; r < rows; r++) {
                const int16_t *at = x + (size_t)r * p->x_stride;
                h[r][i] = _mm256_add_epi32(h[r][i], pair_sums(at, even, odd));
                l[r][i] = _mm256_add_epi32(l[r][i], pair_sums(at + 4, even, odd));
                FL_KEEP(h[r][i]);
                FL_KEEP(l[r][i]);
            }
        }
    for (int r = 0; r < rows; r++)
        for (int i = 0; i < vecs; i++) {
            int32_t *to = p->sums + 2 * r * p->n_lanes + lane + 8 * i;
            _mm256_storeu_si256((__m256i *)(void *)to, h[r][i]);
            _mm256_storeu_si256((__m256i *)(void *)(to + p->n_lanes), l[r][i]);
        }
}

static void sum_codes(const product *p, int rows)
{
    switch (rows) {
    case 1:
        for (int i = 0; i < p->n_lanes; i += 16) sum_tile(p, i, 1, 2);
        break;
    case 2:
        for (int i = 0; i < p->n_lanes; i += 16) sum_tile(p, i, 2, 2);
        break;
    case 3:
        for (int i = 0; i < p->n_lanes; i += 8) sum_tile(p, i, 3, 1);
        break;
    default:
        for (int i = 0; i < p->n_lanes; i += 8) sum_tile(p, i, 4, 1);
        break;
    }
}

/* T of eight lanes whose zeros make up zero_h, zero_l. */
FL_INLINE __m256 total(const int32_t *sums, int ld, __m256i zero_h, __m256i zero_l)
{
    const __m256i h = _mm256_sub_epi32(load_ints(sums), zero_h);
    const __m256i l = _mm256_sub_epi32(load_ints(sums + ld), zero_l);
    return _mm256_fmadd_ps(_mm256_cvtepi32_ps(h), _mm256_set1_ps(16384.0f),
                           _mm256_cvtepi32_ps(l));
}

/* ---- softmax ----------------------------------------------------------------------------- */

FL_INLINE float max_lane(__m256 v)
{
    __m128 m = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    m = _mm_max_ps(m, _mm_movehl_ps(m, m));
    return _mm_cvtss_f32(_mm_max_ss(m, _mm_movehdup_ps(m)));
}

FL_INLINE float sum_lanes(__m256 v)
{
    float lane[8];
    _mm256_storeu_ps(lane, v);
    return ((lane[0] + lane[4]) + (lane[1] + lane[5])) +
           ((lane[2] + lane[6]) + (lane[3] + lane[7]));
}

/* What a row of probabilities leaves for its values. */
typedef struct weights {
    float step;
    int32_t zero_h, zero_l;
} weights;

/* s[0..T) = scores of page p, -inf from n on; returns the largest lanes. */
FL_INLINE __m256 scores(float *s, const int32_t *sums, const fl_codes_head *head, int n,
                        __m256 tops, const fl_codes_work *work, int p)
{
    const __m256i sum_h = _mm256_set1_epi32(head->sum_h);
    const __m256i sum_l = _mm256_set1_epi32(head->sum_l);
    const __m256i count = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    const __m256 step = _mm256_set1_ps(head->step), none = _mm256_set1_ps(-INFINITY);
    const float *scale = work->k_scale + p * T;
    for (int t = 0; t < T; t += 8) {
        const __m256i zero = load_ints(work->k_zero + p * T + t);
        const __m256 y = total(sums + t, T, _mm256_mullo_epi32(zero, sum_h),
                               _mm256_mullo_epi32(zero, sum_l));
        const __m256 x = _mm256_mul_ps(y, _mm256_mul_ps(step, _mm256_loadu_ps(scale + t)));
        const __m256i seen = _mm256_cmpgt_epi32(_mm256_set1_epi32(n - t), count);
        const __m256 v = _mm256_blendv_ps(none, x, _mm256_castsi256_ps(seen));
        _mm256_store_ps(s + t, v);
        tops = _mm256_max_ps(v, tops); /* second operand where either is NaN */
    }
    return tops;
}

/* From scores s[0..n), n a multiple of T, to probabilities and prepared weights w. */
static weights softmax_row(int16_t *w, float *m, float *l, float *s, float top, int n,
                           const fl_codes_work *work)
{
    const __m256 vtop = _mm256_set1_ps(top);
    __m256 sum = _mm256_setzero_ps();
    __m256i largest = _mm256_setzero_si256(), zero_h = largest, zero_l = largest, H, L;
    for (int t = 0; t < n; t += 8) {
        const __m256 x = _mm256_load_ps(s + t);
        const __m256 seen = _mm256_cmp_ps(x, _mm256_set1_ps(-INFINITY), _CMP_NEQ_UQ);
        const __m256 p = _mm256_and_ps(exp_avx2(_mm256_sub_ps(x, vtop)), seen);
        const __m256 y = _mm256_mul_ps(p, _mm256_loadu_ps(work->v_scale + t));
        sum = _mm256_add_ps(sum, p);
        largest = max_bits(largest, y);
        _mm256_store_ps(s + t, y);
    }
    const fixed f = fixed_of(largest_lane(largest));
    for (int t = 0; t < n; t += 8) {
        const __m256i zero = load_ints(work->v_zero + t);
        put_fixed(w + 2 * t, &H, &L, _mm256_load_ps(s + t), f.inv);
        zero_h = _mm256_add_epi32(zero_h, _mm256_mullo_epi32(H, zero));
        zero_l = _mm256_add_epi32(zero_l, _mm256_mullo_epi32(L, zero));
    }
    *l = sum_lanes(sum);
    *m = top;
    return (weights){f.step, sum_ints(zero_h), sum_ints(zero_l)};
}

FL_INLINE void put_values(float *o, const int32_t *sums, int ld, const weights *w)
{
    const __m256i zero_h = _mm256_set1_epi32(w->zero_h), zero_l = _mm256_set1_epi32(w->zero_l);
    const __m256 step = _mm256_set1_ps(w->step);
    for (int d = 0; d < ld; d += 8)
        _mm256_storeu_ps(o + d, _mm256_mul_ps(total(sums + d, ld, zero_h, zero_l), step));
}

/* ---- pages ------------------------------------------------------------------------------- */

/* Rows [r0, r0 + rows) against all pages, whose codes and grids are spread. */
static void run_block(const fl_attention_codes *a, const fl_codes_work *work, int r0, int rows)
{
    const int ld = fl__attention_ld(a->D), n_pages = pages_seen(a, r0, rows);
    const fl_codes_head *heads = a->x;
    const uint8_t *x = (const uint8_t *)a->x + fl__codes_heads_bytes(a->n_rows);
    int16_t *w = (int16_t *)(void *)work->w;
    product keys = {.x = (const int16_t *)(const void *)x + (size_t)r0 * row_words(a->D),
                    .x_stride = row_words(a->D),
                    .codes = work->k,
                    .sums = work->sums,
                    .n_fours = (a->D + 3) / 4,
                    .n_lanes = T};
    const product values = {.x = w,
                            .x_stride = 2 * FL_CODES_KEYS,
                            .codes = work->v,
                            .sums = work->sums,
                            .n_fours = n_pages * T / 4,
                            .n_lanes = ld};
    __m256 tops[ROWS];
    weights left[ROWS];
    for (int r = 0; r < rows; r++) tops[r] = _mm256_set1_ps(-INFINITY);
    for (int p = 0; p < n_pages; p++, keys.codes += fl__codes_page_bytes(a->D)) {
        sum_codes(&keys, rows);
        for (int r = 0; r < rows; r++)
            tops[r] = scores(work->s + r * FL_CODES_KEYS + p * T, work->sums + 2 * T * r,
                             heads + r0 + r, fl__codes_seen(a, r0 + r) - p * T, tops[r], work,
                             p);
    }
    for (int r = 0; r < rows; r++)
        left[r] = softmax_row(w + 2 * FL_CODES_KEYS * r, a->m + r0 + r, a->l + r0 + r,
                              work->s + r * FL_CODES_KEYS, max_lane(tops[r]), n_pages * T,
                              work);
    sum_codes(&values, rows);
    for (int r = 0; r < rows; r++)
        put_values(a->o + (int64_t)(r0 + r) * ld, work->sums + 2 * ld * r, ld, &left[r]);
}

void fl__attention_codes_avx2(const fl_attention_codes *a)
{
    const fl_codes_work work = fl__codes_work(a->work, a->D);
    spread_pages(&work, a);
    for (int r0 = 0; r0 < a->n_rows; r0 += ROWS)
        run_block(a, &work, r0, a->n_rows - r0 < ROWS ? a->n_rows - r0 : ROWS);
}
