/* fake_quant_rows.h - the loops over one row behind fake_quant.c, one table row per instruction
 * set. SPDX-License-Identifier: MIT */
#ifndef FL_TRAIN_FAKE_QUANT_ROWS_H
#define FL_TRAIN_FAKE_QUANT_ROWS_H

#include <stdint.h>

/* How a row is quantised once its scale is known: v = clamp(x, clip_lo, clip_hi), u = v * inv,
 * r = rne(clamp(u, lo, hi)) with whole bounds (the same as rounding first), x^ = r * scale, and
 * the code that is stored r + offset. */
typedef struct fl_row_quant {
    float clip_lo, clip_hi, scale, inv, lo, hi, offset;
} fl_row_quant;

/* Sums over a row of g = d x^: what a change of the scale, of the zero point, and of either
 * bound of v does. */
typedef struct fl_row_sums {
    double scale;        /* g * (r - u), g * r where u is clamped */
    double outside;      /* g where u is clamped */
    double above, below; /* g where x > clip_hi, x < clip_lo */
} fl_row_sums;

typedef struct fl_fake_quant_kernel {
    const char *name;
    uint32_t isa;
    /* *most = max(x, 0), *least = min(x, 0) over the row */
    void (*extremes)(float *most, float *least, const float *x, int n);
    /* first i with x[i] == value; n where there is none */
    int (*find)(const float *x, int n, float value);
    /* x_hat or codes NULL: not wanted */
    void (*quantise)(float *x_hat, int8_t *codes, const float *x, int n, const fl_row_quant *q);
    /* dx[i] = g[i] where nothing clamps, else 0 */
    fl_row_sums (*grad)(float *dx, const float *g, const float *x, int n,
                        const fl_row_quant *q);
} fl_fake_quant_kernel;

extern const fl_fake_quant_kernel fl__fake_quant_avx512, fl__fake_quant_avx2,
    fl__fake_quant_ref;

#endif
