/* flatquant_site.h - an activation under its site's transform, quantised, with gradients.
 *
 *   xt = P_left^T X P_right,  x_hat = quantised xt, one scale per token
 * one x_hat for all linears of the site, or one for each where each has clips of its own. The
 * site's scale c is in x already (folded into the norm or into the weight before, or multiplied
 * onto x where a norm's output is the residual too).
 *
 * Each direction is one loop over items of rows that goes from what makes x (or takes its
 * gradient) to the operand of the products: what is between stays in a cache.
 * SPDX-License-Identifier: MIT */
#ifndef FL_QUANT_FLATQUANT_SITE_H
#define FL_QUANT_FLATQUANT_SITE_H

#include "quant/flatquant/flatquant.h"
#include "train/kron.h"
#include "train/train_gemm.h"

typedef struct fl_flatquant_act {
    fl_flatquant_site *site;
    bool right_folded; /* the right factor is in x already (P_v) */
    bool scaled_here;  /* c multiplies x right before the site: its gradient is taken here */
    float *xt;         /* [max_rows, n_in] owned */
    int n_hats;        /* forms of x_hat: 1, or one per linear */
    float *x_hat;      /* [n_hats, max_rows, n_in] owned; where operands are packed: of each
                          thread's item, [n_threads, FL_KRON_ITEM, n_in] */
    float *sums;       /* [FL_KRON_TILES, n_in] owned: of the scale's gradient */
    fl_train_operand operand[FL_SITE_MAX_LINEARS]; /* n_hats, for the site's linears */
} fl_flatquant_act;

/* What the passes of a block have in common. */
typedef struct fl_flatquant_means {
    const fl_exec *ex;
    fl_kron *kron;
    fl_train_gemm *gemm;
    const fl_flatquant_options *o;
    float *work; /* [n_left^2 + n_right^2] */
} fl_flatquant_means;

/* Called for rows first.. once they are needed (forward: makes x) or there (backward: takes
 * d). */
typedef void fl_flatquant_rows_fn(void *user, int first, int n_rows);

fl_status fl__flatquant_act_init(fl_flatquant_act *a, fl_flatquant_site *site, int max_rows,
                                 const fl_exec *ex, const fl_train_gemm *gemm, fl_err *err);
void fl__flatquant_act_fini(fl_flatquant_act *a);

/* What linear number i of the site is multiplied with. */
const fl_train_operand *fl__flatquant_act_operand(const fl_flatquant_act *a, int i);

/* make may be NULL: x is there. */
fl_status fl__flatquant_act_forward(fl_flatquant_act *a, const fl_flatquant_means *m,
                                    const float *x, int n_rows, fl_flatquant_rows_fn *make,
                                    void *user, fl_err *err);
/* d, n_hats of [n_rows, n_in]: gradient of each x_hat in, overwritten; d[0] of x out; then
 * `take`, if any. Adds to the gradients of the factors (dp) and of the scale, writes those of
 * the clips. */
fl_status fl__flatquant_act_backward(fl_flatquant_act *a, const fl_flatquant_means *m,
                                     float *const d[FL_SITE_MAX_LINEARS], const float *x,
                                     int n_rows, fl_flatquant_rows_fn *take, void *user,
                                     fl_err *err);

/* out[j] = sum over rows of a[r, j], in order. */
void fl__flatquant_column_sum(const fl_exec *ex, float *out, const float *a, int n_rows, int n);
/* y[r, j] = x[r, j] * c[j]; c NULL: 1. y may be x. */
void fl__flatquant_scale_rows(const fl_exec *ex, float *y, const float *x, const float *c,
                              int n_rows, int n);
/* y[r, j] += bias[j]. */
void fl__flatquant_add_bias(const fl_exec *ex, float *y, const float *bias, int n_rows, int n);

#endif
