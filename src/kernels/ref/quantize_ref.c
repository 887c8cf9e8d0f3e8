/* quantize_ref.c - quantisation of one row in plain C. SPDX-License-Identifier: MIT */
#include "kernels/quantize_rows.h"

void fl__quantize_static_ref(int8_t *codes, int32_t *x_sum, const float *x,
                             const fl_quantize_static *spec)
{
    int p = 0;
    int32_t sum = 0;
    for (; p < spec->n_channels; p++) {
        const int code = fl__first_digit(spec, fl__static_code(spec, x, p));
        codes[p] = (int8_t)code;
        sum += code;
    }
    for (int e = 0; e < spec->n_extra; e++, p++) {
        const int q = fl__static_code(spec, x, spec->extra_src[e]);
        const int code = fl__extra_digit(spec, q, spec->extra_off[e]);
        codes[p] = (int8_t)code;
        sum += code;
    }
    for (; p < spec->ld; p++) codes[p] = 0;
    *x_sum = sum;
}

void fl__quantize_token_ref(int8_t *codes, int32_t *x_sum, float *scale, const float *x,
                            const float *premul, int n_channels, int ld, int qmax)
{
    float absmax = 0;
    int32_t sum = 0;
    for (int c = 0; c < n_channels; c++) {
        const float size = fabsf(premul ? x[c] * premul[c] : x[c]);
        absmax = size > absmax ? size : absmax; /* a NaN is passed over */
    }
    *scale = fl__token_scale(absmax, qmax);
    const float inv_scale = 1.0f / *scale;
    for (int c = 0; c < n_channels; c++) {
        const int code = fl__token_code(premul ? x[c] * premul[c] : x[c], inv_scale, qmax);
        codes[c] = (int8_t)code;
        sum += code;
    }
    for (int c = n_channels; c < ld; c++) codes[c] = 0;
    *x_sum = sum;
}
