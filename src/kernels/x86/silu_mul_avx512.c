/* silu_mul_avx512.c - SiLU times up, sixteen at a time: silu_mul_avx2.c, with the same bits.
 * n elements further lies, most often, the next row, which is fetched meanwhile.
 * SPDX-License-Identifier: MIT */
#include "kernels/rowops.h"
#include "kernels/x86/math_avx512.h"

fl_silu_mul_fn fl__silu_mul_avx512;

static inline __m512 sixteen(__m512 v, __m512 u)
{
    const __m512 e = exp_avx512(_mm512_sub_ps(_mm512_setzero_ps(), v));
    return _mm512_mul_ps(_mm512_div_ps(v, _mm512_add_ps(_mm512_set1_ps(1.0f), e)), u);
}

void fl__silu_mul_avx512(float *y, const float *x, const float *u, int n)
{
    int i = 0;
    for (; i + 16 <= n; i += 16) {
        _mm_prefetch((const char *)(x + i + n), _MM_HINT_T1);
        _mm_prefetch((const char *)(u + i + n), _MM_HINT_T1);
        _mm512_storeu_ps(y + i, sixteen(_mm512_loadu_ps(x + i), _mm512_loadu_ps(u + i)));
    }
    if (i < n) {
        const __mmask16 left = (__mmask16)((1u << (n - i)) - 1);
        _mm512_mask_storeu_ps(y + i, left,
                              sixteen(_mm512_maskz_loadu_ps(left, x + i),
                                      _mm512_maskz_loadu_ps(left, u + i)));
    }
}
