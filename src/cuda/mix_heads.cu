/* mix_heads.cu - the transform in front of the attention's output: a factor over the heads.
 *
 * X' = left^T X for the row as X [n1 heads, n2 channels]. A warp owns 32 channels of all heads
 * and reads them as tensor core B fragments straight from memory: of the 16 bytes that a lane
 * loads from a head, word t is the channels 2 t and 2 t + 1 of eight, of which even lane rows
 * take the first, odd ones the second; so column n of tile t is channel 8 (n / 2) + 2 t + n %
 * 2, and a lane ends with eight neighbouring codes. The factor stays in registers over all rows.
 * SPDX-License-Identifier: MIT */
#include "cuda/engine_kernels.h"

#include "cuda/activation.h"
#include "cuda/launch.h"
#include "cuda/mma_bf16.h"

typedef struct mix_args {
    fl_cuda_mix m;
    int M;
} mix_args;

/* Eight channels of head i, zeros beyond the last one. */
DEV uint4 load_head(const uint16_t *row, int i, const fl_cuda_mix *m)
{
    return i < m->n1 ? *(const uint4 *)(row + i * m->n2) : make_uint4(0, 0, 0, 0);
}

template <int TILES>
DEV void mix_row(float (*acc)[4][4], const uint32_t (*a)[TILES][4], const uint16_t *row,
                 const fl_cuda_mix *m, int lane)
{
    const int q = lane % 4;
    const uint32_t half = lane / 4 % 2 ? 0x7632 : 0x5410;
#pragma unroll
    for (int i = 0; i < TILES * 16; i++) acc[i / 16][i / 4 % 4][i % 4] = 0;
#pragma unroll
    for (int k = 0; k < TILES; k++) {
        uint32_t u[4][4];
#pragma unroll
        for (int i = 0; i < 4; i++)
            *(uint4 *)u[i] = load_head(row, 16 * k + 2 * q + i % 2 + i / 2 * 8, m);
#pragma unroll
        for (int t = 0; t < 4; t++) {
            const uint32_t b0 = __byte_perm(u[0][t], u[1][t], half);
            const uint32_t b1 = __byte_perm(u[2][t], u[3][t], half);
#pragma unroll
            for (int i = 0; i < TILES; i++) mma_bf16(acc[i][t], a[i][k], b0, b1);
        }
    }
}

/* The row's grid, from the ranges of all its warps. */
template <int TILES, int WARPS>
DEV token_grid range_of(const float (*acc)[4][4], const fl_cuda_grid *grid,
                        float (*shared)[WARPS], int warp, int lane)
{
    float top = 0, bottom = 0;
#pragma unroll
    for (int i = 0; i < TILES * 16; i++) {
        const float v = acc[i / 16][i / 4 % 4][i % 4];
        top = fmaxf(top, v);
        bottom = fmaxf(bottom, -v);
    }
    top = warp_max(top);
    bottom = warp_max(bottom);
    if (lane == 0) shared[0][warp] = top, shared[1][warp] = bottom;
    __syncthreads();
#pragma unroll
    for (int w = 0; w < WARPS; w++) {
        top = fmaxf(top, shared[0][w]);
        bottom = fmaxf(bottom, shared[1][w]);
    }
    return make_grid(grid, top, bottom);
}

template <int TILES, int WARPS>
__global__ void __launch_bounds__(WARPS * 32) mix_kernel(const mix_args p)
{
    __shared__ float shared[2][2][WARPS];
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, r = lane / 4, q = lane % 4;
    uint32_t a[TILES][TILES][4];
#pragma unroll
    for (int i = 0; i < TILES * TILES; i++)
        *(uint4 *)a[i / TILES][i % TILES] = ((const uint4 *)p.m.factor)[i * 32 + lane];
    launch_next();
    wait_previous();
    int parity = 0;
    for (int64_t m = blockIdx.x; m < p.M; m += gridDim.x, parity ^= 1) {
        float acc[TILES][4][4];
        const uint16_t *row = p.m.x + m * p.m.ldx + 32 * warp + 8 * (r / 2);
        int8_t *codes = p.m.y.codes + m * p.m.y.ld;
        mix_row<TILES>(acc, a, row, &p.m, lane);
        const token_grid grid =
            range_of<TILES, WARPS>(acc, &p.m.grid, shared[parity], warp, lane);
#pragma unroll
        for (int i = 0; i < 2 * TILES; i++) {
            float v[8];
            const int head = 8 * i + r;
#pragma unroll
            for (int t = 0; t < 8; t++) v[t] = acc[i / 2][t / 2][i % 2 * 2 + t % 2];
            if (head < p.m.n1)
                *(uint2 *)(codes + head * p.m.n2 + 32 * warp + 8 * q) =
                    make_uint2(four_codes(&grid, v), four_codes(&grid, v + 4));
        }
        for (int c = p.m.n1 * p.m.n2 + 4 * threadIdx.x; c < p.m.y.ld; c += WARPS * 128)
            *(uint32_t *)(codes + c) = 0;
        if (threadIdx.x != 0) continue;
        p.m.y.x_scale[m] = grid.scale;
        p.m.y.x_zero[m] = grid.zero;
    }
}

/* ---- host -------------------------------------------------------------------------------- */

extern "C" bool fl__cuda_mix_fits(int n1, int n2)
{
    return n1 <= 64 && (n2 == 32 || n2 == 64 || n2 == 128);
}

extern "C" size_t fl__cuda_mix_bytes(int n1)
{
    const size_t n = (size_t)(n1 + 15) / 16 * 16;
    return 2 * n * n;
}

static uint16_t to_bf16(float x)
{
    uint32_t u;
    memcpy(&u, &x, sizeof u);
    return (uint16_t)((u + 0x7fffu + (u >> 16 & 1)) >> 16);
}

extern "C" void fl__cuda_mix_pack(void *dst, int n1, const float *left)
{
    const int n_tiles = (n1 + 15) / 16;
    uint16_t *to = (uint16_t *)dst;
    for (int tile = 0; tile < n_tiles; tile++)
        for (int step = 0; step < n_tiles; step++)
            for (int w = 0; w < 256; w++) {
                const int lane = w / 8, word = w / 2 % 4;
                const int a = 16 * tile + lane / 4 + word % 2 * 8;
                const int i = 16 * step + lane % 4 * 2 + word / 2 * 8 + w % 2;
                *to++ = a < n1 && i < n1 ? to_bf16(left[i * n1 + a]) : 0;
            }
}

template <int TILES>
static cudaError_t launch_width(const mix_args *p, int n_sm, cudaStream_t stream)
{
    const dim3 grid((unsigned)FL_MIN(p->M, n_sm * (TILES > 2 ? 2 : 4) * 128 / p->m.n2));
    if (p->m.n2 == 32) return launch_after(mix_kernel<TILES, 1>, grid, 32, 0, stream, *p);
    if (p->m.n2 == 64) return launch_after(mix_kernel<TILES, 2>, grid, 64, 0, stream, *p);
    return launch_after(mix_kernel<TILES, 4>, grid, 128, 0, stream, *p);
}

extern "C" fl_status fl__cuda_mix_heads(const fl_cuda_mix *m, int M, int n_sm, void *stream,
                                        fl_err *err)
{
    const mix_args p = {*m, M};
    const int n_tiles = (m->n1 + 15) / 16;
    cudaError_t e = cudaErrorInvalidValue;
    cudaStream_t s = (cudaStream_t)stream;
    if (M == 0) return FL_OK;
    if (fl__cuda_mix_fits(m->n1, m->n2))
        e = n_tiles == 1   ? launch_width<1>(&p, n_sm, s)
            : n_tiles == 2 ? launch_width<2>(&p, n_sm, s)
            : n_tiles == 3 ? launch_width<3>(&p, n_sm, s)
                           : launch_width<4>(&p, n_sm, s);
    if (e != cudaSuccess)
        return fl__fail(err, FL_E_FAIL,
                        "cuda: mixing heads [%d, %d x %d]: %s; see the GPU's log", M, m->n1,
                        m->n2, cudaGetErrorString(e));
    return FL_OK;
}
