/* transform_avx2.c - the transform of one row, 6 x 16 sums at a time (transform_body.h).
 * SPDX-License-Identifier: MIT */
#include "kernels/x86/bf16_avx2.h"

#define FL_TRANSFORM_NAME fl__transform_avx2
#define LANES             8
#define ROWS              6

typedef __m256 vec;

static inline vec load(const float *x)
{
    return _mm256_loadu_ps(x);
}

static inline void store(float *to, vec v)
{
    _mm256_storeu_ps(to, v);
}

static inline vec broadcast(const float *x)
{
    return _mm256_broadcast_ss(x);
}

static inline vec broadcast_value(float x)
{
    return _mm256_set1_ps(x);
}

static inline vec multiply(vec a, vec b)
{
    return _mm256_mul_ps(a, b);
}

static inline vec fused_add(vec a, vec b, vec sum)
{
    return _mm256_fmadd_ps(a, b, sum);
}

static inline vec to_bf16(vec x)
{
    return _mm256_castsi256_ps(_mm256_slli_epi32(bf16_lanes(x), 16));
}

#include "kernels/x86/transform_body.h"
