/* transform_wide.h - the wide transforms of many rows: persistent CTAs, one per multiprocessor,
 * each with several teams (transform_team.h), which share the left factor in shared memory and
 * nothing else: while one waits, rounds or stores, another one multiplies.
 *
 * Bare bf16 rows come as tensor maps, straight into U, `stages` ahead; other rows are copied in
 * bulk as they are and become U on the way through registers.
 * SPDX-License-Identifier: MIT */
#ifndef FL_CUDA_TRANSFORM_WIDE_H
#define FL_CUDA_TRANSFORM_WIDE_H

#include "cuda/transform_team.h"

/* Where things lie in shared memory, from a 1,024-byte border on. */
template <class S, int F, int stages> struct wide_memory {
    static constexpr bool bare = F == FRONT_BARE;
    static constexpr int raw_bytes =
        bare ? 0 : S::n * (F == FRONT_F32 || F == FRONT_SILU ? 4 : 2);
    /* the image lies in U where U is one buffer */
    static constexpr int u_area =
        bare ? stages * S::u_bytes
             : (S::u_bytes > S::image_bytes ? S::u_bytes
                                            : (S::image_bytes + 1023) / 1024 * 1024);
    /* a copy of the gain, where it fits */
    static constexpr int gain_bytes = bare || F == FRONT_SILU || S::n > 8192 ? 0 : 4 * S::n;
    static constexpr int team_bytes = u_area + (bare ? S::image_bytes : stages * raw_bytes);
    /* left, the teams' U, right's part, gain, the rest of the teams' */
    static constexpr int bytes(int teams)
    {
        return 1024 + S::left_bytes + S::groups * S::more_bytes + gain_bytes +
               teams * team_bytes;
    }
};

DEV uint32_t full_bar(const team *g, int stage)
{
    return g->full + 8 * (uint32_t)stage;
}

/* ---- rows come in ------------------------------------------------------------------------ */

/* One thread: row m into a stage. */
template <class S, int F, int stages, int N1, int N2>
DEV void fetch_row(const team *g, const wide_args *p, int stage, int m)
{
    const fl_cuda_row *x = &p->t.x;
    const uint32_t bar = full_bar(g, stage);
    if (F == FRONT_BARE) {
        mbar_expect(bar, S::groups * N1 * 128); /* whole boxes: zero beyond n2 */
#pragma unroll
        for (int k = 0; k < S::groups; k++)
            tma_load(g->u + stage * S::u_bytes + k * S::u_tile, &p->map, 64 * k, m * N1, bar);
        return;
    }
    const uint32_t to = g->raw + stage * wide_memory<S, F, stages>::raw_bytes;
    if (F == FRONT_F32) {
        mbar_expect(bar, 4 * S::n);
        bulk_load(to, (const float *)x->x + m * x->ldx, 4 * S::n, bar);
    } else {
        mbar_expect(bar, F == FRONT_SILU ? 4 * S::n : 2 * S::n);
        bulk_load(to, (const uint16_t *)x->x + m * x->ldx, 2 * S::n, bar);
        if (F == FRONT_SILU) bulk_load(to + 2 * S::n, x->up + m * x->ldx, 2 * S::n, bar);
    }
}

/* n values from a stage. */
template <int F, int n> DEV void raw_values(float *v, uint32_t from)
{
    uint32_t w[4];
    lds128(w, from);
#pragma unroll
    for (int i = 0; i < n; i++) {
        if (F == FRONT_F32) v[i] = __uint_as_float(w[i % 4]);
        else v[i] = __uint_as_float(i % 2 ? w[i / 2] & 0xffff0000u : w[i / 2] << 16);
    }
}

/* Times gain, from its copy if there is one. */
template <class S, int loads, int vec>
DEV void times_gain(const team *g, float (*v)[vec], const float *gain)
{
    alignas(16) float w[loads][vec];
    if (g->gain) {
#pragma unroll
        for (int i = 0; i < loads * vec; i += 4)
            if (chunk_inside<S, vec>(g, i / vec))
                lds128((uint32_t *)&w[i / vec][i % vec],
                       g->gain + 4 * (chunk_channel<S, vec>(g, i / vec) + i % vec));
    } else read_vector<S, loads, vec>(g, w, gain);
    multiply_row<loads, vec>(v, w);
}

/* x += add, in memory too. */
template <class S, int loads>
DEV void add_row(const team *g, float (*v)[4], const fl_cuda_row *x, int64_t m)
{
    alignas(16) float w[loads][4];
    float *row = (float *)x->x + m * x->ldx;
    if (x->add_f32) read_vector<S, loads, 4>(g, w, (const float *)x->add + m * x->ld_add);
    else {
#pragma unroll
        for (int i = 0; i < loads; i++)
            if (chunk_inside<S, 4>(g, i))
                load_bf16<4>(w[i], (const uint16_t *)x->add + m * x->ld_add +
                                       chunk_channel<S, 4>(g, i));
    }
#pragma unroll
    for (int i = 0; i < loads; i++) {
        if (!chunk_inside<S, 4>(g, i)) continue;
#pragma unroll
        for (int j = 0; j < 4; j++) v[i][j] = __fadd_rn(v[i][j], w[i][j]);
        *(float4 *)(row + chunk_channel<S, 4>(g, i)) =
            make_float4(v[i][0], v[i][1], v[i][2], v[i][3]);
    }
}

/* U of row m from its stage. */
template <class S, int N2, int F>
DEV void wide_make_u(const team *g, const transform_args *p, uint32_t raw, int m)
{
    constexpr int vec = row_shape<S, F>::vec, loads = row_shape<S, F>::loads;
    constexpr int width = F == FRONT_F32 ? 4 : 2;
    float v[loads][vec];
#pragma unroll
    for (int i = 0; i < loads; i++) {
        const uint32_t from = raw + chunk_channel<S, vec>(g, i) * width;
#pragma unroll
        for (int j = 0; j < vec; j++) v[i][j] = 0;
        if (!chunk_inside<S, vec>(g, i)) continue;
        raw_values<F, vec>(v[i], from);
        if (F == FRONT_SILU) {
            float w[vec];
            raw_values<F, vec>(w, from + 2 * S::n);
#pragma unroll
            for (int j = 0; j < vec; j++) v[i][j] = silu(v[i][j]) * w[j];
        }
    }
    if constexpr (F == FRONT_F32)
        if (p->x.add) add_row<S, loads>(g, v, &p->x, m);
    if (F != FRONT_SILU && is_normed(&p->x)) norm_row<S, loads, vec>(g, v, &p->x);
    else team_sync<S>(g); /* the image of codes, which lies in U, has been read */
    if (F != FRONT_SILU && p->x.gain) times_gain<S, loads, vec>(g, v, p->x.gain);
    finish_chunks<S, loads, vec>(g, v, &p->x);
    put_row<S, N2, loads, vec>(g, v);
}

/* ---- kernel ------------------------------------------------------------------------------ */

/* Factors by bulk copies, left to base, more of right, the gain; spare rows of U zero;
 * barriers. */
template <class S, int F, int stages>
DEV void wide_prologue(const team *g, const transform_args *p, uint32_t base, uint32_t more,
                       uint32_t left_bar)
{
    const char *factors = (const char *)p->factors;
    const int gain_bytes = p->x.gain ? wide_memory<S, F, stages>::gain_bytes : 0;
    if (threadIdx.x == 0) {
        mbar_init(left_bar, 1);
        mbar_expect(left_bar, S::left_bytes + S::groups * S::more_bytes + gain_bytes);
    }
    if (g->thread == 0)
        for (int s = 0; s < stages; s++) mbar_init(full_bar(g, s), 1);
    if (F == FRONT_BARE)
        for (int i = g->thread; i < stages * S::u_bytes / 16; i += S::threads)
            asm volatile("st.shared.v4.u32 [%0], {%1, %1, %1, %1};" ::"r"(g->u + 16 * i), "r"(0)
                         : "memory");
    mbar_init_fence();
    __syncthreads();
    if (threadIdx.x != 0) return;
    bulk_load(base, factors + S::right_bytes, S::left_bytes, left_bar);
    for (int w = 0; w < S::groups && S::more_bytes > 0; w++)
        bulk_load(more + w * S::more_bytes, factors + (w * S::k_steps + S::held) * 2048,
                  S::more_bytes, left_bar);
    if (gain_bytes > 0)
        bulk_load(more + S::groups * S::more_bytes, p->x.gain, gain_bytes, left_bar);
}

template <int N1, int N2, int F, int teams, int stages>
__global__ void __launch_bounds__(teams *wide_shape<N1, N2>::threads, 1)
    wide_kernel(const __grid_constant__ wide_args p)
{
    typedef wide_shape<N1, N2> S;
    typedef wide_memory<S, F, stages> L;
    extern __shared__ char memory[];
    __shared__ team_memory shared[teams];
    __shared__ uint64_t left_full;
    const uint32_t base = (smem_addr(memory) + 1023u) & ~1023u;
    const int id = threadIdx.x / S::threads, thread = threadIdx.x % S::threads;
    const int n_teams = blockDim.x / S::threads;
    const uint32_t u = base + S::left_bytes + id * L::u_area;
    const uint32_t more = base + S::left_bytes + n_teams * L::u_area;
    const uint32_t gain = more + S::groups * S::more_bytes;
    const uint32_t rest = gain + L::gain_bytes + id * (L::team_bytes - L::u_area);
    const team g = {u,
                    rest,
                    L::bare ? rest : u,
                    base,
                    more + thread / 128 * S::more_bytes + thread % 128 * 16,
                    smem_addr(shared[id].full),
                    smem_addr(shared[id].range),
                    L::gain_bytes > 0 ? gain : 0,
                    &shared[id],
                    id,
                    thread / 128,
                    thread / 32,
                    thread % 32,
                    thread,
                    right_part<S>(&p.t, thread)};
    const int step = n_teams * gridDim.x;
    uint32_t right[S::held > 0 ? S::held : 1][4];
    int m = id * gridDim.x + blockIdx.x, stage = 0, parity = 0;
    wide_prologue<S, F, stages>(&g, &p.t, base, more, smem_addr(&left_full));
#pragma unroll
    for (int s = 0; s < S::held; s++) *(uint4 *)right[s] = g.right[s * 128];
    wait_previous();
    launch_next();
    if (m >= p.t.M) return;
    if (thread == 0)
        for (int s = 0; s < stages && m + s * step < p.t.M; s++)
            fetch_row<S, F, stages, N1, N2>(&g, &p, s, m + s * step);
    mbar_wait(smem_addr(&left_full), 0);
    for (int last = -1; m < p.t.M; last = m, m += step) {
        float d[S::cols / 2];
        uint32_t z[S::i_steps][4];
        const int next = m + stages * step;
        mbar_wait(full_bar(&g, stage), parity);
        if (!L::bare) {
            wide_make_u<S, N2, F>(&g, &p.t, g.raw + stage * L::raw_bytes, m);
            team_sync<S>(&g);
            if (thread == 0 && next < p.t.M)
                fetch_row<S, F, stages, N1, N2>(&g, &p, stage, next);
        }
        wide_first<S>(z, right, &g, g.u + (L::bare ? stage * S::u_bytes : 0));
        wide_second<S>(d, z, g.left);
        const row_codes codes = wide_codes<S>(&g, &p.grid, d);
        if (L::bare && thread == 0 && next < p.t.M)
            fetch_row<S, F, stages, N1, N2>(&g, &p, stage, next);
        if (last >= 0) wide_put_sum<S>(&g, &p.t, last);
        put_image<S>(&g, &p.grid, &codes, d);
        team_sync<S>(&g);
        wide_store<S, N2>(&g, &p.t, &codes, m);
        if (++stage == stages) stage = 0, parity ^= 1;
    }
    team_sync<S>(&g);
    wide_put_sum<S>(&g, &p.t, m - step);
}

template <int N1, int N2, int F, int teams, int stages>
static cudaError_t launch_many(const wide_args *p, int n_sm, cudaStream_t stream)
{
    typedef wide_shape<N1, N2> S;
    const int n_ctas = FL_MIN(p->t.M, n_sm);
    const int used = FL_MIN(teams, (p->t.M + n_ctas - 1) / n_ctas);
    return launch_after(wide_kernel<N1, N2, F, teams, stages>, dim3((unsigned)n_ctas),
                        used * S::threads, wide_memory<S, F, stages>::bytes(used), stream, *p);
}

/* The tensor map of dense bare rows. */
template <int N1, int N2> static fl_status make_map(wide_args *a, fl_err *err)
{
    const tensor_2d t = {a->t.x.x,     CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
                         (uint64_t)N2, (uint64_t)a->t.M * N1,
                         2 * N2,       64,
                         N1,           true};
    return fl__tensor_map(&a->map, &t, err);
}

#endif
