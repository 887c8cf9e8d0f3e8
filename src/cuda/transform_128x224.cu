/* transform_128x224.cu - 28,672 channels. SPDX-License-Identifier: MIT */
#include "cuda/transform_launch.h"

fl_status fl__cuda_transform_128x224(const transform_args *p, int n_sm, cudaStream_t stream,
                                     fl_err *err)
{
    return launch_wide<128, 224, wide_plan<1, 2, 0, 0, 0>>(p, n_sm, stream, err);
}
