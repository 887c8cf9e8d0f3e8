/* transform_112x128.cu - 14,336 and 11,008 channels. SPDX-License-Identifier: MIT */
#include "cuda/transform_split.h"
#include "cuda/transform_wide.h"

fl_status fl__cuda_transform_112x128(const transform_args *p, int n_sm, cudaStream_t stream,
                                     fl_err *err)
{
    if (p->M <= SPLIT_MAX_ROWS)
        return p->n1 == 112 ? split_rows<112, 128>(p, stream, err)
                            : split_rows<86, 128>(p, stream, err);
    return p->n1 == 112 ? launch_wide<112, 128, 2, 2, 2, 1>(p, n_sm, stream, err)
                        : launch_wide<86, 128, 2, 2, 2, 1>(p, n_sm, stream, err);
}
