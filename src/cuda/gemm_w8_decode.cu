/* gemm_w8_decode.cu - GEMM for up to 16 tokens: streams the 8-bit weights once.
 *
 * A warp owns panels of 16 channels, or with `split` > 1 a part of their K: of each block of 64
 * k it loads 16 bytes of an even and an odd channel per lane (layout n8k64), DEPTH blocks ahead
 * and across panel borders, and multiplies them as they are: lane q of a row has k = 16 q ..
 * 16 q + 15, of which mma m16n8k32 sees words 0 and 1, then 2 and 3; x is read in the same
 * order, from L1. Sums are exact in any order; parts meet in shared memory. Weights are read
 * before the kernel waits for the one ahead of it in the stream.
 * SPDX-License-Identifier: MIT */
#include "cuda/gemm_cuda.h"

#include "cuda/gemm_epilogue.h"
#include "cuda/launch.h"

enum { WARPS = 8, DEPTH = 4, CTAS_PER_SM = 2, MAX_TOKENS = 16 };

typedef struct w8_args {
    const int8_t *x;
    const uint8_t *w;
    outputs o;
    int64_t ldx;
    int n_panels, n_blocks, split; /* blocks of 64 k; warps of a panel */
} w8_args;

/* Where a warp reads: block k of its part of a panel. */
typedef struct reader {
    const uint8_t *at;
    int k, left;
} reader;

DEV void load_16(uint32_t *v, const uint8_t *from)
{
    asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v[0]), "=r"(v[1]), "=r"(v[2]), "=r"(v[3])
                 : "l"(from));
}

/* v[0..3] of the even channel, v[4..7] of the odd one. */
DEV void load_next(uint32_t *v, reader *r, int64_t half, int n_part, int64_t skip)
{
    if (r->left <= 0) return;
    load_16(v, r->at);
    load_16(v + 4, r->at + half);
    r->left--;
    r->at += 512;
    if (++r->k == n_part) {
        r->k = 0;
        r->at += skip;
    }
}

template <int NT>
DEV void multiply_block(int32_t *acc, const uint32_t *v, const w8_args *g, const int8_t *x,
                        int lane)
{
#pragma unroll
    for (int t = 0; t < NT; t++) {
        uint4 b = make_uint4(0, 0, 0, 0);
        if (8 * t + lane / 4 < g->o.M) b = *(const uint4 *)(x + 8 * t * g->ldx);
        const uint32_t first[4] = {v[0], v[4], v[1], v[5]},
                       second[4] = {v[2], v[6], v[3], v[7]};
        mma_s8(acc + 4 * t, first, b.x, b.y);
        mma_s8(acc + 4 * t, second, b.z, b.w);
    }
}

/* Adds up the parts of a panel; true: this warp has the sums. */
template <int NT>
DEV bool join(int32_t *acc, int32_t (*parts)[32][4 * NT], int part, int split, int barrier,
              int lane)
{
    if (split == 1) return true;
#pragma unroll
    for (int i = 0; i < 4 * NT && part > 0; i++) parts[part][lane][i] = acc[i];
    named_barrier(barrier, 32 * split);
    if (part > 0) return false;
    for (int p = 1; p < split; p++)
#pragma unroll
        for (int i = 0; i < 4 * NT; i++) acc[i] += parts[p][lane][i];
    return true;
}

template <int NT>
__global__ void __launch_bounds__(WARPS * 32, CTAS_PER_SM) w8_kernel(const w8_args g)
{
    __shared__ int32_t parts[2][WARPS][32][4 * NT];
    __shared__ __align__(16) uint32_t tokens[2 * MAX_TOKENS];
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int group = warp / g.split, part = warp % g.split, n_groups = WARPS / g.split;
    const int b0 = part * g.n_blocks / g.split;
    const int n_part = (part + 1) * g.n_blocks / g.split - b0;
    const int first = blockIdx.x * n_groups + group, step = gridDim.x * n_groups;
    const int total = first < g.n_panels ? ((g.n_panels - 1 - first) / step + 1) * n_part : 0;
    const int64_t half = (int64_t)g.n_blocks * 512, skip = 2 * half * step - n_part * 512;
    const int place = lane / 4 * 64 + (lane % 4 ^ lane / 8) * 16;
    reader r = {g.w + 2 * half * first + (int64_t)b0 * 512 + place, 0, total};
    uint32_t v[DEPTH][8];
    int32_t acc[4 * NT] = {};
#pragma unroll
    for (int i = 0; i < DEPTH; i++) load_next(v[i], &r, half, n_part, skip);
    launch_next();
    wait_previous();
    for (int m = threadIdx.x; m < 8 * NT; m += WARPS * 32) {
        float scale;
        int32_t zero;
        load_token(&scale, &zero, &g.o, m);
        keep_token(smem_addr(tokens), m, scale, zero);
    }
    __syncthreads();
    const int8_t *x = g.x + (lane / 4) * g.ldx + b0 * 64 + lane % 4 * 16;
    int panel = first, k = 0, parity = 0;
    for (int at = 0; at < total; at += DEPTH)
#pragma unroll
        for (int i = 0; i < DEPTH; i++) {
            if (at + i >= total) break;
            multiply_block<NT>(acc, v[i], &g, x + k * 64, lane);
            load_next(v[i], &r, half, n_part, skip);
            if (++k < n_part) continue;
            const int n = panel * 16 + lane / 4 * 2;
            if (join<NT>(acc, parts[parity] + group * g.split, part, g.split, 1 + group,
                         lane)) {
                const channel_scales c = load_channels(&g.o, n);
                store_tile<0, 8 * NT>(acc, &g.o, &c, smem_addr(tokens), lane % 4 * 2, n, lane);
            }
#pragma unroll
            for (int j = 0; j < 4 * NT; j++) acc[j] = 0;
            k = 0;
            parity ^= 1;
            panel += step;
        }
}

/* As few warps per panel as leave each of them several. */
static int split_of(const w8_args *a, int n_warps)
{
    int split = 1;
    while (split < WARPS && 2 * split <= a->n_blocks && a->n_panels * split < 4 * n_warps)
        split *= 2;
    return split;
}

extern "C" fl_status fl__cuda_gemm_w8_decode(const fl_cuda_gemm *g, int n_sm, void *stream,
                                             fl_err *err)
{
    w8_args a = {};
    cudaError_t e = cudaErrorInvalidValue;
    a.x = g->x;
    a.ldx = g->ldx;
    a.w = g->w->data;
    a.o = outputs_of(g);
    a.n_panels = g->w->N_pad / 16;
    a.n_blocks = g->w->K_pad / 64;
    a.split = split_of(&a, n_sm * CTAS_PER_SM * WARPS);
    const int per_cta = WARPS / a.split;
    const dim3 grid((unsigned)FL_MIN((a.n_panels + per_cta - 1) / per_cta, n_sm * CTAS_PER_SM));
    if (g->M <= 8) e = launch_after(w8_kernel<1>, grid, WARPS * 32, 0, (cudaStream_t)stream, a);
    else if (g->M <= MAX_TOKENS)
        e = launch_after(w8_kernel<2>, grid, WARPS * 32, 0, (cudaStream_t)stream, a);
    if (e != cudaSuccess)
        return fl__fail(err, FL_E_FAIL,
                        "cuda: decode gemm w8 [%d, %d, %d]: %s; see the GPU's log", g->M,
                        g->w->N, g->w->K, cudaGetErrorString(e));
    return FL_OK;
}
