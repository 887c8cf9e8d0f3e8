/* attention_merge.h - pieces of a segment, (o unnormalised, m, l) each, to its sum.
 *
 * A piece is 4 SETS rows of o [D], then their m, then their l. A team, a thread per four
 * neighbouring values of a piece, in whole warps, merges a segment; teams merge several at a
 * time. Its warps share the heads and weigh the pieces for them, then each thread adds up its
 * values. All loads of a batch are in flight together, the first batch's before the weights are
 * there: what a merge costs is latency.
 * SPDX-License-Identifier: MIT */
#ifndef FL_CUDA_ATTENTION_MERGE_H
#define FL_CUDA_ATTENTION_MERGE_H

#include "cuda/attention_sm90.h"

enum { MAX_CHUNK = 64, TEAM_BARRIER = 1 }; /* pieces weighed at a time */

template <int WARPS, int D, int SETS> struct merge_shape {
    static constexpr int PIECE = 4 * SETS * (D + 2); /* floats */
    static constexpr int QUADS = SETS * D;
    static constexpr int TEAM_WARPS = (QUADS + 31) / 32;
    static constexpr int TEAMS = WARPS / TEAM_WARPS;
    static_assert(TEAMS >= 1, "threads");
};

/* A team's. */
template <int SETS> struct merge_room {
    float weight[MAX_CHUNK][4 * SETS], factor[4 * SETS], m[4 * SETS], l[4 * SETS];
};

/* In their order: listed, or one and then others at equal distances of two pieces. */
typedef struct pieces {
    const float *const *list;
    const float *first, *rest;
    int n;
} pieces;

template <int PIECE> DEV const float *piece_at(const pieces *p, int i)
{
    if (p->list) return p->list[i];
    return i == 0 ? p->first : p->rest + (int64_t)(i - 1) * (2 * PIECE);
}

/* Of another thread, in shared or global memory, past the first-level cache. */
DEV float load_fresh(const float *from)
{
    float v;
    asm volatile("ld.relaxed.gpu.f32 %0, [%1];" : "=f"(v) : "l"(from) : "memory");
    return v;
}

DEV float4 load_fresh_quad(const float *from)
{
    float4 v;
    asm volatile("ld.relaxed.gpu.v4.f32 {%0, %1, %2, %3}, [%4];"
                 : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w)
                 : "l"(from)
                 : "memory");
    return v;
}

DEV float reciprocal(float x)
{
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

/* The weights of pieces i0 .. i0 + CHUNK - 1 for head h; m and l go on. One warp. */
template <int CHUNK, int D, int SETS>
DEV void weigh(merge_room<SETS> *room, const pieces *p, int i0, int h, int lane)
{
    constexpr int PIECE = 4 * SETS * (D + 2), N = CHUNK / 32;
    const float m = i0 ? room->m[h] : -INFINITY, l = i0 ? room->l[h] : 0;
    float mi[N], li[N], top = m, sum = 0;
#pragma unroll
    for (int k = 0; k < N; k++) {
        const int i = i0 + lane + 32 * k;
        mi[k] = -INFINITY, li[k] = 0;
        if (i >= p->n) continue;
        const float *from = piece_at<PIECE>(p, i) + 4 * SETS * D + h;
        mi[k] = load_fresh(from), li[k] = load_fresh(from + 4 * SETS);
    }
#pragma unroll
    for (int k = 0; k < N; k++) top = fmaxf(top, mi[k]);
#pragma unroll
    for (int j = 16; j > 0; j /= 2) top = fmaxf(top, __shfl_xor_sync(~0u, top, j));
#pragma unroll
    for (int k = 0; k < N; k++) {
        const float c = exp2_fast(mi[k] - top);
        room->weight[lane + 32 * k][h] = c;
        sum = fmaf(c, li[k], sum);
    }
#pragma unroll
    for (int j = 16; j > 0; j /= 2) sum += __shfl_xor_sync(~0u, sum, j);
    if (lane) return;
    const float factor = exp2_fast(m - top);
    room->factor[h] = factor;
    room->m[h] = top;
    room->l[h] = fmaf(l, factor, sum);
}

/* The sum of the pieces, unnormalised: values 4 t .. 4 t + 3 of [heads][D] in thread t of the
 * team; m and l are left in the room. All threads of the team. */
template <int CHUNK, int BATCH, int WARPS, int D, int SETS>
DEV float4 merge(merge_room<SETS> *room, const pieces *p, int heads, int team, int t)
{
    typedef merge_shape<WARPS, D, SETS> sh;
    const int h = 4 * t / D;
    const bool works = h < heads;
    float4 o = {}, v[BATCH];
#pragma unroll 1
    for (int i0 = 0; i0 < p->n; i0 += CHUNK) {
        const int n = min(p->n - i0, CHUNK);
#pragma unroll 1
        for (int i = 0; i < n; i += BATCH) {
#pragma unroll
            for (int k = 0; k < BATCH; k++)
                v[k] = load_fresh_quad(piece_at<sh::PIECE>(p, i0 + min(i + k, n - 1)) +
                                       (works ? 4 * t : 0));
            if (i == 0) {
                named_barrier(TEAM_BARRIER + team, 32 * sh::TEAM_WARPS); /* the last use */
#pragma unroll 1
                for (int w = t / 32; w < heads; w += sh::TEAM_WARPS)
                    weigh<CHUNK, D, SETS>(room, p, i0, w, t % 32);
                named_barrier(TEAM_BARRIER + team, 32 * sh::TEAM_WARPS);
                const float f = works ? room->factor[h] : 0;
                o.x *= f, o.y *= f, o.z *= f, o.w *= f;
            }
#pragma unroll
            for (int k = 0; k < BATCH; k++) {
                const float c = works && i + k < n ? room->weight[i + k][h] : 0;
                o.x = fmaf(c, v[k].x, o.x), o.y = fmaf(c, v[k].y, o.y);
                o.z = fmaf(c, v[k].z, o.z), o.w = fmaf(c, v[k].w, o.w);
            }
        }
    }
    return o;
}

#endif
