/* gemm_f32_12x32_avx512.c - float products for AVX-512: 12 rows x 32 outputs in 24 registers,
 * one of the eight chains at a time.
 *
 * Panels and few rows are those of gemm_f32_6x16_avx2.c, and so are the bits: the same chains.
 * SPDX-License-Identifier: MIT */
#include "kernels/gemm_f32.h"
#include "kernels/x86/simd.h"

fl_gemm_f32_run_fn fl__gemm_f32_12x32_avx512;

enum { CHAINS = FL_GEMM_F32_CHAINS, PIECE = FL_GEMM_F32_PIECE, PANEL = 32, ROWS = 12 };

FL_INLINE void one_chain(float *sums, const float *x, int64_t ldx, const float *w, int n_steps,
                         bool first, int rows)
{
    __m512 acc[ROWS][2];
#pragma GCC unroll 12
    for (int r = 0; r < rows; r++) {
        const float *from = sums + r * CHAINS * PANEL;
        acc[r][0] = first ? _mm512_setzero_ps() : _mm512_load_ps(from);
        acc[r][1] = first ? _mm512_setzero_ps() : _mm512_load_ps(from + 16);
    }
    for (int i = 0; i < n_steps; i++, x += CHAINS, w += PANEL) {
        const __m512 w0 = _mm512_loadu_ps(w), w1 = _mm512_loadu_ps(w + 16);
#pragma GCC unroll 12
        for (int r = 0; r < rows; r++) {
            const __m512 v = _mm512_set1_ps(x[r * ldx]);
            acc[r][0] = _mm512_fmadd_ps(v, w0, acc[r][0]);
            acc[r][1] = _mm512_fmadd_ps(v, w1, acc[r][1]);
            FL_KEEP(acc[r][0]);
            FL_KEEP(acc[r][1]);
        }
    }
#pragma GCC unroll 12
    for (int r = 0; r < rows; r++) {
        _mm512_store_ps(sums + r * CHAINS * PANEL, acc[r][0]);
        _mm512_store_ps(sums + r * CHAINS * PANEL + 16, acc[r][1]);
    }
}

FL_INLINE __m512 sum_of_chains(const float *s)
{
    __m512 v[CHAINS];
#pragma GCC unroll 8
    for (int i = 0; i < CHAINS; i++) v[i] = _mm512_load_ps(s + i * PANEL);
    return _mm512_add_ps(_mm512_add_ps(_mm512_add_ps(v[0], v[4]), _mm512_add_ps(v[1], v[5])),
                         _mm512_add_ps(_mm512_add_ps(v[2], v[6]), _mm512_add_ps(v[3], v[7])));
}

FL_INLINE __mmask16 lanes_under(int n)
{
    return n >= 16 ? 0xffff : n <= 0 ? 0 : (__mmask16)((1u << n) - 1);
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
    _mm512_mask_storeu_ps(y, lanes_under(n), sum_of_chains(sums));
    _mm512_mask_storeu_ps(y + 16, lanes_under(n - 16), sum_of_chains(sums + 16));
}

/* The sums of a block stay in the first cache when the whole of K is at hand. */
void fl__gemm_f32_12x32_avx512(const fl_gemm_f32_part *p)
{
    for (int m0 = 0; m0 < p->M; m0 += ROWS) {
        const int m1 = m0 + ROWS < p->M ? m0 + ROWS : p->M;
        float *sums = p->sums + (p->first && p->last ? 0 : m0 * CHAINS * PANEL);
        for (int k = 0; k < p->K; k += PIECE) {
            const int K = p->K - k < PIECE ? p->K - k : PIECE;
            float *s = sums;
            int m = m0;
            if (m + ROWS == m1) {
                run_piece(p, s, m, k, K, ROWS);
                continue;
            }
            for (; m + 4 <= m1; m += 4, s += 4 * CHAINS * PANEL) run_piece(p, s, m, k, K, 4);
            for (; m < m1; m++, s += CHAINS * PANEL) run_piece(p, s, m, k, K, 1);
        }
        for (int m = m0; m < m1 && p->last; m++)
            finish_row(p->y + m * p->ldy, sums + (m - m0) * CHAINS * PANEL, p->n);
    }
}
