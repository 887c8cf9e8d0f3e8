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

void fl__quantize_token_ref(int8_t *codes, int32_t *x_sum, float *scale, int32_t *zero,
                            const float *x, const fl_quantize_token *spec)
{
    const float *premul = spec->premul;
    float top = 0, bottom = 0;
    int32_t sum = 0;
    for (int c = 0; c < spec->n_channels; c++) {
        const float v = premul ? x[c] * premul[c] : x[c];
        top = v > top ? v : top; /* a NaN is passed over */
        bottom = -v > bottom ? -v : bottom;
    }
    const fl_token_grid grid = fl__token_grid(spec, top, bottom);
    for (int c = 0; c < spec->n_channels; c++) {
        const int code = fl__token_code(&grid, premul ? x[c] * premul[c] : x[c]);
        codes[c] = (int8_t)code;
        sum += code;
    }
    for (int c = spec->n_channels; c < spec->ld; c++) codes[c] = 0;
    *x_sum = sum;
    *scale = grid.scale;
    *zero = grid.zero;
}
