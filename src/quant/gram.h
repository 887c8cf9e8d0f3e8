/* gram.h - second moments of a site's input: the Hessian of its linears, and what the float
 * model had there.
 *
 * With x^ the quantised input rows (dequantised values) of all calibration tokens and x the
 * same rows of the float path, both taken about pivots p^ and p (the means of the first batch):
 *   H = sum (x^-p^)^T (x^-p^),   C = sum (x^-p^)^T (x-p),   and the sums of x^-p^ and x-p.
 * The squared output error of a linear is a quadratic in its weight with curvature H (GPTQ,
 * arXiv 2210.17323, section 3), and C says where its minimum is when the inputs differ from the
 * float path's. The pivots are there for channels that hardly vary about a large mean: in
 * float32 their variance would drown in its square.
 * Sums: float32 GEMMs per batch in fixed tiles, batches in order: the same bytes for any number
 * of threads.
 * SPDX-License-Identifier: MIT */
#ifndef FL_QUANT_GRAM_H
#define FL_QUANT_GRAM_H

#include "base/exec.h"
#include "base/status.h"

typedef struct fl_gram {
    int K;
    float *h;              /* [K, K]; upper tiles until fl__gram_finish, then symmetric */
    float *c;              /* [K, K] or NULL: row i is x^_i, column j is x_j */
    float *pivot_q, *pivot_f; /* [K] set by the first fl__gram_add */
    double *sum_q, *sum_f;    /* [K] */
    int64_t n_rows;
} fl_gram;

size_t fl__gram_bytes(int K, bool with_cross);
fl_status fl__gram_init(fl_gram *g, int K, bool with_cross, fl_err *err);
void fl__gram_fini(fl_gram *g);
/* xq, xf: f32 [n_rows, K] dense, not the same memory; the pivots are taken off in place. xf may
 * be NULL without cross term. */
void fl__gram_add(fl_gram *g, const fl_exec *ex, float *xq, float *xf, int n_rows);
/* Mirrors H. Call once, after the last add. */
void fl__gram_finish(fl_gram *g);

#endif
