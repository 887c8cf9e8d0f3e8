/* fake_quant.h - quantise and take back in float32, with the gradients of it: rows of tokens,
 * rows of the KV cache, weights.
 *
 * The integer codes are those of the run-time kernels: the same float32 operations in the same
 * order, rounding (rne) to nearest even. With qmax = 2^(bits-1) - 1, qmin = -qmax - 1, over a
 * row x of n:
 *
 *   symmetric    s = max(c_max * max(x, 0), c_min * max(-x, 0)) / qmax
 *                code = clamp(rne(x * (1/s)), qmin, qmax)           x^ = code * s
 *   asymmetric   hi = c_max * max(x, 0), lo = c_min * min(x, 0), s = (hi - lo) / (2^bits - 1)
 *                zero = clamp(rne(-lo * (1/s)), 0, 2^bits - 1)
 *                code = clamp(rne(x * (1/s)) + zero, 0, 2^bits - 1)  x^ = (code - zero) * s
 *   weight       hi = c_max * max(w, 0), lo = c_min * min(w, 0), s = max(hi, -lo, 1e-5) / qmax
 *                code = clamp(rne(clamp(w, lo, hi) * (1/s)), qmin, qmax)      w^ = code * s
 *
 * A row's scale that is below the smallest normal number or not finite is 1 instead; so is the
 * scale of a weight row of zeros. With f16_scale the scale is rounded to float16 before
 * anything else uses it (0 or not finite: 1). A NaN is passed over by max and min, its code is
 * the lowest.
 *
 * Gradients are those of automatic differentiation with rounding taken for the identity
 * (straight-through), that of the scale and of the zero point included: a clamp passes nothing
 * to x outside its bounds, but there x^ moves with the scale (and zero); these move with the
 * clip factors and with the row's largest and smallest element (the first one of equals). A
 * scale that was replaced by 1 is constant.
 * SPDX-License-Identifier: MIT */
#ifndef FL_TRAIN_FAKE_QUANT_H
#define FL_TRAIN_FAKE_QUANT_H

#include "base/exec.h"

#include <stdbool.h>
#include <stddef.h>

typedef struct fl_fake_quant {
    int bits;        /* 2..8; 16 and more: no quantisation, the functions copy */
    bool asymmetric; /* else symmetric */
    bool f16_scale;  /* as the KV cache stores it */
    float clip_max;  /* c_max, c_min in (0, 1] */
    float clip_min;
} fl_fake_quant;

/* x [R, n] -> x_hat [R, n] (may be x), codes int8 [R, n] (those of 8 asymmetric bits minus 128;
 * not written without quantisation), scale [R], zero [R] (a whole number, not shifted; 0 when
 * symmetric). Each may be NULL: not wanted. */
void fl__fake_quant_rows(const fl_exec *ex, const fl_fake_quant *q, float *x_hat, int8_t *codes,
                         float *scale, float *zero, const float *x, int64_t R, int n);

/* dx [R, n] (may be dx_hat) and dclip = {d c_max, d c_min}, summed over rows, from dx_hat [R,
 * n] and the x of the forward pass. */
void fl__fake_quant_rows_grad(const fl_exec *ex, const fl_fake_quant *q, float *dx,
                              double dclip[2], const float *dx_hat, const float *x, int64_t R,
                              int n);

/* w [N, K] -> w_hat [N, K] (may be w), codes int8 [N, K], scale [N], each NULL: not wanted.
 * clip_max, clip_min [N] in (0, 1], or both NULL: 1. */
void fl__fake_quant_weight(const fl_exec *ex, int bits, float *w_hat, int8_t *codes,
                           float *scale, const float *w, const float *clip_max,
                           const float *clip_min, int N, int K);

/* dw [N, K] (may be dw_hat), dclip_max, dclip_min [N] (NULL: not wanted). */
void fl__fake_quant_weight_grad(const fl_exec *ex, int bits, float *dw, float *dclip_max,
                                float *dclip_min, const float *dw_hat, const float *w,
                                const float *clip_max, const float *clip_min, int N, int K);

/* Clip factors are sigmoids of free parameters: clip = 1 / (1 + exp(-raw)), and d raw from d
 * clip. In double, n small. */
void fl__clip_from_raw(float *clip, const float *raw, size_t n);
void fl__clip_grad(float *draw, const float *dclip, const float *clip, size_t n);

#endif
