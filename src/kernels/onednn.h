/* onednn.h - the one door to oneDNN (2.6 of Debian 12, and 3.x).
 *
 * Three uses: the float GEMM of the forward pass and of training, bfloat16 products of
 * training, and matrix products as opponents of our kernels in the bench.
 * SPDX-License-Identifier: MIT */
#ifndef FL_KERNELS_ONEDNN_H
#define FL_KERNELS_ONEDNN_H

#include "base/status.h"

/* C[M, ldc] = alpha * A[M, lda] * op(B) + beta * C, float32, row-major; op(B) is B[K, ldb], or
 * with transpose_b the transpose of B[N, ldb] (a weight as models store it). Runs on the
 * calling thread alone inside fl__parallel_for, whose items must not depend on the number of
 * threads. */
fl_status fl__onednn_sgemm(int M, int N, int K, float alpha, const float *A, int64_t lda,
                           const float *B, int64_t ldb, bool transpose_b, float beta, float *C,
                           int64_t ldc, fl_err *err);
/* The same with A transposed, as gradients of weights want it: A[K, lda], B[K, ldb]. */
fl_status fl__onednn_sgemm_tn(int M, int N, int K, float alpha, const float *A, int64_t lda,
                              const float *B, int64_t ldb, float beta, float *C, int64_t ldc,
                              fl_err *err);

/* "2.6.3": of the library in use. */
void fl__onednn_version(char *text, size_t text_bytes);

/* C[M, ldc] = A * B, or C += A * B: bfloat16 operands, float32 sums, one thread per product.
 *
 *   A   bfloat16 [M, K] dense, K a multiple of 32
 *   B   bfloat16 [N/64 rounded up][K/2][64][2]: panels of 64 columns, in each the pairs (2k,
 *       2k + 1) of a column side by side, as the tile and dot product instructions read them;
 *       columns beyond N are zeros
 *
 * A set holds one primitive for each shape and what every thread needs to execute it. */
typedef struct fl_onednn_bf16 fl_onednn_bf16;

/* FL_E_UNSUPPORTED where this oneDNN on this machine has no bfloat16 kernel (AMX or
 * AVX512-BF16) for that layout: other ways are then faster. */
fl_status fl__onednn_bf16_new(fl_onednn_bf16 **out, int n_threads, fl_err *err);
void fl__onednn_bf16_free(fl_onednn_bf16 **set);
/* The implementation's name; owned by set. */
const char *fl__onednn_bf16_impl(const fl_onednn_bf16 *set);
/* Outside loops: index of a shape, for run; made when it is asked for first. add: C +=. */
fl_status fl__onednn_bf16_shape(fl_onednn_bf16 *set, int *shape, int M, int N, int K,
                                int64_t ldc, bool add, fl_err *err);
/* Inside an item of fl__parallel_for, on its thread < n_threads. */
fl_status fl__onednn_bf16_run(fl_onednn_bf16 *set, int shape, int thread, const uint16_t *A,
                              const uint16_t *B, float *C, fl_err *err);

/* y[M, N] = x[M, K] * W[N, K]^T on random data of its own, as a user who cares about speed
 * would call it: weights in the layout that oneDNN picks, brought there beforehand, the
 * primitive created once, for s8 a scale per output channel, y bf16 (float32 where oneDNN has
 * no fast kernel for bf16). */
typedef enum fl_onednn_type { FL_ONEDNN_S8, FL_ONEDNN_BF16 } fl_onednn_type;
typedef struct fl_onednn_matmul fl_onednn_matmul;

/* n_copies: different weights that run takes in turn, so that they come from memory.
 * FL_E_UNSUPPORTED when this oneDNN on this machine has plain loops only. */
fl_status fl__onednn_matmul_new(fl_onednn_matmul **out, fl_onednn_type type, int M, int N,
                                int K, int n_copies, int n_threads, fl_err *err);
void fl__onednn_matmul_free(fl_onednn_matmul **matmul);
/* The implementation, "brg:avx512_core_amx_int8, bf16 out"; owned by matmul. */
const char *fl__onednn_matmul_impl(const fl_onednn_matmul *matmul);
/* Once, with weights `copy`, on n_threads threads. */
fl_status fl__onednn_matmul_run(fl_onednn_matmul *matmul, int copy, fl_err *err);

#endif
