/* rowops_cuda.cu - norm, SiLU times up, embedding, rotary embedding; per-token quantising.
 *
 * Norm and quantiser: one CTA per row, which it holds in registers, eight values per thread and
 * up to four times that. The others: eight values per thread, one thread after another.
 * SPDX-License-Identifier: MIT */
#include "cuda/rowops_cuda.h"

#include "cuda/activation.h"

enum { THREADS = 256, MAX_WIDTH = 32768 };

typedef struct norm_args {
    fl_cuda_row x;
    fl_cuda_matrix y;
    fl_cuda_codes codes;
    fl_cuda_grid grid;
    int n;
} norm_args;

DEV void store_eight(const fl_cuda_matrix *y, int64_t m, int c, const float *v)
{
    if (y->f32) {
        float4 *to = (float4 *)((float *)y->data + m * y->ld + c);
        to[0] = make_float4(v[0], v[1], v[2], v[3]);
        to[1] = make_float4(v[4], v[5], v[6], v[7]);
    } else
        *(uint4 *)((uint16_t *)y->data + m * y->ld + c) = make_uint4(
            bf16x2(v[0], v[1]), bf16x2(v[2], v[3]), bf16x2(v[4], v[5]), bf16x2(v[6], v[7]));
}

/* ---- rows in registers ------------------------------------------------------------------- */

DEV float block_sum(float v, float *shared)
{
    v = warp_sum(v);
    if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = v;
    __syncthreads();
    return warp_sum(threadIdx.x % 32 < blockDim.x / 32 ? shared[threadIdx.x % 32] : 0.0f);
}

DEV float block_max(float v, float *shared)
{
    v = warp_max(v);
    if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = v;
    __syncthreads();
    return warp_max(threadIdx.x % 32 < blockDim.x / 32 ? shared[threadIdx.x % 32] : 0.0f);
}

DEV int chunk_at(int i)
{
    return 8 * (i * blockDim.x + threadIdx.x);
}

/* The thread's chunks of the row, zero beyond it: normed, gated, times premul. */
template <int F, int chunks>
DEV void load_chunks(float (*v)[8], const norm_args *p, int64_t m, float *shared)
{
    const fl_cuda_row *x = &p->x;
    const bool norm = x->gain && !x->up;
    float sum = 0;
#pragma unroll
    for (int i = 0; i < chunks; i++) {
#pragma unroll
        for (int j = 0; j < 8; j++) v[i][j] = 0;
        if (chunk_at(i) >= p->n) continue;
        if (norm) load_values<F, 8>(v[i], x, m, chunk_at(i));
        else load_row<F, 8>(v[i], x, m, chunk_at(i), 1.0f);
    }
    if (!norm) return;
#pragma unroll
    for (int i = 0; i < chunks; i++)
#pragma unroll
        for (int j = 0; j < 8; j++) sum = fmaf(v[i][j], v[i][j], sum);
    const float factor = 1.0f / sqrtf(block_sum(sum, shared) / (float)p->n + x->eps);
#pragma unroll
    for (int i = 0; i < chunks; i++)
        if (chunk_at(i) < p->n) scale_row<8>(v[i], x, chunk_at(i), factor);
}

template <int F, int chunks>
__global__ void __launch_bounds__(1024, 1) norm_kernel(const norm_args p)
{
    __shared__ float shared[32];
    float v[chunks][8];
    const int64_t m = blockIdx.x;
    load_chunks<F, chunks>(v, &p, m, shared);
#pragma unroll
    for (int i = 0; i < chunks; i++)
        if (chunk_at(i) < p.n) store_eight(&p.y, m, chunk_at(i), v[i]);
}

template <int F, int chunks>
__global__ void __launch_bounds__(1024, 1) token_kernel(const norm_args p)
{
    __shared__ float squares[32], tops[32], bottoms[32], sums[32];
    float v[chunks][8], top = 0, bottom = 0;
    int sum = 0;
    const int64_t m = blockIdx.x;
    load_chunks<F, chunks>(v, &p, m, squares);
#pragma unroll
    for (int i = 0; i < chunks; i++)
#pragma unroll
        for (int j = 0; j < 8; j++) {
            top = fmaxf(top, v[i][j]);
            bottom = fmaxf(bottom, -v[i][j]);
        }
    top = block_max(top, tops);
    bottom = block_max(bottom, bottoms);
    const token_grid grid = make_grid(&p.grid, top, bottom);
#pragma unroll
    for (int i = 0; i < chunks; i++) {
        uint2 w = make_uint2(0, 0);
        if (chunk_at(i) < p.n)
            w = make_uint2(four_codes(&grid, v[i]), four_codes(&grid, v[i] + 4));
        if (chunk_at(i) < p.codes.ld)
            *(uint2 *)(p.codes.codes + m * p.codes.ld + chunk_at(i)) = w;
        sum = sum_codes(w.x, sum_codes(w.y, sum));
    }
    /* exact: |sum| <= 32768 * 128 = 2^22 */
    const float total = block_sum((float)sum, sums);
    if (threadIdx.x != 0) return;
    if (p.codes.x_sum) p.codes.x_sum[m] = (int32_t)total;
    p.codes.x_scale[m] = grid.scale;
    p.codes.x_zero[m] = grid.zero;
}

template <int F, int chunks>
static void launch_chunks(const norm_args *p, int M, int threads, cudaStream_t stream)
{
    if (p->codes.codes) token_kernel<F, chunks><<<M, threads, 0, stream>>>(*p);
    else norm_kernel<F, chunks><<<M, threads, 0, stream>>>(*p);
}

template <int F>
static void launch_norm(const norm_args *p, int M, int width, cudaStream_t stream)
{
    const int chunks = width <= 8192 ? 1 : width <= 16384 ? 2 : 4;
    const int threads = (width + 256 * chunks - 1) / (256 * chunks) * 32;
    if (chunks == 1) launch_chunks<F, 1>(p, M, threads, stream);
    else if (chunks == 2) launch_chunks<F, 2>(p, M, threads, stream);
    else launch_chunks<F, 4>(p, M, threads, stream);
}

static fl_status finish(const char *what, int M, int n, fl_err *err)
{
    const cudaError_t e = cudaGetLastError();
    if (e == cudaSuccess) return FL_OK;
    return fl__fail(err, FL_E_FAIL, "cuda: %s [%d, %d]: %s; see the GPU's log", what, M, n,
                    cudaGetErrorString(e));
}

static fl_status bad_width(const char *what, int n, fl_err *err)
{
    return fl__fail(err, FL_E_INPUT,
                    "cuda: %s of %d channels: not a multiple of 8 up to %d; use --device cpu",
                    what, n, (int)MAX_WIDTH);
}

extern "C" fl_status fl__cuda_quantize_token(const fl_cuda_codes *y, const fl_cuda_row *x,
                                             int M, int n, const fl_cuda_grid *grid,
                                             void *stream, fl_err *err)
{
    const norm_args p = {*x, {NULL, 0, false}, *y, *grid, n};
    if (n % 8 != 0 || y->ld > MAX_WIDTH) return bad_width("per-token quantiser", n, err);
    if (M == 0) return FL_OK;
    if (x->up) launch_norm<FRONT_SILU>(&p, M, (int)y->ld, (cudaStream_t)stream);
    else if (x->x_f32) launch_norm<FRONT_F32>(&p, M, (int)y->ld, (cudaStream_t)stream);
    else launch_norm<FRONT_BF16>(&p, M, (int)y->ld, (cudaStream_t)stream);
    return finish("per-token quantiser", M, n, err);
}

extern "C" fl_status fl__cuda_rms_norm(const fl_cuda_matrix *y, const fl_cuda_matrix *x,
                                       const float *gain, int M, int n, float eps, void *stream,
                                       fl_err *err)
{
    norm_args p = {};
    if (n % 8 != 0 || n > MAX_WIDTH) return bad_width("norm", n, err);
    if (M == 0) return FL_OK;
    p.x.x = x->data;
    p.x.ldx = x->ld;
    p.x.x_f32 = x->f32;
    p.x.gain = gain;
    p.x.eps = eps;
    p.y = *y;
    p.n = n;
    if (x->f32) launch_norm<FRONT_F32>(&p, M, n, (cudaStream_t)stream);
    else launch_norm<FRONT_BF16>(&p, M, n, (cudaStream_t)stream);
    return finish("norm", M, n, err);
}

/* ---- element by element ------------------------------------------------------------------ */

/* What a grid of one thread per eight values has to do. */
typedef struct eights {
    int M, per_row; /* chunks of eight */
} eights;

DEV bool my_eight(const eights *e, int *m, int *c)
{
    const int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    *m = (int)(i / e->per_row);
    *c = (int)(i % e->per_row) * 8;
    return *m < e->M;
}

static unsigned blocks_of(const eights *e)
{
    return (unsigned)(((int64_t)e->M * e->per_row + THREADS - 1) / THREADS);
}

__global__ void silu_mul_kernel(const fl_cuda_matrix y, const fl_cuda_row x, const eights e)
{
    float v[8];
    int m, c;
    if (!my_eight(&e, &m, &c)) return;
    load_row<FRONT_SILU, 8>(v, &x, m, c, 1.0f);
    store_eight(&y, m, c, v);
}

extern "C" fl_status fl__cuda_silu_mul(const fl_cuda_matrix *y, const fl_cuda_matrix *x,
                                       const uint16_t *up, int M, int n, void *stream,
                                       fl_err *err)
{
    const eights e = {M, n / 8};
    fl_cuda_row row = {};
    if (n % 8 != 0) return bad_width("silu", n, err);
    if (M == 0) return FL_OK;
    row.x = x->data;
    row.ldx = x->ld;
    row.up = up;
    silu_mul_kernel<<<blocks_of(&e), THREADS, 0, (cudaStream_t)stream>>>(*y, row, e);
    return finish("silu", M, n, err);
}

__global__ void embed_kernel(const fl_cuda_matrix y, const uint16_t *table, const int32_t *ids,
                             int n_ids, const eights e)
{
    float v[8] = {};
    int m, c;
    if (!my_eight(&e, &m, &c)) return;
    const int32_t id = ids[m];
    if (id >= 0 && id < n_ids) load_bf16<8>(v, table + (int64_t)id * e.per_row * 8 + c);
    store_eight(&y, m, c, v);
}

extern "C" fl_status fl__cuda_embed(const fl_cuda_matrix *y, const uint16_t *table,
                                    const int32_t *ids, int M, int n, int n_ids, void *stream,
                                    fl_err *err)
{
    const eights e = {M, n / 8};
    if (n % 8 != 0) return bad_width("embedding", n, err);
    if (M == 0) return FL_OK;
    embed_kernel<<<blocks_of(&e), THREADS, 0, (cudaStream_t)stream>>>(*y, table, ids, n_ids, e);
    return finish("embedding", M, n, err);
}

typedef struct rope_args {
    fl_cuda_matrix x;
    const float *cos, *sin;
    const int32_t *positions;
    int D;
    eights e; /* of the first halves of the heads */
} rope_args;

DEV void load_eight(float *v, const fl_cuda_matrix *x, int64_t m, int c)
{
    if (x->f32) load_f32<8>(v, (const float *)x->data + m * x->ld + c);
    else load_bf16<8>(v, (const uint16_t *)x->data + m * x->ld + c);
}

__global__ void rope_kernel(const rope_args p)
{
    alignas(16) float a[8], b[8], c[8], s[8], y[8];
    const int half = p.D / 2;
    int m, at;
    if (!my_eight(&p.e, &m, &at)) return;
    const int i = at % half, column = at / half * p.D + i;
    const int64_t angle = (int64_t)p.positions[m] * half + i;
    load_eight(a, &p.x, m, column);
    load_eight(b, &p.x, m, column + half);
    load_f32<8>(c, p.cos + angle);
    load_f32<8>(s, p.sin + angle);
#pragma unroll
    for (int j = 0; j < 8; j++) y[j] = __fsub_rn(__fmul_rn(a[j], c[j]), __fmul_rn(b[j], s[j]));
    store_eight(&p.x, m, column, y);
#pragma unroll
    for (int j = 0; j < 8; j++) y[j] = __fadd_rn(__fmul_rn(b[j], c[j]), __fmul_rn(a[j], s[j]));
    store_eight(&p.x, m, column + half, y);
}

extern "C" fl_status fl__cuda_rope(const fl_cuda_matrix *x, const float *cos, const float *sin,
                                   const int32_t *positions, int M, int n_heads, int D,
                                   void *stream, fl_err *err)
{
    const rope_args p = {*x, cos, sin, positions, D, {M, n_heads * D / 16}};
    if (D % 16 != 0) return bad_width("rotary embedding", D, err);
    if (M == 0) return FL_OK;
    rope_kernel<<<blocks_of(&p.e), THREADS, 0, (cudaStream_t)stream>>>(p);
    return finish("rotary embedding", M, n_heads * D, err);
}
