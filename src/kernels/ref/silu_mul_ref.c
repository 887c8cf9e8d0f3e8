/* silu_mul_ref.c - the definition. SPDX-License-Identifier: MIT */
#include "kernels/rowops.h"

#include <math.h>

fl_silu_mul_fn fl__silu_mul_ref;

void fl__silu_mul_ref(float *y, const float *x, const float *u, int n)
{
    for (int i = 0; i < n; i++) y[i] = x[i] / (1.0f + expf(-x[i])) * u[i];
}
