/* gemm_bf16.c - the table of bfloat16 products. SPDX-License-Identifier: MIT */
#include "kernels/gemm_bf16.h"

#include "base/isa.h"
#include "base/status.h"
#include "kernels/gemm_bf16_rows.h"

const fl_gemm_bf16_kernel fl__gemm_bf16_kernels[] = {
    {"gemm_bf16_32x32_amxbf16", FL_ISA_AVX512 | FL_ISA_AMXBF16, fl__gemm_bf16_32x32_amxbf16},
    {"gemm_bf16_ref", 0, fl__gemm_bf16_ref},
};
const int fl__n_gemm_bf16_kernels = FL_COUNT(fl__gemm_bf16_kernels);

const fl_gemm_bf16_kernel *fl__gemm_bf16_select(uint32_t isa)
{
    const fl_gemm_bf16_kernel *k = fl__gemm_bf16_kernels;
    while (k->isa & ~isa) k++;
    return k;
}
