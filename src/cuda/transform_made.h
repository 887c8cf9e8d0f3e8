/* transform_made.h - the wide transforms of rows that have to be made: normed, gated, scaled.
 *
 * As transform_wide.h, but in two roles, so that making one row and multiplying another overlap
 * always: two warpgroups of makers, which have few registers, and teams that multiply, round
 * and store. Row k of a CTA goes to maker k % 2 and team k % teams.
 *
 *   memory -> ring of raw rows (bulk copies, `stages` ahead) -> maker -> ring of U (`slots`)
 *   -> team -> codes
 *
 * A maker refills its own stages; a slot is free when the team's first product has read it.
 * SPDX-License-Identifier: MIT */
#ifndef FL_CUDA_TRANSFORM_MADE_H
#define FL_CUDA_TRANSFORM_MADE_H

#include "cuda/transform_wide.h"

enum { MAKERS = 2, MADE_MAX_TEAMS = 4, MADE_MAX_RING = 8 };

/* What makers share. */
typedef struct maker_memory {
    float sums[MAKERS][2][4];
    uint64_t raw_full[MADE_MAX_RING], u_full[MADE_MAX_RING], u_empty[MADE_MAX_RING];
} maker_memory;

/* From a 1,024-byte border on: left, U, more of right, images, gain, raw rows. */
template <class S, int F, int teams, int slots, int stages> struct made_memory {
    static constexpr int raw_bytes = S::n * (F == FRONT_BF16 ? 2 : 4);
    static constexpr int gain_bytes = F != FRONT_SILU && S::n <= 8192 ? 4 * S::n : 0;
    static constexpr int u_at = S::left_bytes;
    static constexpr int more_at = u_at + slots * S::u_bytes;
    static constexpr int image_at = more_at + S::groups * S::more_bytes;
    static constexpr int gain_at = image_at + teams * S::image_bytes;
    static constexpr int raw_at = gain_at + gain_bytes;
    static constexpr int bytes = 1024 + raw_at + stages * raw_bytes;
};

typedef struct maker {
    int id, thread, lane, warp; /* of the warpgroup */
    uint32_t gain;              /* shared memory, or 0 */
    float (*sums)[4];
} maker;

DEV void maker_sync(const maker *k)
{
    named_barrier(1 + MADE_MAX_TEAMS + k->id, 128);
}

DEV float maker_sum(const maker *k, float v, float *shared)
{
    v = warp_sum(v);
    if (k->lane == 0) shared[k->warp] = v;
    maker_sync(k);
    return (shared[0] + shared[1]) + (shared[2] + shared[3]);
}

template <int F> struct maker_chunk {
    static constexpr int vec = F == FRONT_F32 ? 4 : 8, width = F == FRONT_F32 ? 4 : 2;
};

/* x += add: in memory and in the raw row. */
template <class S>
DEV void maker_add(const maker *k, const fl_cuda_row *x, uint32_t raw, int64_t m)
{
#pragma unroll 4
    for (int c = 4 * k->thread; c < S::n; c += 4 * 128) {
        float v[4];
        raw_values<FRONT_F32, 4>(v, raw + 4 * c);
        add_values<4>(v, x, m, c);
        asm volatile("st.shared.v4.f32 [%0], {%1, %2, %3, %4};" ::"r"(raw + 4 * c), "f"(v[0]),
                     "f"(v[1]), "f"(v[2]), "f"(v[3])
                     : "memory");
    }
}

/* The sum over the row of v - mean, or of its square. */
template <class S, int F>
DEV float maker_row_sum(const maker *k, uint32_t raw, bool squares, float mean, float *shared)
{
    constexpr int vec = maker_chunk<F>::vec;
    float sums[vec] = {}, sum = 0;
#pragma unroll 4
    for (int c = vec * k->thread; c < S::n; c += vec * 128) {
        float v[vec];
        raw_values<F, vec>(v, raw + c * maker_chunk<F>::width);
#pragma unroll
        for (int j = 0; j < vec; j++) {
            const float d = v[j] - mean;
            sums[j] = squares ? fmaf(d, d, sums[j]) : sums[j] + d;
        }
    }
#pragma unroll
    for (int j = 0; j < vec; j++) sum += sums[j];
    return maker_sum(k, sum, shared);
}

/* v = v * by, by from the copy in shared memory where there is one. */
template <int vec> DEV void maker_gain(float *v, const maker *k, const float *by, int c)
{
    alignas(16) float w[vec];
    if (k->gain) {
#pragma unroll
        for (int j = 0; j < vec; j += 4) lds128((uint32_t *)w + j, k->gain + 4 * (c + j));
    } else load_f32<vec>(w, by + c);
#pragma unroll
    for (int j = 0; j < vec; j++) v[j] = __fmul_rn(v[j], w[j]);
}

/* What comes behind the norm: fl_cuda_row's bias, ReLU, premul. */
template <int vec> DEV void maker_rest(float *v, const fl_cuda_row *x, int c)
{
    if (x->bias) {
        alignas(16) float w[vec];
        load_f32<vec>(w, x->bias + c);
#pragma unroll
        for (int j = 0; j < vec; j++) v[j] = __fadd_rn(v[j], w[j]);
    }
    if (x->relu) {
#pragma unroll
        for (int j = 0; j < vec; j++) v[j] = fmaxf(v[j], 0.0f);
    }
    if (x->premul) multiply<vec>(v, x->premul + c);
}

/* U of one row. */
template <class S, int N2, int F>
DEV void maker_row(const maker *k, const fl_cuda_row *x, uint32_t raw, uint32_t u, row_stats stats)
{
    constexpr int vec = maker_chunk<F>::vec, width = maker_chunk<F>::width;
    const float shift = -stats.mean * stats.factor;
    const bool normed = is_normed(x), rest = x->bias || x->relu || x->premul;
#pragma unroll 2
    for (int c = vec * k->thread; c < S::n; c += vec * 128) {
        float v[vec];
        raw_values<F, vec>(v, raw + c * width);
        if (F == FRONT_SILU) {
            float w[vec];
            raw_values<F, vec>(w, raw + 2 * S::n + c * width);
#pragma unroll
            for (int j = 0; j < vec; j++) v[j] = silu(v[j]) * w[j];
        } else if (normed) {
#pragma unroll
            for (int j = 0; j < vec; j++) v[j] = fmaf(v[j], stats.factor, shift);
            if (x->gain) maker_gain<vec>(v, k, x->gain, c);
        }
        if (rest) maker_rest<vec>(v, x, c);
        put_u<vec>(wide_u_address<S, N2>(u, c), v);
    }
    fence_async_smem();
}

template <class S, int F>
DEV row_stats maker_stats(const maker *k, const fl_cuda_row *x, uint32_t raw)
{
    row_stats stats = {0, 1};
    if (F == FRONT_SILU || !is_normed(x)) return stats;
    if (x->layer_norm)
        stats.mean = maker_row_sum<S, F>(k, raw, false, 0, k->sums[0]) / (float)S::n;
    const float squares = maker_row_sum<S, F>(k, raw, true, stats.mean, k->sums[1]);
    stats.factor = norm_factor(squares, S::n, x->eps);
    return stats;
}

/* One thread: row m into a stage. */
template <class S, int F>
DEV void fetch_raw(uint32_t to, uint32_t bar, const fl_cuda_row *x, int64_t m)
{
    if (F == FRONT_F32) {
        mbar_expect(bar, 4 * S::n);
        bulk_load(to, (const float *)x->x + m * x->ldx, 4 * S::n, bar);
        return;
    }
    mbar_expect(bar, F == FRONT_SILU ? 4 * S::n : 2 * S::n);
    bulk_load(to, (const uint16_t *)x->x + m * x->ldx, 2 * S::n, bar);
    if (F == FRONT_SILU) bulk_load(to + 2 * S::n, x->up + m * x->ldx, 2 * S::n, bar);
}

/* A maker's rows: every second one of the CTA's. */
template <class S, int N2, int F, int slots, int stages, class L>
DEV void make_rows(const maker *k, const transform_args *p, maker_memory *s, uint32_t base)
{
    const fl_cuda_row *x = &p->x;
    const int step = gridDim.x;
    const int64_t M = p->M;
    int stage = k->id, slot = k->id, raw_parity = 0, u_parity = 1;
    if (k->thread == 0)
        for (int i = k->id; i < stages; i += MAKERS) {
            const int64_t m = blockIdx.x + (int64_t)i * step;
            if (m < M)
                fetch_raw<S, F>(base + L::raw_at + i * L::raw_bytes, smem_addr(&s->raw_full[i]), x,
                                m);
        }
    for (int64_t m = blockIdx.x + (int64_t)k->id * step; m < M; m += MAKERS * step) {
        const uint32_t raw = base + L::raw_at + stage * L::raw_bytes;
        mbar_wait(smem_addr(&s->raw_full[stage]), raw_parity);
        if (F == FRONT_F32 && x->add) maker_add<S>(k, x, raw, m);
        const row_stats stats = maker_stats<S, F>(k, x, raw);
        mbar_wait(smem_addr(&s->u_empty[slot]), u_parity);
        maker_row<S, N2, F>(k, x, raw, base + L::u_at + slot * S::u_bytes, stats);
        maker_sync(k);
        if (k->thread == 0) {
            mbar_arrive(smem_addr(&s->u_full[slot]));
            if (m + stages * step < M)
                fetch_raw<S, F>(raw, smem_addr(&s->raw_full[stage]), x, m + stages * step);
        }
        if ((stage += MAKERS) >= stages) stage -= stages, raw_parity ^= 1;
        if ((slot += MAKERS) >= slots) slot -= slots, u_parity ^= 1;
    }
}

/* A team's rows. */
template <class S, int N2, int teams, int slots, class L>
DEV void turn_rows(const team *g, const wide_args *p, maker_memory *s, uint32_t base,
                   const uint32_t (*right)[4])
{
    const int step = teams * gridDim.x;
    int slot = g->id % slots, parity = g->id / slots & 1, last = -1;
    for (int64_t m = blockIdx.x + (int64_t)g->id * gridDim.x; m < p->t.M; m += step) {
        float d[S::cols / 2];
        uint32_t z[S::i_steps][4];
        mbar_wait(smem_addr(&s->u_full[slot]), parity);
        wide_first<S>(z, right, g, base + L::u_at + slot * S::u_bytes);
        __syncwarp();
        if (g->lane == 0) mbar_arrive(smem_addr(&s->u_empty[slot]));
        wide_second<S>(d, z, g->left);
        const row_codes codes = wide_codes<S>(g, &p->grid, d);
        if (last >= 0) wide_put_sum<S>(g, &p->t, last);
        put_image<S>(g, &p->grid, &codes, d);
        team_sync<S>(g);
        wide_store<S, N2>(g, &p->t, &codes, (int)m);
        last = (int)m;
        slot += teams;
        while (slot >= slots) slot -= slots, parity ^= 1;
    }
    team_sync<S>(g);
    if (last >= 0) wide_put_sum<S>(g, &p->t, last);
}

template <class S, int F, int slots, int stages, class L>
DEV void made_prologue(const transform_args *p, maker_memory *s, uint32_t base, uint32_t left_bar)
{
    const char *factors = (const char *)p->factors;
    const bool gain = L::gain_bytes > 0 && p->x.gain;
    if (threadIdx.x == 0) {
        mbar_init(left_bar, 1);
        for (int i = 0; i < stages; i++) mbar_init(smem_addr(&s->raw_full[i]), 1);
        for (int i = 0; i < slots; i++) {
            mbar_init(smem_addr(&s->u_full[i]), 1);
            mbar_init(smem_addr(&s->u_empty[i]), S::warps);
        }
        mbar_expect(left_bar,
                    S::left_bytes + S::groups * S::more_bytes + (gain ? L::gain_bytes : 0));
    }
    if (S::rows * S::k_steps * 16 != S::n) /* spare rows of U */
        for (int i = threadIdx.x; i < slots * S::u_bytes / 16; i += blockDim.x)
            asm volatile("st.shared.v4.u32 [%0], {%1, %1, %1, %1};" ::"r"(base + L::u_at + 16 * i),
                         "r"(0)
                         : "memory");
    mbar_init_fence();
    __syncthreads();
    if (threadIdx.x != 0) return;
    bulk_load(base, factors + S::right_bytes, S::left_bytes, left_bar);
    for (int w = 0; w < S::groups && S::more_bytes > 0; w++)
        bulk_load(base + L::more_at + w * S::more_bytes,
                  factors + (w * S::k_steps + S::held) * 2048, S::more_bytes, left_bar);
    if (gain) bulk_load(base + L::gain_at, p->x.gain, L::gain_bytes, left_bar);
}

/* H: k steps in registers; turn_regs, make_regs: of a thread of a team, of a maker. */
template <int N1, int N2, int H, int F, int teams, int slots, int stages, int turn_regs,
          int make_regs>
__global__ void __launch_bounds__(teams *wide_shape<N1, N2>::threads + 128 * MAKERS, 1)
    made_kernel(const __grid_constant__ wide_args p)
{
    typedef wide_shape<N1, N2, H> S;
    typedef made_memory<S, F, teams, slots, stages> L;
    static_assert(stages % MAKERS == 0 && slots % MAKERS == 0, "makers keep their places");
    extern __shared__ char memory[];
    __shared__ team_memory shared[teams];
    __shared__ maker_memory makers;
    __shared__ uint64_t left_full;
    const uint32_t base = (smem_addr(memory) + 1023u) & ~1023u;
    const int lane = threadIdx.x % 32;
    made_prologue<S, F, slots, stages, L>(&p.t, &makers, base, smem_addr(&left_full));
    if (threadIdx.x >= teams * S::threads) {
        const int id = (threadIdx.x - teams * S::threads) / 128;
        const maker k = {id,
                         (int)threadIdx.x % 128,
                         lane,
                         (int)threadIdx.x % 128 / 32,
                         L::gain_bytes > 0 ? base + L::gain_at : 0,
                         makers.sums[id]};
        asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(make_regs));
        wait_previous();
        launch_next();
        mbar_wait(smem_addr(&left_full), 0);
        make_rows<S, N2, F, slots, stages, L>(&k, &p.t, &makers, base);
        return;
    }
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(turn_regs));
    const int id = threadIdx.x / S::threads, thread = threadIdx.x % S::threads;
    const team g = {0,
                    0,
                    base + L::image_at + id * S::image_bytes,
                    base,
                    base + L::more_at + thread / 128 * S::more_bytes + thread % 128 * 16,
                    0,
                    smem_addr(shared[id].range),
                    &shared[id],
                    id,
                    thread / 128,
                    thread / 32,
                    lane,
                    thread};
    uint32_t right[S::held > 0 ? S::held : 1][4];
#pragma unroll
    for (int s = 0; s < S::held; s++)
        *(uint4 *)right[s] =
            ((const uint4 *)p.t.factors)[(g.group * S::k_steps + s) * 128 + thread % 128];
    wait_previous();
    launch_next();
    mbar_wait(smem_addr(&left_full), 0);
    turn_rows<S, N2, teams, slots, L>(&g, &p, &makers, base, right);
}

template <int N1, int N2, int H, int F, int teams, int slots, int stages, int turn_regs,
          int make_regs>
static cudaError_t launch_made(const wide_args *p, int n_sm, cudaStream_t stream)
{
    typedef wide_shape<N1, N2, H> S;
    return launch_after(made_kernel<N1, N2, H, F, teams, slots, stages, turn_regs, make_regs>,
                        dim3((unsigned)FL_MIN(p->t.M, n_sm)), teams * S::threads + 128 * MAKERS,
                        made_memory<S, F, teams, slots, stages>::bytes, stream, *p);
}

#endif
