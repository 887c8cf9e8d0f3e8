/* rowops.h - the small float32 ops between the GEMMs, one row or a run of elements at a time.
 *
 * Norms accumulate in double, as the models' float32 references agree with to 1e-6; RMSNorm in
 * 16 chains, element i in chain i % 16, added up in their order. Elementwise ops have one order
 * by nature. silu_mul has rows per instruction set (exp differs in the last
 * bits).
 * SPDX-License-Identifier: MIT */
#ifndef FL_KERNELS_ROWOPS_H
#define FL_KERNELS_ROWOPS_H

#include <stdint.h>

/* y = x / sqrt(mean(x^2) + eps) * gain                               (n elements) */
void fl__rms_norm(float *y, const float *x, const float *gain, int n, double eps);
/* y = (x - mean) / sqrt(var + eps) * gain + bias; gain, bias may be NULL (1, 0) */
void fl__layer_norm(float *y, const float *x, const float *gain, const float *bias, int n,
                    double eps);
/* Rotary embedding of one head in place, halves convention: (x[i], x[i + D/2]) rotated by angle
 * i with cos, sin [D/2]. */
void fl__rope_head(float *x, const float *cos, const float *sin, int D);

/* y[i] = x[i] / (1 + exp(-x[i])) * u[i]; y may be x. For |x| up to 1e6 within 2e-6 relative (or
 * 1e-30) of _ref. */
typedef void fl_silu_mul_fn(float *y, const float *x, const float *u, int n);
typedef struct fl_silu_mul_kernel {
    const char *name;
    uint32_t isa;
    fl_silu_mul_fn *run;
} fl_silu_mul_kernel;
extern const fl_silu_mul_kernel fl__silu_mul_kernels[];
extern const int fl__n_silu_mul_kernels;
const fl_silu_mul_kernel *fl__silu_mul_select(uint32_t isa);

#endif
