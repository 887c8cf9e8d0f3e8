/* quantize_rows.h - the functions behind the rows of quantize.c; what one code is.
 *
 * The inline functions are the definition: ref/quantize_ref.c is loops over them, and the
 * vector kernels use them for the few channels that fill no vector.
 * SPDX-License-Identifier: MIT */
#ifndef FL_KERNELS_QUANTIZE_ROWS_H
#define FL_KERNELS_QUANTIZE_ROWS_H

#include "kernels/quantize.h"

#include <float.h>
#include <math.h>

fl_quantize_static_fn fl__quantize_static_ref, fl__quantize_static_avx2,
    fl__quantize_static_avx512;
fl_quantize_token_fn fl__quantize_token_ref, fl__quantize_token_avx2, fl__quantize_token_avx512;

/* q[c]; NaN gives lo. */
static inline int fl__static_code(const fl_quantize_static *s, const float *x, int c)
{
    const float v = s->premul ? x[c] * s->premul[c] : x[c];
    float t = rintf(v * s->inv_scale);
    t = t > s->lo[c] ? t : s->lo[c];
    t = t < s->hi[c] ? t : s->hi[c];
    return (int)t;
}

static inline int fl__first_digit(const fl_quantize_static *s, int q)
{
    return FL_MIN(FL_MAX(q, s->first_lo), s->first_hi) + s->zero;
}

/* Digit of q with off already spent by lower digits. */
static inline int fl__extra_digit(const fl_quantize_static *s, int q, int off)
{
    const int left = FL_MIN(FL_MAX((q < 0 ? -q : q) - off, 0), s->cap);
    return (q < 0 ? -left : left) + s->zero;
}

/* How the values of one row become codes: clamp(rne(v * inv_scale), lo, hi) + zero. */
typedef struct fl_token_grid {
    float scale, inv_scale;
    float lo, hi; /* whole; NaN gives lo */
    int zero;
} fl_token_grid;

/* top: largest of v and 0, bottom: largest of -v and 0 (both before clipping). */
static inline fl_token_grid fl__token_grid(const fl_quantize_token *s, float top, float bottom)
{
    const int q_top = (1 << s->bits) - 1, q_max = q_top / 2;
    const bool clips = s->clip_max != 1.0f || s->clip_min != 1.0f;
    fl_token_grid g = {.hi = (float)q_max, .lo = (float)-(clips ? q_max + 1 : q_max)};
    top *= s->clip_max;
    bottom *= s->clip_min;
    if (s->asymmetric)
        g.scale = (top + bottom) / (float)q_top;
    else
        g.scale = (top > bottom ? top : bottom) / (float)q_max;
    if (!(g.scale >= FLT_MIN)) g.scale = 1.0f;
    g.inv_scale = 1.0f / g.scale;
    if (!s->asymmetric) return g;
    float z = rintf(bottom * g.inv_scale); /* NaN where the range is infinite */
    z = z > 0.0f ? z : 0.0f;
    z = z < (float)q_top ? z : (float)q_top;
    g.lo = -z;
    g.hi = (float)q_top - z;
    g.zero = (int)z - (s->bits == 8 ? 128 : 0);
    return g;
}

static inline int fl__token_code(const fl_token_grid *g, float v)
{
    float t = rintf(v * g->inv_scale);
    t = t > g->lo ? t : g->lo;
    t = t < g->hi ? t : g->hi;
    return (int)t + g->zero;
}

#endif
