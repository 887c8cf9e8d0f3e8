/* dot_avx2.c - float dot products with four accumulators of eight lanes.
 *
 * One loop for the three weight types: load8 is the only difference, passed as an inlined
 * function. The tail of fewer than eight elements is added one by one at the end.
 * SPDX-License-Identifier: MIT */
#include "base/float16.h"
#include "kernels/dot.h"

#include <immintrin.h>

float fl__dot_f32_avx2(const float *x, const float *w, int n);
float fl__dot_bf16_avx2(const float *x, const uint16_t *w, int n);
float fl__dot_f16_avx2(const float *x, const uint16_t *w, int n);

typedef __m256 load8_fn(const void *w, int k);
typedef float load1_fn(const void *w, int k);

static inline __m256 f32x8(const void *w, int k)
{
    return _mm256_loadu_ps((const float *)w + k);
}

static inline __m256 bf16x8(const void *w, int k)
{
    const __m128i h = _mm_loadu_si128((const __m128i *)(const void *)((const uint16_t *)w + k));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(h), 16));
}

static inline __m256 f16x8(const void *w, int k)
{
    return _mm256_cvtph_ps(
        _mm_loadu_si128((const __m128i *)(const void *)((const uint16_t *)w + k)));
}

static inline float f32x1(const void *w, int k)
{
    return ((const float *)w)[k];
}

static inline float bf16x1(const void *w, int k)
{
    return fl__bf16_to_f32(((const uint16_t *)w)[k]);
}

static inline float f16x1(const void *w, int k)
{
    return fl__f16_to_f32(((const uint16_t *)w)[k]);
}

static inline __attribute__((always_inline)) float dot(const float *x, const void *w, int n,
                                                       load8_fn *load8, load1_fn *load1)
{
    __m256 acc[4];
    int k = 0;
    for (int i = 0; i < 4; i++) acc[i] = _mm256_setzero_ps();
    for (; k + 32 <= n; k += 32)
        for (int i = 0; i < 4; i++)
            acc[i] =
                _mm256_fmadd_ps(_mm256_loadu_ps(x + k + 8 * i), load8(w, k + 8 * i), acc[i]);
    for (; k + 8 <= n; k += 8)
        acc[0] = _mm256_fmadd_ps(_mm256_loadu_ps(x + k), load8(w, k), acc[0]);
    const __m256 sum =
        _mm256_add_ps(_mm256_add_ps(acc[0], acc[1]), _mm256_add_ps(acc[2], acc[3]));
    float lane[8];
    _mm256_storeu_ps(lane, sum);
    float total = ((lane[0] + lane[4]) + (lane[1] + lane[5])) +
                  ((lane[2] + lane[6]) + (lane[3] + lane[7]));
    for (; k < n; k++) total += x[k] * load1(w, k);
    return total;
}

float fl__dot_f32_avx2(const float *x, const float *w, int n)
{
    return dot(x, w, n, f32x8, f32x1);
}

float fl__dot_bf16_avx2(const float *x, const uint16_t *w, int n)
{
    return dot(x, w, n, bf16x8, bf16x1);
}

float fl__dot_f16_avx2(const float *x, const uint16_t *w, int n)
{
    return dot(x, w, n, f16x8, f16x1);
}
