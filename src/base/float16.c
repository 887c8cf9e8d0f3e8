/* float16.c - the conversions over arrays. SPDX-License-Identifier: MIT */
#include "base/float16.h"

static uint16_t load_u16(const unsigned char *p)
{
    uint16_t h;
    memcpy(&h, p, sizeof h);
    return h;
}

void fl__f16_to_f32_array(float *dst, const void *src, size_t n)
{
    const unsigned char *p = src;
    for (size_t i = 0; i < n; i++) dst[i] = fl__f16_to_f32(load_u16(p + 2 * i));
}

void fl__bf16_to_f32_array(float *dst, const void *src, size_t n)
{
    const unsigned char *p = src;
    for (size_t i = 0; i < n; i++) dst[i] = fl__bf16_to_f32(load_u16(p + 2 * i));
}

void fl__f32_to_bf16_array(uint16_t *dst, const float *src, size_t n)
{
    for (size_t i = 0; i < n; i++) dst[i] = fl__f32_to_bf16(src[i]);
}
