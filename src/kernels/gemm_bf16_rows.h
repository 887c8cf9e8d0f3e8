/* gemm_bf16_rows.h - the rows of gemm_bf16.c's table. SPDX-License-Identifier: MIT */
#ifndef FL_KERNELS_GEMM_BF16_ROWS_H
#define FL_KERNELS_GEMM_BF16_ROWS_H

#include "kernels/gemm_bf16.h"

fl_gemm_bf16_fn fl__gemm_bf16_ref, fl__gemm_bf16_32x32_amxbf16;

#endif
