/* train_activation.h - activations, element by element, and their gradients.
 *
 * All arrays n float32; any output may be any input of the call that stands at the same place
 * (dgate = gate, dup = dy, y = x, ..).
 * SPDX-License-Identifier: MIT */
#ifndef FL_TRAIN_TRAIN_ACTIVATION_H
#define FL_TRAIN_TRAIN_ACTIVATION_H

#include "base/exec.h"

/* y = silu(gate) up, silu(x) = x / (1 + exp(-x)) */
void fl__silu_mul_forward(const fl_exec *ex, float *y, const float *gate, const float *up,
                          int64_t n);
void fl__silu_mul_grad(const fl_exec *ex, float *dgate, float *dup, const float *dy,
                       const float *gate, const float *up, int64_t n);

/* y = max(x, 0); dx = dy where x > 0, else 0 (y in place of x gives the same). */
void fl__relu_forward(const fl_exec *ex, float *y, const float *x, int64_t n);
void fl__relu_grad(const fl_exec *ex, float *dx, const float *dy, const float *x, int64_t n);

/* y = a + b: the residual, and where gradients of two branches meet. */
void fl__add_forward(const fl_exec *ex, float *y, const float *a, const float *b, int64_t n);

#endif
