/* attention_page_avx2.c - attention page kernel for AVX2 + FMA.
 *
 * Four query rows at a time: scores in tiles of 4 rows x 16 keys (eight accumulators; K is
 * transposed, so 16 keys are two loads), then softmax row by row, then P V in tiles of 4 rows x
 * 16 columns. Each element is one chain of fused multiply-adds in rising d (scores) or rising t
 * (P V), whatever the number of rows, which is what makes a decoded token equal the same token
 * in a prefill.
 * SPDX-License-Identifier: MIT */
#include "kernels/attention.h"
#include "kernels/x86/math_avx2.h"

#include <math.h>

void fl__attention_page_avx2(float *o, float *m, float *l, const float *q, int64_t q_stride,
                             int n_q, int n_keys, const float *k_t, const float *v, int D,
                             float scale);

#define KEYS FL_ATTENTION_KEYS
#define ROWS 4

/* s[r, t0..t0+16) for r < rows (1..4); unused rows repeat the last one and are not stored. */
static void score_tile(float s[ROWS][KEYS], const float *const q[ROWS], int rows,
                       const float *k_t, int t0, int D, float scale)
{
    __m256 acc[ROWS][2];
    for (int r = 0; r < ROWS; r++) acc[r][0] = acc[r][1] = _mm256_setzero_ps();
    for (int d = 0; d < D; d++) {
        const __m256 k0 = _mm256_loadu_ps(k_t + d * KEYS + t0);
        const __m256 k1 = _mm256_loadu_ps(k_t + d * KEYS + t0 + 8);
        for (int r = 0; r < ROWS; r++) {
            const __m256 x = _mm256_broadcast_ss(q[r] + d);
            acc[r][0] = _mm256_fmadd_ps(x, k0, acc[r][0]);
            acc[r][1] = _mm256_fmadd_ps(x, k1, acc[r][1]);
        }
    }
    for (int r = 0; r < rows; r++) {
        _mm256_storeu_ps(s[r] + t0, _mm256_mul_ps(acc[r][0], _mm256_set1_ps(scale)));
        _mm256_storeu_ps(s[r] + t0 + 8, _mm256_mul_ps(acc[r][1], _mm256_set1_ps(scale)));
    }
}

/* Turns scores s[0..n) into probabilities, zero from n on; updates m and l, returns the factor
 * of o. */
static float softmax_row(float s[KEYS], int n, float *m, float *l)
{
    float top = *m;
    for (int t = 0; t < n; t++) top = s[t] > top ? s[t] : top;
    for (int t = n; t < KEYS; t++) s[t] = -INFINITY;
    const __m256 vtop = _mm256_set1_ps(top);
    __m256 sum = _mm256_setzero_ps();
    for (int t = 0; t < KEYS; t += 8) {
        const __m256 x = _mm256_loadu_ps(s + t);
        const __m256 seen = _mm256_cmp_ps(x, _mm256_set1_ps(-INFINITY), _CMP_NEQ_UQ);
        const __m256 p = _mm256_and_ps(exp_avx2(_mm256_sub_ps(x, vtop)), seen);
        _mm256_storeu_ps(s + t, p);
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

static void value_tile(float *const o[ROWS], const float c[ROWS], float s[ROWS][KEYS], int rows,
                       int n, const float *v, int d0, int D)
{
    __m256 acc[ROWS][2];
    for (int r = 0; r < ROWS; r++) {
        const float *from = o[r] + d0;
        acc[r][0] = _mm256_mul_ps(_mm256_loadu_ps(from), _mm256_set1_ps(c[r]));
        acc[r][1] = _mm256_mul_ps(_mm256_loadu_ps(from + 8), _mm256_set1_ps(c[r]));
    }
    for (int t = 0; t < n; t++) {
        const __m256 v0 = _mm256_loadu_ps(v + (int64_t)t * D + d0);
        const __m256 v1 = _mm256_loadu_ps(v + (int64_t)t * D + d0 + 8);
        for (int r = 0; r < ROWS; r++) {
            const __m256 p = _mm256_broadcast_ss(s[r] + t);
            acc[r][0] = _mm256_fmadd_ps(p, v0, acc[r][0]);
            acc[r][1] = _mm256_fmadd_ps(p, v1, acc[r][1]);
        }
    }
    for (int r = 0; r < rows; r++) {
        _mm256_storeu_ps(o[r] + d0, acc[r][0]);
        _mm256_storeu_ps(o[r] + d0 + 8, acc[r][1]);
    }
}

/* Columns behind the last multiple of 16, one by one, in the same order. */
static void value_tail(float *o, float c, const float *s, int n, const float *v, int d0, int D)
{
    for (int d = d0; d < D; d++) {
        float acc = o[d] * c;
        for (int t = 0; t < n; t++) acc = fmaf(s[t], v[(int64_t)t * D + d], acc);
        o[d] = acc;
    }
}

void fl__attention_page_avx2(float *o, float *m, float *l, const float *q, int64_t q_stride,
                             int n_q, int n_keys, const float *k_t, const float *v, int D,
                             float scale)
{
    for (int r0 = n_keys > 0 ? 0 : 1 - n_keys; r0 < n_q; r0 += ROWS) {
        const int rows = n_q - r0 < ROWS ? n_q - r0 : ROWS;
        const int first = n_keys + r0 < KEYS ? n_keys + r0 : KEYS;
        const int last = n_keys + r0 + rows - 1 < KEYS ? n_keys + r0 + rows - 1 : KEYS;
        const float *qr[ROWS];
        float *or[ROWS], c[ROWS], s[ROWS][KEYS];
        for (int r = 0; r < ROWS; r++) {
            const int row = r0 + (r < rows ? r : rows - 1);
            qr[r] = q + row * q_stride;
            or[r] = o + (int64_t)row * D;
        }
        for (int t0 = 0; t0 < last; t0 += 16) score_tile(s, qr, rows, k_t, t0, D, scale);
        for (int r = 0; r < rows; r++) {
            const int n = first + r < KEYS ? first + r : KEYS;
            c[r] = softmax_row(s[r], n, m + r0 + r, l + r0 + r);
        }
        for (int r = rows; r < ROWS; r++) {
            c[r] = 0;
            for (int t = 0; t < KEYS; t++) s[r][t] = 0;
        }
        int d0 = 0;
        for (; d0 + 16 <= D; d0 += 16) value_tile(or, c, s, rows, last, v, d0, D);
        for (int r = 0; r < rows && d0 < D; r++) value_tail(or[r], c[r], s[r], last, v, d0, D);
    }
}
