/* transform.h - linear transforms of activations by two small factors, fused with quantising.
 *
 * A row x of n1 * n2 floats is the matrix X [n1, n2], row-major, and becomes (FlatQuant, arXiv
 * 2410.09426: x times the Kronecker product of left and right)
 *
 *   U  = bf16(x * premul)                                       premul NULL: bf16(x)
 *   Y  = U right        Y[i,j]  = sum_k U[i,k] * right[k,j]     right NULL: Y = U
 *   X' = left^T bf16(Y) X'[a,j] = sum_i left[i,a] * bf16(Y)[i,j]     left NULL: X' = Y, float32
 *
 * with factors rounded to bfloat16 when they are packed, products of bfloat16 values exact, and
 * float32 sums that start at 0 and take one fused multiply-add per k, or i, in rising order.
 * All roundings are to nearest even. Then X' is y, or goes through the per-token or the static
 * quantiser (quantize.h) while it still lies in the core's cache.
 *
 * Rows for AVX2 and AVX-512 equal `_ref` bit for bit (the bits of a NaN apart). The AMX row
 * sums in the order of the tile unit, without subnormals: each sum of K products is within
 * (K + 2) * 2^-24 * sum |a * b| + K * 2^-126 of the exact one, so that a Y nearer than that to
 * the border between two bfloat16 numbers may become either. Codes differ accordingly: at most
 * one in 10,000 on random data.
 *
 * One row of the table serves any number of rows of x, and a row's result does not depend on
 * what comes with it: prefill and decoding give the same codes. Sizes are arbitrary; a row
 * takes n1 * n2 * (n1 + n2) multiply-adds.
 * SPDX-License-Identifier: MIT */
#ifndef FL_KERNELS_TRANSFORM_H
#define FL_KERNELS_TRANSFORM_H

#include "kernels/quantize.h"

#include <stddef.h>

typedef struct fl_transform {
    int n1, n2;   /* 0, 0: no transform */
    float *left;  /* [n1, n1] row-major, values rounded to bf16, owned; NULL: identity */
    float *right; /* [n2, n2] the same */
    float *right_panels;   /* [n2/16 up][n2][16] columns beyond n2 zero, owned */
    uint16_t *left_rows;   /* bf16 [n1/32 up * 32, the same] left^T, zero beyond n1; owned */
    uint16_t *right_tiles; /* bf16 [n2/32 up * 2][n2/32 up][16][16][2]: tiles of 32 k x 16 j,
                              pairs of k together, zero beyond n2; owned */
} fl_transform;

/* Rounds and packs the factors, which are not kept. left [n1, n1], right [n2, n2]; NULL is the
 * identity, and two NULLs are no transform (n1 = n2 = 0). FL_E_NOMEM leaves t empty. */
fl_status fl__transform_init(fl_transform *t, int n1, int n2, const float *left,
                             const float *right, fl_err *err);
void fl__transform_fini(fl_transform *t);
/* What _init allocates. */
size_t fl__transform_bytes(int n1, int n2, bool has_left, bool has_right);

/* One row: y [n1 * n2] = X'; y may be x. scratch: fl__transform_kernel_scratch bytes, 64-byte
 * aligned. */
typedef void fl_transform_fn(float *y, const float *x, const fl_transform *t,
                             const float *premul, void *scratch);

typedef struct fl_transform_kernel {
    const char *name;
    uint32_t isa;
    int pad_1, pad_2; /* scratch holds two float32 X with n1, n2 rounded up to these */
    fl_transform_fn *run;
} fl_transform_kernel;

extern const fl_transform_kernel fl__transform_kernels[]; /* best first, reference last */
extern const int fl__n_transform_kernels;
const fl_transform_kernel *fl__transform_select(uint32_t isa);
size_t fl__transform_kernel_scratch(const fl_transform_kernel *k, int n1, int n2);

/* Scratch of the functions below: all threads of ex, one transform of n1 x n2. 0, 0: 0. */
size_t fl__transform_scratch_bytes(const fl_exec *ex, int n1, int n2);

/* M rows of x (row stride ldx floats) to y (row stride ldy); y may be x with ldy = ldx. */
void fl__transform_run(const fl_exec *ex, float *y, int64_t ldy, const float *x, int64_t ldx,
                       int M, const fl_transform *t, const float *premul, void *scratch);

/* M rows of x to codes, sums, scales and zero points as fl__quantize_token_run makes them of
 * X'. spec->premul is the transform's; spec->n_channels = n1 * n2. */
void fl__transform_quantize_run(const fl_exec *ex, int8_t *codes, int32_t *x_sum, float *scale,
                                int32_t *zero, fl_rows x, int M, const fl_transform *t,
                                const fl_quantize_token *spec, void *scratch);

/* The same with one fixed scale: codes and sums as fl__quantize_static_run makes them of X'. */
void fl__transform_quantize_static_run(const fl_exec *ex, int8_t *codes, int32_t *x_sum,
                                       fl_rows x, int M, const fl_transform *t,
                                       const fl_quantize_static *spec, void *scratch);

#endif
