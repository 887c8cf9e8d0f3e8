/* transform_64x128.cu - 8,192 channels. SPDX-License-Identifier: MIT */
#include "cuda/transform_kernel.h"

cudaError_t fl__cuda_transform_64x128(const transform_args *p, int n_sm, cudaStream_t stream)
{
    return launch_shape<64, 128, 3>(p, n_sm, stream);
}
