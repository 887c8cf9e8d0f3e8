/* gemm_f32.c - table of the float products. SPDX-License-Identifier: MIT */
#include "kernels/gemm_f32.h"

#include "base/isa.h"
#include "base/status.h"

fl_gemm_f32_run_fn fl__gemm_f32_ref, fl__gemm_f32_6x16_avx2, fl__gemm_f32_12x32_avx512;
fl_gemm_f32_pack_fn fl__gemm_f32_pack_f32_ref, fl__gemm_f32_pack_bf16_ref,
    fl__gemm_f32_pack_f16_ref, fl__gemm_f32_pack_f32_avx2, fl__gemm_f32_pack_bf16_avx2,
    fl__gemm_f32_pack_f16_avx2;
fl_gemm_f32_few_fn fl__gemm_f32_few_f32_avx2, fl__gemm_f32_few_bf16_avx2,
    fl__gemm_f32_few_f16_avx2;

#define PACK(ISA)                                                                              \
    {                                                                                          \
        fl__gemm_f32_pack_f32_##ISA, fl__gemm_f32_pack_bf16_##ISA, fl__gemm_f32_pack_f16_##ISA \
    }
#define FEW(ISA)                                                                               \
    {                                                                                          \
        fl__gemm_f32_few_f32_##ISA, fl__gemm_f32_few_bf16_##ISA, fl__gemm_f32_few_f16_##ISA    \
    }

const fl_gemm_f32_kernel fl__gemm_f32_kernels[] = {
    {"gemm_f32_12x32_avx512", FL_ISA_AVX2 | FL_ISA_AVX512, 32, 4, fl__gemm_f32_12x32_avx512,
     PACK(avx2), FEW(avx2)},
    {"gemm_f32_6x16_avx2", FL_ISA_AVX2, 16, 4, fl__gemm_f32_6x16_avx2, PACK(avx2), FEW(avx2)},
    {"gemm_f32_ref", 0, 16, 0, fl__gemm_f32_ref, PACK(ref), {0}},
};
const int fl__n_gemm_f32_kernels = (int)FL_COUNT(fl__gemm_f32_kernels);

const fl_gemm_f32_kernel *fl__gemm_f32_select(uint32_t isa)
{
    const fl_gemm_f32_kernel *k = fl__gemm_f32_kernels;
    while ((k->isa & ~isa) != 0) k++;
    return k;
}
