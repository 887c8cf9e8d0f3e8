/* tune_static.h - activations on one fixed scale per tensor, taken back to floats, with the
 * gradient.
 *
 *   q = clamp(rne(x / scale), lo, hi) per channel (kernels/quantize.h),  x_hat = scale q
 * Straight-through: dx = d x_hat where q is not clamped, else 0. The digits of a flattened
 * channel add up to q.
 * SPDX-License-Identifier: MIT */
#ifndef FL_QUANT_TUNE_STATIC_H
#define FL_QUANT_TUNE_STATIC_H

#include "model/linear.h"

/* x, x_hat [R, n_in]; premul and transform of the site are applied to x already. */
void fl__tune_static_rows(const fl_exec *ex, const fl_site *site, float *x_hat, const float *x,
                          int R);
/* dx may be dx_hat. */
void fl__tune_static_grad(const fl_exec *ex, const fl_site *site, float *dx,
                          const float *dx_hat, const float *x, int R);

#endif
