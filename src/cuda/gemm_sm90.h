/* gemm_sm90.h - prefill GEMM on Hopper's int8 tensor cores; gemm_w4_sm90.cu and
 * gemm_w8_sm90.cu instantiate it.
 *
 * The problem is transposed: D[channel, token] = W * X^T, so that weights are the A operand,
 * which wgmma may take from registers. 4-bit codes go from memory to shared memory packed and
 * become int8 (times 16) by two ANDs and a shift per 8 codes on the way to registers; the
 * tensor cores hide that.
 *
 *   CTA: 128 channels x TOK tokens; warpgroups 0 and 1 multiply 64 channels each, one thread of
 *   warpgroup 2 feeds a ring of STAGES: x [TOK, 128 k] (swizzled) and W [8 panels, 128 k].
 *   full[s] completes with the stage's bytes, empty[s] with an arrival of each consumer warp.
 *
 * CTAs are persistent and walk the items (tile, part of K) in groups of `group` token tiles, so
 * that what runs at one time shares x and W in L2. Parts of K add their exact int32 sums into
 * the workspace; the last to come takes the total, and so the result does not depend on order.
 *
 * Out of step: with shift > 0 warpgroup 1 begins its tiles `shift` stages later than warpgroup
 * 0 and takes K from there around, so that one multiplies while the other scales and stores:
 *
 *   k        0 1 2 3 4 5 6 7 0 1 2 3 4 5 6 7 0 1 2         (shift 3)
 *   group 0  [ tile 0      ] [ tile 1      ]
 *   group 1        [ tile 0      ] [ tile 1      ]
 *
 * Where tiles next to each other have the same tokens, both use the same x all the time. Else
 * the first `shift` stages of a tile come twice: for group 1 with its old tile, for group 0
 * with its new one; each passes the other's.
 *
 * Epilogue from registers: a thread has pairs of neighbouring channels (rows r and r + 8 of a
 * fragment are channels 2r and 2r + 1), eight lanes fill the 32 or 64 bytes of a token.
 * SPDX-License-Identifier: MIT */
#ifndef FL_CUDA_GEMM_SM90_H
#define FL_CUDA_GEMM_SM90_H

#include "cuda/gemm_epilogue.h"
#include "cuda/tensor_map.h"

#include <cuda_runtime.h>

enum {
    CHANNELS = 128, /* of a CTA's tile */
    STAGE_K = 128,
    N_THREADS = 384,
    CONSUMER_WARPS = 8,
    BARRIER_BYTES = 256,
    SMEM_MAX = 232448,
    PREFETCH_M = 256, /* beyond, weights are the smaller part */
};

/* What the consumers need of an item, in shared memory; two of them in turn. */
template <int TOK> struct tile_info {
    uint32_t tokens[TOK][2]; /* x_scale, x_zero */
    float w_scale[CHANNELS], bias[CHANNELS];
    int32_t col_sum[CHANNELS];
    int m0, n0, tile, n_k;
    int before, after; /* strays of warpgroup 0 and 1 */
    int padding[2];
};

template <int BITS, int TOK> struct ring {
    static const int x_bytes = TOK * STAGE_K;
    static const int w_bytes = CHANNELS * STAGE_K * BITS / 8;
    static const int stage_bytes = x_bytes + w_bytes;
    /* of the weights' tensor map: elements of a stage, channels of a row, rows of 64 */
    static const int w_cols = BITS == 4 ? 256 : 128;
    static const int w_rows = BITS == 4 ? 16 : 8;
    static const int w_box = 64 / w_rows;
    static const int fixed_bytes = 1024 + 2 * (int)sizeof(tile_info<TOK>) + BARRIER_BYTES;
    static const int fits = (SMEM_MAX - fixed_bytes) / stage_bytes;
    static const int stages = fits < 8 ? fits : 8;
    static const int smem_bytes = fixed_bytes + stages * stage_bytes;
};

typedef struct gemm_args {
    outputs o;
    int32_t *sums, *counters;
    int n_k; /* stages along K */
    int tiles_m, tiles_n, n_split, group, shift;
    bool prefetch; /* the first item's weights, while the kernel ahead runs */
} gemm_args;

typedef struct item {
    int m0, n0; /* first token and channel of this CTA's tile */
    int tile;   /* number of the tile */
    int k0, k1; /* stages */
} item;

template <int TOK> DEV item item_at(const gemm_args *g, int at)
{
    const int part = at % g->n_split, pair = at / g->n_split;
    const int per_group = g->group * g->tiles_n, first = pair / per_group * g->group;
    const int rows = min(g->tiles_m - first, g->group), in = pair % per_group;
    const int m = first + in % rows, n = in / rows;
    item it;
    it.m0 = m * TOK;
    it.n0 = n * CHANNELS;
    it.tile = n * g->tiles_m + m;
    it.k0 = (int)((int64_t)part * g->n_k / g->n_split);
    it.k1 = (int)((int64_t)(part + 1) * g->n_k / g->n_split);
    return it;
}

/* Stage number and phase parity of a ring position. */
typedef struct cursor {
    int stage;
    uint32_t parity;
} cursor;

template <int STAGES> DEV void advance(cursor *c)
{
    if (++c->stage == STAGES) {
        c->stage = 0;
        c->parity ^= 1;
    }
}

/* Shared memory of the CTA: addresses of its parts. known[i] completes when the coordinates of
 * info i are written, ready[i] when all of it is, with an arrival of each lane that wrote;
 * taken[i] with one of each consumer warp. */
typedef struct smem_map {
    uint32_t ring, info, full, empty, known, ready, taken, flags;
    uint8_t *base; /* of ring */
} smem_map;

template <int BITS, int TOK> DEV smem_map smem_parts(uint8_t *raw)
{
    typedef ring<BITS, TOK> R;
    smem_map s;
    s.ring = (smem_addr(raw) + 1023) & ~1023u;
    s.base = raw + (s.ring - smem_addr(raw));
    s.info = s.ring + R::stages * R::stage_bytes;
    s.full = s.info + 2 * (uint32_t)sizeof(tile_info<TOK>);
    s.empty = s.full + 8 * R::stages;
    s.known = s.empty + 8 * R::stages;
    s.ready = s.known + 16;
    s.taken = s.ready + 16;
    s.flags = s.taken + 16;
    return s;
}

template <int TOK> DEV tile_info<TOK> *info_at(const smem_map *s, int i)
{
    return (tile_info<TOK> *)(s->base + (s->info - s->ring)) + i;
}

typedef struct feeder {
    const CUtensorMap *map_x, *map_w;
    smem_map s;
    cursor at;
} feeder;

/* One stage: tokens from m0 and, for each warpgroup, 64 channels of the tile at n0[i]; a
 * warpgroup with -1 there has no part in it. */
template <int BITS, int TOK>
DEV void feed(feeder *f, int m0, int n0_first, int n0_second, int k)
{
    typedef ring<BITS, TOK> R;
    const uint32_t full = f->s.full + 8 * f->at.stage, empty = f->s.empty + 8 * f->at.stage;
    const uint32_t x = f->s.ring + f->at.stage * R::stage_bytes, w = x + R::x_bytes;
    const int n_parts = (n0_first >= 0) + (n0_second >= 0);
    mbar_wait(empty, f->at.parity ^ 1);
    mbar_expect(full, R::x_bytes + n_parts * (R::w_bytes / 2));
    tma_load(x, f->map_x, k * STAGE_K, m0, full);
    if (n0_first >= 0) tma_load(w, f->map_w, k * R::w_cols, n0_first / R::w_rows, full);
    if (n0_second >= 0)
        tma_load(w + R::w_bytes / 2, f->map_w, k * R::w_cols, n0_second / R::w_rows + R::w_box,
                 full);
    advance<R::stages>(&f->at);
}

template <int BITS, int TOK>
DEV void produce(const gemm_args *g, feeder *f, int first, int step, int n_items)
{
    item old = {}, it = {};
    for (int at = first; at < n_items + step; at += step, old = it) {
        const bool has = at<n_items, had = at> first;
        if (has) it = item_at<TOK>(g, at);
        for (int k = 0; k < g->shift; k++) {
            if (has && had && old.m0 == it.m0) {
                feed<BITS, TOK>(f, it.m0, it.n0, old.n0, k);
                continue;
            }
            if (had) feed<BITS, TOK>(f, old.m0, -1, old.n0, k);
            if (has) feed<BITS, TOK>(f, it.m0, it.n0, -1, k);
        }
        if (!has) return;
        for (int k = it.k0 + g->shift; k < it.k1; k++)
            feed<BITS, TOK>(f, it.m0, it.n0, it.n0, k);
    }
}

/* One warp writes the items' infos ahead of the consumers, so that these wait neither for
 * memory nor for divisions. */
template <int TOK>
DEV void describe(const gemm_args *g, const smem_map *s, int first, int step, int n_items)
{
    const int lane = threadIdx.x % 32;
    int old_m0 = -1, i = 0;
    for (int at = first; at < n_items; at += step, i++) {
        const item it = item_at<TOK>(g, at);
        tile_info<TOK> *t = info_at<TOK>(s, i % 2);
        mbar_wait(s->taken + 8 * (i % 2), (i / 2 % 2) ^ 1);
        if (lane == 0) {
            const int n_k = it.k1 - it.k0;
            t->m0 = it.m0;
            t->n0 = it.n0;
            t->tile = it.tile;
            t->n_k = n_k;
            t->before = at > first && old_m0 != it.m0 ? g->shift : 0;
            t->after = 1 << 30;
            if (at + step < n_items && item_at<TOK>(g, at + step).m0 != it.m0)
                t->after = n_k - g->shift;
            mbar_arrive(s->known + 8 * (i % 2));
        }
#pragma unroll 4
        for (int m = lane; m < TOK; m += 32) {
            float scale;
            int32_t zero;
            load_token(&scale, &zero, &g->o, it.m0 + m);
            t->tokens[m][0] = __float_as_uint(scale);
            t->tokens[m][1] = (uint32_t)zero;
        }
#pragma unroll 2
        for (int n = 2 * lane; n < CHANNELS; n += 64) {
            const channel_scales c = load_channels(&g->o, it.n0 + n);
#pragma unroll
            for (int j = 0; j < 2; j++) {
                t->w_scale[n + j] = c.scale[j];
                t->bias[n + j] = c.bias[j];
                t->col_sum[n + j] = c.sum[j];
            }
        }
        old_m0 = it.m0;
        mbar_arrive(s->ready + 8 * (i % 2));
    }
}

/* While the kernel ahead still runs: the first item's weights come to L2. */
template <int BITS, int TOK> DEV void prefetch_weights(const CUtensorMap *map_w, const item *it)
{
    typedef ring<BITS, TOK> R;
    for (int k = it->k0; k < it->k1; k++) {
        tma_prefetch(map_w, k * R::w_cols, it->n0 / R::w_rows);
        tma_prefetch(map_w, k * R::w_cols, it->n0 / R::w_rows + R::w_box);
    }
}

/* This warp is done with a stage. */
DEV void release(uint32_t empty, int lane)
{
    if (lane == 0) mbar_arrive(empty);
}

/* Which of a tile's stages stand beside one of the other warpgroup alone: those below `before`
 * behind it, those from `after` on ahead of it. */
typedef struct strays {
    int before, after;
} strays;

/* Where a consumer is in the ring. */
typedef struct reader {
    cursor at;
    smem_map s;
    strays skip;
    uint32_t x, empty; /* of the stage entered last */
    bool owes;         /* a pass, before the next stage */
} reader;

/* A stage that is the other warpgroup's alone: waited for and released like any, or the phases
 * of its barriers could not be told apart. */
template <int BITS, int TOK> DEV void pass(reader *r)
{
    mbar_wait(r->s.full + 8 * r->at.stage, r->at.parity);
    release(r->s.empty + 8 * r->at.stage, threadIdx.x % 32);
    advance<ring<BITS, TOK>::stages>(&r->at);
}

/* Waits for stage k of the tile. */
template <int BITS, int TOK> DEV void enter(reader *r, int k)
{
    typedef ring<BITS, TOK> R;
    if (k < r->skip.before || r->owes) pass<BITS, TOK>(r);
    r->x = r->s.ring + r->at.stage * R::stage_bytes;
    r->empty = r->s.empty + 8 * r->at.stage;
    mbar_wait(r->s.full + 8 * r->at.stage, r->at.parity);
    advance<R::stages>(&r->at);
    r->owes = k >= r->skip.after;
}

/* ---- 4 bits: fragments through registers ---- */

/* The A fragments of 64 channels x 128 k: a[4 * step + j], step = 0..3 of 32 k. */
DEV void load_fragments(uint32_t *a, uint32_t addr)
{
    uint32_t q[8];
    lds128(q, addr);
    lds128(q + 4, addr + 512);
#pragma unroll
    for (int i = 0; i < 8; i++)
        expand_w4(&a[i / 4 * 8 + i % 4], &a[i / 4 * 8 + 4 + i % 4], q[i]);
}

/* Stage k: fragments into a, four wgmmas behind those of the stage before, which are then
 * awaited and their stage (empty barrier `used`) released. */
template <int TOK>
DEV void multiply_stage(int32_t *acc, uint32_t *a, reader *r, int k, uint32_t *used,
                        uint32_t w_offset, int lane)
{
    enter<4, TOK>(r, k);
    load_fragments(a, r->x + w_offset);
    const uint64_t desc = wgmma_desc(r->x);
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < 4; i++) wgmma_s8<TOK>(acc, a + 4 * i, desc + 2 * i, i > 0 || k > 0);
    wgmma_commit();
    wgmma_wait<1>();
    if (k > 0) release(*used, lane);
    *used = r->empty;
}

/* The fragments alternate between two sets of registers, since the wgmmas of the stage before
 * may still read theirs. */
template <int TOK> DEV void multiply_w4(int32_t *acc, reader *r, int n_k, int warp, int lane)
{
    const uint32_t w_offset = ring<4, TOK>::x_bytes + warp * (16 * STAGE_K / 2) + lane * 16;
    uint32_t a[16], b[16], used = 0;
    for (int k = 0; k < n_k; k += 2) {
        multiply_stage<TOK>(acc, a, r, k, &used, w_offset, lane);
        if (k + 1 == n_k) break;
        multiply_stage<TOK>(acc, b, r, k + 1, &used, w_offset, lane);
    }
    wgmma_wait<0>();
    release(used, lane);
}

/* ---- 8 bits: both operands from shared memory ---- */

template <int TOK> DEV void multiply_w8(int32_t *acc, reader *r, int n_k, int wg, int lane)
{
    uint32_t used = 0;
    for (int k = 0; k < n_k; k++) {
        enter<8, TOK>(r, k);
        const uint64_t x = wgmma_desc(r->x);
        const uint64_t w = wgmma_desc_64b(r->x + ring<8, TOK>::x_bytes + wg * 64 * STAGE_K);
        wgmma_fence();
#pragma unroll
        for (int i = 0; i < 4; i++) /* from the third on the blocks of the second 64 k */
            wgmma_s8_ss<TOK>(acc, w + i / 2 * 32 + i % 2 * 2, x + 2 * i, i > 0 || k > 0);
        wgmma_commit();
        wgmma_wait<1>();
        if (k > 0) release(used, lane);
        used = r->empty;
    }
    wgmma_wait<0>();
    release(used, lane);
}

/* Adds the sums to the tile's in the workspace; true for the part that comes last: acc is then
 * the total, and the workspace is zero again. One warpgroup. */
template <int TOK>
DEV bool join_parts(int32_t *acc, const gemm_args *g, int slot, int wg, int tid, uint32_t flag)
{
    int32_t *sums = g->sums + (int64_t)slot * (TOK / 2 * 128) + tid;
    int last;
#pragma unroll
    for (int i = 0; i < TOK / 2; i++) atomicAdd(sums + i * 128, acc[i]);
    __threadfence();
    named_barrier(1 + wg, 128);
    if (tid == 0) {
        last = atomicAdd(g->counters + slot, 1) == g->n_split - 1;
        asm volatile("st.shared.s32 [%0], %1;" ::"r"(flag), "r"(last) : "memory");
    }
    named_barrier(1 + wg, 128);
    asm volatile("ld.shared.s32 %0, [%1];" : "=r"(last) : "r"(flag) : "memory");
    if (!last) return false;
    __threadfence();
#pragma unroll
    for (int i = 0; i < TOK / 2; i++) acc[i] = __ldcg(sums + i * 128);
#pragma unroll
    for (int i = 0; i < TOK / 2; i++) __stcg(sums + i * 128, 0);
    if (tid == 0) g->counters[slot] = 0;
    return true;
}

/* One consumer warpgroup's life: for each item multiply, join the parts, scale and store. */
template <int BITS, int TOK>
DEV void consume(const gemm_args *g, const smem_map *s, int first, int step, int n_items)
{
    const int tid = threadIdx.x % 128, wg = threadIdx.x / 128, lane = tid % 32;
    const int channel = 64 * wg + 16 * (tid / 32) + lane / 4 * 2;
    const uint32_t flag = s->flags + 4 * wg;
    reader r = {{0, 0}, *s, {0, 0}, 0, 0, false};
    int i = 0;
    if (wg == 1)
        for (int k = 0; k < g->shift && first < n_items; k++) pass<BITS, TOK>(&r);
    for (int at = first; at < n_items; at += step, i++) {
        const tile_info<TOK> *t = info_at<TOK>(s, i % 2);
        const uint32_t tokens = s->info + i % 2 * (uint32_t)sizeof *t;
        int32_t acc[TOK / 2];
        mbar_wait(s->known + 8 * (i % 2), i / 2 % 2);
        r.skip.before = wg == 0 ? t->before : 0;
        r.skip.after = wg == 1 ? t->after : 1 << 30;
        if (BITS == 4) multiply_w4<TOK>(acc, &r, t->n_k, 4 * wg + tid / 32, lane);
        else multiply_w8<TOK>(acc, &r, t->n_k, wg, lane);
        mbar_wait(s->ready + 8 * (i % 2), i / 2 % 2);
        if (g->n_split == 1 || join_parts<TOK>(acc, g, 2 * t->tile + wg, wg, tid, flag)) {
            channel_scales c;
#pragma unroll
            for (int j = 0; j < 2; j++) {
                c.scale[j] = t->w_scale[channel + j];
                c.bias[j] = t->bias[channel + j];
                c.sum[j] = t->col_sum[channel + j];
            }
            store_tile<BITS == 4 ? 4 : 0, TOK>(acc, &g->o, &c, tokens, t->m0 + 2 * (lane % 4),
                                               t->n0 + channel, lane);
        }
        __syncwarp();
        release(s->taken + 8 * (i % 2), lane);
    }
    if (wg == 0)
        for (int k = 0; k < g->shift && first < n_items; k++) pass<BITS, TOK>(&r);
}

template <int BITS, int TOK>
__global__ __launch_bounds__(N_THREADS,
                             1) void gemm_kernel(const __grid_constant__ CUtensorMap map_x,
                                                 const __grid_constant__ CUtensorMap map_w,
                                                 const __grid_constant__ gemm_args g)
{
    extern __shared__ uint8_t raw[];
    const smem_map s = smem_parts<BITS, TOK>(raw);
    const int first = blockIdx.x, step = gridDim.x;
    const int n_items = g.tiles_m * g.tiles_n * g.n_split;

    if (threadIdx.x == 0) {
        for (int i = 0; i < ring<BITS, TOK>::stages; i++) {
            mbar_init(s.full + 8 * i, 1);
            mbar_init(s.empty + 8 * i, CONSUMER_WARPS);
        }
        for (int i = 0; i < 2; i++) {
            mbar_init(s.known + 8 * i, 1);
            mbar_init(s.ready + 8 * i, 32);
            mbar_init(s.taken + 8 * i, CONSUMER_WARPS);
        }
        mbar_init_fence();
    }
    __syncthreads();
    launch_dependents();
    if (threadIdx.x == 256 && g.prefetch) {
        const item it = item_at<TOK>(&g, first);
        prefetch_weights<BITS, TOK>(&map_w, &it);
    }
    wait_for_kernel_ahead();
    if (threadIdx.x >= 256) {
        REGS_DEC(40);
        if (threadIdx.x == 256) {
            feeder f = {&map_x, &map_w, s, {0, 0}};
            produce<BITS, TOK>(&g, &f, first, step, n_items);
        } else if (threadIdx.x / 32 == 9) {
            describe<TOK>(&g, &s, first, step, n_items);
        }
        __syncwarp();
    } else {
        REGS_INC(232);
        consume<BITS, TOK>(&g, &s, first, step, n_items);
    }
}

/* ---- host -------------------------------------------------------------------------------- */

static fl_status make_maps(CUtensorMap maps[2], const fl_cuda_gemm *g, fl_cuda_gemm_plan plan,
                           fl_err *err)
{
    const fl_cuda_weight *w = g->w;
    const tensor_2d x = {g->x,
                         CU_TENSOR_MAP_DATA_TYPE_UINT8,
                         (uint64_t)w->K,
                         (uint64_t)g->M,
                         (uint64_t)g->ldx,
                         STAGE_K,
                         (uint32_t)plan.tokens,
                         true};
    /* a stage of 64 channels: 4 panels of 2 blocks, or 8 blocks of 8 rows */
    const bool w4 = w->bits == 4;
    const int rows = w4 ? 16 : 8, row_bytes = w->K_pad * 8;
    const tensor_2d weights = {w->data,
                               w4 ? CU_TENSOR_MAP_DATA_TYPE_UINT32
                                  : CU_TENSOR_MAP_DATA_TYPE_UINT64,
                               (uint64_t)(row_bytes / (w4 ? 4 : 8)),
                               (uint64_t)(w->N_pad / rows),
                               (uint64_t)row_bytes,
                               (uint32_t)(w4 ? 256 : 128),
                               (uint32_t)(64 / rows),
                               false};
    fl_status st = fl__tensor_map(&maps[0], &x, err);
    if (st == FL_OK) st = fl__tensor_map(&maps[1], &weights, err);
    return st;
}

static gemm_args make_args(const fl_cuda_gemm *g, fl_cuda_gemm_plan plan)
{
    const fl_cuda_weight *w = g->w;
    gemm_args a = {};
    a.o = outputs_of(g);
    a.n_k = (w->K + STAGE_K - 1) / STAGE_K;
    a.tiles_m = (g->M + plan.tokens - 1) / plan.tokens;
    a.tiles_n = (w->N + CHANNELS - 1) / CHANNELS;
    a.n_split = g->workspace ? FL_MAX(1, FL_MIN(plan.n_split, a.n_k)) : 1;
    if (a.tiles_m * a.tiles_n > FL_CUDA_MAX_SPLIT_TILES) a.n_split = 1;
    a.group = FL_MAX(1, plan.group);
    a.shift = a.n_split > 1 ? 0 : FL_MAX(0, FL_MIN(plan.shift, a.n_k));
    a.prefetch = g->M <= PREFETCH_M;
    a.counters = g->workspace;
    a.sums = g->workspace + FL_CUDA_MAX_SPLIT_TILES * 2;
    return a;
}

template <int BITS, int TOK>
static cudaError_t launch(const CUtensorMap maps[2], const gemm_args *a, int n_sm,
                          cudaStream_t stream)
{
    typedef ring<BITS, TOK> R;
    const int n_items = a->tiles_m * a->tiles_n * a->n_split;
    cudaLaunchAttribute overlap[1];
    cudaLaunchConfig_t config = {};
    const cudaError_t e = cudaFuncSetAttribute(
        gemm_kernel<BITS, TOK>, cudaFuncAttributeMaxDynamicSharedMemorySize, R::smem_bytes);
    if (e != cudaSuccess) return e;
    overlap[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    overlap[0].val.programmaticStreamSerializationAllowed = 1;
    config.gridDim = dim3((unsigned)FL_MIN(n_items, n_sm));
    config.blockDim = dim3(N_THREADS);
    config.dynamicSmemBytes = R::smem_bytes;
    config.stream = stream;
    config.attrs = overlap;
    config.numAttrs = 1;
    return cudaLaunchKernelEx(&config, gemm_kernel<BITS, TOK>, maps[0], maps[1], *a);
}

template <int BITS>
static fl_status gemm_sm90(const fl_cuda_gemm *g, fl_cuda_gemm_plan plan, int n_sm,
                           void *stream, fl_err *err)
{
    CUtensorMap maps[2] = {};
    fl_status st = make_maps(maps, g, plan, err);
    if (st != FL_OK) return st;
    const gemm_args a = make_args(g, plan);
    cudaStream_t s = (cudaStream_t)stream;
    cudaError_t e = cudaErrorInvalidValue;
    if (plan.tokens == 256) e = launch<BITS, 256>(maps, &a, n_sm, s);
    else if (plan.tokens == 128) e = launch<BITS, 128>(maps, &a, n_sm, s);
    else if (plan.tokens == 64) e = launch<BITS, 64>(maps, &a, n_sm, s);
    if (e != cudaSuccess)
        return fl__fail(err, FL_E_FAIL, "cuda: gemm w%d [%d, %d, %d]: %s; see the GPU's log",
                        BITS, g->M, g->w->N, g->w->K, cudaGetErrorString(e));
    return FL_OK;
}

#endif
