/* train_norm.h - RMS and layer norm over rows, and their gradients.
 *
 * x, y, dx, dy [R, n] dense; gain, bias [n], never NULL (a norm without them: ones, zeros).
 * Forward keeps what backward needs: inv_rms, mean, inv_std [R]. Row by row, so no result
 * depends on threads; the sums over rows of dgain and dbias [n] run in row order, NULL: not
 * wanted (dgain NULL needs dbias NULL). dx may be dy. The forward pass must not overwrite x, as
 * the gradient reads it.
 * SPDX-License-Identifier: MIT */
#ifndef FL_TRAIN_TRAIN_NORM_H
#define FL_TRAIN_TRAIN_NORM_H

#include "base/exec.h"

/* y = x inv_rms gain, inv_rms = 1 / sqrt(mean(x^2) + eps) */
void fl__rms_norm_rows(const fl_exec *ex, float *y, float *inv_rms, const float *x,
                       const float *gain, int R, int n, double eps);
void fl__rms_norm_grad(const fl_exec *ex, float *dx, float *dgain, const float *dy,
                       const float *x, const float *gain, const float *inv_rms, int R, int n);

/* y = (x - mean) inv_std gain + bias, inv_std = 1 / sqrt(var + eps) */
void fl__layer_norm_rows(const fl_exec *ex, float *y, float *mean, float *inv_std,
                         const float *x, const float *gain, const float *bias, int R, int n,
                         double eps);
void fl__layer_norm_grad(const fl_exec *ex, float *dx, float *dgain, float *dbias,
                         const float *dy, const float *x, const float *gain, const float *mean,
                         const float *inv_std, int R, int n);

#endif
