/* kv_codec_rows.h - the functions behind the rows of kv_codec.c, and what they share: the scale
 * and zero of a row whose maximum and minimum are known.
 * SPDX-License-Identifier: MIT */
#ifndef FL_KERNELS_KV_CODEC_ROWS_H
#define FL_KERNELS_KV_CODEC_ROWS_H

#include "base/float16.h"
#include "kernels/kv_codec.h"

#include <math.h>

fl_kv_quantize_fn fl__kv_quantize_ref, fl__kv_quantize_avx2, fl__kv_quantize_avx512;
fl_kv_expand_fn fl__kv_expand_k_ref, fl__kv_expand_k_avx2, fl__kv_expand_k_avx512;
fl_kv_expand_fn fl__kv_expand_v_ref, fl__kv_expand_v_avx2, fl__kv_expand_v_avx512;

static inline uint16_t *fl__kv_scales(void *block, int D, int bits)
{
    return (uint16_t *)(void *)((uint8_t *)block + fl__kv_scale_at(D, bits));
}

static inline uint8_t *fl__kv_zeros(void *block, int D, int bits)
{
    return (uint8_t *)block + fl__kv_zero_at(D, bits);
}

typedef struct fl_kv_grid {
    uint16_t scale; /* f16 */
    uint8_t zero;
    float inv;
} fl_kv_grid;

/* largest >= 0 and smallest <= 0 of the row, before clipping. */
static inline fl_kv_grid fl__kv_grid(float largest, float smallest, int bits, float c_max,
                                     float c_min)
{
    const float qmax = (float)((1 << bits) - 1);
    const float hi = c_max * largest, lo = c_min * smallest;
    fl_kv_grid g;
    g.scale = fl__f32_to_f16((hi - lo) / qmax);
    /* inf - inf of a row with both has no place among the numbers */
    if (g.scale == 0 || (g.scale & 0x7c00u) == 0x7c00u) g.scale = 0x3c00u;
    g.inv = 1.0f / fl__f16_to_f32(g.scale);
    const float zero = rintf(-lo * g.inv);
    g.zero = (uint8_t)(zero < qmax ? zero : qmax);
    return g;
}

#endif
