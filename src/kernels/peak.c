/* peak.c - table of the register peaks and readers. SPDX-License-Identifier: MIT */
#include "kernels/peak.h"

#include "base/isa.h"
#include "base/status.h"

/* AVX2 has no single instruction from bytes to int32: its peak is vpmaddubsw with int16 sums,
 * what the 4-bit rows may use for 8 steps at a time. */
const fl_peak_kernel fl__peak_kernels[] = {
    {"tdpbssd", FL_ISA_AVX2 | FL_ISA_AVX512 | FL_ISA_AVX512VNNI | FL_ISA_AMX,
     4 * 16 * 16 * 64 * 2, fl__peak_amx},
    {"vpdpbusd zmm", FL_ISA_AVX2 | FL_ISA_AVX512 | FL_ISA_AVX512VNNI, 16 * 64 * 2,
     fl__peak_avx512vnni},
    {"vpdpbusd ymm", FL_ISA_AVX2 | FL_ISA_AVXVNNI, 12 * 32 * 2, fl__peak_avxvnni},
    {"vpmaddubsw + vpaddw ymm", FL_ISA_AVX2, 12 * 32 * 2, fl__peak_avx2},
    {"plain C", 0, 8 * 2, fl__peak_ref},
};
const int fl__n_peak_kernels = (int)FL_COUNT(fl__peak_kernels);

const fl_peak_kernel *fl__peak_select(uint32_t isa)
{
    const fl_peak_kernel *k = fl__peak_kernels;
    while ((k->isa & ~isa) != 0) k++; /* stops at plain C at the latest */
    return k;
}

fl_read_fn *fl__read_select(uint32_t isa)
{
    return isa & FL_ISA_AVX2 ? fl__read_avx2 : fl__read_ref;
}
