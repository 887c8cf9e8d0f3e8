/* train_rope.h - rotary embedding over rows of heads, in place, and its gradient.
 *
 * x [R, n_heads, D], row r at position r % T; cos, sin [T, D/2]. Halves convention, as
 * fl__rope_head (kernels/rowops.h). The gradient turns back: the rotation is orthogonal.
 * SPDX-License-Identifier: MIT */
#ifndef FL_TRAIN_TRAIN_ROPE_H
#define FL_TRAIN_TRAIN_ROPE_H

#include "base/exec.h"

void fl__rope_rows(const fl_exec *ex, float *x, const float *cos, const float *sin, int R,
                   int T, int n_heads, int D);
/* dx in place. */
void fl__rope_grad_rows(const fl_exec *ex, float *dx, const float *cos, const float *sin, int R,
                        int T, int n_heads, int D);

#endif
