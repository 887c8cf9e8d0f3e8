/* attention_codes.c - table of the kernels of attention over codes.
 * SPDX-License-Identifier: MIT */
#include "kernels/attention_codes.h"

#include "base/isa.h"
#include "base/status.h"
#include "kernels/attention_codes_rows.h"

#define AVX512VNNI (FL_ISA_AVX2 | FL_ISA_AVX512 | FL_ISA_AVX512VNNI)

const fl_attention_codes_kernel fl__attention_codes_kernels[] = {
    {"attention_codes_amx", AVX512VNNI | FL_ISA_AMX, fl__attention_prepare_amx,
     fl__attention_codes_amx},
    {"attention_codes_avx512vnni", AVX512VNNI, fl__attention_prepare_avx512vnni,
     fl__attention_codes_avx512vnni},
    {"attention_codes_avx2", FL_ISA_AVX2, fl__attention_prepare_avx2, fl__attention_codes_avx2},
    {"attention_codes_ref", 0, fl__attention_prepare_ref, fl__attention_codes_ref},
};
const int fl__n_attention_codes_kernels = (int)FL_COUNT(fl__attention_codes_kernels);

const fl_attention_codes_kernel *fl__attention_codes_select(uint32_t isa)
{
    const fl_attention_codes_kernel *k = fl__attention_codes_kernels;
    while ((k->isa & ~isa) != 0) k++; /* stops at the reference row at the latest */
    return k;
}

/* Rows in front of which the last block of a row of the table may read are there, too. */
size_t fl__attention_codes_x_bytes(int n_rows, int D)
{
    return fl__codes_heads_bytes(n_rows) + (size_t)(n_rows + FL_CODES_ROWS) *
                                               (size_t)fl__codes_terms(D) * FL_CODES_TERM_BYTES;
}

size_t fl__attention_codes_work_bytes(int D)
{
    const size_t lanes = (size_t)fl__codes_terms(D); /* at least a page's */
    return 2 * FL_CODES_PAGES * fl__codes_page_bytes(D) +
           2 * FL_CODES_ROWS * FL_CODES_KEYS * (FL_CODES_TERM_BYTES + sizeof(float)) +
           4 * FL_CODES_KEYS * sizeof(float) +
           FL_CODES_ROWS * FL_CODES_SUMS * lanes * sizeof(int32_t);
}
