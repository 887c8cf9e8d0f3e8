/* tiles_emu.h - AMX tiles in plain C, for checking values where there is no AMX.
 * SPDX-License-Identifier: MIT */
#ifndef LAB_TILES_EMU_H
#define LAB_TILES_EMU_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
    int rows, bytes;
    uint8_t d[16][64];
} emu_tile;
static __thread emu_tile emu_tiles[8];

static inline void emu_config(const void *p)
{
    const uint8_t *c = p;
    for (int t = 0; t < 8; t++) {
        emu_tiles[t].bytes = c[16 + 2 * t];
        emu_tiles[t].rows = c[48 + t];
        memset(emu_tiles[t].d, 0, sizeof emu_tiles[t].d);
    }
}
static inline void emu_release(void)
{
    memset(emu_tiles, 0, sizeof emu_tiles);
}
static inline void emu_need(int t)
{
    if (emu_tiles[t].rows) return;
    fprintf(stderr, "tile %d is not configured\n", t);
    abort();
}
static inline void emu_zero(int t)
{
    emu_need(t);
    memset(emu_tiles[t].d, 0, sizeof emu_tiles[t].d);
}
static inline void emu_load(int t, const void *base, int64_t stride)
{
    emu_need(t);
    memset(emu_tiles[t].d, 0, sizeof emu_tiles[t].d);
    for (int r = 0; r < emu_tiles[t].rows; r++)
        memcpy(emu_tiles[t].d[r], (const uint8_t *)base + r * stride,
               (size_t)emu_tiles[t].bytes);
}
static inline void emu_store(int t, void *base, int64_t stride)
{
    emu_need(t);
    for (int r = 0; r < emu_tiles[t].rows; r++)
        memcpy((uint8_t *)base + r * stride, emu_tiles[t].d[r], (size_t)emu_tiles[t].bytes);
}
static inline void emu_dp(int c, int a, int b, int b_signed)
{
    emu_need(c);
    emu_need(a);
    emu_need(b);
    if (emu_tiles[c].rows != emu_tiles[a].rows || emu_tiles[b].rows * 4 != emu_tiles[a].bytes)
        abort();
    for (int m = 0; m < emu_tiles[c].rows; m++)
        for (int n = 0; n < 16; n++) {
            int32_t s;
            memcpy(&s, &emu_tiles[c].d[m][4 * n], 4);
            for (int k = 0; k < 64; k++) {
                const uint8_t w = emu_tiles[b].d[k / 4][4 * n + k % 4];
                s += (int8_t)emu_tiles[a].d[m][k] * (b_signed ? (int8_t)w : (int)w);
            }
            memcpy(&emu_tiles[c].d[m][4 * n], &s, 4);
        }
}

#undef _tile_loadconfig
#undef _tile_release
#undef _tile_zero
#undef _tile_loadd
#undef _tile_stream_loadd
#undef _tile_stored
#undef _tile_dpbssd
#undef _tile_dpbsud
#define _tile_loadconfig(p)         emu_config(p)
#define _tile_release()             emu_release()
#define _tile_zero(t)               emu_zero(t)
#define _tile_loadd(t, p, s)        emu_load(t, p, (int64_t)(s))
#define _tile_stream_loadd(t, p, s) emu_load(t, p, (int64_t)(s))
#define _tile_stored(t, p, s)       emu_store(t, p, (int64_t)(s))
#define _tile_dpbssd(c, a, b)       emu_dp(c, a, b, 1)
#define _tile_dpbsud(c, a, b)       emu_dp(c, a, b, 0)
#endif
