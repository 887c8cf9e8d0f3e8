/* quantize.h - float activations to integer codes: per tensor (static), per token, flattened.
 *
 * Rounding is to nearest even everywhere. Static codes of channel c of one row x, with two
 * roundings in t where premul is given:
 *
 *   t       = rne(x[c] * premul[c] * inv_scale)
 *   q[c]    = clamp(t, lo[c], hi[c])  as: t > lo ? t : lo, then t < hi ? t : hi; NaN gives lo
 *   code[c] = clamp(q[c], first_lo, first_hi) + zero             (first digit)
 *
 * Flattening (FlattenQuant, arXiv 2402.17985; digits as in docs/flattenquant.md): q[c] may
 * reach k_c * qmax; digit i = sign(q) * clamp(|q| - (i-1) * cap, 0, cap), whose sum over i =
 * 1..k_c is q. Output position p < n_channels holds digit 1 of channel p; position n_channels
 * + e holds the digit of channel extra_src[e] with extra_off[e] = (i-1) * cap subtracted, plus
 * zero. Folded flattening (4-bit codes on an 8-bit multiplier) is the case n_extra = 0 with
 * lo/hi = -+k_c * 7 within -127..127. Positions n_channels + n_extra .. ld-1 are written as 0
 * (their weight is 0 as well). x_sum[m] is the sum of all codes of the row, whatever zero is.
 *
 * Per token, v = x * premul, top = clip_max * max(v, 0), bottom = clip_min * max(-v, 0) over
 * the values of the row that are numbers, inv = 1 / scale:
 *
 *   symmetric    scale = max(top, bottom) / qmax, qmax = 2^(bits-1) - 1; zero = 0
 *                code = clamp(rne(v * inv), qmin, qmax), qmin = -qmax - 1 (-qmax without clips,
 *                where nothing reaches below it)
 *   asymmetric   scale = (top + bottom) / qtop, qtop = 2^bits - 1; z = rne(bottom * inv)
 *                code = clamp(rne(v * inv), -z, qtop - z) + zero; zero = z, or z - 128 at 8
 *                bits: codes are 0..15 or -128..127
 *
 * A scale below the smallest normal number (a row of zeros) becomes 1; a NaN gets the lowest
 * code. v is scale * (code - zero) again.
 *
 * All rows of the table equal `_ref` bit for bit: float32 operations element by element.
 * SPDX-License-Identifier: MIT */
#ifndef FL_KERNELS_QUANTIZE_H
#define FL_KERNELS_QUANTIZE_H

#include "base/exec.h"
#include "base/status.h"

#include <stddef.h>

typedef struct fl_quantize_static {
    int n_channels;
    int n_extra;
    int ld;                   /* row stride of codes, % 64 == 0, >= n_channels + n_extra */
    float inv_scale;
    int zero;                 /* -128..127, added to every code but the padding */
    int first_lo, first_hi;   /* clamp of the first digit; with zero added within -128..127 */
    int cap;                  /* clamp of |digit| of the extra positions */
    const float *premul;      /* [n_channels] or NULL */
    const float *lo, *hi;     /* [n_channels] whole: lo = -k*qmax (0: unsigned), hi = k*qmax */
    const int32_t *extra_src; /* [n_extra] channel */
    const int32_t *extra_off; /* [n_extra] subtracted from |q| */
} fl_quantize_static;

typedef struct fl_quantize_token {
    int n_channels;
    int ld;   /* row stride of codes, % 64 == 0, >= n_channels */
    int bits; /* 4 or 8 */
    bool asymmetric;
    float clip_max, clip_min; /* 0 < clip <= 1 */
    const float *premul;      /* [n_channels] or NULL */
} fl_quantize_token;

/* Rows of float activations: in memory, or made one at a time by what comes before the
 * quantiser (a norm, an activation function), so that they never leave the core's cache. */
typedef struct fl_rows {
    const float *x; /* row m is x + m * ldx */
    int64_t ldx;
    void (*make)(void *arg, float *row, int m); /* not NULL: writes row m, x is not read; any
                                                   thread */
    void *arg;
} fl_rows;

static inline fl_rows fl__rows_at(const float *x, int64_t ldx)
{
    return (fl_rows){.x = x, .ldx = ldx};
}

/* Row m, in memory or in scratch. */
static inline const float *fl__rows_get(const fl_rows *rows, int m, float *scratch)
{
    if (!rows->make) return rows->x + m * rows->ldx;
    rows->make(rows->arg, scratch, m);
    return scratch;
}

/* One row: x f32 [n_channels] -> codes int8 [ld] (64-byte aligned), *x_sum. */
typedef void fl_quantize_static_fn(int8_t *codes, int32_t *x_sum, const float *x,
                                   const fl_quantize_static *spec);
/* One row, per token. Also writes *scale and *zero. */
typedef void fl_quantize_token_fn(int8_t *codes, int32_t *x_sum, float *scale, int32_t *zero,
                                  const float *x, const fl_quantize_token *spec);

typedef struct fl_quantize_kernel {
    const char *name;
    uint32_t isa;
    fl_quantize_static_fn *run_static;
    fl_quantize_token_fn *run_token;
} fl_quantize_kernel;

extern const fl_quantize_kernel fl__quantize_kernels[]; /* best first, reference last */
extern const int fl__n_quantize_kernels;
const fl_quantize_kernel *fl__quantize_select(uint32_t isa);

/* M rows of x on ex's threads. scratch: fl__quantize_scratch_bytes, 64-byte aligned; not used
 * for rows in memory. */
size_t fl__quantize_scratch_bytes(const fl_exec *ex, int n_channels);
void fl__quantize_static_run(const fl_exec *ex, int8_t *codes, int32_t *x_sum, fl_rows x, int M,
                             const fl_quantize_static *spec, void *scratch);
void fl__quantize_token_run(const fl_exec *ex, int8_t *codes, int32_t *x_sum, float *scale,
                            int32_t *zero, fl_rows x, int M, const fl_quantize_token *spec,
                            void *scratch);

#endif
