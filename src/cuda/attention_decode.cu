/* attention_decode.cu - one query token per sequence against the paged cache, split over keys.
 *
 * The keys of all (sequence, KV head) segments form one line of units, a unit being one or two
 * neighbouring groups of 16 tokens. CTAs and their warps cut it into equal runs, so that any
 * batch fills the GPU. A warp streams its units through a ring of shared memory (one bulk copy
 * each) and keeps (m, l, o) of the segment at hand; it never waits for another warp until its
 * run ends. What is left are pieces of segments: merged in the CTA, and where a segment spans
 * CTAs, by the last of them to arrive, always in the order of the line: same input, same bits.
 *
 * What happens to a group is in attention_group.h, merging in attention_merge.h. At few tokens
 * the time is a chain of latencies: n_tokens, page numbers, keys, pieces, counter, pieces. So
 * lanes fill the ring in parallel, q is on its way meanwhile, and divisions are of 32 bits.
 * SPDX-License-Identifier: MIT */
#include "cuda/attention_cuda.h"

#include "cuda/attention_group.h"
#include "cuda/attention_merge.h"
#include "cuda/launch.h"

#include <cuda_runtime.h>

enum { MAX_SLOTS = 16, MAX_PIECES = 20 }; /* per warp; per multiprocessor */

/* Warps of a CTA, CTAs of a multiprocessor, a CTA's memory for units on their way. */
template <int BITS> struct plan {
    static constexpr int WARPS = BITS == 16 ? 12 : 16;
    static constexpr int CTAS = 1;
    static constexpr int RING_BYTES = 196608;
    static constexpr int UNIT = BITS == 4 ? 2 : 1; /* groups */
};

typedef struct decode_args {
    fl_cuda_attention a;
    fl_cuda_kv kv;
    float scale_log2;
    int n_slots, heads; /* query heads per KV head */
    uint32_t *arrived;  /* [n_seqs * n_kv_heads] */
    float *partials;    /* [CTAs][2] pieces */
    float *warp_pieces; /* [CTAs][warps] */
} decode_args;

/* All units, cut for the CTAs so that each has some: others stay idle. */
typedef struct line {
    int length, n_ctas;
    int each, extra; /* units of a CTA; CTAs with one more */
} line;

DEV int cta_begin(line all, int cta)
{
    return cta * all.each + min(cta, all.extra);
}

/* The CTA whose run holds place `at`. */
DEV int cta_of(line all, int at)
{
    const int longer = all.extra * (all.each + 1);
    return at < longer ? at / (all.each + 1) : all.extra + (at - longer) / all.each;
}

/* A slot of a warp's ring, and the parity of its barrier's phase. */
typedef struct ring {
    int slot;
    uint32_t parity;
} ring;

/* A place in the line of units. */
typedef struct cursor {
    int b, head, j, n; /* unit j of n of the sequence b */
    int n_tokens;      /* of b */
} cursor;

template <int UNIT> DEV int units_of(int n_tokens)
{
    return (n_tokens + UNIT * GROUP - 1) / (UNIT * GROUP);
}

/* 32 sequences, one per lane: tokens, and units up to the end of this one. */
typedef struct lengths {
    int n_tokens, units, sum;
} lengths;

template <int UNIT> DEV lengths lengths_at(const decode_args *g, int b0, int lane)
{
    lengths s;
    s.n_tokens = g->a.n_tokens[min(b0 + lane, g->a.n_seqs - 1)];
    s.units = b0 + lane < g->a.n_seqs ? units_of<UNIT>(s.n_tokens) * g->kv.n_kv_heads : 0;
    s.sum = s.units;
    if (g->a.n_seqs == 1) {
        s.sum = __shfl_sync(~0u, s.sum, 0);
        return s;
    }
#pragma unroll
    for (int i = 1; i < 32; i *= 2) {
        const int v = __shfl_up_sync(~0u, s.sum, i);
        if (lane >= i) s.sum += v;
    }
    return s;
}

/* The line; and the lengths of the first sequences, for seek(). */
template <int UNIT, int WARPS> DEV line measure(const decode_args *g, lengths *first, int lane)
{
    line all;
    *first = lengths_at<UNIT>(g, 0, lane);
    int sum = 0;
#pragma unroll 1
    for (int b = 32 + lane; b < g->a.n_seqs; b += 32)
        sum += units_of<UNIT>(g->a.n_tokens[b]) * g->kv.n_kv_heads;
    all.length = __shfl_sync(~0u, first->sum, 31);
    if (g->a.n_seqs > 32) all.length += __reduce_add_sync(~0u, sum);
    all.n_ctas = min((all.length + WARPS - 1) / WARPS, (int)gridDim.x);
    all.each = all.length / all.n_ctas;
    all.extra = all.length - all.each * all.n_ctas;
    return all;
}

/* The cursor at `at`. All lanes. */
template <int UNIT> DEV cursor seek(const decode_args *g, lengths s, int at, int lane)
{
    cursor c = {};
    int before = 0;
#pragma unroll 1
    while (at >= before + __shfl_sync(~0u, s.sum, 31)) {
        before += __shfl_sync(~0u, s.sum, 31);
        c.b += 32;
        s = lengths_at<UNIT>(g, c.b, lane);
    }
    const int l = __ffs(__ballot_sync(~0u, before + s.sum > at)) - 1;
    c.b += l;
    before += __shfl_sync(~0u, s.sum - s.units, l);
    c.n_tokens = __shfl_sync(~0u, s.n_tokens, l);
    c.n = units_of<UNIT>(c.n_tokens);
    c.head = (at - before) / c.n;
    c.j = at - before - c.head * c.n;
    return c;
}

/* k units on. */
template <int UNIT> DEV void skip(cursor *c, const decode_args *g, int k)
{
    c->j += k;
#pragma unroll 1
    while (c->j >= c->n) {
        c->j -= c->n;
        if (++c->head < g->kv.n_kv_heads) continue;
        c->head = 0;
        if (++c->b >= g->a.n_seqs) continue;
        c->n_tokens = g->a.n_tokens[c->b];
        c->n = units_of<UNIT>(c->n_tokens);
    }
}

template <int UNIT> DEV int page_of(const decode_args *g, const cursor *c)
{
    return g->kv.table[(int64_t)c->b * g->kv.table_stride + c->j / (4 / UNIT)];
}

/* Announces and starts the copy of the cursor's unit. */
template <int UNIT>
DEV void load_unit(const decode_args *g, const cursor *c, int page, uint32_t to, uint32_t bar,
                   int group_bytes)
{
    const int64_t group =
        ((int64_t)page * g->kv.n_kv_heads + c->head) * 4 + c->j % (4 / UNIT) * UNIT;
    mbar_expect(bar, UNIT * group_bytes);
    bulk_load(to, g->kv.pages + group * group_bytes, UNIT * group_bytes, bar);
}

/* Where the cursor's first query head lies in q and y. */
DEV int64_t first_row(const decode_args *g, const cursor *c)
{
    return ((int64_t)c->b * g->a.n_heads + c->head * g->heads) * g->kv.D;
}

/* ---- results and pieces ------------------------------------------------------------------ */

/* What a warp left of a segment. */
typedef struct leftover {
    int start; /* of the segment in the line; -1: nothing */
    int b, head, n;
    const float *piece;
} leftover;

/* Segments that other CTAs share: 0 begins before this CTA's run, 1 goes on behind it. */
typedef struct shared_segments {
    int b[2], head[2];
    int first[2], n[2]; /* CTAs; n = 0: no such segment */
    bool last[2];       /* all others were there before */
} shared_segments;

template <int D, int BITS, int SETS>
DEV void write_segment(const state<D, BITS, SETS> *s, const decode_args *g, const cursor *c,
                       int lane)
{
#pragma unroll
    for (int j = 0; j < SETS; j++) {
        const int h = lane % 4 + 4 * j;
        const float r = reciprocal(s->l[j]);
        const int64_t at = first_row(g, c) + h * D + lane / 4;
        if (h >= g->heads) continue;
        if (g->a.y_bf16) {
#pragma unroll
            for (int i = 0; i < D / 8; i++)
                ((uint16_t *)g->a.y)[at + 8 * i] =
                    (uint16_t)bf16x2(s->o[i / 2][i % 2 * 2 + j] * r, 0.0f);
        } else {
#pragma unroll
            for (int i = 0; i < D / 8; i++)
                ((float *)g->a.y)[at + 8 * i] = s->o[i / 2][i % 2 * 2 + j] * r;
        }
    }
}

template <int D, int BITS, int SETS>
DEV void store_piece(const state<D, BITS, SETS> *s, float *piece, int lane)
{
#pragma unroll
    for (int j = 0; j < SETS; j++) {
        const int h = lane % 4 + 4 * j;
#pragma unroll
        for (int i = 0; i < D / 8; i++)
            piece[h * D + 8 * i + lane / 4] = s->o[i / 2][i % 2 * 2 + j];
        if (lane / 4 == 0) {
            piece[4 * SETS * D + h] = s->m[j];
            piece[4 * SETS * (D + 1) + h] = s->l[j];
        }
    }
}

/* The merged segment to y; o of thread t of a team. */
template <int D, int SETS>
DEV void write_merged(float4 o, const merge_room<SETS> *room, const decode_args *g, int b,
                      int kv_head, int t)
{
    const int h = 4 * t / D;
    if (h >= g->heads) return;
    const cursor c = {b, kv_head, 0, 0, 0};
    const float r = reciprocal(room->l[h]);
    const int64_t to = first_row(g, &c) + 4 * t;
    if (g->a.y_bf16)
        *(uint2 *)((uint16_t *)g->a.y + to) =
            make_uint2(bf16x2(o.x * r, o.y * r), bf16x2(o.z * r, o.w * r));
    else *(float4 *)((float *)g->a.y + to) = make_float4(o.x * r, o.y * r, o.z * r, o.w * r);
}

/* This CTA's part of a segment: to y if that is all of it, else to the CTA's pieces. */
template <int WARPS, int D, int SETS>
DEV void merge_own(const decode_args *g, merge_room<SETS> *room, const leftover *f,
                   const pieces *p, line all, shared_segments *shared, int team, int t)
{
    constexpr int PIECE = 4 * SETS * (D + 2);
    const int begin = cta_begin(all, blockIdx.x), end = cta_begin(all, blockIdx.x + 1);
    const int side = f->start >= begin;
    const bool whole = side && f->start + f->n <= end;
    if (t == 0 && !whole) {
        shared->b[side] = f->b, shared->head[side] = f->head;
        shared->first[side] = cta_of(all, f->start);
        shared->n[side] = cta_of(all, f->start + f->n - 1) + 1 - shared->first[side];
    }
    const float4 o = merge<32, 8, WARPS, D, SETS>(room, p, g->heads, team, t);
    if (whole) {
        write_merged<D, SETS>(o, room, g, f->b, f->head, t);
        return;
    }
    float *piece = g->partials + (int64_t)(2 * blockIdx.x + side) * PIECE;
    if (4 * t < g->heads * D) *(float4 *)(piece + 4 * t) = o;
    if (t < g->heads) {
        piece[4 * SETS * D + t] = room->m[t];
        piece[4 * SETS * (D + 1) + t] = room->l[t];
    }
}

/* Whether this arrival at the segment's counter is the last; what this CTA's threads stored
 * before the barrier ahead is visible to who comes later, and the other way round. */
DEV bool arrive_last(uint32_t *counter, int n)
{
    uint32_t before;
    asm volatile("atom.acq_rel.gpu.global.add.u32 %0, [%1], 1;"
                 : "=r"(before)
                 : "l"(counter)
                 : "memory");
    if (before != (uint32_t)n - 1) return false;
    *counter = 0;
    return true;
}

/* Segments that warps left in pieces, 2 WARPS leftovers in the line's order; then those that
 * this CTA was the last to arrive at. */
template <int WARPS, int D, int SETS>
DEV void merge_leftovers(const decode_args *g, line all, const leftover *left,
                         const float **list, merge_room<SETS> *rooms, shared_segments *shared)
{
    typedef merge_shape<WARPS, D, SETS> sh;
    static_assert(2 * WARPS <= 32, "a lane each");
    const int lane = threadIdx.x % 32, team = threadIdx.x / 32 / sh::TEAM_WARPS;
    const int t = threadIdx.x - team * 32 * sh::TEAM_WARPS;
    const int start = lane < 2 * WARPS ? left[lane].start : -1;
    const uint32_t all_left = __ballot_sync(~0u, start >= 0);
    if (threadIdx.x < 32 && start >= 0)
        list[__popc(all_left & ((1u << lane) - 1))] = left[lane].piece;
    __syncthreads();
    uint32_t todo = all_left;
#pragma unroll 1
    for (int turn = 0; todo; turn = turn + 1 == sh::TEAMS ? 0 : turn + 1) {
        const int i = __ffs(todo) - 1;
        const uint32_t same = __ballot_sync(~0u, start == __shfl_sync(~0u, start, i));
        todo &= ~same;
        if (turn != team) continue;
        const leftover f = left[i];
        const pieces p = {list + __popc(all_left & ((1u << i) - 1)), NULL, NULL, __popc(same)};
        merge_own<WARPS, D, SETS>(g, rooms + team, &f, &p, all, shared, team, t);
    }
    __syncthreads();
    if (threadIdx.x < 2 && shared->n[threadIdx.x] > 0) {
        const int i = threadIdx.x;
        uint32_t *counter =
            g->arrived + (int64_t)shared->b[i] * g->kv.n_kv_heads + shared->head[i];
        shared->last[i] = arrive_last(counter, shared->n[i]);
    }
    __syncthreads();
    if (team >= sh::TEAMS) return;
#pragma unroll 1
    for (int i = 0; i < 2; i++) {
        if (shared->n[i] == 0 || !shared->last[i] || i % sh::TEAMS != team) continue;
        const float *piece = g->partials + (int64_t)2 * shared->first[i] * sh::PIECE;
        const pieces p = {NULL, piece + sh::PIECE, piece + 2 * sh::PIECE, shared->n[i]};
        const float4 o =
            merge<MAX_CHUNK, 18, WARPS, D, SETS>(rooms + team, &p, g->heads, team, t);
        write_merged<D, SETS>(o, rooms + team, g, shared->b[i], shared->head[i], t);
    }
}

/* ---- the warp's run ---------------------------------------------------------------------- */

template <int WARPS, int UNIT, int D, int BITS, int SETS>
DEV void run_line(const decode_args *g, line all, const lengths *first, uint8_t *memory,
                  uint32_t bars, leftover *left, int warp, int lane)
{
    typedef shape<D, BITS> sh;
    constexpr int PIECE = 4 * SETS * (D + 2), BYTES = UNIT * sh::BYTES;
    const int begin = cta_begin(all, blockIdx.x),
              n_cta = cta_begin(all, blockIdx.x + 1) - begin;
    const int w0 = begin + n_cta * warp / WARPS, n = begin + n_cta * (warp + 1) / WARPS - w0;
    const uint32_t slots = smem_addr(memory);
    ring r = {0, 0};
    int n_ahead = min(g->n_slots, n), done = 0;
    if (n <= 0) return;
    cursor c = seek<UNIT>(g, *first, w0, lane), ahead = c;
#pragma unroll 1
    for (bool whole = c.j == 0;; whole = true) {
        state<D, BITS, SETS> s;
        uint32_t q[SETS * D / 8];
        load_q<D, BITS, SETS>(q, g->a.q, g->a.q_bf16, first_row(g, &c), g->heads, lane);
        if (done == 0) {
            if (lane < n_ahead) {
                skip<UNIT>(&ahead, g, lane);
                load_unit<UNIT>(g, &ahead, page_of<UNIT>(g, &ahead), slots + lane * BYTES,
                                bars + 8 * lane, sh::BYTES);
                ahead = c;
            }
            skip<UNIT>(&ahead, g, n_ahead);
        }
        open_segment<D, BITS, SETS>(&s, q, g->scale_log2, lane);
        const int m = min(n - done, c.n - c.j);
        int n_left = c.n_tokens - c.j * (UNIT * GROUP);
#pragma unroll 1
        for (int i = 0; i < m; i++, n_left -= UNIT * GROUP) {
            const bool more = n_ahead < n;
            const int page = more && lane == 0 ? page_of<UNIT>(g, &ahead) : 0;
            mbar_wait(bars + 8 * r.slot, r.parity);
            add_unit<UNIT, D, BITS, SETS>(&s, slots + r.slot * BYTES, n_left, lane);
            __syncwarp();
            if (more) {
                if (lane == 0)
                    load_unit<UNIT>(g, &ahead, page, slots + r.slot * BYTES, bars + 8 * r.slot,
                                    sh::BYTES);
                skip<UNIT>(&ahead, g, 1);
                n_ahead++;
            }
            if (++r.slot == g->n_slots) r.slot = 0, r.parity ^= 1;
        }
        done += m;
        close_segment<D, BITS, SETS>(&s);
        if (whole && c.j + m == c.n) {
            write_segment<D, BITS, SETS>(&s, g, &c, lane);
        } else {
            /* the ring is free at the end of the run only */
            float *to = done == n
                            ? (float *)memory
                            : g->warp_pieces + (int64_t)(blockIdx.x * WARPS + warp) * PIECE;
            store_piece<D, BITS, SETS>(&s, to, lane);
            if (lane == 0) left[2 * warp + whole] = {w0 + done - m - c.j, c.b, c.head, c.n, to};
        }
        if (done == n) return;
        skip<UNIT>(&c, g, m);
    }
}

/* Addresses that will be read, while the kernel ahead still runs: not their contents, which it
 * may change, but where they are. */
DEV void warm_up(const decode_args *g, int piece)
{
    const void *at = NULL;
    if (threadIdx.x == 0) at = g->a.n_tokens;
    if (threadIdx.x == 1) at = g->kv.table;
    if (threadIdx.x == 2) at = g->a.q;
    if (threadIdx.x == 3) at = g->arrived;
    if (threadIdx.x == 4) at = g->partials + (int64_t)2 * blockIdx.x * piece;
    if (threadIdx.x == 5) at = g->a.y;
    if (at) asm volatile("prefetch.global.L2 [%0];" ::"l"(at));
}

template <int D, int BITS, int SETS>
__global__
__launch_bounds__(plan<BITS>::WARPS * 32,
                  plan<BITS>::CTAS) void decode_kernel(const __grid_constant__ decode_args g)
{
    typedef shape<D, BITS> sh;
    constexpr int WARPS = plan<BITS>::WARPS, UNIT = plan<BITS>::UNIT;
    extern __shared__ __align__(128) uint8_t raw[];
    __shared__ uint64_t bars[WARPS * MAX_SLOTS];
    __shared__ leftover left[2 * WARPS];
    __shared__ const float *list[2 * WARPS];
    __shared__ merge_room<SETS> rooms[merge_shape<WARPS, D, SETS>::TEAMS];
    __shared__ shared_segments shared;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int ring_bytes = g.n_slots * UNIT * sh::BYTES;
    const uint32_t my_bars = smem_addr(bars + warp * MAX_SLOTS);
    launch_next();
    if (lane < g.n_slots) mbar_init(my_bars + 8 * lane, 1);
    if (lane < 2) left[2 * warp + lane].start = -1;
    if (threadIdx.x < 2) shared.n[threadIdx.x] = 0;
    mbar_init_fence();
    __syncwarp();
    warm_up(&g, 4 * SETS * (D + 2));
    wait_previous();
    lengths first;
    const line all = measure<UNIT, WARPS>(&g, &first, lane);
    if ((int)blockIdx.x >= all.n_ctas) return;
    run_line<WARPS, UNIT, D, BITS, SETS>(&g, all, &first, raw + warp * ring_bytes, my_bars,
                                         left, warp, lane);
    __syncthreads();
    merge_leftovers<WARPS, D, SETS>(&g, all, left, list, rooms, &shared);
}

/* ---- host -------------------------------------------------------------------------------- */

static size_t counter_bytes(int n_kv_heads, int n_seqs)
{
    return ((size_t)n_kv_heads * (size_t)n_seqs * 4 + 127) / 128 * 128;
}

extern "C" size_t fl__cuda_attention_workspace_bytes(int D, int n_kv_heads, int n_seqs,
                                                     int n_sm)
{
    return counter_bytes(n_kv_heads, n_seqs) +
           (size_t)n_sm * MAX_PIECES * 8 * (size_t)(D + 2) * sizeof(float);
}

template <int D, int BITS, int SETS>
static cudaError_t launch(decode_args *g, int n_sm, cudaStream_t stream)
{
    typedef shape<D, BITS> sh;
    typedef plan<BITS> pl;
    static_assert(pl::CTAS * (2 + pl::WARPS) <= MAX_PIECES, "workspace");
    const void *kernel = (const void *)decode_kernel<D, BITS, SETS>;
    cudaLaunchAttribute attribute;
    cudaLaunchConfig_t config = {};
    const int unit_bytes = pl::UNIT * sh::BYTES;
    g->n_slots = FL_MIN(pl::RING_BYTES / pl::WARPS / unit_bytes, (int)MAX_SLOTS);
    g->warp_pieces = g->partials + (int64_t)n_sm * pl::CTAS * 2 * 4 * SETS * (D + 2);
    /* all of the multiprocessor's memory as shared, or the next launch may not fit beside this
     * one */
    cudaError_t e = cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout,
                                         cudaSharedmemCarveoutMaxShared);
    if (e == cudaSuccess)
        e = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                 pl::RING_BYTES);
    if (e != cudaSuccess) return e;
    attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attribute.val.programmaticStreamSerializationAllowed = 1;
    config.gridDim = dim3((unsigned)(n_sm * pl::CTAS));
    config.blockDim = dim3(pl::WARPS * 32);
    config.dynamicSmemBytes = (size_t)(pl::WARPS * g->n_slots * unit_bytes);
    config.stream = stream;
    config.attrs = &attribute;
    config.numAttrs = 1;
    return cudaLaunchKernelEx(&config, decode_kernel<D, BITS, SETS>, *g);
}

template <int D, int BITS>
static cudaError_t launch_sets(decode_args *g, int n_sm, cudaStream_t stream)
{
    if (g->heads <= 4) return launch<D, BITS, 1>(g, n_sm, stream);
    return launch<D, BITS, 2>(g, n_sm, stream);
}

template <int D> static cudaError_t launch_bits(decode_args *g, int n_sm, cudaStream_t stream)
{
    if (g->kv.bits == 4) return launch_sets<D, 4>(g, n_sm, stream);
    if (g->kv.bits == 8) return launch_sets<D, 8>(g, n_sm, stream);
    if (g->kv.bits == 16) return launch_sets<D, 16>(g, n_sm, stream);
    return cudaErrorInvalidValue;
}

extern "C" fl_status fl__cuda_attention_decode(const fl_cuda_attention *a, int n_sm,
                                               void *stream, fl_err *err)
{
    decode_args g = {};
    cudaError_t e = cudaErrorInvalidValue;
    g.a = *a;
    g.kv = *a->kv;
    g.heads = a->n_heads / a->kv->n_kv_heads;
    g.scale_log2 = a->scale * 1.44269504f;
    g.arrived = (uint32_t *)a->workspace;
    g.partials =
        (float *)((uint8_t *)a->workspace + counter_bytes(a->kv->n_kv_heads, a->n_seqs));
    if (g.heads >= 1 && g.heads <= 8) {
        if (g.kv.D == 64) e = launch_bits<64>(&g, n_sm, (cudaStream_t)stream);
        if (g.kv.D == 80) e = launch_bits<80>(&g, n_sm, (cudaStream_t)stream);
        if (g.kv.D == 128) e = launch_bits<128>(&g, n_sm, (cudaStream_t)stream);
    }
    if (e != cudaSuccess)
        return fl__fail(err, FL_E_FAIL,
                        "cuda: attention, %d sequences, %d heads of %d: %s; see the GPU's log",
                        a->n_seqs, a->n_heads, a->kv->D, cudaGetErrorString(e));
    return FL_OK;
}
