/* gemm_6x16_avx2.c - many rows of x: 6 rows x 16 channels in registers, operands in cache.
 *
 * An item (up to TILE_M x TILE_N) walks K in blocks of KC. Per block and panel the weights are
 * brought once into the form that the inner loop multiplies and stay in L1 while all rows of
 * the item pass; int32 sums live in scratch between blocks.
 *
 * 4 bits: nibbles become bytes 0..15, vpmaddubsw with x, 8 pair sums are added in int16 (at
 * most 8 * 2 * 15 * 128 = 30720), then vpmaddwd: 2.25 instructions per 32 products.
 *
 * 8 bits: w and x become int16, vpmaddwd + vpaddd: 4 instructions per 32 products, like the
 * byte route (vpsignb, vpmaddubsw, vpmaddwd, vpaddd), but only two of them on multiplier ports.
 * SPDX-License-Identifier: MIT */
#include "kernels/gemm_rows.h"
#include "kernels/x86/gemm_avx2.h"

#define MR     6
#define TILE_M FL_GEMM_6X16_AVX2_TILE_M
#define TILE_N FL_GEMM_6X16_AVX2_TILE_N
#define KC     FL_GEMM_6X16_AVX2_KC

/* sums: int32 [TILE_N / 16][TILE_M][16]; w: one panel of a K block, uint8 [KC/4][16][4] or
 * int16 [KC/2][16][2]; x: int16 [TILE_M][KC], 8 bits only. */
typedef struct {
    int32_t *sums;
    uint8_t *w;
    int16_t *x;
} tile_scratch;

static tile_scratch scratch_view(void *scratch)
{
    uint8_t *p = scratch;
    tile_scratch s;
    s.sums = (int32_t *)p;
    s.w = p + (size_t)TILE_M * TILE_N * sizeof *s.sums;
    s.x = (int16_t *)(s.w + (size_t)KC * 16 * sizeof *s.x);
    return s;
}

/* panel_bytes: from one panel to the next, whose same block is wanted next and fetched
 * meanwhile. */
static void expand_w4(uint8_t *to, const uint8_t *from, int kc, size_t panel_bytes)
{
    const __m256i low = _mm256_set1_epi8(15);
    for (int k = 0; k < kc; k += 8, from += 64, to += 128) {
        _mm_prefetch((const char *)from + panel_bytes, _MM_HINT_T0);
        const __m256i w0 = _mm256_load_si256((const __m256i *)from);
        const __m256i w1 = _mm256_load_si256((const __m256i *)(from + 32));
        const __m256i h0 = _mm256_srli_epi16(w0, 4), h1 = _mm256_srli_epi16(w1, 4);
        _mm256_store_si256((__m256i *)to, _mm256_and_si256(w0, low));
        _mm256_store_si256((__m256i *)(to + 32), _mm256_and_si256(w1, low));
        _mm256_store_si256((__m256i *)(to + 64), _mm256_and_si256(h0, low));
        _mm256_store_si256((__m256i *)(to + 96), _mm256_and_si256(h1, low));
    }
}

/* Bytes (k, k+1, k+2, k+3) of each 32-bit lane -> int16 pairs (k, k+2) and (k+1, k+3): two
 * shifts and no shuffle. x and w are reordered alike, so products still meet. */
FL_INLINE void split_even_odd(__m256i *even, __m256i *odd, __m256i bytes)
{
    *even = _mm256_srai_epi16(_mm256_slli_epi16(bytes, 8), 8);
    *odd = _mm256_srai_epi16(bytes, 8);
}

/* [k/4][16][4] bytes -> [k/2][16][2] int16 */
static void expand_w8(int16_t *to, const uint8_t *from, int kc, size_t panel_bytes)
{
    for (int k = 0; k < kc; k += 4, from += 64, to += 64) {
        _mm_prefetch((const char *)from + panel_bytes, _MM_HINT_T0);
        for (int half = 0; half < 2; half++) { /* channels 0..7, 8..15 */
            __m256i even, odd;
            split_even_odd(&even, &odd, _mm256_load_si256((const __m256i *)(from + half * 32)));
            _mm256_store_si256((__m256i *)(to + half * 16), even);
            _mm256_store_si256((__m256i *)(to + half * 16 + 32), odd);
        }
    }
}

/* x[n_rows][kc] bytes -> [n_rows][KC] int16 in the order of expand_w8 */
static void widen_x(int16_t *to, const int8_t *x, int64_t ldx, int n_rows, int kc)
{
    for (int m = 0; m < n_rows; m++, to += KC, x += ldx)
        for (int k = 0; k < kc; k += 32) {
            __m256i even, odd;
            split_even_odd(&even, &odd, _mm256_load_si256((const __m256i *)(x + k)));
            const __m256i low = _mm256_unpacklo_epi32(even, odd);
            const __m256i high = _mm256_unpackhi_epi32(even, odd);
            __m256i *at = (__m256i *)(to + k);
            _mm256_store_si256(at, _mm256_permute2x128_si256(low, high, 0x20));
            _mm256_store_si256(at + 1, _mm256_permute2x128_si256(low, high, 0x31));
        }
}

/* sums[mr][16] += x[mr][kc] * w */
FL_INLINE void block_w4(int32_t *sums, const uint8_t *w, const int8_t *x, int64_t ldx, int kc,
                        const int mr)
{
    const __m256i ones = _mm256_set1_epi16(1);
    for (int k = 0; k < kc; k += 32) {
        __m256i s[MR][2];
#pragma GCC unroll 8
        for (int k4 = 0; k4 < 8; k4++, w += 64) {
            const __m256i w0 = _mm256_load_si256((const __m256i *)w);
            const __m256i w1 = _mm256_load_si256((const __m256i *)(w + 32));
            for (int i = 0; i < mr; i++) {
                const __m256i a = broadcast4(x + i * ldx + k + k4 * 4);
                const __m256i p0 = _mm256_maddubs_epi16(w0, a),
                              p1 = _mm256_maddubs_epi16(w1, a);
                s[i][0] = k4 == 0 ? p0 : _mm256_add_epi16(s[i][0], p0);
                s[i][1] = k4 == 0 ? p1 : _mm256_add_epi16(s[i][1], p1);
                FL_KEEP(s[i][0]);
                FL_KEEP(s[i][1]);
            }
        }
        for (int i = 0; i < mr; i++) {
            __m256i *to = (__m256i *)(sums + i * 16);
            to[0] = _mm256_add_epi32(to[0], _mm256_madd_epi16(s[i][0], ones));
            to[1] = _mm256_add_epi32(to[1], _mm256_madd_epi16(s[i][1], ones));
        }
    }
}

FL_INLINE void block_w8(int32_t *sums, const int16_t *w, const int16_t *x, int kc, const int mr)
{
    __m256i s[MR][2];
    for (int i = 0; i < mr; i++) {
        s[i][0] = _mm256_load_si256((const __m256i *)(sums + i * 16));
        s[i][1] = _mm256_load_si256((const __m256i *)(sums + i * 16 + 8));
    }
    for (int k = 0; k < kc; k += 2, w += 32) {
        const __m256i w0 = _mm256_load_si256((const __m256i *)w);
        const __m256i w1 = _mm256_load_si256((const __m256i *)(w + 16));
        for (int i = 0; i < mr; i++) {
            const __m256i a = broadcast4(x + i * KC + k);
            s[i][0] = _mm256_add_epi32(s[i][0], _mm256_madd_epi16(w0, a));
            s[i][1] = _mm256_add_epi32(s[i][1], _mm256_madd_epi16(w1, a));
            FL_KEEP(s[i][0]);
            FL_KEEP(s[i][1]);
        }
    }
    for (int i = 0; i < mr; i++) {
        _mm256_store_si256((__m256i *)(sums + i * 16), s[i][0]);
        _mm256_store_si256((__m256i *)(sums + i * 16 + 8), s[i][1]);
    }
}

static void panel_w4(int32_t *sums, const uint8_t *w, const int8_t *x, int64_t ldx, int n_rows,
                     int kc)
{
    int m = 0;
    for (; m + MR <= n_rows; m += MR) block_w4(sums + m * 16, w, x + m * ldx, ldx, kc, MR);
    sums += m * 16;
    x += m * ldx;
    switch (n_rows - m) {
    case 5: block_w4(sums, w, x, ldx, kc, 5); break;
    case 4: block_w4(sums, w, x, ldx, kc, 4); break;
    case 3: block_w4(sums, w, x, ldx, kc, 3); break;
    case 2: block_w4(sums, w, x, ldx, kc, 2); break;
    case 1: block_w4(sums, w, x, ldx, kc, 1); break;
    default: break;
    }
}

static void panel_w8(int32_t *sums, const int16_t *w, const int16_t *x, int n_rows, int kc)
{
    int m = 0;
    for (; m + MR <= n_rows; m += MR) block_w8(sums + m * 16, w, x + m * KC, kc, MR);
    sums += m * 16;
    x += m * KC;
    switch (n_rows - m) {
    case 5: block_w8(sums, w, x, kc, 5); break;
    case 4: block_w8(sums, w, x, kc, 4); break;
    case 3: block_w8(sums, w, x, kc, 3); break;
    case 2: block_w8(sums, w, x, kc, 2); break;
    case 1: block_w8(sums, w, x, kc, 1); break;
    default: break;
    }
}

static void clear_sums(int32_t *sums, int n_rows, int n_panels)
{
    for (int p = 0; p < n_panels; p++)
        memset(sums + p * TILE_M * 16, 0, (size_t)n_rows * 16 * sizeof *sums);
}

static void store_tile(const fl_gemm *g, int m0, int m1, int n0, int n1, const int32_t *sums,
                       int offset)
{
    for (int n = n0; n < n1; n += 16, sums += TILE_M * 16)
        for (int m = m0; m < m1; m++) {
            const __m256i *s = (const __m256i *)(sums + (m - m0) * 16);
            store_row16_offset(g, m, n, s[0], s[1], offset);
        }
}

void fl__gemm_a8w4_6x16_avx2(const fl_gemm *g, int m0, int m1, int n0, int n1, void *scratch)
{
    const tile_scratch s = scratch_view(scratch);
    const size_t panel_bytes = (size_t)g->w->K_pad * 8;
    clear_sums(s.sums, m1 - m0, (n1 - n0 + 15) / 16);
    for (int k = 0; k < g->w->K_pad; k += KC) {
        const int kc = g->w->K_pad - k < KC ? g->w->K_pad - k : KC;
        int32_t *sums = s.sums;
        for (int n = n0; n < n1; n += 16, sums += TILE_M * 16) {
            const uint8_t *w = g->w->data + (size_t)(n / 16) * panel_bytes + (size_t)k * 8;
            expand_w4(s.w, w, kc, panel_bytes);
            panel_w4(sums, s.w, g->x + m0 * g->ldx + k, g->ldx, m1 - m0, kc);
        }
    }
    store_tile(g, m0, m1, n0, n1, s.sums, 8);
}

void fl__gemm_a8w8_6x16_avx2(const fl_gemm *g, int m0, int m1, int n0, int n1, void *scratch)
{
    const tile_scratch s = scratch_view(scratch);
    const size_t panel_bytes = (size_t)g->w->K_pad * 16;
    clear_sums(s.sums, m1 - m0, (n1 - n0 + 15) / 16);
    for (int k = 0; k < g->w->K_pad; k += KC) {
        const int kc = g->w->K_pad - k < KC ? g->w->K_pad - k : KC;
        int32_t *sums = s.sums;
        widen_x(s.x, g->x + m0 * g->ldx + k, g->ldx, m1 - m0, kc);
        for (int n = n0; n < n1; n += 16, sums += TILE_M * 16) {
            const uint8_t *w = g->w->data + (size_t)(n / 16) * panel_bytes + (size_t)k * 16;
            expand_w8((int16_t *)s.w, w, kc, panel_bytes);
            panel_w8(sums, (const int16_t *)s.w, s.x, m1 - m0, kc);
        }
    }
    store_tile(g, m0, m1, n0, n1, s.sums, 0);
}
