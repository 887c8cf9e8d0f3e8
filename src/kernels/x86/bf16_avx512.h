/* bf16_avx512.h - 512-bit rounding to bfloat16. SPDX-License-Identifier: MIT */
#ifndef FL_KERNELS_X86_BF16_AVX512_H
#define FL_KERNELS_X86_BF16_AVX512_H

#include "kernels/x86/simd.h"

/* 16 floats to bf16 in the high halves of their lanes: nearest even, NaN stays NaN. The low
 * halves are rubbish. */
FL_INLINE __m512i bf16_high(__m512 y)
{
    const __m512i u = _mm512_castps_si512(y);
    const __m512i odd =
        _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1));
    const __m512i bias = _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff));
    const __m512i quiet = _mm512_or_si512(u, _mm512_set1_epi32(0x400000));
    const __mmask16 is_nan = _mm512_cmp_ps_mask(y, y, _CMP_UNORD_Q);
    return _mm512_mask_blend_epi32(is_nan, _mm512_add_epi32(u, bias), quiet);
}

#endif
