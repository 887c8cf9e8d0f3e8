/* attention_sm90.h - fragments of bf16 products: expanding codes, multiplying, transposing.
 *
 * mma.sync m16n8k16, lane l, r = l / 4, q = l % 4:
 *   A  a0 = A[r][2q..2q+1]  a1 = A[r+8][same]  a2 = A[r][2q+8..2q+9]  a3 = A[r+8][same]
 *   B  b0 = B[2q..2q+1][r]  b1 = B[2q+8..2q+9][r]
 *   D  d0 = D[r][2q]  d1 = D[r][2q+1]  d2, d3: row r+8
 * SPDX-License-Identifier: MIT */
#ifndef FL_CUDA_ATTENTION_SM90_H
#define FL_CUDA_ATTENTION_SM90_H

#include "cuda/sm90.h"

DEV uint32_t lds32(uint32_t addr)
{
    uint32_t v;
    asm volatile("ld.shared.u32 %0, [%1];" : "=r"(v) : "r"(addr) : "memory");
    return v;
}

template <int N> DEV void load_words(uint32_t *w, uint32_t addr, int lane)
{
#pragma unroll
    for (int i = 0; i < N / 4; i++) lds128(w + 4 * i, addr + i * 512 + lane * 16);
#pragma unroll
    for (int i = N / 4 * 4; i < N; i++) w[i] = lds32(addr + i * 128 + lane * 4);
}

/* Eight nibbles to the A fragment of 16 + nibble. */
DEV void expand(uint32_t *a, uint32_t w)
{
    a[0] = (w << 3 & 0x00780078u) | 0x41804180u;
    a[1] = (w >> 1 & 0x00780078u) | 0x41804180u;
    a[2] = (w >> 5 & 0x00780078u) | 0x41804180u;
    a[3] = (w >> 9 & 0x00780078u) | 0x41804180u;
}

/* d[16 x 8] += A[16 x 16] * B[16 x 8] of one warp, bf16. */
DEV void mma_bf16(float *d, const uint32_t *a, uint32_t b0, uint32_t b1)
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, "
                 "{%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/* d[16 x 8] += A[16 x 32] * B[32 x 8] of one warp, uint8 by int8: a0 = A[r][4q..4q+3], a1 = row
 * r + 8, a2, a3 = k + 16; b0 = B[4q..4q+3][r], b1 = k + 16. */
DEV void mma_u8s8(int *d, const uint32_t *a, uint32_t b0, uint32_t b1)
{
    asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 {%0, %1, %2, %3}, "
                 "{%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/* The same of k = 0..15. */
DEV void mma_u8s8_k16(int *d, const uint32_t *a, uint32_t b0)
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.s32.u8.s8.s32 {%0, %1, %2, %3}, "
                 "{%4, %5}, {%6}, {%0, %1, %2, %3};"
                 : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(b0));
}

DEV uint32_t transpose_8x8(uint32_t v)
{
    uint32_t out;
    asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(out) : "r"(v));
    return out;
}

DEV uint32_t times_16(uint32_t v)
{
    uint32_t out;
    asm("mul.rn.bf16x2 %0, %1, %2;" : "=r"(out) : "r"(v), "r"(0x41804180u));
    return out;
}

DEV float exp2_fast(float x)
{
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

DEV float low_half(uint32_t v)
{
    return __uint_as_float(v << 16);
}

DEV float high_half(uint32_t v)
{
    return __uint_as_float(v & 0xffff0000u);
}

#endif
