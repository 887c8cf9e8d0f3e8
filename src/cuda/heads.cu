/* heads.cu - rotary embedding and a factor per head, for queries and keys.
 *
 * Y = bf16(rope(x)) F with F [D, D] bf16, float32 sums, stored as bf16. A CTA owns 16 tokens of
 * one head: the rotated rows lie in shared memory, four warps multiply 16 x D by D x D with
 * mma m16n8k16, a warp a quarter of the columns; F lies packed as the lanes' B fragments and is
 * read from L2.
 * SPDX-License-Identifier: MIT */
#include "cuda/engine_kernels.h"

#include "cuda/attention_sm90.h"
#include "cuda/launch.h"

enum { N_THREADS = 128, ROWS = 16, PAD = 8 };

typedef struct heads_args {
    fl_cuda_heads h;
    int M;
} heads_args;

/* Values c and c + 1, c even. */
DEV float2 values_of(const fl_cuda_matrix *x, int64_t m, int c)
{
    const int64_t at = m * x->ld + c;
    if (x->f32) return *(const float2 *)((const float *)x->data + at);
    const uint32_t two = *(const uint32_t *)((const uint16_t *)x->data + at);
    return make_float2(low_half(two), high_half(two));
}

/* The pair's first and second coordinate behind the rotation. */
DEV void rotate(float *a, float *b, float c, float s)
{
    const float p = *a, q = *b;
    *a = __fsub_rn(__fmul_rn(p, c), __fmul_rn(q, s));
    *b = __fadd_rn(__fmul_rn(q, c), __fmul_rn(p, s));
}

/* Rotated rows of the head from column c0 on, as bf16. */
template <int D>
DEV void rotate_rows(uint16_t (*u)[D + PAD], const heads_args *g, const fl_cuda_matrix *x,
                     int m0, int c0)
{
    const int half = D / 2;
    for (int i = threadIdx.x; i < ROWS * half / 2; i += N_THREADS) {
        const int r = i / (half / 2), d = i % (half / 2) * 2, m = m0 + r;
        float2 a = make_float2(0, 0), b = a;
        if (m < g->M) {
            a = values_of(x, m, c0 + d);
            b = values_of(x, m, c0 + d + half);
            if (g->h.cos) {
                const int64_t at = (int64_t)g->h.row_position[m] * half + d;
                const float2 c = *(const float2 *)(g->h.cos + at);
                const float2 s = *(const float2 *)(g->h.sin + at);
                rotate(&a.x, &b.x, c.x, s.x);
                rotate(&a.y, &b.y, c.y, s.y);
            }
        }
        *(uint32_t *)&u[r][d] = bf16x2(a.x, a.y);
        *(uint32_t *)&u[r][d + half] = bf16x2(b.x, b.y);
    }
}

template <int D> __global__ void __launch_bounds__(N_THREADS) heads_kernel(const heads_args g)
{
    __shared__ __align__(16) uint16_t u[ROWS][D + PAD];
    const bool is_key = (int)blockIdx.y >= g.h.n_heads;
    const int head = is_key ? blockIdx.y - g.h.n_heads : blockIdx.y;
    const int n_heads = is_key ? g.h.n_kv_heads : g.h.n_heads, m0 = blockIdx.x * ROWS;
    const uint2 *f = (const uint2 *)(is_key ? g.h.k_factor : g.h.q_factor);
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
            const uint2 b = f[(k / 16 * (D / 8) + warp * TILES + t) * 32 + lane];
            mma_bf16(acc[t], a, b.x, b.y);
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

static uint16_t to_bf16(float x)
{
    uint32_t u;
    memcpy(&u, &x, sizeof u);
    return (uint16_t)((u + 0x7fffu + (u >> 16 & 1)) >> 16);
}

/* [k / 16][column / 8][lane][4]: rows 2 q, 2 q + 1, 2 q + 8, 2 q + 9 of column lane / 4. */
extern "C" void fl__cuda_heads_pack(uint16_t *dst, int D, const float *factor)
{
    for (int i = 0; i < D * D; i++) {
        const int e = i % 4, lane = i / 4 % 32, tile = i / 128 % (D / 8), step = i / 16 / D;
        const int k = 16 * step + lane % 4 * 2 + e % 2 + e / 2 * 8;
        dst[i] = to_bf16(factor[k * D + tile * 8 + lane / 4]);
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
