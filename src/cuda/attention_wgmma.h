/* attention_wgmma.h - bf16 products of a warpgroup, float32 sums.
 *
 * A is [64, 16], from shared memory (K-major, 128-byte swizzle) or from registers; B is
 * [N, 16] in shared memory, K-major, described by sm90.h's wgmma_desc: a k16 step is + 2.
 * Warp w, lane l, r = 16 w + l / 4, q = l % 4:
 *   A  a0 = A[r][2q, 2q+1]  a1 = A[r+8][same]  a2 = A[r][2q+8, 2q+9]  a3 = A[r+8][same]
 *   D  d[4i] = D[r][8i+2q]  d[4i+1] = D[r][8i+2q+1]  d[4i+2], d[4i+3]: row r+8
 * SPDX-License-Identifier: MIT */
#ifndef FL_CUDA_ATTENTION_WGMMA_H
#define FL_CUDA_ATTENTION_WGMMA_H

#include "cuda/sm90.h"

#define F8(i)                                                                                  \
    "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]),                \
        "+f"(d[i + 5]), "+f"(d[i + 6]), "+f"(d[i + 7])
#define F32(i) F8(i), F8(i + 8), F8(i + 16), F8(i + 24)
#define P8_80  P8(32, 33, 34, 35, 36, 37, 38, 39)
#define WGMMA_BF16_SS(n, regs, a, b, s)                                                        \
    "{\n.reg .pred keep;\nsetp.ne.b32 keep, %" #s ", 0;\n"                                     \
    "wgmma.mma_async.sync.aligned.m64n" #n "k16.f32.bf16.bf16 {" regs "}, %" #a ", %" #b       \
    ", keep, 1, 1, 0, 0;\n}"
#define WGMMA_BF16_RS(n, regs, a0, a1, a2, a3, b, s)                                           \
    "{\n.reg .pred keep;\nsetp.ne.b32 keep, %" #s ", 0;\n"                                     \
    "wgmma.mma_async.sync.aligned.m64n" #n "k16.f32.bf16.bf16 {" regs "}, {%" #a0 ",%" #a1     \
    ",%" #a2 ",%" #a3 "}, %" #b ", keep, 1, 1, 0;\n}"

/* d[64 x 128] = (keep ? d : 0) + A * B. */
DEV void wgmma_bf16_shared(float *d, uint64_t a, uint64_t b, int keep)
{
    asm volatile(WGMMA_BF16_SS(128, P32_0 "," P32_1, 64, 65, 66)
                 : F32(0), F32(32)
                 : "l"(a), "l"(b), "r"(keep));
}

/* d[64 x N] = (keep ? d : 0) + A * B. */
template <int N> DEV void wgmma_bf16(float *d, const uint32_t *a, uint64_t b, int keep)
{
    static_assert(N == 64 || N == 80 || N == 128, "columns");
    if (N == 128)
        asm volatile(WGMMA_BF16_RS(128, P32_0 "," P32_1, 64, 65, 66, 67, 68, 69)
                     : F32(0), F32(32)
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(keep));
    else if (N == 80)
        asm volatile(WGMMA_BF16_RS(80, P32_0 "," P8_80, 40, 41, 42, 43, 44, 45)
                     : F32(0), F8(32)
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(keep));
    else
        asm volatile(WGMMA_BF16_RS(64, P32_0, 32, 33, 34, 35, 36, 37)
                     : F32(0)
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(keep));
}

#endif
