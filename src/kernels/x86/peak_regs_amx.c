/* peak_regs_amx.c - 4 chains of TDPBSSD on full tiles.
 *
 * The tiles hold random bytes: there are machines that slow the tile unit down by what it
 * multiplies (6.8 ns for a product of zeros, 15 ns for one of random bytes were seen), and
 * zeros would promise what no matrix gets. Nothing is loaded or stored in the loop.
 * SPDX-License-Identifier: MIT */
#include "kernels/peak.h"
#include "kernels/x86/tiles_amx.h"

#include <string.h>

enum { TILE_BYTES = 1024, N_TILES = 4 };

void fl__peak_amx(int64_t n_rounds)
{
    _Alignas(64) uint8_t bytes[N_TILES * TILE_BYTES];
    uint64_t state = 0x9e3779b97f4a7c15u;
    for (size_t i = 0; i < sizeof bytes; i += sizeof state) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        memcpy(bytes + i, &state, sizeof state);
    }
    configure_tiles(32);
    memory_barrier();
    _tile_loadd(4, bytes, 64);
    _tile_loadd(5, bytes + TILE_BYTES, 64);
    _tile_loadd(6, bytes + 2 * TILE_BYTES, 64);
    _tile_loadd(7, bytes + 3 * TILE_BYTES, 64);
    for (int64_t r = 0; r < n_rounds; r++) {
        _tile_dpbssd(0, 4, 6);
        _tile_dpbssd(1, 4, 7);
        _tile_dpbssd(2, 5, 6);
        _tile_dpbssd(3, 5, 7);
    }
    _tile_release();
}
