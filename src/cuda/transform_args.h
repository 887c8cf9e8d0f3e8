/* transform_args.h - what the transform's launches share. SPDX-License-Identifier: MIT */
#ifndef FL_CUDA_TRANSFORM_ARGS_H
#define FL_CUDA_TRANSFORM_ARGS_H

#include "cuda/transform_cuda.h"

#include <cuda_runtime.h>

/* The kinds of row. BARE: bf16 as it is. */
enum { FRONT_BARE, FRONT_BF16, FRONT_F32, FRONT_SILU };

typedef struct transform_args {
    fl_cuda_row x;
    fl_cuda_codes y;
    fl_cuda_grid grid;
    const void *factors;
    int n1, n2, M;
} transform_args;

static inline int fl__cuda_row_front(const fl_cuda_row *x)
{
    if (x->up) return FRONT_SILU;
    if (x->x_f32) return FRONT_F32;
    return x->gain || x->layer_norm || x->relu || x->premul ? FRONT_BF16 : FRONT_BARE;
}

/* rowops_cuda.cu: rows that need a front before the fixed scale. */
fl_status fl__cuda_static_rows(const fl_cuda_codes *y, const fl_cuda_row *x, int M,
                               const fl_cuda_quantize_static *spec, cudaStream_t stream,
                               fl_err *err);

cudaError_t fl__cuda_transform_small(const transform_args *p, int n_sm, cudaStream_t stream);
fl_status fl__cuda_transform_64x64(const transform_args *p, int n_sm, cudaStream_t stream,
                                   fl_err *err);
fl_status fl__cuda_transform_64x128(const transform_args *p, int n_sm, cudaStream_t stream,
                                    fl_err *err);
fl_status fl__cuda_transform_112x128(const transform_args *p, int n_sm, cudaStream_t stream,
                                     fl_err *err);
fl_status fl__cuda_transform_128x224(const transform_args *p, int n_sm, cudaStream_t stream,
                                     fl_err *err);

#endif
