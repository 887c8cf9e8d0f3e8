/* gemm_s4_sm80.cu - GEMM on the mma.sync tensor cores of Ampere and Ada (8.0, 8.6, 8.9): both
 * operands at 4 bits, and the twin that multiplies bytes, from one source.
 *
 * The weights' layouts are Hopper's (gemm_cuda.h). Of n16k64 a lane's word holds, in byte b,
 * the codes of k and k + 32. The order of k within a block is free as long as both operands
 * share it, so the same word is an A fragment of m16n8k64 when x is packed alike: a block of
 * 64 k is 32 bytes, byte i the code of k = i in its high nibble, of k = i + 32 in the low one.
 *
 *   PACKED      x 4 bits, w 4 bits     mma m16n8k64 s4, no expansion
 *   W4          x 8 bits, w 4 bits     w to bytes (16 times the code), m16n8k32 s8
 *   W8          x 8 bits, w 8 bits     m16n8k32 s8
 *
 * A CTA of 8 warps has 128 channels x TOK tokens. A stage of the cp.async ring is 64 bytes of
 * each token (128 k packed, else 64) and the panels' blocks of these k. x lies in rows of four
 * 16-byte pieces, piece c at place c ^ (row / 2) % 4, free of bank conflicts for ldmatrix.
 * On Hopper the s4 instruction is emulated, many times slower: there it is for tests alone.
 * SPDX-License-Identifier: MIT */
#include "cuda/gemm_epilogue.h"

#include <cuda_runtime.h>

enum {
    CHANNELS = 128,
    PANELS = CHANNELS / 16,
    ROW_BYTES = 64, /* of a token in a stage */
    STAGES = 4,
    N_THREADS = 256,
    GROUP = 8,   /* token tiles walked together */
    FEW = 32,    /* tokens of the small tile */
    MANY = 128,  /* and of the large one */
    BLOCK = 512, /* bytes of a block of weights */
};

typedef enum variant { PACKED, W4, W8 } variant;

template <int V, int TOK> struct tile {
    static const int x_bytes = TOK * ROW_BYTES;
    static const int units = V == W4 ? 1 : 2; /* blocks of a panel and stage */
    static const int stage_bytes = x_bytes + PANELS * units * BLOCK;
    static const int smem_bytes = STAGES * stage_bytes + TOK * 8;
    static const int warps_tok = TOK == MANY ? 2 : 1;
    static const int warp_tok = TOK / warps_tok;
    static const int warp_panels = PANELS * warps_tok / 8;
};

typedef struct gemm_args {
    outputs o;
    const int8_t *x;
    const uint8_t *w;
    int64_t ldx;
    int row_bytes; /* of x that exist */
    int n_panels, n_blocks, n_stages;
    int tiles_m, tiles_n;
} gemm_args;

/* 16 bytes, or zeros where there are none. */
DEV void copy_async(uint32_t dst, const void *src, bool there)
{
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(dst), "l"(src),
                 "r"(there ? 16 : 0)
                 : "memory");
}

DEV void copy_commit(void)
{
    asm volatile("cp.async.commit_group;" ::: "memory");
}

/* All but the last STAGES - 2 groups have come. */
DEV void copy_wait(void)
{
    asm volatile("cp.async.wait_group %0;" ::"n"(STAGES - 2) : "memory");
}

template <int V, int TOK>
DEV void load_stage(const gemm_args *g, uint32_t smem, int m0, int panel0, int stage)
{
    typedef tile<V, TOK> T;
#pragma unroll
    for (int i = threadIdx.x; i < TOK * 4; i += N_THREADS) {
        const int row = i / 4, c = i % 4, at = stage * ROW_BYTES + c * 16;
        const bool there = m0 + row < g->o.M && at < g->row_bytes;
        copy_async(smem + row * ROW_BYTES + ((c ^ (row / 2 & 3)) << 4),
                   there ? g->x + (int64_t)(m0 + row) * g->ldx + at : g->x, there);
    }
    smem += T::x_bytes;
#pragma unroll
    for (int i = threadIdx.x; i < PANELS * T::units * 32; i += N_THREADS) {
        /* packed: two blocks of a panel one after another; W8: of its even and odd channels */
        const int unit = i / 32 % T::units, panel = panel0 + i / 32 / T::units;
        const int block = V == PACKED ? 2 * stage + unit : stage;
        const int row = V == W8 ? 2 * panel + unit : panel;
        const bool there = panel < g->n_panels && block < g->n_blocks;
        const int64_t at = ((int64_t)row * g->n_blocks + block) * BLOCK + i % 32 * 16;
        copy_async(smem + i * 16, there ? g->w + at : g->w, there);
    }
}

/* A fragments of half a stage of one panel; w: its blocks. */
template <int V> DEV void load_a(uint32_t *a, uint32_t w, int half, int lane)
{
    if (V == PACKED) {
        lds128(a, w + half * BLOCK + lane * 16);
    } else if (V == W4) {
        uint32_t q[4], other;
        lds128(q, w + lane * 16);
#pragma unroll
        for (int j = 0; j < 4; j++)
            if (half == 0) expand_w4(&a[j], &other, q[j]);
            else expand_w4(&other, &a[j], q[j]);
    } else {
        const int row = lane / 4;
#pragma unroll
        for (int j = 0; j < 4; j++)
            asm volatile("ld.shared.u32 %0, [%1];"
                         : "=r"(a[j])
                         : "r"(w + j % 2 * BLOCK + row * ROW_BYTES +
                               (((2 * half + j / 2) ^ row / 2) << 4) + lane % 4 * 4));
    }
}

/* B fragments of half a stage, 16 tokens: b[0], b[1] of the first 8. */
DEV void load_b(uint32_t *b, uint32_t x, int token0, int half, int lane)
{
    const int token = token0 + lane / 16 * 8 + lane % 8, piece = 2 * half + lane / 8 % 2;
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(b[0]), "=r"(b[1]), "=r"(b[2]), "=r"(b[3])
                 : "r"(x + token * ROW_BYTES + ((piece ^ (token / 2 & 3)) << 4)));
}

template <int V> DEV void multiply(int32_t *d, const uint32_t *a, const uint32_t *b)
{
    if (V == PACKED)
        asm volatile("mma.sync.aligned.m16n8k64.row.col.s32.s4.s4.s32 {%0, %1, %2, %3}, "
                     "{%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                     : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
    else mma_s8(d, a, b[0], b[1]);
}

template <int V, int TOK>
__global__ __launch_bounds__(N_THREADS) void gemm_kernel(const __grid_constant__ gemm_args g)
{
    typedef tile<V, TOK> T;
    extern __shared__ __align__(128) uint8_t raw[];
    const uint32_t smem = smem_addr(raw), scales = smem + STAGES * T::stage_bytes;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int token0 = warp % T::warps_tok * T::warp_tok;
    const int panel = warp / T::warps_tok * T::warp_panels;
    const int per_group = GROUP * g.tiles_n, first = blockIdx.x / per_group * GROUP;
    const int rows = min(g.tiles_m - first, (int)GROUP), in = blockIdx.x % per_group;
    const int m0 = (first + in % rows) * TOK, panel0 = in / rows * PANELS;
    int32_t acc[T::warp_panels][T::warp_tok / 2] = {};

#pragma unroll
    for (int s = 0; s < STAGES - 1; s++) {
        if (s < g.n_stages) load_stage<V, TOK>(&g, smem + s * T::stage_bytes, m0, panel0, s);
        copy_commit();
    }
    for (int i = threadIdx.x; i < TOK; i += N_THREADS) {
        float scale;
        int32_t zero;
        load_token(&scale, &zero, &g.o, m0 + i);
        keep_token(scales, i, scale, zero);
    }
    for (int s = 0; s < g.n_stages; s++) {
        const int ahead = s + STAGES - 1;
        const uint32_t x = smem + s % STAGES * T::stage_bytes;
        copy_wait();
        __syncthreads();
        if (ahead < g.n_stages)
            load_stage<V, TOK>(&g, smem + ahead % STAGES * T::stage_bytes, m0, panel0, ahead);
        copy_commit();
#pragma unroll
        for (int half = 0; half < 2; half++) {
            uint32_t a[T::warp_panels][4];
#pragma unroll
            for (int p = 0; p < T::warp_panels; p++)
                load_a<V>(a[p], x + T::x_bytes + (panel + p) * (T::units * BLOCK), half, lane);
#pragma unroll
            for (int t = 0; t < T::warp_tok; t += 16) {
                uint32_t b[4];
                load_b(b, x, token0 + t, half, lane);
#pragma unroll
                for (int p = 0; p < T::warp_panels; p++) {
                    multiply<V>(acc[p] + t / 2, a[p], b);
                    multiply<V>(acc[p] + t / 2 + 4, a[p], b + 2);
                }
            }
        }
    }
    __syncthreads(); /* the scales, where K is no more than a stage */
#pragma unroll
    for (int p = 0; p < T::warp_panels; p++) {
        const int n = (panel0 + panel + p) * 16 + lane / 4 * 2;
        const channel_scales c = load_channels(&g.o, n);
        store_tile<V == W4 ? 4 : 0, T::warp_tok>(acc[p], &g.o, &c, scales + token0 * 8,
                                                 m0 + token0 + 2 * (lane % 4), n, lane);
    }
}

/* ---- host -------------------------------------------------------------------------------- */

template <int V, int TOK> static cudaError_t launch(const gemm_args *a, cudaStream_t stream)
{
    typedef tile<V, TOK> T;
    const cudaError_t e = cudaFuncSetAttribute(
        gemm_kernel<V, TOK>, cudaFuncAttributeMaxDynamicSharedMemorySize, T::smem_bytes);
    if (e != cudaSuccess) return e;
    gemm_kernel<V, TOK><<<a->tiles_m * a->tiles_n, N_THREADS, T::smem_bytes, stream>>>(*a);
    return cudaGetLastError();
}

template <int V>
static cudaError_t launch_tokens(const gemm_args *a, int tokens, cudaStream_t stream)
{
    return tokens == FEW ? launch<V, FEW>(a, stream) : launch<V, MANY>(a, stream);
}

extern "C" fl_status fl__cuda_gemm_sm80(const fl_cuda_gemm *g, fl_cuda_gemm_plan plan,
                                        void *stream, fl_err *err)
{
    const fl_cuda_weight *w = g->w;
    const int tokens = plan.tokens <= FEW ? FEW : MANY;
    const int stage_k = g->x_packed ? 2 * ROW_BYTES : ROW_BYTES;
    cudaStream_t s = (cudaStream_t)stream;
    cudaError_t e = cudaErrorInvalidValue;
    gemm_args a = {};
    a.o = outputs_of(g);
    a.x = g->x;
    a.ldx = g->ldx;
    a.w = w->data;
    a.row_bytes = g->x_packed ? w->K_pad / 2 : w->K_pad;
    a.n_panels = w->N_pad / 16;
    a.n_blocks = w->K_pad / 64;
    a.n_stages = (w->K_pad + stage_k - 1) / stage_k;
    a.tiles_m = (g->M + tokens - 1) / tokens;
    a.tiles_n = (w->N + CHANNELS - 1) / CHANNELS;
    if (w->bits == 4)
        e = g->x_packed ? launch_tokens<PACKED>(&a, tokens, s)
                        : launch_tokens<W4>(&a, tokens, s);
    else if (!g->x_packed) e = launch_tokens<W8>(&a, tokens, s);
    if (e != cudaSuccess)
        return fl__fail(err, FL_E_FAIL, "cuda: gemm w%d [%d, %d, %d]: %s; see the GPU's log",
                        w->bits, g->M, w->N, w->K, cudaGetErrorString(e));
    return FL_OK;
}
