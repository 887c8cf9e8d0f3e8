/* transform_amxbf16.c - the transform of one row on AMX tiles: 2 x 2 tiles, 32 x 32 sums.
 *
 *   tmm0 tmm1   sums of rows 0..15  x columns 0..15, 16..31    tmm4  A, rows 0..15, 32 k
 *   tmm2 tmm3   sums of rows 16..31 x the same                 tmm5  A, rows 16..31
 *                                                              tmm6, tmm7  B, 32 k x 16 columns
 *
 * An A tile holds bf16 as they lie, a B tile has pairs of neighbouring k together: row k/2,
 * column, k%2 (TDPBF16PS). Everything is padded with zeros to multiples of 32, so that there is
 * one tile configuration and no special case but the store of y.
 *
 *   right product   A = U [n1_pad, n2_pad],   B = right_tiles; its sums, rounded, become the
 *                   pairs of the next B: lane j of [i/2][j] is Y[i,j] | Y[i+1,j] << 16
 *   left product    A = left_rows (left^T),   B = those pairs [n1_pad/2, n2_pad]
 *
 * Without right, the pairs are made of x itself.
 * SPDX-License-Identifier: MIT */
#include "kernels/transform_rows.h"
#include "kernels/x86/bf16_avx512.h"
#include "kernels/x86/tiles_amx.h"

#include <string.h>

#define TILE FL_TRANSFORM_TILE
#define LINE 16 /* floats of a vector, columns of a tile */

/* One product: A [*, K] and B in tiles. Steps and strides are in bytes. */
typedef struct operands {
    const uint8_t *a, *b;
    int64_t a_stride;                     /* from row to row */
    int64_t b_stride, b_step_k, b_step_n; /* row to row of a tile, 32 k on, 16 columns on */
    int K;
} operands;

/* Sums of rows m..m+31 x columns n..n+31 as [32][32]. */
static void block(float *sums, const operands *p, int m, int n)
{
    const uint8_t *a0 = p->a + m * p->a_stride, *a1 = a0 + 16 * p->a_stride;
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
        _tile_loadd(5, a1, p->a_stride);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
        a0 += TILE * sizeof(uint16_t);
        a1 += TILE * sizeof(uint16_t);
        b0 += p->b_step_k;
        b1 += p->b_step_k;
    }
    _tile_stored(0, sums, TILE * sizeof *sums);
    _tile_stored(1, sums + LINE, TILE * sizeof *sums);
    _tile_stored(2, sums + 16 * TILE, TILE * sizeof *sums);
    _tile_stored(3, sums + 16 * TILE + LINE, TILE * sizeof *sums);
    memory_barrier();
}

/* bf16 of even in the low halves of the lanes, of odd in the high ones. */
FL_INLINE __m512i to_pairs(__m512 even, __m512 odd)
{
    const __m512i high = _mm512_set1_epi32(-0x10000);
    return _mm512_or_si512(_mm512_srli_epi32(bf16_high(even), 16),
                           _mm512_and_si512(bf16_high(odd), high));
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

static void fill_rows(uint16_t *u, const float *x, const float *premul, const fl_transform *t,
                      int n1_pad, int n2_pad)
{
    for (int i = 0; i < n1_pad; i++)
        for (int k = 0; k < n2_pad; k += LINE) {
            const __m512i v = _mm512_srli_epi32(bf16_high(input(x, premul, t, i, k)), 16);
            _mm256_storeu_si256((__m256i *)(void *)(u + (int64_t)i * n2_pad + k),
                                _mm512_cvtepi32_epi16(v));
        }
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

/* A block of sums from row m, column n on: rounded, as pairs. */
static void put_pairs(uint32_t *pairs, int n2_pad, int m, int n, const float *sums)
{
    for (int r = 0; r < TILE; r += 2, sums += 2 * TILE)
        for (int j = 0; j < TILE; j += LINE)
            _mm512_storeu_si512(
                pairs + (int64_t)((m + r) / 2) * n2_pad + n + j,
                to_pairs(_mm512_loadu_ps(sums + j), _mm512_loadu_ps(sums + TILE + j)));
}

/* The part of a block of sums that lies within y [n1, n2]. */
static void put_rows(float *y, const fl_transform *t, int m, int n, const float *sums)
{
    for (int r = 0; r < TILE && m + r < t->n1; r++, sums += TILE)
        for (int j = 0; j < TILE && n + j < t->n2; j += LINE)
            _mm512_mask_storeu_ps(y + (int64_t)(m + r) * t->n2 + n + j, mask_of(t->n2 - n - j),
                                  _mm512_loadu_ps(sums + j));
}

void fl__transform_amxbf16(float *y, const float *x, const fl_transform *t, const float *premul,
                           void *scratch)
{
    const int n1_pad = fl__round_up(t->n1, TILE), n2_pad = fl__round_up(t->n2, TILE);
    uint16_t *u = scratch; /* [n1_pad, n2_pad], behind it the pairs [n1_pad/2, n2_pad] */
    uint32_t *pairs = (uint32_t *)(void *)(u + (int64_t)n1_pad * n2_pad);
    _Alignas(64) float sums[TILE * TILE];

    configure_tiles(32);
    if (t->right) {
        const operands p = {.a = (const uint8_t *)u, .a_stride = 2 * (int64_t)n2_pad,
                            .b = (const uint8_t *)t->right_tiles, .b_stride = 64,
                            .b_step_k = 1024, .b_step_n = n2_pad / TILE * 1024, .K = n2_pad};
        fill_rows(u, x, premul, t, n1_pad, n2_pad);
        for (int n = 0; n < n2_pad; n += TILE)
            for (int m = 0; m < n1_pad; m += TILE) {
                block(sums, &p, m, n);
                if (t->left)
                    put_pairs(pairs, n2_pad, m, n, sums);
                else
                    put_rows(y, t, m, n, sums);
            }
    } else {
        fill_pairs(pairs, x, premul, t, n1_pad, n2_pad);
    }
    if (t->left) {
        const operands p = {.a = (const uint8_t *)t->left_rows, .a_stride = 2 * (int64_t)n1_pad,
                            .b = (const uint8_t *)pairs, .b_stride = 4 * (int64_t)n2_pad,
                            .b_step_k = 64 * (int64_t)n2_pad, .b_step_n = 64, .K = n1_pad};
        for (int n = 0; n < n2_pad; n += TILE)
            for (int m = 0; m < n1_pad; m += TILE) {
                block(sums, &p, m, n);
                put_rows(y, t, m, n, sums);
            }
    }
    _tile_release();
}
