/* factor.h - one square factor of a transform: P and its inverse, made from parameters that are
 * learned.
 *
 *   free    the parameters are P [n, n] itself; Q = P^-T by LU decomposition
 *   svd     P = U diag(s) V^T, Q = U diag(1/s) V^T with U and V orthogonal: the Cayley map
 *           (I - A/2)^-1 (I + A/2) of A = L - L^T, L the strict lower triangle of a free matrix
 *           (the map of torch.nn.utils.parametrizations.orthogonal). The parameters are L of U
 *           [n, n], L of V [n, n], both with what is not below the diagonal unused, and s [n]
 *   fixed   no parameters: P stays as it started
 *
 * Parameters, P and Q are float32; everything between them, gradients included, is in double.
 * Factors are independent of each other, so the functions take many at a time, one per thread.
 * SPDX-License-Identifier: MIT */
#ifndef FL_TRAIN_FACTOR_H
#define FL_TRAIN_FACTOR_H

#include "base/exec.h"
#include "base/rng.h"
#include "base/status.h"

#include <stdbool.h>

typedef enum fl_factor_kind { FL_FACTOR_FREE, FL_FACTOR_SVD, FL_FACTOR_FIXED } fl_factor_kind;

typedef enum fl_factor_start {
    FL_START_IDENTITY,
    FL_START_ORTHOGONAL, /* random orthogonal, uniform (Haar); not for svd */
    FL_START_CAYLEY,     /* P = U V^T, each the Cayley map of a random orthogonal matrix's
                            strict lower triangle: nearer the identity. svd's official start */
    FL_START_HADAMARD,   /* random signs, then Hadamard (x) random orthogonal, of the orders 2^k
                            and the odd rest of n; not for svd */
} fl_factor_start;

typedef struct fl_factor {
    fl_factor_kind kind;
    int n;
    float *p, *q;   /* [n, n] P, Q = P^-T; written by _init and _update */
    double *q_wide; /* [n, n] Q before it was rounded: what folds into weights after training */
    float *dp, *dq; /* [n, n] gradients by P and Q, written by the caller; zero at first */
    float *param;   /* [n_params] what is learned */
    float *grad;    /* [n_params] written by fl__factors_grad */
    size_t n_params; /* n^2, 2 n^2 + n or 0 */
    double *work;    /* what _update leaves for _grad, and scratch */
    int *pivot;      /* [n] scratch */
    bool singular;   /* found by the last _update */
} fl_factor;

/* Parameters at their start, P and Q from them. rng is used by the random starts only. n >= 1.
 * FL_E_USAGE for a start that svd cannot express. */
fl_status fl__factor_init(fl_factor *f, const fl_exec *ex, fl_factor_kind kind, int n,
                          fl_factor_start start, fl_rng rng, fl_err *err);
/* No-op on a zeroed factor. */
void fl__factor_fini(fl_factor *f);

/* P and Q of each factor from its parameters. FL_E_FAIL where a P is singular or not finite;
 * its p and q are then unusable. Entries may be NULL: passed over. */
fl_status fl__factors_update(const fl_exec *ex, fl_factor *const *factors, int n_factors,
                             fl_err *err);
/* grad of each factor from its dp and dq; after _update, with the same parameters. */
void fl__factors_grad(const fl_exec *ex, fl_factor *const *factors, int n_factors);

/* The pair n1 * n2 = n, n1 <= n2, with the smallest sum; 1 x n for a prime n. n >= 1. */
void fl__factor_pair(int n, int *n1, int *n2);

#endif
