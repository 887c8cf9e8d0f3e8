/* gemm_f32_6x16_avx2.c - float products for AVX2 + FMA.
 *
 * Many rows: 6 rows x 16 outputs in twelve registers, one of the eight chains at a time; a
 * piece of a panel and six rows of x stay in the first cache for all eight. Weights lie
 * along K, a panel has them across: blocks of 8 outputs x 8 channels are transposed in
 * registers. Few rows: the eight lanes of a register are the eight chains of one output.
 * pack and few serve the AVX-512 row, too.
 * SPDX-License-Identifier: MIT */
#include "kernels/gemm_f32.h"
#include "kernels/x86/simd.h"

#include <string.h>

fl_gemm_f32_run_fn fl__gemm_f32_6x16_avx2;
fl_gemm_f32_pack_fn fl__gemm_f32_pack_f32_avx2, fl__gemm_f32_pack_bf16_avx2,
    fl__gemm_f32_pack_f16_avx2;
fl_gemm_f32_few_fn fl__gemm_f32_few_f32_avx2, fl__gemm_f32_few_bf16_avx2,
    fl__gemm_f32_few_f16_avx2;

enum { CHAINS = FL_GEMM_F32_CHAINS, PIECE = FL_GEMM_F32_PIECE, PANEL = 16 };
enum { ROWS = 6, NEAR_ROWS = 12, FEW_ROWS = 4, FEW_OUTPUTS = 8 };

/* ---- many rows --------------------------------------------------------------------------- */

/* One chain of rows rows, in steps of CHAINS channels. The pragmas, because GCC 12 looks for
 * arrays that fit in registers before it unrolls of its own accord. */
FL_INLINE void one_chain(float *sums, const float *x, int64_t ldx, const float *w, int n_steps,
                         bool first, int rows)
{
    __m256 acc[ROWS][2];
#pragma GCC unroll 6
    for (int r = 0; r < rows; r++) {
        const float *from = sums + r * CHAINS * PANEL;
        acc[r][0] = first ? _mm256_setzero_ps() : _mm256_load_ps(from);
        acc[r][1] = first ? _mm256_setzero_ps() : _mm256_load_ps(from + 8);
    }
    for (int i = 0; i < n_steps; i++, x += CHAINS, w += PANEL) {
        const __m256 w0 = _mm256_loadu_ps(w), w1 = _mm256_loadu_ps(w + 8);
#pragma GCC unroll 6
        for (int r = 0; r < rows; r++) {
            const __m256 v = _mm256_broadcast_ss(x + r * ldx);
            acc[r][0] = _mm256_fmadd_ps(v, w0, acc[r][0]);
            acc[r][1] = _mm256_fmadd_ps(v, w1, acc[r][1]);
            FL_KEEP(acc[r][0]);
            FL_KEEP(acc[r][1]);
        }
    }
#pragma GCC unroll 6
    for (int r = 0; r < rows; r++) {
        _mm256_store_ps(sums + r * CHAINS * PANEL, acc[r][0]);
        _mm256_store_ps(sums + r * CHAINS * PANEL + 8, acc[r][1]);
    }
}

static __m256 sum_of_chains(const float *s)
{
    __m256 v[CHAINS];
#pragma GCC unroll 8
    for (int i = 0; i < CHAINS; i++) v[i] = _mm256_load_ps(s + i * PANEL);
    return _mm256_add_ps(_mm256_add_ps(_mm256_add_ps(v[0], v[4]), _mm256_add_ps(v[1], v[5])),
                         _mm256_add_ps(_mm256_add_ps(v[2], v[6]), _mm256_add_ps(v[3], v[7])));
}

/* Rows [m, m + rows), channels [k, k + K): one piece. */
FL_INLINE void run_piece(const fl_gemm_f32_part *p, float *sums, int m, int k, int K, int rows)
{
    const float *w = p->panel + k * PANEL;
    const int steps = (K + CHAINS - 1) / CHAINS;
    for (int c = 0; c < CHAINS; c++, w += steps * PANEL)
        one_chain(sums + c * PANEL, p->x + m * p->ldx + k + c, p->ldx, w,
                  (K - c + CHAINS - 1) / CHAINS, p->first && k == 0, rows);
}

static void finish_row(float *y, const float *sums, int n)
{
    float wide[PANEL], *to = n == PANEL ? y : wide;
    _mm256_storeu_ps(to, sum_of_chains(sums));
    _mm256_storeu_ps(to + 8, sum_of_chains(sums + 8));
    if (to == wide) memcpy(y, wide, (size_t)n * sizeof *y);
}

static void run_rows(const fl_gemm_f32_part *p, float *sums, int m, int k, int K, int rows)
{
    switch (rows) {
    case 1: run_piece(p, sums, m, k, K, 1); break;
    case 2: run_piece(p, sums, m, k, K, 2); break;
    case 3: run_piece(p, sums, m, k, K, 3); break;
    case 4: run_piece(p, sums, m, k, K, 4); break;
    case 5: run_piece(p, sums, m, k, K, 5); break;
    default: run_piece(p, sums, m, k, K, 6); break;
    }
}

/* The sums of a block stay in the first cache when the whole of K is at hand. */
void fl__gemm_f32_6x16_avx2(const fl_gemm_f32_part *p)
{
    for (int m0 = 0; m0 < p->M; m0 += NEAR_ROWS) {
        const int m1 = m0 + NEAR_ROWS < p->M ? m0 + NEAR_ROWS : p->M;
        float *sums = p->sums + (p->first && p->last ? 0 : m0 * CHAINS * PANEL);
        for (int k = 0; k < p->K; k += PIECE)
            for (int m = m0; m < m1; m += ROWS)
                run_rows(p, sums + (m - m0) * CHAINS * PANEL, m, k,
                         p->K - k < PIECE ? p->K - k : PIECE, m1 - m < ROWS ? m1 - m : ROWS);
        for (int m = m0; m < m1 && p->last; m++)
            finish_row(p->y + m * p->ldy, sums + (m - m0) * CHAINS * PANEL, p->n);
    }
}

/* ---- weights ----------------------------------------------------------------------------- */

/* Eight weights, widened. */
typedef __m256 load8_fn(const char *w);

FL_INLINE __m256 f32x8(const char *w)
{
    return _mm256_loadu_ps((const void *)w);
}

FL_INLINE __m256 bf16x8(const char *w)
{
    const __m128i h = _mm_loadu_si128((const void *)w);
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(h), 16));
}

FL_INLINE __m256 f16x8(const char *w)
{
    return _mm256_cvtph_ps(_mm_loadu_si128((const void *)w));
}

/* The last n_bytes of a row, fewer than eight weights, then zeros. */
FL_INLINE __m256 load_tail(const char *w, size_t n_bytes, load8_fn *load8)
{
    char tail[8 * sizeof(float)] = {0};
    memcpy(tail, w, n_bytes);
    return load8(tail);
}

/* out[k] of 8 outputs from in[output] of 8 channels */
FL_INLINE void transpose(__m256 out[8], const __m256 in[8])
{
    __m256 a[8], b[8];
#pragma GCC unroll 4
    for (int i = 0; i < 8; i += 2) { /* pairs of outputs: k 0 1 4 5, k 2 3 6 7 */
        a[i] = _mm256_unpacklo_ps(in[i], in[i + 1]);
        a[i + 1] = _mm256_unpackhi_ps(in[i], in[i + 1]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) { /* fours of outputs: k and k + 4 in each */
        const int at = i / 2 * 4, j = i % 2;
        b[at + 2 * j] = _mm256_shuffle_ps(a[at + j], a[at + j + 2], 0x44);
        b[at + 2 * j + 1] = _mm256_shuffle_ps(a[at + j], a[at + j + 2], 0xee);
    }
#pragma GCC unroll 4
    for (int k = 0; k < 4; k++) {
        out[k] = _mm256_permute2f128_ps(b[k], b[k + 4], 0x20);
        out[k + 4] = _mm256_permute2f128_ps(b[k], b[k + 4], 0x31);
    }
}

FL_INLINE void pack(float *dst, int panel, const void *w, int64_t ldw, int n, int K,
                    load8_fn *load8, size_t elem_bytes)
{
    for (int i0 = 0; i0 < panel; i0 += 8) {
        const char *row[8];
        for (int i = 0; i < 8; i++)
            row[i] = (const char *)w +
                     (size_t)((i0 + i < n ? i0 + i : n - 1) * ldw) * elem_bytes;
        for (int k = 0; k < K; k += 8) {
            __m256 in[8], out[8];
            const int piece = k / PIECE * PIECE,
                      steps = ((K - piece < PIECE ? K - piece : PIECE) + CHAINS - 1) / CHAINS;
            float *to = dst + (piece + (k - piece) / CHAINS) * panel + i0;
            const size_t at = (size_t)k * elem_bytes, left = (size_t)(K - k) * elem_bytes;
#pragma GCC unroll 8
            for (int i = 0; i < 8; i++)
                in[i] = k + 8 <= K ? load8(row[i] + at) : load_tail(row[i] + at, left, load8);
            transpose(out, in);
#pragma GCC unroll 8
            for (int c = 0; c < CHAINS; c++)
                _mm256_storeu_ps(to + c * steps * panel, out[c]);
        }
    }
}

void fl__gemm_f32_pack_f32_avx2(float *dst, int panel, const void *w, int64_t ldw, int n, int K)
{
    pack(dst, panel, w, ldw, n, K, f32x8, sizeof(float));
}

void fl__gemm_f32_pack_bf16_avx2(float *dst, int panel, const void *w, int64_t ldw, int n,
                                 int K)
{
    pack(dst, panel, w, ldw, n, K, bf16x8, sizeof(uint16_t));
}

void fl__gemm_f32_pack_f16_avx2(float *dst, int panel, const void *w, int64_t ldw, int n, int K)
{
    pack(dst, panel, w, ldw, n, K, f16x8, sizeof(uint16_t));
}

/* ---- few rows ---------------------------------------------------------------------------- */

FL_INLINE float sum_of_lanes(__m256 v)
{
    float s[8];
    _mm256_storeu_ps(s, v);
    return ((s[0] + s[4]) + (s[1] + s[5])) + ((s[2] + s[6]) + (s[3] + s[7]));
}

/* Lanes under `left`. */
FL_INLINE __m256i lane_mask(int left)
{
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(left),
                              _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

/* rows rows x n outputs, both constant. The rows of the next outputs follow those of these in
 * memory; asked for in that order they come faster than as n short streams. */
FL_INLINE void few_outputs(float *y, int64_t ldy, const float *x, int64_t ldx, const char *w,
                           int64_t ldw_bytes, int K, load8_fn *load8, size_t elem_bytes,
                           int rows, int n)
{
    __m256 acc[FEW_ROWS][FEW_OUTPUTS], v[FEW_ROWS];
    const char *next = w + n * ldw_bytes;
    int k = 0;
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 8
        for (int i = 0; i < n; i++) acc[r][i] = _mm256_setzero_ps();
    for (; k + 8 <= K; k += 8, w += 8 * elem_bytes, next += 8 * (size_t)n * elem_bytes) {
#pragma GCC unroll 4
        for (size_t line = 0; line < 8 * (size_t)n * elem_bytes; line += 64)
            _mm_prefetch(next + line, _MM_HINT_T0);
#pragma GCC unroll 4
        for (int r = 0; r < rows; r++) v[r] = _mm256_loadu_ps(x + r * ldx + k);
#pragma GCC unroll 8
        for (int i = 0; i < n; i++) {
            const __m256 weights = load8(w + i * ldw_bytes);
#pragma GCC unroll 4
            for (int r = 0; r < rows; r++)
                acc[r][i] = _mm256_fmadd_ps(v[r], weights, acc[r][i]);
        }
    }
    if (k < K) {
        const __m256i mask = lane_mask(K - k);
#pragma GCC unroll 4
        for (int r = 0; r < rows; r++) v[r] = _mm256_maskload_ps(x + r * ldx + k, mask);
#pragma GCC unroll 8
        for (int i = 0; i < n; i++) {
            const __m256 weights =
                load_tail(w + i * ldw_bytes, (size_t)(K - k) * elem_bytes, load8);
#pragma GCC unroll 4
            for (int r = 0; r < rows; r++)
                acc[r][i] = _mm256_blendv_ps(acc[r][i],
                                             _mm256_fmadd_ps(v[r], weights, acc[r][i]),
                                             _mm256_castsi256_ps(mask));
        }
    }
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 8
        for (int i = 0; i < n; i++) y[r * ldy + i] = sum_of_lanes(acc[r][i]);
}

FL_INLINE void few_by(float *y, int64_t ldy, const float *x, int64_t ldx, const void *w,
                      int64_t ldw, int n, int K, load8_fn *load8, size_t elem_bytes, int rows,
                      int step)
{
    const char *at = w;
    const int64_t ld = ldw * (int64_t)elem_bytes;
    int i = 0;
    for (; i + step <= n; i += step)
        few_outputs(y + i, ldy, x, ldx, at + i * ld, ld, K, load8, elem_bytes, rows, step);
    for (; i < n; i++)
        few_outputs(y + i, ldy, x, ldx, at + i * ld, ld, K, load8, elem_bytes, rows, 1);
}

/* Enough sums at once to hide the latency of an addition. */
FL_INLINE void few(float *y, int64_t ldy, const float *x, int64_t ldx, const void *w,
                   int64_t ldw, int M, int n, int K, load8_fn *load8, size_t elem_bytes)
{
    switch (M) {
    case 1: few_by(y, ldy, x, ldx, w, ldw, n, K, load8, elem_bytes, 1, 8); break;
    case 2: few_by(y, ldy, x, ldx, w, ldw, n, K, load8, elem_bytes, 2, 4); break;
    case 3: few_by(y, ldy, x, ldx, w, ldw, n, K, load8, elem_bytes, 3, 3); break;
    default: few_by(y, ldy, x, ldx, w, ldw, n, K, load8, elem_bytes, 4, 2); break;
    }
}

void fl__gemm_f32_few_f32_avx2(float *y, int64_t ldy, const float *x, int64_t ldx,
                               const void *w, int64_t ldw, int M, int n, int K)
{
    few(y, ldy, x, ldx, w, ldw, M, n, K, f32x8, sizeof(float));
}

void fl__gemm_f32_few_bf16_avx2(float *y, int64_t ldy, const float *x, int64_t ldx,
                                const void *w, int64_t ldw, int M, int n, int K)
{
    few(y, ldy, x, ldx, w, ldw, M, n, K, bf16x8, sizeof(uint16_t));
}

void fl__gemm_f32_few_f16_avx2(float *y, int64_t ldy, const float *x, int64_t ldx,
                               const void *w, int64_t ldw, int M, int n, int K)
{
    few(y, ldy, x, ldx, w, ldw, M, n, K, f16x8, sizeof(uint16_t));
}
