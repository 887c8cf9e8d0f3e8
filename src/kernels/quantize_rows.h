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

/* Scale of a row whose largest magnitude is absmax: 1 where it would be no normal number. */
static inline float fl__token_scale(float absmax, int qmax)
{
    const float scale = absmax / (float)qmax;
    return scale >= FLT_MIN ? scale : 1.0f;
}

static inline int fl__token_code(float v, float inv_scale, int qmax)
{
    const float t = rintf(v * inv_scale), hi = (float)qmax;
    if (!(t > -hi)) return -qmax;
    return t < hi ? (int)t : qmax;
}

#endif
