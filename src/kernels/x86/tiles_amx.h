/* tiles_amx.h - the tile configuration of the AMX files. SPDX-License-Identifier: MIT */
#ifndef FL_KERNELS_X86_TILES_AMX_H
#define FL_KERNELS_X86_TILES_AMX_H

#include <immintrin.h>
#include <stdint.h>

/* Memory operand of ldtilecfg. */
typedef struct tile_config {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
} tile_config;

/* The intrinsics tell GCC 12 nothing about memory: stores must not sink below a tile load, nor
 * the configuration vanish. */
static inline void memory_barrier(void)
{
    __asm__ volatile("" ::: "memory");
}

/* 2 x 2 blocks of sums: tmm0..3 = {tmm4, tmm5} x {tmm6, tmm7}, of n_rows (1..32) rows in two
 * tiles. The second has one row where there is none to fill it. Zeroes all tiles. */
static inline void configure_tiles(int n_rows)
{
    tile_config c = {.palette = 1};
    const uint8_t first = (uint8_t)(n_rows < 16 ? n_rows : 16);
    const uint8_t second = (uint8_t)(n_rows > 16 ? n_rows - 16 : 1);
    for (int t = 0; t < 8; t++) c.row_bytes[t] = 64;
    c.rows[0] = c.rows[1] = c.rows[4] = first;
    c.rows[2] = c.rows[3] = c.rows[5] = second;
    c.rows[6] = c.rows[7] = 16;
    __asm__ volatile("" ::"r"(&c) : "memory");
    _tile_loadconfig(&c);
}

#endif
