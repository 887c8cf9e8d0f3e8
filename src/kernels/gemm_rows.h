/* gemm_rows.h - the functions behind the rows of gemm.c, one per kernel file, and their tiles.
 * SPDX-License-Identifier: MIT */
#ifndef FL_KERNELS_GEMM_ROWS_H
#define FL_KERNELS_GEMM_ROWS_H

#include "kernels/gemm.h"

fl_gemm_fn fl__gemm_ref; /* 4 and 8 bits */

/* Few rows of x: weights are streamed once, straight from the packed layout. No scratch. */
fl_gemm_fn fl__gemm_a8w4_4x16_avx2, fl__gemm_a8w8_4x16_avx2;

/* Many rows: weights expanded in scratch block by block, reused by all rows of the tile. */
#define FL_GEMM_6X16_AVX2_TILE_M 96
#define FL_GEMM_6X16_AVX2_TILE_N 128
#define FL_GEMM_6X16_AVX2_KC     512
/* int32 sums of the tile, one expanded panel (int16 at most), x as int16 (8 bits only) */
#define FL_GEMM_6X16_AVX2_SCRATCH                                                               \
    (FL_GEMM_6X16_AVX2_TILE_M * FL_GEMM_6X16_AVX2_TILE_N * 4 + FL_GEMM_6X16_AVX2_KC * 16 * 2 +  \
     FL_GEMM_6X16_AVX2_TILE_M * FL_GEMM_6X16_AVX2_KC * 2)
fl_gemm_fn fl__gemm_a8w4_6x16_avx2, fl__gemm_a8w8_6x16_avx2;

#endif
