/* flatquant_weight.h - one linear's weight under the block's transforms, quantised, with
 * gradients.
 *
 *   in    = mix(W) / c        mix: v_proj P_v^T per head, up_proj (OPT: fc1) rows times down's
 *   c wt    = Q_left^T in Q_right per row,  Q = P^-T
 *   w_hat = quantised wt, clips per output channel
 * or, where v_proj is clipped first (what P_v mixes are rows, the other transform acts within
 * them, so that their order is free):
 *   wt    = Q_left^T (W / c) Q_right per row
 *   w_hat = quantised mix(clipped wt), the scale from what is there then
 * SPDX-License-Identifier: MIT */
#ifndef FL_QUANT_FLATQUANT_WEIGHT_H
#define FL_QUANT_FLATQUANT_WEIGHT_H

#include "quant/flatquant/flatquant.h"
#include "train/kron.h"

typedef struct fl_flatquant_weight {
    fl_flatquant_linear *lin;
    fl_flatquant_site *site;     /* of its input */
    fl_factor *mix_head;         /* P_v mixes the outputs of each head, or NULL */
    fl_flatquant_site *mix_down; /* the site whose scale multiplies the outputs, or NULL */
    float *in, *wt, *w_hat;      /* [N, K] owned */
    float *clipped, *mixed;      /* [N, K] owned: of clips first, else NULL */
    float *bias, *d_bias;        /* [N] owned, NULL: none; mixed as the rows are */
} fl_flatquant_weight;

/* mix_head, mix_down: as above. */
fl_status fl__flatquant_weight_init(fl_flatquant_weight *w, fl_flatquant_linear *lin,
                                    fl_flatquant_site *site, fl_factor *mix_head,
                                    fl_flatquant_site *mix_down,
                                    const fl_flatquant_options *o, fl_err *err);
void fl__flatquant_weight_fini(fl_flatquant_weight *w);

fl_status fl__flatquant_weight_forward(fl_flatquant_weight *w, const fl_exec *ex,
                                       fl_kron *kron, const fl_flatquant_options *o,
                                       fl_err *err);
/* d_hat [N, K]: gradient of w_hat, overwritten. Adds to the gradients of the site's factors
 * (dq) and scale and of what mixes the outputs; d_bias must hold the bias's. Writes lin's clip
 * gradients and dw. work [n_left^2 + n_right^2] and [P_v's]. */
fl_status fl__flatquant_weight_backward(fl_flatquant_weight *w, const fl_exec *ex,
                                        fl_kron *kron, const fl_flatquant_options *o,
                                        float *d_hat, float *work, fl_err *err);

#endif
