/* transform_small.cu - 512, 1,408 and 2,048 channels. SPDX-License-Identifier: MIT */
#include "cuda/transform_kernel.h"

cudaError_t fl__cuda_transform_small(const transform_args *p, int n_sm, cudaStream_t stream)
{
    if (p->n1 == 16) return launch_shape<16, 32, 8>(p, n_sm, stream);
    return p->n2 == 44 ? launch_shape<32, 44, 8>(p, n_sm, stream)
                       : launch_shape<32, 64, 8>(p, n_sm, stream);
}
