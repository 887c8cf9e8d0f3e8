/* transform_64x64.cu - 4,096 channels. SPDX-License-Identifier: MIT */
#include "cuda/transform_kernel.h"

cudaError_t fl__cuda_transform_64x64(const transform_args *p, int n_sm, cudaStream_t stream)
{
    return launch_shape<64, 64, 8>(p, n_sm, stream);
}
