/* immintrin.h - stands before the compiler's: what the integer GEMM uses of AVX-512, in vector
 * extensions, and tiles in plain C. For checking values on a machine without either; compiled
 * for AVX2. SPDX-License-Identifier: MIT */
#ifndef LAB_EMU_IMMINTRIN_H
#define LAB_EMU_IMMINTRIN_H
#include_next <immintrin.h>
#include "tiles_emu.h"
#pragma GCC diagnostic ignored "-Wpsabi"

typedef int32_t emu_i32 __attribute__((vector_size(64), may_alias));
typedef uint32_t emu_u32 __attribute__((vector_size(64), may_alias));
typedef uint16_t emu_u16 __attribute__((vector_size(64), may_alias));
typedef uint8_t emu_u8 __attribute__((vector_size(64), may_alias));
typedef float emu_f32 __attribute__((vector_size(64), may_alias));
typedef struct {
    uint8_t b[64];
} emu_raw;
#define EMU_FN static inline __attribute__((unused))

EMU_FN __m512i emu_loadi(const void *p)
{
    __m512i v;
    memcpy(&v, p, 64);
    return v;
}
EMU_FN __m512 emu_loadf(const void *p)
{
    __m512 v;
    memcpy(&v, p, 64);
    return v;
}
EMU_FN void emu_aligned(const void *p)
{
    if ((uintptr_t)p % 64) abort();
}
EMU_FN __m512i emu_loadai(const void *p)
{
    emu_aligned(p);
    return emu_loadi(p);
}
EMU_FN __m512 emu_loadaf(const void *p)
{
    emu_aligned(p);
    return emu_loadf(p);
}
EMU_FN void emu_storei(void *p, __m512i v)
{
    memcpy(p, &v, 64);
}
EMU_FN void emu_storef(void *p, __m512 v)
{
    memcpy(p, &v, 64);
}
EMU_FN void emu_storeai(void *p, __m512i v)
{
    emu_aligned(p);
    emu_storei(p, v);
}
EMU_FN void emu_storeaf(void *p, __m512 v)
{
    emu_aligned(p);
    emu_storef(p, v);
}
EMU_FN __m512i emu_maskz_loadi(__mmask16 k, const void *p)
{
    emu_i32 v = {0};
    for (int i = 0; i < 16; i++)
        if (k >> i & 1) {
            int32_t x;
            memcpy(&x, (const char *)p + 4 * i, 4);
            v[i] = x;
        }
    return (__m512i)v;
}
EMU_FN __m512 emu_maskz_loadf(__mmask16 k, const void *p)
{
    return (__m512)emu_maskz_loadi(k, p);
}
EMU_FN void emu_mask_storef(void *p, __mmask16 k, __m512 v)
{
    for (int i = 0; i < 16; i++)
        if (k >> i & 1) {
            float x = ((emu_f32)v)[i];
            memcpy((char *)p + 4 * i, &x, 4);
        }
}
EMU_FN void emu_mask_store16(void *p, __mmask16 k, __m256i v)
{
    uint16_t h[16];
    memcpy(h, &v, 32);
    for (int i = 0; i < 16; i++)
        if (k >> i & 1) memcpy((char *)p + 2 * i, &h[i], 2);
}
EMU_FN void emu_mask_store16w(void *p, __mmask32 k, __m512i v)
{
    uint16_t h[32];
    memcpy(h, &v, 64);
    for (int i = 0; i < 32; i++)
        if (k >> i & 1) memcpy((char *)p + 2 * i, &h[i], 2);
}
EMU_FN __m512i emu_set1i(int32_t x)
{
    emu_i32 v;
    for (int i = 0; i < 16; i++) v[i] = x;
    return (__m512i)v;
}
EMU_FN __m512i emu_set1b(int8_t x)
{
    emu_u8 v;
    for (int i = 0; i < 64; i++) v[i] = (uint8_t)x;
    return (__m512i)v;
}
EMU_FN __m512 emu_set1f(float x)
{
    emu_f32 v;
    for (int i = 0; i < 16; i++) v[i] = x;
    return (__m512)v;
}
EMU_FN __m512 emu_cvt(__m512i a)
{
    emu_f32 v;
    for (int i = 0; i < 16; i++) v[i] = (float)((emu_i32)a)[i];
    return (__m512)v;
}
EMU_FN __m256i emu_narrow(__m512i a)
{
    uint16_t h[16];
    __m256i v;
    for (int i = 0; i < 16; i++) h[i] = (uint16_t)((emu_u32)a)[i];
    memcpy(&v, h, 32);
    return v;
}
EMU_FN __m512i emu_perm2(__m512i a, __m512i idx, __m512i b)
{
    uint16_t x[32], y[32], i[32], r[32];
    memcpy(x, &a, 64);
    memcpy(y, &b, 64);
    memcpy(i, &idx, 64);
    for (int k = 0; k < 32; k++) r[k] = i[k] & 32 ? y[i[k] & 31] : x[i[k] & 31];
    return emu_loadi(r);
}
EMU_FN __m512i emu_blend(__mmask16 k, __m512i a, __m512i b)
{
    emu_i32 v;
    for (int i = 0; i < 16; i++) v[i] = k >> i & 1 ? ((emu_i32)b)[i] : ((emu_i32)a)[i];
    return (__m512i)v;
}
EMU_FN __mmask16 emu_unord(__m512 a, __m512 b)
{
    unsigned k = 0;
    for (int i = 0; i < 16; i++)
        if (__builtin_isunordered(((emu_f32)a)[i], ((emu_f32)b)[i])) k |= 1u << i;
    return (__mmask16)k;
}
EMU_FN __m512i emu_dpbusd(__m512i c, __m512i a, __m512i b)
{
    emu_i32 v = (emu_i32)c;
    uint8_t x[64];
    int8_t y[64];
    memcpy(x, &a, 64);
    memcpy(y, &b, 64);
    for (int i = 0; i < 64; i++) v[i / 4] += x[i] * y[i];
    return (__m512i)v;
}
#define _mm512_load_si512(p)               emu_loadai(p)
#define _mm512_loadu_si512(p)              emu_loadi(p)
#define _mm512_load_ps(p)                  emu_loadaf(p)
#define _mm512_loadu_ps(p)                 emu_loadf(p)
#define _mm512_store_si512(p, v)           emu_storeai(p, v)
#define _mm512_store_ps(p, v)              emu_storeaf(p, v)
#define _mm512_storeu_si512(p, v)          emu_storei(p, v)
#define _mm512_storeu_ps(p, v)             emu_storef(p, v)
#define _mm512_stream_si512(p, v)          emu_storeai(p, v)
#define _mm512_stream_ps(p, v)             emu_storeaf(p, v)
#define _mm512_maskz_loadu_ps(k, p)        emu_maskz_loadf(k, p)
#define _mm512_mask_storeu_ps(p, k, v)     emu_mask_storef(p, k, v)
#define _mm256_mask_storeu_epi16(p, k, v)  emu_mask_store16(p, k, v)
#define _mm512_mask_storeu_epi16(p, k, v)  emu_mask_store16w(p, k, v)
#define _mm512_set1_epi32(x)               emu_set1i(x)
#define _mm512_set1_epi8(x)                emu_set1b((int8_t)(x))
#define _mm512_set1_ps(x)                  emu_set1f(x)
#define _mm512_setzero_ps()                emu_set1f(0)
#define _mm512_setzero_si512()             emu_set1i(0)
#define _mm512_castps_si512(v)             ((__m512i)(v))
#define _mm512_castsi512_ps(v)             ((__m512)(v))
#define _mm512_cvtepi32_ps(v)              emu_cvt(v)
#define _mm512_cvtepi32_epi16(v)           emu_narrow(v)
#define _mm512_permutex2var_epi16(a, i, b) emu_perm2(a, i, b)
#define _mm512_mask_blend_epi32(k, a, b)   emu_blend(k, a, b)
#define _mm512_cmp_ps_mask(a, b, op)       emu_unord(a, b)
#define _mm512_dpbusd_epi32(c, a, b)       emu_dpbusd(c, a, b)
#define _mm512_add_epi32(a, b)             ((__m512i)((emu_u32)(a) + (emu_u32)(b)))
#define _mm512_sub_epi32(a, b)             ((__m512i)((emu_u32)(a) - (emu_u32)(b)))
#define _mm512_mullo_epi32(a, b)           ((__m512i)((emu_u32)(a) * (emu_u32)(b)))
#define _mm512_add_ps(a, b)                ((__m512)((emu_f32)(a) + (emu_f32)(b)))
#define _mm512_mul_ps(a, b)                ((__m512)((emu_f32)(a) * (emu_f32)(b)))
#define _mm512_and_si512(a, b)             ((__m512i)((emu_u32)(a) & (emu_u32)(b)))
#define _mm512_or_si512(a, b)              ((__m512i)((emu_u32)(a) | (emu_u32)(b)))
#define _mm512_xor_si512(a, b)             ((__m512i)((emu_u32)(a) ^ (emu_u32)(b)))
#define _mm512_srli_epi16(a, n)            ((__m512i)((emu_u16)(a) >> (n)))
#define _mm512_srli_epi32(a, n)            ((__m512i)((emu_u32)(a) >> (n)))
#define _mm512_slli_epi32(a, n)            ((__m512i)((emu_u32)(a) << (n)))
#endif
