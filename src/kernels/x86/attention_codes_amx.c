/* attention_codes_amx.c - attention over codes on AMX tiles.
 *
 * The three digits of five query rows are the rows of a tile, 64 terms wide; a tile of codes is
 * 64 terms of 16 lanes, as they were spread. Two tiles of digits (ten query rows) by two of
 * codes make four tiles of sums, which go through memory once: 128 L1 + L0 is the sum over L.
 * Fewer than six rows (decoding) take one tile of digits by two of codes. Behind the last row
 * tiles read whatever is there, and its sums are left alone.
 * SPDX-License-Identifier: MIT */
#include "kernels/x86/attention_codes_avx512.h"
#include "kernels/x86/tiles_amx.h"

enum { TILE_ROWS = 5, ROWS = 2 * TILE_ROWS, LINE = 16 };

/* Tiles 0..3 sums, 4 and 5 digits, 6 and 7 codes. */
static void configure(void)
{
    tile_config c = {.palette = 1};
    for (int t = 0; t < 8; t++) {
        c.row_bytes[t] = 64;
        c.rows[t] = t < 6 ? DIGITS * TILE_ROWS : 16;
    }
    __asm__ volatile("" ::"r"(&c) : "memory");
    _tile_loadconfig(&c);
}

/* Query rows [r0, r0 + rows) of a tile of sums to lanes [lane, lane + 16). */
FL_INLINE void put_sums(const product *p, const int32_t *tile, int lane, int r0, int rows)
{
    for (int r = 0; r < rows; r++, tile += DIGITS * LINE) {
        int32_t *to = p->sums + 2 * (r0 + r) * p->n_lanes + lane;
        const __m512i l1 = _mm512_slli_epi32(_mm512_load_si512(tile + LINE), 7);
        _mm512_storeu_si512(to, _mm512_load_si512(tile));
        _mm512_storeu_si512(to + p->n_lanes,
                            _mm512_add_epi32(l1, _mm512_load_si512(tile + 2 * LINE)));
    }
}

/* Lanes [lane, lane + 32), or 16 where there are no more: then the second tile of codes is the
 * first again. */
FL_INLINE void sum_tiles(const product *p, int lane, int rows, bool two)
{
    _Alignas(64) int32_t sums[4][16 * LINE];
    const bool wide = lane + LINE < p->n_lanes;
    const uint8_t *c0 = p->codes + 4 * lane, *c1 = wide ? c0 + 4 * LINE : c0;
    const uint8_t *x0 = p->x, *x1 = x0 + DIGITS * TILE_ROWS * p->row_bytes;
    const int64_t stride = 4 * (int64_t)p->n_lanes;
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    memory_barrier();
    for (int t = 0; t < p->n_terms; t += 64, c0 += 16 * stride, c1 += 16 * stride) {
        _tile_loadd(6, c0, stride);
        _tile_loadd(4, x0 + t, p->row_bytes);
        _tile_dpbsud(0, 4, 6);
        _tile_loadd(7, c1, stride);
        _tile_dpbsud(1, 4, 7);
        if (!two) continue;
        _tile_loadd(5, x1 + t, p->row_bytes);
        _tile_dpbsud(2, 5, 6);
        _tile_dpbsud(3, 5, 7);
    }
    _tile_stored(0, sums[0], 4 * LINE);
    _tile_stored(1, sums[1], 4 * LINE);
    if (two) {
        _tile_stored(2, sums[2], 4 * LINE);
        _tile_stored(3, sums[3], 4 * LINE);
    }
    memory_barrier();
    const int first = rows < TILE_ROWS ? rows : TILE_ROWS;
    for (int i = 0; i < 1 + wide; i++) {
        put_sums(p, sums[i], lane + i * LINE, 0, first);
        if (two) put_sums(p, sums[2 + i], lane + i * LINE, TILE_ROWS, rows - TILE_ROWS);
    }
}

static void sum_codes(const product *p, int rows)
{
    memory_barrier(); /* digits and codes were stored by other means */
    for (int lane = 0; lane < p->n_lanes; lane += 2 * LINE)
        if (rows > TILE_ROWS) sum_tiles(p, lane, rows, true);
        else sum_tiles(p, lane, rows, false);
}

void fl__attention_codes_amx(const fl_attention_codes *a)
{
    configure();
    run_pages(a, ROWS, sum_codes);
    _tile_release();
}
