/* tune_block.h - a rounded block as end-to-end tuning sees it: codes, transforms and clips stay
 * as they are, the floats around them learn.
 *
 *   norm -> site -> linears -> ...   as the model runs it, in float32 with quantised values
 *   y = m * (x_hat w_hat^T) + bias + u b   m: a factor per weight scale
 *   norm gain * m, norm bias + u b         m: a factor per channel
 * with b a shift per channel in units u, the root mean square of what it is added to.
 * Rounding of activations, keys and values is straight-through (train/fake_quant.h).
 * SPDX-License-Identifier: MIT */
#ifndef FL_QUANT_TUNE_BLOCK_H
#define FL_QUANT_TUNE_BLOCK_H

#include "model/model.h"

/* What is learned for one block: factors, 1 at first, and shifts, 0 at first. One array, one
 * gradient. */
typedef struct fl_tune_factors {
    size_t n, n_factors;    /* the factors come first */
    float *p, *g;           /* [n] owned */
    float *norm[2];         /* in p: [hidden] */
    float *scale[FL_N_LINEARS]; /* in p: [n_out], or [1] with one scale per weight; NULL: a
                                   float weight */
    float *norm_shift[2];          /* in p: [hidden], NULL: no bias */
    float *shift[FL_N_LINEARS];    /* in p: [n_out], NULL: no bias */
    float norm_unit[2], unit[FL_N_LINEARS]; /* of the shifts */
} fl_tune_factors;

fl_status fl__tune_factors_init(fl_tune_factors *f, const fl_model *model,
                                const fl_block *block, fl_err *err);
void fl__tune_factors_fini(fl_tune_factors *f);
/* As they are at first. */
void fl__tune_factors_reset(fl_tune_factors *f);
/* Where the gradient of a part of p is. */
static inline float *fl__tune_gradient(const fl_tune_factors *f, const float *part)
{
    return f->g + (part - f->p);
}

typedef struct fl_tune_pass fl_tune_pass;
/* Buffers for batches of n_windows windows of seq_len tokens; bf16: products in bfloat16. */
fl_status fl__tune_pass_new(fl_tune_pass **out, const fl_model *model, const fl_exec *ex,
                            int n_windows, int seq_len, bool bf16, fl_err *err);
void fl__tune_pass_free(fl_tune_pass **pass);
size_t fl__tune_pass_bytes(const fl_model *model, int n_rows);

/* Weights and gains of a block under its factors; both must live until the next load. */
void fl__tune_pass_load(fl_tune_pass *pass, const fl_block *block, fl_tune_factors *factors);
/* y [n_windows * seq_len, hidden] = block(x). */
fl_status fl__tune_pass_forward(fl_tune_pass *pass, float *y, const float *x, int n_windows,
                                fl_err *err);
/* After forward on the same x: dy becomes dx; the gradients of the factors are written. */
fl_status fl__tune_pass_backward(fl_tune_pass *pass, float *dy, const float *x, int n_windows,
                                 fl_err *err);

#endif
