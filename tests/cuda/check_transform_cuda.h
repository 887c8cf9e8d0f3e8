/* check_transform_cuda.h - what the transform's check and bench share.
 * SPDX-License-Identifier: MIT */
#ifndef FL_TESTS_CHECK_TRANSFORM_CUDA_H
#define FL_TESTS_CHECK_TRANSFORM_CUDA_H

#include "cuda/transform_cuda.h"
#include "cuda_test.h"

extern "C" {
#include "kernels/transform.h"

fl_transform_fn fl__transform_ref;
fl_quantize_static_fn fl__quantize_static_ref;
fl_quantize_token_fn fl__quantize_token_ref;
}

/* bench_transform_cuda.cu */
void bench_transform(int n_sm, bool quick);

#endif
