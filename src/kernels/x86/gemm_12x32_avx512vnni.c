/* gemm_12x32_avx512vnni.c - many rows of x: 12 rows x 32 channels in registers.
 *
 * As gemm_6x16_avx2.c: an item walks K in blocks of KC, weights of a block and of two panels
 * become bytes (nibbles 0..15, or 8-bit codes + 128) once and stay in L1 while all rows pass.
 * One vpdpbusd is 64 products; its unsigned operand is the weight, the offset goes back with
 * x_sum.
 * SPDX-License-Identifier: MIT */
#include "kernels/gemm_rows.h"
#include "kernels/x86/gemm_avx512.h"

#include <string.h>

#define MR     12
#define TILE_M FL_GEMM_12X32_AVX512VNNI_TILE_M
#define TILE_N FL_GEMM_12X32_AVX512VNNI_TILE_N
#define KC     FL_GEMM_12X32_AVX512VNNI_KC

/* kc input channels of one panel -> bytes [kc/4][16][4]; the same block of the panel wanted
 * next is fetched meanwhile. */
FL_INLINE void expand(uint8_t *to, const uint8_t *from, int kc, size_t ahead_bytes,
                      const int bits)
{
    if (bits == 8) {
        for (int k = 0; k < kc; k += 4, from += 64, to += 64) {
            _mm_prefetch((const char *)from + ahead_bytes, _MM_HINT_T0);
            const __m512i row = _mm512_load_si512(from);
            _mm512_store_si512(to, _mm512_xor_si512(row, _mm512_set1_epi8((char)0x80)));
        }
        return;
    }
    for (int k = 0; k < kc; k += 8, from += 64, to += 128) {
        _mm_prefetch((const char *)from + ahead_bytes, _MM_HINT_T0);
        const __m512i row = _mm512_load_si512(from);
        _mm512_store_si512(to, low_nibbles(row));
        _mm512_store_si512(to + 64, high_nibbles(row));
    }
}

/* sums[p][mr][16] += x[mr][kc] * w[p], p < np: sums of two panels lie TILE_M rows apart. */
FL_INLINE void block(int32_t *sums, const uint8_t *w, const int8_t *x, int64_t ldx, int kc,
                     const int mr, const int np)
{
    __m512i s[MR][2];
    for (int i = 0; i < mr; i++)
        for (int p = 0; p < np; p++)
            s[i][p] = _mm512_load_si512(sums + (p * TILE_M + i) * 16);
    for (int k = 0; k < kc; k += 4, w += 64) {
        const __m512i w0 = _mm512_load_si512(w);
        const __m512i w1 = np > 1 ? _mm512_load_si512(w + KC * 16) : w0;
        for (int i = 0; i < mr; i++) {
            int32_t word;
            memcpy(&word, x + i * ldx + k, sizeof word);
            const __m512i a = _mm512_set1_epi32(word);
            s[i][0] = _mm512_dpbusd_epi32(s[i][0], w0, a);
            FL_KEEP(s[i][0]);
            if (np == 1) continue;
            s[i][1] = _mm512_dpbusd_epi32(s[i][1], w1, a);
            FL_KEEP(s[i][1]);
        }
    }
    for (int i = 0; i < mr; i++)
        for (int p = 0; p < np; p++)
            _mm512_store_si512(sums + (p * TILE_M + i) * 16, s[i][p]);
}

FL_INLINE void all_rows(int32_t *sums, const uint8_t *w, const int8_t *x, int64_t ldx,
                        int n_rows, int kc, const int np)
{
    int m = 0;
    for (; m + MR <= n_rows; m += MR) block(sums + m * 16, w, x + m * ldx, ldx, kc, MR, np);
    for (; m + 4 <= n_rows; m += 4) block(sums + m * 16, w, x + m * ldx, ldx, kc, 4, np);
    for (; m < n_rows; m++) block(sums + m * 16, w, x + m * ldx, ldx, kc, 1, np);
}

/* sums: int32 [TILE_N / 16][TILE_M][16] */
static void store_tile(const fl_gemm *g, int m0, int m1, int n0, int n1, const int32_t *sums,
                       int offset)
{
    for (int n = n0; n < n1; n += 16, sums += TILE_M * 16) {
        const panel_consts c = load_panel(g, n);
        for (int m = m0; m < m1; m++) {
            const __m512i sum = _mm512_load_si512(sums + (m - m0) * 16);
            put_panel(g, m, n, c.mask, finish(g, &c, m, sum, offset));
        }
    }
}

FL_INLINE void run(const fl_gemm *g, int m0, int m1, int n0, int n1, void *scratch,
                   const int bits)
{
    const size_t panel_bytes = (size_t)g->w->K_pad * 2 * (size_t)bits;
    int32_t *const all_sums = scratch;
    uint8_t *const w = (uint8_t *)(all_sums + TILE_M * TILE_N); /* [2][KC / 4][16][4] */

    for (int p = 0; p < (n1 - n0 + 15) / 16; p++)
        memset(all_sums + p * TILE_M * 16, 0, (size_t)(m1 - m0) * 16 * sizeof *all_sums);
    for (int k = 0; k < g->w->K_pad; k += KC) {
        const int kc = g->w->K_pad - k < KC ? g->w->K_pad - k : KC;
        const int8_t *x = g->x + m0 * g->ldx + k;
        int32_t *sums = all_sums;
        for (int n = n0; n < n1; n += 32, sums += 2 * TILE_M * 16) {
            const uint8_t *from =
                g->w->data + (size_t)(n / 16) * panel_bytes + (size_t)k * 2 * (size_t)bits;
            expand(w, from, kc, 2 * panel_bytes, bits);
            if (n + 16 < n1) {
                expand(w + KC * 16, from + panel_bytes, kc, 2 * panel_bytes, bits);
                all_rows(sums, w, x, g->ldx, m1 - m0, kc, 2);
            } else {
                all_rows(sums, w, x, g->ldx, m1 - m0, kc, 1);
            }
        }
    }
    store_tile(g, m0, m1, n0, n1, all_sums, bits == 4 ? 8 : 128);
}

void fl__gemm_a8w4_12x32_avx512vnni(const fl_gemm *g, int m0, int m1, int n0, int n1,
                                    void *scratch)
{
    run(g, m0, m1, n0, n1, scratch, 4);
}

void fl__gemm_a8w8_12x32_avx512vnni(const fl_gemm *g, int m0, int m1, int n0, int n1,
                                    void *scratch)
{
    run(g, m0, m1, n0, n1, scratch, 8);
}
