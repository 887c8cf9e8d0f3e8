/* kv_codec_rows.h - the functions behind the rows of kv_codec.c, and what they share: the scale
 * and zero of a row whose maximum and minimum are known, and the way from codes, one per byte,
 * to the planes of a block and back.
 *
 * The loops over lanes are plain C: each file that includes them has the compiler make vectors
 * of its own instruction set of them.
 * SPDX-License-Identifier: MIT */
#ifndef FL_KERNELS_KV_CODEC_ROWS_H
#define FL_KERNELS_KV_CODEC_ROWS_H

#include "base/float16.h"
#include "kernels/kv_codec.h"

#include <math.h>
#include <stdbool.h>
#include <string.h>

fl_kv_quantize_fn fl__kv_quantize_ref, fl__kv_quantize_avx2, fl__kv_quantize_avx512;
fl_kv_expand_fn fl__kv_expand_ref, fl__kv_expand_avx2, fl__kv_expand_avx512;

static inline uint16_t *fl__kv_scales(void *block, fl_kv_side side, int D, int bits)
{
    return (uint16_t *)(void *)((uint8_t *)block + fl__kv_scale_at(side, D, bits));
}

static inline uint8_t *fl__kv_zeros(void *block, fl_kv_side side, int D, int bits)
{
    return (uint8_t *)block + fl__kv_zero_at(side, D, bits);
}

typedef struct fl_kv_grid {
    uint16_t scale; /* f16 */
    uint8_t zero;
    float inv;
} fl_kv_grid;

/* largest >= 0 and smallest <= 0 of the row, before clipping. */
static inline fl_kv_grid fl__kv_grid(float largest, float smallest, int bits, float c_max,
                                     float c_min)
{
    const float qmax = (float)((1 << bits) - 1);
    const float hi = c_max * largest, lo = c_min * smallest;
    fl_kv_grid g;
    g.scale = fl__f32_to_f16((hi - lo) / qmax);
    /* inf - inf of a row with both has no place among the numbers */
    if (g.scale == 0 || (g.scale & 0x7c00u) == 0x7c00u) g.scale = 0x3c00u;
    g.inv = 1.0f / fl__f16_to_f32(g.scale);
    const float zero = rintf(-lo * g.inv);
    g.zero = (uint8_t)(zero < qmax ? zero : qmax);
    return g;
}

/* Codes of a row with room for 32 more, which are 0. */
typedef struct fl_kv_codes {
    uint8_t code[FL_KV_MAX_D + 32];
} fl_kv_codes;

/* The mask of b bits in each byte of a word. */
static inline uint32_t fl__kv_mask(int b)
{
    return 0x01010101u * (uint32_t)((1 << b) - 1);
}

/* Bits [from, from + b) of a token's codes into a plane of keys. */
static inline void fl__kv_put_keys(uint32_t *plane, int t, const fl_kv_codes *c, int D,
                                   int from, int b)
{
    const int n_words = (int)fl__kv_words(FL_KV_KEYS, D, b);
    const uint8_t *code = c->code;
    for (int w = 0; w < n_words; w++) {
        uint32_t word = 0;
        for (int k = 0; k < 8 / b; k++, code += 4) {
            uint32_t four;
            memcpy(&four, code, sizeof four);
            word |= (four >> from & fl__kv_mask(b)) << b * k;
        }
        plane[w * FL_KV_PAGE + t] = word;
    }
}

/* The same for values: the token's bits of a word in each lane. */
static inline void fl__kv_put_values(uint32_t *plane, int t, const fl_kv_codes *c, int D,
                                     int from, int b)
{
    const int in_word = t % (32 / b), shift = in_word % 4 * 8 + in_word / 4 * b;
    const uint32_t mask = (1u << b) - 1;
    uint32_t *word = plane + t / (32 / b) * D;
    for (int d = 0; d < D; d++)
        word[d] = (word[d] & ~(mask << shift)) | (c->code[d] >> from & mask) << shift;
}

/* All of a token's row. codes: 0 from D on. */
static inline void fl__kv_put(void *block, fl_kv_side side, int t, const fl_kv_codes *c, int D,
                              int bits, const fl_kv_grid *g)
{
    uint32_t *const plane = block, *third = plane + fl__kv_third_at(side, D) / sizeof *third;
    const int first = bits == 3 ? 2 : bits;
    if (side == FL_KV_KEYS) {
        fl__kv_put_keys(plane, t, c, D, 0, first);
        if (bits == 3) fl__kv_put_keys(third, t, c, D, 2, 1);
    } else {
        fl__kv_put_values(plane, t, c, D, 0, first);
        if (bits == 3) fl__kv_put_values(third, t, c, D, 2, 1);
    }
    fl__kv_scales(block, side, D, bits)[t] = g->scale;
    fl__kv_zeros(block, side, D, bits)[t] = g->zero;
}

/* For loops that want `bits` as a constant. */
#define FL_KV_INLINE static inline __attribute__((always_inline))

/* Four terms of all lanes: four codes per word, to lanes [0, n) of out. */
FL_KV_INLINE void fl__kv_four(uint32_t *restrict out, const uint8_t *restrict block,
                              fl_kv_side side, int D, int bits, int term)
{
    const int n = fl__kv_lanes(side, D), b = bits == 3 ? 2 : bits;
    const int shift = term % (32 / b) / 4 * b, third_shift = term % 32 / 4;
    const uint32_t mask = fl__kv_mask(b);
    const uint32_t *const plane = (const uint32_t *)(const void *)block + term / (32 / b) * n;
    const uint32_t *const third =
        (const uint32_t *)(const void *)(block + fl__kv_third_at(side, D)) + term / 32 * n;
    if (bits == 3)
        for (int i = 0; i < n; i++)
            out[i] = (plane[i] >> shift & mask) | (third[i] >> third_shift & 0x01010101u) << 2;
    else
        for (int i = 0; i < n; i++) out[i] = plane[i] >> shift & mask;
}

/* The body of the rows' expand functions. */
static inline void fl__kv_expand(float *restrict out, const uint8_t *restrict block,
                                 fl_kv_side side, int D, int bits)
{
    const int n_terms = fl__kv_terms(side, D), n = fl__kv_lanes(side, D);
    const uint8_t *scales = block + fl__kv_scale_at(side, D, bits);
    const uint8_t *zeros = block + fl__kv_zero_at(side, D, bits);
    float scale[FL_KV_PAGE];
    int zero[FL_KV_PAGE];
    uint32_t four[FL_KV_MAX_D];
    for (int t = 0; t < FL_KV_PAGE; t++) {
        uint16_t h;
        memcpy(&h, scales + 2 * t, sizeof h);
        scale[t] = fl__f16_to_f32(h);
        zero[t] = zeros[t];
    }
    for (int term = 0; term < n_terms; term++, out += n) {
        const int shift = term % 4 * 8;
        if (shift == 0) fl__kv_four(four, block, side, D, bits, term);
        if (side == FL_KV_KEYS)
            for (int t = 0; t < FL_KV_PAGE; t++)
                out[t] = (float)((int)(four[t] >> shift & 0xffu) - zero[t]) * scale[t];
        else
            for (int d = 0; d < D; d++)
                out[d] =
                    (float)((int)(four[d] >> shift & 0xffu) - zero[term]) * scale[term];
    }
}

#endif
