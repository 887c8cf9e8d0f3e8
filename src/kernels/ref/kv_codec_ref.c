/* kv_codec_ref.c - the definition of the KV codec. SPDX-License-Identifier: MIT */
#include "kernels/kv_codec_rows.h"

#include <string.h>

static int code_of(float x, float inv, int zero, int qmax)
{
    const float u = rintf(x * inv) + (float)zero;
    if (!(u > 0)) return 0; /* NaN too */
    return u < (float)qmax ? (int)u : qmax;
}

/* Code d of a row: its bits may lie in two bytes. */
static void put_code(uint8_t *row, int d, int bits, int code)
{
    const int at = d * bits, shift = at % 8;
    row[at / 8] |= (uint8_t)(code << shift);
    if (shift + bits > 8) row[at / 8 + 1] |= (uint8_t)(code >> (8 - shift));
}

static int get_code(const uint8_t *row, int d, int bits)
{
    const int at = d * bits, shift = at % 8;
    int word = row[at / 8] >> shift;
    if (shift + bits > 8) word |= row[at / 8 + 1] << (8 - shift);
    return word & ((1 << bits) - 1);
}

void fl__kv_quantize_ref(void *block, int t, const float *x, int D, int bits, float c_max,
                         float c_min)
{
    const size_t row_bytes = fl__kv_row_bytes(D, bits);
    uint8_t *row = (uint8_t *)block + (size_t)t * row_bytes;
    float largest = 0, smallest = 0;
    for (int d = 0; d < D; d++) {
        largest = x[d] > largest ? x[d] : largest;
        smallest = x[d] < smallest ? x[d] : smallest;
    }
    const fl_kv_grid g = fl__kv_grid(largest, smallest, bits, c_max, c_min);
    fl__kv_scales(block, D, bits)[t] = g.scale;
    fl__kv_zeros(block, D, bits)[t] = g.zero;
    memset(row, 0, row_bytes);
    for (int d = 0; d < D; d++)
        put_code(row, d, bits, code_of(x[d], g.inv, g.zero, (1 << bits) - 1));
}

static float value(const uint8_t *block, int t, int d, int D, int bits)
{
    const uint8_t *row = block + (size_t)t * fl__kv_row_bytes(D, bits);
    const uint8_t zero = block[fl__kv_zero_at(D, bits) + (size_t)t];
    uint16_t scale;
    memcpy(&scale, block + fl__kv_scale_at(D, bits) + (size_t)t * sizeof scale, sizeof scale);
    return (float)(get_code(row, d, bits) - zero) * fl__f16_to_f32(scale);
}

void fl__kv_expand_k_ref(float *out, const void *block, int D, int bits)
{
    for (int d = 0; d < D; d++)
        for (int t = 0; t < FL_KV_PAGE; t++)
            out[d * FL_KV_PAGE + t] = value(block, t, d, D, bits);
}

void fl__kv_expand_v_ref(float *out, const void *block, int D, int bits)
{
    for (int t = 0; t < FL_KV_PAGE; t++)
        for (int d = 0; d < D; d++) out[t * D + d] = value(block, t, d, D, bits);
}
