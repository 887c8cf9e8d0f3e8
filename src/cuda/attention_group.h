/* attention_group.h - one warp, groups of 16 tokens: scores, softmax, values.
 *
 * S^T [16 tokens, 8 columns] = K q^T, then O^T [D, 8 columns] += V^T P^T, so that codes are the
 * A operand as they lie and the query heads of a KV head (its GQA group) the columns.
 *
 * K codes are uint8 operands, two bit operations for eight of 4 bits, none at 8 bits. q is
 * rounded to 16 bits of its head's largest |q|: 256 hi + lo, both int8, neighbouring columns of
 * one product. Lane l, r = l / 4, h = l % 4 then has the tokens r and r + 8 of the heads h and
 * (SETS = 2: groups of more than 4) h + 4. Sums are exact; scale and zero stay outside:
 *   s = (sum code q - zero sum q) * scale * unit
 * V codes become bf16 by masking alone: small integers are bf16 numbers with an exponent of 0
 * or 1, n 2^-133. p carries 2^BIAS in exchange. Low nibbles are rows 0..7 of a fragment and
 * count once, high nibbles 8..15 and count 16 times; what is left to do is done at the end.
 *   o = sum p' code - sum p' zero,   p' = bf16(p * scale)
 * With SETS = 1 the columns 2 h and 2 h + 1 of O have the tokens 0..7 and 8..15.
 *
 * m follows the maximum lazily: o is rescaled only when a score exceeds m by 2^SLACK.
 *
 * A bf16 cache takes bf16 products; column 2 h + i is head h + 4 i.
 * SPDX-License-Identifier: MIT */
#ifndef FL_CUDA_ATTENTION_GROUP_H
#define FL_CUDA_ATTENTION_GROUP_H

#include "cuda/attention_cuda.h"

#include "cuda/attention_sm90.h"

#include <cuda_fp16.h>

enum { GROUP = FL_CUDA_KV_GROUP, SLACK = 8, Q_MAX = 127 * 256 };

template <int D, int BITS> struct shape {
    static constexpr int WORDS = D * BITS / 64; /* of K, and of V, per lane */
    static constexpr int HALF_BYTES = WORDS * 128;
    static constexpr int BYTES = 2 * HALF_BYTES + (BITS < 16 ? 96 : 0);
    static constexpr int TILES = D / 16;
    static constexpr int BIAS = BITS < 16 ? 64 : 0;
};

/* The lane's part of a segment; m is such that p = 2^(x - m). */
template <int D, int BITS, int SETS> struct state {
    uint32_t q[BITS < 16 ? SETS * D / 16 : D / 8];
    int q_sum[SETS];
    float unit[SETS]; /* of q, times the scale of scores */
    float o[D / 16][4];
    float m[SETS], l[SETS], z[SETS];
};

/* q[d], q[d + 1] as bf16 of the row that begins at `at`. */
DEV uint32_t load_q_pair(const void *q, bool q_bf16, int64_t at)
{
    if (q_bf16) return *(const uint32_t *)((const uint16_t *)q + at);
    const float2 f = *(const float2 *)((const float *)q + at);
    return bf16x2(f.x, f.y);
}

/* The lane's part of q for a segment whose first query head lies at `at`: of the head of its
 * column, pairs in the order of the B operands; zeros for heads that are not there. */
template <int D, int BITS, int SETS>
DEV void load_q(uint32_t *v, const void *q, bool q_bf16, int64_t at, int heads, int lane)
{
    const int column = lane / 4, r = lane % 4;
#pragma unroll
    for (int j = 0; j < (BITS < 16 ? SETS : 1); j++) {
        const int h = column / 2 + (BITS < 16 ? 4 * j : column % 2 * 4);
#pragma unroll
        for (int i = 0; i < D / 8; i++) {
            const int d = BITS == 8 ? i / 2 * 16 + r * 4 + i % 2 * 2 : 8 * i + r * 2;
            v[j * (D / 8) + i] = h < heads ? load_q_pair(q, q_bf16, at + h * D + d) : 0;
        }
    }
}

/* Four numbers of 16 bits to a digit each. */
DEV uint32_t pack_digits(const int *v, bool low)
{
    uint32_t out = 0;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const int high = (v[i] + 128) >> 8;
        out |= (uint32_t)((low ? v[i] - 256 * high : high) & 0xff) << 8 * i;
    }
    return out;
}

/* B operands of a head, in column lane / 4 the digit lane / 4 % 2; v from load_q. */
template <int D, int BITS>
DEV void digits_of_q(uint32_t *digits, int *sum, float *unit, const uint32_t *v, int lane)
{
    float top = 0;
    int total = 0;
#pragma unroll
    for (int i = 0; i < D / 8; i++)
        top = fmaxf(top, fmaxf(fabsf(low_half(v[i])), fabsf(high_half(v[i]))));
    top = fmaxf(top, __shfl_xor_sync(~0u, top, 1));
    top = fmaxf(top, __shfl_xor_sync(~0u, top, 2));
    const float inv = top > 0 ? Q_MAX / top : 0;
#pragma unroll
    for (int i = 0; i < D / 16; i++) {
        int n[4];
        n[0] = __float2int_rn(low_half(v[2 * i]) * inv);
        n[BITS == 4 ? 2 : 1] = __float2int_rn(high_half(v[2 * i]) * inv);
        n[BITS == 4 ? 1 : 2] = __float2int_rn(low_half(v[2 * i + 1]) * inv);
        n[3] = __float2int_rn(high_half(v[2 * i + 1]) * inv);
        digits[i] = pack_digits(n, lane / 4 % 2);
        total += n[0] + n[1] + n[2] + n[3];
    }
    total += __shfl_xor_sync(~0u, total, 1);
    *sum = total + __shfl_xor_sync(~0u, total, 2);
    *unit = top / Q_MAX;
}

/* The segment's start; v from load_q. */
template <int D, int BITS, int SETS>
DEV void open_segment(state<D, BITS, SETS> *s, const uint32_t *v, float scale, int lane)
{
#pragma unroll
    for (int i = 0; i < SETS; i++) {
        s->m[i] = -INFINITY;
        s->l[i] = s->z[i] = 0;
        s->q_sum[i] = 0;
        s->unit[i] = scale;
    }
    if (BITS < 16) {
#pragma unroll
        for (int i = 0; i < SETS; i++) {
            int sum;
            float unit;
            digits_of_q<D, BITS>(s->q + i * (D / 16), &sum, &unit, v + i * (D / 8), lane);
            s->q_sum[i] = __shfl_sync(~0u, sum, lane % 4 * 8);
            s->unit[i] = __shfl_sync(~0u, unit, lane % 4 * 8) * scale;
        }
    } else {
#pragma unroll
        for (int i = 0; i < D / 8; i++) s->q[i] = v[i];
    }
#pragma unroll
    for (int i = 0; i < D / 16; i++)
#pragma unroll
        for (int j = 0; j < 4; j++) s->o[i][j] = 0;
}

/* ---- products ---------------------------------------------------------------------------- */

/* x[set][i]: products of q with the codes of token r + 8 i, less its zero; 16 times that for
 * i = 1 at 4 bits. */
template <int D, int BITS, int SETS>
DEV void dot_codes(float x[SETS][2], const state<D, BITS, SETS> *s, uint32_t k, uint32_t zeros,
                   int lane)
{
    typedef shape<D, BITS> sh;
    uint32_t w[sh::WORDS];
    int acc[2 * SETS][4] = {};
    load_words<sh::WORDS>(w, k, lane);
#pragma unroll
    for (int i = 0; i < sh::TILES; i += 2) {
        uint32_t a[4] = {};
#pragma unroll
        for (int j = 0; j < 2 && i + j < sh::TILES; j++) {
            if (BITS == 4) {
                a[2 * j] = w[i + j] & 0x0f0f0f0fu;
                a[2 * j + 1] = w[i + j] & 0xf0f0f0f0u;
            } else {
                a[2 * j] = w[2 * (i + j)];
                a[2 * j + 1] = w[2 * (i + j) + 1];
            }
        }
#pragma unroll
        for (int j = 0; j < SETS; j++) {
            const uint32_t *q = s->q + j * (D / 16) + i;
            int *to = acc[2 * j + i / 2 % 2];
            if (i + 1 < sh::TILES) mma_u8s8(to, a, q[0], q[1]);
            else mma_u8s8_k16(to, a, q[0]);
        }
    }
#pragma unroll
    for (int j = 0; j < SETS; j++)
#pragma unroll
        for (int i = 0; i < 2; i++) {
            const int *u = acc[2 * j], *v = acc[2 * j + 1];
            const int zero = (int)(zeros >> 8 * i & 0xff) << (BITS == 4 && i ? 4 : 0);
            const int sum = (u[2 * i] + v[2 * i]) * 256 + u[2 * i + 1] + v[2 * i + 1];
            x[j][i] = __int2float_rn(sum - zero * s->q_sum[j]);
        }
}

template <int D, int SETS>
DEV void dot_floats(float x[SETS][2], const state<D, 16, SETS> *s, uint32_t k, int lane)
{
    typedef shape<D, 16> sh;
    float acc[2][4] = {};
    uint32_t w[sh::WORDS];
    load_words<sh::WORDS>(w, k, lane);
#pragma unroll
    for (int i = 0; i < sh::TILES; i++)
        mma_bf16(acc[i % 2], w + 4 * i, s->q[2 * i], s->q[2 * i + 1]);
#pragma unroll
    for (int j = 0; j < SETS; j++)
#pragma unroll
        for (int i = 0; i < 2; i++) x[j][i] = acc[0][2 * i + j] + acc[1][2 * i + j];
}

/* o += V^T P^T; bf16 values of tokens past the end are taken out, whatever they hold. */
template <int D, int BITS, int SETS>
DEV void add_values(state<D, BITS, SETS> *s, uint32_t v, uint32_t p0, uint32_t p1, int n_left,
                    int lane)
{
    typedef shape<D, BITS> sh;
    uint32_t w[sh::WORDS];
    load_words<sh::WORDS>(w, v, lane);
    if (BITS == 16 && n_left < GROUP) {
        const int t = lane % 4 * 2;
        const uint32_t low = (t < n_left ? 0xffffu : 0) | (t + 1 < n_left ? 0xffff0000u : 0);
        const uint32_t high =
            (t + 8 < n_left ? 0xffffu : 0) | (t + 9 < n_left ? 0xffff0000u : 0);
#pragma unroll
        for (int i = 0; i < sh::WORDS; i++) w[i] &= i % 4 < 2 ? low : high;
    }
#pragma unroll
    for (int i = 0; i < sh::TILES; i++) {
        uint32_t a[4];
#pragma unroll
        for (int j = 0; j < 4; j++) {
            if (BITS == 16) a[j] = w[4 * i + j];
            if (BITS == 8)
                a[j] = j % 2 ? __byte_perm(w[2 * i + j / 2], 0, 0x4341)
                             : w[2 * i + j / 2] & 0x00ff00ffu;
            if (BITS == 4) a[j] = w[i] >> j / 2 * 8 & (j % 2 ? 0x00f000f0u : 0x000f000fu);
        }
        mma_bf16(s->o[i], a, p0, p1);
    }
}

/* ---- a group ----------------------------------------------------------------------------- */

/* Scales of the tokens r and r + 8, V's zeros, and K's as they lie. */
typedef struct grid_pair {
    float k_scale[2], v_scale[2], v_zero[2];
    uint32_t k_zeros;
} grid_pair;

template <int BITS> DEV grid_pair load_grid(uint32_t meta, int lane)
{
    grid_pair p = {{1, 1}, {1, 1}, {0, 0}, 0};
    if (BITS == 16) return p;
    const uint32_t k = lds32(meta + lane / 4 * 4), v = lds32(meta + 32 + lane / 4 * 4);
    const float2 ks = __half22float2(*(const __half2 *)&k),
                 vs = __half22float2(*(const __half2 *)&v);
    p.k_zeros = lds32(meta + 64 + lane / 4 * 4);
    p.k_scale[0] = ks.x, p.k_scale[1] = BITS == 4 ? ks.y * 0.0625f : ks.y;
    p.v_scale[0] = vs.x, p.v_scale[1] = vs.y;
#pragma unroll
    for (int i = 0; i < 2; i++)
        p.v_zero[i] =
            __uint_as_float(__byte_perm(p.k_zeros, 0x4b000000u, 0x7440 + 2 + i)) - 8388608.0f;
    return p;
}

/* A larger m; `top` is the lane's largest score. */
template <int D, int BITS, int SETS>
DEV void raise_max(state<D, BITS, SETS> *s, const float *top)
{
    float c[SETS];
#pragma unroll
    for (int i = 0; i < SETS; i++) {
        float m = top[i];
#pragma unroll
        for (int j = 4; j < 32; j *= 2) m = fmaxf(m, __shfl_xor_sync(~0u, m, j));
        m = fmaxf(s->m[i], m - shape<D, BITS>::BIAS);
        c[i] = exp2_fast(s->m[i] - m);
        s->m[i] = m;
        s->l[i] *= c[i];
        s->z[i] *= c[i];
    }
#pragma unroll
    for (int t = 0; t < D / 16; t++)
#pragma unroll
        for (int j = 0; j < 4; j++) s->o[t][j] *= c[SETS == 1 ? 0 : j % 2];
}

/* p' to B operands: b[0] tokens 0..7, b[1] tokens 8..15; and the zeros' share. */
template <int D, int BITS, int SETS>
DEV void turn_p(uint32_t *b, state<D, BITS, SETS> *s, float p[SETS][2], const float *zero,
                int lane)
{
    if (SETS == 1) {
        const uint32_t v = bf16x2(p[0][0], p[0][1]);
        if (BITS < 16) s->z[0] += fmaf(low_half(v), zero[0], high_half(v) * zero[1]);
        const uint32_t t = transpose_8x8(v);
        b[0] = lane & 4 ? 0 : t;
        b[1] = lane & 4 ? t : 0;
    } else {
#pragma unroll
        for (int i = 0; i < 2; i++) {
            const uint32_t v = bf16x2(p[0][i], p[SETS - 1][i]);
            if (BITS < 16) {
                s->z[0] = fmaf(low_half(v), zero[i], s->z[0]);
                s->z[SETS - 1] = fmaf(high_half(v), zero[i], s->z[SETS - 1]);
            }
            b[i] = transpose_8x8(v);
        }
    }
}

/* UNIT neighbouring groups, of which the first n_left tokens count (1 at least; beyond them:
 * all). */
template <int UNIT, int D, int BITS, int SETS>
DEV void add_unit(state<D, BITS, SETS> *s, uint32_t at, int n_left, int lane)
{
    typedef shape<D, BITS> sh;
    grid_pair g[UNIT];
    float x[UNIT][SETS][2], top[SETS];
    bool above = false;
#pragma unroll
    for (int u = 0; u < UNIT; u++) {
        const uint32_t from = at + u * sh::BYTES;
        g[u] = load_grid<BITS>(from + 2 * sh::HALF_BYTES, lane);
        if constexpr (BITS == 16) dot_floats<D, SETS>(x[u], s, from, lane);
        else dot_codes<D, BITS, SETS>(x[u], s, from, g[u].k_zeros, lane);
#pragma unroll
        for (int j = 0; j < SETS; j++)
#pragma unroll
            for (int i = 0; i < 2; i++) x[u][j][i] *= g[u].k_scale[i] * s->unit[j];
    }
    if (n_left < UNIT * GROUP) {
#pragma unroll
        for (int i = 0; i < 2 * UNIT; i++) {
            if (lane / 4 + 8 * i < n_left) continue;
            g[i / 2].v_scale[i % 2] = 0;
#pragma unroll
            for (int j = 0; j < SETS; j++) x[i / 2][j][i % 2] = -INFINITY;
        }
    }
#pragma unroll
    for (int j = 0; j < SETS; j++) {
        top[j] = fmaxf(x[0][j][0], x[0][j][1]);
#pragma unroll
        for (int u = 1; u < UNIT; u++) top[j] = fmaxf(top[j], fmaxf(x[u][j][0], x[u][j][1]));
        above |= top[j] > s->m[j] + (SLACK + sh::BIAS);
    }
    if (__any_sync(~0u, above)) raise_max<D, BITS, SETS>(s, top);
#pragma unroll
    for (int u = 0; u < UNIT; u++) {
        uint32_t b[2];
#pragma unroll
        for (int j = 0; j < SETS; j++)
#pragma unroll
            for (int i = 0; i < 2; i++) {
                float *p = &x[u][j][i];
                *p = exp2_fast(*p - s->m[j]);
                s->l[j] += *p;
                if (BITS < 16) *p *= g[u].v_scale[i];
            }
        turn_p<D, BITS, SETS>(b, s, x[u], g[u].v_zero, lane);
        add_values<D, BITS, SETS>(s, at + u * sh::BYTES + sh::HALF_BYTES, b[0], b[1],
                                  n_left - u * GROUP, lane);
    }
}

/* Totals over the lanes of a head, zero points taken off, units restored (but for 2^BIAS, which
 * is in l too): o[t][2 i + j] is then row r + 8 i of fragment t, head lane % 4 + 4 j. */
template <int D, int BITS, int SETS> DEV void close_segment(state<D, BITS, SETS> *s)
{
#pragma unroll
    for (int i = 0; i < SETS; i++)
#pragma unroll
        for (int j = 4; j < 32; j *= 2) {
            s->l[i] += __shfl_xor_sync(~0u, s->l[i], j);
            s->z[i] += __shfl_xor_sync(~0u, s->z[i], j);
        }
#pragma unroll
    for (int t = 0; t < D / 16; t++)
#pragma unroll
        for (int i = 0; i < 2; i++) {
            float *o = s->o[t] + 2 * i;
            if (SETS == 1) o[0] += o[1];
#pragma unroll
            for (int j = 0; j < SETS && BITS < 16; j++) {
                const float up = BITS == 4 && i ? 0x1p62f : 0x1p66f;
                o[j] = fmaf(o[j] * up, 0x1p67f, -s->z[j]);
            }
        }
}

#endif
