/* gemm_4x16_avxvnni.c - up to 4 rows of x against one panel, weights streamed.
 *
 * VEX-coded vpdpbusd; weights are the unsigned operand as in gemm_4x64_avx512vnni.c; a panel
 * is two 256-bit halves.
 * SPDX-License-Identifier: MIT */
#include "kernels/gemm_rows.h"
#include "kernels/x86/gemm_avx2.h"

#define MR          4
#define AHEAD_BYTES 2048 /* of the weight stream, fetched before they are needed */

/* sums[i][] += x[i][0..3] * w */
FL_INLINE void step4(__m256i sums[][2], __m256i w0, __m256i w1, const int8_t *x, int64_t ldx,
                     const int mr)
{
    for (int i = 0; i < mr; i++) {
        const __m256i a = broadcast4(x + i * ldx);
        sums[i][0] = _mm256_dpbusd_avx_epi32(sums[i][0], w0, a);
        sums[i][1] = _mm256_dpbusd_avx_epi32(sums[i][1], w1, a);
        FL_KEEP(sums[i][0]);
        FL_KEEP(sums[i][1]);
    }
}

/* y[m..m+mr-1, n..n+15] */
FL_INLINE void rows(const fl_gemm *g, int m, int n, const int bits, const int mr)
{
    const __m256i low = _mm256_set1_epi8(15), flip = _mm256_set1_epi8((char)0x80);
    const uint8_t *w =
        g->w->data + (size_t)(n / 16) * (size_t)g->w->K_pad * 2 * (size_t)bits;
    const int8_t *x = g->x + m * g->ldx;
    const int k_row = bits == 4 ? 8 : 4;
    __m256i sums[MR][2];

    for (int i = 0; i < mr; i++) sums[i][0] = sums[i][1] = _mm256_setzero_si256();
    for (int k = 0; k < g->w->K_pad; k += k_row, w += 64, x += k_row) {
        _mm_prefetch((const char *)w + AHEAD_BYTES, _MM_HINT_T0);
        const __m256i w0 = _mm256_load_si256((const __m256i *)w);
        const __m256i w1 = _mm256_load_si256((const __m256i *)(w + 32));
        if (bits == 4) {
            const __m256i h0 = _mm256_srli_epi16(w0, 4), h1 = _mm256_srli_epi16(w1, 4);
            step4(sums, _mm256_and_si256(w0, low), _mm256_and_si256(w1, low), x, g->ldx, mr);
            step4(sums, _mm256_and_si256(h0, low), _mm256_and_si256(h1, low), x + 4, g->ldx,
                  mr);
        } else {
            step4(sums, _mm256_xor_si256(w0, flip), _mm256_xor_si256(w1, flip), x, g->ldx, mr);
        }
    }
    for (int i = 0; i < mr; i++)
        store_row16_offset(g, m + i, n, sums[i][0], sums[i][1], bits == 4 ? 8 : 128);
}

FL_INLINE void run(const fl_gemm *g, int m0, int m1, int n0, int n1, const int bits)
{
    for (int n = n0; n < n1; n += 16) {
        int m = m0;
        for (; m + MR <= m1; m += MR) rows(g, m, n, bits, MR);
        switch (m1 - m) {
        case 3: rows(g, m, n, bits, 3); break;
        case 2: rows(g, m, n, bits, 2); break;
        case 1: rows(g, m, n, bits, 1); break;
        default: break;
        }
    }
}

void fl__gemm_a8w4_4x16_avxvnni(const fl_gemm *g, int m0, int m1, int n0, int n1, void *scratch)
{
    (void)scratch;
    run(g, m0, m1, n0, n1, 4);
}

void fl__gemm_a8w8_4x16_avxvnni(const fl_gemm *g, int m0, int m1, int n0, int n1, void *scratch)
{
    (void)scratch;
    run(g, m0, m1, n0, n1, 8);
}
