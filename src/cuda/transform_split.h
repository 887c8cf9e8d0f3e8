/* transform_split.h - one row by a cluster of CTAs: the wide transforms for few rows, where
 * only latency counts.
 *
 * CTA r of N2 / 16 has n1 / parts rows i of U, which it makes and multiplies by all of right;
 * warp w's 16 columns of Y go, as bf16, to CTA w, whose columns they are (distributed shared
 * memory). With all rows of its 16 columns a CTA multiplies by left and exchanges the range of
 * X' with the others. Both factors lie in registers before the kernel waits for the one ahead
 * of it in the stream. Norms need the whole row: every CTA reads it.
 *
 * Columns of Y lie in shared memory so that a thread ends with four codes side by side: column
 * j at place 8 (j % 4 / 2) + 2 (j / 4) + j % 2.
 * SPDX-License-Identifier: MIT */
#ifndef FL_CUDA_TRANSFORM_SPLIT_H
#define FL_CUDA_TRANSFORM_SPLIT_H

#include "cuda/launch.h"
#include "cuda/mma_bf16.h"
#include "cuda/transform_codes.h"

typedef struct split_args {
    transform_args t;
    code_grid grid;
} split_args;

template <int N1, int N2> struct split_shape {
    static constexpr int n = N1 * N2;
    static constexpr int parts = N2 / 16, threads = 32 * parts;
    static constexpr int rows = (N1 + parts - 1) / parts; /* of a CTA */
    static constexpr int k_steps = N2 / 16, i_steps = (N1 + 15) / 16;
    static constexpr int cols = (N1 + 7) / 8 * 8, left_tile = cols * 128;
    static constexpr int right_bytes = (N2 + 63) / 64 * 64 * N2 * 2;
    static constexpr int u_stride = 2 * N2 + 16, y_stride = 48; /* no bank conflicts */
    static constexpr int loads = (rows * N2 + 4 * threads - 1) / (4 * threads);
    static_assert(rows <= 16 && i_steps <= parts, "a warp has one tile");
};

template <int N1, int N2> struct split_memory {
    typedef split_shape<N1, N2> S;
    alignas(16) uint8_t u[16 * S::u_stride], y[16 * S::i_steps * S::y_stride];
    uint2 range[S::parts * S::parts]; /* of every warp of the cluster */
    int32_t sums[S::parts * S::parts];
    float squares[2][S::parts];
};

DEV void store_cluster(uint32_t addr, uint32_t v)
{
    asm volatile("st.shared::cluster.u32 [%0], %1;" ::"r"(addr), "r"(v) : "memory");
}

/* Four values from channel c on: read, x += add, gated. */
template <int F> DEV void split_values(float *v, const fl_cuda_row *x, int64_t m, int c)
{
    load_values<F, 4>(v, x, m, c);
    if (F == FRONT_F32 && x->add) {
        alignas(16) float w[4];
        if (x->add_f32) load_f32<4>(w, (const float *)x->add + m * x->ld_add + c);
        else load_bf16<4>(w, (const uint16_t *)x->add + m * x->ld_add + c);
#pragma unroll
        for (int i = 0; i < 4; i++) v[i] = __fadd_rn(v[i], w[i]);
    }
    if (F == FRONT_SILU) gate_row<4>(v, x, m, c);
}

/* The sum of v - mean over the row, or of its square. */
template <class S, int F>
DEV float split_sum(const fl_cuda_row *x, int64_t m, bool squares, float mean, float *shared)
{
    float sum = 0;
#pragma unroll 8
    for (int c = 4 * threadIdx.x; c < S::n; c += 4 * S::threads) {
        float v[4];
        split_values<F>(v, x, m, c);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const float d = v[i] - mean;
            sum = squares ? fmaf(d, d, sum) : sum + d;
        }
    }
    sum = warp_sum(sum);
    if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = sum;
    __syncthreads();
    sum = 0;
#pragma unroll
    for (int w = 0; w < S::parts; w++) sum += shared[w];
    return sum;
}

template <class S, int F>
DEV row_stats split_stats(const fl_cuda_row *x, int64_t m, float (*shared)[S::parts])
{
    row_stats stats = {0, 1};
    if (F == FRONT_SILU || !is_normed(x)) return stats;
    if (x->layer_norm) stats.mean = split_sum<S, F>(x, m, false, 0, shared[0]) / (float)S::n;
    const float squares = split_sum<S, F>(x, m, true, stats.mean, shared[1]);
    stats.factor = norm_factor(squares, S::n, x->eps);
    return stats;
}

/* The CTA's rows of U, from i0 on; v keeps what was read. */
template <int N1, int N2, int F>
DEV void split_make_u(uint32_t u, float (*v)[4], const fl_cuda_row *x, int64_t m, int i0,
                      float (*shared)[split_shape<N1, N2>::parts])
{
    typedef split_shape<N1, N2> S;
#pragma unroll
    for (int l = 0; l < S::loads; l++) {
        const int c = 4 * (threadIdx.x + l * S::threads), i = c / N2;
#pragma unroll
        for (int j = 0; j < 4; j++) v[l][j] = 0;
        if (i < S::rows && i0 + i < N1) split_values<F>(v[l], x, m, i0 * N2 + c);
    }
    const row_stats stats = split_stats<S, F>(x, m, shared);
#pragma unroll
    for (int l = 0; l < S::loads; l++) {
        const int c = 4 * (threadIdx.x + l * S::threads), i = c / N2;
        float w[4] = {v[l][0], v[l][1], v[l][2], v[l][3]};
        if (i >= S::rows || i0 + i >= N1) continue;
        finish_row<4>(w, x, i0 * N2 + c, stats);
        asm volatile("st.shared.v2.u32 [%0], {%1, %2};" ::"r"(u + i * S::u_stride + c % N2 * 2),
                     "r"(bf16x2(w[0], w[1])), "r"(bf16x2(w[2], w[3]))
                     : "memory");
    }
}

/* x += add of the CTA's rows, once nobody reads the row any more. */
template <int N1, int N2>
DEV void split_keep(const float (*v)[4], const fl_cuda_row *x, int64_t m, int i0)
{
    typedef split_shape<N1, N2> S;
    float *row = (float *)x->x + m * x->ldx + i0 * N2;
#pragma unroll
    for (int l = 0; l < S::loads; l++) {
        const int c = 4 * (threadIdx.x + l * S::threads), i = c / N2;
        if (i < S::rows && i0 + i < N1)
            *(float4 *)(row + c) = make_float4(v[l][0], v[l][1], v[l][2], v[l][3]);
    }
}

/* The warp's 16 columns of the CTA's rows, to the CTA whose columns they are. */
template <class S>
DEV void split_first(uint32_t u, uint32_t y, const uint32_t (*right)[4], int i0, int warp,
                     int lane)
{
    float d[2][4] = {};
    const uint32_t to = mapa(y, (uint32_t)warp) + (i0 + lane / 4) * S::y_stride + lane % 4 * 4;
#pragma unroll
    for (int s = 0; s < S::k_steps; s++) {
        uint32_t a[4];
        ldmatrix(a, u + lane % 16 * S::u_stride + (2 * s + lane / 16) * 16);
        mma_bf16(d[0], a, right[s][0], right[s][2]);
        mma_bf16(d[1], a, right[s][1], right[s][3]);
    }
#pragma unroll
    for (int h = 0; h < 2; h++) {
        if (lane / 4 + 8 * h >= S::rows || i0 + lane / 4 + 8 * h >= 16 * S::i_steps) continue;
        store_cluster(to + 8 * h * S::y_stride, bf16x2(d[0][2 * h], d[1][2 * h]));
        store_cluster(to + 8 * h * S::y_stride + 16, bf16x2(d[0][2 * h + 1], d[1][2 * h + 1]));
    }
}

/* X' of the warp's 16 rows a. */
template <class S>
DEV void split_second(float (*d)[4], uint32_t y, const uint32_t (*left)[4], int lane)
{
#pragma unroll
    for (int s = 0; s < S::i_steps; s++) {
        uint32_t b[4];
        ldmatrix_trans(b, y + (16 * s + lane % 16) * S::y_stride + lane / 16 * 16);
        mma_bf16(d[0], left[s], b[0], b[1]);
        mma_bf16(d[1], left[s], b[2], b[3]);
    }
}

/* Fragments of left^T for rows 16 warp .. from the swizzled image. */
template <class S>
DEV void load_left(uint32_t (*left)[4], const char *image, int warp, int lane)
{
#pragma unroll
    for (int s = 0; s < S::i_steps; s++)
#pragma unroll
        for (int w = 0; w < 4; w++) {
            const int a = 16 * warp + lane / 4 + w % 2 * 8;
            const int i = 16 * s + lane % 4 * 2 + w / 2 * 8;
            left[s][w] = 0;
            if (a < S::cols)
                left[s][w] = *(const uint32_t *)(image + i / 64 * S::left_tile + a * 128 +
                                                 (i % 64 / 8 ^ a % 8) * 16 + i % 8 * 2);
        }
}

template <class S>
DEV row_codes split_codes(const code_grid *grid, const float (*d)[4], const uint2 *ranges,
                          int rank, int warp, int lane)
{
    uint2 range = make_uint2(0, 0);
#pragma unroll
    for (int i = 0; i < 8; i += 2)
        range = wider(range, __float_as_uint(d[i / 4][i % 4]),
                      __float_as_uint(d[i / 4][i % 4 + 1]));
    range.x = (uint32_t)__reduce_max_sync(0xffffffffu, (int)range.x);
    range.y = __reduce_max_sync(0xffffffffu, range.y);
    const uint32_t at = smem_addr(ranges + rank * S::parts + warp);
    if (lane < S::parts) {
        store_cluster(mapa(at, (uint32_t)lane), range.x);
        store_cluster(mapa(at, (uint32_t)lane) + 4, range.y);
    }
    cluster_sync();
#pragma unroll
    for (int i = lane; i < S::parts * S::parts; i += 32) {
        range.x = (uint32_t)max((int)range.x, (int)ranges[i].x);
        range.y = max(range.y, ranges[i].y);
    }
    range.x = (uint32_t)__reduce_max_sync(0xffffffffu, (int)range.x);
    range.y = __reduce_max_sync(0xffffffffu, range.y);
    return make_row_codes(grid, range);
}

/* The sum of all codes, by way of CTA 0. */
template <class S>
DEV void split_sum_codes(int32_t *x_sum, int32_t *sums, int sum, int rank, int warp, int lane)
{
    sum = __reduce_add_sync(0xffffffffu, sum);
    if (lane == 0)
        store_cluster(mapa(smem_addr(sums + rank * S::parts + warp), 0), (uint32_t)sum);
    cluster_sync();
    if (rank != 0 || warp != 0) return;
    sum = 0;
    for (int i = lane; i < S::parts * S::parts; i += 32) sum += sums[i];
    sum = __reduce_add_sync(0xffffffffu, sum);
    if (lane == 0) *x_sum = sum;
}

template <int N1, int N2, int F>
__global__ void __launch_bounds__(split_shape<N1, N2>::threads, 1)
    split_kernel(const __grid_constant__ split_args p)
{
    typedef split_shape<N1, N2> S;
    __shared__ split_memory<N1, N2> memory;
    const int rank = (int)cluster_rank(), warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int m = blockIdx.x / S::parts, i0 = rank * S::rows;
    const transform_args *t = &p.t;
    const uint32_t u = smem_addr(memory.u), y = smem_addr(memory.y);
    uint32_t right[S::k_steps][4], left[S::i_steps][4];
    float kept[S::loads][4], d[2][4] = {};
    int sum = 0;
#pragma unroll
    for (int s = 0; s < S::k_steps; s++)
        *(uint4 *)right[s] =
            ((const uint4 *)
                 t->factors)[(warp / 4 * S::k_steps + s) * 128 + warp % 4 * 32 + lane];
    load_left<S>(left, (const char *)t->factors + S::right_bytes, warp, lane);
    for (int i = threadIdx.x; i < (int)sizeof(memory.u) / 16; i += S::threads)
        ((uint4 *)memory.u)[i] = make_uint4(0, 0, 0, 0);
    for (int i = threadIdx.x; i < (int)sizeof(memory.y) / 16; i += S::threads)
        ((uint4 *)memory.y)[i] = make_uint4(0, 0, 0, 0);
    cluster_sync();
    wait_previous();
    launch_next();
    split_make_u<N1, N2, F>(u, kept, &t->x, m, i0, memory.squares);
    __syncthreads();
    split_first<S>(u, y, right, i0, warp, lane);
    cluster_sync();
    if (F == FRONT_F32 && t->x.add) split_keep<N1, N2>(kept, &t->x, m, i0);
    if (warp < S::i_steps) split_second<S>(d, y, left, lane);
    const row_codes codes = split_codes<S>(&p.grid, d, memory.range, rank, warp, lane);
    int8_t *row = t->y.codes + m * t->y.ld;
#pragma unroll
    for (int h = 0; h < 2; h++) {
        const int a = 16 * warp + lane / 4 + 8 * h;
        const float *v[2] = {d[0] + 2 * h, d[1] + 2 * h};
        const uint32_t w = four_bytes(
            code_bits(&p.grid, &codes, v[0][0]), code_bits(&p.grid, &codes, v[0][1]),
            code_bits(&p.grid, &codes, v[1][0]), code_bits(&p.grid, &codes, v[1][1]));
        if (a >= N1) continue;
        *(uint32_t *)(row + a * N2 + 16 * rank + 4 * (lane % 4)) = w;
        sum = sum_codes(w, sum);
    }
    if (rank == 0) {
        for (int c = S::n + 4 * threadIdx.x; c < t->y.ld; c += 4 * S::threads)
            *(uint32_t *)(row + c) = 0;
        if (threadIdx.x == 0) {
            t->y.x_scale[m] = codes.scale;
            t->y.x_zero[m] = codes.zero;
        }
    }
    if (t->y.x_sum) split_sum_codes<S>(t->y.x_sum + m, memory.sums, sum, rank, warp, lane);
}

template <int N1, int N2>
static cudaError_t launch_split(const transform_args *t, cudaStream_t stream)
{
    typedef split_shape<N1, N2> S;
    const split_args p = {*t, make_code_grid(&t->grid)};
    const int front = fl__cuda_row_front(&t->x);
    const auto kernel = front == FRONT_F32    ? split_kernel<N1, N2, FRONT_F32>
                        : front == FRONT_SILU ? split_kernel<N1, N2, FRONT_SILU>
                                              : split_kernel<N1, N2, FRONT_BF16>;
    return launch_parts(kernel, dim3((unsigned)(t->M * S::parts)), S::parts, S::threads, 0,
                        stream, p);
}

#endif
