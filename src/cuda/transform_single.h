/* transform_single.h - the wide transforms of a row per multiprocessor at most: one team, one
 * row, everything that does not depend on the row in registers or shared memory before the
 * kernel waits for the one ahead of it. The row comes by plain loads, which answer sooner than
 * bulk copies. SPDX-License-Identifier: MIT */
#ifndef FL_CUDA_TRANSFORM_SINGLE_H
#define FL_CUDA_TRANSFORM_SINGLE_H

#include "cuda/transform_team.h"

/* What the front reads, zero beyond the row; x += add in memory too. */
template <class S, int F, int loads, int vec>
DEV void single_read(const team *g, float (*v)[vec], const fl_cuda_row *x, int64_t m)
{
#pragma unroll
    for (int i = 0; i < loads; i++) {
#pragma unroll
        for (int j = 0; j < vec; j++) v[i][j] = 0;
        if (chunk_inside<S, vec>(g, i))
            load_first<F, vec>(v[i], x, m, chunk_channel<S, vec>(g, i));
    }
    if (F == FRONT_SILU) {
#pragma unroll
        for (int i = 0; i < loads; i++)
            if (chunk_inside<S, vec>(g, i))
                gate_row<vec>(v[i], x, m, chunk_channel<S, vec>(g, i));
    }
}

template <int N1, int N2, int F>
__global__ void __launch_bounds__(wide_shape<N1, N2>::threads, 1)
    single_kernel(const __grid_constant__ wide_args p)
{
    typedef wide_shape<N1, N2, N2 / 16> S;
    constexpr int loads = row_shape<S, F>::loads, vec = row_shape<S, F>::vec;
    constexpr bool early = !S::streams; /* there are registers for the gain */
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
                    0,
                    &shared,
                    0,
                    thread / 128,
                    thread / 32,
                    thread % 32,
                    thread,
                    right_part<S>(&p.t, thread)};
    uint32_t right[S::held > 0 ? S::held : 1][4], z[S::i_steps][4];
    alignas(16) float gain[loads][vec];
    float v[loads][vec], d[S::cols / 2];
    if (thread == 0) {
        mbar_init(smem_addr(&left_full), 1);
        mbar_init_fence();
        mbar_expect(smem_addr(&left_full), S::left_bytes);
        bulk_load(base, (const char *)p.t.factors + S::right_bytes, S::left_bytes,
                  smem_addr(&left_full));
    }
#pragma unroll
    for (int s = 0; s < S::held; s++) *(uint4 *)right[s] = g.right[s * 128];
    if (F != FRONT_SILU && x->gain && early) read_vector<S, loads, vec>(&g, gain, x->gain);
    __syncthreads();
    wait_previous();
    launch_next();
    single_read<S, F, loads, vec>(&g, v, x, m);
    if (F != FRONT_SILU && is_normed(x)) norm_row<S, loads, vec>(&g, v, x);
    if (F != FRONT_SILU && x->gain) {
        if (!early) read_vector<S, loads, vec>(&g, gain, x->gain);
        multiply_row<loads, vec>(v, gain);
    }
    finish_chunks<S, loads, vec>(&g, v, x);
    put_row<S, N2, loads, vec>(&g, v);
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
