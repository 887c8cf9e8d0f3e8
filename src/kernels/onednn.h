/* onednn.h - the one door to oneDNN (2.6 of Debian 12, and 3.x).
 *
 * Four uses: the float GEMM of training (the forward pass has kernels/gemm_f32.h, whose sums
 * do not depend on the shape of the batch), bfloat16 products of training, matrix products as
 * opponents of our kernels in the bench, and the linears of a 16-bit model as the opponent of a
 * quantised one.
 * SPDX-License-Identifier: MIT */
#ifndef FL_KERNELS_ONEDNN_H
#define FL_KERNELS_ONEDNN_H

#include "base/status.h"

#include <stddef.h>
#include <stdint.h>

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

/* y f32 [M, N] = x bf16 [M, K] * W bf16 [N, K]^T for a few numbers of rows M, all dense. W is
 * brought into the layout that oneDNN picks for the first of them and not kept. */
typedef struct fl_onednn_linear fl_onednn_linear;
enum { FL_ONEDNN_MAX_COUNTS = 4 };

/* FL_E_UNSUPPORTED when this oneDNN on this machine has plain loops only. */
fl_status fl__onednn_linear_new(fl_onednn_linear **out, const uint16_t *w, int N, int K,
                                const int *counts, int n_counts, int n_threads, fl_err *err);
void fl__onednn_linear_free(fl_onednn_linear **linear);
const char *fl__onednn_linear_impl(const fl_onednn_linear *linear);
/* Bytes of the packed W. */
size_t fl__onednn_linear_bytes(const fl_onednn_linear *linear);
/* false: M is none of the counts, or oneDNN failed. */
bool fl__onednn_linear_run(fl_onednn_linear *linear, const uint16_t *x, int M, float *y);

#endif
