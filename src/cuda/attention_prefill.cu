/* attention_prefill.cu - causal attention of many rows per sequence, on bf16 wgmma.
 *
 * The cache is first expanded to bf16 tiles (attention_expand.cu). An item of work is 64 GROUPS
 * rows of one (sequence, KV head): a row is a (token, query head of the KV head's group), heads
 * fastest, so that a tile spans few tokens and short sequences fill it. Persistent CTAs take
 * items from a counter, those with the longest past first.
 *
 *   warpgroup 0      warp 0: takes items, feeds rings of K and V tiles by bulk copies;
 *                    warps 1..3: rows of q to swizzled shared memory, an item ahead
 *   warpgroups 1..   64 rows each: S = q K^T of the next tile runs while O += P V of this one
 *                    does, and the softmax of one warpgroup beside the products of another
 *                    (named barriers pass the tensor cores around)
 *
 * Tiles go from the last, where causality masks, to the first. p = 2^(scale (s - m)), where m
 * follows the maximum lazily: O is rescaled only when a score exceeds m by 2^SLACK.
 * SPDX-License-Identifier: MIT */
#include "cuda/attention_tiles.h"

#include "cuda/attention_sm90.h"
#include "cuda/attention_wgmma.h"

enum { STAGES = 2, SLACK = 8, Q_SLOTS = 2, Q_WARPS = 3, TURN_BARRIER = 1 };

typedef struct prefill_args {
    fl_cuda_attention_prefill a;
    const uint8_t *tiles;
    uint32_t *counter;
    float scale_log2;
    int n_kv, group, n_items, max_tiles;
    int per_group; /* 2^16 / group, rounded up: row / group is exact by it */
} prefill_args;

template <int D> struct shape {
    static constexpr int GROUPS = D == 64 ? 3 : 2; /* consumer warpgroups */
    static constexpr int ROWS = 64 * GROUPS;
    static constexpr int N_THREADS = 128 * (GROUPS + 1);
    static constexpr int K_PARTS = tile_shape<D>::K_PARTS;
    static constexpr int Q_BYTES = K_PARTS * ROWS * 128;
    static constexpr int K_BYTES = tile_shape<D>::K_BYTES, V_BYTES = tile_shape<D>::V_BYTES;
    static constexpr int SMEM_BYTES = 1024 + Q_SLOTS * Q_BYTES + STAGES * (K_BYTES + V_BYTES);
};

/* What a CTA works on: rows token 0 .. n_tokens - 1 from first_row on, times the heads. */
typedef struct item {
    int b, head;  /* KV head */
    int row;      /* of q and y, of the first token */
    int n_tokens; /* in the item */
    int position; /* of the first token */
    int n_tiles;  /* of keys; 0: no more items */
} item;

typedef struct barriers {
    uint64_t item_full[Q_SLOTS], q_full[Q_SLOTS], q_empty[Q_SLOTS];
    uint64_t k_full[STAGES], k_empty[STAGES], v_full[STAGES], v_empty[STAGES];
} barriers;

typedef struct shared_state {
    barriers bar;
    item items[Q_SLOTS];
} shared_state;

/* A place in a ring of N slots. */
template <int N> struct ring {
    int slot;
    uint32_t parity;
    __device__ __forceinline__ void next(void)
    {
        if (++slot == N) slot = 0, parity ^= 1;
    }
};

/* ---- producers --------------------------------------------------------------------------- */

/* The item of number `at`, longest pasts first; n_tokens <= 0: there is none. */
template <int D> DEV item item_at(const prefill_args *g, int at)
{
    const int per_tile = g->a.n_seqs * g->n_kv, tokens = shape<D>::ROWS / g->group;
    const int t0 = ((g->n_items - 1 - at) / per_tile) * tokens;
    item it;
    it.b = at % per_tile / g->n_kv;
    it.head = at % g->n_kv;
    const int first = g->a.first_row[it.b];
    it.row = first + t0;
    it.n_tokens = min(g->a.first_row[it.b + 1] - it.row, tokens);
    it.position = g->a.position[it.b] + t0;
    it.n_tiles = (it.position + it.n_tokens + TILE_TOKENS - 1) / TILE_TOKENS;
    return it;
}

DEV int take(uint32_t *counter)
{
    return (int)atomicAdd(counter, 1);
}

/* One thread: items and tiles. */
template <int D> DEV void feed(const prefill_args *g, shared_state *s, uint32_t k, uint32_t v)
{
    typedef shape<D> sh;
    ring<Q_SLOTS> slot = {0, 1};
    ring<STAGES> kr = {0, 1}, vr = {0, 1};
    int at = take(g->counter);
    for (;;) {
        item it = {};
        while (at < g->n_items) {
            it = item_at<D>(g, at);
            if (it.n_tokens > 0) break;
            at = take(g->counter);
        }
        if (at >= g->n_items) it.n_tiles = 0;
        else at = take(g->counter);
        mbar_wait(smem_addr(&s->bar.q_empty[slot.slot]), slot.parity);
        s->items[slot.slot] = it;
        mbar_arrive(smem_addr(&s->bar.item_full[slot.slot]));
        slot.next();
        if (it.n_tiles == 0) return;
        const uint8_t *tiles = g->tiles + ((int64_t)it.b * g->n_kv + it.head) * g->max_tiles *
                                              tile_shape<D>::BYTES;
        for (int j = it.n_tiles; j >= 0; j--) {
            if (j > 0) {
                const uint32_t full = smem_addr(&s->bar.k_full[kr.slot]);
                mbar_wait(smem_addr(&s->bar.k_empty[kr.slot]), kr.parity);
                mbar_expect(full, sh::K_BYTES);
                bulk_load(k + kr.slot * sh::K_BYTES,
                          tiles + (int64_t)(j - 1) * tile_shape<D>::BYTES, sh::K_BYTES, full);
                kr.next();
            }
            if (j < it.n_tiles) {
                const uint32_t full = smem_addr(&s->bar.v_full[vr.slot]);
                mbar_wait(smem_addr(&s->bar.v_empty[vr.slot]), vr.parity);
                mbar_expect(full, sh::V_BYTES);
                bulk_load(v + vr.slot * sh::V_BYTES,
                          tiles + (int64_t)j * tile_shape<D>::BYTES + sh::K_BYTES, sh::V_BYTES,
                          full);
                vr.next();
            }
        }
    }
}

/* 16 bytes to shared memory, of which n_bytes are read and the others 0. */
DEV void copy_16(uint32_t to, const void *from, int n_bytes)
{
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from),
                 "r"(n_bytes)
                 : "memory");
}

/* Warps 1..3 of the warpgroup: rows of q, zeros where there are none. */
template <int D> DEV void load_q(const prefill_args *g, shared_state *s, uint32_t q)
{
    typedef shape<D> sh;
    constexpr int CHUNKS = D / 8; /* of 16 bytes, of a row */
    ring<Q_SLOTS> slot = {0, 0};
    for (;; slot.next()) {
        mbar_wait(smem_addr(&s->bar.item_full[slot.slot]), slot.parity);
        const item it = s->items[slot.slot];
        if (it.n_tiles > 0) {
            const int n = it.n_tokens * g->group;
            const uint32_t to = q + slot.slot * sh::Q_BYTES;
#pragma unroll 1
            for (int i = threadIdx.x - 32; i < sh::ROWS * CHUNKS; i += 32 * Q_WARPS) {
                const int row = i / CHUNKS, c = i % CHUNKS;
                const int t = row * g->per_group >> 16;
                const int64_t token = it.row + t;
                const int head = it.head * g->group + row - t * g->group;
                const uint16_t *from = g->a.q + (token * g->a.n_heads + head) * D + 8 * c;
                copy_16(to + c / 8 * (sh::ROWS * 128) + row * 128 + ((c % 8 ^ row % 8) * 16),
                        row < n ? from : g->a.q, row < n ? 16 : 0);
            }
            asm volatile("cp.async.wait_all;" ::: "memory");
            fence_async_smem();
        }
        __syncwarp();
        if (threadIdx.x % 32 == 0) mbar_arrive(smem_addr(&s->bar.q_full[slot.slot]));
        if (it.n_tiles == 0) return;
    }
}

/* ---- consumers --------------------------------------------------------------------------- */

/* A thread's part of 64 rows: rows r and r + 8 of its warp's 16. */
template <int D> struct state {
    float o[D / 2], m[2], l[2];
    int limit[2]; /* the last token that the row sees */
};

DEV void take_turn(int group)
{
    asm volatile("bar.sync %0, 256;" ::"r"(TURN_BARRIER + group) : "memory");
}

template <int GROUPS> DEV void pass_turn(int group)
{
    const int next = group + 1 == GROUPS ? 0 : group + 1;
    asm volatile("bar.arrive %0, 256;" ::"r"(TURN_BARRIER + next) : "memory");
}

/* S = q K^T, issued; q and k are descriptors of the warpgroup's rows and of a tile. */
template <int D> DEV void issue_scores(float *s, uint64_t q, uint64_t k)
{
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < D / 16; i++)
        wgmma_bf16_shared(s, q + i / 4 * (shape<D>::ROWS * 128 / 16) + i % 4 * 2,
                          k + i / 4 * (TILE_TOKENS * 128 / 16) + i % 4 * 2, i > 0);
    wgmma_commit();
}

/* O += P V, issued. */
template <int D> DEV void issue_values(float *o, const uint32_t *p, uint64_t v)
{
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < TILE_TOKENS / 16; i++)
        wgmma_bf16<D>(o, p + 4 * i, v + i / 4 * (D * 128 / 16) + i % 4 * 2, 1);
    wgmma_commit();
}

/* The registers are a product's result from here on: keeps their use behind the wait. */
template <int N> DEV void settle(float *d)
{
#pragma unroll
    for (int i = 0; i < N; i++) asm volatile("" : "+f"(d[i])::"memory");
}

template <int D> DEV void mask_scores(float *s, const state<D> *st, int token0)
{
#pragma unroll
    for (int i = 0; i < 64; i++) {
        const int t = token0 + i / 4 * 8 + i % 2;
        if (t > st->limit[i / 2 % 2]) s[i] = -INFINITY;
    }
}

/* Scores become p; returns the factors on what was summed before (1: m stayed). */
template <int D> DEV bool softmax(float *s, state<D> *st, float *factor, float scale)
{
    bool above = false;
    float top[2];
#pragma unroll
    for (int r = 0; r < 2; r++) {
        float x[4];
#pragma unroll
        for (int i = 0; i < 4; i++) x[i] = s[4 * (i / 2) + 2 * r + i % 2];
#pragma unroll
        for (int i = 4; i < 32; i++) x[i % 4] = fmaxf(x[i % 4], s[4 * (i / 2) + 2 * r + i % 2]);
        top[r] = fmaxf(fmaxf(x[0], x[1]), fmaxf(x[2], x[3]));
        top[r] = fmaxf(top[r], __shfl_xor_sync(~0u, top[r], 1));
        top[r] = fmaxf(top[r], __shfl_xor_sync(~0u, top[r], 2)) * scale;
        above |= top[r] > st->m[r] + SLACK;
        factor[r] = 1;
    }
    above = __any_sync(~0u, above);
    if (above) {
#pragma unroll
        for (int r = 0; r < 2; r++) {
            const float m = fmaxf(st->m[r], top[r]);
            factor[r] = exp2_fast(st->m[r] - m);
            st->m[r] = m;
            st->l[r] *= factor[r];
        }
    }
#pragma unroll
    for (int r = 0; r < 2; r++) {
        float sum[2] = {0, 0};
#pragma unroll
        for (int i = 0; i < 32; i++) {
            float *x = s + 4 * (i / 2) + 2 * r + i % 2;
            *x = exp2_fast(fmaf(*x, scale, -st->m[r]));
            sum[i % 2] += *x;
        }
        st->l[r] += sum[0] + sum[1];
    }
    return above;
}

DEV void pack_p(uint32_t *p, const float *s)
{
#pragma unroll
    for (int i = 0; i < 32; i++) p[i] = bf16x2(s[2 * i], s[2 * i + 1]);
}

template <int D> DEV void rescale(state<D> *st, const float *factor)
{
#pragma unroll
    for (int i = 0; i < D / 2; i++) st->o[i] *= factor[i / 2 % 2];
}

/* A quad's words w[j] of blocks j to one block per lane: lane q has all words of block q. */
DEV void transpose_quad(uint32_t *w, int q)
{
#pragma unroll
    for (int bit = 1; bit < 4; bit *= 2)
#pragma unroll
        for (int i = 0; i < 4; i++) {
            if (i & bit) continue;
            const bool upper = q & bit;
            const uint32_t got = __shfl_xor_sync(~0u, upper ? w[i] : w[i | bit], bit);
            if (upper) w[i] = got;
            else w[i | bit] = got;
        }
}

template <int D>
DEV void write_row(const prefill_args *g, const item *it, const float *o, int row, float l,
                   int half, int q)
{
    const float r = 1.0f / l;
    const bool inside = row < it->n_tokens * g->group;
    const int64_t token = it->row + row / g->group;
    const int64_t at = (token * g->a.n_heads + it->head * g->group + row % g->group) * D;
    if (!g->a.y_bf16) {
        float *y = (float *)g->a.y + at + 2 * q;
#pragma unroll
        for (int i = 0; i < D / 8; i++)
            if (inside)
                *(float2 *)(y + 8 * i) =
                    make_float2(o[4 * i + 2 * half] * r, o[4 * i + 2 * half + 1] * r);
        return;
    }
    uint16_t *y = (uint16_t *)g->a.y + at;
#pragma unroll
    for (int i = 0; i < D / 8; i += 4) {
        uint32_t w[4];
#pragma unroll
        for (int j = 0; j < 4 && i + j < D / 8; j++)
            w[j] = bf16x2(o[4 * (i + j) + 2 * half] * r, o[4 * (i + j) + 2 * half + 1] * r);
        if (i + 4 > D / 8) {
            for (int j = 0; i + j < D / 8; j++)
                if (inside) *(uint32_t *)(y + 8 * (i + j) + 2 * q) = w[j];
            continue;
        }
        transpose_quad(w, q);
        if (inside) *(uint4 *)(y + 8 * (i + q)) = make_uint4(w[0], w[1], w[2], w[3]);
    }
}

/* The tiles of one item. Peeled by hand: with branches around its products ptxas would run them
 * one after the other. */
template <int D>
DEV void attend(const prefill_args *g, shared_state *s, state<D> *st, const item *it,
                uint64_t q, uint32_t k, uint32_t v, ring<STAGES> *kr, ring<STAGES> *vr, int wg)
{
    typedef shape<D> sh;
    const int lane = threadIdx.x % 32, column = lane % 4 * 2;
    float x[64], factor[2];
    uint32_t p[32];
    int j = it->n_tiles - 1;
    mbar_wait(smem_addr(&s->bar.k_full[kr->slot]), kr->parity);
    take_turn(wg);
    issue_scores<D>(x, q, wgmma_desc(k + kr->slot * sh::K_BYTES));
    pass_turn<sh::GROUPS>(wg);
    wgmma_wait<0>();
    settle<64>(x);
    if (lane == 0) mbar_arrive(smem_addr(&s->bar.k_empty[kr->slot]));
    kr->next();
    mask_scores<D>(x, st, j * TILE_TOKENS + column);
    softmax<D>(x, st, factor, g->scale_log2);
    pack_p(p, x);
#pragma unroll 1
    while (--j >= 0) {
        mbar_wait(smem_addr(&s->bar.k_full[kr->slot]), kr->parity);
        mbar_wait(smem_addr(&s->bar.v_full[vr->slot]), vr->parity);
        take_turn(wg);
        issue_scores<D>(x, q, wgmma_desc(k + kr->slot * sh::K_BYTES));
        issue_values<D>(st->o, p, wgmma_desc(v + vr->slot * sh::V_BYTES));
        pass_turn<sh::GROUPS>(wg);
        wgmma_wait<1>();
        settle<64>(x);
        if (lane == 0) mbar_arrive(smem_addr(&s->bar.k_empty[kr->slot]));
        kr->next();
        if ((j + 1) * TILE_TOKENS - 1 > it->position)
            mask_scores<D>(x, st, j * TILE_TOKENS + column);
        const bool above = softmax<D>(x, st, factor, g->scale_log2);
        wgmma_wait<0>();
        settle<D / 2>(st->o);
        if (lane == 0) mbar_arrive(smem_addr(&s->bar.v_empty[vr->slot]));
        vr->next();
        if (above) rescale<D>(st, factor);
        pack_p(p, x);
    }
    mbar_wait(smem_addr(&s->bar.v_full[vr->slot]), vr->parity);
    issue_values<D>(st->o, p, wgmma_desc(v + vr->slot * sh::V_BYTES));
    wgmma_wait<0>();
    settle<D / 2>(st->o);
    if (lane == 0) mbar_arrive(smem_addr(&s->bar.v_empty[vr->slot]));
    vr->next();
}

template <int D>
DEV void consume(const prefill_args *g, shared_state *s, uint32_t q, uint32_t k, uint32_t v,
                 int wg)
{
    typedef shape<D> sh;
    const int lane = threadIdx.x % 32, row0 = 64 * wg + threadIdx.x / 32 % 4 * 16 + lane / 4;
    ring<Q_SLOTS> slot = {0, 0};
    ring<STAGES> kr = {0, 0}, vr = {0, 0};
    if (wg == sh::GROUPS - 1) pass_turn<sh::GROUPS>(wg);
    for (;; slot.next()) {
        state<D> st;
        mbar_wait(smem_addr(&s->bar.q_full[slot.slot]), slot.parity);
        const item it = s->items[slot.slot];
        if (it.n_tiles == 0) return;
#pragma unroll
        for (int i = 0; i < D / 2; i++) st.o[i] = 0;
#pragma unroll
        for (int r = 0; r < 2; r++) {
            st.m[r] = -1e30f;
            st.l[r] = 0;
            st.limit[r] = it.position + (row0 + 8 * r) / g->group;
        }
        const uint64_t rows = wgmma_desc(q + slot.slot * sh::Q_BYTES + wg * (64 * 128));
        attend<D>(g, s, &st, &it, rows, k, v, &kr, &vr, wg);
        __syncwarp();
        if (lane == 0) mbar_arrive(smem_addr(&s->bar.q_empty[slot.slot]));
#pragma unroll
        for (int r = 0; r < 2; r++) {
            st.l[r] += __shfl_xor_sync(~0u, st.l[r], 1);
            st.l[r] += __shfl_xor_sync(~0u, st.l[r], 2);
            write_row<D>(g, &it, st.o, row0 + 8 * r, st.l[r], r, lane % 4);
        }
    }
}

template <int D> DEV void init_barriers(barriers *b)
{
    constexpr int WARPS = 4 * shape<D>::GROUPS;
    for (int i = 0; i < Q_SLOTS; i++) {
        mbar_init(smem_addr(&b->item_full[i]), 1);
        mbar_init(smem_addr(&b->q_full[i]), Q_WARPS);
        mbar_init(smem_addr(&b->q_empty[i]), WARPS);
    }
    for (int i = 0; i < STAGES; i++) {
        mbar_init(smem_addr(&b->k_full[i]), 1);
        mbar_init(smem_addr(&b->k_empty[i]), WARPS);
        mbar_init(smem_addr(&b->v_full[i]), 1);
        mbar_init(smem_addr(&b->v_empty[i]), WARPS);
    }
    mbar_init_fence();
}

template <int D>
__global__ __launch_bounds__(shape<D>::N_THREADS,
                             1) void prefill_kernel(const __grid_constant__ prefill_args g)
{
    typedef shape<D> sh;
    extern __shared__ uint8_t raw[];
    __shared__ shared_state s;
    const uint32_t q = (smem_addr(raw) + 1023) & ~1023u;
    const uint32_t k = q + Q_SLOTS * sh::Q_BYTES, v = k + STAGES * sh::K_BYTES;
    if (threadIdx.x == 0) init_barriers<D>(&s.bar);
    __syncthreads();
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
    asm volatile("griddepcontrol.wait;" ::: "memory");
    if (threadIdx.x < 128) {
        if (sh::GROUPS == 3) REGS_DEC(32);
        else REGS_DEC(40);
        if (threadIdx.x == 0) feed<D>(&g, &s, k, v);
        if (threadIdx.x >= 32) load_q<D>(&g, &s, q);
    } else {
        if (sh::GROUPS == 3) REGS_INC(160);
        else REGS_INC(232);
        consume<D>(&g, &s, q, k, v, threadIdx.x / 128 - 1);
    }
}

/* ---- host -------------------------------------------------------------------------------- */

enum { COUNTER_BYTES = 128 };

extern "C" size_t fl__cuda_attention_prefill_workspace_bytes(int D, int n_kv_heads, int n_seqs,
                                                             int max_tokens)
{
    const size_t tile = D == 64   ? (size_t)tile_shape<64>::BYTES
                        : D == 80 ? (size_t)tile_shape<80>::BYTES
                                  : (size_t)tile_shape<128>::BYTES;
    return COUNTER_BYTES +
           tile * (size_t)n_kv_heads * (size_t)n_seqs * (size_t)tiles_of(max_tokens);
}

template <int D> static cudaError_t launch(prefill_args *g, int n_sm, cudaStream_t stream)
{
    cudaLaunchAttribute attribute;
    cudaLaunchConfig_t config = {};
    const int tokens = shape<D>::ROWS / g->group;
    g->n_items = (g->a.max_rows + tokens - 1) / tokens * g->n_kv * g->a.n_seqs;
    cudaError_t e = cudaFuncSetAttribute(
        prefill_kernel<D>, cudaFuncAttributeMaxDynamicSharedMemorySize, shape<D>::SMEM_BYTES);
    if (e != cudaSuccess) return e;
    attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attribute.val.programmaticStreamSerializationAllowed = 1;
    config.gridDim = dim3((unsigned)FL_MIN(n_sm, g->n_items));
    config.blockDim = dim3(shape<D>::N_THREADS);
    config.dynamicSmemBytes = shape<D>::SMEM_BYTES;
    config.stream = stream;
    config.attrs = &attribute;
    config.numAttrs = 1;
    return cudaLaunchKernelEx(&config, prefill_kernel<D>, *g);
}

static cudaError_t run(const fl_cuda_attention_prefill *a, cudaStream_t stream)
{
    prefill_args g = {};
    int device = 0, n_sm = 0;
    cudaError_t e = cudaGetDevice(&device);
    if (e == cudaSuccess)
        e = cudaDeviceGetAttribute(&n_sm, cudaDevAttrMultiProcessorCount, device);
    if (e != cudaSuccess) return e;
    g.a = *a;
    g.n_kv = a->kv->n_kv_heads;
    g.group = a->n_heads / g.n_kv;
    if (g.group < 1 || g.group > 8 || g.group * g.n_kv != a->n_heads)
        return cudaErrorInvalidValue;
    g.per_group = (65535 + g.group) / g.group;
    g.counter = (uint32_t *)a->workspace;
    g.tiles = (uint8_t *)a->workspace + COUNTER_BYTES;
    g.max_tiles = tiles_of(a->max_tokens);
    g.scale_log2 = a->scale * 1.44269504f;
    e = fl__cuda_kv_expand(a, (uint8_t *)a->workspace + COUNTER_BYTES, g.counter, stream);
    if (e != cudaSuccess) return e;
    if (a->kv->D == 64) return launch<64>(&g, n_sm, stream);
    if (a->kv->D == 80) return launch<80>(&g, n_sm, stream);
    return launch<128>(&g, n_sm, stream);
}

extern "C" fl_status fl__cuda_attention_prefill(const fl_cuda_attention_prefill *a,
                                                void *stream, fl_err *err)
{
    const cudaError_t e = run(a, (cudaStream_t)stream);
    if (e != cudaSuccess)
        return fl__fail(err, FL_E_FAIL,
                        "cuda: attention, %d sequences of up to %d rows, %d heads of %d: %s; "
                        "see the GPU's log",
                        a->n_seqs, a->max_rows, a->n_heads, a->kv->D, cudaGetErrorString(e));
    return FL_OK;
}
