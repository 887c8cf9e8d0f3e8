/* float16.h - the two 16-bit float formats of checkpoints, to and from float32.
 *
 * F16 is IEEE binary16 (5 exponent bits), BF16 the upper half of a binary32. Widening is exact,
 * subnormals, infinities and NaNs included; narrowing rounds to nearest, ties to even, and
 * keeps NaNs NaN. This is the one definition that kernels and readers share.
 * SPDX-License-Identifier: MIT */
#ifndef FL_BASE_FLOAT16_H
#define FL_BASE_FLOAT16_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

static inline float fl__f32_from_bits(uint32_t bits)
{
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

static inline uint32_t fl__f32_to_bits(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

static inline float fl__bf16_to_f32(uint16_t h)
{
    return fl__f32_from_bits((uint32_t)h << 16);
}

static inline uint16_t fl__f32_to_bf16(float x)
{
    const uint32_t bits = fl__f32_to_bits(x);
    /* A NaN with payload only in the lower half must not round to infinity: set a payload bit.
     */
    if ((bits & 0x7fffffffu) > 0x7f800000u) return (uint16_t)(bits >> 16 | 0x40u);
    return (uint16_t)((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

static inline float fl__f16_to_f32(uint16_t h)
{
    const uint32_t sign = (uint32_t)(h & 0x8000u) << 16, rest = h & 0x7fffu;
    if (rest >= 0x7c00u) return fl__f32_from_bits(sign | 0x7f800000u | (rest & 0x3ffu) << 13);
    if (rest >= 0x0400u) return fl__f32_from_bits(sign | ((rest << 13) + (112u << 23)));
    const float tiny = (float)rest * 0x1p-24f; /* subnormal: exact */
    return sign ? -tiny : tiny;
}

static inline uint16_t fl__f32_to_f16(float x)
{
    const uint32_t bits = fl__f32_to_bits(x), rest = bits & 0x7fffffffu;
    const uint16_t sign = (uint16_t)(bits >> 16 & 0x8000u);
    if (rest > 0x7f800000u) return (uint16_t)(sign | 0x7e00u | (rest >> 13 & 0x1ffu)); /* NaN */
    if (rest >= 0x47800000u) return (uint16_t)(sign | 0x7c00u);
    if (rest < 0x38800000u) {
        /* Subnormal, in units of 2^-24: the last place of floats from 0.5 on. */
        const float sum = fl__f32_from_bits(rest) + 0.5f;
        return (uint16_t)(sign | (fl__f32_to_bits(sum) - 0x3f000000u));
    }
    const uint32_t rounded = rest - (112u << 23) + 0xfffu + (rest >> 13 & 1u);
    return (uint16_t)(sign | rounded >> 13); /* a carry out of the largest makes infinity */
}

/* src may be unaligned: checkpoints are mapped. dst and src must not overlap. */
void fl__f16_to_f32_array(float *dst, const void *src, size_t n);
void fl__bf16_to_f32_array(float *dst, const void *src, size_t n);
void fl__f32_to_bf16_array(uint16_t *dst, const float *src, size_t n);

#endif
