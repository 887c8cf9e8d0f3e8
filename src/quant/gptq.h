/* gptq.h - rounding of weights against the Hessian of their inputs (GPTQ, arXiv 2210.17323).
 *
 * Minimises over integer codes q the output error  tr((W~ - s q) A (W~ - s q)^T)  with A = H/n
 * + damping: columns are rounded one after another, each column's error is spread over the
 * columns not yet rounded through the Cholesky factor of A^-1. Two extensions, both options:
 *   - centred: H and C are taken about their means; the mean error goes into the bias (exact
 *     least squares with an intercept), so no code is spent on it
 *   - compensate: W~ = W R A^-1 with R = C/n + damping: the weight that best maps the quantised
 *     inputs to the FLOAT path's outputs; without it W~ = W
 * SPDX-License-Identifier: MIT */
#ifndef FL_QUANT_GPTQ_H
#define FL_QUANT_GPTQ_H

#include "quant/gram.h"
#include "quant/weight_split.h"

typedef struct fl_gptq_options {
    double damping; /* of the mean diagonal; raised tenfold while the factorisation fails */
    int block;      /* columns per lazy update */
    bool act_order; /* columns by falling diagonal of A */
    bool centred, compensate;
} fl_gptq_options;

/* A site's factorised Hessian, shared by its linears. */
typedef struct fl_gptq {
    fl_gptq_options o;
    int K;
    double *a;      /* [K, K] Cholesky factor of A (natural order), for compensate; NULL
                       otherwise */
    float *r;       /* [K, K] = C/n (centred) + damping I; NULL without compensate */
    float *u;       /* [K, K] upper factor of A^-1, in the order of perm */
    float *diag;    /* [K] diagonal of A */
    int *perm;      /* [K] */
    float *mean_q, *mean_f; /* [K] */
    double damping_used;
    const fl_weight_split *split; /* borrowed; NULL: no column is in digits */
} fl_gptq;

/* Bytes that fl__gptq_init takes beside the gram while it runs, what it leaves in *q, and what
 * fl__gptq_round takes beside its arguments for N rows. */
size_t fl__gptq_init_bytes(int K, const fl_gptq_options *o);
size_t fl__gptq_held_bytes(int K, const fl_gptq_options *o);
size_t fl__gptq_round_bytes(int K, int N, int n_threads, const fl_gptq_options *o);
/* Factorises. FL_E_FAIL: activations that are not finite, or A singular whatever the damping;
 * FL_E_NOMEM. */
fl_status fl__gptq_init(fl_gptq *q, const fl_gram *g, const fl_gptq_options *o,
                        const fl_exec *ex, fl_err *err);
void fl__gptq_fini(fl_gptq *q);

/* Rounds w [N, K]: codes [N, K] (with a split: whole columns, written as digits, [N,
 * split->ld]), scale [N] ([1] per tensor). bias_shift [N] receives what must be added to the
 * bias (zeros when not centred). w is overwritten with W~. *relative_error:
 * tr(E A E^T) over sum_nk W~_nk^2 A_kk, with E the remaining error against W~. */
fl_status fl__gptq_round(const fl_gptq *q, const fl_exec *ex, int8_t *codes, float *scale,
                         float *bias_shift, float *w, int N, int bits, bool per_tensor,
                         double *relative_error, fl_err *err);

#endif
