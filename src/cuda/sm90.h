/* sm90.h - the Hopper instructions that the kernels use, one inline function each.
 *
 * mbarriers (a phase completes when its arrivals and its announced bytes have come), the bulk
 * copy engine (1-D, and 2-D boxes of a tensor map), wgmma on int8 with the A operand in
 * registers, and register hand-over between warpgroups. Shared memory is addressed by its
 * 32-bit window address (smem_addr); a cluster neighbour's by mapa of that.
 *
 * wgmma s8, m64 n<TOK> k32, warp w of the warpgroup, lane l, r = 16 w + l / 4, q = l % 4:
 *   A  a0 = A[r][4q..4q+3]  a1 = A[r+8][same]  a2 = A[r][16+4q..]  a3 = A[r+8][16+4q..]
 *   D  d[4i] = D[r][8i+2q]  d[4i+1] = D[r][8i+2q+1]  d[4i+2], d[4i+3]: row r+8
 * which is also the layout of mma.sync m16n8k32 with r = l / 4.
 * SPDX-License-Identifier: MIT */
#ifndef FL_CUDA_SM90_H
#define FL_CUDA_SM90_H

#include <cuda.h>
#include <stdint.h>

#define DEV static __device__ __forceinline__

DEV uint32_t smem_addr(const void *p)
{
    return (uint32_t)__cvta_generic_to_shared(p);
}

/* The same offset in the shared memory of CTA `rank` of the cluster. */
DEV uint32_t mapa(uint32_t addr, uint32_t rank)
{
    uint32_t out;
    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(out) : "r"(addr), "r"(rank));
    return out;
}

DEV uint32_t cluster_rank(void)
{
    uint32_t rank;
    asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
}

DEV void cluster_sync(void)
{
    asm volatile("barrier.cluster.arrive.aligned;\n"
                 "barrier.cluster.wait.aligned;" ::
                     : "memory");
}

DEV void named_barrier(int id, int n_threads)
{
    asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(n_threads) : "memory");
}

/* ---- mbarriers --------------------------------------------------------------------------- */

DEV void mbar_init(uint32_t bar, uint32_t n_arrivals)
{
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(bar), "r"(n_arrivals)
                 : "memory");
}

/* After the inits, before any other thread, CTA or the copy engine may use them. */
DEV void mbar_init_fence(void)
{
    asm volatile("fence.mbarrier_init.release.cluster;\n"
                 "fence.proxy.async.shared::cta;" ::
                     : "memory");
}

DEV void mbar_arrive(uint32_t bar)
{
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(bar) : "memory");
}

DEV void mbar_arrive_many(uint32_t bar, uint32_t n)
{
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0], %1;" ::"r"(bar), "r"(n) : "memory");
}

/* One arrival that also announces n_bytes of bulk copies. */
DEV void mbar_expect(uint32_t bar, uint32_t n_bytes)
{
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(bar),
                 "r"(n_bytes)
                 : "memory");
}

/* Orders with this CTA's threads and copies: cluster scope would empty the L1 each time. */
DEV void mbar_wait(uint32_t bar, uint32_t parity)
{
    asm volatile("{\n"
                 ".reg .pred done;\n"
                 "again:\n"
                 "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
                 "@!done bra again;\n"
                 "}" ::"r"(bar),
                 "r"(parity)
                 : "memory");
}

/* ---- bulk copies ------------------------------------------------------------------------- */

/* n_bytes (multiple of 16) from global to this CTA's shared memory, both 16-byte aligned. */
DEV void bulk_load(uint32_t dst, const void *src, uint32_t n_bytes, uint32_t bar)
{
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes "
                 "[%0], [%1], %2, [%3];" ::"r"(dst),
                 "l"(src), "r"(n_bytes), "r"(bar)
                 : "memory");
}

DEV void tma_load(uint32_t dst, const CUtensorMap *map, int c0, int c1, uint32_t bar)
{
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes "
                 "[%0], [%1, {%2, %3}], [%4];" ::"r"(dst),
                 "l"(map), "r"(c0), "r"(c1), "r"(bar)
                 : "memory");
}

/* The box comes to L2 alone. */
DEV void tma_prefetch(const CUtensorMap *map, int c0, int c1)
{
    asm volatile("cp.async.bulk.prefetch.tensor.2d.L2.global [%0, {%1, %2}];" ::"l"(map),
                 "r"(c0), "r"(c1)
                 : "memory");
}

DEV void tma_store(const CUtensorMap *map, int c0, int c1, uint32_t src)
{
    asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%0, {%1, %2}], [%3];\n"
                 "cp.async.bulk.commit_group;" ::"l"(map),
                 "r"(c0), "r"(c1), "r"(src)
                 : "memory");
}

/* Until at most one earlier store of this thread still reads shared memory. */
DEV void tma_store_wait_one(void)
{
    asm volatile("cp.async.bulk.wait_group.read 1;" ::: "memory");
}

DEV void tma_store_wait_all(void)
{
    asm volatile("cp.async.bulk.wait_group 0;" ::: "memory");
}

/* Shared memory written by this thread becomes visible to the copy engine and to wgmma. */
DEV void fence_async_smem(void)
{
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

/* Four 8x8 blocks of 16-bit values, each stored transposed; lane l gives the address of row
 * l % 8 of block l / 8. */
DEV void stmatrix_trans(uint32_t addr, uint32_t m0, uint32_t m1, uint32_t m2, uint32_t m3)
{
    asm volatile(
        "stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(addr),
        "r"(m0), "r"(m1), "r"(m2), "r"(m3)
        : "memory");
}

DEV void lds128(uint32_t *v, uint32_t addr)
{
    asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v[0]), "=r"(v[1]), "=r"(v[2]), "=r"(v[3])
                 : "r"(addr)
                 : "memory");
}

/* ---- overlap of launches ----------------------------------------------------------------- */

/* Lets the kernel behind this one start where there is room. */
DEV void launch_dependents(void)
{
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
}

/* Until the kernel ahead has ended and its writes are visible. */
DEV void wait_for_kernel_ahead(void)
{
    asm volatile("griddepcontrol.wait;" ::: "memory");
}

/* ---- tensor cores ------------------------------------------------------------------------ */

#define REGS_DEC(n) asm volatile("setmaxnreg.dec.sync.aligned.u32 " #n ";")
#define REGS_INC(n) asm volatile("setmaxnreg.inc.sync.aligned.u32 " #n ";")

DEV void wgmma_fence(void)
{
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

DEV void wgmma_commit(void)
{
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

/* Until at most `pending` (0 or 1) committed groups still run. */
template <int pending> DEV void wgmma_wait(void)
{
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(pending) : "memory");
}

/* Descriptor of a B operand in shared memory: rows of 128 bytes along k, 128-byte swizzle,
 * groups of 8 rows 1,024 bytes apart, base 1,024-byte aligned. A k32 step is + 2. */
DEV uint64_t wgmma_desc(uint32_t addr)
{
    return (uint64_t)((addr & 0x3ffffu) >> 4) | (uint64_t)1 << 16 |
           (uint64_t)(1024 >> 4) << 32 | (uint64_t)1 << 62;
}

/* Of rows of 64 bytes in blocks of 8, 64-byte swizzle, blocks 1,024 bytes apart. */
DEV uint64_t wgmma_desc_64b(uint32_t addr)
{
    return (uint64_t)((addr & 0x3ffffu) >> 4) | (uint64_t)1 << 16 |
           (uint64_t)(1024 >> 4) << 32 | (uint64_t)2 << 62;
}

#define P8(a, b, c, d, e, f, g, h)                                                             \
    "%" #a ",%" #b ",%" #c ",%" #d ",%" #e ",%" #f ",%" #g ",%" #h
#define R8(i)                                                                                  \
    "+r"(d[i]), "+r"(d[i + 1]), "+r"(d[i + 2]), "+r"(d[i + 3]), "+r"(d[i + 4]),                \
        "+r"(d[i + 5]), "+r"(d[i + 6]), "+r"(d[i + 7])
#define R32(i) R8(i), R8(i + 8), R8(i + 16), R8(i + 24)
#define P32_0                                                                                  \
    P8(0, 1, 2, 3, 4, 5, 6, 7)                                                                 \
    "," P8(8, 9, 10, 11, 12, 13, 14, 15) "," P8(16, 17, 18, 19, 20, 21, 22,                    \
                                                23) "," P8(24, 25, 26, 27, 28, 29, 30, 31)
#define P32_1                                                                                  \
    P8(32, 33, 34, 35, 36, 37, 38, 39)                                                         \
    "," P8(40, 41, 42, 43, 44, 45, 46, 47) "," P8(48, 49, 50, 51, 52, 53, 54,                  \
                                                  55) "," P8(56, 57, 58, 59, 60, 61, 62, 63)
#define P32_2                                                                                  \
    P8(64, 65, 66, 67, 68, 69, 70, 71)                                                         \
    "," P8(72, 73, 74, 75, 76, 77, 78, 79) "," P8(80, 81, 82, 83, 84, 85, 86,                  \
                                                  87) "," P8(88, 89, 90, 91, 92, 93, 94, 95)
#define P32_3                                                                                  \
    P8(96, 97, 98, 99, 100, 101, 102, 103)                                                     \
    "," P8(104, 105, 106, 107, 108, 109, 110, 111) "," P8(                                     \
        112, 113, 114, 115, 116, 117, 118, 119) "," P8(120, 121, 122, 123, 124, 125, 126, 127)
#define WGMMA(n, regs, a0, a1, a2, a3, b, s)                                                   \
    "{\n.reg .pred keep;\nsetp.ne.b32 keep, %" #s ", 0;\n"                                     \
    "wgmma.mma_async.sync.aligned.m64n" #n "k32.s32.s8.s8 {" regs "}, {%" #a0 ",%" #a1         \
    ",%" #a2 ",%" #a3 "}, %" #b ", keep;\n}"
#define WGMMA_IN "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(desc), "r"(keep)

/* d = (keep ? d : 0) + A * B for n = TOK columns. */
template <int TOK> DEV void wgmma_s8(int32_t *d, const uint32_t *a, uint64_t desc, int keep)
{
    if (TOK == 256)
        asm volatile(
            WGMMA(256, P32_0 "," P32_1 "," P32_2 "," P32_3, 128, 129, 130, 131, 132, 133)
            : R32(0), R32(32), R32(64), R32(96)
            : WGMMA_IN);
    else if (TOK == 128)
        asm volatile(WGMMA(128, P32_0 "," P32_1, 64, 65, 66, 67, 68, 69)
                     : R32(0), R32(32)
                     : WGMMA_IN);
    else asm volatile(WGMMA(64, P32_0, 32, 33, 34, 35, 36, 37) : R32(0) : WGMMA_IN);
}

#define WGMMA_SS(n, regs, a, b, s)                                                             \
    "{\n.reg .pred keep;\nsetp.ne.b32 keep, %" #s ", 0;\n"                                     \
    "wgmma.mma_async.sync.aligned.m64n" #n "k32.s32.s8.s8 {" regs "}, %" #a ", %" #b           \
    ", keep;\n}"
#define WGMMA_SS_IN "l"(a), "l"(desc), "r"(keep)

/* The same with A from shared memory: a of wgmma_desc or wgmma_desc_64b. */
template <int TOK> DEV void wgmma_s8_ss(int32_t *d, uint64_t a, uint64_t desc, int keep)
{
    if (TOK == 256)
        asm volatile(WGMMA_SS(256, P32_0 "," P32_1 "," P32_2 "," P32_3, 128, 129, 130)
                     : R32(0), R32(32), R32(64), R32(96)
                     : WGMMA_SS_IN);
    else if (TOK == 128)
        asm volatile(WGMMA_SS(128, P32_0 "," P32_1, 64, 65, 66)
                     : R32(0), R32(32)
                     : WGMMA_SS_IN);
    else asm volatile(WGMMA_SS(64, P32_0, 32, 33, 34) : R32(0) : WGMMA_SS_IN);
}

/* d[16 x 8] += A[16 x 32] * B[32 x 8] of one warp; b0: k = 4q.. of column l / 4, b1: + 16. */
DEV void mma_s8(int32_t *d, const uint32_t *a, uint32_t b0, uint32_t b1)
{
    asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, "
                 "{%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/* Eight two's complement nibbles -> two words of four int8, each 16 times its code. */
DEV void expand_w4(uint32_t *first, uint32_t *second, uint32_t q)
{
    *first = q & 0xf0f0f0f0u;
    *second = q << 4 & 0xf0f0f0f0u;
}

/* Two floats to bf16, nearest even: lo in the low half. */
DEV uint32_t bf16x2(float lo, float hi)
{
    uint32_t out;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(out) : "f"(hi), "f"(lo));
    return out;
}

/* silu(gate) * up, by the fast exponential and division: for a result rounded to bf16. */
DEV float gated(float gate, float up)
{
    return __fmul_rn(__fdividef(gate, 1.0f + __expf(-gate)), up);
}

#endif
