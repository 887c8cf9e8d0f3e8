/* gemm_rows.h - the functions behind the rows of gemm.c and their tiles.
 *
 * TILE_M x TILE_N: the work item; KC or K_BLOCK: input channels of a block that
 * stays in cache. The sizes
 * of scratch are those of the arrays that each file describes.
 * SPDX-License-Identifier: MIT */
#ifndef FL_KERNELS_GEMM_ROWS_H
#define FL_KERNELS_GEMM_ROWS_H

#include "kernels/gemm.h"

fl_gemm_fn fl__gemm_ref; /* 4 and 8 bits */

/* Few rows of x: weights are streamed straight from the packed layout. No scratch. */
fl_gemm_fn fl__gemm_a8w4_4x16_avx2, fl__gemm_a8w8_4x16_avx2;
fl_gemm_fn fl__gemm_a8w4_4x16_avxvnni, fl__gemm_a8w8_4x16_avxvnni;
fl_gemm_fn fl__gemm_a8w4_4x64_avx512vnni, fl__gemm_a8w8_4x64_avx512vnni;

/* Many rows: weights expanded in scratch block by block, reused by all rows of the tile. */
#define FL_GEMM_6X16_AVX2_TILE_M 96
#define FL_GEMM_6X16_AVX2_TILE_N 128
#define FL_GEMM_6X16_AVX2_KC     512
#define FL_GEMM_6X16_AVX2_SCRATCH                                                              \
    (FL_GEMM_6X16_AVX2_TILE_M * FL_GEMM_6X16_AVX2_TILE_N * 4 + FL_GEMM_6X16_AVX2_KC * 16 * 2 + \
     FL_GEMM_6X16_AVX2_TILE_M * FL_GEMM_6X16_AVX2_KC * 2)
fl_gemm_fn fl__gemm_a8w4_6x16_avx2, fl__gemm_a8w8_6x16_avx2;

#define FL_GEMM_6X16_AVXVNNI_TILE_M 96
#define FL_GEMM_6X16_AVXVNNI_TILE_N 128
#define FL_GEMM_6X16_AVXVNNI_KC     1024
#define FL_GEMM_6X16_AVXVNNI_SCRATCH                                                           \
    (FL_GEMM_6X16_AVXVNNI_TILE_M * FL_GEMM_6X16_AVXVNNI_TILE_N * 4 +                           \
     FL_GEMM_6X16_AVXVNNI_KC * 16)
fl_gemm_fn fl__gemm_a8w4_6x16_avxvnni, fl__gemm_a8w8_6x16_avxvnni;

#define FL_GEMM_12X32_AVX512VNNI_TILE_M 192
#define FL_GEMM_12X32_AVX512VNNI_TILE_N 256
#define FL_GEMM_12X32_AVX512VNNI_KC     1024
#define FL_GEMM_12X32_AVX512VNNI_SCRATCH                                                       \
    (FL_GEMM_12X32_AVX512VNNI_TILE_M * FL_GEMM_12X32_AVX512VNNI_TILE_N * 4 +                   \
     FL_GEMM_12X32_AVX512VNNI_KC * 32)
fl_gemm_fn fl__gemm_a8w4_12x32_avx512vnni, fl__gemm_a8w8_12x32_avx512vnni;

#define FL_GEMM_32X32_AMX_TILE_M  256
#define FL_GEMM_32X32_AMX_TILE_N  1024
#define FL_GEMM_32X32_AMX_K_BLOCK 4096
#define FL_GEMM_32X32_AMX_K_CHUNK 1024
#define FL_GEMM_32X32_AMX_SCRATCH                                                              \
    (FL_GEMM_32X32_AMX_TILE_M * FL_GEMM_32X32_AMX_TILE_N * 4 +                                 \
     FL_GEMM_32X32_AMX_K_BLOCK * 32)
fl_gemm_fn fl__gemm_a8w4_32x32_amx, fl__gemm_a8w8_32x32_amx;

#endif
