/* gemm_w4_decode.cu - GEMM for up to 16 tokens: streams the 4-bit weights once.
 *
 * Memory-bound: what matters is bytes in flight. The unit of work is a panel of 16 channels,
 * whose K the 16 warps of a CTA share (and the CTAs of a cluster, where x would not fit in
 * shared memory otherwise); CTAs stride over the panels. Each warp has a ring of slots of 2 KB
 * (4 blocks of layout n16k64) that its lane 0 refills with bulk copies, panels ahead, so all of
 * shared memory that x leaves is in flight and no other warp is waited for. A block is one
 * 16-byte load per lane, two expansions to int8 and two mma m16n8k32 per 8 tokens.
 *
 * x lies in shared memory as [block of 64 k][token][q = 0..3][j = 0..3], the word of k = 16 j +
 * 4 q: the four B registers of a lane are one load. The warps' exact int32 sums are added in
 * shared memory (the cluster's: rank 0's), in any order; then one thread per output scales.
 * SPDX-License-Identifier: MIT */
#include "cuda/gemm_cuda.h"

#include "cuda/sm90.h"

#include <cuda_runtime.h>

enum {
    N_WARPS = 16,
    SLOT_BLOCKS = 4,
    SLOT_BYTES = SLOT_BLOCKS * 512,
    MAX_SLOTS = 6,
    SUMS_STRIDE = 20, /* of a token's 16 sums: conflict-free adds */
    SMEM_MAX = 232448,
    MAX_X_BYTES = 65536,
};

typedef struct decode_args {
    const int8_t *x;
    const uint8_t *w;
    const float *x_scale, *w_scale, *bias;
    const int32_t *x_zero, *col_sum;
    void *y;
    int64_t ldx, ldy;
    int x_scale_stride, x_zero_stride, w_scale_stride;
    int M, N, n_panels, n_blocks; /* blocks of 64 k */
    int n_slots, n_parts;         /* CTAs of a cluster */
    bool y_bf16;
} decode_args;

/* A warp's stream of weights: chunks of up to SLOT_BLOCKS blocks, panel after panel. */
typedef struct stream {
    const uint8_t *w;
    uint32_t ring, bars;
    int b0, b1;                      /* its blocks of every panel */
    int per_panel, n_chunks;         /* chunks */
    int first_panel, step, n_blocks; /* of the problem */
    int n_slots;
} stream;

DEV void refill(const stream *s, int chunk, int slot)
{
    if (chunk >= s->n_chunks) return;
    const int panel = s->first_panel + chunk / s->per_panel * s->step;
    const int block = s->b0 + chunk % s->per_panel * SLOT_BLOCKS;
    const uint32_t n_bytes = min((int)SLOT_BLOCKS, s->b1 - block) * 512;
    mbar_expect(s->bars + 8 * slot, n_bytes);
    bulk_load(s->ring + slot * SLOT_BYTES, s->w + ((int64_t)panel * s->n_blocks + block) * 512,
              n_bytes, s->bars + 8 * slot);
}

DEV void fill_x(uint32_t *x_smem, const decode_args *g, int b0, int n_blocks)
{
    for (int i = threadIdx.x; i < n_blocks * g->M * 4; i += N_WARPS * 32) {
        const int j = i % 4, block = i / 4 % n_blocks, m = i / 4 / n_blocks;
        const uint4 v = *(const uint4 *)(g->x + m * g->ldx + (b0 + block) * 64 + 16 * j);
        uint32_t *to = x_smem + (block * g->M + m) * 16 + j;
        to[0] = v.x;
        to[4] = v.y;
        to[8] = v.z;
        to[12] = v.w;
    }
}

/* acc += one block: 16 channels x 64 k times up to 8 NT tokens. x: the lane's word address. */
template <int NT> DEV void multiply_block(int32_t *acc, uint32_t w, uint32_t x, int lane, int M)
{
    uint32_t q[4], a[4], b[4];
    lds128(q, w + lane * 16);
#pragma unroll
    for (int j = 0; j < 4; j++) expand_w4(&a[j], &b[j], q[j]);
#pragma unroll
    for (int t = 0; t < NT; t++) {
        uint32_t v[4] = {0, 0, 0, 0};
        if (8 * t + lane / 4 < M) lds128(v, x + 8 * t * 64);
        mma_s8(acc + 4 * t, a, v[0], v[1]);
        mma_s8(acc + 4 * t, b, v[2], v[3]);
    }
}

template <int NT>
DEV void add_sums(uint32_t sums, const int32_t *acc, const decode_args *g, int lane)
{
#pragma unroll
    for (int i = 0; i < 4 * NT; i++) {
        const int token = i / 4 * 8 + 2 * (lane % 4) + i % 2,
                  channel = lane / 4 + i % 4 / 2 * 8;
        if (token >= g->M) continue;
        const uint32_t to = sums + 4 * (token * SUMS_STRIDE + channel);
        if (g->n_parts == 1)
            asm volatile("red.shared::cta.add.s32 [%0], %1;" ::"r"(to), "r"(acc[i]) : "memory");
        else
            asm volatile(
                "red.relaxed.cluster.shared::cluster.add.s32 [%0], %1;" ::"r"(mapa(to, 0)),
                "r"(acc[i])
                : "memory");
    }
}

/* The output that a thread scales: token tid / 16, channel tid % 16 of each panel. */
typedef struct output {
    float x_scale, w_scale, bias;
    int32_t x_zero, col_sum;
    bool mine;
} output;

DEV void load_channel(output *o, const decode_args *g, int panel)
{
    const int n = panel * 16 + threadIdx.x % 16;
    if (!o->mine || n >= g->N) return;
    o->w_scale = g->w_scale[(int64_t)n * g->w_scale_stride];
    o->bias = g->bias ? g->bias[n] : -0.0f; /* y + -0.0 is y, bit for bit */
    o->col_sum = g->col_sum[n];
}

DEV void finish(const output *o, const decode_args *g, uint32_t sums, int panel)
{
    const int m = threadIdx.x / 16, n = panel * 16 + threadIdx.x % 16;
    const uint32_t at = sums + 4 * (m * SUMS_STRIDE + threadIdx.x % 16);
    int32_t acc;
    if (!o->mine) return;
    asm volatile("ld.shared.s32 %0, [%1];\n"
                 "st.shared.s32 [%1], 0;"
                 : "=&r"(acc)
                 : "r"(at)
                 : "memory");
    if (n >= g->N) return;
    const int32_t sum = (acc >> 4) - o->x_zero * o->col_sum;
    const float scale = __fmul_rn(o->x_scale, o->w_scale);
    const float y = __fadd_rn(__fmul_rn((float)sum, scale), o->bias);
    if (g->y_bf16) ((uint16_t *)g->y)[m * g->ldy + n] = (uint16_t)bf16x2(y, 0.0f);
    else ((float *)g->y)[m * g->ldy + n] = y;
}

DEV stream open_stream(const decode_args *g, uint32_t ring, uint32_t bars, int b0, int n_blocks)
{
    const int warp = threadIdx.x / 32, cluster = blockIdx.x / g->n_parts;
    const int n_panels = (g->n_panels - cluster + (int)gridDim.x / g->n_parts - 1) /
                         ((int)gridDim.x / g->n_parts);
    stream s;
    s.w = g->w;
    s.ring = ring + warp * g->n_slots * SLOT_BYTES;
    s.bars = bars + warp * MAX_SLOTS * 8;
    s.b0 = b0 + warp * n_blocks / N_WARPS;
    s.b1 = b0 + (warp + 1) * n_blocks / N_WARPS;
    s.per_panel = (s.b1 - s.b0 + SLOT_BLOCKS - 1) / SLOT_BLOCKS;
    s.n_chunks = n_panels * s.per_panel;
    s.first_panel = cluster;
    s.step = gridDim.x / g->n_parts;
    s.n_blocks = g->n_blocks;
    s.n_slots = g->n_slots;
    return s;
}

DEV void sync_parts(const decode_args *g)
{
    if (g->n_parts == 1) __syncthreads();
    else cluster_sync();
}

template <int NT>
__global__ __launch_bounds__(N_WARPS * 32,
                             1) void decode_kernel(const __grid_constant__ decode_args g)
{
    extern __shared__ __align__(128) uint8_t raw[];
    __shared__ uint64_t bars[N_WARPS * MAX_SLOTS];
    __shared__ int32_t sums[2 * 8 * NT * SUMS_STRIDE];
    const int rank = g.n_parts == 1 ? 0 : (int)cluster_rank(), lane = threadIdx.x % 32;
    const int b0 = rank * g.n_blocks / g.n_parts;
    const int n_blocks = (rank + 1) * g.n_blocks / g.n_parts - b0;
    const stream s = open_stream(&g, smem_addr(raw), smem_addr(bars), b0, n_blocks);
    uint32_t *x_smem = (uint32_t *)(raw + g.n_slots * N_WARPS * SLOT_BYTES);
    const uint32_t x = smem_addr(x_smem) + lane * 16, x_block = g.M * 64;
    output o = {};
    int chunk = 0, slot = 0, buffer = 0;
    uint32_t parity = 0;

    if (lane == 0) {
#pragma unroll 1
        for (int i = 0; i < g.n_slots; i++) mbar_init(s.bars + 8 * i, 1);
        mbar_init_fence();
#pragma unroll 1
        for (int i = 0; i < g.n_slots; i++) refill(&s, i, i);
    }
    for (int i = threadIdx.x; i < 2 * 8 * NT * SUMS_STRIDE; i += N_WARPS * 32) sums[i] = 0;
    fill_x(x_smem, &g, b0, n_blocks);
    o.mine = rank == 0 && (int)threadIdx.x / 16 < g.M;
    if (o.mine) {
        o.x_scale = g.x_scale[threadIdx.x / 16 * g.x_scale_stride];
        o.x_zero = g.x_zero ? g.x_zero[threadIdx.x / 16 * g.x_zero_stride] : 0;
    }
    sync_parts(&g);
    for (int panel = s.first_panel; panel < g.n_panels; panel += s.step) {
        int32_t acc[4 * NT] = {};
        load_channel(&o, &g, panel);
        for (int b = s.b0; b < s.b1; b += SLOT_BLOCKS) {
            const uint32_t w = s.ring + slot * SLOT_BYTES, xb = x + (b - b0) * x_block;
            mbar_wait(s.bars + 8 * slot, parity);
#pragma unroll
            for (int i = 0; i < SLOT_BLOCKS; i++)
                if (b + i < s.b1)
                    multiply_block<NT>(acc, w + i * 512, xb + i * x_block, lane, g.M);
            __syncwarp();
            if (lane == 0) refill(&s, chunk + s.n_slots, slot);
            chunk++;
            if (++slot == s.n_slots) slot = 0, parity ^= 1;
        }
        const uint32_t at = smem_addr(sums + buffer * 8 * NT * SUMS_STRIDE);
        add_sums<NT>(at, acc, &g, lane);
        sync_parts(&g);
        finish(&o, &g, at, panel);
        buffer ^= 1;
    }
    if (g.n_parts > 1) cluster_sync(); /* rank 0 outlives the others' adds */
}

/* ---- host -------------------------------------------------------------------------------- */

static decode_args make_args(const fl_cuda_gemm *g)
{
    const fl_cuda_weight *w = g->w;
    decode_args a = {};
    a.x = g->x;
    a.ldx = g->ldx;
    a.w = w->data;
    a.x_scale = g->x_scale;
    a.x_scale_stride = g->x_scale_stride;
    a.x_zero = g->x_zero;
    a.x_zero_stride = g->x_zero_stride;
    a.w_scale = g->w_scale;
    a.w_scale_stride = g->w_scale_stride;
    a.bias = g->bias;
    a.col_sum = w->col_sum;
    a.y = g->y;
    a.ldy = g->ldy;
    a.y_bf16 = g->y_bf16;
    a.M = g->M;
    a.N = w->N;
    a.n_panels = w->N_pad / 16;
    a.n_blocks = w->K_pad / 64;
    return a;
}

/* Bytes of x that a CTA keeps when a cluster of n_parts shares K. */
static int x_bytes(const decode_args *a, int n_parts)
{
    return (a->n_blocks + n_parts - 1) / n_parts * a->M * 64;
}

template <int NT> static cudaError_t launch(decode_args *a, int n_sm, cudaStream_t stream)
{
    cudaLaunchAttribute attribute[1];
    cudaLaunchConfig_t config = {};
    int n_clusters = n_sm;
    cudaError_t e;

    a->n_parts = 1;
    while (a->n_parts < 8 && x_bytes(a, a->n_parts) > MAX_X_BYTES) a->n_parts *= 2;
    const int fixed = x_bytes(a, a->n_parts) + 4096; /* and the static arrays */
    a->n_slots = FL_MIN((SMEM_MAX - fixed) / (N_WARPS * SLOT_BYTES), (int)MAX_SLOTS);
    if (a->n_slots < 1) return cudaErrorInvalidValue;
    attribute[0].id = cudaLaunchAttributeClusterDimension;
    attribute[0].val.clusterDim.x = (unsigned)a->n_parts;
    attribute[0].val.clusterDim.y = attribute[0].val.clusterDim.z = 1;
    config.blockDim = dim3(N_WARPS * 32);
    config.gridDim = dim3((unsigned)(n_sm / a->n_parts * a->n_parts));
    config.dynamicSmemBytes =
        (size_t)(a->n_slots * N_WARPS * SLOT_BYTES + x_bytes(a, a->n_parts));
    config.stream = stream;
    config.attrs = attribute;
    config.numAttrs = a->n_parts > 1;
    e = cudaFuncSetAttribute(decode_kernel<NT>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                             SMEM_MAX - 4096);
    if (e != cudaSuccess) return e;
    if (a->n_parts > 1)
        e = cudaOccupancyMaxActiveClusters(&n_clusters, decode_kernel<NT>, &config);
    if (e != cudaSuccess) return e;
    n_clusters = FL_MIN(n_clusters, a->n_panels);
    config.gridDim = dim3((unsigned)(n_clusters * a->n_parts));
    return cudaLaunchKernelEx(&config, decode_kernel<NT>, *a);
}

extern "C" fl_status fl__cuda_gemm_w4_decode(const fl_cuda_gemm *g, int n_sm, void *stream,
                                             fl_err *err)
{
    decode_args a = make_args(g);
    cudaError_t e = cudaErrorInvalidValue;
    if (g->M <= 8) e = launch<1>(&a, n_sm, (cudaStream_t)stream);
    else if (g->M <= 16) e = launch<2>(&a, n_sm, (cudaStream_t)stream);
    if (e != cudaSuccess)
        return fl__fail(err, FL_E_FAIL, "cuda: decode gemm [%d, %d, %d]: %s; see the GPU's log",
                        g->M, g->w->N, g->w->K, cudaGetErrorString(e));
    return FL_OK;
}
