/* engine_kernels.cu - embedding, gathering rows: a thread takes eight neighbouring values.
 * SPDX-License-Identifier: MIT */
#include "cuda/engine_kernels.h"

#include "cuda/row_values.h"

#include <cuda_fp16.h>

enum { THREADS = 256, MAX_WIDTH = 32768 };

static fl_status finish(const char *what, int M, int n, fl_err *err)
{
    const cudaError_t e = cudaGetLastError();
    if (e == cudaSuccess) return FL_OK;
    return fl__fail(err, FL_E_FAIL, "cuda: %s [%d, %d]: %s; see the GPU's log", what, M, n,
                    cudaGetErrorString(e));
}

/* The thread's eight of M rows of n; false: none. */
DEV bool my_eight(int M, int n, int *m, int *c)
{
    const int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    *m = (int)(i / (n / 8));
    *c = (int)(i % (n / 8)) * 8;
    return *m < M;
}

static unsigned n_blocks(int64_t M, int n)
{
    return (unsigned)((M * (n / 8) + THREADS - 1) / THREADS);
}

static fl_status check_width(const char *what, int n, fl_err *err)
{
    if (n % 8 == 0 && n <= MAX_WIDTH) return FL_OK;
    return fl__fail(err, FL_E_UNSUPPORTED,
                    "cuda: %s of %d channels: not a multiple of 8 up to %d; use --device cpu",
                    what, n, (int)MAX_WIDTH);
}

/* ---- embedding --------------------------------------------------------------------------- */

DEV float element(const void *table, fl_float_type type, int64_t i)
{
    if (type == FL_FLOAT_F32) return ((const float *)table)[i];
    const uint16_t u = ((const uint16_t *)table)[i];
    if (type == FL_FLOAT_BF16) return __uint_as_float((uint32_t)u << 16);
    return __half2float(__ushort_as_half(u));
}

__global__ void embed_rows_kernel(const fl_cuda_embedding e, int M)
{
    float v[8];
    int m, c;
    if (!my_eight(M, e.n, &m, &c)) return;
    const int id = min(max(e.ids[m], 0), e.n_ids - 1);
    for (int i = 0; i < 8; i++) v[i] = element(e.table, e.type, (int64_t)id * e.n + c + i);
    if (e.positions) {
        const int64_t at = (int64_t)(e.row_position[m] + e.offset) * e.n + c;
        for (int i = 0; i < 8; i++)
            v[i] = __fadd_rn(v[i], element(e.positions, e.positions_type, at + i));
    }
    const fl_cuda_matrix y = {e.y, e.ldy, true};
    store_eight(&y, m, c, v);
}

extern "C" fl_status fl__cuda_embed_rows(const fl_cuda_embedding *e, int M, void *stream,
                                         fl_err *err)
{
    const fl_status st = check_width("embedding", e->n, err);
    if (st != FL_OK || M == 0) return st;
    embed_rows_kernel<<<n_blocks(M, e->n), THREADS, 0, (cudaStream_t)stream>>>(*e, M);
    return finish("embedding", M, e->n, err);
}

/* ---- rows -------------------------------------------------------------------------------- */

__global__ void gather_kernel(const fl_cuda_matrix y, const fl_cuda_matrix x,
                              const int32_t *rows, int M, int n)
{
    float v[8];
    int m, c;
    if (!my_eight(M, n, &m, &c)) return;
    load_eight(v, &x, rows[m], c);
    store_eight(&y, m, c, v);
}

extern "C" fl_status fl__cuda_gather_rows(const fl_cuda_matrix *y, const fl_cuda_matrix *x,
                                          const int32_t *rows, int M, int n, void *stream,
                                          fl_err *err)
{
    if (M == 0) return FL_OK;
    gather_kernel<<<n_blocks(M, n), THREADS, 0, (cudaStream_t)stream>>>(*y, *x, rows, M, n);
    return finish("gather", M, n, err);
}
