/* rowops_cuda.h - the small ops between the GEMMs on the GPU (kernels/rowops.h with device
 * pointers), each one pass over memory, float32 inside.
 *
 * Rows are 16-byte aligned with strides that are multiples of 8 elements; n % 8 == 0. Launches
 * are asynchronous on `stream` (a cudaStream_t); nothing here allocates or synchronises.
 * SPDX-License-Identifier: MIT */
#ifndef FL_CUDA_ROWOPS_CUDA_H
#define FL_CUDA_ROWOPS_CUDA_H

#ifdef __cplusplus
extern "C" {
#endif

#include "cuda/transform_cuda.h"

/* A matrix of M rows, bf16 or float32. */
typedef struct fl_cuda_matrix {
    void *data;
    int64_t ld;
    bool f32;
} fl_cuda_matrix;

/* y = x / sqrt(mean(x^2) + eps) * gain; n <= 32768; y may be x. */
fl_status fl__cuda_rms_norm(const fl_cuda_matrix *y, const fl_cuda_matrix *x, const float *gain,
                            int M, int n, float eps, void *stream, fl_err *err);
/* y = what the front gives: any of fl_cuda_row's (ReLU alone, x += add and norm, ..). */
fl_status fl__cuda_row_values(const fl_cuda_matrix *y, const fl_cuda_row *x, int M, int n,
                              void *stream, fl_err *err);
/* x += add; x float32. */
fl_status fl__cuda_add(const fl_cuda_matrix *x, const fl_cuda_matrix *add, int M, int n,
                       void *stream, fl_err *err);
/* y = x / (1 + exp(-x)) * up, x and up bf16 with x's stride. */
fl_status fl__cuda_silu_mul(const fl_cuda_matrix *y, const fl_cuda_matrix *x,
                            const uint16_t *up, int M, int n, void *stream, fl_err *err);
/* Row m of y = row ids[m] of table, bf16 [n_ids, n]; an id outside of it gives zeros. */
fl_status fl__cuda_embed(const fl_cuda_matrix *y, const uint16_t *table, const int32_t *ids,
                         int M, int n, int n_ids, void *stream, fl_err *err);
/* y += that row: positions on top of tokens. */
fl_status fl__cuda_embed_add(const fl_cuda_matrix *y, const uint16_t *table, const int32_t *ids,
                             int M, int n, int n_ids, void *stream, fl_err *err);
/* n_heads heads of D (D % 16 == 0) side by side in each row, in place; row m with the angles
 * of positions[m]: cos, sin [.., D/2]. */
fl_status fl__cuda_rope(const fl_cuda_matrix *x, const float *cos, const float *sin,
                        const int32_t *positions, int M, int n_heads, int D, void *stream,
                        fl_err *err);

#ifdef __cplusplus
}
#endif
#endif
