/* gemm_w4_decode.cu - GEMM for up to 64 tokens: streams the 4-bit weights once.
 *
 * Memory-bound: what matters is bytes in flight from the first cycle to the last. A CTA has a
 * run of neighbouring panels of 16 channels (with n_parts > 1 a part of their K, the parts of a
 * run being a cluster, so that x fits); its blocks of layout n16k64 are cut evenly into one
 * stretch per warp, which the warp reads through DEPTH registers ahead, across panel borders. A
 * block is one 16-byte load per lane, two expansions to int8 and two mma m16n8k32 per 8 tokens.
 * The first loads go out before the kernel waits for the one before it in the stream
 * (programmatic dependent launch): weights depend on nothing. Up to 32 tokens two CTAs fit a
 * multiprocessor, or the next launch would find no room to do so.
 *
 * x lies in shared memory as it is, rows 16 bytes longer than their k, so that ldmatrix, which
 * gives a lane the four B registers of a block, meets no bank conflict. At the end of a panel
 * or stretch the exact int32 sums are added in shared memory, in any order; at the end all
 * threads scale and store, panel p by CTA p % n_parts, which adds the others' sums of it to
 * its own.
 * SPDX-License-Identifier: MIT */
#include "cuda/gemm_cuda.h"

#include "cuda/sm90.h"

#include <cuda_runtime.h>

enum {
    WARPS = 16,
    SUMS_STRIDE = 20, /* of a token's 16 sums: conflict-free adds */
    MAX_PARTS = 8,
    BARRIER_BYTES = 16,
    X_PITCH = 16,        /* bytes between rows of x */
    X_BYTES = 68000,     /* aim; more only when MAX_PARTS is not enough */
    SMEM_BYTES = 113664, /* of one of two CTAs */
    SMEM_MAX = 231424,
};

/* Of 8 NT tokens: CTAs that fit a multiprocessor, blocks that a warp has in flight in the
 * registers which that leaves. */
template <int NT> struct flight {
    static const int ctas = NT <= 4 ? 2 : 1;
    static const int depth = NT == 2 ? 6 : NT == 4 ? 4 : 8;
};

typedef struct decode_args {
    const int8_t *x;
    const uint8_t *w;
    const float *x_scale, *w_scale, *bias, *residual;
    const int32_t *x_zero, *col_sum;
    void *y;
    int64_t ldx, ldy, ldr;
    int x_scale_stride, x_zero_stride, w_scale_stride;
    int M, N, n_panels, n_blocks; /* blocks of 64 k */
    int per_run, n_parts;         /* panels of a run, CTAs of a cluster */
    bool y_bf16, gated;
} decode_args;

/* Where a warp reads: block k of its part of a panel. */
typedef struct reader {
    const uint8_t *at;
    int k, n_left;
} reader;

DEV void load_next(uint32_t *q, reader *r, int n_part, int skip)
{
    if (r->n_left <= 0) return;
    asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(q[0]), "=r"(q[1]), "=r"(q[2]), "=r"(q[3])
                 : "l"(r->at));
    r->n_left--;
    r->at += 512;
    if (++r->k == n_part) {
        r->k = 0;
        r->at += skip;
    }
}

DEV int x_pitch(int n_blocks)
{
    return n_blocks * 64 + X_PITCH;
}

/* One bulk copy of each row, complete on bar. */
DEV void fetch_x(uint32_t x_smem, const decode_args *g, int b0, int n_blocks, uint32_t bar)
{
    const int m = threadIdx.x;
    if (m == 0) mbar_expect(bar, g->M * n_blocks * 64);
    __syncwarp();
    if (m < g->M)
        bulk_load(x_smem + m * x_pitch(n_blocks), g->x + m * g->ldx + b0 * 64, n_blocks * 64,
                  bar);
}

/* acc += one block: 16 channels x 64 k times up to 8 NT tokens. x: the lane's row and piece of
 * each 8 tokens, of which those beyond M repeat the last one: nobody reads their sums. */
template <int NT>
DEV void multiply_block(int32_t *acc, const uint32_t *q, const uint32_t *x, int k)
{
    uint32_t a[4], b[4];
#pragma unroll
    for (int j = 0; j < 4; j++) expand_w4(&a[j], &b[j], q[j]);
#pragma unroll
    for (int t = 0; t < NT; t++) {
        uint32_t v[4];
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(v[0]), "=r"(v[1]), "=r"(v[2]), "=r"(v[3])
                     : "r"(x[t] + k * 64));
        mma_s8(acc + 4 * t, a, v[0], v[1]);
        mma_s8(acc + 4 * t, b, v[2], v[3]);
    }
}

/* Adds acc to panel's sums, and clears it. */
template <int NT>
DEV void flush(int32_t *acc, uint32_t sums, const decode_args *g, int panel, int lane)
{
    sums += panel * g->M * (4 * SUMS_STRIDE);
#pragma unroll
    for (int i = 0; i < 4 * NT; i++) {
        const int token = i / 4 * 8 + 2 * (lane % 4) + i % 2,
                  channel = lane / 4 + i % 4 / 2 * 8;
        const uint32_t to = sums + 4 * (token * SUMS_STRIDE + channel);
        if (token < g->M)
            asm volatile("red.shared::cta.add.s32 [%0], %1;" ::"r"(to), "r"(acc[i]) : "memory");
        acc[i] = 0;
    }
}

DEV int32_t load_part(uint32_t addr, int part, int n_parts)
{
    int32_t v;
    if (n_parts == 1) asm volatile("ld.shared.s32 %0, [%1];" : "=r"(v) : "r"(addr) : "memory");
    else
        asm volatile("ld.shared::cluster.s32 %0, [%1];"
                     : "=r"(v)
                     : "r"(mapa(addr, part))
                     : "memory");
    return v;
}

/* Shared memory behind x and the sums: what finish needs of channels and tokens. */
typedef struct scales {
    float *w_scale, *bias, *x_scale; /* [16 per_run] twice, [M] */
    int32_t *col_sum, *x_zero;
} scales;

/* Of the weights: before the kernel ahead has ended. */
DEV void load_channels(const scales *s, const decode_args *g, int n0, int n_channels)
{
    for (int i = threadIdx.x; i < n_channels; i += WARPS * 32) {
        const int n = min(n0 + i, g->N - 1);
        s->w_scale[i] = g->w_scale[(int64_t)n * g->w_scale_stride];
        s->bias[i] = g->bias ? g->bias[n] : -0.0f; /* y + -0.0 is y, bit for bit */
        s->col_sum[i] = g->col_sum[n];
    }
}

DEV void load_tokens(const scales *s, const decode_args *g)
{
    const int m = threadIdx.x;
    if (m >= g->M) return;
    s->x_scale[m] = g->x_scale[m * g->x_scale_stride];
    s->x_zero[m] = g->x_zero ? g->x_zero[m * g->x_zero_stride] : 0;
}

/* y before the residual; channel at of the run. Channel c of a panel is row c / 2, and 8 more
 * if odd, of its fragment. */
DEV float scaled(const decode_args *g, uint32_t sums, const scales *s, int m, int at)
{
    const int row = at % 16 / 2 + at % 2 * 8;
    const uint32_t from = sums + 4 * ((at / 16 * g->M + m) * SUMS_STRIDE + row);
    int32_t acc = 0;
    for (int part = 0; part < g->n_parts; part++) acc += load_part(from, part, g->n_parts);
    const int32_t sum = (acc >> 4) - s->x_zero[m] * s->col_sum[at];
    const float scale = __fmul_rn(s->x_scale[m], s->w_scale[at]);
    return __fadd_rn(__fmul_rn((float)sum, scale), s->bias[at]);
}

DEV void finish(const decode_args *g, uint32_t sums, const scales *s, int panel0, int n_panels,
                int rank)
{
    const int per_output = g->gated ? 2 : 1, width = 16 / per_output * n_panels;
#pragma unroll 1
    for (int i = threadIdx.x; i < width * g->M; i += WARPS * 32) {
        const int m = i / width, at = i % width * per_output, n = panel0 * 16 + at;
        if (n >= g->N || at / 16 % g->n_parts != rank) continue;
        float y = scaled(g, sums, s, m, at);
        if (g->gated) y = gated(y, scaled(g, sums, s, m, at + 1));
        if (g->residual) y = __fadd_rn(y, g->residual[m * g->ldr + n]);
        const int64_t to = m * g->ldy + n / per_output;
        if (g->y_bf16) ((uint16_t *)g->y)[to] = (uint16_t)bf16x2(y, 0.0f);
        else ((float *)g->y)[to] = y;
    }
}

/* Blocks of the largest part: every part's sums lie at the same place. */
static __host__ __device__ int max_part(const decode_args *g)
{
    return (g->n_blocks + g->n_parts - 1) / g->n_parts;
}

DEV scales scales_in(void *raw, const decode_args *g)
{
    float *at = (float *)((uint8_t *)raw + BARRIER_BYTES + g->M * x_pitch(max_part(g)) +
                          g->per_run * g->M * SUMS_STRIDE * 4);
    const int n = 16 * g->per_run;
    const scales s = {at, at + n, at + 2 * n, (int32_t *)at + 2 * n + g->M,
                      (int32_t *)at + 3 * n + g->M};
    return s;
}

DEV void sync_parts(int n_parts)
{
    if (n_parts == 1) __syncthreads();
    else cluster_sync();
}

template <int NT>
__global__
__launch_bounds__(WARPS * 32,
                  flight<NT>::ctas) void decode_kernel(const __grid_constant__ decode_args g)
{
    const int DEPTH = flight<NT>::depth;
    extern __shared__ __align__(128) uint32_t raw[];
    const int rank = g.n_parts == 1 ? 0 : (int)cluster_rank();
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int b0 = rank * g.n_blocks / g.n_parts;
    const int n_part = (rank + 1) * g.n_blocks / g.n_parts - b0;
    const int panel0 = blockIdx.x / g.n_parts * g.per_run;
    const int n_panels = min(g.per_run, g.n_panels - panel0), total = n_panels * n_part;
    const int first = warp * total / WARPS, end = (warp + 1) * total / WARPS;
    const int skip = (g.n_blocks - n_part) * 512;
    const scales sc = scales_in(raw, &g);
    const uint32_t bar = smem_addr(raw), x_smem = bar + BARRIER_BYTES;
    const uint32_t sums = x_smem + g.M * x_pitch(max_part(&g));
    int panel = first / n_part, k = first % n_part;
    reader r = {g.w + ((int64_t)(panel0 + panel) * g.n_blocks + b0 + k) * 512 + lane * 16, k,
                end - first};
    uint32_t q[DEPTH][4], x[NT];
    int32_t acc[4 * NT] = {};

#pragma unroll
    for (int i = 0; i < DEPTH; i++) load_next(q[i], &r, n_part, skip);
    launch_dependents();
    if (threadIdx.x == 0) {
        mbar_init(bar, 1);
        mbar_init_fence();
    }
    load_channels(&sc, &g, panel0 * 16, n_panels * 16);
    for (int i = threadIdx.x; i < n_panels * g.M * SUMS_STRIDE; i += WARPS * 32)
        asm volatile("st.shared.s32 [%0], 0;" ::"r"(sums + 4 * i) : "memory");
    __syncthreads();
    wait_for_kernel_ahead();
    if (warp < 2) fetch_x(x_smem, &g, b0, n_part, bar);
    load_tokens(&sc, &g);
    __syncthreads();
    mbar_wait(bar, 0);
#pragma unroll
    for (int t = 0; t < NT; t++)
        x[t] = x_smem + min(8 * t + lane % 8, g.M - 1) * x_pitch(n_part) + lane / 8 * 16;
    for (int at = first; at < end; at += DEPTH)
#pragma unroll
        for (int i = 0; i < DEPTH; i++) {
            if (at + i >= end) break;
            multiply_block<NT>(acc, q[i], x, k);
            load_next(q[i], &r, n_part, skip);
            if (++k == n_part) {
                flush<NT>(acc, sums, &g, panel++, lane);
                k = 0;
            }
        }
    if (k > 0 && first < end) flush<NT>(acc, sums, &g, panel, lane);
    sync_parts(g.n_parts);
    finish(&g, sums, &sc, panel0, n_panels, rank);
    if (g.n_parts > 1) cluster_sync(); /* the others read this one's sums */
}

/* ---- host -------------------------------------------------------------------------------- */

/* Of x and what goes with its rows; panel_bytes: the same of a panel. */
static int x_bytes(const decode_args *a)
{
    return BARRIER_BYTES + a->M * (max_part(a) * 64 + X_PITCH + 8);
}

static int panel_bytes(const decode_args *a)
{
    return a->M * SUMS_STRIDE * 4 + 16 * 12;
}

static decode_args make_args(const fl_cuda_gemm *g, fl_cuda_gemm_plan plan, int n_sm)
{
    const fl_cuda_weight *w = g->w;
    decode_args a = {};
    a.x = g->x;
    a.w = w->data;
    a.x_scale = g->x_scale;
    a.w_scale = g->w_scale;
    a.bias = g->bias;
    a.residual = g->residual;
    a.x_zero = g->x_zero;
    a.col_sum = w->col_sum;
    a.y = g->y;
    a.ldx = g->ldx;
    a.ldy = g->ldy;
    a.ldr = g->ldr;
    a.x_scale_stride = g->x_scale_stride;
    a.x_zero_stride = g->x_zero_stride;
    a.w_scale_stride = g->w_scale_stride;
    a.M = g->M;
    a.N = w->N;
    a.n_panels = w->N_pad / 16;
    a.n_blocks = w->K_pad / 64;
    a.y_bf16 = g->y_bf16 || g->gated;
    a.gated = g->gated;
    const int room = a.M <= 32 ? 1 : 2; /* a multiprocessor's, in halves */
    a.n_parts = plan.decode_parts > 0 ? plan.decode_parts : 1;
    const int most = plan.decode_parts > 0 ? SMEM_MAX - panel_bytes(&a) : room * X_BYTES;
    while (a.n_parts < MAX_PARTS && x_bytes(&a) > most) a.n_parts *= 2;
    if (plan.decode_parts == 0 && a.n_parts == 1 && a.M > 8 &&
        (int64_t)x_bytes(&a) * n_sm * plan.decode_ctas > (int64_t)a.n_panels * a.n_blocks * 512)
        a.n_parts = 2; /* every CTA reads x: more than the weights */
    while (a.n_parts > a.n_blocks) a.n_parts /= 2;
    const int n_runs = FL_MAX(1, n_sm * plan.decode_ctas / a.n_parts);
    a.per_run = (a.n_panels + n_runs - 1) / n_runs;
    a.per_run =
        FL_MAX(1, FL_MIN(a.per_run, (room * SMEM_BYTES - x_bytes(&a)) / panel_bytes(&a)));
    return a;
}

template <int NT> static cudaError_t launch(const decode_args *a, cudaStream_t stream)
{
    cudaLaunchAttribute attributes[2];
    cudaLaunchConfig_t config = {};
    const int n_runs = (a->n_panels + a->per_run - 1) / a->per_run;
    attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[0].val.programmaticStreamSerializationAllowed = 1;
    attributes[1].id = cudaLaunchAttributeClusterDimension;
    attributes[1].val.clusterDim.x = (unsigned)a->n_parts;
    attributes[1].val.clusterDim.y = attributes[1].val.clusterDim.z = 1;
    config.gridDim = dim3((unsigned)(n_runs * a->n_parts));
    config.blockDim = dim3(WARPS * 32);
    config.dynamicSmemBytes = (size_t)(x_bytes(a) + a->per_run * panel_bytes(a));
    config.stream = stream;
    config.attrs = attributes;
    config.numAttrs = a->n_parts > 1 ? 2 : 1;
    /* all of the multiprocessor's memory as shared, or the next launch may not fit beside this
     * one; the limit is the same for every problem, since graphs keep the kernel */
    const void *kernel = (const void *)decode_kernel<NT>;
    cudaError_t e = cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout,
                                         cudaSharedmemCarveoutMaxShared);
    if (e == cudaSuccess)
        e = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, SMEM_MAX);
    if (e != cudaSuccess) return e;
    return cudaLaunchKernelEx(&config, decode_kernel<NT>, *a);
}

extern "C" fl_status fl__cuda_gemm_w4_decode(const fl_cuda_gemm *g, fl_cuda_gemm_plan plan,
                                             int n_sm, void *stream, fl_err *err)
{
    const decode_args a = make_args(g, plan, n_sm);
    cudaError_t e = cudaErrorInvalidValue;
    if (g->M <= 8) e = launch<1>(&a, (cudaStream_t)stream);
    else if (g->M <= 16) e = launch<2>(&a, (cudaStream_t)stream);
    else if (g->M <= 32) e = launch<4>(&a, (cudaStream_t)stream);
    else if (g->M <= 64) e = launch<8>(&a, (cudaStream_t)stream);
    if (e != cudaSuccess)
        return fl__fail(err, FL_E_FAIL, "cuda: decode gemm [%d, %d, %d]: %s; see the GPU's log",
                        g->M, g->w->N, g->w->K, cudaGetErrorString(e));
    return FL_OK;
}
