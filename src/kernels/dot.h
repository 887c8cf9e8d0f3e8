/* dot.h - one row of x against one row of float weights: the float path's decode op.
 *
 * dot = sum_k x[k] * w[k] in float32, w in F32, BF16 or F16. Order of the sum is the row's own
 * (32 partial sums in AVX2), fixed for a given n; within n * 2^-23 * sum|x w| of the exact sum.
 * SPDX-License-Identifier: MIT */
#ifndef FL_KERNELS_DOT_H
#define FL_KERNELS_DOT_H

#include <stdint.h>

typedef struct fl_dot_kernel {
    const char *name;
    uint32_t isa;
    float (*f32)(const float *x, const float *w, int n);
    float (*bf16)(const float *x, const uint16_t *w, int n);
    float (*f16)(const float *x, const uint16_t *w, int n);
} fl_dot_kernel;

extern const fl_dot_kernel fl__dot_kernels[];
extern const int fl__n_dot_kernels;
const fl_dot_kernel *fl__dot_select(uint32_t isa);

#endif
