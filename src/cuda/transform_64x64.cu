/* transform_64x64.cu - 4,096 channels. SPDX-License-Identifier: MIT */
#include "cuda/transform_launch.h"

fl_status fl__cuda_transform_64x64(const transform_args *p, int n_sm, cudaStream_t stream,
                                   fl_err *err)
{
    return launch_wide<64, 64, wide_plan<4, 2, 4, 2, 0>>(p, n_sm, stream, err);
}
