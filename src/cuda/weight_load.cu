/* weight_load.cu - weights into the kernels' order, on the device; random ones for benches.
 *
 * Codes come as the file has them; a thread makes eight bytes at a time of a channel's share of
 * a block of 64 k (gemm_cuda.h). The sums of a channel's codes are added by a kernel of their
 * own, one warp per channel.
 * SPDX-License-Identifier: MIT */
#include "cuda/engine_kernels.h"

#include "cuda/attention_sm90.h"

#include <cuda_fp16.h>
#include <cuda_runtime.h>

enum { THREADS = 256 };

/* Row r of the source, column k. */
DEV int code_at(const fl_cuda_pack *p, int r, int k)
{
    if (k >= p->K) return 0;
    const int c = k < p->n_in ? k : p->extra[k - p->n_in];
    if (p->bits == 8) return ((const int8_t *)p->codes)[(int64_t)r * p->n_columns + c];
    const int64_t row_bytes = (p->n_columns + 1) / 2;
    const uint8_t two = ((const uint8_t *)p->codes)[(int64_t)r * row_bytes + c / 2];
    return (int)(int8_t)(c % 2 ? two & 0xf0 : two << 4) >> 4;
}

DEV uint32_t four_codes_at(const fl_cuda_pack *p, int r, int k)
{
    uint32_t w = 0;
    for (int b = 0; b < 4; b++) w |= (uint32_t)(code_at(p, r, k + b) & 255) << 8 * b;
    return w;
}

/* Four k of a block from k = 4 q on, q = 0..7, and those 32 behind them. */
DEV void put_words(const fl_cuda_pack *p, int r, int block, int q)
{
    const int n = p->n0 + r * p->step, panel = n / 16, row = n % 16 / 2;
    const int64_t n_blocks = (p->K + 63) / 64;
    const uint32_t first = four_codes_at(p, r, 64 * block + 4 * q),
                   second = four_codes_at(p, r, 64 * block + 4 * q + 32);
    if (p->bits == 4) {
        const int lane = row * 4 + q % 4, j = n % 2 + q / 4 * 2;
        ((uint32_t *)p->dst)[(panel * n_blocks + block) * 128 + lane * 4 + j] =
            (first << 4 & 0xf0f0f0f0u) | (second & 0x0f0f0f0fu);
        return;
    }
    uint8_t *to = p->dst + ((panel * 2 + n % 2) * n_blocks + block) * 512 + row * 64;
    *(uint32_t *)(to + (q / 4 ^ row / 2) * 16 + q % 4 * 4) = first;
    *(uint32_t *)(to + ((q / 4 + 2) ^ row / 2) * 16 + q % 4 * 4) = second;
}

__global__ void pack_kernel(const fl_cuda_pack p, int64_t n_items)
{
    const int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    const int n_blocks = (p.K + 63) / 64;
    if (i >= n_items) return;
    put_words(&p, (int)(i / 8 / n_blocks), (int)(i / 8 % n_blocks), (int)(i % 8));
}

__global__ void sum_kernel(const fl_cuda_pack p)
{
    const int r = blockIdx.x * (THREADS / 32) + threadIdx.x / 32;
    int sum = 0;
    if (r >= p.N) return;
    for (int k = threadIdx.x % 32; k < p.K; k += 32) sum += code_at(&p, r, k);
    sum = __reduce_add_sync(0xffffffffu, sum);
    if (threadIdx.x % 32 == 0) p.col_sum[p.n0 + r * p.step] = sum;
}

static fl_status finish(const char *what, fl_err *err)
{
    const cudaError_t e = cudaGetLastError();
    if (e == cudaSuccess) return FL_OK;
    return fl__fail(err, FL_E_FAIL, "cuda: %s: %s; see the GPU's log", what,
                    cudaGetErrorString(e));
}

static unsigned n_blocks_of(int64_t n)
{
    return (unsigned)((n + THREADS - 1) / THREADS);
}

extern "C" fl_status fl__cuda_pack_codes(const fl_cuda_pack *p, void *stream, fl_err *err)
{
    const int64_t n_items = (int64_t)p->N * ((p->K + 63) / 64) * 8;
    pack_kernel<<<n_blocks_of(n_items), THREADS, 0, (cudaStream_t)stream>>>(*p, n_items);
    sum_kernel<<<n_blocks_of((int64_t)p->N * 32), THREADS, 0, (cudaStream_t)stream>>>(*p);
    return finish("packing of weights", err);
}

/* ---- 16 bits ----------------------------------------------------------------------------- */

__global__ void convert_kernel(uint16_t *y, const void *x, fl_float_type type, int64_t n)
{
    const int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    if (i >= n) return;
    if (type == FL_FLOAT_BF16) {
        y[i] = ((const uint16_t *)x)[i];
        return;
    }
    const float v = type == FL_FLOAT_F32
                        ? ((const float *)x)[i]
                        : __half2float(__ushort_as_half(((const uint16_t *)x)[i]));
    y[i] = (uint16_t)bf16x2(v, 0.0f);
}

extern "C" fl_status fl__cuda_to_bf16(uint16_t *y, const void *x, fl_float_type type, int64_t n,
                                      void *stream, fl_err *err)
{
    if (n == 0) return FL_OK;
    convert_kernel<<<n_blocks_of(n), THREADS, 0, (cudaStream_t)stream>>>(y, x, type, n);
    return finish("conversion to bf16", err);
}

/* ---- random ------------------------------------------------------------------------------ */

DEV uint64_t mixed(uint64_t v)
{
    v = (v ^ v >> 30) * 0xbf58476d1ce4e5b9ull;
    v = (v ^ v >> 27) * 0x94d049bb133111ebull;
    return v ^ v >> 31;
}

/* Eight bytes per thread: (random & keep) | set. */
__global__ void random_kernel(uint64_t *y, int64_t n, uint64_t seed, uint64_t keep,
                              uint64_t set)
{
    const int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    if (i < n) y[i] = (mixed(seed * 0x9e3779b97f4a7c15ull + (uint64_t)i) & keep) | set;
}

static fl_status fill_random(void *y, int64_t n_bytes, uint64_t seed, uint64_t keep,
                             uint64_t set, void *stream, fl_err *err)
{
    const int64_t n = n_bytes / 8;
    if (n == 0) return FL_OK;
    random_kernel<<<n_blocks_of(n), THREADS, 0, (cudaStream_t)stream>>>((uint64_t *)y, n, seed,
                                                                        keep, set);
    return finish("random weights", err);
}

extern "C" fl_status fl__cuda_random_bytes(void *y, int64_t n_bytes, uint64_t seed,
                                           void *stream, fl_err *err)
{
    return fill_random(y, n_bytes, seed, ~0ull, 0, stream, err);
}

extern "C" fl_status fl__cuda_random_bf16(uint16_t *y, int64_t n, float least, uint64_t seed,
                                          void *stream, fl_err *err)
{
    uint32_t bits;
    memcpy(&bits, &least, sizeof bits);
    const uint64_t exponent = bits >> 16 & 0x7f80u;
    return fill_random(y, 2 * n, seed, 0x807f807f807f807full, exponent * 0x0001000100010001ull,
                       stream, err);
}
