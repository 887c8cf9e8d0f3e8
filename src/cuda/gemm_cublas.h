/* gemm_cublas.h - y = x w^T in bfloat16 through cuBLASLt: the 16-bit path.
 *
 * x [M, K] and w [N, K] bf16, sums float32, y [M, N] float32 or bf16, each with bias [N] of
 * y's type or NULL; accumulate: y, float32, += that. M, N, K and strides are multiples of 8
 * elements but M. For each shape the fastest of cuBLASLt's first candidates is found by running
 * them, once, when `tune` is called for it; without that its first candidate runs.
 * SPDX-License-Identifier: MIT */
#ifndef FL_CUDA_GEMM_CUBLAS_H
#define FL_CUDA_GEMM_CUBLAS_H

#ifdef __cplusplus
extern "C" {
#endif

#include "base/status.h"

typedef struct fl_cuda_bf16 fl_cuda_bf16;

typedef struct fl_cuda_gemm_bf16 {
    const uint16_t *x, *w;
    int64_t ldx;
    const void *bias;
    void *y;
    int64_t ldy;
    bool y_f32, accumulate;
    int M, N, K;
} fl_cuda_gemm_bf16;

fl_status fl__cuda_bf16_new(fl_cuda_bf16 **out, fl_err *err);
void fl__cuda_bf16_free(fl_cuda_bf16 **b);
size_t fl__cuda_bf16_workspace_bytes(void);
/* Queues the product. The plan of a shape is made at its first call. */
fl_status fl__cuda_bf16_run(fl_cuda_bf16 *b, const fl_cuda_gemm_bf16 *g, void *stream,
                            fl_err *err);

#ifdef __cplusplus
}
#endif
#endif
