/* train_vec_masks.h - what quantisers and small products need of a vector besides train_vec.h:
 * comparisons, rounding, codes, sums. VEC_NAME(op_) is a name that ends in the instruction set.
 * SPDX-License-Identifier: MIT */
#ifndef FL_TRAIN_X86_TRAIN_VEC_MASKS_H
#define FL_TRAIN_X86_TRAIN_VEC_MASKS_H

#include "base/isa.h"
#include "train/x86/train_vec.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__AVX512F__)
#define VEC_NAME(stem) stem##avx512
#define VEC_TEXT       "avx512"
#define VEC_ISA        (FL_ISA_AVX2 | FL_ISA_AVX512)
typedef __mmask16 vec_mask;

static inline vec vec_round(vec a)
{
    return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

static inline vec_mask vec_less(vec a, vec b)
{
    return _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ);
}

static inline vec_mask vec_equal(vec a, vec b)
{
    return _mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ);
}

static inline vec_mask vec_mask_or(vec_mask a, vec_mask b)
{
    return (vec_mask)(a | b);
}

static inline uint32_t vec_mask_bits(vec_mask m)
{
    return m;
}

/* m ? 0 : v */
static inline vec vec_clear(vec_mask m, vec v)
{
    return _mm512_maskz_mov_ps((vec_mask)~m, v);
}

/* m ? v : 0 */
static inline vec vec_only(vec_mask m, vec v)
{
    return _mm512_maskz_mov_ps(m, v);
}

/* sum[i] = the lanes of v[i], in a tree. */
static inline void vec_sum_four(float sum[4], const vec v[4])
{
    __m256 h[4];
    for (int i = 0; i < 4; i++)
        h[i] = _mm256_add_ps(_mm512_castps512_ps256(v[i]), _mm512_extractf32x8_ps(v[i], 1));
    const __m256 s = _mm256_hadd_ps(_mm256_hadd_ps(h[0], h[1]), _mm256_hadd_ps(h[2], h[3]));
    _mm_storeu_ps(sum, _mm_add_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps(s, 1)));
}

/* Whole numbers -128..127. */
static inline void vec_store_i8(int8_t *p, vec v, int n)
{
    _mm_mask_storeu_epi8(p, vec_lanes(n), _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(v)));
}

#elif defined(__AVX2__)
#define VEC_NAME(stem) stem##avx2
#define VEC_TEXT       "avx2"
#define VEC_ISA        FL_ISA_AVX2
typedef __m256 vec_mask;

static inline vec vec_round(vec a)
{
    return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

static inline vec_mask vec_less(vec a, vec b)
{
    return _mm256_cmp_ps(a, b, _CMP_LT_OQ);
}

static inline vec_mask vec_equal(vec a, vec b)
{
    return _mm256_cmp_ps(a, b, _CMP_EQ_OQ);
}

static inline vec_mask vec_mask_or(vec_mask a, vec_mask b)
{
    return _mm256_or_ps(a, b);
}

static inline uint32_t vec_mask_bits(vec_mask m)
{
    return (uint32_t)_mm256_movemask_ps(m);
}

static inline vec vec_clear(vec_mask m, vec v)
{
    return _mm256_andnot_ps(m, v);
}

static inline vec vec_only(vec_mask m, vec v)
{
    return _mm256_and_ps(m, v);
}

static inline void vec_sum_four(float sum[4], const vec v[4])
{
    const __m256 s = _mm256_hadd_ps(_mm256_hadd_ps(v[0], v[1]), _mm256_hadd_ps(v[2], v[3]));
    _mm_storeu_ps(sum, _mm_add_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps(s, 1)));
}

static inline void vec_store_i8(int8_t *p, vec v, int n)
{
    const __m256i wide = _mm256_cvtps_epi32(v);
    const __m128i half =
        _mm_packs_epi32(_mm256_castsi256_si128(wide), _mm256_extracti128_si256(wide, 1));
    int8_t lane[8];
    _mm_storel_epi64((__m128i *)lane, _mm_packs_epi16(half, half));
    memcpy(p, lane, (size_t)n);
}

#else

#define VEC_NAME(stem) stem##ref
#define VEC_TEXT       "ref"
#define VEC_ISA        0
typedef bool vec_mask;

/* For |a| < 2^22, as clamped codes are. */
static inline vec vec_round(vec a)
{
    const float magic = 12582912.0f;
    return (a + magic) - magic;
}

static inline vec_mask vec_less(vec a, vec b)
{
    return a < b;
}

static inline vec_mask vec_equal(vec a, vec b)
{
    return a == b;
}

static inline vec_mask vec_mask_or(vec_mask a, vec_mask b)
{
    return a || b;
}

static inline uint32_t vec_mask_bits(vec_mask m)
{
    return m;
}

static inline vec vec_clear(vec_mask m, vec v)
{
    return m ? 0.0f : v;
}

static inline vec vec_only(vec_mask m, vec v)
{
    return m ? v : 0.0f;
}

static inline void vec_sum_four(float sum[4], const vec v[4])
{
    memcpy(sum, v, 4 * sizeof *sum);
}

static inline void vec_store_i8(int8_t *p, vec v, int n)
{
    (void)n;
    *p = (int8_t)v;
}

#endif

/* The lanes in order, in double. */
static inline double vec_sum_wide(vec v)
{
    float lane[VEC_N];
    double sum = 0;
    memcpy(lane, &v, sizeof lane);
    for (int i = 0; i < VEC_N; i++) sum += (double)lane[i];
    return sum;
}

static inline float vec_bottom(vec v)
{
    float lane[VEC_N];
    memcpy(lane, &v, sizeof lane);
    float best = lane[0];
    for (int i = 1; i < VEC_N; i++) best = lane[i] < best ? lane[i] : best;
    return best;
}

#endif
