/* silu_mul_avx2.c - SiLU times up, eight at a time. The tail goes through the same code on a
 * padded copy,
 * so that an element's bits do not depend on where in a row it stands.
 * SPDX-License-Identifier: MIT */
#include "kernels/rowops.h"
#include "kernels/x86/math_avx2.h"

#include <string.h>

fl_silu_mul_fn fl__silu_mul_avx2;

static inline void eight(float *y, const float *x, const float *u)
{
    const __m256 v = _mm256_loadu_ps(x), one = _mm256_set1_ps(1.0f);
    const __m256 e = exp_avx2(_mm256_sub_ps(_mm256_setzero_ps(), v));
    const __m256 s = _mm256_div_ps(v, _mm256_add_ps(one, e));
    _mm256_storeu_ps(y, _mm256_mul_ps(s, _mm256_loadu_ps(u)));
}

void fl__silu_mul_avx2(float *y, const float *x, const float *u, int n)
{
    int i = 0;
    for (; i + 8 <= n; i += 8) eight(y + i, x + i, u + i);
    if (i < n) {
        float xx[8] = {0}, uu[8] = {0}, yy[8];
        memcpy(xx, x + i, (size_t)(n - i) * sizeof *x);
        memcpy(uu, u + i, (size_t)(n - i) * sizeof *u);
        eight(yy, xx, uu);
        memcpy(y + i, yy, (size_t)(n - i) * sizeof *y);
    }
}
