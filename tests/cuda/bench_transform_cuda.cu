/* bench_transform_cuda.cu - transform + quantise against the bytes it must move, and against
 * two cuBLASLt products and a quantising pass, same run.
 *
 * Every contestant is a CUDA graph of launches that rotate through inputs and outputs of more
 * than 240 MB, past L2; medians of rounds. The floor is input + codes + 12 bytes a row at the
 * rate of a device copy of 1 GB (read + write) in this run.
 * SPDX-License-Identifier: MIT */
#include "check_transform_cuda.h"

#include <cublasLt.h>
#include <functional>
#include <string.h>

enum { ROUNDS = 9, MAX_SETS = 64 };

static const size_t ROTATE_BYTES = 256u << 20, BLAS_WORKSPACE = 64u << 20;

#define BLAS_OK(call)                                                                          \
    do {                                                                                       \
        const cublasStatus_t blas_status = (call);                                             \
        if (blas_status != CUBLAS_STATUS_SUCCESS) {                                            \
            printf("%s:%d: %s: status %d\n", __FILE__, __LINE__, #call, (int)blas_status);     \
            exit(1);                                                                           \
        }                                                                                      \
    } while (0)

typedef std::function<void(cudaStream_t, int)> launcher;

/* Near-normal bf16 pairs, or float32. */
__global__ void fill_rows(uint32_t *p, size_t n, uint32_t seed, bool f32)
{
    size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x;
    for (; i < n; i += (size_t)gridDim.x * blockDim.x) {
        uint64_t h = (i + ((uint64_t)seed << 32)) * 0x9e3779b97f4a7c15ull;
        float s[2] = {0, 0};
        h = (h ^ h >> 30) * 0xbf58476d1ce4e5b9ull;
        h = (h ^ h >> 27) * 0x94d049bb133111ebull;
        h ^= h >> 31;
        for (int b = 0; b < 4; b++) {
            s[0] += ((float)(int)(h >> 8 * b & 255) - 127.5f) / 148;
            s[1] += ((float)(int)(h >> (32 + 8 * b) & 255) - 127.5f) / 148;
        }
        p[i] = f32 ? __float_as_uint(s[0])
                   : __float_as_uint(s[0]) >> 16 | (__float_as_uint(s[1]) & 0xffff0000u);
    }
}

static void *random_rows(size_t n_bytes, uint32_t seed, bool f32)
{
    void *p = gpu_alloc((n_bytes + 255) / 256 * 256);
    fill_rows<<<1024, 256>>>((uint32_t *)p, n_bytes / 4, seed, f32);
    CUDA_OK(cudaGetLastError());
    CUDA_OK(cudaDeviceSynchronize());
    return p;
}

static int by_value(const void *a, const void *b)
{
    const float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

static float measure(cudaStream_t stream, const launcher &launch, float budget_ms)
{
    cudaEvent_t start, stop;
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    float ms[ROUNDS], once;
    CUDA_OK(cudaEventCreate(&start));
    CUDA_OK(cudaEventCreate(&stop));
    for (int i = 0; i < 3; i++) launch(stream, i);
    CUDA_OK(cudaEventRecord(start, stream));
    for (int i = 0; i < 5; i++) launch(stream, i);
    CUDA_OK(cudaEventRecord(stop, stream));
    CUDA_OK(cudaEventSynchronize(stop));
    CUDA_OK(cudaEventElapsedTime(&once, start, stop));
    const int n = (int)FL_MIN(300.0f, FL_MAX(8.0f, budget_ms * 5 / FL_MAX(once, 1e-3f)));
    CUDA_OK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
    for (int i = 0; i < n; i++) launch(stream, i);
    CUDA_OK(cudaStreamEndCapture(stream, &graph));
    CUDA_OK(cudaGraphInstantiate(&exec, graph, 0));
    for (int i = -1; i < ROUNDS; i++) {
        CUDA_OK(cudaEventRecord(start, stream));
        CUDA_OK(cudaGraphLaunch(exec, stream));
        CUDA_OK(cudaEventRecord(stop, stream));
        CUDA_OK(cudaEventSynchronize(stop));
        CUDA_OK(cudaEventElapsedTime(&ms[i < 0 ? 0 : i], start, stop));
    }
    qsort(ms, ROUNDS, sizeof(float), by_value);
    CUDA_OK(cudaGraphExecDestroy(exec));
    CUDA_OK(cudaGraphDestroy(graph));
    CUDA_OK(cudaEventDestroy(start));
    CUDA_OK(cudaEventDestroy(stop));
    return ms[ROUNDS / 2] / (float)n;
}

static double copy_rate(cudaStream_t stream)
{
    const size_t n_bytes = (size_t)1 << 30;
    void *from = random_rows(n_bytes, 3, false);
    const double rate = gpu_copy_rate(from, n_bytes, stream);
    CUDA_OK(cudaFree(from));
    return rate;
}

/* ---- baseline ---------------------------------------------------------------------------- */

/* The plain quantising pass: symmetric 4 bits, one CTA per row of n % 8 == 0 bf16. */
__global__ void plain_quantize(int8_t *codes, float *scale, const uint4 *x, int n)
{
    __shared__ float tops[8];
    float top = 0;
    x += (int64_t)blockIdx.x * n / 8;
    for (int c = threadIdx.x; c < n / 8; c += 256) {
        const uint4 v = x[c];
        const uint32_t w[4] = {v.x, v.y, v.z, v.w};
        for (int i = 0; i < 4; i++)
            top = fmaxf(top, fmaxf(fabsf(__uint_as_float(w[i] << 16)),
                                   fabsf(__uint_as_float(w[i] & 0xffff0000u))));
    }
    top = __uint_as_float(__reduce_max_sync(0xffffffffu, __float_as_uint(top)));
    if (threadIdx.x % 32 == 0) tops[threadIdx.x / 32] = top;
    __syncthreads();
    for (int i = 0; i < 8; i++) top = fmaxf(top, tops[i]);
    if (threadIdx.x == 0) scale[blockIdx.x] = top / 7;
    const float inv = 7 / top;
    for (int c = threadIdx.x; c < n / 8; c += 256) {
        const uint4 v = x[c];
        const uint32_t w[4] = {v.x, v.y, v.z, v.w};
        int8_t q[8];
        for (int i = 0; i < 4; i++) {
            q[2 * i] = (int8_t)__float2int_rn(__uint_as_float(w[i] << 16) * inv);
            q[2 * i + 1] = (int8_t)__float2int_rn(__uint_as_float(w[i] & 0xffff0000u) * inv);
        }
        *(uint2 *)(codes + (int64_t)blockIdx.x * n + 8 * c) = *(uint2 *)q;
    }
}

typedef struct blas_gemm {
    cublasLtMatmulDesc_t desc;
    cublasLtMatrixLayout_t a, b, c;
    cublasLtMatmulHeuristicResult_t algos[16];
    int n_algos, best;
} blas_gemm;

typedef struct blas {
    cublasLtHandle_t handle;
    void *workspace;
} blas;

static cublasLtMatrixLayout_t layout(int rows, int cols, int batch, int64_t stride)
{
    cublasLtMatrixLayout_t l;
    BLAS_OK(cublasLtMatrixLayoutCreate(&l, CUDA_R_16BF, rows, cols, rows));
    BLAS_OK(cublasLtMatrixLayoutSetAttribute(l, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, &batch,
                                             sizeof batch));
    BLAS_OK(cublasLtMatrixLayoutSetAttribute(l, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET,
                                             &stride, sizeof stride));
    return l;
}

static void blas_run(const blas *b, const blas_gemm *g, const void *p, const void *q, void *out,
                     cudaStream_t stream)
{
    const float one = 1, zero = 0;
    BLAS_OK(cublasLtMatmul(b->handle, g->desc, &one, p, g->a, q, g->b, &zero, out, g->c, out,
                           g->c, &g->algos[g->best].algo, b->workspace, BLAS_WORKSPACE,
                           stream));
}

/* Column-major out [m, n] = p [m, k] q [k, n] (q transposed: q [n, k]) in a batch. */
static bool blas_open(const blas *b, blas_gemm *g, bool transposed)
{
    cublasLtMatmulPreference_t preference;
    const cublasOperation_t op = transposed ? CUBLAS_OP_T : CUBLAS_OP_N;
    BLAS_OK(cublasLtMatmulDescCreate(&g->desc, CUBLAS_COMPUTE_32F, CUDA_R_32F));
    BLAS_OK(
        cublasLtMatmulDescSetAttribute(g->desc, CUBLASLT_MATMUL_DESC_TRANSB, &op, sizeof op));
    BLAS_OK(cublasLtMatmulPreferenceCreate(&preference));
    BLAS_OK(cublasLtMatmulPreferenceSetAttribute(preference,
                                                 CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                                                 &BLAS_WORKSPACE, sizeof BLAS_WORKSPACE));
    if (cublasLtMatmulAlgoGetHeuristic(b->handle, g->desc, g->a, g->b, g->c, g->c, preference,
                                       16, g->algos, &g->n_algos) != CUBLAS_STATUS_SUCCESS)
        g->n_algos = 0;
    BLAS_OK(cublasLtMatmulPreferenceDestroy(preference));
    return g->n_algos > 0;
}

static void blas_pick(const blas *b, blas_gemm *g, const void *p, const void *q, void *out,
                      cudaStream_t stream)
{
    float best = 1e30f;
    int winner = 0;
    for (int i = 0; i < FL_MIN(g->n_algos, 8); i++) {
        g->best = i;
        const float ms = measure(
            stream, [=](cudaStream_t s, int) { blas_run(b, g, p, q, out, s); }, 0.1f);
        if (ms < best) best = ms, winner = i;
    }
    g->best = winner;
}

/* ms of the two products and the pass, or 0. */
static float baseline(const blas *b, int M, int n1, int n2, const void *const *x, int n_sets,
                      int8_t *const *codes, float *scale, cudaStream_t stream)
{
    const int n = n1 * n2;
    blas_gemm first = {}, second = {};
    void *y = gpu_alloc(2 * (size_t)M * n), *out = gpu_alloc(2 * (size_t)M * n);
    void *right = random_rows(2 * n2 * n2, 5, false),
         *left = random_rows(2 * n1 * n1, 6, false);
    float ms = 0;
    /* column-major Y^T = right^T X^T, and X'^T = Y^T left */
    first.a = layout(n2, n2, 1, 0);
    first.b = layout(n2, M * n1, 1, 0);
    first.c = layout(n2, M * n1, 1, 0);
    second.a = layout(n2, n1, M, n);
    second.b = layout(n1, n1, M, 0);
    second.c = layout(n2, n1, M, n);
    if (blas_open(b, &first, false) && blas_open(b, &second, true)) {
        blas_pick(b, &first, right, x[0], y, stream);
        blas_pick(b, &second, y, left, out, stream);
        ms = measure(
            stream,
            [=](cudaStream_t s, int i) {
                blas_run(b, &first, right, x[i % n_sets], y, s);
                blas_run(b, &second, y, left, out, s);
                plain_quantize<<<M, 256, 0, s>>>(codes[i % n_sets], scale, (uint4 *)out, n);
            },
            4);
    }
    CUDA_OK(cudaFree(y));
    CUDA_OK(cudaFree(out));
    CUDA_OK(cudaFree(left));
    CUDA_OK(cudaFree(right));
    return ms;
}

/* ---- ours -------------------------------------------------------------------------------- */

typedef struct buffers {
    int n_sets;
    void *x[MAX_SETS];
    int8_t *codes[MAX_SETS];
    float *vector; /* ones and so on: [n] random */
    float *scale;
    int32_t *sum, *zero;
    void *factors;
} buffers;

static void buffers_init(buffers *b, int M, int n, size_t factor_bytes)
{
    const size_t row = 4 * (size_t)n;
    b->n_sets = (int)FL_MIN((size_t)MAX_SETS, ROTATE_BYTES / (row * M) + 2);
    for (int i = 0; i < b->n_sets; i++) {
        b->x[i] = random_rows(row * M, i + 1, false);
        b->codes[i] = (int8_t *)gpu_alloc((size_t)M * n);
    }
    b->vector = (float *)random_rows(row, 50, true);
    b->scale = (float *)gpu_alloc(4 * M);
    b->sum = (int32_t *)gpu_alloc(4 * M);
    b->zero = (int32_t *)gpu_alloc(4 * M);
    b->factors = random_rows(factor_bytes, 60, false);
}

static void buffers_free(buffers *b)
{
    for (int i = 0; i < b->n_sets; i++) CUDA_OK(cudaFree(b->x[i]));
    for (int i = 0; i < b->n_sets; i++) CUDA_OK(cudaFree(b->codes[i]));
    CUDA_OK(cudaFree(b->vector));
    CUDA_OK(cudaFree(b->scale));
    CUDA_OK(cudaFree(b->sum));
    CUDA_OK(cudaFree(b->zero));
    CUDA_OK(cudaFree(b->factors));
}

static void print_line(int M, int n, const char *name, float ms, double n_bytes, double rate)
{
    const double floor_ms = n_bytes / rate;
    printf("%6d %6d  %-22s %9.4f %9.4f %7.2f %6.1f %%\n", M, n, name, ms, floor_ms,
           ms / floor_ms, 100 * floor_ms / ms);
    fflush(stdout);
}

static fl_cuda_codes codes_of(const buffers *b, int i, int n)
{
    const fl_cuda_codes y = {b->codes[i % b->n_sets], n, b->sum, b->scale, b->zero};
    return y;
}

/* Fronts: 0 bf16, 1 f32 normed, 2 silu * up. */
static float bench_front(const buffers *b, int front, int M, int n1, int n2, int n_sm,
                         cudaStream_t stream)
{
    const int n = n1 * n2;
    return measure(
        stream,
        [=](cudaStream_t s, int i) {
            const fl_cuda_transform t = {n1, n2, b->factors};
            const fl_cuda_grid grid = {4, false, 0.95f, 0.95f};
            const fl_cuda_codes y = codes_of(b, i, n);
            fl_cuda_row x = {};
            fl_err err = {};
            x.x = b->x[i % b->n_sets];
            x.ldx = n;
            x.x_f32 = front == 1;
            x.eps = 1e-5f;
            if (front == 1) x.gain = b->vector;
            if (front == 2) x.up = (const uint16_t *)x.x + (size_t)M * n;
            if (fl__cuda_transform_quantize(&y, &x, M, &t, &grid, n_sm, s, &err) != FL_OK) {
                printf("%s\n", err.text);
                exit(1);
            }
        },
        4);
}

/* sums: of the codes, which the GPU's own GEMMs do not need. */
static float bench_static(const buffers *b, int M, int n, bool sums, int n_sm,
                          cudaStream_t stream)
{
    return measure(
        stream,
        [=](cudaStream_t s, int i) {
            const fl_cuda_quantize_static spec = {n,   0,         10.0f,     0,    -127, 127,
                                                  127, b->vector, b->vector, NULL, NULL};
            fl_cuda_codes y = codes_of(b, i, n);
            fl_cuda_row x = {};
            fl_err err = {};
            if (!sums) y.x_sum = NULL;
            x.x = b->x[i % b->n_sets];
            x.ldx = n;
            if (fl__cuda_quantize_static(&y, &x, M, &spec, n_sm, s, &err) != FL_OK) {
                printf("%s\n", err.text);
                exit(1);
            }
        },
        4);
}

static void bench_shape(const blas *bl, int M, int n1, int n2, double rate, int n_sm,
                        cudaStream_t stream)
{
    static const char *const names[] = {"kron bf16", "kron norm f32", "kron silu*up"};
    static const int in_bytes[] = {2, 4, 4};
    const int n = n1 * n2;
    buffers b;
    buffers_init(&b, M, n, fl__cuda_transform_bytes(n1, n2));
    for (int f = 0; f < 3; f++)
        print_line(M, n, names[f], bench_front(&b, f, M, n1, n2, n_sm, stream),
                   (double)M * ((in_bytes[f] + 1.0) * n + 12), rate);
    print_line(M, n, "static bf16", bench_static(&b, M, n, true, n_sm, stream),
               (double)M * (3.0 * n + 4), rate);
    print_line(M, n, "static bf16, no sums", bench_static(&b, M, n, false, n_sm, stream),
               (double)M * 3.0 * n, rate);
    const float ms = baseline(bl, M, n1, n2, b.x, b.n_sets, b.codes, b.scale, stream);
    if (ms > 0) print_line(M, n, "2 cublasLt + quantise", ms, (double)M * (3.0 * n + 4), rate);
    buffers_free(&b);
}

/* ---- small ops --------------------------------------------------------------------------- */

typedef enum small_op { NORM, TOKEN, SILU_MUL, ROPE, EMBED, N_SMALL_OPS } small_op;

typedef struct small_bench {
    buffers b;
    int M, n;
    int32_t *ids;
} small_bench;

static fl_status run_small(const small_bench *s, small_op op, int i, cudaStream_t stream,
                           fl_err *err)
{
    const int M = s->M, n = s->n;
    void *set = s->b.x[i % s->b.n_sets];
    const fl_cuda_matrix x = {set, n, false}, f32 = {set, n, true};
    const fl_cuda_matrix y = {s->b.codes[i % s->b.n_sets], n, false};
    const fl_cuda_matrix half = {(uint16_t *)set + (size_t)M * n, n, false};
    const fl_cuda_grid grid = {8, false, 1, 1};
    const fl_cuda_codes codes = {(int8_t *)y.data, n, s->b.sum, s->b.scale, s->b.zero};
    fl_cuda_row row = {};
    row.x = set;
    row.ldx = n;
    switch (op) {
    case NORM:
        return fl__cuda_rms_norm(&y, &f32, s->b.vector, M, n, 1e-5f, stream, err);
    case TOKEN:
        return fl__cuda_quantize_token(&codes, &row, M, n, &grid, stream, err);
    case SILU_MUL:
        return fl__cuda_silu_mul(&y, &x, (uint16_t *)half.data, M, n, stream, err);
    case ROPE:
        return fl__cuda_rope(&x, s->b.vector, s->b.vector, s->ids, M, n / 128, 128, stream,
                             err);
    default:
        return fl__cuda_embed(&half, (uint16_t *)s->b.x[(i + 1) % s->b.n_sets], s->ids, M, n, M,
                              stream, err);
    }
}

static void bench_small(int M, int n, double rate, cudaStream_t stream)
{
    static const char *const names[] = {"rms_norm f32 > bf16", "quantise per token", "silu_mul",
                                        "rope bf16", "embed bf16"};
    static const int bytes[] = {6, 3, 6, 4, 4};
    small_bench s = {};
    s.M = M, s.n = n;
    buffers_init(&s.b, M, 2 * n, 1024); /* codes hold n bf16 */
    int32_t *ids = (int32_t *)malloc(4 * M);
    for (int i = 0; i < M; i++) ids[i] = (int)((int64_t)i * 7919 % M) % 64;
    s.ids = (int32_t *)gpu_copy(ids, 4 * M);
    for (int i = 0; i < M; i++) ids[i] = (int)((int64_t)i * 7919 % M);
    int32_t *rows = (int32_t *)gpu_copy(ids, 4 * M), *positions = s.ids;
    for (int op = 0; op < N_SMALL_OPS; op++) {
        s.ids = op == EMBED ? rows : positions;
        const float ms = measure(
            stream,
            [=](cudaStream_t to, int i) {
                fl_err err = {};
                if (run_small(&s, (small_op)op, i, to, &err) == FL_OK) return;
                printf("%s\n", err.text);
                exit(1);
            },
            4);
        print_line(M, n, names[op], ms, (double)M * n * bytes[op], rate);
    }
    CUDA_OK(cudaFree(rows));
    CUDA_OK(cudaFree(positions));
    buffers_free(&s.b);
    free(ids);
}

void bench_transform(int n_sm, bool quick)
{
    static const int shapes[][2] = {{64, 64}, {64, 128}, {112, 128}, {86, 128}};
    static const int rows[] = {8192, 2048, 64, 16, 1};
    cudaStream_t stream;
    blas b;
    CUDA_OK(cudaStreamCreate(&stream));
    BLAS_OK(cublasLtCreate(&b.handle));
    b.workspace = gpu_alloc(BLAS_WORKSPACE);
    const double rate = copy_rate(stream);
    printf("copy: %.3f TB/s (read + write)\n", rate * 1e-9);
    printf("%6s %6s  %-22s %9s %9s %7s %8s\n", "M", "n", "kernel", "ms", "floor", "ratio",
           "of copy");
    for (size_t r = 0; r < FL_COUNT(rows); r++)
        for (size_t s = 0; s < FL_COUNT(shapes); s++) {
            if (quick && rows[r] == 64 && shapes[s][0] != 64) continue;
            bench_shape(&b, rows[r], shapes[s][0], shapes[s][1], rate, n_sm, stream);
        }
    bench_small(8192, 4096, rate, stream);
    BLAS_OK(cublasLtDestroy(b.handle));
    CUDA_OK(cudaFree(b.workspace));
    CUDA_OK(cudaStreamDestroy(stream));
}
