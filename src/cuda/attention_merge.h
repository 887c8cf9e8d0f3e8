/* attention_merge.h - pieces of a segment, (o unnormalised, m, l) each, to its result.
 *
 * A piece is 4 SETS rows of o [D], then their m, then their l. All threads of a CTA merge: warp
 * h weighs the pieces for head h, then teams of SETS D threads, with four neighbouring values
 * each, add every TEAMS-th piece, and the teams' sums are added. All loads of a round are in
 * flight together, the first round's before the weights are there: what a merge costs is
 * latency.
 * SPDX-License-Identifier: MIT */
#ifndef FL_CUDA_ATTENTION_MERGE_H
#define FL_CUDA_ATTENTION_MERGE_H

#include "cuda/attention_sm90.h"

enum { CHUNK = 64, BATCH = 8 }; /* pieces weighed at a time, in flight per thread */

template <int WARPS, int D, int SETS> struct merge_shape {
    static constexpr int PIECE = 4 * SETS * (D + 2); /* floats */
    static constexpr int QUADS = SETS * D;
    static constexpr int TEAMS = 32 * WARPS / QUADS;
    static_assert(TEAMS >= 1, "threads");
};

template <int WARPS, int D, int SETS> struct merge_room {
    float weight[CHUNK][4 * SETS], factor[4 * SETS], m[4 * SETS], l[4 * SETS];
    float4 sum[(merge_shape<WARPS, D, SETS>::TEAMS - 1) * SETS * D + 1];
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

/* The weights of pieces i0 .. i0 + CHUNK - 1 for head h; *m and *l go on. One warp. */
template <int WARPS, int D, int SETS>
DEV void weigh(merge_room<WARPS, D, SETS> *room, const pieces *p, int i0, int h, float *m,
               float *l, int lane)
{
    constexpr int PIECE = merge_shape<WARPS, D, SETS>::PIECE;
    float mi[CHUNK / 32], li[CHUNK / 32], top = *m, sum = 0;
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

/* The sum of the pieces, unnormalised: values 4 t .. 4 t + 3 of [heads][D] in thread t; m and l
 * are left in the room. All threads. */
template <int WARPS, int D, int SETS>
DEV float4 merge(merge_room<WARPS, D, SETS> *room, const pieces *p, int heads)
{
    typedef merge_shape<WARPS, D, SETS> sh;
    constexpr int PIECE = sh::PIECE, TEAMS = sh::TEAMS, QUADS = sh::QUADS;
    constexpr int TURNS = (4 * SETS + WARPS - 1) / WARPS;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int team = threadIdx.x / QUADS, e = threadIdx.x % QUADS, h = 4 * e / D;
    const bool works = team < TEAMS && h < heads;
    float m[TURNS], l[TURNS];
    float4 o = {}, v[BATCH];
#pragma unroll
    for (int k = 0; k < TURNS; k++) m[k] = -INFINITY, l[k] = 0;
    for (int i0 = 0; i0 < p->n; i0 += CHUNK) {
        const int n = min(p->n - i0, (int)CHUNK);
        for (int i = 0; i < n; i += TEAMS * BATCH) {
#pragma unroll
            for (int k = 0; k < BATCH; k++) {
                const int at = i + team + TEAMS * k;
                v[k] = make_float4(0, 0, 0, 0);
                if (works && at < n)
                    v[k] = load_fresh_quad(piece_at<PIECE>(p, i0 + at) + 4 * e);
            }
            if (i == 0) {
                __syncthreads(); /* the room's last use */
#pragma unroll
                for (int k = 0; k < TURNS; k++)
                    if (warp + k * WARPS < heads)
                        weigh<WARPS, D, SETS>(room, p, i0, warp + k * WARPS, &m[k], &l[k],
                                              lane);
                __syncthreads();
                const float f = works ? room->factor[h] : 0;
                o.x *= f, o.y *= f, o.z *= f, o.w *= f;
            }
#pragma unroll
            for (int k = 0; k < BATCH; k++) {
                const int at = i + team + TEAMS * k;
                const float c = works && at < n ? room->weight[at][h] : 0;
                o.x = fmaf(c, v[k].x, o.x), o.y = fmaf(c, v[k].y, o.y);
                o.z = fmaf(c, v[k].z, o.z), o.w = fmaf(c, v[k].w, o.w);
            }
        }
    }
    if (TEAMS == 1) return o;
    if (team > 0 && team < TEAMS) room->sum[(team - 1) * QUADS + e] = o;
    __syncthreads();
    if (team > 0) return o;
#pragma unroll
    for (int k = 1; k < TEAMS; k++) {
        const float4 u = room->sum[(k - 1) * QUADS + e];
        o.x += u.x, o.y += u.y, o.z += u.z, o.w += u.w;
    }
    return o;
}

#endif
