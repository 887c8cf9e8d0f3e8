/* attention_decode.cu - one query token per sequence against the paged cache, split over keys.
 *
 * All groups of 16 tokens of all (sequence, KV head) segments form one line, which CTAs and
 * their warps cut into equal runs, so that any batch fills the GPU. A warp streams its groups
 * through a ring of shared memory (one bulk copy each) and keeps (m, l, o) of the segment at
 * hand; it never waits for another warp until its run ends. What is left are pieces of
 * segments: merged in the CTA, and where a segment spans CTAs, by the last of them to arrive,
 * always in the order of the line: same input, same bits.
 *
 * What happens to a group is in attention_group.h. m follows the maximum lazily: o is rescaled
 * only when a score exceeds m by 2^SLACK.
 * SPDX-License-Identifier: MIT */
#include "cuda/attention_cuda.h"

#include "cuda/attention_group.h"

#include <cuda_runtime.h>

enum {
    MAX_SLOTS = 16,
    CHUNK = 64,      /* pieces merged at a time */
    MAX_PIECES = 40, /* per multiprocessor, of CTAs and of warps */
};

#ifndef DECODE_WARPS
#define DECODE_WARPS 8
#define DECODE_CTAS  2
#define DECODE_RING  (96 << 10)
#endif

/* Warps of a CTA, CTAs of a multiprocessor, a CTA's memory for groups on their way. */
template <int BITS> struct plan {
    static constexpr int WARPS = BITS == 16 ? 12 : DECODE_WARPS;
    static constexpr int CTAS = BITS == 16 ? 1 : DECODE_CTAS;
    static constexpr int RING_BYTES = BITS == 16 ? 196608 : DECODE_RING;
};

typedef struct decode_args {
    fl_cuda_attention a;
    fl_cuda_kv kv;
    float scale_log2;
    int n_slots, heads; /* query heads per KV head */
    uint32_t *arrived;  /* [n_seqs * n_kv_heads] */
    float *partials;    /* [CTAs][2] pieces: o [heads][D], m, l */
    float *warp_pieces; /* [CTAs][warps] */
} decode_args;

/* All groups, cut for the CTAs so that each has some: others stay idle. */
typedef struct line {
    int64_t length;
    int n_ctas;
} line;

DEV int64_t cta_begin(line all, int cta)
{
    return all.length * cta / all.n_ctas;
}

/* A place in the line of groups. */
typedef struct cursor {
    int b, head, j, n; /* group j of n of the sequence b */
} cursor;

DEV int n_groups(const decode_args *g, int b)
{
    return (g->a.n_tokens[b] + GROUP - 1) / GROUP;
}

template <int WARPS> DEV line measure(const decode_args *g, int lane)
{
    line all;
    int64_t sum = 0;
    for (int b = lane; b < g->a.n_seqs; b += 32) sum += n_groups(g, b);
    for (int i = 16; i > 0; i /= 2) sum += __shfl_xor_sync(~0u, sum, i);
    all.length = sum * g->kv.n_kv_heads;
    all.n_ctas = (int)min((all.length + WARPS - 1) / WARPS, (int64_t)gridDim.x);
    return all;
}

/* The cursor at `at`, and in *start the place where its segment begins. All lanes. */
DEV cursor seek(const decode_args *g, int64_t at, int64_t *start, int lane)
{
    cursor c = {};
    int64_t before = 0;
    for (int b0 = 0; b0 < g->a.n_seqs; b0 += 32) {
        const int b = b0 + lane;
        const int64_t mine = b < g->a.n_seqs ? (int64_t)n_groups(g, b) * g->kv.n_kv_heads : 0;
        int64_t sum = mine;
        for (int i = 1; i < 32; i *= 2) {
            const int64_t v = __shfl_up_sync(~0u, sum, i);
            if (lane >= i) sum += v;
        }
        const uint32_t past = __ballot_sync(~0u, before + sum > at);
        if (past) {
            const int l = __ffs(past) - 1;
            before += __shfl_sync(~0u, sum - mine, l);
            c.b = b0 + l;
            break;
        }
        before += __shfl_sync(~0u, sum, 31);
    }
    c.n = n_groups(g, c.b);
    c.head = (int)((at - before) / c.n);
    c.j = (int)((at - before) % c.n);
    *start = at - c.j;
    return c;
}

DEV void advance(cursor *c, const decode_args *g)
{
    if (++c->j < c->n) return;
    c->j = 0;
    if (++c->head < g->kv.n_kv_heads) return;
    c->head = 0;
    c->b++;
    if (c->b < g->a.n_seqs) c->n = n_groups(g, c->b);
}

DEV int page_of(const decode_args *g, const cursor *c)
{
    return g->kv.table[(int64_t)c->b * g->kv.table_stride + c->j / 4];
}

DEV const uint8_t *group_at(const decode_args *g, const cursor *c, int page, int n_bytes)
{
    const int64_t group = ((int64_t)page * g->kv.n_kv_heads + c->head) * 4 + c->j % 4;
    return g->kv.pages + group * n_bytes;
}

/* Where the cursor's first query head lies in q. */
DEV int64_t first_q(const decode_args *g, const cursor *c)
{
    return ((int64_t)c->b * g->a.n_heads + c->head * g->heads) * g->kv.D;
}

/* ---- results and pieces ------------------------------------------------------------------ */

/* Values d and d + 1 of query head h of the KV head. */
DEV void put_output(const decode_args *g, int b, int kv_head, int h, int d, float u, float v)
{
    const int64_t at = ((int64_t)b * g->a.n_heads + kv_head * g->heads + h) * g->kv.D + d;
    if (g->a.y_bf16) *(uint32_t *)((uint16_t *)g->a.y + at) = bf16x2(u, v);
    else *(float2 *)((float *)g->a.y + at) = make_float2(u, v);
}

template <int D, int BITS, int SETS>
DEV void write_segment(const state<D, BITS, SETS> *s, const decode_args *g, const cursor *c,
                       int lane)
{
#pragma unroll
    for (int j = 0; j < SETS; j++) {
        const int h = lane % 4 + 4 * j;
        const float r = 1.0f / s->l[j];
        const int64_t at = ((int64_t)c->b * g->a.n_heads + c->head * g->heads + h) * D;
        if (h >= g->heads) continue;
#pragma unroll
        for (int i = 0; i < D / 8; i++) {
            const float y = s->o[i / 2][i % 2 * 2 + j] * r;
            const int64_t to = at + 8 * i + lane / 4;
            if (g->a.y_bf16) ((uint16_t *)g->a.y)[to] = (uint16_t)bf16x2(y, 0.0f);
            else ((float *)g->a.y)[to] = y;
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

/* What a warp left: piece 0 of a segment begun before its run, piece 1 of one that goes on. */
typedef struct leftover {
    int64_t start; /* of the segment in the line; -1: none */
    const float *piece;
    int b, head, n;
} leftover;

/* Pieces of one segment, in their order: listed, or one and then equally spaced ones. */
typedef struct pieces {
    const float *const *list;
    const float *first, *rest;
    int n;
} pieces;

template <int SETS> struct merge_room {
    float weight[CHUNK][4 * SETS], factor[4 * SETS], m[4 * SETS], l[4 * SETS];
};

template <int WARPS, int D, int SETS> struct merged {
    static constexpr int PAIRS = (2 * SETS * D + 32 * WARPS - 1) / (32 * WARPS);
    float2 o[PAIRS]; /* values 2 i and 2 i + 1 of [heads][D], i = thread, thread + THREADS .. */
};

template <int PIECE> DEV const float *piece_at(const pieces *p, int i)
{
    if (p->list) return p->list[i];
    return i == 0 ? p->first : p->rest + (int64_t)(i - 1) * 2 * PIECE;
}

/* Of another thread, in shared or global memory, past the first-level cache. */
DEV float load_fresh(const float *from)
{
    float v;
    asm volatile("ld.relaxed.gpu.f32 %0, [%1];" : "=f"(v) : "l"(from) : "memory");
    return v;
}

DEV float2 load_fresh_pair(const float *from)
{
    float2 v;
    asm volatile("ld.relaxed.gpu.v2.f32 {%0, %1}, [%2];"
                 : "=f"(v.x), "=f"(v.y)
                 : "l"(from)
                 : "memory");
    return v;
}

/* Weights of the pieces i0 .. of a chunk: warp h has head h; *m and *l go on. */
template <int D, int SETS>
DEV void weigh(merge_room<SETS> *room, const pieces *p, int i0, int h, float *m, float *l,
               int lane)
{
    constexpr int PIECE = 4 * SETS * (D + 2);
    float mi[CHUNK / 32], li[CHUNK / 32], top = *m;
#pragma unroll
    for (int k = 0; k < CHUNK / 32; k++) {
        const int i = i0 + lane + 32 * k;
        mi[k] = -INFINITY, li[k] = 0;
        if (i >= p->n) continue;
        const float *from = piece_at<PIECE>(p, i) + 4 * SETS * D + h;
        mi[k] = load_fresh(from), li[k] = load_fresh(from + 4 * SETS);
    }
#pragma unroll
    for (int k = 0; k < CHUNK / 32; k++) top = fmaxf(top, mi[k]);
#pragma unroll
    for (int j = 16; j > 0; j /= 2) top = fmaxf(top, __shfl_xor_sync(~0u, top, j));
    const float factor = exp2_fast(*m - top);
    float sum = 0;
#pragma unroll
    for (int k = 0; k < CHUNK / 32; k++) {
        const float c = exp2_fast(mi[k] - top);
        room->weight[lane + 32 * k][h] = c;
        sum = fmaf(c, li[k], sum);
    }
#pragma unroll
    for (int j = 16; j > 0; j /= 2) sum += __shfl_xor_sync(~0u, sum, j);
    *m = top;
    *l = fmaf(*l, factor, sum);
    if (lane == 0) room->factor[h] = factor, room->m[h] = top, room->l[h] = *l;
}

/* The pieces' sum, unnormalised; m and l are left in the room. All threads. */
template <int WARPS, int D, int SETS>
DEV void merge(merged<WARPS, D, SETS> *out, merge_room<SETS> *room, const pieces *p, int heads,
               int warp, int lane)
{
    constexpr int PIECE = 4 * SETS * (D + 2), THREADS = 32 * WARPS,
                  PAIRS = merged<WARPS, D, SETS>::PAIRS;
    constexpr int TURNS = (4 * SETS + WARPS - 1) / WARPS;
    float m[TURNS], l[TURNS];
#pragma unroll
    for (int k = 0; k < TURNS; k++) m[k] = -INFINITY, l[k] = 0;
#pragma unroll
    for (int k = 0; k < PAIRS; k++) out->o[k] = make_float2(0, 0);
    for (int i0 = 0; i0 < p->n; i0 += CHUNK) {
        __syncthreads();
#pragma unroll
        for (int k = 0; k < TURNS; k++)
            if (warp + k * WARPS < heads)
                weigh<D, SETS>(room, p, i0, warp + k * WARPS, &m[k], &l[k], lane);
        __syncthreads();
#pragma unroll
        for (int k = 0; k < PAIRS; k++) {
            const int e = 2 * (threadIdx.x + k * THREADS), h = e / D, n = min(p->n - i0, CHUNK);
            if (h >= heads) continue;
            float2 o = out->o[k];
            o.x *= room->factor[h], o.y *= room->factor[h];
#pragma unroll 8
            for (int i = 0; i < n; i++) {
                const float2 v = load_fresh_pair(piece_at<PIECE>(p, i0 + i) + e);
                const float c = room->weight[i][h];
                o.x = fmaf(c, v.x, o.x), o.y = fmaf(c, v.y, o.y);
            }
            out->o[k] = o;
        }
    }
}

/* The merged segment to y. */
template <int WARPS, int D, int SETS>
DEV void write_merged(const merged<WARPS, D, SETS> *from, const merge_room<SETS> *room,
                      const decode_args *g, const leftover *f)
{
#pragma unroll
    for (int k = 0; k < merged<WARPS, D, SETS>::PAIRS; k++) {
        const int e = 2 * (threadIdx.x + k * 32 * WARPS), h = e / D;
        if (h >= g->heads) continue;
        const float r = 1.0f / room->l[h];
        put_output(g, f->b, f->head, h, e % D, from->o[k].x * r, from->o[k].y * r);
    }
}

/* The CTA whose run holds place `at`. */
DEV int cta_of(line all, int64_t at)
{
    int cta = (int)(at * all.n_ctas / all.length);
    while (cta_begin(all, cta + 1) <= at) cta++;
    while (cta_begin(all, cta) > at) cta--;
    return cta;
}

/* This CTA's part of a segment: to y if that is all of it, else to its piece: false. */
template <int WARPS, int D, int SETS>
DEV bool merge_own(const decode_args *g, merge_room<SETS> *room, const leftover *f,
                   const pieces *p, line all, int warp, int lane)
{
    constexpr int PIECE = 4 * SETS * (D + 2);
    const int64_t begin = cta_begin(all, blockIdx.x), end = cta_begin(all, blockIdx.x + 1);
    merged<WARPS, D, SETS> o;
    merge<WARPS, D, SETS>(&o, room, p, g->heads, warp, lane);
    if (f->start >= begin && f->start + f->n <= end) {
        write_merged<WARPS, D, SETS>(&o, room, g, f);
        return true;
    }
    float *piece = g->partials + (int64_t)(2 * blockIdx.x + (f->start >= begin)) * PIECE;
#pragma unroll
    for (int k = 0; k < merged<WARPS, D, SETS>::PAIRS; k++) {
        const int e = 2 * (threadIdx.x + k * 32 * WARPS);
        if (e < g->heads * D) *(float2 *)(piece + e) = o.o[k];
    }
    if (threadIdx.x < 4 * SETS) {
        piece[4 * SETS * D + threadIdx.x] = room->m[threadIdx.x];
        piece[4 * SETS * (D + 1) + threadIdx.x] = room->l[threadIdx.x];
    }
    return false;
}

/* The last CTA of a segment that spans several merges their pieces. */
template <int WARPS, int D, int SETS>
DEV void merge_all(const decode_args *g, merge_room<SETS> *room, const leftover *f, line all,
                   int warp, int lane)
{
    constexpr int PIECE = 4 * SETS * (D + 2);
    const int first = cta_of(all, f->start), end = cta_of(all, f->start + f->n - 1) + 1;
    const float *piece = g->partials + (int64_t)2 * first * PIECE;
    const pieces p = {NULL, piece + PIECE, piece + 2 * PIECE, end - first};
    merged<WARPS, D, SETS> o;
    merge<WARPS, D, SETS>(&o, room, &p, g->heads, warp, lane);
    write_merged<WARPS, D, SETS>(&o, room, g, f);
}

/* ---- the warp's run ---------------------------------------------------------------------- */

template <int WARPS, int D, int BITS, int SETS>
DEV void run_line(const decode_args *g, line all, uint8_t *ring, uint32_t bars, leftover *left,
                  int warp, int lane)
{
    typedef shape<D, BITS> sh;
    constexpr int PIECE = 4 * SETS * (D + 2);
    const int64_t begin = cta_begin(all, blockIdx.x),
                  n_cta = cta_begin(all, blockIdx.x + 1) - begin;
    const int64_t w0 = begin + n_cta * warp / WARPS, w1 = begin + n_cta * (warp + 1) / WARPS;
    const int n = (int)(w1 - w0);
    const uint32_t slots = smem_addr(ring);
    int64_t start = 0;
    state<D, BITS, SETS> s;
    if (n <= 0) return;
    cursor c = seek(g, w0, &start, lane), ahead = c;
    bool whole = c.j == 0;
    int slot = 0, n_ahead = 0;
    uint32_t parity = 0;
    for (; n_ahead < g->n_slots && n_ahead < n; n_ahead++, advance(&ahead, g)) {
        if (lane != 0) continue;
        mbar_expect(bars + 8 * n_ahead, sh::BYTES);
        bulk_load(slots + n_ahead * sh::BYTES,
                  group_at(g, &ahead, page_of(g, &ahead), sh::BYTES), sh::BYTES,
                  bars + 8 * n_ahead);
    }
    open_segment<D, BITS, SETS>(&s, g->a.q, g->a.q_bf16, first_q(g, &c), g->heads,
                                g->scale_log2, lane);
    int n_tokens = g->a.n_tokens[c.b];
    for (int i = 0; i < n; i++) {
        const bool more = n_ahead < n;
        const int page = more && lane == 0 ? page_of(g, &ahead) : 0;
        mbar_wait(bars + 8 * slot, parity);
        add_group<D, BITS, SETS>(&s, slots + slot * sh::BYTES, n_tokens - c.j * GROUP, lane);
        __syncwarp();
        if (more) {
            if (lane == 0) {
                mbar_expect(bars + 8 * slot, sh::BYTES);
                bulk_load(slots + slot * sh::BYTES, group_at(g, &ahead, page, sh::BYTES),
                          sh::BYTES, bars + 8 * slot);
            }
            advance(&ahead, g);
            n_ahead++;
        }
        if (++slot == g->n_slots) slot = 0, parity ^= 1;
        const bool ends = c.j == c.n - 1;
        if (!ends && i < n - 1) {
            c.j++;
            continue;
        }
        close_segment<D, BITS, SETS>(&s);
        if (whole && ends) {
            write_segment<D, BITS, SETS>(&s, g, &c, lane);
        } else {
            /* the ring is free at the end of the run only */
            float *to = i == n - 1
                            ? (float *)ring
                            : g->warp_pieces + (int64_t)(blockIdx.x * WARPS + warp) * PIECE;
            store_piece<D, BITS, SETS>(&s, to, lane);
            if (lane == 0) left[2 * warp + whole] = {w0 + i - c.j, to, c.b, c.head, c.n};
        }
        if (i == n - 1) break;
        advance(&c, g);
        whole = true;
        open_segment<D, BITS, SETS>(&s, g->a.q, g->a.q_bf16, first_q(g, &c), g->heads,
                                    g->scale_log2, lane);
        n_tokens = g->a.n_tokens[c.b];
    }
}

/* Segments that go on in other CTAs, and whether those were all there before. */
typedef struct open_segments {
    leftover at[2];
    bool last[2];
} open_segments;

/* Segments that warps left in pieces. */
template <int WARPS, int D, int SETS>
DEV void merge_leftovers(const decode_args *g, line all, const leftover *left,
                         const float **list, merge_room<SETS> *room, open_segments *open,
                         int warp, int lane)
{
    int n_open = 0;
    for (int i = 0; i < 2 * WARPS;) {
        const leftover f = left[i];
        pieces p = {list, NULL, NULL, 0};
        int j = i;
        if (f.start < 0) {
            i++;
            continue;
        }
        __syncthreads();
        for (; j < 2 * WARPS && (left[j].start < 0 || left[j].start == f.start); j++) {
            if (left[j].start < 0) continue;
            if (threadIdx.x == 0) list[p.n] = left[j].piece;
            p.n++;
        }
        i = j;
        if (merge_own<WARPS, D, SETS>(g, room, &f, &p, all, warp, lane)) continue;
        if (threadIdx.x == 0) open->at[n_open] = f;
        n_open++;
    }
    if (n_open == 0) return;
    __syncthreads();
    if (threadIdx.x < n_open) {
        const leftover *f = &open->at[threadIdx.x];
        const int n = cta_of(all, f->start + f->n - 1) - cta_of(all, f->start);
        uint32_t *counter = g->arrived + (int64_t)f->b * g->kv.n_kv_heads + f->head;
        __threadfence();
        const bool last = atomicAdd(counter, 1) == (uint32_t)n;
        if (last) *counter = 0;
        open->last[threadIdx.x] = last;
        __threadfence();
    }
    __syncthreads();
    for (int i = 0; i < n_open; i++)
        if (open->last[i]) merge_all<WARPS, D, SETS>(g, room, &open->at[i], all, warp, lane);
}

template <int D, int BITS, int SETS>
__global__
__launch_bounds__(plan<BITS>::WARPS * 32,
                  plan<BITS>::CTAS) void decode_kernel(const __grid_constant__ decode_args g)
{
    typedef shape<D, BITS> sh;
    constexpr int WARPS = plan<BITS>::WARPS;
    extern __shared__ __align__(128) uint8_t raw[];
    __shared__ uint64_t bars[WARPS * MAX_SLOTS];
    __shared__ leftover left[2 * WARPS];
    __shared__ const float *list[2 * WARPS];
    __shared__ merge_room<SETS> room;
    __shared__ open_segments open;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int ring_bytes = g.n_slots * sh::BYTES;
    const uint32_t my_bars = smem_addr(bars + warp * MAX_SLOTS);
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
    if (lane < g.n_slots) mbar_init(my_bars + 8 * lane, 1);
    if (lane < 2) left[2 * warp + lane].start = -1;
    mbar_init_fence();
    __syncwarp();
    asm volatile("griddepcontrol.wait;" ::: "memory");
    const line all = measure<WARPS>(&g, lane);
    if ((int)blockIdx.x >= all.n_ctas) return;
    run_line<WARPS, D, BITS, SETS>(&g, all, raw + warp * ring_bytes, my_bars, left, warp, lane);
    __syncthreads();
    merge_leftovers<WARPS, D, SETS>(&g, all, left, list, &room, &open, warp, lane);
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
    g->n_slots = FL_MIN(pl::RING_BYTES / pl::WARPS / sh::BYTES, (int)MAX_SLOTS);
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
    config.dynamicSmemBytes = (size_t)(pl::WARPS * g->n_slots * sh::BYTES);
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
