/* bench_gemm_cuda.cu - the GPU's integer GEMMs against cuBLASLt's bf16 and int8, same run.
 *
 * Each contestant is a CUDA graph of launches that rotate through its own weights (more than
 * 240 MB, past L2) and two activations and outputs; graphs take turns, medians of rounds.
 * cuBLASLt: the fastest of its heuristic list of 16, 64 MB workspace; int8 gives int32 without
 * scales, which ours have on top, and once more with a pass that scales them to bf16. "read"
 * only reads the 4-bit weights: the floor of decoding. Random data: bytes for codes (-8..7 for
 * 4-bit activations), near-normal bf16.
 * SPDX-License-Identifier: MIT */
#include "cuda_test.h"

#include <cublasLt.h>
#include <cuda_bf16.h>
#include <string.h>

enum { ROUNDS = 9, MAX_ENTRIES = 40, MAX_WEIGHTS = 64, N_SETS = 2 };

static const size_t ROTATE_BYTES = 256u << 20, BLAS_WORKSPACE = 64u << 20;

#define BLAS_OK(call)                                                                          \
    do {                                                                                       \
        const cublasStatus_t blas_status = (call);                                             \
        if (blas_status != CUBLAS_STATUS_SUCCESS) {                                            \
            printf("%s:%d: %s: status %d\n", __FILE__, __LINE__, #call, (int)blas_status);     \
            exit(1);                                                                           \
        }                                                                                      \
    } while (0)

/* A matrix product of cuBLASLt: y [M, N] = x [M, K] * w [N, K]^T, all row-major. */
typedef struct blas_gemm {
    cublasLtMatmulDesc_t desc;
    cublasLtMatrixLayout_t a, b, c;
    cublasLtMatmulHeuristicResult_t algos[16];
    int n_algos, best;
    bool int8;
} blas_gemm;

typedef struct bench {
    int n_sm, M, N, K;
    cudaStream_t stream;
    cublasLtHandle_t blas;
    void *blas_workspace;
    uint64_t *ticks; /* of a multiprocessor before and after a graph, and the time then */
    int32_t *workspace;
} bench;

typedef enum entry_kind { ENTRY_OURS, ENTRY_BLAS, ENTRY_READ } entry_kind;

typedef struct entry {
    char name[48];
    entry_kind kind;
    gemm_kind gemm;
    fl_cuda_gemm_plan plan;
    blas_gemm *blas;
    bool scale_pass; /* int32 of cuBLASLt to bf16 in scaled */
    uint16_t *scaled;
    int n_weights;
    size_t weight_bytes; /* of one */
    void *weights[MAX_WEIGHTS];
    void *x[N_SETS], *y[N_SETS];
    float *x_scale, *w_scale;
    int32_t *x_zero, *col_sum;
    cudaGraphExec_t graph;
    int n_launches;
    float ms[ROUNDS], ghz[ROUNDS];
} entry;

typedef enum fill { FILL_BYTES, FILL_NIBBLES, FILL_BF16, FILL_F32, FILL_ZERO } fill;

__global__ void fill_kernel(uint32_t *p, size_t n, uint32_t seed, fill how)
{
    size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x;
    for (; i < n; i += (size_t)gridDim.x * blockDim.x) {
        uint64_t h = (i + ((uint64_t)seed << 32)) * 0x9e3779b97f4a7c15ull;
        h = (h ^ h >> 30) * 0xbf58476d1ce4e5b9ull;
        h = (h ^ h >> 27) * 0x94d049bb133111ebull;
        h ^= h >> 31;
        const uint32_t r = (uint32_t)h;
        if (how == FILL_BYTES) p[i] = r;
        if (how == FILL_ZERO) p[i] = 0;
        if (how == FILL_F32) p[i] = __float_as_uint(1e-3f * (1 + r % 1024));
        if (how == FILL_NIBBLES) {
            uint32_t v = 0;
            for (int b = 0; b < 4; b++)
                v |= (uint32_t)(uint8_t)(int8_t)((int)(r >> 8 * b & 15) - 8) << 8 * b;
            p[i] = v;
        }
        if (how == FILL_BF16) {
            float s[2] = {0, 0};
            for (int b = 0; b < 4; b++) {
                s[0] += (float)(int)(h >> 8 * b & 255) - 127.5f;
                s[1] += (float)(int)(h >> (32 + 8 * b) & 255) - 127.5f;
            }
            p[i] = (uint32_t)__bfloat16_as_ushort(__float2bfloat16(s[0] / 148)) |
                   (uint32_t)__bfloat16_as_ushort(__float2bfloat16(s[1] / 148)) << 16;
        }
    }
}

static bool only_zeros;

static void *filled(size_t n_bytes, fill how, uint32_t seed)
{
    if (only_zeros) how = FILL_ZERO;
    void *p = gpu_alloc((n_bytes + 255) / 256 * 256);
    fill_kernel<<<1024, 256>>>((uint32_t *)p, (n_bytes + 3) / 4, seed, how);
    CUDA_OK(cudaGetLastError());
    return p;
}

/* ---- contestants ------------------------------------------------------------------------- */

/* Four int32 sums per thread and step to bf16; N % 4 == 0. */
__global__ void scale_kernel(uint16_t *y, const int32_t *sums, const float *x_scale,
                             const float *w_scale, int M, int N)
{
    const int64_t n_quads = (int64_t)M * N / 4;
    int64_t i = blockIdx.x * (int64_t)blockDim.x + threadIdx.x;
    for (; i < n_quads; i += (int64_t)gridDim.x * blockDim.x) {
        const int m = (int)(i * 4 / N), n = (int)(i * 4 % N);
        const int4 v = ((const int4 *)sums)[i];
        const float4 w = *(const float4 *)(w_scale + n);
        const float s = x_scale[m];
        __nv_bfloat162 out[2];
        out[0] = __floats2bfloat162_rn((float)v.x * (s * w.x), (float)v.y * (s * w.y));
        out[1] = __floats2bfloat162_rn((float)v.z * (s * w.z), (float)v.w * (s * w.w));
        ((uint2 *)y)[i] = *(const uint2 *)out;
    }
}

/* Reads n 16-byte words; y is never written, but the compiler cannot know. */
__global__ void read_kernel(uint32_t *y, const uint4 *p, size_t n)
{
    const size_t step = (size_t)gridDim.x * blockDim.x;
    size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x;
    uint32_t all = 0;
    for (; i + 7 * step < n; i += 8 * step) {
        uint4 v[8];
#pragma unroll
        for (int j = 0; j < 8; j++) v[j] = __ldcs(p + i + j * step);
#pragma unroll
        for (int j = 0; j < 8; j++) all |= v[j].x & v[j].y & v[j].z & v[j].w;
    }
    for (; i < n; i += step) all |= __ldcs(&p[i]).x;
    if (all == 0x12345678u) *y = all;
}

/* Clock ticks of this multiprocessor, the time in ns, and which it is. */
__global__ void ticks_kernel(uint64_t *out)
{
    uint32_t sm;
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(out[1]));
    out[0] = clock64();
    asm volatile("mov.u32 %0, %%smid;" : "=r"(sm));
    out[2] = sm;
}

/* GHz between the two; 0 when they were on different multiprocessors. */
static float clock_rate(const bench *b)
{
    uint64_t t[6];
    CUDA_OK(cudaMemcpy(t, b->ticks, sizeof t, cudaMemcpyDeviceToHost));
    return t[2] == t[5] ? (float)((double)(t[3] - t[0]) / (double)(t[4] - t[1])) : 0.0f;
}

static void launch_entry(const bench *b, const entry *e, int i)
{
    void *w = e->weights[i % e->n_weights], *x = e->x[i % N_SETS], *y = e->y[i % N_SETS];
    if (e->kind == ENTRY_BLAS) {
        const blas_gemm *g = e->blas;
        const float one = 1.0f, zero = 0.0f;
        const int32_t one_i = 1, zero_i = 0;
        BLAS_OK(cublasLtMatmul(b->blas, g->desc, g->int8 ? (const void *)&one_i : &one, w, g->a,
                               x, g->b, g->int8 ? (const void *)&zero_i : &zero, y, g->c, y,
                               g->c, &g->algos[g->best].algo, b->blas_workspace, BLAS_WORKSPACE,
                               b->stream));
        if (e->scale_pass)
            scale_kernel<<<b->n_sm * 8, 256, 0, b->stream>>>(
                e->scaled, (const int32_t *)y, e->x_scale, e->w_scale, b->M, b->N);
        return;
    }
    if (e->kind == ENTRY_READ) {
        read_kernel<<<b->n_sm * 2, 512, 0, b->stream>>>((uint32_t *)y, (const uint4 *)w,
                                                        e->weight_bytes / 16);
        return;
    }
    const fl_cuda_weight weight = {e->gemm == GEMM_W8 ? 8 : 4, b->N,      b->K, b->N, b->K,
                                   (const uint8_t *)w,         e->col_sum};
    fl_cuda_gemm g = {};
    g.x = (const int8_t *)x;
    g.ldx = b->K;
    g.x_scale = e->x_scale;
    g.x_zero = e->x_zero;
    g.w_scale = e->w_scale;
    g.x_scale_stride = g.x_zero_stride = g.w_scale_stride = 1;
    g.w = &weight;
    g.y = y;
    g.ldy = b->N;
    g.y_bf16 = true;
    g.M = b->M;
    g.workspace = b->workspace;
    const bool named = e->plan.tokens > 0 || e->plan.decode_ctas > 0;
    const fl_cuda_gemm_plan plan = named ? e->plan : fl__cuda_gemm_plan(&g, b->n_sm);
    run_gemm(e->gemm, &g, plan, b->n_sm, b->stream);
}

static float time_launches(const bench *b, const entry *e, int n)
{
    cudaEvent_t start, stop;
    float ms;
    CUDA_OK(cudaEventCreate(&start));
    CUDA_OK(cudaEventCreate(&stop));
    for (int i = 0; i < 3; i++) launch_entry(b, e, i);
    CUDA_OK(cudaEventRecord(start, b->stream));
    for (int i = 0; i < n; i++) launch_entry(b, e, i);
    CUDA_OK(cudaEventRecord(stop, b->stream));
    CUDA_OK(cudaEventSynchronize(stop));
    CUDA_OK(cudaEventElapsedTime(&ms, start, stop));
    CUDA_OK(cudaEventDestroy(start));
    CUDA_OK(cudaEventDestroy(stop));
    return ms / n;
}

static void blas_open(const bench *b, entry *e, bool int8)
{
    blas_gemm *g = (blas_gemm *)calloc(1, sizeof *g);
    const cudaDataType_t in = int8 ? CUDA_R_8I : CUDA_R_16BF;
    const cudaDataType_t out = int8 ? CUDA_R_32I : CUDA_R_16BF;
    const cublasOperation_t transpose = CUBLAS_OP_T;
    cublasLtMatmulPreference_t preference;
    g->int8 = int8;
    BLAS_OK(cublasLtMatmulDescCreate(&g->desc, int8 ? CUBLAS_COMPUTE_32I : CUBLAS_COMPUTE_32F,
                                     int8 ? CUDA_R_32I : CUDA_R_32F));
    BLAS_OK(cublasLtMatmulDescSetAttribute(g->desc, CUBLASLT_MATMUL_DESC_TRANSA, &transpose,
                                           sizeof transpose));
    BLAS_OK(cublasLtMatrixLayoutCreate(&g->a, in, b->K, b->N, b->K));
    BLAS_OK(cublasLtMatrixLayoutCreate(&g->b, in, b->K, b->M, b->K));
    BLAS_OK(cublasLtMatrixLayoutCreate(&g->c, out, b->N, b->M, b->N));
    BLAS_OK(cublasLtMatmulPreferenceCreate(&preference));
    BLAS_OK(cublasLtMatmulPreferenceSetAttribute(preference,
                                                 CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                                                 &BLAS_WORKSPACE, sizeof BLAS_WORKSPACE));
    if (cublasLtMatmulAlgoGetHeuristic(b->blas, g->desc, g->a, g->b, g->c, g->c, preference, 16,
                                       g->algos, &g->n_algos) != CUBLAS_STATUS_SUCCESS)
        g->n_algos = 0;
    BLAS_OK(cublasLtMatmulPreferenceDestroy(preference));
    e->kind = ENTRY_BLAS;
    e->blas = g;
}

static void blas_pick(const bench *b, entry *e)
{
    float best = 1e30f;
    int winner = 0;
    for (int i = 0; i < e->blas->n_algos; i++) {
        e->blas->best = i;
        if (e->blas->algos[i].state != CUBLAS_STATUS_SUCCESS) continue;
        const float ms = time_launches(b, e, 6);
        if (ms < best) best = ms, winner = i;
    }
    e->blas->best = winner;
}

static void entry_buffers(const bench *b, entry *e, size_t weight_bytes, fill w, fill x,
                          size_t x_size, size_t y_size)
{
    e->weight_bytes = weight_bytes;
    e->n_weights = (int)FL_MIN((size_t)MAX_WEIGHTS, ROTATE_BYTES / weight_bytes + 2);
    for (int i = 0; i < e->n_weights; i++) e->weights[i] = filled(weight_bytes, w, i + 1);
    for (int i = 0; i < N_SETS; i++) {
        e->x[i] = filled((size_t)b->M * b->K * x_size, x, 100 + i);
        e->y[i] = filled((size_t)b->M * b->N * y_size, FILL_ZERO, 0);
    }
    if (e->kind == ENTRY_BLAS && !e->scale_pass) return;
    if (e->scale_pass) e->scaled = (uint16_t *)gpu_alloc(2 * (size_t)b->M * b->N);
    e->x_scale = (float *)filled(4 * (size_t)b->M, FILL_F32, 7);
    e->w_scale = (float *)filled(4 * (size_t)b->N, FILL_F32, 8);
    e->x_zero = (int32_t *)filled(4 * (size_t)b->M, FILL_ZERO, 0);
    e->col_sum = (int32_t *)filled(4 * (size_t)b->N, FILL_BYTES, 9);
}

static entry *add_ours(const bench *b, entry *e, const char *name, gemm_kind gemm)
{
    const size_t bits = gemm == GEMM_W8 ? 8 : 4;
    memset(e, 0, sizeof *e);
    snprintf(e->name, sizeof e->name, "%s", name);
    e->gemm = gemm;
    entry_buffers(b, e, (size_t)b->N * b->K * bits / 8, FILL_BYTES,
                  bits == 4 ? FILL_NIBBLES : FILL_BYTES, 1, 2);
    return e;
}

/* False when cuBLASLt has nothing for the shape. */
static bool add_blas(const bench *b, entry *e, const char *name, bool int8, bool scale_pass)
{
    memset(e, 0, sizeof *e);
    snprintf(e->name, sizeof e->name, "%s", name);
    blas_open(b, e, int8);
    if (e->blas->n_algos == 0) return false;
    e->scale_pass = scale_pass;
    entry_buffers(b, e, (size_t)b->N * b->K * (int8 ? 1 : 2), int8 ? FILL_BYTES : FILL_BF16,
                  int8 ? FILL_BYTES : FILL_BF16, int8 ? 1 : 2, int8 ? 4 : 2);
    blas_pick(b, e);
    return true;
}

static void entry_free(entry *e)
{
    for (int i = 0; i < e->n_weights; i++) CUDA_OK(cudaFree(e->weights[i]));
    for (int i = 0; i < N_SETS; i++) CUDA_OK(cudaFree(e->x[i]));
    for (int i = 0; i < N_SETS; i++) CUDA_OK(cudaFree(e->y[i]));
    CUDA_OK(cudaFree(e->scaled));
    CUDA_OK(cudaFree(e->x_scale));
    CUDA_OK(cudaFree(e->w_scale));
    CUDA_OK(cudaFree(e->x_zero));
    CUDA_OK(cudaFree(e->col_sum));
    if (e->graph) CUDA_OK(cudaGraphExecDestroy(e->graph));
    if (!e->blas) return;
    cublasLtMatmulDescDestroy(e->blas->desc);
    cublasLtMatrixLayoutDestroy(e->blas->a);
    cublasLtMatrixLayoutDestroy(e->blas->b);
    cublasLtMatrixLayoutDestroy(e->blas->c);
    free(e->blas);
}

/* ---- measuring --------------------------------------------------------------------------- */

static void make_graph(const bench *b, entry *e)
{
    cudaGraph_t graph;
    const float ms = time_launches(b, e, 5);
    e->n_launches = (int)FL_MIN(400.0f, FL_MAX(4.0f, 4.0f / FL_MAX(ms, 1e-3f)));
    CUDA_OK(cudaStreamBeginCapture(b->stream, cudaStreamCaptureModeThreadLocal));
    for (int i = 0; i < e->n_launches; i++) launch_entry(b, e, i);
    CUDA_OK(cudaStreamEndCapture(b->stream, &graph));
    CUDA_OK(cudaGraphInstantiate(&e->graph, graph, 0));
    CUDA_OK(cudaGraphDestroy(graph));
}

static int by_value(const void *a, const void *b)
{
    const float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

static void measure(const bench *b, entry *entries, int n)
{
    cudaEvent_t start, stop;
    CUDA_OK(cudaEventCreate(&start));
    CUDA_OK(cudaEventCreate(&stop));
    for (int i = 0; i < n; i++) make_graph(b, &entries[i]);
    for (int round = -1; round < ROUNDS; round++)
        for (int i = 0; i < n; i++) {
            float ms;
            ticks_kernel<<<1, 1, 0, b->stream>>>(b->ticks);
            CUDA_OK(cudaEventRecord(start, b->stream));
            CUDA_OK(cudaGraphLaunch(entries[i].graph, b->stream));
            CUDA_OK(cudaEventRecord(stop, b->stream));
            ticks_kernel<<<1, 1, 0, b->stream>>>(b->ticks + 3);
            CUDA_OK(cudaStreamSynchronize(b->stream));
            CUDA_OK(cudaEventElapsedTime(&ms, start, stop));
            if (round >= 0) entries[i].ms[round] = ms / entries[i].n_launches;
            if (round >= 0) entries[i].ghz[round] = clock_rate(b);
        }
    for (int i = 0; i < n; i++) {
        qsort(entries[i].ms, ROUNDS, sizeof(float), by_value);
        qsort(entries[i].ghz, ROUNDS, sizeof(float), by_value);
    }
    CUDA_OK(cudaEventDestroy(start));
    CUDA_OK(cudaEventDestroy(stop));
}

static void print_entry(const bench *b, const entry *e, float bf16_ms, float int8_ms)
{
    const double ms = e->ms[ROUNDS / 2], ops = 2.0 * b->M * b->N * b->K;
    printf("%5d %6d %6d  %-26s %9.4f %8.1f %7.3f", b->M, b->N, b->K, e->name, ms,
           ops / ms * 1e-9, e->weight_bytes / ms * 1e-9);
    if (bf16_ms > 0) printf(" %7.2f", bf16_ms / ms);
    if (int8_ms > 0) printf(" %7.2f", int8_ms / ms);
    printf("  %.2f GHz", e->ghz[ROUNDS / 2]);
    printf("\n");
}

static int add_plan(const bench *b, entry *entries, int n, gemm_kind kind,
                    fl_cuda_gemm_plan plan)
{
    char name[48];
    snprintf(name, sizeof name, "w%d %d/%d group %d shift %d", kind == GEMM_W4 ? 4 : 8,
             plan.tokens, plan.n_split, plan.group, plan.shift);
    add_ours(b, &entries[n], name, kind)->plan = plan;
    return n + 1;
}

/* Small problems: every tile and split. Large ones: every group and shift. */
static int add_plans(const bench *b, entry *entries, int n, gemm_kind kind)
{
    static const int groups[][2] = {{4, 0}, {12, 0}, {4, 3}, {4, 4}, {4, 5}, {12, 5}};
    if (b->M > 512) {
        for (size_t i = 0; i < FL_COUNT(groups); i++)
            n = add_plan(b, entries, n, kind, {256, 1, 0, 0, groups[i][0], groups[i][1]});
        return n;
    }
    for (int tokens = 64; tokens <= FL_MIN(256, b->M); tokens *= 2)
        for (int n_split = 1; n_split <= 8; n_split *= 2)
            n = add_plan(b, entries, n, kind, {tokens, n_split, 0, 0, 4, 0});
    return n;
}

static int add_decode(const bench *b, entry *entries, int n, bool plans)
{
    add_ours(b, &entries[n], "read", GEMM_DECODE);
    entries[n++].kind = ENTRY_READ;
    for (int parts = plans ? 1 : 0; parts <= (plans ? 8 : 0); parts += parts ? parts : 1) {
        char name[48];
        entry *e = &entries[n++];
        snprintf(name, sizeof name, "w4 decode, %d parts", parts);
        add_ours(b, e, name, GEMM_DECODE);
        e->plan.decode_ctas = b->M <= 32 ? 2 : 1;
        e->plan.decode_parts = parts;
    }
    return n;
}

static void bench_shape(const bench *b, bool plans)
{
    entry *entries = (entry *)calloc(MAX_ENTRIES, sizeof *entries);
    float bf16_ms = 0, int8_ms = 0;
    int n = 0, bf16 = -1, int8 = -1;
    if (add_blas(b, &entries[n], "cublasLt bf16", false, false)) bf16 = n++;
    if (add_blas(b, &entries[n], "cublasLt int8->int32", true, false)) int8 = n++;
    if (add_blas(b, &entries[n], "cublasLt int8 + scale", true, true)) n++;
    if (b->M <= 64) n = add_decode(b, entries, n, plans);
    add_ours(b, &entries[n++], "w4 prefill", GEMM_W4);
    add_ours(b, &entries[n++], "w8 prefill", GEMM_W8);
    if (plans) n = add_plans(b, entries, n, GEMM_W4);
    if (plans && b->M > 512) n = add_plans(b, entries, n, GEMM_W8);
    measure(b, entries, n);
    if (bf16 >= 0) bf16_ms = entries[bf16].ms[ROUNDS / 2];
    if (int8 >= 0) int8_ms = entries[int8].ms[ROUNDS / 2];
    for (int i = 0; i < n; i++) print_entry(b, &entries[i], bf16_ms, int8_ms);
    fflush(stdout);
    for (int i = 0; i < n; i++) entry_free(&entries[i]);
    free(entries);
}

static void print_copy_rate(const bench *b)
{
    const size_t n_bytes = (size_t)1 << 30;
    void *from = filled(n_bytes, FILL_BYTES, 3);
    printf("copy: %.3f TB/s (read + write)\n", 1e-9 * gpu_copy_rate(from, n_bytes, b->stream));
    CUDA_OK(cudaFree(from));
}

void bench_gemm(int n_sm, bench_choice choice)
{
    static const int shapes[][2] = {{6144, 4096}, {4096, 4096}, {28672, 4096}, {4096, 14336}};
    static const int rows[] = {1, 4, 16, 24, 32, 64, 256, 2048, 8192};
    bench b = {};
    only_zeros = choice.zeros;
    b.n_sm = n_sm;
    CUDA_OK(cudaStreamCreate(&b.stream));
    BLAS_OK(cublasLtCreate(&b.blas));
    b.blas_workspace = gpu_alloc(BLAS_WORKSPACE);
    b.ticks = (uint64_t *)gpu_alloc(6 * sizeof(uint64_t));
    b.workspace = (int32_t *)filled(fl__cuda_gemm_workspace_bytes(), FILL_ZERO, 0);
    CUDA_OK(cudaDeviceSynchronize());
    print_copy_rate(&b);
    printf("ratios: speed over cuBLASLt bf16, over its int8; TB/s counts weights\n");
    printf("%5s %6s %6s  %-26s %9s %8s %7s %7s %7s\n", "M", "N", "K", "kernel", "ms", "TOPS",
           "TB/s", "/bf16", "/int8");
    for (size_t i = 0; i < FL_COUNT(rows); i++)
        for (size_t j = 0; j < FL_COUNT(shapes); j++) {
            if (choice.quick && (rows[i] == 4 || rows[i] == 24)) continue;
            if (rows[i] < choice.min_rows || rows[i] > choice.max_rows) continue;
            b.M = rows[i];
            b.N = shapes[j][0];
            b.K = shapes[j][1];
            CUDA_OK(cudaDeviceSynchronize());
            bench_shape(&b, choice.plans);
        }
    BLAS_OK(cublasLtDestroy(b.blas));
    CUDA_OK(cudaStreamDestroy(b.stream));
    CUDA_OK(cudaFree(b.blas_workspace));
    CUDA_OK(cudaFree(b.ticks));
    CUDA_OK(cudaFree(b.workspace));
}
