/* transform_wide.h - front, two chained wgmma products and quantiser in one kernel; its launch.
 *
 * For factors from 64 on. A team of N2 / 64 warpgroups turns one row at a time; a CTA, one per
 * multiprocessor, has several teams, which share the left factor in shared memory and nothing
 * else: while one waits, rounds or stores, another one multiplies. With Z = (U right)^T,
 * warpgroup w holds 64 columns j:
 *
 *   Z[j, i]  = right^T[j, k] U^T[k, i]     right^T in registers for the kernel's life, U in
 *                                          shared memory: [tile of 64 k][i][128 bytes], swizzled
 *   X'[j, a] = bf16(Z)[j, i] left[i, a]    Z never leaves the registers: the accumulators of
 *                                          the first product are the A operand of the second
 *
 * Rows j of a fragment are permuted so that a thread has pairs j, j + 1 side by side: pairs of
 * codes go through stmatrix, transposed, into a row-major image, and from there to memory, 16
 * bytes a thread.
 *
 * Bare bf16 rows come as tensor maps, STAGES ahead; other rows are copied in bulk as they are
 * and become U on the way through registers.
 * SPDX-License-Identifier: MIT */
#ifndef FL_CUDA_TRANSFORM_WIDE_H
#define FL_CUDA_TRANSFORM_WIDE_H

#include "cuda/activation.h"
#include "cuda/launch.h"
#include "cuda/tensor_map.h"
#include "cuda/transform_codes.h"
#include "cuda/wgmma_bf16.h"

enum { WIDE_MAX_WARPS = 16, WIDE_MAX_STAGES = 4 };

/* What follows from a shape. */
template <int N1, int N2> struct wide_shape {
    static constexpr int n = N1 * N2;
    static constexpr int groups = (N2 + 63) / 64; /* warpgroups, and tiles of U */
    static constexpr int threads = 128 * groups, warps = 4 * groups;
    static constexpr int rows = (N1 + 15) / 16 * 16; /* of i: N of the first, K of the second */
    static constexpr int cols = (N1 + 7) / 8 * 8;    /* of a: N of the second */
    static constexpr int k_steps = N2 / 16, i_steps = rows / 16;
    static constexpr int u_tile = rows * 128, u_bytes = groups * u_tile;
    static constexpr int left_tile = cols * 128, left_bytes = (rows + 63) / 64 * left_tile;
    static constexpr int right_bytes = groups * k_steps * 2048;
    /* k steps of right^T that stay in registers; the others are read for every row */
    static constexpr int held =
        k_steps * 4 + i_steps * 4 + cols / 2 > 90 ? k_steps / 4 : k_steps;
    static constexpr int more_bytes = (k_steps - held) * 2048; /* of a warpgroup */
    static constexpr int pitch = 64 * groups + 16; /* of the image of codes: no bank conflicts */
    static constexpr int image_bytes = (cols + 31) / 32 * 32 * pitch;
    static_assert(N2 % 16 == 0 && n % 16 == 0, "rows of codes are stored 16 bytes at a time");
};

/* Where things lie in shared memory, from a 1,024-byte border on. */
template <class S, int F, int stages> struct wide_memory {
    static constexpr bool bare = F == FRONT_BARE;
    static constexpr int raw_bytes =
        bare ? 0 : S::n * (F == FRONT_F32 || F == FRONT_SILU ? 4 : 2);
    /* the image lies in U where U is one buffer */
    static constexpr int u_area = bare ? stages * S::u_bytes
                                       : (S::u_bytes > S::image_bytes
                                              ? S::u_bytes
                                              : (S::image_bytes + 1023) / 1024 * 1024);
    static constexpr int team_bytes = u_area + (bare ? S::image_bytes : stages * raw_bytes);
    /* left, the teams' U, right's part, the rest of the teams' */
    static constexpr int bytes(int teams)
    {
        return 1024 + S::left_bytes + S::groups * S::more_bytes + teams * team_bytes;
    }
};

/* What the warps of a team tell each other. */
typedef struct alignas(16) team_memory {
    uint2 range[WIDE_MAX_WARPS]; /* bits of the largest and the smallest value */
    float squares[2][WIDE_MAX_WARPS];
    int32_t sum[WIDE_MAX_WARPS];
    uint64_t full[WIDE_MAX_STAGES];
} team_memory;

typedef struct team {
    uint32_t u, raw, image, left, more, full, range; /* shared memory */
    team_memory *shared;
    int id, group, warp, lane, thread; /* group, warp, thread within the team */
} team;

typedef struct wide_args {
    CUtensorMap map; /* bare rows: [M * n1, n2] */
    transform_args t;
    code_grid grid;
} wide_args;

template <class S> DEV void team_sync(const team *g)
{
    named_barrier(1 + g->id, S::threads);
}

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
        mbar_expect(bar, 2 * S::n);
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

/* Address in U of value c, whose 8 or 4 neighbours up to the next multiple follow it. */
template <class S, int N2> DEV uint32_t wide_u_address(uint32_t u, int c)
{
    const int i = c / N2, k = c % N2;
    return u + (uint32_t)(k / 64 * S::u_tile + i * 128 + ((k % 64 / 8 ^ i % 8) * 16) +
                          k % 8 * 2);
}

template <int n> DEV void put_u(uint32_t to, const float *v)
{
    if (n == 8)
        asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(to), "r"(bf16x2(v[0], v[1])),
                     "r"(bf16x2(v[2], v[3])), "r"(bf16x2(v[4 % n], v[5 % n])),
                     "r"(bf16x2(v[6 % n], v[7 % n]))
                     : "memory");
    else
        asm volatile("st.shared.v2.u32 [%0], {%1, %2};" ::"r"(to), "r"(bf16x2(v[0], v[1])),
                     "r"(bf16x2(v[2], v[3]))
                     : "memory");
}

template <class S> DEV float team_sum(const team *g, float v, float *shared)
{
    v = warp_sum(v);
    if (g->lane == 0) shared[g->warp] = v;
    team_sync<S>(g);
    v = 0;
#pragma unroll
    for (int w = 0; w < S::warps; w++) v += shared[w];
    return v;
}

/* A row in registers: chunk i of a thread starts at channel (thread + i * threads) * vec. */
template <class S, int vec> DEV bool chunk_inside(const team *g, int i)
{
    return (i + 1) * S::threads * vec <= S::n || (g->thread + i * S::threads) * vec < S::n;
}

/* v = the row without its mean (layer_norm) over its root mean square; beyond the row: 0. */
template <class S, int loads, int vec>
DEV void norm_row(const team *g, float (*v)[vec], const fl_cuda_row *x)
{
    float sum = 0;
    if (x->layer_norm) {
#pragma unroll
        for (int i = 0; i < loads * vec; i++) sum += v[i / vec][i % vec];
        const float mean = team_sum<S>(g, sum, g->shared->squares[1]) / (float)S::n;
        sum = 0;
#pragma unroll
        for (int i = 0; i < loads * vec; i++)
            if (chunk_inside<S, vec>(g, i / vec)) v[i / vec][i % vec] -= mean;
    }
#pragma unroll
    for (int i = 0; i < loads * vec; i++)
        sum = fmaf(v[i / vec][i % vec], v[i / vec][i % vec], sum);
    const float factor =
        norm_factor(team_sum<S>(g, sum, g->shared->squares[0]), S::n, x->eps);
#pragma unroll
    for (int i = 0; i < loads * vec; i++) v[i / vec][i % vec] *= factor;
}

/* v = v * by or v + by, element by element of a vector over the channels. */
template <class S, int loads, int vec, bool adds>
DEV void with_vector(const team *g, float (*v)[vec], const float *by)
{
#pragma unroll
    for (int i = 0; i < loads; i++) {
        alignas(16) float w[vec];
        if (!chunk_inside<S, vec>(g, i)) continue;
        load_f32<vec>(w, by + (g->thread + i * S::threads) * vec);
#pragma unroll
        for (int j = 0; j < vec; j++)
            v[i][j] = adds ? __fadd_rn(v[i][j], w[j]) : __fmul_rn(v[i][j], w[j]);
    }
}

/* finish_row for a whole row. */
template <class S, int loads, int vec>
DEV void finish_chunks(const team *g, float (*v)[vec], const fl_cuda_row *x)
{
    if (x->gain) with_vector<S, loads, vec, false>(g, v, x->gain);
    if (x->bias) with_vector<S, loads, vec, true>(g, v, x->bias);
    if (x->relu) {
#pragma unroll
        for (int i = 0; i < loads * vec; i++) v[i / vec][i % vec] = fmaxf(v[i / vec][i % vec], 0);
    }
    if (x->premul) with_vector<S, loads, vec, false>(g, v, x->premul);
}

/* x += add, in memory too. */
template <int vec> DEV void add_values(float *v, const fl_cuda_row *x, int64_t m, int c)
{
    alignas(16) float w[vec];
    if (x->add_f32) load_f32<vec>(w, (const float *)x->add + m * x->ld_add + c);
    else load_bf16<vec>(w, (const uint16_t *)x->add + m * x->ld_add + c);
#pragma unroll
    for (int i = 0; i < vec; i++) v[i] = __fadd_rn(v[i], w[i]);
    *(float4 *)((float *)x->x + m * x->ldx + c) = make_float4(v[0], v[1], v[2], v[3]);
}

/* Rows of U beyond n1, which the image overwrites. */
template <class S, int N2> DEV void zero_spare(const team *g)
{
    constexpr int first = S::n / N2, per_tile = (S::rows - first) * 8;
    if constexpr (per_tile > 0)
        for (int i = g->thread; i < S::groups * per_tile; i += S::threads)
            asm volatile("st.shared.v4.u32 [%0], {%1, %1, %1, %1};" ::"r"(
                             g->u + i / per_tile * S::u_tile + first * 128 + i % per_tile * 16),
                         "r"(0)
                         : "memory");
}

/* U of row m from its stage. */
template <class S, int N2, int F>
DEV void wide_make_u(const team *g, const transform_args *p, uint32_t raw, int m)
{
    constexpr int vec = F == FRONT_F32 ? 4 : 8, width = F == FRONT_F32 ? 4 : 2;
    constexpr int loads = (S::n + S::threads * vec - 1) / (S::threads * vec);
    float v[loads][vec];
#pragma unroll
    for (int i = 0; i < loads; i++) {
        const int c = (g->thread + i * S::threads) * vec;
#pragma unroll
        for (int j = 0; j < vec; j++) v[i][j] = 0;
        if (!chunk_inside<S, vec>(g, i)) continue;
        raw_values<F, vec>(v[i], raw + c * width);
        if (F == FRONT_SILU) {
            float w[vec];
            raw_values<F, vec>(w, raw + 2 * S::n + c * width);
#pragma unroll
            for (int j = 0; j < vec; j++) v[i][j] = silu(v[i][j]) * w[j];
        }
    }
    if (F == FRONT_F32 && p->x.add) {
#pragma unroll
        for (int i = 0; i < loads; i++)
            if (chunk_inside<S, vec>(g, i))
                add_values<4>(v[i], &p->x, m, (g->thread + i * S::threads) * vec);
    }
    if (F != FRONT_SILU && is_normed(&p->x)) norm_row<S, loads, vec>(g, v, &p->x);
    else team_sync<S>(g); /* the image of codes, which lies in U, has been read */
    if (F != FRONT_SILU) finish_chunks<S, loads, vec>(g, v, &p->x);
    else if (p->x.premul) with_vector<S, loads, vec, false>(g, v, p->x.premul);
#pragma unroll
    for (int i = 0; i < loads; i++)
        if (chunk_inside<S, vec>(g, i))
            put_u<vec>(wide_u_address<S, N2>(g->u, (g->thread + i * S::threads) * vec), v[i]);
    zero_spare<S, N2>(g);
    fence_async_smem();
}

/* ---- products ---------------------------------------------------------------------------- */

/* z = bf16(Z) of the warpgroup's columns, as A fragments. */
template <class S>
DEV void wide_first(uint32_t (*z)[4], const uint32_t (*held)[4], const team *g, uint32_t u)
{
    float d[S::rows / 2];
    uint32_t right[S::k_steps][4];
    const uint64_t desc = wgmma_desc(u);
#pragma unroll
    for (int s = 0; s < S::k_steps; s++)
        if (s < S::held) {
#pragma unroll
            for (int w = 0; w < 4; w++) right[s][w] = held[s][w];
        } else lds128(right[s], g->more + (s - S::held) * 2048);
    wgmma_fence();
#pragma unroll
    for (int s = 0; s < S::k_steps; s++)
        wgmma_bf16<S::rows>(d, right[s], desc + s / 4 * (S::u_tile / 16) + s % 4 * 2, s > 0);
    wgmma_commit();
    wgmma_wait<0>();
#pragma unroll
    for (int s = 0; s < S::i_steps; s++)
#pragma unroll
        for (int w = 0; w < 4; w++) z[s][w] = bf16x2(d[8 * s + 2 * w], d[8 * s + 2 * w + 1]);
}

template <class S> DEV void wide_second(float *d, const uint32_t (*z)[4], uint32_t left)
{
    const uint64_t desc = wgmma_desc(left);
    wgmma_fence();
#pragma unroll
    for (int s = 0; s < S::i_steps; s++)
        wgmma_bf16<S::cols>(d, z[s], desc + s / 4 * (S::left_tile / 16) + s % 4 * 2, s > 0);
    wgmma_commit();
    wgmma_wait<0>();
}

/* ---- codes ------------------------------------------------------------------------------- */

template <class S> DEV row_codes wide_codes(const team *g, const code_grid *w, const float *d)
{
    uint2 range = make_uint2(0, 0);
#pragma unroll
    for (int i = 0; i < S::cols / 2; i += 2)
        range = wider(range, __float_as_uint(d[i]), __float_as_uint(d[i + 1]));
    range.x = (uint32_t)__reduce_max_sync(0xffffffffu, (int)range.x);
    range.y = __reduce_max_sync(0xffffffffu, range.y);
    if (g->lane == 0) g->shared->range[g->warp] = range;
    team_sync<S>(g);
#pragma unroll
    for (int i = 0; i < S::warps; i += 2) {
        uint32_t two[4];
        lds128(two, g->range + 8 * i);
        range.x = (uint32_t)__vimax3_s32((int)range.x, (int)two[0], (int)two[2]);
        range.y = __vimax3_u32(range.y, two[1], two[3]);
    }
    return make_row_codes(w, range);
}

/* Codes into the image: row a, columns j. */
template <class S>
DEV void put_image(const team *g, const code_grid *grid, const row_codes *c, const float *d)
{
    const uint32_t to = g->image + g->lane * S::pitch + 16 * g->warp;
#pragma unroll
    for (int t = 0; t < S::cols / 8; t += 4) {
        uint32_t w[4] = {0, 0, 0, 0};
#pragma unroll
        for (int i = 0; i < 4 && t + i < S::cols / 8; i++) {
            const float *q = d + 4 * (t + i);
            w[i] = four_bytes(code_bits(grid, c, q[0]), code_bits(grid, c, q[2]),
                              code_bits(grid, c, q[1]), code_bits(grid, c, q[3]));
        }
        stmatrix_trans(to + 8 * t * S::pitch, w[0], w[1], w[2], w[3]);
    }
}

template <class S, int N2>
DEV void wide_store(const team *g, const transform_args *p, const row_codes *codes, int m)
{
    constexpr int chunks = S::n / 16, rounds = (chunks + S::threads - 1) / S::threads;
    int8_t *row = p->y.codes + m * p->y.ld;
    int sum = 0;
#pragma unroll
    for (int r = 0; r < rounds; r++) {
        const int i = g->thread + r * S::threads;
        uint32_t w[4];
        if ((r + 1) * S::threads > chunks && i >= chunks) continue;
        lds128(w, g->image + i / (N2 / 16) * S::pitch + i % (N2 / 16) * 16);
        *(uint4 *)(row + 16 * i) = make_uint4(w[0], w[1], w[2], w[3]);
#pragma unroll
        for (int j = 0; j < 4; j++) sum = sum_codes(w[j], sum);
    }
    for (int c = S::n + 16 * g->thread; c < p->y.ld; c += 16 * S::threads)
        *(uint4 *)(row + c) = make_uint4(0, 0, 0, 0);
    if (p->y.x_sum) {
        sum = __reduce_add_sync(0xffffffffu, sum);
        if (g->lane == 0) g->shared->sum[g->warp] = sum;
    }
    if (g->thread == 0) {
        p->y.x_scale[m] = codes->scale;
        p->y.x_zero[m] = codes->zero;
    }
}

/* After a barrier behind wide_store, and before the next barrier. */
template <class S> DEV void wide_put_sum(const team *g, const transform_args *p, int m)
{
    int sum = 0;
    if (g->thread != 0 || !p->y.x_sum) return;
    for (int w = 0; w < S::warps; w++) sum += g->shared->sum[w];
    p->y.x_sum[m] = sum;
}

/* ---- kernel ------------------------------------------------------------------------------ */

/* Factors by bulk copies, left to base, more of right; spare rows of U zero; barriers. */
template <class S, int F, int stages>
DEV void wide_prologue(const team *g, const transform_args *p, uint32_t base, uint32_t more,
                       uint32_t left_bar)
{
    const char *factors = (const char *)p->factors;
    if (threadIdx.x == 0) {
        mbar_init(left_bar, 1);
        mbar_expect(left_bar, S::left_bytes + S::groups * S::more_bytes);
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
    const uint32_t rest =
        more + S::groups * S::more_bytes + id * (L::team_bytes - L::u_area);
    const team g = {u,
                    rest,
                    L::bare ? rest : u,
                    base,
                    more + thread / 128 * S::more_bytes + thread % 128 * 16,
                    smem_addr(shared[id].full),
                    smem_addr(shared[id].range),
                    &shared[id],
                    id,
                    thread / 128,
                    thread / 32,
                    thread % 32,
                    thread};
    const int step = n_teams * gridDim.x;
    uint32_t right[S::held][4];
    int m = id * gridDim.x + blockIdx.x, stage = 0, parity = 0;
    wide_prologue<S, F, stages>(&g, &p.t, base, more, smem_addr(&left_full));
#pragma unroll
    for (int s = 0; s < S::held; s++)
        *(uint4 *)right[s] =
            ((const uint4 *)p.t.factors)[(g.group * S::k_steps + s) * 128 + thread % 128];
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
static cudaError_t launch_wide_front(const wide_args *p, int n_sm, cudaStream_t stream)
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
    const tensor_2d t = {a->t.x.x,
                         CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
                         (uint64_t)N2,
                         (uint64_t)a->t.M * N1,
                         2 * N2,
                         64,
                         N1,
                         true};
    return fl__tensor_map(&a->map, &t, err);
}

/* Teams and stages of bare rows; of the others. */
template <int N1, int N2, int teams, int stages, int made_teams, int made_stages>
static fl_status launch_wide(const transform_args *p, int n_sm, cudaStream_t stream,
                             fl_err *err)
{
    wide_args a = {};
    cudaError_t e;
    fl_status st;
    a.t = *p;
    a.grid = make_code_grid(&p->grid);
    switch (fl__cuda_row_front(&p->x)) {
    case FRONT_BARE:
        if (p->x.ldx == N1 * N2) {
            if ((st = make_map<N1, N2>(&a, err)) != FL_OK) return st;
            e = launch_wide_front<N1, N2, FRONT_BARE, teams, stages>(&a, n_sm, stream);
            break;
        } /* fall through */
    default:
        e = launch_wide_front<N1, N2, FRONT_BF16, made_teams, made_stages>(&a, n_sm, stream);
        break;
    case FRONT_F32:
        e = launch_wide_front<N1, N2, FRONT_F32, made_teams, made_stages>(&a, n_sm, stream);
        break;
    case FRONT_SILU:
        e = launch_wide_front<N1, N2, FRONT_SILU, made_teams, made_stages>(&a, n_sm, stream);
        break;
    }
    if (e == cudaSuccess) return FL_OK;
    return fl__fail(err, FL_E_FAIL, "cuda: transform [%d, %d x %d]: %s; see the GPU's log",
                    p->M, N1, N2, cudaGetErrorString(e));
}

#endif
