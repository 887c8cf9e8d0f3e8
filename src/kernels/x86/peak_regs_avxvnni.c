/* peak_regs_avxvnni.c - 12 chains of vpdpbusd on 256 bits. SPDX-License-Identifier: MIT */
#include "kernels/peak.h"
#include "kernels/x86/simd.h"

#define CHAINS 12

void fl__peak_avxvnni(int64_t n_rounds)
{
    const __m256i a = _mm256_set1_epi8(3), b = _mm256_set1_epi8(5);
    __m256i sum[CHAINS];
#pragma GCC unroll 12
    for (int i = 0; i < CHAINS; i++) sum[i] = _mm256_setzero_si256();
    for (int64_t r = 0; r < n_rounds; r++) {
#pragma GCC unroll 12
        for (int i = 0; i < CHAINS; i++) {
            sum[i] = _mm256_dpbusd_avx_epi32(sum[i], a, b);
            FL_KEEP_EACH(sum[i]);
        }
    }
}
