/* attention_decode.cu - one query token per sequence against the paged cache, split over keys.
 *
 * All groups of 16 tokens of all (sequence, KV head) segments form one line, which CTAs and
 * their warps cut into equal runs, so that any batch fills the GPU. A warp streams its groups
 * through a ring of shared memory (one bulk copy each) and keeps (m, l, o) of the segment at
 * hand; it never waits for another warp until its run ends. What is left are pieces of
 * segments: merged in the CTA, and where a segment spans CTAs, by the last of them to arrive,
 * always in the order of the line: same input, same bits.
 *
 * Per group: S^T [16 tokens, 8 heads] = K q^T, then O^T [D, 8 heads] += V^T P^T, so that codes
 * are the A operand, expanded in registers, and the heads of a GQA group the 8 columns. Scale
 * and zero stay outside of the sums:
 *   s = (K_code . q - zero_k * sum q) * scale_k
 *   o = sum_t p' V_code - sum_t p' zero_v,   p' = bf16(p * scale_v)
 * m follows the maximum lazily: o is rescaled only when a score exceeds m by 2^SLACK.
 * SPDX-License-Identifier: MIT */
#include "cuda/attention_cuda.h"

#include "cuda/attention_sm90.h"

#include <cuda_fp16.h>
#include <cuda_runtime.h>

enum {
    N_WARPS = 12,
    N_THREADS = N_WARPS * 32,
    GROUP = FL_CUDA_KV_GROUP,
    HEADS = 8, /* query heads of a KV head, padded */
    MAX_SLOTS = 16,
    MAX_CTAS = 256,
    SMEM_MAX = 232448,
    SLACK = 8,
};

typedef struct decode_args {
    fl_cuda_attention a;
    fl_cuda_kv kv;
    float scale_log2;
    int n_slots, heads; /* query heads per KV head */
    uint32_t *arrived;  /* [n_seqs * n_kv_heads] */
    float *partials;    /* [CTAs][2] pieces */
    float *warp_pieces; /* [CTAs][N_WARPS] */
} decode_args;

template <int D, int BITS> struct shape {
    static constexpr int WORDS = D * BITS / 64; /* of K, and of V, per lane */
    static constexpr int HALF_BYTES = WORDS * 128;
    static constexpr int BYTES = 2 * HALF_BYTES + (BITS < 16 ? 96 : 0);
    static constexpr int TILES = D / 16;
    static constexpr int PIECE = HEADS * (D + 2); /* floats: o [8][D], m [8], l [8] */
};

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

DEV line measure(const decode_args *g, int lane)
{
    line all;
    int64_t sum = 0;
    for (int b = lane; b < g->a.n_seqs; b += 32) sum += n_groups(g, b);
    for (int i = 16; i > 0; i /= 2) sum += __shfl_xor_sync(~0u, sum, i);
    all.length = sum * g->kv.n_kv_heads;
    all.n_ctas = (int)min((all.length + N_WARPS - 1) / N_WARPS, (int64_t)gridDim.x);
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

/* ---- a segment in registers -------------------------------------------------------------- */

/* The lane's part: heads 2 (lane % 4) and the next; m of all lanes of a head is the same. */
template <int D> struct state {
    uint32_t q[D / 8];
    float o[D / 16][4];
    float q_sum[2], m[2], l[2], z[2];
};

template <int D>
DEV void open_segment(state<D> *s, const decode_args *g, const cursor *c, int lane)
{
    const int h = lane / 4;
    const int64_t at =
        ((int64_t)c->b * g->a.n_heads + c->head * g->heads + h) * D + lane % 4 * 2;
    float sum = 0;
#pragma unroll
    for (int i = 0; i < D / 8; i++) {
        uint32_t v = 0;
        if (h < g->heads) {
            if (g->a.q_bf16) {
                v = *(const uint32_t *)((const uint16_t *)g->a.q + at + 8 * i);
            } else {
                const float2 f = *(const float2 *)((const float *)g->a.q + at + 8 * i);
                v = bf16x2(f.x, f.y);
            }
        }
        s->q[i] = v;
        sum += low_half(v) + high_half(v);
    }
    sum += __shfl_xor_sync(~0u, sum, 1);
    sum += __shfl_xor_sync(~0u, sum, 2);
#pragma unroll
    for (int i = 0; i < 2; i++) {
        s->q_sum[i] = __shfl_sync(~0u, sum, (lane % 4 * 2 + i) * 4);
        s->m[i] = -INFINITY;
        s->l[i] = s->z[i] = 0;
    }
#pragma unroll
    for (int i = 0; i < D / 16; i++)
#pragma unroll
        for (int j = 0; j < 4; j++) s->o[i][j] = 0;
}

template <int D, int BITS> DEV void dot_keys(float *c, const state<D> *s, uint32_t k, int lane)
{
    typedef shape<D, BITS> sh;
    float odd[4] = {0, 0, 0, 0};
    uint32_t w[sh::WORDS], a[4];
    load_words<sh::WORDS>(w, k, lane);
#pragma unroll
    for (int i = 0; i < 4; i++) c[i] = 0;
#pragma unroll
    for (int i = 0; i < sh::TILES; i++) {
        if (BITS == 16) {
            mma_bf16(i % 2 ? odd : c, w + 4 * i, s->q[2 * i], s->q[2 * i + 1]);
        } else if (BITS == 4) {
            expand(a, w[i]);
            mma_bf16(i % 2 ? odd : c, a, s->q[2 * i], s->q[2 * i + 1]);
        } else {
            expand(a, w[2 * i]);
            mma_bf16(c, a, s->q[2 * i], s->q[2 * i + 1]);
            expand(a, w[2 * i + 1]);
            mma_bf16(odd, a, s->q[2 * i], s->q[2 * i + 1]);
        }
    }
#pragma unroll
    for (int i = 0; i < 4; i++) c[i] = BITS == 8 ? fmaf(16, odd[i], c[i]) : c[i] + odd[i];
}

/* o += V^T P^T; bf16 values of tokens past the end are taken out, whatever they hold. */
template <int D, int BITS>
DEV void add_values(state<D> *s, uint32_t v, uint32_t p0, uint32_t p1, int n_left, int lane)
{
    typedef shape<D, BITS> sh;
    uint32_t w[sh::WORDS], a[4];
    load_words<sh::WORDS>(w, v, lane);
    if (BITS == 16 && n_left < GROUP) {
        const int t = lane % 4 * 2;
        const uint32_t low = (t < n_left ? 0xffffu : 0) | (t + 1 < n_left ? 0xffff0000u : 0);
        const uint32_t high =
            (t + 8 < n_left ? 0xffffu : 0) | (t + 9 < n_left ? 0xffff0000u : 0);
#pragma unroll
        for (int i = 0; i < sh::WORDS; i++) w[i] &= i % 4 < 2 ? low : high;
    }
    const uint32_t p0_16 = BITS == 8 ? times_16(p0) : 0, p1_16 = BITS == 8 ? times_16(p1) : 0;
#pragma unroll
    for (int i = 0; i < sh::TILES; i++) {
        if (BITS == 16) {
            mma_bf16(s->o[i], w + 4 * i, p0, p1);
        } else if (BITS == 4) {
            expand(a, w[i]);
            mma_bf16(s->o[i], a, p0, p1);
        } else {
            expand(a, w[2 * i]);
            mma_bf16(s->o[i], a, p0, p1);
            expand(a, w[2 * i + 1]);
            mma_bf16(s->o[i], a, p0_16, p1_16);
        }
    }
}

/* Scale and zero of the lane's tokens lane / 4 and + 8. */
typedef struct grid_pair {
    float k_scale[2], v_scale[2], k_zero[2], v_zero[2];
} grid_pair;

DEV float byte_minus(uint32_t word, int i, float base)
{
    return __uint_as_float(__byte_perm(word, 0x4b000000u, 0x7440 + i)) - base;
}

template <int BITS> DEV grid_pair load_grid(uint32_t meta, int lane)
{
    grid_pair p;
    if (BITS == 16) {
#pragma unroll
        for (int i = 0; i < 2; i++)
            p.k_scale[i] = p.v_scale[i] = 1, p.k_zero[i] = p.v_zero[i] = 0;
        return p;
    }
    /* a code's fragments hold 16 + nibble: 16 more, and 16 * 16 more at 8 bits */
    const float base = 8388608.0f - (BITS == 4 ? 16 : 272);
    const uint32_t k = lds32(meta + lane / 4 * 4), v = lds32(meta + 32 + lane / 4 * 4),
                   z = lds32(meta + 64 + lane / 4 * 4);
    const float2 ks = __half22float2(*(const __half2 *)&k),
                 vs = __half22float2(*(const __half2 *)&v);
    p.k_scale[0] = ks.x, p.k_scale[1] = ks.y;
    p.v_scale[0] = vs.x, p.v_scale[1] = vs.y;
    p.k_zero[0] = byte_minus(z, 0, base), p.k_zero[1] = byte_minus(z, 1, base);
    p.v_zero[0] = byte_minus(z, 2, base), p.v_zero[1] = byte_minus(z, 3, base);
    return p;
}

/* A larger m: the maximum over the group's tokens. */
template <int D> DEV void raise_max(state<D> *s, const float *x)
{
#pragma unroll
    for (int i = 0; i < 2; i++) {
        float m = fmaxf(s->m[i], fmaxf(x[i], x[i + 2]));
#pragma unroll
        for (int j = 4; j < 32; j *= 2) m = fmaxf(m, __shfl_xor_sync(~0u, m, j));
        const float c = exp2_fast(s->m[i] - m);
        s->m[i] = m;
        s->l[i] *= c;
        s->z[i] *= c;
#pragma unroll
        for (int t = 0; t < D / 16; t++) s->o[t][i] *= c, s->o[t][i + 2] *= c;
    }
}

/* One group of which the first n_left tokens count (more than 16: all). */
template <int D, int BITS>
DEV void add_group(state<D> *s, uint32_t at, int n_left, float scale, int lane)
{
    typedef shape<D, BITS> sh;
    const grid_pair g = load_grid<BITS>(at + 2 * sh::HALF_BYTES, lane);
    float x[4], p[4];
    uint32_t b[2];
    dot_keys<D, BITS>(x, s, at, lane);
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const int t = i / 2;
        x[i] = fmaf(-g.k_zero[t], s->q_sum[i % 2], x[i]) * (g.k_scale[t] * scale);
        if (lane / 4 + 8 * t >= n_left) x[i] = -INFINITY;
    }
    const bool above =
        fmaxf(x[0], x[2]) > s->m[0] + SLACK || fmaxf(x[1], x[3]) > s->m[1] + SLACK;
    if (__any_sync(~0u, above)) raise_max(s, x);
#pragma unroll
    for (int i = 0; i < 4; i++) {
        p[i] = exp2_fast(x[i] - s->m[i % 2]);
        s->l[i % 2] += p[i];
        p[i] = x[i] == -INFINITY ? 0 : p[i] * g.v_scale[i / 2];
    }
#pragma unroll
    for (int t = 0; t < 2; t++) {
        b[t] = bf16x2(p[2 * t], p[2 * t + 1]);
        if (BITS < 16) {
            s->z[0] = fmaf(low_half(b[t]), g.v_zero[t], s->z[0]);
            s->z[1] = fmaf(high_half(b[t]), g.v_zero[t], s->z[1]);
        }
        b[t] = transpose_8x8(b[t]);
    }
    add_values<D, BITS>(s, at + sh::HALF_BYTES, b[0], b[1], n_left, lane);
}

/* Totals over the lanes of a head, and the zero points taken off. */
template <int D> DEV void close_segment(state<D> *s)
{
#pragma unroll
    for (int i = 0; i < 2; i++) {
#pragma unroll
        for (int j = 4; j < 32; j *= 2) {
            s->l[i] += __shfl_xor_sync(~0u, s->l[i], j);
            s->z[i] += __shfl_xor_sync(~0u, s->z[i], j);
        }
#pragma unroll
        for (int t = 0; t < D / 16; t++) s->o[t][i] -= s->z[i], s->o[t][i + 2] -= s->z[i];
    }
}

DEV void put_output(const decode_args *g, int b, int kv_head, int h, int d, float value)
{
    const int64_t at = ((int64_t)b * g->a.n_heads + kv_head * g->heads + h) * g->kv.D + d;
    if (g->a.y_bf16) ((uint16_t *)g->a.y)[at] = (uint16_t)bf16x2(value, 0.0f);
    else ((float *)g->a.y)[at] = value;
}

template <int D>
DEV void write_segment(const state<D> *s, const decode_args *g, const cursor *c, int lane)
{
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const int h = lane % 4 * 2 + i % 2;
        if (h >= g->heads) continue;
        const float r = 1.0f / s->l[i % 2];
#pragma unroll
        for (int t = 0; t < D / 16; t++)
            put_output(g, c->b, c->head, h, 16 * t + lane / 4 + i / 2 * 8, s->o[t][i] * r);
    }
}

template <int D> DEV void store_piece(const state<D> *s, float *piece, int lane)
{
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const int h = lane % 4 * 2 + i % 2;
#pragma unroll
        for (int t = 0; t < D / 16; t++)
            piece[h * D + 16 * t + lane / 4 + i / 2 * 8] = s->o[t][i];
        if (i < 2 && lane / 4 == 0) {
            piece[HEADS * D + h] = s->m[i];
            piece[HEADS * (D + 1) + h] = s->l[i];
        }
    }
}

/* ---- pieces ------------------------------------------------------------------------------ */

/* What a warp left: piece 0 of a segment begun before its run, piece 1 of one that goes on. */
typedef struct leftover {
    int64_t start; /* of the segment in the line; -1: none */
    const float *piece;
    int b, head, n;
} leftover;

/* Element e = h * D + d of pieces [n] merged in their order: o unnormalised, m, l. */
template <int D>
DEV void merge(float *o, float *m, float *l, const float *const *pieces, int n, int e)
{
    const int h = e / D;
    *m = -INFINITY;
    *o = *l = 0;
#pragma unroll 4
    for (int i = 0; i < n; i++) *m = fmaxf(*m, __ldcg(pieces[i] + HEADS * D + h));
#pragma unroll 4
    for (int i = 0; i < n; i++) {
        const float c = exp2_fast(__ldcg(pieces[i] + HEADS * D + h) - *m);
        *l = fmaf(c, __ldcg(pieces[i] + HEADS * (D + 1) + h), *l);
        *o = fmaf(c, __ldcg(pieces[i] + e), *o);
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

/* This CTA's piece of a segment that spans CTAs is stored; the last CTA writes the output. */
template <int D>
DEV void finish_segment(const decode_args *g, const leftover *f, line all, const float **list,
                        int *last)
{
    typedef shape<D, 4> sh;
    const int first = cta_of(all, f->start), end = cta_of(all, f->start + f->n - 1) + 1;
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) {
        uint32_t *counter = g->arrived + (int64_t)f->b * g->kv.n_kv_heads + f->head;
        *last = atomicAdd(counter, 1) == (uint32_t)(end - first - 1);
        if (*last) *counter = 0;
        __threadfence();
    }
    for (int i = threadIdx.x; i < end - first; i += N_THREADS) {
        const int slot = cta_begin(all, first + i) > f->start ? 0 : 1;
        list[i] = g->partials + (int64_t)(2 * (first + i) + slot) * sh::PIECE;
    }
    __syncthreads();
    if (*last)
        for (int e = threadIdx.x; e < g->heads * D; e += N_THREADS) {
            float o, m, l;
            merge<D>(&o, &m, &l, list, end - first, e);
            put_output(g, f->b, f->head, e / D, e % D, o / l);
        }
    __syncthreads();
}

template <int D>
DEV void merge_run(const decode_args *g, const leftover *f, const float **list, int n, line all,
                   int *last)
{
    typedef shape<D, 4> sh;
    const int64_t begin = cta_begin(all, blockIdx.x), end = cta_begin(all, blockIdx.x + 1);
    const bool whole = f->start >= begin && f->start + f->n <= end;
    float *piece = g->partials + (int64_t)(2 * blockIdx.x + (f->start >= begin)) * sh::PIECE;
    for (int e = threadIdx.x; e < g->heads * D; e += N_THREADS) {
        const int h = e / D;
        float o = 0, m = -INFINITY, l = 0;
        for (int i = 0; i < n; i++) m = fmaxf(m, list[i][HEADS * D + h]);
        for (int i = 0; i < n; i++) {
            const float c = exp2_fast(list[i][HEADS * D + h] - m);
            l = fmaf(c, list[i][HEADS * (D + 1) + h], l);
            o = fmaf(c, list[i][e], o);
        }
        if (whole) {
            put_output(g, f->b, f->head, h, e % D, o / l);
            continue;
        }
        piece[e] = o;
        if (e % D == 0) {
            piece[HEADS * D + h] = m;
            piece[HEADS * (D + 1) + h] = l;
        }
    }
    __syncthreads();
    if (!whole) finish_segment<D>(g, f, all, list, last);
}

/* ---- the warp's run ---------------------------------------------------------------------- */

template <int D, int BITS>
DEV void run_line(const decode_args *g, line all, uint8_t *ring, uint32_t bars, leftover *left,
                  int lane)
{
    typedef shape<D, BITS> sh;
    const int64_t begin = cta_begin(all, blockIdx.x),
                  n_cta = cta_begin(all, blockIdx.x + 1) - begin;
    const int warp = threadIdx.x / 32;
    const int64_t w0 = begin + n_cta * warp / N_WARPS,
                  w1 = begin + n_cta * (warp + 1) / N_WARPS;
    const int n = (int)(w1 - w0);
    const uint32_t slots = smem_addr(ring);
    int64_t start = 0;
    state<D> s;
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
    open_segment<D>(&s, g, &c, lane);
    int n_tokens = g->a.n_tokens[c.b];
    for (int i = 0; i < n; i++) {
        const bool more = n_ahead < n;
        const int page = more && lane == 0 ? page_of(g, &ahead) : 0;
        mbar_wait(bars + 8 * slot, parity);
        add_group<D, BITS>(&s, slots + slot * sh::BYTES, n_tokens - c.j * GROUP, g->scale_log2,
                           lane);
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
        close_segment<D>(&s);
        if (whole && ends) {
            write_segment<D>(&s, g, &c, lane);
        } else {
            /* the ring is free at the end of the run only */
            float *to = i == n - 1 ? (float *)ring
                                   : g->warp_pieces +
                                         (int64_t)(blockIdx.x * N_WARPS + warp) * sh::PIECE;
            store_piece<D>(&s, to, lane);
            if (lane == 0) left[2 * warp + whole] = {w0 + i - c.j, to, c.b, c.head, c.n};
        }
        if (i == n - 1) break;
        advance(&c, g);
        whole = true;
        open_segment<D>(&s, g, &c, lane);
        n_tokens = g->a.n_tokens[c.b];
    }
}

template <int D, int BITS>
__global__ __launch_bounds__(N_THREADS,
                             1) void decode_kernel(const __grid_constant__ decode_args g)
{
    typedef shape<D, BITS> sh;
    extern __shared__ __align__(128) uint8_t raw[];
    __shared__ uint64_t bars[N_WARPS * MAX_SLOTS];
    __shared__ leftover left[2 * N_WARPS];
    __shared__ const float *list[MAX_CTAS];
    __shared__ int last;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int ring_bytes = g.n_slots * sh::BYTES;
    const uint32_t my_bars = smem_addr(bars + warp * MAX_SLOTS);
    if (lane == 0) {
#pragma unroll 1
        for (int i = 0; i < g.n_slots; i++) mbar_init(my_bars + 8 * i, 1);
        mbar_init_fence();
        left[2 * warp].start = left[2 * warp + 1].start = -1;
    }
    __syncwarp();
    const line all = measure(&g, lane);
    if ((int)blockIdx.x >= all.n_ctas) return;
    run_line<D, BITS>(&g, all, raw + warp * ring_bytes, my_bars, left, lane);
    __syncthreads();
    for (int i = 0; i < 2 * N_WARPS;) {
        const leftover f = left[i];
        int n = 0, j = i;
        for (; j < 2 * N_WARPS && (left[j].start < 0 || left[j].start == f.start); j++) {
            if (left[j].start < 0) continue;
            if (threadIdx.x == 0) list[n] = left[j].piece;
            n++;
        }
        i = f.start < 0 ? i + 1 : j;
        if (f.start < 0) continue;
        __syncthreads();
        merge_run<D>(&g, &f, list, n, all, &last);
        __syncthreads();
    }
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
           (size_t)n_sm * (2 + N_WARPS) * HEADS * (size_t)(D + 2) * sizeof(float);
}

template <int D, int BITS>
static cudaError_t launch(decode_args *g, int n_sm, cudaStream_t stream)
{
    typedef shape<D, BITS> sh;
    g->n_slots = FL_MIN((SMEM_MAX - 8192) / N_WARPS / sh::BYTES, (int)MAX_SLOTS);
    const int n_bytes = N_WARPS * g->n_slots * sh::BYTES;
    n_sm = FL_MIN(n_sm, (int)MAX_CTAS);
    g->warp_pieces = g->partials + (int64_t)n_sm * 2 * sh::PIECE;
    const cudaError_t e = cudaFuncSetAttribute(
        decode_kernel<D, BITS>, cudaFuncAttributeMaxDynamicSharedMemorySize, n_bytes);
    if (e != cudaSuccess) return e;
    decode_kernel<D, BITS><<<n_sm, N_THREADS, n_bytes, stream>>>(*g);
    return cudaGetLastError();
}

template <int D> static cudaError_t launch_bits(decode_args *g, int n_sm, cudaStream_t stream)
{
    if (g->kv.bits == 4) return launch<D, 4>(g, n_sm, stream);
    if (g->kv.bits == 8) return launch<D, 8>(g, n_sm, stream);
    if (g->kv.bits == 16) return launch<D, 16>(g, n_sm, stream);
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
    if (g.heads >= 1 && g.heads <= HEADS) {
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
