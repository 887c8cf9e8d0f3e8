/* math_avx2.h - exp of eight floats, shared by the AVX2 float kernels.
 *
 * exp(x) = 2^n * e^r with n = round(x / ln 2), |r| <= ln 2 / 2, e^r by a polynomial of degree 6
 * (Taylor terms; the remainder is under 2e-8 relative). Inputs under -87 give 0 to within
 * 2^-125, above 88 saturate.
 * SPDX-License-Identifier: MIT */
#ifndef FL_KERNELS_X86_MATH_AVX2_H
#define FL_KERNELS_X86_MATH_AVX2_H

#include <immintrin.h>

static inline __m256 exp_avx2(__m256 x)
{
    /* min and max return their second operand when either is NaN: NaN stays NaN */
    x = _mm256_min_ps(_mm256_set1_ps(88.0f), _mm256_max_ps(_mm256_set1_ps(-87.0f), x));
    const __m256 n = _mm256_round_ps(_mm256_mul_ps(x, _mm256_set1_ps(1.44269504f)),
                                     _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __m256 r = _mm256_fnmadd_ps(n, _mm256_set1_ps(0.693359375f), x);
    r = _mm256_fnmadd_ps(n, _mm256_set1_ps(-2.12194440e-4f), r);
    __m256 p = _mm256_set1_ps(1.0f / 720);
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f / 120));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f / 24));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f / 6));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(0.5f));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f));
    const __m256i e = _mm256_slli_epi32(_mm256_cvtps_epi32(n), 23);
    return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(p), e));
}

#endif
