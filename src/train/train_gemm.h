/* train_gemm.h - the matrix products of training, in float32 or with bfloat16 operands.
 *
 * All matrices dense and row-major, float32 in memory; M, N, K > 0. Work is cut into tiles of
 * C, and, where C is small and K (a sum over rows) is long, into parts of K that are added in
 * fixed order: cuts depend on the shape alone, so results are the same bytes for any number of
 * threads.
 *
 * bfloat16: operands are rounded to nearest even, products are exact, sums are float32. Where
 * the machine multiplies bfloat16 (AMX, AVX512-BF16, through oneDNN) the order of sums is that
 * kernel's; elsewhere the rounded operands go through the float32 path.
 *
 * Not called from inside a parallel loop. Buffers grow at the first call of a shape; nothing is
 * allocated when a shape comes again.
 * SPDX-License-Identifier: MIT */
#ifndef FL_TRAIN_TRAIN_GEMM_H
#define FL_TRAIN_TRAIN_GEMM_H

#include "base/exec.h"
#include "base/status.h"
#include "train/train_operand.h"

typedef struct fl_train_gemm fl_train_gemm;

fl_status fl__train_gemm_new(fl_train_gemm **out, const fl_exec *ex, bool bf16, fl_err *err);
void fl__train_gemm_free(fl_train_gemm **gemm);
/* "f32", "bf16 rounded, f32 products", or the name of oneDNN's kernel. Owned by gemm. */
const char *fl__train_gemm_impl(const fl_train_gemm *gemm);

/* C[M, N] = A[M, K] B[N, K]^T + beta C. With beta 0 C is not read. */
fl_status fl__train_gemm_nt(fl_train_gemm *gemm, int M, int N, int K, const float *A,
                            const float *B, float beta, float *C, fl_err *err);
/* C[M, N] = A[M, K] B[K, N] + beta C */
fl_status fl__train_gemm_nn(fl_train_gemm *gemm, int M, int N, int K, const float *A,
                            const float *B, float beta, float *C, fl_err *err);
/* C[M, N] = A[K, M]^T B[K, N] + beta C */
fl_status fl__train_gemm_tn(fl_train_gemm *gemm, int M, int N, int K, const float *A,
                            const float *B, float beta, float *C, fl_err *err);

/* ---- linears ----------------------------------------------------------------------------- */

/* A matrix x [R, n] of rows of tokens that several products read. Where products are made of
 * packed operands (fl__train_gemm_packs) it is rounded and packed when it is set and not read
 * again; else x is borrowed. Zeroed at first; grows at first use. */
typedef struct fl_train_operand {
    const float *x;
    int R, n;
    fl_train_packed packed; /* owned; empty in float32 */
} fl_train_operand;

bool fl__train_gemm_packs(const fl_train_gemm *gemm);
/* The input of linears: begun, then set FL_PACK_ITEM rows at a time, from inside a loop's item,
 * in any order. rows: rows first.. of x; x itself is not read where operands are packed. */
fl_status fl__train_operand_begin(fl_train_gemm *gemm, fl_train_operand *o, const float *x,
                                  int R, int n, fl_err *err);
void fl__train_operand_rows(const fl_train_gemm *gemm, const fl_train_operand *o,
                            const float *rows, int first);
/* The gradient of a linear's output. */
fl_status fl__train_operand_dy(fl_train_gemm *gemm, fl_train_operand *o, const float *dy, int R,
                               int n, fl_err *err);
void fl__train_operand_fini(fl_train_operand *o);

/* y [R, N] = x w^T;  dx [R, K] = dy w + beta dx;  dw [N, K] = dy^T x;  w [N, K]. */
fl_status fl__train_linear(fl_train_gemm *gemm, float *y, const fl_train_operand *x,
                           const float *w, int N, fl_err *err);
fl_status fl__train_linear_dx(fl_train_gemm *gemm, float *dx, float beta,
                              const fl_train_operand *dy, const float *w, int K, fl_err *err);
fl_status fl__train_linear_dw(fl_train_gemm *gemm, float *dw, const fl_train_operand *dy,
                              const fl_train_operand *x, fl_err *err);

#endif
