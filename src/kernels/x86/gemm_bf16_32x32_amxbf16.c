/* gemm_bf16_32x32_amxbf16.c - bfloat16 products on AMX tiles: 2 x 2 tiles, 32 x 32 sums.
 *
 * A tile holds 16 rows of 32 k as they lie, a B tile 16 pairs of k of 16 columns, straight from
 * the panel. Half a panel (32 columns) stays in the first-level cache (K 512: 32 KB) while the
 * rows of A pass by. Sums always start at 0 and meet C afterwards, in a buffer: the value of
 * (A B) does not depend on add. SPDX-License-Identifier: MIT */
#include "kernels/gemm_bf16_rows.h"
#include "kernels/x86/tiles_amx.h"

#include <stddef.h>

enum { TILE = 32, LINE = 16, PANEL_BYTES = FL_GEMM_BF16_PANEL * 2 * 2 };

/* 32 columns of sums of n_rows rows (1..32); rows beyond 16 only where there are any. */
static void block(float sums[TILE * TILE], const uint16_t *A, const uint8_t *b, int K,
                  bool two_rows)
{
    const int64_t stride = (int64_t)K * 2;
    const uint8_t *a0 = (const uint8_t *)A, *a1 = two_rows ? a0 + 16 * stride : a0;
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    memory_barrier();
    for (int k = 0; k < K; k += TILE) {
        _tile_loadd(4, a0 + (size_t)k * 2, stride);
        _tile_loadd(6, b, PANEL_BYTES);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(7, b + LINE * 4, PANEL_BYTES);
        _tile_dpbf16ps(1, 4, 7);
        _tile_loadd(5, a1 + (size_t)k * 2, stride);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
        b += (size_t)(TILE / 2) * PANEL_BYTES;
    }
    _tile_stored(0, sums, TILE * sizeof *sums);
    _tile_stored(1, sums + LINE, TILE * sizeof *sums);
    _tile_stored(2, sums + 16 * TILE, TILE * sizeof *sums);
    _tile_stored(3, sums + 16 * TILE + LINE, TILE * sizeof *sums);
    memory_barrier();
}

static void put(float *c, int64_t ldc, const float *sums, int rows, int columns, bool add)
{
    for (int half = 0; half < 2; half++) {
        const int n = columns - half * LINE;
        if (n <= 0) return;
        const __mmask16 mask = (__mmask16)(n >= LINE ? 0xffff : (1u << n) - 1);
        for (int r = 0; r < rows; r++) {
            float *to = c + r * ldc + half * LINE;
            __m512 x = _mm512_load_ps(sums + r * TILE + half * LINE);
            if (add) x = _mm512_add_ps(_mm512_maskz_loadu_ps(mask, to), x);
            _mm512_mask_storeu_ps(to, mask, x);
        }
    }
}

void fl__gemm_bf16_32x32_amxbf16(float *C, int64_t ldc, const uint16_t *A, const uint16_t *B,
                                 int M, int N, int K, bool add)
{
    float sums[TILE * TILE] __attribute__((aligned(64)));
    const int whole = M / TILE * TILE;
    for (int part = 0; part < 2; part++) { /* whole blocks of rows, then the rest */
        const int m0 = part ? whole : 0, m1 = part ? M : whole;
        if (m0 == m1) continue;
        configure_tiles(part ? M - whole : TILE);
        for (int n = 0; n < N; n += TILE) {
            const uint8_t *b = (const uint8_t *)B +
                               (size_t)(n / FL_GEMM_BF16_PANEL) * (size_t)K * PANEL_BYTES / 2 +
                               (size_t)(n % FL_GEMM_BF16_PANEL) * 4;
            for (int m = m0; m < m1; m += TILE) {
                const int rows = m1 - m < TILE ? m1 - m : TILE;
                block(sums, A + (size_t)m * (size_t)K, b, K, rows > 16);
                put(C + m * ldc + n, ldc, sums, rows, N - n, add);
            }
        }
    }
    _tile_release();
}
