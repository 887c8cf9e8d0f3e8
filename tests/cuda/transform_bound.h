/* transform_bound.h - what a correct transform + quantise may answer.
 *
 * A row's exact values are followed in double, with a bound on what float32 and tensor cores
 * may do to them:
 *
 *   U    v with error e becomes bf16(v), or another one where v - e and v + e round apart
 *   Y    a tensor core aligns the 16 products of a step and the sum so far to the largest of
 *        them and cuts what lies below its last bit, taken as 2^-23 of the largest: 17 of these
 *        a step; plus what the open values of U can change
 *   Y'   bf16(Y) likewise: open where its interval holds a border between two bf16 numbers
 *   X'   as Y, plus what the open values of Y' can change
 *
 * Only an open value can become another bf16 number, and that alone moves X' by more than
 * float32 noise. The scale has an interval from those of the extremes; with the scale that the
 * GPU gave, each code's interval is that of X' / scale.
 * SPDX-License-Identifier: MIT */
#ifndef FL_TESTS_TRANSFORM_BOUND_H
#define FL_TESTS_TRANSFORM_BOUND_H

#include "cuda/transform_cuda.h"

typedef struct transform_bound {
    int n1, n2;
    const float *left, *right; /* borrowed, values of bf16 */
    double *u, *open_u;        /* [n1, n2] bf16(v), and how far another value may be off */
    double *y, *open_y;
    double *x, *e; /* X' and its bound */
    double top, open_top, bottom, open_bottom;
} transform_bound;

void transform_bound_init(transform_bound *b, int n1, int n2, const float *left,
                          const float *right);
void transform_bound_fini(transform_bound *b);
/* v, e [n1 * n2]: the row before it is rounded to bf16, and its bound. */
void transform_bound_row(transform_bound *b, const double *v, const double *e);
bool transform_bound_scale(const transform_bound *b, const fl_cuda_grid *grid, float scale,
                           int zero);
/* The codes that may stand at c, for the scale and zero point that the GPU gave. */
void transform_bound_code(int *lo, int *hi, const transform_bound *b, const fl_cuda_grid *grid,
                          float scale, int zero, int c);

/* Prints why the scale of row m may not be the CPU's: of the row's largest X' the values of U
 * and of Y that the GPU rounds to another bf16 number, exactly and as the GPU has them. row:
 * what the transform read; v: as above. */
void explain_scale(const transform_bound *b, const fl_cuda_row *row, const double *v, int m);

#endif
