/* heads.cu - rotary embedding and a factor per head, for queries and keys.
 *
 * Y = bf16(rope(x)) F with F [D, D] bf16, float32 sums, stored as bf16. A CTA owns 16 tokens of
 * one head: the rotated rows lie in shared memory, four warps multiply 16 x D by D x D with
 * mma m16n8k16, a warp a quarter of the columns; F is read from L2 as B fragments.
 * SPDX-License-Identifier: MIT */
#include "cuda/engine_kernels.h"

#include "cuda/attention_sm90.h"
#include "cuda/launch.h"

enum { N_THREADS = 128, ROWS = 16, PAD = 8 };

typedef struct heads_args {
    fl_cuda_heads h;
    int M;
} heads_args;

DEV float value_of(const fl_cuda_matrix *x, int64_t m, int c)
{
    const int64_t at = m * x->ld + c;
    return x->f32 ? ((const float *)x->data)[at] : low_half(((const uint16_t *)x->data)[at]);
}

/* Rotated rows of the head from column c0 on, as bf16. */
template <int D>
DEV void rotate_rows(uint16_t (*u)[D + PAD], const heads_args *g, const fl_cuda_matrix *x,
                     int m0, int c0)
{
    const int half = D / 2;
    for (int i = threadIdx.x; i < ROWS * half; i += N_THREADS) {
        const int r = i / half, d = i % half, m = m0 + r;
        float a = 0, b = 0;
        if (m < g->M) {
            a = value_of(x, m, c0 + d);
            b = value_of(x, m, c0 + d + half);
            if (g->h.cos) {
                const int64_t at = (int64_t)g->h.row_position[m] * half + d;
                const float c = g->h.cos[at], s = g->h.sin[at], p = a, q = b;
                a = __fsub_rn(__fmul_rn(p, c), __fmul_rn(q, s));
                b = __fadd_rn(__fmul_rn(q, c), __fmul_rn(p, s));
            }
        }
        u[r][d] = (uint16_t)bf16x2(a, 0.0f);
        u[r][d + half] = (uint16_t)bf16x2(b, 0.0f);
    }
}

template <int D> __global__ void __launch_bounds__(N_THREADS) heads_kernel(const heads_args g)
{
    __shared__ __align__(16) uint16_t u[ROWS][D + PAD];
    const bool is_key = (int)blockIdx.y >= g.h.n_heads;
    const int head = is_key ? blockIdx.y - g.h.n_heads : blockIdx.y;
    const int n_heads = is_key ? g.h.n_kv_heads : g.h.n_heads, m0 = blockIdx.x * ROWS;
    const uint16_t *f = is_key ? g.h.k_factor : g.h.q_factor;
    uint16_t *out = is_key ? g.h.k_out : g.h.q_out;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, r = lane / 4, q = lane % 4;
    constexpr int TILES = D / 32; /* of 8 columns, per warp */
    float acc[TILES][4] = {};
    launch_next();
    wait_previous();
    rotate_rows<D>(u, &g, is_key ? &g.h.k : &g.h.q, m0, head * D);
    __syncthreads();
    for (int k = 0; k < D; k += 16) {
        const uint32_t a[4] = {*(const uint32_t *)&u[r][k + 2 * q],
                               *(const uint32_t *)&u[r + 8][k + 2 * q],
                               *(const uint32_t *)&u[r][k + 2 * q + 8],
                               *(const uint32_t *)&u[r + 8][k + 2 * q + 8]};
#pragma unroll
        for (int t = 0; t < TILES; t++) {
            const uint16_t *b = f + (k + 2 * q) * D + (warp * TILES + t) * 8 + r;
            mma_bf16(acc[t], a, b[0] | (uint32_t)b[D] << 16,
                     b[8 * D] | (uint32_t)b[9 * D] << 16);
        }
    }
#pragma unroll
    for (int t = 0; t < TILES; t++)
        for (int i = 0; i < 2; i++) {
            const int m = m0 + r + 8 * i;
            if (m >= g.M) continue;
            uint16_t *to =
                out + ((int64_t)m * n_heads + head) * D + (warp * TILES + t) * 8 + 2 * q;
            *(uint32_t *)to = bf16x2(acc[t][2 * i], acc[t][2 * i + 1]);
        }
}

extern "C" fl_status fl__cuda_heads(const fl_cuda_heads *h, int M, void *stream, fl_err *err)
{
    const heads_args g = {*h, M};
    const dim3 grid((unsigned)((M + ROWS - 1) / ROWS), (unsigned)(h->n_heads + h->n_kv_heads));
    cudaStream_t s = (cudaStream_t)stream;
    cudaError_t e;
    if (M == 0) return FL_OK;
    if (h->D == 32) e = launch_after(heads_kernel<32>, grid, N_THREADS, 0, s, g);
    else if (h->D == 64) e = launch_after(heads_kernel<64>, grid, N_THREADS, 0, s, g);
    else if (h->D == 128) e = launch_after(heads_kernel<128>, grid, N_THREADS, 0, s, g);
    else
        return fl__fail(err, FL_E_UNSUPPORTED,
                        "cuda: head transforms of %d channels: 32, 64 and 128 have a kernel; "
                        "use --device cpu",
                        h->D);
    if (e != cudaSuccess)
        return fl__fail(err, FL_E_FAIL, "cuda: head transforms [%d]: %s; see the GPU's log", M,
                        cudaGetErrorString(e));
    return FL_OK;
}
