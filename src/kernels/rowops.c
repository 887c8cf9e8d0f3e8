/* rowops.c - norms, rotary embedding, and the table of silu_mul.
 * SPDX-License-Identifier: MIT */
#include "kernels/rowops.h"

#include "base/isa.h"
#include "base/status.h"

#include <math.h>

fl_silu_mul_fn fl__silu_mul_ref, fl__silu_mul_avx2, fl__silu_mul_avx512;

const fl_silu_mul_kernel fl__silu_mul_kernels[] = {
    {"silu_mul_avx512", FL_ISA_AVX2 | FL_ISA_AVX512, fl__silu_mul_avx512},
    {"silu_mul_avx2", FL_ISA_AVX2, fl__silu_mul_avx2},
    {"silu_mul_ref", 0, fl__silu_mul_ref},
};
const int fl__n_silu_mul_kernels = (int)FL_COUNT(fl__silu_mul_kernels);

const fl_silu_mul_kernel *fl__silu_mul_select(uint32_t isa)
{
    const fl_silu_mul_kernel *k = fl__silu_mul_kernels;
    while ((k->isa & ~isa) != 0) k++;
    return k;
}

/* Chains of a sum: enough to hide the latency of an addition, whatever vectors a compiler makes
 * of them. */
enum { CHAINS = 16 };

void fl__rms_norm(float *y, const float *x, const float *gain, int n, double eps)
{
    double chain[CHAINS] = {0}, sum = 0;
    int i = 0;
    for (; i + CHAINS <= n; i += CHAINS) {
        __builtin_prefetch(x + i + n); /* most often the next row */
        for (int k = 0; k < CHAINS; k++) chain[k] += (double)x[i + k] * x[i + k];
    }
    for (int k = 0; i + k < n; k++) chain[k] += (double)x[i + k] * x[i + k];
    for (int k = 0; k < CHAINS; k++) sum += chain[k];
    const float r = (float)(1.0 / sqrt(sum / n + eps));
    for (i = 0; i < n; i++) y[i] = x[i] * r * gain[i];
}

void fl__layer_norm(float *y, const float *x, const float *gain, const float *bias, int n,
                    double eps)
{
    double sum = 0, square = 0;
    for (int i = 0; i < n; i++) sum += x[i];
    const double mean = sum / n;
    for (int i = 0; i < n; i++) square += ((double)x[i] - mean) * ((double)x[i] - mean);
    const double r = 1.0 / sqrt(square / n + eps);
    for (int i = 0; i < n; i++) {
        const float z = (float)(((double)x[i] - mean) * r);
        y[i] = (gain ? z * gain[i] : z) + (bias ? bias[i] : 0.0f);
    }
}

void fl__rope_head(float *x, const float *cos, const float *sin, int D)
{
    const int half = D / 2;
    for (int i = 0; i < half; i++) {
        const float a = x[i], b = x[i + half];
        x[i] = a * cos[i] - b * sin[i];
        x[i + half] = b * cos[i] + a * sin[i];
    }
}
