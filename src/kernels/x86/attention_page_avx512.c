/* attention_page_avx512.c - attention page kernel for AVX-512.
 *
 * attention_page_avx2.c with vectors twice as wide: one to four query rows at a time, scores
 * and P V in tiles of 4 rows x 32 keys or columns (also 3 rows), 2 x 64 and 1 x 64. Keys that
 * a row does not see and columns behind the last whole tile are masked. Each element is one
 * chain of fused multiply-adds in rising d (scores) or rising t (P V), whatever the number of
 * rows and the width of the tile: a decoded token equals the same token in a prefill.
 * SPDX-License-Identifier: MIT */
#include "kernels/attention.h"
#include "kernels/x86/math_avx512.h"
#include "kernels/x86/simd.h"

#include <math.h>

fl_attention_page_fn fl__attention_page_avx512;

#define KEYS FL_ATTENTION_KEYS
#define ROWS 4     /* rows of a block */
#define MAX_VECS 4 /* vectors of sixteen lanes that a tile is wide */

/* Query rows that share one pass over the page. */
typedef struct block {
    const float *q;
    float *o, c[ROWS];
    _Alignas(64) float s[ROWS][KEYS]; /* scores, then probabilities */
    int64_t q_stride;
    int D, n_seen; /* keys that the last row sees */
} block;

/* Lanes of the vector at i that lie under n. */
FL_INLINE __mmask16 lanes_under(int n, int i)
{
    return n - i >= 16 ? 0xffff : n - i <= 0 ? 0 : (__mmask16)((1u << (n - i)) - 1);
}

/* s[0..rows)[t0, t0 + 16 vecs) */
FL_INLINE void score_tile(block *b, const float *k_t, int t0, float scale, int rows, int vecs)
{
    __m512 acc[ROWS][MAX_VECS];
    for (int r = 0; r < rows; r++)
        for (int i = 0; i < vecs; i++) acc[r][i] = _mm512_setzero_ps();
    const float *q[ROWS], *const end = k_t + b->D * KEYS;
    for (int r = 0; r < rows; r++) q[r] = b->q + r * b->q_stride;
    for (k_t += t0; k_t < end; k_t += KEYS) {
        __m512 k[MAX_VECS];
        for (int i = 0; i < vecs; i++) k[i] = _mm512_loadu_ps(k_t + 16 * i);
        for (int r = 0; r < rows; r++) {
            const __m512 x = _mm512_set1_ps(*q[r]++);
            for (int i = 0; i < vecs; i++) acc[r][i] = _mm512_fmadd_ps(x, k[i], acc[r][i]);
        }
    }
    for (int r = 0; r < rows; r++)
        for (int i = 0; i < vecs; i++)
            _mm512_store_ps(b->s[r] + t0 + 16 * i,
                            _mm512_mul_ps(acc[r][i], _mm512_set1_ps(scale)));
}

FL_INLINE __m256 upper_half(__m512 v)
{
    return _mm512_extractf32x8_ps(v, 1);
}

FL_INLINE float max_lane(__m512 v)
{
    const __m256 h = _mm256_max_ps(_mm512_castps512_ps256(v), upper_half(v));
    __m128 m = _mm_max_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
    m = _mm_max_ps(m, _mm_movehl_ps(m, m));
    return _mm_cvtss_f32(_mm_max_ss(m, _mm_movehdup_ps(m)));
}

FL_INLINE float sum_lanes(__m512 v)
{
    float lane[8];
    _mm256_storeu_ps(lane, _mm256_add_ps(_mm512_castps512_ps256(v), upper_half(v)));
    return ((lane[0] + lane[4]) + (lane[1] + lane[5])) +
           ((lane[2] + lane[6]) + (lane[3] + lane[7]));
}

/* Turns scores s[0..n) into probabilities, zero from n to n_seen and on to a whole vector;
 * updates m and l, returns the factor of o. A score that is NaN does not count as largest. */
static float softmax_row(float s[KEYS], int n, int n_seen, float *m, float *l)
{
    __m512 tops = _mm512_set1_ps(*m), sum = _mm512_setzero_ps();
    for (int t = 0; t < n; t += 16)
        tops = _mm512_mask_max_ps(tops, lanes_under(n, t), _mm512_load_ps(s + t), tops);
    const float top = max_lane(tops);
    const __m512 vtop = _mm512_set1_ps(top), none = _mm512_set1_ps(-INFINITY);
    for (int t = 0; t < n_seen; t += 16) {
        const __m512 x = _mm512_load_ps(s + t);
        const __mmask16 seen =
            _mm512_mask_cmp_ps_mask(lanes_under(n, t), x, none, _CMP_NEQ_UQ);
        const __m512 p = _mm512_maskz_mov_ps(seen, exp_avx512(_mm512_sub_ps(x, vtop)));
        _mm512_store_ps(s + t, p);
        sum = _mm512_add_ps(sum, p);
    }
    const float c = *m == -INFINITY ? 0.0f : expf(*m - top);
    *l = *l * c + sum_lanes(sum);
    *m = top;
    return c;
}

/* o[0..rows)[d0, d0 + 16 vecs), as far as D goes */
FL_INLINE void value_tile(const block *b, const float *v, int d0, int rows, int vecs)
{
    __m512 acc[ROWS][MAX_VECS];
    __mmask16 mask[MAX_VECS];
    for (int i = 0; i < vecs; i++) mask[i] = lanes_under(b->D, d0 + 16 * i);
    for (int r = 0; r < rows; r++)
        for (int i = 0; i < vecs; i++)
            acc[r][i] =
                _mm512_mul_ps(_mm512_maskz_loadu_ps(mask[i], b->o + r * b->D + d0 + 16 * i),
                              _mm512_set1_ps(b->c[r]));
    const float *s = b->s[0], *const end = s + b->n_seen;
    const int64_t D = b->D;
    for (v += d0; s < end; s++, v += D) {
        __m512 x[MAX_VECS];
        for (int i = 0; i < vecs; i++) x[i] = _mm512_maskz_loadu_ps(mask[i], v + 16 * i);
        for (int r = 0; r < rows; r++) {
            const __m512 p = _mm512_set1_ps(s[r * KEYS]);
            for (int i = 0; i < vecs; i++) acc[r][i] = _mm512_fmadd_ps(p, x[i], acc[r][i]);
        }
    }
    for (int r = 0; r < rows; r++)
        for (int i = 0; i < vecs; i++)
            _mm512_mask_storeu_ps(b->o + r * b->D + d0 + 16 * i, mask[i], acc[r][i]);
}

/* rows (1..ROWS), the first of which sees n_first keys, in tiles of vecs vectors. */
FL_INLINE void run_block(block *b, float *m, float *l, int n_first, const float *k_t,
                         const float *v, float scale, int rows, int vecs)
{
    const int n_last = n_first + rows - 1;
    b->n_seen = n_last < KEYS ? n_last : KEYS;
    for (int t0 = 0; t0 < b->n_seen; t0 += 16 * vecs)
        score_tile(b, k_t, t0, scale, rows, vecs);
    for (int r = 0; r < rows; r++) {
        const int n = n_first + r < KEYS ? n_first + r : KEYS;
        b->c[r] = softmax_row(b->s[r], n, b->n_seen, m + r, l + r);
    }
    for (int d0 = 0; d0 < b->D; d0 += 16 * vecs) value_tile(b, v, d0, rows, vecs);
}

void fl__attention_page_avx512(float *o, float *m, float *l, const float *q, int64_t q_stride,
                               int n_q, int n_keys, const float *k_t, const float *v, int D,
                               float scale)
{
    block b = {.q_stride = q_stride, .D = D};
    for (int r0 = n_keys > 0 ? 0 : 1 - n_keys; r0 < n_q; r0 += ROWS) {
        const int n_first = n_keys + r0 < KEYS ? n_keys + r0 : KEYS;
        b.q = q + r0 * q_stride;
        b.o = o + (int64_t)r0 * D;
        switch (n_q - r0) {
        case 1: run_block(&b, m + r0, l + r0, n_first, k_t, v, scale, 1, 4); break;
        case 2: run_block(&b, m + r0, l + r0, n_first, k_t, v, scale, 2, 4); break;
        case 3: run_block(&b, m + r0, l + r0, n_first, k_t, v, scale, 3, 2); break;
        default: run_block(&b, m + r0, l + r0, n_first, k_t, v, scale, 4, 2); break;
        }
    }
}
