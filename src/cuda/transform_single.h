/* transform_single.h - the wide transforms of a row per multiprocessor at most: one team, one
 * row, everything that does not depend on the row in registers or shared memory before the
 * kernel waits for the one ahead of it. The row comes by plain loads, which answer sooner than
 * bulk copies. SPDX-License-Identifier: MIT */
#ifndef FL_CUDA_TRANSFORM_SINGLE_H
#define FL_CUDA_TRANSFORM_SINGLE_H

#include "cuda/transform_wide.h"

template <class S, int F> struct single_row {
    static constexpr int vec = F == FRONT_F32 ? 4 : 8;
    static constexpr int loads = (S::n + S::threads * vec - 1) / (S::threads * vec);
};

/* A row in registers: chunk i of a thread starts at channel (thread + i * threads) * vec. */
template <class S, int vec> DEV bool chunk_inside(int i)
{
    return (i + 1) * S::threads * vec <= S::n ||
           (int)(threadIdx.x + i * S::threads) * vec < S::n;
}

template <class S, int vec> DEV int chunk_channel(int i)
{
    return (int)(threadIdx.x + i * S::threads) * vec;
}

/* What the front reads, zero beyond the row; x += add in memory too. */
template <class S, int F, int loads, int vec>
DEV void single_read(float (*v)[vec], const fl_cuda_row *x, int64_t m)
{
#pragma unroll
    for (int i = 0; i < loads; i++) {
#pragma unroll
        for (int j = 0; j < vec; j++) v[i][j] = 0;
        if (chunk_inside<S, vec>(i)) load_first<F, vec>(v[i], x, m, chunk_channel<S, vec>(i));
    }
    if (F == FRONT_SILU) {
#pragma unroll
        for (int i = 0; i < loads; i++)
            if (chunk_inside<S, vec>(i)) gate_row<vec>(v[i], x, m, chunk_channel<S, vec>(i));
    }
}

/* v = the row without its mean (layer_norm) over its root mean square. */
template <class S, int loads, int vec>
DEV void single_norm(const team *g, float (*v)[vec], const fl_cuda_row *x)
{
    float sum = 0;
    if (x->layer_norm) {
#pragma unroll
        for (int i = 0; i < loads * vec; i++) sum += v[i / vec][i % vec];
        const float mean = team_sum<S>(g, sum, g->shared->squares[1]) / (float)S::n;
        sum = 0;
#pragma unroll
        for (int i = 0; i < loads * vec; i++)
            if (chunk_inside<S, vec>(i / vec)) v[i / vec][i % vec] -= mean;
    }
#pragma unroll
    for (int i = 0; i < loads * vec; i++)
        sum = fmaf(v[i / vec][i % vec], v[i / vec][i % vec], sum);
    const float factor =
        norm_factor(team_sum<S>(g, sum, g->shared->squares[0]), S::n, x->eps);
#pragma unroll
    for (int i = 0; i < loads * vec; i++) v[i / vec][i % vec] *= factor;
}

/* w = a vector over the channels, as the row lies. */
template <class S, int loads, int vec> DEV void read_vector(float (*w)[vec], const float *from)
{
#pragma unroll
    for (int i = 0; i < loads; i++)
        if (chunk_inside<S, vec>(i)) load_f32<vec>(w[i], from + chunk_channel<S, vec>(i));
}

/* Bias, ReLU, premul. */
template <class S, int loads, int vec> DEV void single_rest(float (*v)[vec], const fl_cuda_row *x)
{
    float w[loads][vec];
    if (x->bias) {
        read_vector<S, loads, vec>(w, x->bias);
#pragma unroll
        for (int i = 0; i < loads * vec; i++)
            v[i / vec][i % vec] = __fadd_rn(v[i / vec][i % vec], w[i / vec][i % vec]);
    }
    if (x->relu) {
#pragma unroll
        for (int i = 0; i < loads * vec; i++) v[i / vec][i % vec] = fmaxf(v[i / vec][i % vec], 0);
    }
    if (x->premul) {
        read_vector<S, loads, vec>(w, x->premul);
#pragma unroll
        for (int i = 0; i < loads * vec; i++)
            v[i / vec][i % vec] = __fmul_rn(v[i / vec][i % vec], w[i / vec][i % vec]);
    }
}

/* Rows of U beyond n1. */
template <class S, int N2> DEV void zero_spare(uint32_t u)
{
    constexpr int first = S::n / N2, per_tile = (S::rows - first) * 8;
    if constexpr (per_tile > 0)
        for (int i = threadIdx.x; i < S::groups * per_tile; i += S::threads)
            asm volatile("st.shared.v4.u32 [%0], {%1, %1, %1, %1};" ::"r"(
                             u + i / per_tile * S::u_tile + first * 128 + i % per_tile * 16),
                         "r"(0)
                         : "memory");
}

template <int N1, int N2, int F>
__global__ void __launch_bounds__(wide_shape<N1, N2>::threads, 1)
    single_kernel(const __grid_constant__ wide_args p)
{
    typedef wide_shape<N1, N2, N2 / 16> S;
    constexpr int loads = single_row<S, F>::loads, vec = single_row<S, F>::vec;
    extern __shared__ char memory[];
    __shared__ team_memory shared;
    __shared__ uint64_t left_full;
    const uint32_t base = (smem_addr(memory) + 1023u) & ~1023u;
    const int thread = threadIdx.x, m = blockIdx.x;
    const fl_cuda_row *x = &p.t.x;
    const team g = {base + S::left_bytes,
                    0,
                    base + S::left_bytes,
                    base,
                    0,
                    0,
                    smem_addr(shared.range),
                    &shared,
                    0,
                    thread / 128,
                    thread / 32,
                    thread % 32,
                    thread};
    uint32_t right[S::held][4], z[S::i_steps][4];
    float gain[loads][vec], v[loads][vec], d[S::cols / 2];
    if (thread == 0) {
        mbar_init(smem_addr(&left_full), 1);
        mbar_init_fence();
        mbar_expect(smem_addr(&left_full), S::left_bytes);
        bulk_load(base, (const char *)p.t.factors + S::right_bytes, S::left_bytes,
                  smem_addr(&left_full));
    }
#pragma unroll
    for (int s = 0; s < S::held; s++)
        *(uint4 *)right[s] =
            ((const uint4 *)p.t.factors)[(g.group * S::k_steps + s) * 128 + thread % 128];
    if (F != FRONT_SILU && x->gain) read_vector<S, loads, vec>(gain, x->gain);
    zero_spare<S, N2>(g.u);
    __syncthreads();
    wait_previous();
    launch_next();
    single_read<S, F, loads, vec>(v, x, m);
    if (F != FRONT_SILU && is_normed(x)) single_norm<S, loads, vec>(&g, v, x);
    if (F != FRONT_SILU && x->gain) {
#pragma unroll
        for (int i = 0; i < loads * vec; i++)
            v[i / vec][i % vec] = __fmul_rn(v[i / vec][i % vec], gain[i / vec][i % vec]);
    }
    single_rest<S, loads, vec>(v, x);
#pragma unroll
    for (int i = 0; i < loads; i++)
        if (chunk_inside<S, vec>(i))
            put_u<vec>(wide_u_address<S, N2>(g.u, chunk_channel<S, vec>(i)), v[i]);
    fence_async_smem();
    __syncthreads();
    wide_first<S>(z, right, &g, g.u);
    mbar_wait(smem_addr(&left_full), 0);
    wide_second<S>(d, z, g.left);
    const row_codes codes = wide_codes<S>(&g, &p.grid, d);
    put_image<S>(&g, &p.grid, &codes, d);
    __syncthreads();
    wide_store<S, N2>(&g, &p.t, &codes, m);
    __syncthreads();
    wide_put_sum<S>(&g, &p.t, m);
}

template <int N1, int N2, int F>
static cudaError_t launch_single(const wide_args *p, cudaStream_t stream)
{
    typedef wide_shape<N1, N2, N2 / 16> S;
    const int n_bytes = 1024 + S::left_bytes + FL_MAX(S::u_bytes, S::image_bytes);
    return launch_after(single_kernel<N1, N2, F>, dim3((unsigned)p->t.M), S::threads, n_bytes,
                        stream, *p);
}

#endif
