/* dot_ref.c - the definition: a plain sum in rising k. SPDX-License-Identifier: MIT */
#include "base/float16.h"
#include "kernels/dot.h"

float fl__dot_f32_ref(const float *x, const float *w, int n);
float fl__dot_bf16_ref(const float *x, const uint16_t *w, int n);
float fl__dot_f16_ref(const float *x, const uint16_t *w, int n);

float fl__dot_f32_ref(const float *x, const float *w, int n)
{
    float sum = 0;
    for (int k = 0; k < n; k++) sum += x[k] * w[k];
    return sum;
}

float fl__dot_bf16_ref(const float *x, const uint16_t *w, int n)
{
    float sum = 0;
    for (int k = 0; k < n; k++) sum += x[k] * fl__bf16_to_f32(w[k]);
    return sum;
}

float fl__dot_f16_ref(const float *x, const uint16_t *w, int n)
{
    float sum = 0;
    for (int k = 0; k < n; k++) sum += x[k] * fl__f16_to_f32(w[k]);
    return sum;
}
