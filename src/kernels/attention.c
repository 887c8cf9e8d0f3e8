/* attention.c - table of the attention page kernels. SPDX-License-Identifier: MIT */
#include "kernels/attention.h"

#include "base/isa.h"
#include "base/status.h"

fl_attention_page_fn fl__attention_page_ref, fl__attention_page_avx2,
    fl__attention_page_avx512;

const fl_attention_kernel fl__attention_kernels[] = {
    {"attention_page_avx512", FL_ISA_AVX2 | FL_ISA_AVX512, fl__attention_page_avx512},
    {"attention_page_avx2", FL_ISA_AVX2, fl__attention_page_avx2},
    {"attention_page_ref", 0, fl__attention_page_ref},
};
const int fl__n_attention_kernels = (int)FL_COUNT(fl__attention_kernels);

const fl_attention_kernel *fl__attention_select(uint32_t isa)
{
    const fl_attention_kernel *k = fl__attention_kernels;
    while ((k->isa & ~isa) != 0) k++;
    return k;
}
