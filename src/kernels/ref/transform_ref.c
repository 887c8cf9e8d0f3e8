/* transform_ref.c - the transform of one row in plain C. SPDX-License-Identifier: MIT */
#include "base/float16.h"
#include "kernels/transform_rows.h"

#include <math.h>
#include <string.h>

static float to_bf16(float x)
{
    return fl__bf16_to_f32(fl__f32_to_bf16(x));
}

void fl__transform_ref(float *y, const float *x, const fl_transform *t, const float *premul,
                       void *scratch)
{
    const int n1 = t->n1, n2 = t->n2, n = n1 * n2;
    float *u = scratch, *product = u + n; /* [n1, n2] each */
    for (int c = 0; c < n; c++) u[c] = to_bf16(premul ? x[c] * premul[c] : x[c]);
    if (t->right) {
        for (int i = 0; i < n1; i++)
            for (int j = 0; j < n2; j++) {
                float sum = 0;
                for (int k = 0; k < n2; k++)
                    sum = fmaf(u[i * n2 + k], t->right[k * n2 + j], sum);
                product[i * n2 + j] = t->left ? to_bf16(sum) : sum;
            }
        u = product;
    }
    if (!t->left) {
        memcpy(y, u, (size_t)n * sizeof *y);
        return;
    }
    for (int a = 0; a < n1; a++)
        for (int j = 0; j < n2; j++) {
            float sum = 0;
            for (int i = 0; i < n1; i++) sum = fmaf(t->left[i * n1 + a], u[i * n2 + j], sum);
            y[a * n2 + j] = sum;
        }
}
