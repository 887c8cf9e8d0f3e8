/* peak_regs_avx512vnni.c - 16 chains of vpdpbusd on 512 bits. SPDX-License-Identifier: MIT */
#include "kernels/peak.h"
#include "kernels/x86/simd.h"

#define CHAINS 16

void fl__peak_avx512vnni(int64_t n_rounds)
{
    const __m512i a = _mm512_set1_epi8(3), b = _mm512_set1_epi8(5);
    __m512i sum[CHAINS];
#pragma GCC unroll 16
    for (int i = 0; i < CHAINS; i++) sum[i] = _mm512_setzero_si512();
    for (int64_t r = 0; r < n_rounds; r++) {
#pragma GCC unroll 16
        for (int i = 0; i < CHAINS; i++) {
            sum[i] = _mm512_dpbusd_epi32(sum[i], a, b);
            FL_KEEP_EACH(sum[i]);
        }
    }
}
