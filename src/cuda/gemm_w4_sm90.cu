/* gemm_w4_sm90.cu - prefill GEMM with 4-bit weights on Hopper; see gemm_sm90.h.
 * SPDX-License-Identifier: MIT */
#include "cuda/gemm_sm90.h"

extern "C" fl_status fl__cuda_gemm_w4_sm90(const fl_cuda_gemm *g, fl_cuda_gemm_plan plan,
                                           int n_sm, void *stream, fl_err *err)
{
    return gemm_sm90<4>(g, plan, n_sm, stream, err);
}
