/* gemm_problem.h - one random integer GEMM in guarded buffers. SPDX-License-Identifier: MIT */
#ifndef CK_GEMM_PROBLEM_H
#define CK_GEMM_PROBLEM_H

#include "check/ck.h"

#include "kernels/gemm.h"

typedef enum gemm_fill {
    FILL_RANDOM,     /* any code */
    FILL_EXTREMES,   /* only the smallest and the largest code, in random order */
    FILL_LOWEST,     /* x -128 throughout, w at its lowest: the largest sums */
    FILL_MOSTLY_ZERO,
    N_FILLS,
} gemm_fill;

typedef struct gemm_problem {
    fl_gemm g; /* y points into y */
    fl_weight w;
    gemm_fill fill;
    ck_buf codes; /* int8 [N, K], what w was packed from */
    ck_buf x, x_sum, x_scale, x_zero, w_scale, bias, residual, y, y_ref;
} gemm_problem;

/* Strides, zero points, scale granularity, bias, residual, output type and fill are drawn from
 * the seed, the shape and `draw`. */
gemm_problem gemm_problem_new(ck *t, int M, int N, int K, int bits, int draw);
void gemm_problem_free(gemm_problem *p);

/* Runs k on rows m0..m1 and channels n0..n1, in tiles, on poisoned y and guarded scratch;
 * complains when something outside the contract was written. */
void gemm_problem_run(ck *t, gemm_problem *p, const fl_gemm_kernel *k, int m0, int m1, int n0,
                      int n1);
/* The definition, from the plain codes, into y_ref. */
void gemm_problem_define(gemm_problem *p, int m0, int m1, int n0, int n1);
/* The reference row, into y_ref. */
void gemm_problem_refer(gemm_problem *p, int m0, int m1, int n0, int n1);
/* Complains when y and y_ref differ in a byte, gaps between rows included. */
void gemm_problem_compare(ck *t, const gemm_problem *p, const char *what);

#endif
