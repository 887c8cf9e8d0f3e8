/* peak_regs_amx.c - 4 chains of TDPBSSD on full tiles. SPDX-License-Identifier: MIT */
#include "kernels/peak.h"
#include "kernels/x86/tiles_amx.h"

void fl__peak_amx(int64_t n_rounds)
{
    configure_tiles(32);
    for (int64_t r = 0; r < n_rounds; r++) {
        _tile_dpbssd(0, 4, 6);
        _tile_dpbssd(1, 4, 7);
        _tile_dpbssd(2, 5, 6);
        _tile_dpbssd(3, 5, 7);
    }
    _tile_release();
}
