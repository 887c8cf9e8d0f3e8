/* bf16_avx2.h - 256-bit rounding to bfloat16. SPDX-License-Identifier: MIT */
#ifndef FL_KERNELS_X86_BF16_AVX2_H
#define FL_KERNELS_X86_BF16_AVX2_H

#include "kernels/x86/simd.h"

/* 8 floats to bf16 in the low halves of 8 lanes: nearest even, NaN stays NaN. */
FL_INLINE __m256i bf16_lanes(__m256 y)
{
    const __m256i u = _mm256_castps_si256(y);
    const __m256i high = _mm256_srli_epi32(u, 16);
    const __m256i odd = _mm256_and_si256(high, _mm256_set1_epi32(1));
    const __m256i bias = _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff));
    const __m256i rounded = _mm256_srli_epi32(_mm256_add_epi32(u, bias), 16);
    const __m256i quiet = _mm256_or_si256(high, _mm256_set1_epi32(0x40));
    const __m256i is_nan = _mm256_castps_si256(_mm256_cmp_ps(y, y, _CMP_UNORD_Q));
    return _mm256_blendv_epi8(rounded, quiet, is_nan);
}

#endif
