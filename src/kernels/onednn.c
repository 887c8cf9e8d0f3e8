/* onednn.c - the only file that sees oneDNN's headers. SPDX-License-Identifier: MIT */
#include "kernels/onednn.h"

#include <dnnl.h>

static fl_status check(dnnl_status_t status, const char *call, fl_err *err)
{
    if (status == dnnl_success) return FL_OK;
    if (status == dnnl_out_of_memory) return fl__fail_nomem(err, call, 0);
    return fl__fail(err, status == dnnl_unimplemented ? FL_E_UNSUPPORTED : FL_E_FAIL,
                    "oneDNN: %s: status %d; check the installed libdnnl", call, (int)status);
}

fl_status fl__onednn_sgemm(int M, int N, int K, float alpha, const float *A, int64_t lda,
                           const float *B, int64_t ldb, bool transpose_b, float beta, float *C,
                           int64_t ldc, fl_err *err)
{
    return check(dnnl_sgemm('N', transpose_b ? 'T' : 'N', M, N, K, alpha, A, lda, B, ldb, beta,
                            C, ldc),
                 "dnnl_sgemm", err);
}
