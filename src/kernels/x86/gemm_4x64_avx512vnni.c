/* gemm_4x64_avx512vnni.c - up to 4 rows of x against 4 panels (64 channels), weights streamed.
 *
 * vpdpbusd multiplies unsigned by signed bytes into int32 lanes, and a lane is a channel:
 * weights are the unsigned operand (nibbles 0..15 as they lie; 8-bit codes + 128 by one xor), 4
 * bytes of x broadcast the signed one. The offset 8 or 128 is taken back with x_sum. Four
 * panels at once hide the latency of the sums and make four streams for the prefetcher.
 * SPDX-License-Identifier: MIT */
#include "kernels/gemm_rows.h"
#include "kernels/x86/gemm_avx512.h"

#include <string.h>

#define MR          4
#define NP          4
#define AHEAD_BYTES 2048 /* of each weight stream, fetched before they are needed */

FL_INLINE __m512i broadcast4(const int8_t *x)
{
    int32_t word;
    memcpy(&word, x, sizeof word);
    return _mm512_set1_epi32(word);
}

/* sums[i][p] += x[i][0..3] * w[p] */
FL_INLINE void step4(__m512i sums[][NP], const __m512i w[NP], const int8_t *x, int64_t ldx,
                     const int mr, const int np)
{
    for (int i = 0; i < mr; i++) {
        const __m512i a = broadcast4(x + i * ldx);
        for (int p = 0; p < np; p++) {
            sums[i][p] = _mm512_dpbusd_epi32(sums[i][p], w[p], a);
            FL_KEEP(sums[i][p]);
        }
    }
}

/* y[m..m+mr-1, n..n+np*16-1] */
FL_INLINE void rows(const fl_gemm *g, int m, int n, const int bits, const int mr, const int np)
{
    const size_t panel_bytes = (size_t)g->w->K_pad * 2 * (size_t)bits;
    const uint8_t *w = g->w->data + (size_t)(n / 16) * panel_bytes;
    const int8_t *x = g->x + m * g->ldx;
    const int k_row = bits == 4 ? 8 : 4;
    __m512i sums[MR][NP], row[NP], part[NP];

    for (int i = 0; i < mr; i++)
        for (int p = 0; p < np; p++) sums[i][p] = _mm512_setzero_si512();
    for (int k = 0; k < g->w->K_pad; k += k_row, w += 64, x += k_row) {
        for (int p = 0; p < np; p++) {
            const uint8_t *at = w + (size_t)p * panel_bytes;
            _mm_prefetch((const char *)at + AHEAD_BYTES, _MM_HINT_T0);
            row[p] = _mm512_load_si512(at);
        }
        if (bits == 4) {
            for (int p = 0; p < np; p++) part[p] = low_nibbles(row[p]);
            step4(sums, part, x, g->ldx, mr, np);
            for (int p = 0; p < np; p++) part[p] = high_nibbles(row[p]);
            step4(sums, part, x + 4, g->ldx, mr, np);
        } else {
            for (int p = 0; p < np; p++)
                part[p] = _mm512_xor_si512(row[p], _mm512_set1_epi8((char)0x80));
            step4(sums, part, x, g->ldx, mr, np);
        }
    }
    for (int p = 0; p < np; p++) {
        const panel_consts c = load_panel(g, n + p * 16);
        for (int i = 0; i < mr; i++)
            put_panel(g, m + i, n + p * 16, c.mask,
                      finish(g, &c, m + i, sums[i][p], bits == 4 ? 8 : 128));
    }
}

FL_INLINE void panels(const fl_gemm *g, int m0, int m1, int n, const int bits, const int np)
{
    int m = m0;
    for (; m + MR <= m1; m += MR) rows(g, m, n, bits, MR, np);
    switch (m1 - m) {
    case 3: rows(g, m, n, bits, 3, np); break;
    case 2: rows(g, m, n, bits, 2, np); break;
    case 1: rows(g, m, n, bits, 1, np); break;
    default: break;
    }
}

void fl__gemm_a8w4_4x64_avx512vnni(const fl_gemm *g, int m0, int m1, int n0, int n1,
                                   void *scratch)
{
    int n = n0;
    (void)scratch;
    for (; n + 48 < n1; n += 64) panels(g, m0, m1, n, 4, 4);
    for (; n < n1; n += 16) panels(g, m0, m1, n, 4, 1);
}

void fl__gemm_a8w8_4x64_avx512vnni(const fl_gemm *g, int m0, int m1, int n0, int n1,
                                   void *scratch)
{
    int n = n0;
    (void)scratch;
    for (; n + 48 < n1; n += 64) panels(g, m0, m1, n, 8, 4);
    for (; n < n1; n += 16) panels(g, m0, m1, n, 8, 1);
}
