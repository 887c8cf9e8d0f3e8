/* transform_avx512.c - the transform of one row, 12 x 16 sums at a time (transform_body.h).
 * SPDX-License-Identifier: MIT */
#include "kernels/x86/bf16_avx512.h"

#define FL_TRANSFORM_NAME fl__transform_avx512
#define LANES             16
#define ROWS              12

typedef __m512 vec;

static inline vec load(const float *x)
{
    return _mm512_loadu_ps(x);
}

static inline void store(float *to, vec v)
{
    _mm512_storeu_ps(to, v);
}

static inline vec broadcast(const float *x)
{
    return _mm512_set1_ps(*x);
}

static inline vec broadcast_value(float x)
{
    return _mm512_set1_ps(x);
}

static inline vec multiply(vec a, vec b)
{
    return _mm512_mul_ps(a, b);
}

static inline vec fused_add(vec a, vec b, vec sum)
{
    return _mm512_fmadd_ps(a, b, sum);
}

static inline vec to_bf16(vec x)
{
    const __m512i high = _mm512_set1_epi32(-0x10000);
    return _mm512_castsi512_ps(_mm512_and_si512(bf16_high(x), high));
}

#include "kernels/x86/transform_body.h"
