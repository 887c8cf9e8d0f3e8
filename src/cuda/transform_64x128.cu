/* transform_64x128.cu - 8,192 channels. SPDX-License-Identifier: MIT */
#include "cuda/transform_launch.h"

fl_status fl__cuda_transform_64x128(const transform_args *p, int n_sm, cudaStream_t stream,
                                    fl_err *err)
{
    return launch_wide<64, 128, wide_plan<2, 2, 2, 2, 0>>(p, n_sm, stream, err);
}
