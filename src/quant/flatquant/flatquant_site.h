/* flatquant_site.h - an activation under its site's transform, quantised, with gradients.
 *
 *   xt = P_left^T X P_right,  x_hat = quantised xt, one scale per token
 * The site's scale c is in x already (folded into the norm or into the weight before).
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
    float *xt, *x_hat; /* [max_rows, n_in] owned */
    fl_train_operand operand; /* x_hat, for the site's linears; set by the block */
} fl_flatquant_act;

fl_status fl__flatquant_act_init(fl_flatquant_act *a, fl_flatquant_site *site, int max_rows,
                                 fl_err *err);
void fl__flatquant_act_fini(fl_flatquant_act *a);

fl_status fl__flatquant_act_forward(fl_flatquant_act *a, const fl_exec *ex, fl_kron *kron,
                                    const fl_flatquant_options *o, const float *x, int n_rows,
                                    fl_err *err);
/* d [n_rows, n_in]: gradient of x_hat in, of x out. Adds to the gradients of the factors (dp)
 * and of the scale, writes those of the clips. work [n_left^2 + n_right^2]. */
fl_status fl__flatquant_act_backward(fl_flatquant_act *a, const fl_exec *ex, fl_kron *kron,
                                     const fl_flatquant_options *o, float *d, const float *x,
                                     int n_rows, float *work, fl_err *err);

/* out[j] += sum over rows of a[r, j] * b[r, j] (b NULL: 1) [/ divisor[j]]; rows in a fixed
 * order. */
void fl__flatquant_column_sum(const fl_exec *ex, float *out, const float *a, const float *b,
                              const float *divisor, int n_rows, int n);
/* y[r, j] += bias[j]. */
void fl__flatquant_add_bias(const fl_exec *ex, float *y, const float *bias, int n_rows, int n);

#endif
