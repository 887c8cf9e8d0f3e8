/* tensor_map.cu - see tensor_map.h.
 * SPDX-License-Identifier: MIT */
#include "cuda/gemm_cuda.h"
#include "cuda/tensor_map.h"

#include <cuda_runtime.h>

typedef CUresult encode_fn(CUtensorMap *, CUtensorMapDataType, cuuint32_t, void *,
                           const cuuint64_t *, const cuuint64_t *, const cuuint32_t *,
                           const cuuint32_t *, CUtensorMapInterleave, CUtensorMapSwizzle,
                           CUtensorMapL2promotion, CUtensorMapFloatOOBfill);

/* The driver's function, looked up at the first call; the lookup is idempotent. */
static encode_fn *find_encode(void)
{
    static encode_fn *found = NULL;
    void *fn = NULL;
    cudaDriverEntryPointQueryResult how;

    if (found) return found;
    if (cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &fn, 12000,
                                         cudaEnableDefault, &how) != cudaSuccess)
        return NULL;
    found = how == cudaDriverEntryPointSuccess ? (encode_fn *)fn : NULL;
    return found;
}

fl_status fl__tensor_map(CUtensorMap *map, const tensor_2d *t, fl_err *err)
{
    const cuuint64_t dims[2] = {t->cols, t->rows}, strides[1] = {t->row_bytes};
    const cuuint32_t box[2] = {t->box_cols, t->box_rows}, steps[2] = {1, 1};
    encode_fn *encode = find_encode();

    if (!encode)
        return fl__fail(
            err, FL_E_UNSUPPORTED,
            "cuda: tensor maps: the driver has no cuTensorMapEncodeTiled; update it");
    const CUresult r =
        encode(map, t->type, 2, (void *)t->data, dims, strides, box, steps,
               CU_TENSOR_MAP_INTERLEAVE_NONE,
               t->swizzle ? CU_TENSOR_MAP_SWIZZLE_128B : CU_TENSOR_MAP_SWIZZLE_NONE,
               CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    if (r != CUDA_SUCCESS)
        return fl__fail(err, FL_E_FAIL,
                        "cuda: tensor map [%llu, %llu] of %llu-byte rows: error %d; check the "
                        "alignment of the buffer",
                        (unsigned long long)t->rows, (unsigned long long)t->cols,
                        (unsigned long long)t->row_bytes, (int)r);
    return FL_OK;
}
