/* flatquant_site.h - an activation under its site's transform, quantised, with gradients.
 *
 *   xt = P_left^T X P_right,  x_hat = quantised xt, one scale per token
 * one x_hat for all linears of the site, or one for each where each has clips of its own. The
 * site's scale c is in x already (folded into the norm or into the weight before, or multiplied
 * onto x where a norm's output is the residual too).
 * SPDX-License-Identifier: MIT */
#ifndef FL_QUANT_FLATQUANT_SITE_H
#define FL_QUANT_FLATQUANT_SITE_H

#include "quant/flatquant/flatquant.h"
#include "train/kron.h"

typedef struct fl_flatquant_act {
    fl_flatquant_site *site;
    bool right_folded; /* the right factor is in x already (P_v) */
    bool scaled_here;  /* c multiplies x right before the site: its gradient is taken here */
    float *xt;         /* [max_rows, n_in] owned */
    float *x_hat[FL_SITE_MAX_LINEARS]; /* [max_rows, n_in] owned; NULL but the first where all
                                          linears share it */
} fl_flatquant_act;

fl_status fl__flatquant_act_init(fl_flatquant_act *a, fl_flatquant_site *site, int max_rows,
                                 fl_err *err);
void fl__flatquant_act_fini(fl_flatquant_act *a);

/* Does every linear of the site quantise for itself? */
bool fl__flatquant_act_is_split(const fl_flatquant_act *a);
/* What linear number i of the site is multiplied with. */
const float *fl__flatquant_act_input(const fl_flatquant_act *a, int i);

fl_status fl__flatquant_act_forward(fl_flatquant_act *a, const fl_exec *ex, fl_kron *kron,
                                    const fl_flatquant_options *o, const float *x, int n_rows,
                                    fl_err *err);
/* Through the quantiser of linear number i: d [n_rows, n_in], gradient of its x_hat in, of xt
 * out. Writes the gradients of its clips. Before _backward, for each linear where they are
 * split (their xt's gradients add up), else left to _backward. */
void fl__flatquant_act_quantizer_grad(fl_flatquant_act *a, const fl_exec *ex,
                                      const fl_flatquant_options *o, int i, float *d,
                                      int n_rows);
/* d [n_rows, n_in]: gradient of x_hat in (of xt where linears are split), of x out. Adds to the
 * gradients of the factors (dp) and of the scale, writes those of clips that all linears share.
 * work [n_left^2 + n_right^2]. */
fl_status fl__flatquant_act_backward(fl_flatquant_act *a, const fl_exec *ex, fl_kron *kron,
                                     const fl_flatquant_options *o, float *d, const float *x,
                                     int n_rows, float *work, fl_err *err);

/* out[j] += sum over rows of a[r, j] * b[r, j] (b NULL: 1) [/ divisor[j]]; rows in a fixed
 * order. */
void fl__flatquant_column_sum(const fl_exec *ex, float *out, const float *a, const float *b,
                              const float *divisor, int n_rows, int n);
/* y[r, j] = x[r, j] * c[j]; c NULL: 1. y may be x. */
void fl__flatquant_scale_rows(const fl_exec *ex, float *y, const float *x, const float *c,
                              int n_rows, int n);
/* y[r, j] += bias[j]. */
void fl__flatquant_add_bias(const fl_exec *ex, float *y, const float *bias, int n_rows, int n);

#endif
