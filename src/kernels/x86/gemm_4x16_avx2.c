/* gemm_4x16_avx2.c - up to 4 rows of x against one panel of 16 channels, weights streamed.
 *
 * 4 bits: nibbles 0..15 are the unsigned operand of vpmaddubsw, x the signed one. A pair sum is
 * at most 2 * 15 * 128 = 3840, so 8 of them add up in int16 (30720) before vpmaddwd widens: 32
 * input channels per step. The stored offset 8 is taken back with x_sum.
 *
 * 8 bits: |x| (0..128) is the unsigned operand, w with the sign of x the signed one. A pair sum
 * is at most 2 * 128 * 127 = 32512 and fits, but only one: widened at once. This is why w is
 * never -128.
 * SPDX-License-Identifier: MIT */
#include "kernels/gemm_rows.h"
#include "kernels/x86/gemm_avx2.h"

#define MR          4
#define AHEAD_BYTES 2048 /* of the weight stream, fetched before they are needed */

/* 32 input channels of one panel (256 bytes): sums[i][] += x[i] * w. */
FL_INLINE void step32_w4(__m256i sums[][2], const uint8_t *w, const int8_t *x, int64_t ldx,
                         const int mr)
{
    const __m256i low = _mm256_set1_epi8(15), ones = _mm256_set1_epi16(1);
    __m256i s[MR][2];
    for (int k8 = 0; k8 < 4; k8++) {
        const __m256i w0 = _mm256_load_si256((const __m256i *)(w + k8 * 64));
        const __m256i w1 = _mm256_load_si256((const __m256i *)(w + k8 * 64 + 32));
        const __m256i l0 = _mm256_and_si256(w0, low), l1 = _mm256_and_si256(w1, low);
        const __m256i h0 = _mm256_and_si256(_mm256_srli_epi16(w0, 4), low);
        const __m256i h1 = _mm256_and_si256(_mm256_srli_epi16(w1, 4), low);
        for (int i = 0; i < mr; i++) {
            const __m256i a = broadcast4(x + i * ldx + k8 * 8);
            const __m256i b = broadcast4(x + i * ldx + k8 * 8 + 4);
            const __m256i p0 = _mm256_add_epi16(_mm256_maddubs_epi16(l0, a),
                                                _mm256_maddubs_epi16(h0, b));
            const __m256i p1 = _mm256_add_epi16(_mm256_maddubs_epi16(l1, a),
                                                _mm256_maddubs_epi16(h1, b));
            s[i][0] = k8 == 0 ? p0 : _mm256_add_epi16(s[i][0], p0);
            s[i][1] = k8 == 0 ? p1 : _mm256_add_epi16(s[i][1], p1);
            FL_KEEP(s[i][0]);
            FL_KEEP(s[i][1]);
        }
    }
    for (int i = 0; i < mr; i++) {
        sums[i][0] = _mm256_add_epi32(sums[i][0], _mm256_madd_epi16(s[i][0], ones));
        sums[i][1] = _mm256_add_epi32(sums[i][1], _mm256_madd_epi16(s[i][1], ones));
    }
}

/* 4 input channels of one panel (64 bytes). */
FL_INLINE void step4_w8(__m256i sums[][2], const uint8_t *w, const int8_t *x, int64_t ldx,
                        const int mr)
{
    const __m256i ones = _mm256_set1_epi16(1);
    const __m256i w0 = _mm256_load_si256((const __m256i *)w);
    const __m256i w1 = _mm256_load_si256((const __m256i *)(w + 32));
    for (int i = 0; i < mr; i++) {
        const __m256i a = broadcast4(x + i * ldx), size = _mm256_abs_epi8(a);
        const __m256i p0 = _mm256_maddubs_epi16(size, _mm256_sign_epi8(w0, a));
        const __m256i p1 = _mm256_maddubs_epi16(size, _mm256_sign_epi8(w1, a));
        sums[i][0] = _mm256_add_epi32(sums[i][0], _mm256_madd_epi16(p0, ones));
        sums[i][1] = _mm256_add_epi32(sums[i][1], _mm256_madd_epi16(p1, ones));
        FL_KEEP(sums[i][0]);
        FL_KEEP(sums[i][1]);
    }
}

/* y[m..m+mr-1, n..n+15] */
FL_INLINE void rows_w4(const fl_gemm *g, int m, int n, const int mr)
{
    const uint8_t *w = g->w->data + (size_t)(n / 16) * (size_t)g->w->K_pad * 8;
    const int8_t *x = g->x + m * g->ldx;
    __m256i sums[MR][2];
    for (int i = 0; i < mr; i++) sums[i][0] = sums[i][1] = _mm256_setzero_si256();
    for (int k = 0; k < g->w->K_pad; k += 32, w += 256) {
        for (int line = 0; line < 4; line++)
            _mm_prefetch((const char *)w + AHEAD_BYTES + line * 64, _MM_HINT_T0);
        step32_w4(sums, w, x + k, g->ldx, mr);
    }
    for (int i = 0; i < mr; i++) store_row16_offset(g, m + i, n, sums[i][0], sums[i][1], 8);
}

FL_INLINE void rows_w8(const fl_gemm *g, int m, int n, const int mr)
{
    const uint8_t *w = g->w->data + (size_t)(n / 16) * (size_t)g->w->K_pad * 16;
    const int8_t *x = g->x + m * g->ldx;
    __m256i sums[MR][2];
    for (int i = 0; i < mr; i++) sums[i][0] = sums[i][1] = _mm256_setzero_si256();
    for (int k = 0; k < g->w->K_pad; k += 4, w += 64) {
        _mm_prefetch((const char *)w + AHEAD_BYTES, _MM_HINT_T0);
        step4_w8(sums, w, x + k, g->ldx, mr);
    }
    for (int i = 0; i < mr; i++) store_row16(g, m + i, n, sums[i][0], sums[i][1]);
}

void fl__gemm_a8w4_4x16_avx2(const fl_gemm *g, int m0, int m1, int n0, int n1, void *scratch)
{
    (void)scratch;
    for (int n = n0; n < n1; n += 16) {
        int m = m0;
        for (; m + MR <= m1; m += MR) rows_w4(g, m, n, MR);
        switch (m1 - m) {
        case 3: rows_w4(g, m, n, 3); break;
        case 2: rows_w4(g, m, n, 2); break;
        case 1: rows_w4(g, m, n, 1); break;
        default: break;
        }
    }
}

void fl__gemm_a8w8_4x16_avx2(const fl_gemm *g, int m0, int m1, int n0, int n1, void *scratch)
{
    (void)scratch;
    for (int n = n0; n < n1; n += 16) {
        int m = m0;
        for (; m + MR <= m1; m += MR) rows_w8(g, m, n, MR);
        switch (m1 - m) {
        case 3: rows_w8(g, m, n, 3); break;
        case 2: rows_w8(g, m, n, 2); break;
        case 1: rows_w8(g, m, n, 1); break;
        default: break;
        }
    }
}
