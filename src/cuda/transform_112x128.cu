/* transform_112x128.cu - 14,336 and 11,008 channels. SPDX-License-Identifier: MIT */
#include "cuda/transform_launch.h"

fl_status fl__cuda_transform_112x128(const transform_args *p, int n_sm, cudaStream_t stream,
                                     fl_err *err)
{
    typedef wide_plan<2, 2, 2, 1, 8> plan;
    return p->n1 == 112 ? launch_wide<112, 128, plan>(p, n_sm, stream, err)
                        : launch_wide<86, 128, plan>(p, n_sm, stream, err);
}
