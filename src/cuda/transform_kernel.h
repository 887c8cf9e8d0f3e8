/* transform_kernel.h - front, two chained products and quantiser in one kernel; its launch.
 *
 * A group of N2 / 32 warps turns one row at a time; a CTA has `groups` of them, which share the
 * packed factors in shared memory and nothing else. With Z = (U right)^T a warp's first product
 * is Z[32 j, i] = right^T[j, k] * U^T[k, i], whose accumulators, rounded to bf16, are the B
 * fragments of the second, X'[a, j] = left^T[a, i] * Z^T[i, j]: no trip through shared memory,
 * and X' stays in registers until the row's range is known. Two barriers a row.
 *
 * Bare bf16 rows are copied asynchronously into the next of two U buffers; other fronts pull
 * their rows into L2 a row ahead and write U from registers.
 * SPDX-License-Identifier: MIT */
#ifndef FL_CUDA_TRANSFORM_KERNEL_H
#define FL_CUDA_TRANSFORM_KERNEL_H

#include "cuda/transform_args.h"

#include "cuda/activation.h"
#include "cuda/mma_bf16.h"

enum { MAX_WARPS = 8 };

/* What follows from a shape. */
template <int N1, int N2> struct shape {
    static constexpr int tiles = (N1 + 15) / 16; /* of a, and of i */
    static constexpr int warps = (N2 + 31) / 32; /* of a group */
    static constexpr int steps = 2 * warps;      /* of 16 k in the first product */
    static constexpr int threads = 32 * warps;
    static constexpr int n = N1 * N2;
    static constexpr int vec = N2 % 8 == 0 ? 8 : 4;  /* values moved together */
    static constexpr int u_stride = 64 * warps + 16; /* bytes of a row of U */
    static constexpr int u_bytes = 16 * tiles * u_stride;
    static constexpr int right_bytes = steps * steps * 512;
    static constexpr int left_bytes = tiles * tiles * 512;
};

/* What the warps of a group tell each other. */
typedef struct group_memory {
    float top[MAX_WARPS], bottom[MAX_WARPS], squares[MAX_WARPS];
    int32_t sum[MAX_WARPS];
} group_memory;

typedef struct group {
    uint32_t u, right, left; /* shared memory */
    group_memory *shared;
    int id, warp, lane, thread;
} group;

template <int bytes> DEV void copy_async(uint32_t to, const void *from)
{
    if (bytes == 16)
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(from)
                     : "memory");
    else
        asm volatile("cp.async.ca.shared.global [%0], [%1], 8;" ::"r"(to), "l"(from)
                     : "memory");
}

template <class S> DEV void group_sync(const group *g)
{
    named_barrier(1 + g->id, S::threads);
}

/* ---- fronts ------------------------------------------------------------------------------ */

/* Address in U of value c. */
template <class S, int N2> DEV uint32_t u_address(uint32_t u, int c)
{
    return u + (uint32_t)(c / N2 * S::u_stride + c % N2 * 2);
}

template <class S, int N2>
DEV void copy_row(const group *g, uint32_t u, const transform_args *p, int m)
{
    const uint16_t *row = (const uint16_t *)p->x.x + m * p->x.ldx;
    for (int c = g->thread * S::vec; c < S::n; c += S::threads * S::vec)
        copy_async<2 * S::vec>(u_address<S, N2>(u, c), row + c);
    asm volatile("cp.async.commit_group;" ::: "memory");
}

template <int F> DEV void prefetch_row(const transform_args *p, int m, int n)
{
    const int64_t at = m * p->x.ldx;
    if (F == FRONT_F32) prefetch_l2((const float *)p->x.x + at, 4 * n);
    else prefetch_l2((const uint16_t *)p->x.x + at, 2 * n);
    if (F == FRONT_SILU) prefetch_l2(p->x.up + at, 2 * n);
}

/* The sum of v - mean over the row, or of its square; the first pass does what is to be
 * added. */
template <class S, int F>
DEV float row_sum(const group *g, const transform_args *p, int m, bool first, bool squares,
                  float mean)
{
    float sum = 0;
#pragma unroll 4
    for (int c = g->thread * S::vec; c < S::n; c += S::threads * S::vec) {
        float v[S::vec];
        if (first) load_first<F, S::vec>(v, &p->x, m, c);
        else load_values<F, S::vec>(v, &p->x, m, c);
#pragma unroll
        for (int i = 0; i < S::vec; i++) {
            const float d = v[i] - mean;
            sum = squares ? fmaf(d, d, sum) : sum + d;
        }
    }
    sum = warp_sum(sum);
    group_sync<S>(g);
    if (g->lane == 0) g->shared->squares[g->warp] = sum;
    group_sync<S>(g);
    sum = 0;
    for (int w = 0; w < S::warps; w++) sum += g->shared->squares[w];
    return sum;
}

template <class S, int F>
DEV row_stats stats_of_row(const group *g, const transform_args *p, int m)
{
    row_stats stats = {0, 1};
    if (F == FRONT_SILU || (!is_normed(&p->x) && !p->x.add)) return stats;
    if (p->x.layer_norm) stats.mean = row_sum<S, F>(g, p, m, true, false, 0) / (float)S::n;
    const float squares = row_sum<S, F>(g, p, m, !p->x.layer_norm, true, stats.mean);
    stats.factor = norm_factor(squares, S::n, p->x.eps);
    return stats;
}

template <class S, int N2, int F>
DEV void make_u(const group *g, const transform_args *p, int m)
{
    constexpr int stride = S::threads * S::vec, n_loads = (S::n + stride - 1) / stride;
    const row_stats stats = stats_of_row<S, F>(g, p, m);
#pragma unroll 4
    for (int i = 0; i < n_loads; i++) {
        const int c = g->thread * S::vec + i * stride;
        if (S::n % stride && c >= S::n) break;
        float v[S::vec];
        load_row<F, S::vec>(v, &p->x, m, c, stats);
        const uint32_t to = u_address<S, N2>(g->u, c);
#pragma unroll
        for (int j = 0; j < S::vec; j += 4)
            asm volatile("st.shared.v2.u32 [%0], {%1, %2};" ::"r"(to + 2 * j),
                         "r"(bf16x2(v[j], v[j + 1])), "r"(bf16x2(v[j + 2], v[j + 3]))
                         : "memory");
    }
}

/* ---- products ---------------------------------------------------------------------------- */

/* z[i tile][8 j][half] = B fragments of bf16(U right) for the warp's 32 columns. */
template <class S> DEV void first_product(uint32_t (*z)[4][2], const group *g, uint32_t u)
{
    uint32_t a[2][S::steps][4];
#pragma unroll
    for (int t = 0; t < 2; t++)
#pragma unroll
        for (int k = 0; k < S::steps; k++)
            lds128(a[t][k],
                   g->right + (((g->warp * 2 + t) * S::steps + k) * 32 + g->lane) * 16);
    const uint32_t rows = u + (g->lane % 8) * S::u_stride + g->lane / 8 * 16;
#pragma unroll
    for (int i = 0; i < S::tiles; i++) {
        float acc[2][2][4] = {};
#pragma unroll
        for (int k = 0; k < S::steps; k += 2)
#pragma unroll
            for (int h = 0; h < 2; h++) {
                uint32_t b[4];
                ldmatrix(b, rows + (16 * i + 8 * h) * S::u_stride + 32 * k);
#pragma unroll
                for (int t = 0; t < 2; t++) mma_bf16(acc[t][h], a[t][k], b[0], b[1]);
#pragma unroll
                for (int t = 0; t < 2; t++) mma_bf16(acc[t][h], a[t][k + 1], b[2], b[3]);
            }
#pragma unroll
        for (int t = 0; t < 4; t++)
#pragma unroll
            for (int h = 0; h < 2; h++)
                z[i][t][h] = bf16x2(acc[t / 2][h][t % 2 * 2], acc[t / 2][h][t % 2 * 2 + 1]);
    }
}

/* acc[a tile][8 j]: X' of the warp's columns. */
template <class S>
DEV void second_product(float (*acc)[4][4], const group *g, const uint32_t (*z)[4][2])
{
#pragma unroll
    for (int r = 0; r < S::tiles; r++) {
#pragma unroll
        for (int i = 0; i < 16; i++) acc[r][i / 4][i % 4] = 0;
#pragma unroll
        for (int k = 0; k < S::tiles; k++) {
            uint32_t a[4];
            lds128(a, g->left + ((r * S::tiles + k) * 32 + g->lane) * 16);
#pragma unroll
            for (int t = 0; t < 4; t++) mma_bf16(acc[r][t], a, z[k][t][0], z[k][t][1]);
        }
    }
}

/* ---- codes ------------------------------------------------------------------------------- */

template <class S>
DEV token_grid row_grid(const group *g, const transform_args *p, float (*acc)[4][4])
{
    float top = 0, bottom = 0;
#pragma unroll
    for (int i = 0; i < S::tiles * 16; i++) {
        const float v = acc[i / 16][i / 4 % 4][i % 4];
        top = fmaxf(top, v);
        bottom = fminf(bottom, v);
    }
    top = warp_max(top);
    bottom = warp_max(-bottom);
    if (g->lane == 0) {
        g->shared->top[g->warp] = top;
        g->shared->bottom[g->warp] = bottom;
    }
    group_sync<S>(g);
#pragma unroll
    for (int w = 0; w < S::warps; w++) {
        top = fmaxf(top, g->shared->top[w]);
        bottom = fmaxf(bottom, g->shared->bottom[w]);
    }
    return make_grid(&p->grid, top, bottom);
}

/* Eight codes of row a from column j on; returns their sum. */
template <int N1, int N2>
DEV int put_codes(int8_t *row, const token_grid *grid, const float (*acc)[4], int half, int a,
                  int j)
{
    uint32_t w[2];
    float v[8];
#pragma unroll
    for (int t = 0; t < 4; t++) {
        v[2 * t] = acc[t][2 * half];
        v[2 * t + 1] = acc[t][2 * half + 1];
    }
    w[0] = four_codes(grid, v);
    w[1] = four_codes(grid, v + 4);
    if (N1 % 16 && a >= N1) return 0;
    if (N2 % 32 == 0) {
        *(uint2 *)(row + a * N2 + j) = make_uint2(w[0], w[1]);
        return sum_codes(w[0], sum_codes(w[1], 0));
    }
    int sum = 0;
#pragma unroll
    for (int i = 0; i < 2; i++) {
        if (j + 4 * i >= N2) continue;
        *(uint32_t *)(row + a * N2 + j + 4 * i) = w[i];
        sum = sum_codes(w[i], sum);
    }
    return sum;
}

template <class S, int N1, int N2>
DEV void put_row(const group *g, const transform_args *p, const token_grid *grid,
                 float (*acc)[4][4], int m)
{
    int8_t *row = p->y.codes + m * p->y.ld;
    const int j = 32 * g->warp + 8 * (g->lane % 4);
    int sum = 0;
#pragma unroll
    for (int r = 0; r < S::tiles; r++)
#pragma unroll
        for (int h = 0; h < 2; h++)
            sum += put_codes<N1, N2>(row, grid, acc[r], h, 16 * r + 8 * h + g->lane / 4, j);
    for (int c = S::n + 4 * g->thread; c < p->y.ld; c += 4 * S::threads)
        *(uint32_t *)(row + c) = 0;
    sum = __reduce_add_sync(0xffffffffu, sum);
    if (g->lane == 0) g->shared->sum[g->warp] = sum;
    if (g->thread == 0) {
        p->y.x_scale[m] = grid->scale;
        p->y.x_zero[m] = grid->zero;
    }
}

/* Between the barriers after put_row and before the next one. */
template <class S> DEV void put_sum(const group *g, const transform_args *p, int m)
{
    int sum = 0;
    if (g->thread != 0 || !p->y.x_sum) return;
    for (int w = 0; w < S::warps; w++) sum += g->shared->sum[w];
    p->y.x_sum[m] = sum;
}

/* ---- kernel ------------------------------------------------------------------------------ */

template <class S, int groups>
DEV void fill_shared(char *memory, const void *factors, int u_bytes)
{
    constexpr int n_words = (S::right_bytes + S::left_bytes) / 16;
    uint4 *to = (uint4 *)memory;
    for (int i = threadIdx.x; i < n_words; i += groups * S::threads)
        to[i] = ((const uint4 *)factors)[i];
    for (int i = threadIdx.x; i < groups * u_bytes / 16; i += groups * S::threads)
        to[n_words + i] = make_uint4(0, 0, 0, 0);
    __syncthreads();
}

template <int N1, int N2, int F, int groups>
__global__ void __launch_bounds__(groups *((N2 + 31) / 32) * 32, 1)
    transform_kernel(const transform_args p)
{
    typedef shape<N1, N2> S;
    extern __shared__ __align__(128) char memory[];
    __shared__ group_memory shared[groups];
    constexpr int n_buffers = F == FRONT_BARE ? 2 : 1;
    const int id = threadIdx.x / S::threads, thread = threadIdx.x % S::threads;
    fill_shared<S, groups>(memory, p.factors, n_buffers * S::u_bytes);
    const uint32_t base = smem_addr(memory);
    const group g = {base + S::right_bytes + S::left_bytes + id * n_buffers * S::u_bytes,
                     base,
                     base + S::right_bytes,
                     &shared[id],
                     id,
                     thread / 32,
                     thread % 32,
                     thread};
    const int step = groups * gridDim.x;
    int m = id * gridDim.x + blockIdx.x, buffer = 0;
    if (m >= p.M) return;
    if (F == FRONT_BARE) copy_row<S, N2>(&g, g.u, &p, m);
    for (int last = -1;; last = m, m += step) {
        float acc[S::tiles][4][4];
        uint32_t z[S::tiles][4][2];
        if (m >= p.M) {
            group_sync<S>(&g);
            put_sum<S>(&g, &p, last);
            return;
        }
        if (F == FRONT_BARE) asm volatile("cp.async.wait_group 0;" ::: "memory");
        else make_u<S, N2, F>(&g, &p, m);
        group_sync<S>(&g);
        if (last >= 0) put_sum<S>(&g, &p, last);
        if (F == FRONT_BARE) {
            if (m + step < p.M)
                copy_row<S, N2>(&g, g.u + (buffer ^ 1) * S::u_bytes, &p, m + step);
        } else if (g.thread == 0 && m + step < p.M) prefetch_row<F>(&p, m + step, S::n);
        first_product<S>(z, &g, g.u + buffer * S::u_bytes);
        second_product<S>(acc, &g, z);
        const token_grid grid = row_grid<S>(&g, &p, acc);
        put_row<S, N1, N2>(&g, &p, &grid, acc, m);
        if (F == FRONT_BARE) buffer ^= 1;
    }
}

template <int N1, int N2, int F, int groups>
static cudaError_t launch_front(const transform_args *p, int n_sm, cudaStream_t stream)
{
    typedef shape<N1, N2> S;
    const int n_buffers = F == FRONT_BARE ? 2 : 1;
    const int n_bytes = S::right_bytes + S::left_bytes + groups * n_buffers * S::u_bytes;
    const auto kernel = transform_kernel<N1, N2, F, groups>;
    const cudaError_t e =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, n_bytes);
    if (e != cudaSuccess) return e;
    kernel<<<FL_MIN(p->M, n_sm), groups * S::threads, n_bytes, stream>>>(*p);
    return cudaGetLastError();
}

template <int N1, int N2, int groups>
static cudaError_t launch_shape(const transform_args *p, int n_sm, cudaStream_t stream)
{
    switch (fl__cuda_row_front(&p->x)) {
    case FRONT_BARE:
        return launch_front<N1, N2, FRONT_BARE, groups>(p, n_sm, stream);
    case FRONT_F32:
        return launch_front<N1, N2, FRONT_F32, groups>(p, n_sm, stream);
    case FRONT_SILU:
        return launch_front<N1, N2, FRONT_SILU, groups>(p, n_sm, stream);
    default:
        return launch_front<N1, N2, FRONT_BF16, groups>(p, n_sm, stream);
    }
}

#endif
