/* kv_codec_ref.c - the definition of the KV codec. SPDX-License-Identifier: MIT */
#include "kernels/kv_codec_rows.h"

static uint8_t code_of(float x, float inv, int zero, int qmax)
{
    const float u = rintf(x * inv) + (float)zero;
    if (!(u > 0)) return 0; /* NaN too */
    return (uint8_t)(u < (float)qmax ? (int)u : qmax);
}

void fl__kv_quantize_ref(void *block, fl_kv_side side, int t, const float *x, int D, int bits,
                         float c_max, float c_min)
{
    fl_kv_codes c = {{0}};
    float largest = 0, smallest = 0;
    for (int d = 0; d < D; d++) {
        largest = x[d] > largest ? x[d] : largest;
        smallest = x[d] < smallest ? x[d] : smallest;
    }
    const fl_kv_grid g = fl__kv_grid(largest, smallest, bits, c_max, c_min);
    for (int d = 0; d < D; d++) c.code[d] = code_of(x[d], g.inv, g.zero, (1 << bits) - 1);
    fl__kv_put(block, side, t, &c, D, bits, &g);
}

void fl__kv_expand_ref(float *out, const void *block, fl_kv_side side, int D, int bits)
{
    fl__kv_expand(out, block, side, D, bits);
}
