/* train_vec.h - one vector type for loops that are compiled once per instruction set.
 *
 * A file that includes this gets `vec`, VEC_N floats wide: 16 with AVX-512, 8 with AVX2, and a
 * plain float without either, so that the same body is its own reference. `count` is how many
 * lanes of a load or store exist (VEC_N or more: all); lanes beyond read as 0 and are not
 * written. A sum over a row goes through VEC_N lanes, so its last bits depend on the
 * instruction set, and on nothing else.
 * SPDX-License-Identifier: MIT */
#ifndef FL_TRAIN_X86_TRAIN_VEC_H
#define FL_TRAIN_X86_TRAIN_VEC_H

#include <stdint.h>
#include <string.h>

#if defined(__AVX512F__)

#include "kernels/x86/math_avx512.h"

#define VEC_N 16
typedef __m512 vec;

static inline __mmask16 vec_lanes(int count)
{
    return count >= 16 ? (__mmask16)0xffff : (__mmask16)((1u << count) - 1);
}

static inline vec vec_set(float x)
{
    return _mm512_set1_ps(x);
}

static inline vec vec_load(const float *p, int count)
{
    return count >= VEC_N ? _mm512_loadu_ps(p) : _mm512_maskz_loadu_ps(vec_lanes(count), p);
}

static inline void vec_store(float *p, vec v, int count)
{
    if (count >= VEC_N) _mm512_storeu_ps(p, v);
    else _mm512_mask_storeu_ps(p, vec_lanes(count), v);
}

/* Lanes from count on become 0. */
static inline vec vec_first(vec v, int count)
{
    return _mm512_maskz_mov_ps(vec_lanes(count), v);
}

static inline vec vec_add(vec a, vec b)
{
    return _mm512_add_ps(a, b);
}

static inline vec vec_sub(vec a, vec b)
{
    return _mm512_sub_ps(a, b);
}

static inline vec vec_mul(vec a, vec b)
{
    return _mm512_mul_ps(a, b);
}

static inline vec vec_div(vec a, vec b)
{
    return _mm512_div_ps(a, b);
}

/* a * b + c, rounded once where there is an instruction for it */
static inline vec vec_fma(vec a, vec b, vec c)
{
    return _mm512_fmadd_ps(a, b, c);
}

static inline vec vec_max(vec a, vec b)
{
    return _mm512_max_ps(a, b);
}

static inline vec vec_min(vec a, vec b)
{
    return _mm512_min_ps(a, b);
}

/* x where by > 0, else 0 */
static inline vec vec_where_positive(vec by, vec x)
{
    return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(by, _mm512_setzero_ps(), _CMP_GT_OQ), x);
}

static inline float vec_sum(vec v)
{
    return _mm512_reduce_add_ps(v);
}

static inline float vec_top(vec v)
{
    return _mm512_reduce_max_ps(v);
}

static inline vec vec_exp(vec x)
{
    return exp_avx512(x);
}

/* The bits of bfloat16(v), nearest even, in the low half of each 32-bit lane; NaN stays NaN. */
static inline __m512i vec_bf16_bits(vec v)
{
    const __m512i x = _mm512_castps_si512(v), high = _mm512_srli_epi32(x, 16);
    const __m512i odd = _mm512_and_si512(high, _mm512_set1_epi32(1));
    const __m512i up = _mm512_add_epi32(x, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    const __m512i quiet = _mm512_or_si512(high, _mm512_set1_epi32(0x40));
    return _mm512_mask_mov_epi32(_mm512_srli_epi32(up, 16),
                                 _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q), quiet);
}

/* VEC_N bfloat16 numbers at p. */
static inline void vec_store_bf16(uint16_t *p, vec v)
{
    _mm256_storeu_si256((__m256i *)(void *)p, _mm512_cvtepi32_epi16(vec_bf16_bits(v)));
}

/* VEC_N pairs (low first) of bfloat16 numbers at p. */
static inline void vec_store_bf16_pairs(uint32_t *p, vec low, vec high)
{
    const __m512i up = _mm512_slli_epi32(vec_bf16_bits(high), 16);
    _mm512_storeu_si512(p, _mm512_or_si512(up, vec_bf16_bits(low)));
}

/* v rounded to bfloat16, as float32. */
static inline vec vec_round_bf16(vec v)
{
    return _mm512_castsi512_ps(_mm512_slli_epi32(vec_bf16_bits(v), 16));
}

#elif defined(__AVX2__)

#include "kernels/x86/math_avx2.h"

#define VEC_N 8
typedef __m256 vec;

static inline __m256i vec_lanes(int count)
{
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(count),
                              _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

static inline vec vec_set(float x)
{
    return _mm256_set1_ps(x);
}

static inline vec vec_load(const float *p, int count)
{
    return count >= VEC_N ? _mm256_loadu_ps(p) : _mm256_maskload_ps(p, vec_lanes(count));
}

/* In pieces: masked stores are slow on AMD's cores. */
static inline void vec_store(float *p, vec v, int count)
{
    __m128 half = _mm256_castps256_ps128(v);
    if (count >= VEC_N) {
        _mm256_storeu_ps(p, v);
        return;
    }
    if (count & 4) {
        _mm_storeu_ps(p, half);
        half = _mm256_extractf128_ps(v, 1);
        p += 4;
    }
    if (count & 2) {
        _mm_storel_pi((__m64 *)(void *)p, half);
        half = _mm_movehl_ps(half, half);
        p += 2;
    }
    if (count & 1) _mm_store_ss(p, half);
}

static inline vec vec_first(vec v, int count)
{
    return _mm256_and_ps(v, _mm256_castsi256_ps(vec_lanes(count)));
}

static inline vec vec_add(vec a, vec b)
{
    return _mm256_add_ps(a, b);
}

static inline vec vec_sub(vec a, vec b)
{
    return _mm256_sub_ps(a, b);
}

static inline vec vec_mul(vec a, vec b)
{
    return _mm256_mul_ps(a, b);
}

static inline vec vec_div(vec a, vec b)
{
    return _mm256_div_ps(a, b);
}

static inline vec vec_fma(vec a, vec b, vec c)
{
    return _mm256_fmadd_ps(a, b, c);
}

static inline vec vec_max(vec a, vec b)
{
    return _mm256_max_ps(a, b);
}

static inline vec vec_min(vec a, vec b)
{
    return _mm256_min_ps(a, b);
}

static inline vec vec_where_positive(vec by, vec x)
{
    return _mm256_and_ps(x, _mm256_cmp_ps(by, _mm256_setzero_ps(), _CMP_GT_OQ));
}

static inline float vec_sum(vec v)
{
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_shuffle_ps(s, s, 1)));
}

static inline float vec_top(vec v)
{
    __m128 s = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    s = _mm_max_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_max_ss(s, _mm_shuffle_ps(s, s, 1)));
}

static inline vec vec_exp(vec x)
{
    return exp_avx2(x);
}

static inline __m256i vec_bf16_bits(vec v)
{
    const __m256i x = _mm256_castps_si256(v), high = _mm256_srli_epi32(x, 16);
    const __m256i odd = _mm256_and_si256(high, _mm256_set1_epi32(1));
    const __m256i up = _mm256_add_epi32(x, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    const __m256i quiet = _mm256_or_si256(high, _mm256_set1_epi32(0x40));
    return _mm256_blendv_epi8(_mm256_srli_epi32(up, 16), quiet,
                              _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q)));
}

static inline void vec_store_bf16(uint16_t *p, vec v)
{
    const __m256i b = vec_bf16_bits(v);
    const __m128i packed =
        _mm_packus_epi32(_mm256_castsi256_si128(b), _mm256_extracti128_si256(b, 1));
    _mm_storeu_si128((__m128i *)(void *)p, packed);
}

static inline void vec_store_bf16_pairs(uint32_t *p, vec low, vec high)
{
    const __m256i up = _mm256_slli_epi32(vec_bf16_bits(high), 16);
    _mm256_storeu_si256((__m256i *)(void *)p, _mm256_or_si256(up, vec_bf16_bits(low)));
}

static inline vec vec_round_bf16(vec v)
{
    return _mm256_castsi256_ps(_mm256_slli_epi32(vec_bf16_bits(v), 16));
}

#else

#include "base/float16.h"

#include <math.h>

#define VEC_N 1
typedef float vec;

static inline vec vec_set(float x)
{
    return x;
}

static inline vec vec_load(const float *p, int count)
{
    (void)count;
    return *p;
}

static inline void vec_store(float *p, vec v, int count)
{
    (void)count;
    *p = v;
}

static inline vec vec_first(vec v, int count)
{
    (void)count;
    return v;
}

static inline vec vec_add(vec a, vec b)
{
    return a + b;
}

static inline vec vec_sub(vec a, vec b)
{
    return a - b;
}

static inline vec vec_mul(vec a, vec b)
{
    return a * b;
}

static inline vec vec_div(vec a, vec b)
{
    return a / b;
}

static inline vec vec_fma(vec a, vec b, vec c)
{
    return a * b + c;
}

static inline vec vec_max(vec a, vec b)
{
    return a > b ? a : b;
}

static inline vec vec_min(vec a, vec b)
{
    return a < b ? a : b;
}

static inline vec vec_where_positive(vec by, vec x)
{
    return by > 0.0f ? x : 0.0f;
}

static inline float vec_sum(vec v)
{
    return v;
}

static inline float vec_top(vec v)
{
    return v;
}

static inline vec vec_exp(vec x)
{
    return expf(vec_min(88.0f, vec_max(-87.0f, x)));
}

static inline void vec_store_bf16(uint16_t *p, vec v)
{
    *p = fl__f32_to_bf16(v);
}

static inline void vec_store_bf16_pairs(uint32_t *p, vec low, vec high)
{
    const uint32_t pair = (uint32_t)fl__f32_to_bf16(high) << 16 | fl__f32_to_bf16(low);
    memcpy(p, &pair, sizeof pair);
}

static inline vec vec_round_bf16(vec v)
{
    return fl__bf16_to_f32(fl__f32_to_bf16(v));
}

#endif

#if defined(__AVX2__)

/* 8 x 8 numbers of 32 bits: to[i][j] = from[j][i]. */
#define VEC_TURN 8
static inline void vec_turn(uint32_t *to, int64_t ld_to, const uint32_t *from, int64_t ld_from)
{
    __m256 a[8], b[8];
    for (int i = 0; i < 8; i++) a[i] = _mm256_loadu_ps((const float *)(from + i * ld_from));
    for (int i = 0; i < 8; i += 2) {
        b[i] = _mm256_unpacklo_ps(a[i], a[i + 1]);
        b[i + 1] = _mm256_unpackhi_ps(a[i], a[i + 1]);
    }
    for (int i = 0; i < 8; i += 4) {
        a[i] = _mm256_shuffle_ps(b[i], b[i + 2], 0x44);
        a[i + 1] = _mm256_shuffle_ps(b[i], b[i + 2], 0xee);
        a[i + 2] = _mm256_shuffle_ps(b[i + 1], b[i + 3], 0x44);
        a[i + 3] = _mm256_shuffle_ps(b[i + 1], b[i + 3], 0xee);
    }
    for (int i = 0; i < 4; i++) {
        _mm256_storeu_ps((float *)(to + i * ld_to),
                         _mm256_permute2f128_ps(a[i], a[i + 4], 0x20));
        _mm256_storeu_ps((float *)(to + (i + 4) * ld_to),
                         _mm256_permute2f128_ps(a[i], a[i + 4], 0x31));
    }
}

#else

#define VEC_TURN 1
static inline void vec_turn(uint32_t *to, int64_t ld_to, const uint32_t *from, int64_t ld_from)
{
    (void)ld_to;
    (void)ld_from;
    memcpy(to, from, sizeof *to);
}

#endif

#endif
