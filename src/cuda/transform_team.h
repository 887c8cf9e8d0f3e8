/* transform_team.h - what the kernels of the wide transforms share: a team of warpgroups that
 * makes U of a row from registers, multiplies it by both factors and stores its codes.
 *
 * For factors from 64 on. A team of N2 / 64 warpgroups turns one row at a time. With
 * Z = (U right)^T, warpgroup w holds 64 columns j:
 *
 *   Z[j, i]  = right^T[j, k] U^T[k, i]     right^T in registers, U in shared memory:
 *                                          [tile of 64 k][i][128 bytes], swizzled
 *   X'[j, a] = bf16(Z)[j, i] left[i, a]    Z never leaves the registers: the accumulators of
 *                                          the first product are the A operand of the second
 *
 * Rows j of a fragment are permuted so that a thread has pairs j, j + 1 side by side: pairs of
 * codes go through stmatrix, transposed, into a row-major image, and from there to memory, 16
 * bytes a thread. SPDX-License-Identifier: MIT */
#ifndef FL_CUDA_TRANSFORM_TEAM_H
#define FL_CUDA_TRANSFORM_TEAM_H

#include "cuda/activation.h"
#include "cuda/launch.h"
#include "cuda/tensor_map.h"
#include "cuda/transform_codes.h"
#include "cuda/wgmma_bf16.h"

enum { WIDE_MAX_WARPS = 16, WIDE_MAX_STAGES = 4 };

/* What follows from a shape. H: k steps of right^T that stay in registers, the others are read
 * for every row; -1: what 128 registers allow. */
template <int N1, int N2, int H = -1> struct wide_shape {
    static constexpr int n = N1 * N2;
    static constexpr int groups = (N2 + 63) / 64; /* warpgroups, and tiles of U */
    static constexpr int threads = 128 * groups, warps = 4 * groups;
    static constexpr int rows = (N1 + 15) / 16 * 16; /* of i: N of the first, K of the second */
    static constexpr int cols = (N1 + 7) / 8 * 8;    /* of a: N of the second */
    static constexpr int k_steps = N2 / 16, i_steps = rows / 16;
    static constexpr int u_tile = rows * 128, u_bytes = groups * u_tile;
    static constexpr int left_tile = cols * 128, left_bytes = (rows + 63) / 64 * left_tile;
    static constexpr int right_bytes = groups * k_steps * 2048;
    static constexpr bool streams = groups > 2; /* right^T from memory for every row */
    static constexpr int held = streams                                     ? 0
                                : H >= 0                                    ? H
                                : k_steps * 4 + i_steps * 4 + cols / 2 > 90 ? k_steps / 4
                                                                            : k_steps;
    static constexpr int more_bytes = streams ? 0 : (k_steps - held) * 2048; /* of a group */
    static constexpr int pitch =
        64 * groups + 16; /* of the image of codes: no bank conflicts */
    static constexpr int image_bytes = (cols + 31) / 32 * 32 * pitch;
    static_assert(N2 % 16 == 0 && n % 16 == 0, "rows of codes are stored 16 bytes at a time");
};

/* What the warps of a team tell each other. */
typedef struct alignas(16) team_memory {
    uint2 range[WIDE_MAX_WARPS]; /* bits of the largest and the smallest value */
    float squares[2][WIDE_MAX_WARPS];
    int32_t sum[WIDE_MAX_WARPS];
    uint64_t full[WIDE_MAX_STAGES];
} team_memory;

typedef struct team {
    uint32_t u, raw, image, left, more, full, range, gain; /* shared memory */
    team_memory *shared;
    int id, group, warp, lane, thread; /* group, warp, thread within the team */
    const uint4 *right;                /* the thread's part of right^T, [k_steps][128] */
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

/* Where a thread's A fragments of right^T lie. */
template <class S> DEV const uint4 *right_part(const transform_args *p, int thread)
{
    return (const uint4 *)p->factors + thread / 128 * S::k_steps * 128 + thread % 128;
}

/* ---- rows in registers ------------------------------------------------------------------- */

/* How a row lies in a team's registers: chunk i of a thread, `vec` values, starts at channel
 * (thread + i * threads) * vec. */
template <class S, int F> struct row_shape {
    static constexpr int vec = F == FRONT_F32 ? 4 : 8;
    static constexpr int loads = (S::n + S::threads * vec - 1) / (S::threads * vec);
};

template <class S, int vec> DEV int chunk_channel(const team *g, int i)
{
    return (g->thread + i * S::threads) * vec;
}

template <class S, int vec> DEV bool chunk_inside(const team *g, int i)
{
    return (i + 1) * S::threads * vec <= S::n || chunk_channel<S, vec>(g, i) < S::n;
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
    const float factor = norm_factor(team_sum<S>(g, sum, g->shared->squares[0]), S::n, x->eps);
#pragma unroll
    for (int i = 0; i < loads * vec; i++) v[i / vec][i % vec] *= factor;
}

/* w = a vector over the channels, as the row lies. */
template <class S, int loads, int vec>
DEV void read_vector(const team *g, float (*w)[vec], const float *from)
{
#pragma unroll
    for (int i = 0; i < loads; i++)
        if (chunk_inside<S, vec>(g, i)) load_f32<vec>(w[i], from + chunk_channel<S, vec>(g, i));
}

template <int loads, int vec> DEV void multiply_row(float (*v)[vec], const float (*w)[vec])
{
#pragma unroll
    for (int i = 0; i < loads * vec; i++)
        v[i / vec][i % vec] = __fmul_rn(v[i / vec][i % vec], w[i / vec][i % vec]);
}

/* What comes behind norm and gain: bias, ReLU, premul. */
template <class S, int loads, int vec>
DEV void finish_chunks(const team *g, float (*v)[vec], const fl_cuda_row *x)
{
    alignas(16) float w[loads][vec];
    if (x->bias) {
        read_vector<S, loads, vec>(g, w, x->bias);
#pragma unroll
        for (int i = 0; i < loads * vec; i++)
            v[i / vec][i % vec] = __fadd_rn(v[i / vec][i % vec], w[i / vec][i % vec]);
    }
    if (x->relu) {
#pragma unroll
        for (int i = 0; i < loads * vec; i++)
            v[i / vec][i % vec] = fmaxf(v[i / vec][i % vec], 0);
    }
    if (x->premul) {
        read_vector<S, loads, vec>(g, w, x->premul);
        multiply_row<loads, vec>(v, w);
    }
}

/* Address in U of value c, whose 8 or 4 neighbours up to the next multiple follow it. */
template <class S, int N2> DEV uint32_t wide_u_address(uint32_t u, int c)
{
    const int i = c / N2, k = c % N2;
    return u +
           (uint32_t)(k / 64 * S::u_tile + i * 128 + ((k % 64 / 8 ^ i % 8) * 16) + k % 8 * 2);
}

template <int n> DEV void put_u(uint32_t to, const float *v)
{
    if (n == 8)
        asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(to),
                     "r"(bf16x2(v[0], v[1])), "r"(bf16x2(v[2], v[3])),
                     "r"(bf16x2(v[4 % n], v[5 % n])), "r"(bf16x2(v[6 % n], v[7 % n]))
                     : "memory");
    else
        asm volatile("st.shared.v2.u32 [%0], {%1, %2};" ::"r"(to), "r"(bf16x2(v[0], v[1])),
                     "r"(bf16x2(v[2], v[3]))
                     : "memory");
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

/* U = bf16 of the row, for the team's products. */
template <class S, int N2, int loads, int vec>
DEV void put_row(const team *g, const float (*v)[vec])
{
#pragma unroll
    for (int i = 0; i < loads; i++)
        if (chunk_inside<S, vec>(g, i))
            put_u<vec>(wide_u_address<S, N2>(g->u, chunk_channel<S, vec>(g, i)), v[i]);
    zero_spare<S, N2>(g);
    fence_async_smem();
}

/* ---- products ---------------------------------------------------------------------------- */

/* z = bf16(Z) of the warpgroup's columns, as A fragments. */
template <class S>
DEV void wide_first(uint32_t (*z)[4], const uint32_t (*held)[4], const team *g, uint32_t u)
{
    /* steps at a time: without registers to hold them, few */
    constexpr int batch = S::held == 0 ? FL_MIN(4, S::k_steps) : S::k_steps;
    float d[S::rows / 2];
    const uint64_t desc = wgmma_desc(u);
#pragma unroll
    for (int from = 0; from < S::k_steps; from += batch) {
        uint32_t right[batch][4];
#pragma unroll
        for (int s = 0; s < batch; s++)
            if (from + s < S::held) {
#pragma unroll
                for (int w = 0; w < 4; w++) right[s][w] = held[from + s][w];
            } else if (S::streams && from + s < S::k_steps)
                *(uint4 *)right[s] = g->right[(from + s) * 128];
            else if (from + s < S::k_steps)
                lds128(right[s], g->more + (from + s - S::held) * 2048);
        wgmma_fence();
#pragma unroll
        for (int i = 0; i < batch && from + i < S::k_steps; i++) {
            const int s = from + i;
            wgmma_bf16<S::rows>(d, right[i], desc + s / 4 * (S::u_tile / 16) + s % 4 * 2,
                                s > 0);
        }
        wgmma_commit();
        wgmma_wait<0>();
    }
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

#endif
