/* attention_page_avx2.c - attention page kernel for AVX2 + FMA.
 *
 * One to four query rows at a time: scores (K is transposed, so 8 keys are one load), then
 * softmax row by row, then P V. Both products keep eight sums of eight lanes in registers,
 * enough to hide the latency of the multiply-add: tiles of 4 rows x 16 keys or columns, 2 x 32
 * and 1 x 64. Each element is one chain of fused multiply-adds in rising d (scores) or rising t
 * (P V), whatever the number of rows and the width of the tile, which is what makes a decoded
 * token equal the same token in a prefill.
 * SPDX-License-Identifier: MIT */
#include "kernels/attention.h"
#include "kernels/x86/math_avx2.h"
#include "kernels/x86/simd.h"

#include <math.h>

fl_attention_page_fn fl__attention_page_avx2;

#define KEYS FL_ATTENTION_KEYS
#define ROWS 4     /* rows of a block */
#define MAX_VECS 8 /* vectors of eight lanes that a tile is wide */

/* Query rows that share one pass over the page. */
typedef struct block {
    const float *q;
    float *o, c[ROWS];
    _Alignas(32) float s[ROWS][KEYS]; /* scores, then probabilities */
    int64_t q_stride;
    int D, n_seen; /* keys that the last row sees */
} block;

/* s[0..rows)[t0, t0 + 8 vecs) */
FL_INLINE void score_tile(block *b, const float *k_t, int t0, float scale, int rows, int vecs)
{
    __m256 acc[ROWS][MAX_VECS];
    for (int r = 0; r < rows; r++)
        for (int i = 0; i < vecs; i++) acc[r][i] = _mm256_setzero_ps();
    const float *q[ROWS], *const end = k_t + b->D * KEYS;
    for (int r = 0; r < rows; r++) q[r] = b->q + r * b->q_stride;
    for (k_t += t0; k_t < end; k_t += KEYS) {
        __m256 k[MAX_VECS];
        for (int i = 0; i < vecs; i++) k[i] = _mm256_loadu_ps(k_t + 8 * i);
        for (int r = 0; r < rows; r++) {
            const __m256 x = _mm256_broadcast_ss(q[r]++);
            for (int i = 0; i < vecs; i++) acc[r][i] = _mm256_fmadd_ps(x, k[i], acc[r][i]);
        }
    }
    for (int r = 0; r < rows; r++)
        for (int i = 0; i < vecs; i++)
            _mm256_store_ps(b->s[r] + t0 + 8 * i,
                            _mm256_mul_ps(acc[r][i], _mm256_set1_ps(scale)));
}

FL_INLINE float max_lane(__m256 v)
{
    __m128 m = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    m = _mm_max_ps(m, _mm_movehl_ps(m, m));
    return _mm_cvtss_f32(_mm_max_ss(m, _mm_movehdup_ps(m)));
}

/* Turns scores s[0..n) into probabilities, zero from n to n_seen and on to a whole vector;
 * updates m and l, returns the factor of o. A score that is NaN does not count as largest. */
static float softmax_row(float s[KEYS], int n, int n_seen, float *m, float *l)
{
    __m256 tops = _mm256_set1_ps(*m), sum = _mm256_setzero_ps();
    for (int t = n; t < (n_seen + 7) / 8 * 8; t++) s[t] = -INFINITY;
    for (int t = 0; t < n; t += 8) tops = _mm256_max_ps(_mm256_load_ps(s + t), tops);
    const float top = max_lane(tops);
    const __m256 vtop = _mm256_set1_ps(top);
    for (int t = 0; t < n_seen; t += 8) {
        const __m256 x = _mm256_load_ps(s + t);
        const __m256 seen = _mm256_cmp_ps(x, _mm256_set1_ps(-INFINITY), _CMP_NEQ_UQ);
        const __m256 p = _mm256_and_ps(exp_avx2(_mm256_sub_ps(x, vtop)), seen);
        _mm256_store_ps(s + t, p);
        sum = _mm256_add_ps(sum, p);
    }
    const float c = *m == -INFINITY ? 0.0f : expf(*m - top);
    float lane[8];
    _mm256_storeu_ps(lane, sum);
    *l = *l * c + (((lane[0] + lane[4]) + (lane[1] + lane[5])) +
                   ((lane[2] + lane[6]) + (lane[3] + lane[7])));
    *m = top;
    return c;
}

/* o[0..rows)[d0, d0 + 8 vecs) */
FL_INLINE void value_tile(const block *b, const float *v, int d0, int rows, int vecs)
{
    __m256 acc[ROWS][MAX_VECS];
    for (int r = 0; r < rows; r++)
        for (int i = 0; i < vecs; i++)
            acc[r][i] = _mm256_mul_ps(_mm256_loadu_ps(b->o + r * b->D + d0 + 8 * i),
                                      _mm256_set1_ps(b->c[r]));
    const float *s = b->s[0], *const end = s + b->n_seen;
    const int64_t D = b->D;
    for (v += d0; s < end; s++, v += D) {
        __m256 x[MAX_VECS];
        for (int i = 0; i < vecs; i++) x[i] = _mm256_loadu_ps(v + 8 * i);
        for (int r = 0; r < rows; r++) {
            const __m256 p = _mm256_broadcast_ss(s + r * KEYS);
            for (int i = 0; i < vecs; i++) acc[r][i] = _mm256_fmadd_ps(p, x[i], acc[r][i]);
        }
    }
    for (int r = 0; r < rows; r++)
        for (int i = 0; i < vecs; i++)
            _mm256_storeu_ps(b->o + r * b->D + d0 + 8 * i, acc[r][i]);
}

/* Columns behind the last multiple of 16, one by one, in the same order. */
static void value_tail(const block *b, const float *v, int d0, int rows)
{
    for (int r = 0; r < rows; r++)
        for (int d = d0; d < b->D; d++) {
            float acc = b->o[r * b->D + d] * b->c[r];
            for (int t = 0; t < b->n_seen; t++) acc = fmaf(b->s[r][t], v[t * b->D + d], acc);
            b->o[r * b->D + d] = acc;
        }
}

/* rows (1..ROWS), the first of which sees n_first keys, in tiles of vecs vectors (2, 4, 8). */
FL_INLINE void run_block(block *b, float *m, float *l, int n_first, const float *k_t,
                         const float *v, float scale, int rows, int vecs)
{
    const int n_last = n_first + rows - 1;
    int d0 = 0;
    b->n_seen = n_last < KEYS ? n_last : KEYS;
    for (int t0 = 0; t0 < b->n_seen; t0 += 8 * vecs)
        score_tile(b, k_t, t0, scale, rows, vecs);
    for (int r = 0; r < rows; r++) {
        const int n = n_first + r < KEYS ? n_first + r : KEYS;
        b->c[r] = softmax_row(b->s[r], n, b->n_seen, m + r, l + r);
    }
    for (; d0 + 8 * vecs <= b->D; d0 += 8 * vecs) value_tile(b, v, d0, rows, vecs);
    if (vecs == 8 && d0 + 32 <= b->D) {
        value_tile(b, v, d0, rows, 4);
        d0 += 32;
    }
    if (vecs >= 4 && d0 + 16 <= b->D) {
        value_tile(b, v, d0, rows, 2);
        d0 += 16;
    }
    if (d0 < b->D) value_tail(b, v, d0, rows);
}

void fl__attention_page_avx2(float *o, float *m, float *l, const float *q, int64_t q_stride,
                             int n_q, int n_keys, const float *k_t, const float *v, int D,
                             float scale)
{
    block b = {.q_stride = q_stride, .D = D};
    for (int r0 = n_keys > 0 ? 0 : 1 - n_keys; r0 < n_q; r0 += ROWS) {
        const int n_first = n_keys + r0 < KEYS ? n_keys + r0 : KEYS;
        b.q = q + r0 * q_stride;
        b.o = o + (int64_t)r0 * D;
        switch (n_q - r0) {
        case 1: run_block(&b, m + r0, l + r0, n_first, k_t, v, scale, 1, 8); break;
        case 2: run_block(&b, m + r0, l + r0, n_first, k_t, v, scale, 2, 4); break;
        case 3: run_block(&b, m + r0, l + r0, n_first, k_t, v, scale, 3, 2); break;
        default: run_block(&b, m + r0, l + r0, n_first, k_t, v, scale, 4, 2); break;
        }
    }
}
