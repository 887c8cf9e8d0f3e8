/* transform_112x128.cu - 14,336 and 11,008 channels. SPDX-License-Identifier: MIT */
#include "cuda/transform_kernel.h"

cudaError_t fl__cuda_transform_112x128(const transform_args *p, int n_sm, cudaStream_t stream)
{
    return p->n1 == 112 ? launch_shape<112, 128, 2>(p, n_sm, stream)
                        : launch_shape<86, 128, 2>(p, n_sm, stream);
}
