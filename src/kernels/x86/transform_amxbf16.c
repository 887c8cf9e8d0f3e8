/* transform_amxbf16.c - the transform of one row on AMX tiles: 2 x 2 tiles, 32 x 32 sums.
 *
 *   tmm0 tmm1   sums of rows 0..15  x columns 0..15, 16..31    tmm4  A, rows 0..15, 32 k
 *   tmm2 tmm3   sums of rows 16..31 x the same                 tmm5  A, rows 16..31
 *                                                              tmm6, tmm7  B, 32 k x 16 columns
 *
 * An A tile holds bf16 as they lie, a B tile has pairs of neighbouring k together: row k/2,
 * column, k%2 (TDPBF16PS). Rows are padded with zeros to tiles of 16, columns and k to 32.
 *
 *   right product   A = U [n1_pad, n2_pad],   B = right_tiles; its sums, rounded, become the
 *                   pairs of the next B: lane j of [i/2][j] is Y[i,j] | Y[i+1,j] << 16
 *   left product    A = left_rows (left^T),   B = those pairs [n1_pad/2, n2_pad]
 *
 * Without right, the pairs are made of x itself.
 *
 * Tiles and vectors have units of their own, and the core overlaps them as far as it sees
 * ahead. So the vectors' work lies beside products that do not wait for it: rows of U are made
 * a block before their products, sums are rounded a block behind theirs. A tile load also
 * waits for stores to have reached the cache, which the distance covers.
 * SPDX-License-Identifier: MIT */
#include "kernels/transform_rows.h"
#include "kernels/x86/simd.h"
#include "kernels/x86/tiles_amx.h"

#include <string.h>

#define TILE FL_TRANSFORM_TILE
#define LINE 16 /* floats of a vector, rows and columns of a tile */

/* One product: A [*, K] and B in tiles. Steps and strides are in bytes. */
typedef struct operands {
    const uint8_t *a, *b;
    int64_t a_stride;                     /* from row to row */
    int64_t b_stride, b_step_k, b_step_n; /* row to row of a tile, 32 k on, 16 columns on */
    int K;
} operands;

/* Sums of rows m..m+31 x columns n..n+31, of m..m+15 without `two`, to `to`. */
FL_INLINE void sum_block(float *to, int64_t to_stride, const operands *p, int m, int n,
                         bool two)
{
    const uint8_t *a0 = p->a + m * p->a_stride, *a1 = a0 + LINE * p->a_stride;
    const uint8_t *b0 = p->b + n / LINE * p->b_step_n, *b1 = b0 + p->b_step_n;
    memory_barrier();
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int k = 0; k < p->K; k += TILE) {
        _tile_loadd(4, a0, p->a_stride);
        _tile_loadd(6, b0, p->b_stride);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(7, b1, p->b_stride);
        _tile_dpbf16ps(1, 4, 7);
        if (two) {
            _tile_loadd(5, a1, p->a_stride);
            _tile_dpbf16ps(2, 5, 6);
            _tile_dpbf16ps(3, 5, 7);
        }
        a0 += TILE * sizeof(uint16_t);
        a1 += TILE * sizeof(uint16_t);
        b0 += p->b_step_k;
        b1 += p->b_step_k;
    }
    _tile_stored(0, to, to_stride * 4);
    _tile_stored(1, to + LINE, to_stride * 4);
    if (two) {
        _tile_stored(2, to + LINE * to_stride, to_stride * 4);
        _tile_stored(3, to + LINE * to_stride + LINE, to_stride * 4);
    }
    memory_barrier();
}

static void block(float *to, int64_t to_stride, const operands *p, int m, int n, bool two)
{
    if (two) sum_block(to, to_stride, p, m, n, true);
    else sum_block(to, to_stride, p, m, n, false);
}

FL_INLINE __mmask16 mask_of(int left)
{
    return left >= LINE ? 0xffff : left > 0 ? (__mmask16)((1u << left) - 1) : 0;
}

/* x * premul, columns k..k+15 of row i; zero beyond the matrix. */
FL_INLINE __m512 input(const float *x, const float *premul, const fl_transform *t, int i, int k)
{
    const __mmask16 mask = i < t->n1 ? mask_of(t->n2 - k) : 0;
    const int64_t at = (int64_t)i * t->n2 + k;
    if (mask == 0) return _mm512_setzero_ps();
    const __m512 v = _mm512_maskz_loadu_ps(mask, x + at);
    return premul ? _mm512_mul_ps(v, _mm512_maskz_loadu_ps(mask, premul + at)) : v;
}

/* bf16 of a, then of b; subnormals become 0, as in the products. */
FL_INLINE __m512i two_to_bf16(__m512 a, __m512 b)
{
    return (__m512i)_mm512_cvtne2ps_pbh(b, a);
}

/* bf16 of even in the low halves of the lanes, of odd in the high ones. */
FL_INLINE __m512i to_pairs(__m512 even, __m512 odd)
{
    const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25,
                                           9, 24, 8, 23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2,
                                           17, 1, 16, 0);
    return _mm512_permutexvar_epi16(order, two_to_bf16(even, odd));
}

/* Rows i..i+31 of U, as far as there are tiles of it. */
static void fill_rows(uint16_t *u, const float *x, const float *premul, const fl_transform *t,
                      int i, int n1_tiles, int n2_pad)
{
    const int end = FL_MIN(i + TILE, n1_tiles), whole = t->n2 % TILE == 0 ? t->n1 : 0;
    const int n = t->n1 * t->n2; /* from here to what most often is the next row */
    u += (int64_t)i * n2_pad;
    for (; i < FL_MIN(end, whole); i++, u += n2_pad) {
        const float *row = x + (int64_t)i * n2_pad;
        const float *by = premul ? premul + (int64_t)i * n2_pad : NULL;
        for (int k = 0; k < n2_pad; k += TILE) {
            __m512 a = _mm512_loadu_ps(row + k), b = _mm512_loadu_ps(row + k + LINE);
            _mm_prefetch((const char *)(row + k + n), _MM_HINT_T1);
            _mm_prefetch((const char *)(row + k + LINE + n), _MM_HINT_T1);
            if (premul) {
                a = _mm512_mul_ps(a, _mm512_loadu_ps(by + k));
                b = _mm512_mul_ps(b, _mm512_loadu_ps(by + k + LINE));
            }
            _mm512_storeu_si512(u + k, two_to_bf16(a, b));
        }
    }
    for (; i < end; i++, u += n2_pad)
        for (int k = 0; k < n2_pad; k += TILE)
            _mm512_storeu_si512(u + k, two_to_bf16(input(x, premul, t, i, k),
                                                   input(x, premul, t, i, k + LINE)));
}

static void fill_pairs(uint32_t *pairs, const float *x, const float *premul,
                       const fl_transform *t, int n1_pad, int n2_pad)
{
    for (int i = 0; i < n1_pad; i += 2)
        for (int j = 0; j < n2_pad; j += LINE)
            _mm512_storeu_si512(
                pairs + (int64_t)(i / 2) * n2_pad + j,
                to_pairs(input(x, premul, t, i, j), input(x, premul, t, i + 1, j)));
}

/* A block of sums [TILE][TILE], or its first 16 rows. */
typedef struct sums {
    _Alignas(64) float v[TILE * TILE];
    int m, n, rows;
} sums;

/* Rounded, as pairs. */
static void put_pairs(uint32_t *pairs, int n2_pad, const sums *s)
{
    uint32_t *to = pairs + (int64_t)(s->m / 2) * n2_pad + s->n;
    const float *v = s->v;
    for (int r = 0; r < s->rows; r += 2, v += 2 * TILE, to += n2_pad)
        for (int j = 0; j < TILE; j += LINE)
            _mm512_storeu_si512(to + j, to_pairs(_mm512_load_ps(v + j),
                                                 _mm512_load_ps(v + TILE + j)));
}

/* The part that lies within y [n1, n2]. */
static void put_rows(float *y, const fl_transform *t, const sums *s)
{
    const float *v = s->v;
    for (int r = 0; r < s->rows && s->m + r < t->n1; r++, v += TILE)
        for (int j = 0; j < TILE && s->n + j < t->n2; j += LINE)
            _mm512_mask_storeu_ps(y + (int64_t)(s->m + r) * t->n2 + s->n + j,
                                  mask_of(t->n2 - s->n - j), _mm512_loadu_ps(v + j));
}

/* A product's blocks, from the row's end on tiles that fill it straight into y. */
static void product_to_rows(float *y, const operands *p, const fl_transform *t, int n1_tiles,
                            int n2_pad)
{
    const bool whole = t->n1 % LINE == 0 && t->n2 % TILE == 0;
    sums s;
    for (int n = 0; n < n2_pad; n += TILE)
        for (int m = 0; m < n1_tiles; m += TILE) {
            const bool two = m + LINE < n1_tiles;
            if (whole) {
                block(y + (int64_t)m * t->n2 + n, t->n2, p, m, n, two);
                continue;
            }
            s.m = m;
            s.n = n;
            s.rows = two ? TILE : LINE;
            block(s.v, TILE, p, m, n, two);
            put_rows(y, t, &s);
        }
}

/* U right: to pairs, or to y where no left factor follows. */
static void right_product(uint32_t *pairs, float *y, uint16_t *u, const float *x,
                          const float *premul, const fl_transform *t, int n1_tiles, int n2_pad)
{
    const operands p = {.a = (const uint8_t *)u, .a_stride = 2 * (int64_t)n2_pad,
                        .b = (const uint8_t *)t->right_tiles, .b_stride = 64, .b_step_k = 1024,
                        .b_step_n = n2_pad / TILE * 1024, .K = n2_pad};
    sums s[2];
    int i = 0;
    fill_rows(u, x, premul, t, 0, n1_tiles, n2_pad);
    for (int m = 0; m < n1_tiles; m += TILE) {
        const bool two = m + LINE < n1_tiles;
        fill_rows(u, x, premul, t, m + TILE, n1_tiles, n2_pad);
        for (int n = 0; n < n2_pad; n += TILE, i++) {
            sums *now = &s[i % 2];
            now->m = m;
            now->n = n;
            now->rows = two ? TILE : LINE;
            block(now->v, TILE, &p, m, n, two);
            if (!t->left) put_rows(y, t, now);
            else if (i > 0) put_pairs(pairs, n2_pad, &s[(i - 1) % 2]);
        }
    }
    if (t->left) put_pairs(pairs, n2_pad, &s[(i - 1) % 2]);
}

void fl__transform_amxbf16(float *y, const float *x, const fl_transform *t, const float *premul,
                           void *scratch)
{
    const int n1_pad = fl__round_up(t->n1, TILE), n2_pad = fl__round_up(t->n2, TILE);
    const int n1_tiles = fl__round_up(t->n1, LINE);
    uint16_t *u = scratch; /* [n1_pad, n2_pad], behind it the pairs [n1_pad/2, n2_pad] */
    uint32_t *pairs = (uint32_t *)(void *)(u + (int64_t)n1_pad * n2_pad);

    configure_tiles(32);
    if (!t->right) {
        fill_pairs(pairs, x, premul, t, n1_pad, n2_pad);
    } else {
        memset(pairs + (int64_t)n1_tiles / 2 * n2_pad, 0,
               (size_t)(n1_pad - n1_tiles) / 2 * (size_t)n2_pad * sizeof *pairs);
        right_product(pairs, y, u, x, premul, t, n1_tiles, n2_pad);
    }
    if (t->left) {
        const operands p = {.a = (const uint8_t *)t->left_rows, .a_stride = 2 * (int64_t)n1_pad,
                            .b = (const uint8_t *)pairs, .b_stride = 4 * (int64_t)n2_pad,
                            .b_step_k = 64 * (int64_t)n2_pad, .b_step_n = 64, .K = n1_pad};
        product_to_rows(y, &p, t, n1_tiles, n2_pad);
    }
    _tile_release();
}
