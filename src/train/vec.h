/* vec.h - one vector of floats in three widths, for loops that are written once.
 *
 * A body header (<op>_body.h) is compiled once per instruction set, in files whose name decides
 * the flags: 16 lanes with AVX-512, 8 with AVX2, otherwise 1. VEC_NAME(op_) is a name that ends
 * in the set. Loops run over whole vectors with n = VEC_N, a constant that folds away, and once
 * more with the n < VEC_N that are left: loads then fill up with zeros, stores write n lanes.
 *
 * vec_max and vec_min return b when either is NaN. vec_sum_wide adds the lanes in order.
 * SPDX-License-Identifier: MIT */
#ifndef FL_TRAIN_VEC_H
#define FL_TRAIN_VEC_H

#include "base/isa.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define VEC_INLINE static inline __attribute__((always_inline, unused))

#if defined(__AVX512F__)
#include <immintrin.h>

#define VEC_N          16
#define VEC_NAME(stem) stem##avx512
#define VEC_TEXT       "avx512"
#define VEC_ISA        (FL_ISA_AVX2 | FL_ISA_AVX512)
typedef __m512 vec;
typedef __mmask16 vec_mask;

VEC_INLINE __mmask16 vec_lanes(int n)
{
    return (__mmask16)(n < 16 ? (1u << n) - 1 : 0xffff);
}

VEC_INLINE vec vec_load(const float *p, int n)
{
    return n == VEC_N ? _mm512_loadu_ps(p) : _mm512_maskz_loadu_ps(vec_lanes(n), p);
}

VEC_INLINE void vec_store(float *p, vec v, int n)
{
    if (n == VEC_N)
        _mm512_storeu_ps(p, v);
    else
        _mm512_mask_storeu_ps(p, vec_lanes(n), v);
}

VEC_INLINE vec vec_set(float x)
{
    return _mm512_set1_ps(x);
}

VEC_INLINE vec vec_add(vec a, vec b)
{
    return _mm512_add_ps(a, b);
}

VEC_INLINE vec vec_sub(vec a, vec b)
{
    return _mm512_sub_ps(a, b);
}

VEC_INLINE vec vec_mul(vec a, vec b)
{
    return _mm512_mul_ps(a, b);
}

VEC_INLINE vec vec_fma(vec a, vec b, vec c)
{
    return _mm512_fmadd_ps(a, b, c);
}

VEC_INLINE vec vec_max(vec a, vec b)
{
    return _mm512_max_ps(a, b);
}

VEC_INLINE vec vec_min(vec a, vec b)
{
    return _mm512_min_ps(a, b);
}

VEC_INLINE vec vec_round(vec a)
{
    return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

VEC_INLINE vec_mask vec_less(vec a, vec b)
{
    return _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ);
}

VEC_INLINE vec_mask vec_equal(vec a, vec b)
{
    return _mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ);
}

VEC_INLINE vec_mask vec_mask_or(vec_mask a, vec_mask b)
{
    return (vec_mask)(a | b);
}

VEC_INLINE uint32_t vec_mask_bits(vec_mask m)
{
    return m;
}

/* m ? 0 : v */
VEC_INLINE vec vec_clear(vec_mask m, vec v)
{
    return _mm512_maskz_mov_ps((vec_mask)~m, v);
}

/* m ? v : 0 */
VEC_INLINE vec vec_only(vec_mask m, vec v)
{
    return _mm512_maskz_mov_ps(m, v);
}

/* sum[i] = the lanes of v[i], in a tree. */
VEC_INLINE void vec_sum_four(float sum[4], const vec v[4])
{
    __m256 h[4];
    for (int i = 0; i < 4; i++)
        h[i] = _mm256_add_ps(_mm512_castps512_ps256(v[i]), _mm512_extractf32x8_ps(v[i], 1));
    const __m256 s = _mm256_hadd_ps(_mm256_hadd_ps(h[0], h[1]), _mm256_hadd_ps(h[2], h[3]));
    _mm_storeu_ps(sum, _mm_add_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps(s, 1)));
}

/* Whole numbers -128..127. */
VEC_INLINE void vec_store_i8(int8_t *p, vec v, int n)
{
    _mm_mask_storeu_epi8(p, vec_lanes(n), _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(v)));
}

#elif defined(__AVX2__)
#include <immintrin.h>

#define VEC_N          8
#define VEC_NAME(stem) stem##avx2
#define VEC_TEXT       "avx2"
#define VEC_ISA        FL_ISA_AVX2
typedef __m256 vec;
typedef __m256 vec_mask;

VEC_INLINE __m256i vec_lanes(int n)
{
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(n),
                              _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

VEC_INLINE vec vec_load(const float *p, int n)
{
    return n == VEC_N ? _mm256_loadu_ps(p) : _mm256_maskload_ps(p, vec_lanes(n));
}

/* In pieces: masked stores are slow on AMD's cores. */
VEC_INLINE void vec_store(float *p, vec v, int n)
{
    __m128 half = _mm256_castps256_ps128(v);
    if (n == VEC_N) {
        _mm256_storeu_ps(p, v);
        return;
    }
    if (n & 4) {
        _mm_storeu_ps(p, half);
        half = _mm256_extractf128_ps(v, 1);
        p += 4;
    }
    if (n & 2) {
        _mm_storel_pi((__m64 *)(void *)p, half);
        half = _mm_movehl_ps(half, half);
        p += 2;
    }
    if (n & 1) _mm_store_ss(p, half);
}

VEC_INLINE vec vec_set(float x)
{
    return _mm256_set1_ps(x);
}

VEC_INLINE vec vec_add(vec a, vec b)
{
    return _mm256_add_ps(a, b);
}

VEC_INLINE vec vec_sub(vec a, vec b)
{
    return _mm256_sub_ps(a, b);
}

VEC_INLINE vec vec_mul(vec a, vec b)
{
    return _mm256_mul_ps(a, b);
}

VEC_INLINE vec vec_fma(vec a, vec b, vec c)
{
    return _mm256_fmadd_ps(a, b, c);
}

VEC_INLINE vec vec_max(vec a, vec b)
{
    return _mm256_max_ps(a, b);
}

VEC_INLINE vec vec_min(vec a, vec b)
{
    return _mm256_min_ps(a, b);
}

VEC_INLINE vec vec_round(vec a)
{
    return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

VEC_INLINE vec_mask vec_less(vec a, vec b)
{
    return _mm256_cmp_ps(a, b, _CMP_LT_OQ);
}

VEC_INLINE vec_mask vec_equal(vec a, vec b)
{
    return _mm256_cmp_ps(a, b, _CMP_EQ_OQ);
}

VEC_INLINE vec_mask vec_mask_or(vec_mask a, vec_mask b)
{
    return _mm256_or_ps(a, b);
}

VEC_INLINE uint32_t vec_mask_bits(vec_mask m)
{
    return (uint32_t)_mm256_movemask_ps(m);
}

VEC_INLINE vec vec_clear(vec_mask m, vec v)
{
    return _mm256_andnot_ps(m, v);
}

VEC_INLINE vec vec_only(vec_mask m, vec v)
{
    return _mm256_and_ps(m, v);
}

VEC_INLINE void vec_sum_four(float sum[4], const vec v[4])
{
    const __m256 s = _mm256_hadd_ps(_mm256_hadd_ps(v[0], v[1]), _mm256_hadd_ps(v[2], v[3]));
    _mm_storeu_ps(sum, _mm_add_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps(s, 1)));
}

VEC_INLINE void vec_store_i8(int8_t *p, vec v, int n)
{
    const __m256i wide = _mm256_cvtps_epi32(v);
    const __m128i half =
        _mm_packs_epi32(_mm256_castsi256_si128(wide), _mm256_extracti128_si256(wide, 1));
    int8_t lane[8];
    _mm_storel_epi64((__m128i *)lane, _mm_packs_epi16(half, half));
    memcpy(p, lane, (size_t)n);
}

#else

#define VEC_N          1
#define VEC_NAME(stem) stem##ref
#define VEC_TEXT       "ref"
#define VEC_ISA        0
typedef float vec;
typedef bool vec_mask;

VEC_INLINE vec vec_load(const float *p, int n)
{
    (void)n;
    return *p;
}

VEC_INLINE void vec_store(float *p, vec v, int n)
{
    (void)n;
    *p = v;
}

VEC_INLINE vec vec_set(float x)
{
    return x;
}

VEC_INLINE vec vec_add(vec a, vec b)
{
    return a + b;
}

VEC_INLINE vec vec_sub(vec a, vec b)
{
    return a - b;
}

VEC_INLINE vec vec_mul(vec a, vec b)
{
    return a * b;
}

/* Not fused: the fused one is a slow library call here. */
VEC_INLINE vec vec_fma(vec a, vec b, vec c)
{
    return a * b + c;
}

VEC_INLINE vec vec_max(vec a, vec b)
{
    return a > b ? a : b;
}

VEC_INLINE vec vec_min(vec a, vec b)
{
    return a < b ? a : b;
}

/* For |a| < 2^22, as clamped codes are. */
VEC_INLINE vec vec_round(vec a)
{
    const float magic = 12582912.0f;
    return (a + magic) - magic;
}

VEC_INLINE vec_mask vec_less(vec a, vec b)
{
    return a < b;
}

VEC_INLINE vec_mask vec_equal(vec a, vec b)
{
    return a == b;
}

VEC_INLINE vec_mask vec_mask_or(vec_mask a, vec_mask b)
{
    return a || b;
}

VEC_INLINE uint32_t vec_mask_bits(vec_mask m)
{
    return m;
}

VEC_INLINE vec vec_clear(vec_mask m, vec v)
{
    return m ? 0.0f : v;
}

VEC_INLINE vec vec_only(vec_mask m, vec v)
{
    return m ? v : 0.0f;
}

VEC_INLINE void vec_sum_four(float sum[4], const vec v[4])
{
    memcpy(sum, v, 4 * sizeof *sum);
}

VEC_INLINE void vec_store_i8(int8_t *p, vec v, int n)
{
    (void)n;
    *p = (int8_t)v;
}

#endif

VEC_INLINE double vec_sum_wide(vec v)
{
    float lane[VEC_N];
    double sum = 0;
    memcpy(lane, &v, sizeof lane);
    for (int i = 0; i < VEC_N; i++) sum += (double)lane[i];
    return sum;
}

VEC_INLINE float vec_top(vec v)
{
    float lane[VEC_N];
    memcpy(lane, &v, sizeof lane);
    float best = lane[0];
    for (int i = 1; i < VEC_N; i++) best = lane[i] > best ? lane[i] : best;
    return best;
}

VEC_INLINE float vec_bottom(vec v)
{
    float lane[VEC_N];
    memcpy(lane, &v, sizeof lane);
    float best = lane[0];
    for (int i = 1; i < VEC_N; i++) best = lane[i] < best ? lane[i] : best;
    return best;
}

#endif
