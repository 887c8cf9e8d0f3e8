/* transform_codes.h - from a row's range to its codes, without division and without clamps.
 * SPDX-License-Identifier: MIT */
#ifndef FL_CUDA_TRANSFORM_CODES_H
#define FL_CUDA_TRANSFORM_CODES_H

#include "cuda/activation.h"

/* What does not depend on the row. q: steps of the scale, levels: hi - lo of the codes. */
typedef struct code_grid {
    float clip_max, clip_min, q, inv_q, levels, inv_levels, lo, base;
    bool asymmetric;
} code_grid;

static inline code_grid make_code_grid(const fl_cuda_grid *s)
{
    const int q_top = (1 << s->bits) - 1, q_max = q_top / 2;
    const bool clips = s->clip_max != 1.0f || s->clip_min != 1.0f;
    const int q = s->asymmetric ? q_top : q_max, lo = clips ? -q_max - 1 : -q_max;
    const int levels = s->asymmetric ? q_top : q_max - lo;
    const int first = s->asymmetric ? (s->bits == 8 ? -128 : 0) : lo;
    return {s->clip_max,   s->clip_min,          (float)q,  1.0f / (float)q,
            (float)levels, 1.0f / (float)levels, (float)lo, 12582912.0f + (float)first,
            s->asymmetric};
}

/* How the row becomes codes: byte of sat(v * factor + offset) * levels + base, where base has
 * 1.5 * 2^23, which puts the units in the last bit. A NaN becomes the lowest code. */
typedef struct row_codes {
    float scale, factor, offset;
    int zero;
} row_codes;

/* Both ends of a row's range, in one pass over the bits: as signed integers positive values
 * are in order and above all negative ones, as unsigned integers it is the other way round. */
DEV uint2 wider(uint2 range, uint32_t a, uint32_t b)
{
    return make_uint2((uint32_t)__vimax3_s32((int)range.x, (int)a, (int)b),
                      __vimax3_u32(range.y, a, b));
}

/* scale = range / q and 1 / scale to the last bit or nearly so, without division. */
DEV row_codes make_row_codes(const code_grid *w, uint2 range)
{
    const float top = __uint_as_float(range.x) * w->clip_max;
    const float bottom = range.y >> 31 ? -__uint_as_float(range.y) * w->clip_min : 0.0f;
    const float width = w->asymmetric ? top + bottom : fmaxf(top, bottom);
    const float near = width * w->inv_q;
    row_codes c;
    float inverse;
    c.scale = fmaf(fmaf(-near, w->q, width), w->inv_q, near);
    if (!(c.scale >= FLT_MIN)) c.scale = 1.0f;
    asm("rcp.approx.f32 %0, %1;" : "=f"(inverse) : "f"(c.scale));
    inverse = fmaf(fmaf(-c.scale, inverse, 1.0f), inverse, inverse);
    c.factor = inverse * w->inv_levels;
    c.offset = -w->lo * w->inv_levels;
    c.zero = 0;
    if (!w->asymmetric) return c;
    const float z = fminf(fmaxf(rintf(bottom * inverse), 0.0f), w->q);
    c.offset = z * w->inv_levels;
    c.zero = (int)z - (w->q == 255.0f ? 128 : 0);
    return c;
}

DEV uint32_t code_bits(const code_grid *w, const row_codes *c, float v)
{
    return __float_as_uint(
        fmaf(__saturatef(fmaf(v, c->factor, c->offset)), w->levels, w->base));
}

#endif
