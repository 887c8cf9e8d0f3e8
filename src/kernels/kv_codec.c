/* kv_codec.c - table of the KV codec kernels. SPDX-License-Identifier: MIT */
#include "kernels/kv_codec.h"

#include "base/isa.h"
#include "base/status.h"
#include "kernels/kv_codec_rows.h"

const fl_kv_codec_kernel fl__kv_codec_kernels[] = {
    {"kv_codec_avx512", FL_ISA_AVX2 | FL_ISA_AVX512, fl__kv_quantize_avx512,
     fl__kv_expand_avx512},
    {"kv_codec_avx2", FL_ISA_AVX2, fl__kv_quantize_avx2, fl__kv_expand_avx2},
    {"kv_codec_ref", 0, fl__kv_quantize_ref, fl__kv_expand_ref},
};
const int fl__n_kv_codec_kernels = (int)FL_COUNT(fl__kv_codec_kernels);

const fl_kv_codec_kernel *fl__kv_codec_select(uint32_t isa)
{
    const fl_kv_codec_kernel *k = fl__kv_codec_kernels;
    while ((k->isa & ~isa) != 0) k++; /* stops at the reference row at the latest */
    return k;
}
