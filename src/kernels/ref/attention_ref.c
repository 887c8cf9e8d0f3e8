/* attention_ref.c - the definition of the attention page op. SPDX-License-Identifier: MIT */
#include "kernels/attention.h"

#include <math.h>

void fl__attention_page_ref(float *o, float *m, float *l, const float *q, int64_t q_stride,
                            int n_q, int n_keys, const float *k_t, const float *v, int D,
                            float scale);

static void one_row(float *o, float *m, float *l, const float *q, int n, const float *k_t,
                    const float *v, int D, float scale)
{
    float s[FL_ATTENTION_KEYS], top = *m;
    for (int t = 0; t < n; t++) {
        float sum = 0;
        for (int d = 0; d < D; d++) sum += q[d] * k_t[d * FL_ATTENTION_KEYS + t];
        s[t] = sum * scale;
        if (s[t] > top) top = s[t];
    }
    const float c = expf(*m - top);
    float sum = 0;
    for (int d = 0; d < D; d++) o[d] *= c;
    for (int t = 0; t < n; t++) {
        const float p = expf(s[t] - top);
        sum += p;
        for (int d = 0; d < D; d++) o[d] += p * v[t * D + d];
    }
    *l = *l * c + sum;
    *m = top;
}

void fl__attention_page_ref(float *o, float *m, float *l, const float *q, int64_t q_stride,
                            int n_q, int n_keys, const float *k_t, const float *v, int D,
                            float scale)
{
    for (int r = 0; r < n_q; r++) {
        const int n = n_keys + r < FL_ATTENTION_KEYS ? n_keys + r : FL_ATTENTION_KEYS;
        if (n > 0)
            one_row(o + (int64_t)r * D, m + r, l + r, q + r * q_stride, n, k_t, v, D, scale);
    }
}
