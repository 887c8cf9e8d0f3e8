/* weight_scale.h - scales of integer weights, and rounding to nearest.
 *
 * A row's scale is max|w| / qmax, or the one on a grid of shrunk maxima that minimises sum_k
 * h[k] * (w[k] - scale * q[k])^2, with h the mean square of input k: the output error, were the
 * inputs uncorrelated.
 * SPDX-License-Identifier: MIT */
#ifndef FL_QUANT_WEIGHT_SCALE_H
#define FL_QUANT_WEIGHT_SCALE_H

#include "base/exec.h"
#include "base/status.h"

struct fl_weight_split;

/* Integer weights are symmetric: -qmax..qmax, qmax = 2^(bits-1) - 1; 4-bit rows may also use
 * -8. */
static inline int fl__weight_qmax(int bits)
{
    return (1 << (bits - 1)) - 1;
}

static inline int fl__weight_qmin(int bits)
{
    return bits == 8 ? -127 : -(1 << (bits - 1)); /* -128 is not a code, kernels/layout.h */
}

/* scale[N] (or scale[1] when per_tensor) for w [N, K]. search: on the grid, with h [K] or NULL:
 * all ones; else plain max|w| / qmax. 1 for rows of zeros, or of nothing above 1e-36. */
void fl__weight_scale_find(const fl_exec *ex, float *scale, const float *w, int N, int K,
                           int bits, bool per_tensor, bool search, const float *h);
/* codes [N, K] = nearest; returns sum_n sum_k h[k] * (w - scale q)^2 (h NULL: all ones). */
double fl__weight_round(const fl_exec *ex, int8_t *codes, const float *w, const float *scale,
                        int scale_stride, int N, int K, int bits, const float *h);

/* The same for weights with columns in digits (quant/weight_split.h; split NULL: none): a row's
 * maximum is that of |w| / digits; codes [N, split->ld]. */
void fl__weight_scale_find_split(const fl_exec *ex, float *scale, const float *w,
                                 const struct fl_weight_split *split, int N, int K, int bits,
                                 bool per_tensor, bool search, const float *h);
double fl__weight_round_split(const fl_exec *ex, int8_t *codes, const float *w,
                              const struct fl_weight_split *split, const float *scale,
                              int scale_stride, int N, int K, int bits, const float *h);

#endif
