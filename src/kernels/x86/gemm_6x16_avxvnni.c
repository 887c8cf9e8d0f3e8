/* gemm_6x16_avxvnni.c - many rows of x: 6 rows x 16 channels in registers, VEX-coded vpdpbusd.
 *
 * Blocks, scratch and expansion as in gemm_12x32_avx512vnni.c, one panel at a time.
 * SPDX-License-Identifier: MIT */
#include "kernels/gemm_rows.h"
#include "kernels/x86/gemm_avx2.h"

#define MR     6
#define TILE_M FL_GEMM_6X16_AVXVNNI_TILE_M
#define TILE_N FL_GEMM_6X16_AVXVNNI_TILE_N
#define KC     FL_GEMM_6X16_AVXVNNI_KC

/* kc input channels of one panel -> bytes [kc/4][16][4]: nibbles 0..15, or codes + 128; the
 * same block of the next panel is fetched meanwhile. */
FL_INLINE void expand(uint8_t *to, const uint8_t *from, int kc, size_t panel_bytes,
                      const int bits)
{
    const __m256i low = _mm256_set1_epi8(15), flip = _mm256_set1_epi8((char)0x80);
    const int k_half = bits == 4 ? 4 : 2; /* input channels in 32 bytes */
    for (int k = 0; k < kc; k += k_half, from += 32) {
        _mm_prefetch((const char *)from + panel_bytes, _MM_HINT_T0);
        const __m256i row = _mm256_load_si256((const __m256i *)from);
        if (bits == 8) {
            _mm256_store_si256((__m256i *)to, _mm256_xor_si256(row, flip));
            to += 32;
            continue;
        }
        /* from alternates channels 0..7 and 8..15; to has 64 bytes low, 64 bytes high */
        const __m256i high = _mm256_srli_epi16(row, 4);
        _mm256_store_si256((__m256i *)to, _mm256_and_si256(row, low));
        _mm256_store_si256((__m256i *)(to + 64), _mm256_and_si256(high, low));
        to += k / 4 % 2 ? 96 : 32;
    }
}

/* sums[mr][16] += x[mr][kc] * w */
FL_INLINE void block(int32_t *sums, const uint8_t *w, const int8_t *x, int64_t ldx, int kc,
                     const int mr)
{
    __m256i s[MR][2];
    for (int i = 0; i < mr; i++) {
        s[i][0] = _mm256_load_si256((const __m256i *)(sums + i * 16));
        s[i][1] = _mm256_load_si256((const __m256i *)(sums + i * 16 + 8));
    }
    for (int k = 0; k < kc; k += 4, w += 64) {
        const __m256i w0 = _mm256_load_si256((const __m256i *)w);
        const __m256i w1 = _mm256_load_si256((const __m256i *)(w + 32));
        for (int i = 0; i < mr; i++) {
            const __m256i a = broadcast4(x + i * ldx + k);
            s[i][0] = _mm256_dpbusd_avx_epi32(s[i][0], w0, a);
            s[i][1] = _mm256_dpbusd_avx_epi32(s[i][1], w1, a);
            FL_KEEP(s[i][0]);
            FL_KEEP(s[i][1]);
        }
    }
    for (int i = 0; i < mr; i++) {
        _mm256_store_si256((__m256i *)(sums + i * 16), s[i][0]);
        _mm256_store_si256((__m256i *)(sums + i * 16 + 8), s[i][1]);
    }
}

static void all_rows(int32_t *sums, const uint8_t *w, const int8_t *x, int64_t ldx, int n_rows,
                     int kc)
{
    int m = 0;
    for (; m + MR <= n_rows; m += MR) block(sums + m * 16, w, x + m * ldx, ldx, kc, MR);
    for (; m + 2 <= n_rows; m += 2) block(sums + m * 16, w, x + m * ldx, ldx, kc, 2);
    for (; m < n_rows; m++) block(sums + m * 16, w, x + m * ldx, ldx, kc, 1);
}

FL_INLINE void run(const fl_gemm *g, int m0, int m1, int n0, int n1, void *scratch,
                   const int bits)
{
    const size_t panel_bytes = (size_t)g->w->K_pad * 2 * (size_t)bits;
    int32_t *const all_sums = scratch; /* [TILE_N / 16][TILE_M][16] */
    uint8_t *const w = (uint8_t *)(all_sums + TILE_M * TILE_N);
    int32_t *sums = all_sums;

    for (int p = 0; p < (n1 - n0 + 15) / 16; p++)
        memset(all_sums + p * TILE_M * 16, 0, (size_t)(m1 - m0) * 16 * sizeof *all_sums);
    for (int k = 0; k < g->w->K_pad; k += KC) {
        const int kc = g->w->K_pad - k < KC ? g->w->K_pad - k : KC;
        sums = all_sums;
        for (int n = n0; n < n1; n += 16, sums += TILE_M * 16) {
            const uint8_t *from =
                g->w->data + (size_t)(n / 16) * panel_bytes + (size_t)k * 2 * (size_t)bits;
            expand(w, from, kc, panel_bytes, bits);
            all_rows(sums, w, g->x + m0 * g->ldx + k, g->ldx, m1 - m0, kc);
        }
    }
    sums = all_sums;
    for (int n = n0; n < n1; n += 16, sums += TILE_M * 16)
        for (int m = m0; m < m1; m++) {
            const __m256i *s = (const __m256i *)(sums + (m - m0) * 16);
            store_row16_offset(g, m, n, s[0], s[1], bits == 4 ? 8 : 128);
        }
}

void fl__gemm_a8w4_6x16_avxvnni(const fl_gemm *g, int m0, int m1, int n0, int n1, void *scratch)
{
    run(g, m0, m1, n0, n1, scratch, 4);
}

void fl__gemm_a8w8_6x16_avxvnni(const fl_gemm *g, int m0, int m1, int n0, int n1, void *scratch)
{
    run(g, m0, m1, n0, n1, scratch, 8);
}
