/* transform_any.cu - the transform of any shape up to 256 x 256; the choice of kernel.
 *
 * One CTA per row. U lies in shared memory as bf16; Y is made 32 columns at a time, which are
 * then turned by left, every sum in the CPU's order. The range of X' is not known before its
 * end and X' is not kept: everything is computed twice.
 * SPDX-License-Identifier: MIT */
#include "cuda/activation.h"

enum { THREADS = 512, BLOCK = 32, N_WARPS = THREADS / 32 };

typedef struct any_memory {
    float squares[N_WARPS], top[N_WARPS], bottom[N_WARPS];
    int32_t sum[N_WARPS];
} any_memory;

DEV float bf16_value(uint16_t v)
{
    return __uint_as_float((uint32_t)v << 16);
}

DEV float value_at(const fl_cuda_row *x, int64_t m, int c)
{
    const int64_t at = m * x->ldx + c;
    return x->x_f32 ? ((const float *)x->x)[at] : bf16_value(((const uint16_t *)x->x)[at]);
}

DEV float any_sum(float sum, any_memory *s)
{
    sum = warp_sum(sum);
    __syncthreads();
    if (threadIdx.x % 32 == 0) s->squares[threadIdx.x / 32] = sum;
    __syncthreads();
    sum = 0;
    for (int w = 0; w < N_WARPS; w++) sum += s->squares[w];
    return sum;
}

DEV void any_add(const fl_cuda_row *x, int n, int64_t m)
{
    float *row = (float *)x->x + m * x->ldx;
    for (int c = threadIdx.x; c < n; c += THREADS) {
        const int64_t at = m * x->ld_add + c;
        row[c] = __fadd_rn(row[c], x->add_f32 ? ((const float *)x->add)[at]
                                              : bf16_value(((const uint16_t *)x->add)[at]));
    }
}

DEV row_stats any_stats(const transform_args *p, any_memory *s, int m)
{
    const int n = p->n1 * p->n2;
    row_stats stats = {0, 1};
    float sum = 0;
    if (!is_normed(&p->x)) return stats;
    if (p->x.layer_norm) {
        for (int c = threadIdx.x; c < n; c += THREADS) sum += value_at(&p->x, m, c);
        stats.mean = any_sum(sum, s) / (float)n;
        sum = 0;
    }
    for (int c = threadIdx.x; c < n; c += THREADS) {
        const float v = value_at(&p->x, m, c) - stats.mean;
        sum = fmaf(v, v, sum);
    }
    stats.factor = norm_factor(any_sum(sum, s), n, p->x.eps);
    return stats;
}

DEV void any_u(uint16_t *u, const transform_args *p, any_memory *s, int m)
{
    const fl_cuda_row *x = &p->x;
    if (x->add) any_add(x, p->n1 * p->n2, m);
    const row_stats stats = any_stats(p, s, m);
    for (int c = threadIdx.x; c < p->n1 * p->n2; c += THREADS) {
        float v = value_at(x, m, c);
        if (x->up) v = silu(v) * bf16_value(x->up[m * x->ldx + c]);
        finish_row<1>(&v, x, c, stats);
        u[c] = (uint16_t)bf16x2(v, 0.0f);
    }
}

/* y [n1][BLOCK] = bf16(U right) for columns j0.. */
DEV void any_block(uint16_t *y, const uint16_t *u, const transform_args *p, int j0)
{
    const uint16_t *right = (const uint16_t *)p->factors;
    const int j = j0 + threadIdx.x % BLOCK;
    for (int i = threadIdx.x / BLOCK; i < p->n1 && j < p->n2; i += THREADS / BLOCK) {
        float sum = 0;
        for (int k = 0; k < p->n2; k++)
            sum = fmaf(bf16_value(u[i * p->n2 + k]), bf16_value(right[k * p->n2 + j]), sum);
        y[i * BLOCK + threadIdx.x % BLOCK] = (uint16_t)bf16x2(sum, 0.0f);
    }
}

DEV float any_value(const uint16_t *y, const transform_args *p, int a)
{
    const uint16_t *left = (const uint16_t *)p->factors + p->n2 * p->n2;
    float sum = 0;
    for (int i = 0; i < p->n1; i++)
        sum = fmaf(bf16_value(left[i * p->n1 + a]),
                   bf16_value(y[i * BLOCK + threadIdx.x % BLOCK]), sum);
    return sum;
}

/* grid NULL: the range of X' into s; else codes and their sum. */
DEV void any_pass(uint16_t *y, const uint16_t *u, const transform_args *p, any_memory *s,
                  const token_grid *grid, int m)
{
    float top = 0, bottom = 0;
    int sum = 0;
    for (int j0 = 0; j0 < p->n2; j0 += BLOCK) {
        const int j = j0 + threadIdx.x % BLOCK;
        __syncthreads();
        any_block(y, u, p, j0);
        __syncthreads();
        for (int a = threadIdx.x / BLOCK; a < p->n1 && j < p->n2; a += THREADS / BLOCK) {
            const float v = any_value(y, p, a);
            top = fmaxf(top, v);
            bottom = fmaxf(bottom, -v);
            if (!grid) continue;
            const float t = fminf(fmaxf(__fmul_rn(v, grid->inv_scale), grid->lo), grid->hi);
            const int code = (int)rintf(t) + grid->zero;
            p->y.codes[m * p->y.ld + a * p->n2 + j] = (int8_t)code;
            sum += code;
        }
    }
    top = warp_max(top);
    bottom = warp_max(bottom);
    sum = __reduce_add_sync(0xffffffffu, sum);
    if (threadIdx.x % 32 == 0) {
        const int w = threadIdx.x / 32;
        s->top[w] = top;
        s->bottom[w] = bottom;
        s->sum[w] = sum;
    }
    __syncthreads();
}

__global__ void __launch_bounds__(THREADS) any_kernel(const transform_args p)
{
    extern __shared__ __align__(16) uint16_t u[];
    __shared__ uint16_t y[256 * BLOCK];
    __shared__ any_memory s;
    const int n = p.n1 * p.n2;
    for (int m = blockIdx.x; m < p.M; m += gridDim.x) {
        float top = 0, bottom = 0;
        int sum = 0;
        __syncthreads();
        any_u(u, &p, &s, m);
        any_pass(y, u, &p, &s, NULL, m);
        for (int w = 0; w < N_WARPS; w++) top = fmaxf(top, s.top[w]);
        for (int w = 0; w < N_WARPS; w++) bottom = fmaxf(bottom, s.bottom[w]);
        const token_grid grid = make_grid(&p.grid, top, bottom);
        any_pass(y, u, &p, &s, &grid, m);
        for (int c = n + threadIdx.x; c < p.y.ld; c += THREADS) p.y.codes[m * p.y.ld + c] = 0;
        if (threadIdx.x != 0) continue;
        for (int w = 0; w < N_WARPS; w++) sum += s.sum[w];
        if (p.y.x_sum) p.y.x_sum[m] = sum;
        p.y.x_scale[m] = grid.scale;
        p.y.x_zero[m] = grid.zero;
    }
}

static cudaError_t launch_any(const transform_args *p, int n_sm, cudaStream_t stream)
{
    const int n_bytes = 2 * p->n1 * p->n2;
    const cudaError_t e =
        cudaFuncSetAttribute(any_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, n_bytes);
    if (e != cudaSuccess) return e;
    any_kernel<<<FL_MIN(p->M, 4 * n_sm), THREADS, n_bytes, stream>>>(*p);
    return cudaGetLastError();
}

extern "C" fl_status fl__cuda_transform_quantize(const fl_cuda_codes *y, const fl_cuda_row *x,
                                                 int M, const fl_cuda_transform *t,
                                                 const fl_cuda_grid *grid, int n_sm,
                                                 void *stream, fl_err *err)
{
    const transform_args p = {*x, *y, *grid, t->factors, t->n1, t->n2, M};
    cudaError_t e;
    if (M == 0) return FL_OK;
    if (t->n1 > 256 || t->n2 > 256) e = cudaErrorInvalidValue;
    else if (!fl__cuda_transform_is_fast(t->n1, t->n2))
        e = launch_any(&p, n_sm, (cudaStream_t)stream);
    else if (t->n1 < 64) e = fl__cuda_transform_small(&p, n_sm, (cudaStream_t)stream);
    else if (t->n2 == 64) return fl__cuda_transform_64x64(&p, n_sm, (cudaStream_t)stream, err);
    else if (t->n1 == 64) return fl__cuda_transform_64x128(&p, n_sm, (cudaStream_t)stream, err);
    else if (t->n1 == 128)
        return fl__cuda_transform_128x224(&p, n_sm, (cudaStream_t)stream, err);
    else return fl__cuda_transform_112x128(&p, n_sm, (cudaStream_t)stream, err);
    if (e != cudaSuccess)
        return fl__fail(err, FL_E_FAIL, "cuda: transform [%d, %d x %d]: %s; see the GPU's log",
                        M, t->n1, t->n2, cudaGetErrorString(e));
    return FL_OK;
}
