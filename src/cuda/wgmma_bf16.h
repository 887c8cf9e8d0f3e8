/* wgmma_bf16.h - wgmma on bfloat16 with A in registers, float32 sums.
 *
 * d[64 x N] = (keep ? d : 0) + A[64 x 16] * B[16 x N], B in shared memory as wgmma_desc
 * describes it (rows n of 128 bytes along k; a k16 step is + 2). Warp w of the warpgroup, lane
 * l, r = 16 w + l / 4, q = l % 4:
 *   A  a0 = A[r][2q..2q+1]  a1 = A[r+8][same]  a2 = A[r][2q+8..]  a3 = A[r+8][2q+8..]
 *   D  d[4i] = D[r][8i+2q]  d[4i+1] = D[r][8i+2q+1]  d[4i+2], d[4i+3]: row r+8
 * so that D rounded to pairs of bf16 is A of a next product.
 * SPDX-License-Identifier: MIT */
#ifndef FL_CUDA_WGMMA_BF16_H
#define FL_CUDA_WGMMA_BF16_H

#include "cuda/sm90.h"

#define F8(i)                                                                                  \
    "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]),                \
        "+f"(d[i + 5]), "+f"(d[i + 6]), "+f"(d[i + 7])
#define F4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define F32(i) F8(i), F8(i + 8), F8(i + 16), F8(i + 24)
#define P44 P32_0 "," P8(32, 33, 34, 35, 36, 37, 38, 39) ",%40,%41,%42,%43"
#define P48                                                                                    \
    P32_0 "," P8(32, 33, 34, 35, 36, 37, 38, 39) "," P8(40, 41, 42, 43, 44, 45, 46, 47)
#define P56 P48 "," P8(48, 49, 50, 51, 52, 53, 54, 55)
#define WGMMA_BF16(n, regs, a0, a1, a2, a3, b, s)                                              \
    "{\n.reg .pred keep;\nsetp.ne.b32 keep, %" #s ", 0;\n"                                     \
    "wgmma.mma_async.sync.aligned.m64n" #n "k16.f32.bf16.bf16 {" regs "}, {%" #a0 ",%" #a1     \
    ",%" #a2 ",%" #a3 "}, %" #b ", keep, 1, 1, 0;\n}"

template <int N> DEV void wgmma_bf16(float *d, const uint32_t *a, uint64_t desc, int keep)
{
    static_assert(N == 64 || N == 88 || N == 96 || N == 112 || N == 128, "no such tile");
    if constexpr (N == 64)
        asm volatile(WGMMA_BF16(64, P32_0, 32, 33, 34, 35, 36, 37) : F32(0) : WGMMA_IN);
    if constexpr (N == 88)
        asm volatile(WGMMA_BF16(88, P44, 44, 45, 46, 47, 48, 49)
                     : F32(0), F8(32), F4(40)
                     : WGMMA_IN);
    if constexpr (N == 96)
        asm volatile(WGMMA_BF16(96, P48, 48, 49, 50, 51, 52, 53)
                     : F32(0), F8(32), F8(40)
                     : WGMMA_IN);
    if constexpr (N == 112)
        asm volatile(WGMMA_BF16(112, P56, 56, 57, 58, 59, 60, 61)
                     : F32(0), F8(32), F8(40), F8(48)
                     : WGMMA_IN);
    if constexpr (N == 128)
        asm volatile(WGMMA_BF16(128, P32_0 "," P32_1, 64, 65, 66, 67, 68, 69)
                     : F32(0), F32(32)
                     : WGMMA_IN);
}

#endif
