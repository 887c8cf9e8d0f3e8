/* transform_64x128.cu - 8,192 channels. SPDX-License-Identifier: MIT */
#include "cuda/transform_split.h"
#include "cuda/transform_wide.h"

fl_status fl__cuda_transform_64x128(const transform_args *p, int n_sm, cudaStream_t stream,
                                    fl_err *err)
{
    if (p->M <= SPLIT_MAX_ROWS) return split_rows<64, 128>(p, stream, err);
    return launch_wide<64, 128, 2, 3, 2, 2>(p, n_sm, stream, err);
}
