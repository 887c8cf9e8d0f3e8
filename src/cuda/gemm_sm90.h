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
 * CTAs are persistent and walk the items (tile, part of K) in groups of GROUP token tiles, so
 * that what runs at one time shares x and W in L2. Parts of K add their exact int32 sums into
 * the workspace; the last to come takes the total, and so the result does not depend on order.
 * Epilogue: scales in registers, bf16 through stmatrix (transposing) and bulk stores of 32
 * tokens; float32 straight from registers, 32-byte sectors.
 * SPDX-License-Identifier: MIT */
#ifndef FL_CUDA_GEMM_SM90_H
#define FL_CUDA_GEMM_SM90_H

#include "cuda/gemm_cuda.h"

#include "cuda/sm90.h"
#include "cuda/tensor_map.h"

#include <cuda_runtime.h>

enum {
    CHANNELS = 128, /* of a CTA's tile */
    STAGE_K = 128,
    CHUNK = 32, /* tokens of one bulk store */
    GROUP = 8,  /* token tiles walked together */
    N_THREADS = 384,
    CONSUMER_WARPS = 8,
    BARRIER_BYTES = 256,
    SMEM_MAX = 232448,
};

template <int BITS, int TOK> struct ring {
    static const int x_bytes = TOK * STAGE_K;
    static const int w_bytes = CHANNELS * STAGE_K * BITS / 8;
    static const int stage_bytes = x_bytes + w_bytes;
    static const int out_bytes = 2 * 2 * CHUNK * 64 * 2; /* warpgroup, buffer, bf16 */
    static const int scale_bytes = 2 * TOK * 8;          /* warpgroup, scale and zero */
    static const int fixed_bytes = 1024 + out_bytes + scale_bytes + BARRIER_BYTES;
    static const int fits = (SMEM_MAX - fixed_bytes) / stage_bytes;
    static const int stages = fits < 8 ? fits : 8;
    static const int smem_bytes = fixed_bytes + stages * stage_bytes;
};

typedef struct gemm_args {
    const float *x_scale, *w_scale, *bias;
    const int32_t *x_zero, *col_sum;
    float *y_f32; /* NULL: bf16 through the tensor map */
    int32_t *sums, *counters;
    int64_t ldy;
    int x_scale_stride, x_zero_stride, w_scale_stride;
    int M, N, n_k; /* n_k stages along K */
    int tiles_m, tiles_n, n_split;
} gemm_args;

typedef struct item {
    int m0, n0; /* first token and channel of this CTA's tile */
    int tile;   /* number of the tile */
    int k0, k1; /* stages */
} item;

template <int TOK> DEV item item_at(const gemm_args *g, int at)
{
    const int part = at % g->n_split, pair = at / g->n_split;
    const int per_group = GROUP * g->tiles_n, first = pair / per_group * GROUP;
    const int rows = min(g->tiles_m - first, (int)GROUP), in = pair % per_group;
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

/* Shared memory of the CTA: addresses of its parts. */
typedef struct smem_map {
    uint32_t ring, out, scales, full, empty;
} smem_map;

template <int BITS, int TOK> DEV smem_map smem_parts(const void *raw)
{
    typedef ring<BITS, TOK> R;
    smem_map s;
    s.ring = (smem_addr(raw) + 1023) & ~1023u;
    s.out = s.ring + R::stages * R::stage_bytes;
    s.scales = s.out + R::out_bytes;
    s.full = s.scales + R::scale_bytes;
    s.empty = s.full + 8 * R::stages;
    return s;
}

template <int BITS, int TOK>
DEV void produce(const gemm_args *g, const CUtensorMap *map_x, const CUtensorMap *map_w,
                 smem_map s, int first, int step, int n_items)
{
    typedef ring<BITS, TOK> R;
    cursor c = {0, 0};
    for (int at = first; at < n_items; at += step) {
        const item it = item_at<TOK>(g, at);
        for (int k = it.k0; k < it.k1; k++) {
            const uint32_t full = s.full + 8 * c.stage;
            const uint32_t x = s.ring + c.stage * R::stage_bytes, w = x + R::x_bytes;
            mbar_wait(s.empty + 8 * c.stage, c.parity ^ 1);
            mbar_expect(full, R::stage_bytes);
            tma_load(x, map_x, k * STAGE_K, it.m0, full);
            tma_load(w, map_w, k * 256, it.n0 / 16, full);
            advance<R::stages>(&c);
        }
    }
}

/* The A fragments of 64 channels x 128 k: a[4 * step + j], step = 0..3 of 32 k. */
template <int BITS> DEV void load_fragments(uint32_t *a, uint32_t addr)
{
    if (BITS == 4) {
        uint32_t q[8];
        lds128(q, addr);
        lds128(q + 4, addr + 512);
#pragma unroll
        for (int i = 0; i < 8; i++)
            expand_w4(&a[i / 4 * 8 + i % 4], &a[i / 4 * 8 + 4 + i % 4], q[i]);
    } else {
#pragma unroll
        for (int i = 0; i < 4; i++) lds128(a + 4 * i, addr + 512 * i);
    }
}

/* This warp is done with a stage. */
DEV void release(uint32_t empty, int lane)
{
    if (lane == 0) mbar_arrive(empty);
}

/* One stage: fragments into a, four wgmmas behind those of the stage before, which are then
 * awaited and their stage released. */
template <int BITS, int TOK>
DEV void multiply_stage(int32_t *acc, uint32_t *a, smem_map s, cursor *c, uint32_t w_offset,
                        int lane, bool first)
{
    typedef ring<BITS, TOK> R;
    const uint32_t x = s.ring + c->stage * R::stage_bytes;
    mbar_wait(s.full + 8 * c->stage, c->parity);
    load_fragments<BITS>(a, x + w_offset);
    const uint64_t desc = wgmma_desc(x);
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < 4; i++) wgmma_s8<TOK>(acc, a + 4 * i, desc + 2 * i, i > 0 || !first);
    wgmma_commit();
    wgmma_wait<1>();
    if (!first) release(s.empty + 8 * (c->stage == 0 ? R::stages - 1 : c->stage - 1), lane);
    advance<R::stages>(c);
}

/* acc of a tile's part of K; the fragments alternate between two sets of registers, since the
 * wgmmas of the stage before may still read theirs. */
template <int BITS, int TOK>
DEV void multiply(int32_t *acc, smem_map s, cursor *c, int n_k, int warp, int lane)
{
    typedef ring<BITS, TOK> R;
    const uint32_t w_offset = R::x_bytes + warp * (16 * STAGE_K * BITS / 8) + lane * 16;
    uint32_t a[16], b[16];
    int k = 0;
    for (; k + 1 < n_k; k += 2) {
        multiply_stage<BITS, TOK>(acc, a, s, c, w_offset, lane, k == 0);
        multiply_stage<BITS, TOK>(acc, b, s, c, w_offset, lane, false);
    }
    if (k < n_k) multiply_stage<BITS, TOK>(acc, a, s, c, w_offset, lane, k == 0);
    wgmma_wait<0>();
    release(s.empty + 8 * (c->stage == 0 ? R::stages - 1 : c->stage - 1), lane);
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

/* What a thread needs of its two channels: lane / 4 and 8 more. */
typedef struct channel_scales {
    float scale[2], bias[2];
    int32_t sum[2];
} channel_scales;

DEV channel_scales load_channels(const gemm_args *g, int n)
{
    channel_scales c;
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const int at = n + 8 * i;
        const bool in = at < g->N;
        c.scale[i] = in ? g->w_scale[(int64_t)at * g->w_scale_stride] : 0.0f;
        c.bias[i] = in && g->bias ? g->bias[at] : -0.0f; /* y + -0.0 is y, bit for bit */
        c.sum[i] = in ? g->col_sum[at] : 0;
    }
    return c;
}

template <int BITS>
DEV float scaled(int32_t acc, const channel_scales *c, int i, float x_scale, int32_t x_zero)
{
    const int32_t sum = (BITS == 4 ? acc >> 4 : acc) - x_zero * c->sum[i];
    return __fadd_rn(__fmul_rn((float)sum, __fmul_rn(x_scale, c->scale[i])), c->bias[i]);
}

DEV void lds64(uint32_t *a, uint32_t *b, uint32_t addr)
{
    asm volatile("ld.shared.v2.u32 {%0, %1}, [%2];"
                 : "=r"(*a), "=r"(*b)
                 : "r"(addr)
                 : "memory");
}

/* y of 8 tokens from 8 * i: v[0..3] as acc[4 * i ..]. scales: x_scale [TOK], x_zero [TOK]. */
template <int BITS, int TOK>
DEV void scale_8_tokens(float *v, const int32_t *acc, int i, const channel_scales *c,
                        uint32_t scales, int lane)
{
    uint32_t s[2], z[2];
    lds64(&s[0], &s[1], scales + 4 * (8 * i + 2 * (lane % 4)));
    lds64(&z[0], &z[1], scales + 4 * (TOK + 8 * i + 2 * (lane % 4)));
#pragma unroll
    for (int j = 0; j < 4; j++)
        v[j] = scaled<BITS>(acc[4 * i + j], c, j / 2, __uint_as_float(s[j % 2]),
                            (int32_t)z[j % 2]);
}

/* bf16: 32 tokens x 64 channels at a time through one of two buffers. */
template <int BITS, int TOK>
DEV void store_bf16(const int32_t *acc, const CUtensorMap *map_y, const channel_scales *c,
                    uint32_t scales, uint32_t out, int m0, int n0, int wg, int tid)
{
    const int lane = tid % 32, block = lane / 8, row = lane % 8;
    const uint32_t piece = 2 * (tid / 32) + block % 2; /* 16 bytes: 8 channels */
    const uint32_t at = (8 * (block / 2) + row) * 128 + ((piece ^ row) << 4);
#pragma unroll
    for (int t = 0; t < TOK; t += CHUNK) {
        const uint32_t buffer = out + (t / CHUNK % 2) * (CHUNK * 128);
        if (tid == 0) tma_store_wait_one();
        named_barrier(1 + wg, 128);
#pragma unroll
        for (int i = t / 8; i < (t + CHUNK) / 8; i += 2) {
            float v[8];
            scale_8_tokens<BITS, TOK>(v, acc, i, c, scales, lane);
            scale_8_tokens<BITS, TOK>(v + 4, acc, i + 1, c, scales, lane);
            stmatrix_trans(buffer + at + (8 * i - t) * 128, bf16x2(v[0], v[1]),
                           bf16x2(v[2], v[3]), bf16x2(v[4], v[5]), bf16x2(v[6], v[7]));
        }
        fence_async_smem();
        named_barrier(1 + wg, 128);
        if (tid == 0) tma_store(map_y, n0, m0 + t, buffer);
    }
}

/* float32: 8 lanes write 8 neighbouring channels of a token. */
template <int BITS, int TOK>
DEV void store_f32(const int32_t *acc, const gemm_args *g, const channel_scales *c,
                   uint32_t scales, int m0, int n, int lane)
{
#pragma unroll
    for (int i = 0; i < TOK / 8; i++) {
        float v[4];
        scale_8_tokens<BITS, TOK>(v, acc, i, c, scales, lane);
#pragma unroll
        for (int j = 0; j < 4; j++) {
            const int m = m0 + 8 * i + 2 * (lane % 4) + j % 2, at = n + 8 * (j / 2);
            if (m < g->M && at < g->N) g->y_f32[m * g->ldy + at] = v[j];
        }
    }
}

/* One consumer warpgroup's life: for each item multiply, join the parts, scale and store. */
template <int BITS, int TOK>
DEV void consume(const gemm_args *g, const CUtensorMap *map_y, smem_map s, int first, int step,
                 int n_items)
{
    const int tid = threadIdx.x % 128, wg = threadIdx.x / 128, lane = tid % 32;
    const uint32_t scales = s.scales + wg * TOK * 8;
    const uint32_t out = s.out + wg * 2 * CHUNK * 128,
                   flag = s.full + BARRIER_BYTES - 8 + 4 * wg;
    const int per_thread = (TOK + 127) / 128;
    cursor c = {0, 0};
    for (int at = first; at < n_items; at += step) {
        const item it = item_at<TOK>(g, at);
        const int n0 = it.n0 + 64 * wg, n = n0 + 16 * (tid / 32) + lane / 4;
        const channel_scales ch = load_channels(g, n);
        float xs[per_thread];
        int32_t xz[per_thread], acc[TOK / 2];
#pragma unroll
        for (int i = 0; i < per_thread; i++) {
            const int m = it.m0 + i * 128 + tid;
            xs[i] = m < g->M ? g->x_scale[(int64_t)m * g->x_scale_stride] : 0.0f;
            xz[i] = m < g->M && g->x_zero ? g->x_zero[(int64_t)m * g->x_zero_stride] : 0;
        }
        multiply<BITS, TOK>(acc, s, &c, it.k1 - it.k0, 4 * wg + tid / 32, lane);
        if (g->n_split > 1 && !join_parts<TOK>(acc, g, 2 * it.tile + wg, wg, tid, flag))
            continue;
        named_barrier(1 + wg, 128); /* the scales of the item before have been read */
#pragma unroll
        for (int i = 0; i < per_thread; i++) {
            if (i * 128 + tid >= TOK) break;
            asm volatile("st.shared.f32 [%0], %1;\n"
                         "st.shared.s32 [%0 + %3], %2;" ::"r"(scales + 4 * (i * 128 + tid)),
                         "f"(xs[i]), "r"(xz[i]), "n"(4 * TOK)
                         : "memory");
        }
        named_barrier(1 + wg, 128);
        if (g->y_f32) store_f32<BITS, TOK>(acc, g, &ch, scales, it.m0, n, lane);
        else store_bf16<BITS, TOK>(acc, map_y, &ch, scales, out, it.m0, n0, wg, tid);
    }
    if (tid == 0) tma_store_wait_all();
}

template <int BITS, int TOK>
__global__ __launch_bounds__(N_THREADS,
                             1) void gemm_kernel(const __grid_constant__ CUtensorMap map_x,
                                                 const __grid_constant__ CUtensorMap map_w,
                                                 const __grid_constant__ CUtensorMap map_y,
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
        mbar_init_fence();
    }
    __syncthreads();
    if (threadIdx.x >= 256) {
        REGS_DEC(40);
        if (threadIdx.x == 256) produce<BITS, TOK>(&g, &map_x, &map_w, s, first, step, n_items);
        __syncwarp();
    } else {
        REGS_INC(232);
        consume<BITS, TOK>(&g, &map_y, s, first, step, n_items);
    }
}

/* ---- host -------------------------------------------------------------------------------- */

static fl_status make_maps(CUtensorMap maps[3], const fl_cuda_gemm *g, fl_cuda_gemm_plan plan,
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
    /* elements of 4 (8) bytes: a box side is at most 256 of them */
    const tensor_2d weights = {w->data,
                               w->bits == 4 ? CU_TENSOR_MAP_DATA_TYPE_UINT32
                                            : CU_TENSOR_MAP_DATA_TYPE_UINT64,
                               (uint64_t)w->K_pad * 2,
                               (uint64_t)w->N_pad / 16,
                               (uint64_t)w->K_pad * 2 * (uint64_t)w->bits,
                               256,
                               8,
                               false};
    const tensor_2d y = {g->y,
                         CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
                         (uint64_t)w->N,
                         (uint64_t)g->M,
                         (uint64_t)g->ldy * 2,
                         64,
                         CHUNK,
                         true};
    fl_status st = fl__tensor_map(&maps[0], &x, err);
    if (st == FL_OK) st = fl__tensor_map(&maps[1], &weights, err);
    if (st == FL_OK && g->y_bf16) st = fl__tensor_map(&maps[2], &y, err);
    return st;
}

static gemm_args make_args(const fl_cuda_gemm *g, fl_cuda_gemm_plan plan)
{
    const fl_cuda_weight *w = g->w;
    gemm_args a = {};
    a.x_scale = g->x_scale;
    a.x_scale_stride = g->x_scale_stride;
    a.x_zero = g->x_zero;
    a.x_zero_stride = g->x_zero_stride;
    a.w_scale = g->w_scale;
    a.w_scale_stride = g->w_scale_stride;
    a.bias = g->bias;
    a.col_sum = w->col_sum;
    a.y_f32 = g->y_bf16 ? NULL : (float *)g->y;
    a.ldy = g->ldy;
    a.M = g->M;
    a.N = w->N;
    a.n_k = (w->K + STAGE_K - 1) / STAGE_K;
    a.tiles_m = (g->M + plan.tokens - 1) / plan.tokens;
    a.tiles_n = (w->N + CHANNELS - 1) / CHANNELS;
    a.n_split = g->workspace ? FL_MAX(1, FL_MIN(plan.n_split, a.n_k)) : 1;
    if (a.tiles_m * a.tiles_n > FL_CUDA_MAX_SPLIT_TILES) a.n_split = 1;
    a.counters = g->workspace;
    a.sums = g->workspace + FL_CUDA_MAX_SPLIT_TILES * 2;
    return a;
}

template <int BITS, int TOK>
static cudaError_t launch(const CUtensorMap maps[3], const gemm_args *a, int n_sm,
                          cudaStream_t stream)
{
    typedef ring<BITS, TOK> R;
    const int n_items = a->tiles_m * a->tiles_n * a->n_split;
    const cudaError_t e = cudaFuncSetAttribute(
        gemm_kernel<BITS, TOK>, cudaFuncAttributeMaxDynamicSharedMemorySize, R::smem_bytes);
    if (e != cudaSuccess) return e;
    gemm_kernel<BITS, TOK><<<FL_MIN(n_items, n_sm), N_THREADS, R::smem_bytes, stream>>>(
        maps[0], maps[1], maps[2], *a);
    return cudaGetLastError();
}

template <int BITS>
static fl_status gemm_sm90(const fl_cuda_gemm *g, fl_cuda_gemm_plan plan, int n_sm,
                           void *stream, fl_err *err)
{
    CUtensorMap maps[3] = {};
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
