/* onednn.h - the one door to oneDNN (2.6 of Debian 12, and 3.x).
 *
 * Two uses: the float GEMM of the forward pass, and matrix products as opponents of our kernels in the
 * bench.
 * SPDX-License-Identifier: MIT */
#ifndef FL_KERNELS_ONEDNN_H
#define FL_KERNELS_ONEDNN_H

#include "base/status.h"

/* C[M, ldc] = alpha * A[M, lda] * op(B) + beta * C, float32, row-major; op(B) is B[K, ldb], or with
 * transpose_b the transpose of B[N, ldb] (a weight as models store it). Runs on the calling thread
 * alone inside fl__parallel_for, whose items must not depend on the number of threads. */
fl_status fl__onednn_sgemm(int M, int N, int K, float alpha, const float *A, int64_t lda,
                           const float *B, int64_t ldb, bool transpose_b, float beta, float *C,
                           int64_t ldc, fl_err *err);

#endif
