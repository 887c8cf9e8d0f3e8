/* gemm_cublas.c - plans of cuBLASLt's products, one per shape, kept.
 *
 * In cuBLASLt's column-major words: D [N, M] = W^T-flagged [K, N] times X [K, M]. A plan is
 * made at the first call of a shape: the candidates of its heuristic, timed one against the
 * other on the call's own operands where that changes nothing (accumulating calls take the
 * first one), and never while the stream is being captured.
 * SPDX-License-Identifier: MIT */
#include "cuda/gemm_cublas.h"

#include "base/mem.h"

#include <cublasLt.h>
#include <cuda_runtime_api.h>
#include <string.h>

enum { MAX_PLANS = 256, CANDIDATES = 8, RUNS = 5 };
static const size_t WORKSPACE = (size_t)64 << 20;

typedef struct plan {
    int M, N, K;
    int64_t ldx, ldy;
    bool y_f32, accumulate, bias;
    cublasLtMatmulDesc_t op;
    cublasLtMatrixLayout_t w, x, y;
    cublasLtMatmulAlgo_t algo;
} plan;

struct fl_cuda_bf16 {
    cublasLtHandle_t handle;
    void *workspace;
    plan plans[MAX_PLANS];
    int n_plans;
};

static fl_status failed(cublasStatus_t s, const fl_cuda_gemm_bf16 *g, fl_err *err)
{
    return fl__fail(err, FL_E_FAIL, "cuda: bf16 gemm [%d, %d, %d]: %s; see the GPU's log", g->M,
                    g->N, g->K, cublasLtGetStatusString(s));
}

size_t fl__cuda_bf16_workspace_bytes(void)
{
    return WORKSPACE;
}

fl_status fl__cuda_bf16_new(fl_cuda_bf16 **out, fl_err *err)
{
    *out = NULL;
    fl_cuda_bf16 *b = fl__calloc(1, sizeof *b);
    if (!b) return fl__fail_nomem(err, "cuBLASLt", sizeof *b);
    if (cublasLtCreate(&b->handle) != CUBLAS_STATUS_SUCCESS) {
        fl__free(&b);
        return fl__fail(err, FL_E_FAIL, "cuda: cuBLASLt does not start; see the GPU's log");
    }
    if (cudaMalloc(&b->workspace, WORKSPACE) != cudaSuccess) {
        fl__cuda_bf16_free(&b);
        return fl__fail_nomem(err, "cuBLASLt's workspace on the GPU", WORKSPACE);
    }
    *out = b;
    return FL_OK;
}

static void plan_fini(plan *p)
{
    if (p->op) (void)cublasLtMatmulDescDestroy(p->op);
    if (p->w) (void)cublasLtMatrixLayoutDestroy(p->w);
    if (p->x) (void)cublasLtMatrixLayoutDestroy(p->x);
    if (p->y) (void)cublasLtMatrixLayoutDestroy(p->y);
    memset(p, 0, sizeof *p);
}

void fl__cuda_bf16_free(fl_cuda_bf16 **out)
{
    fl_cuda_bf16 *b = *out;
    if (!b) return;
    for (int i = 0; i < b->n_plans; i++) plan_fini(&b->plans[i]);
    if (b->workspace) (void)cudaFree(b->workspace);
    if (b->handle) (void)cublasLtDestroy(b->handle);
    fl__free(out);
}

static bool is_for(const plan *p, const fl_cuda_gemm_bf16 *g)
{
    return p->M == g->M && p->N == g->N && p->K == g->K && p->ldx == g->ldx &&
           p->ldy == g->ldy && p->y_f32 == g->y_f32 && p->accumulate == g->accumulate &&
           p->bias == (g->bias != NULL);
}

static cublasStatus_t describe(plan *p, const fl_cuda_gemm_bf16 *g)
{
    const cublasOperation_t t = CUBLAS_OP_T;
    const cudaDataType_t y = g->y_f32 ? CUDA_R_32F : CUDA_R_16BF;
    const cublasLtEpilogue_t bias = CUBLASLT_EPILOGUE_BIAS;
    const uint64_t K = (uint64_t)g->K, N = (uint64_t)g->N, M = (uint64_t)g->M;
    cublasStatus_t s = cublasLtMatmulDescCreate(&p->op, CUBLAS_COMPUTE_32F, CUDA_R_32F);
    if (!s)
        s = cublasLtMatmulDescSetAttribute(p->op, CUBLASLT_MATMUL_DESC_TRANSA, &t, sizeof t);
    if (!s && g->bias)
        s = cublasLtMatmulDescSetAttribute(p->op, CUBLASLT_MATMUL_DESC_EPILOGUE, &bias,
                                           sizeof bias);
    if (!s && g->bias)
        s = cublasLtMatmulDescSetAttribute(p->op, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &g->bias,
                                           sizeof g->bias);
    if (!s) s = cublasLtMatrixLayoutCreate(&p->w, CUDA_R_16BF, K, N, g->K);
    if (!s) s = cublasLtMatrixLayoutCreate(&p->x, CUDA_R_16BF, K, M, g->ldx);
    return s ? s : cublasLtMatrixLayoutCreate(&p->y, y, N, M, g->ldy);
}

static cublasStatus_t multiply(fl_cuda_bf16 *b, const plan *p, const cublasLtMatmulAlgo_t *algo,
                               const fl_cuda_gemm_bf16 *g, cudaStream_t stream)
{
    const float alpha = 1, beta = g->accumulate ? 1 : 0;
    return cublasLtMatmul(b->handle, p->op, &alpha, g->w, p->w, g->x, p->x, &beta, g->y, p->y,
                          g->y, p->y, algo, b->workspace, WORKSPACE, stream);
}

/* Milliseconds of RUNS calls; negative: it does not run. */
static float time_of(fl_cuda_bf16 *b, const plan *p, const cublasLtMatmulAlgo_t *algo,
                     const fl_cuda_gemm_bf16 *g, cudaStream_t stream, cudaEvent_t event[2])
{
    float ms = -1;
    for (int i = -1; i < RUNS; i++) {
        if (i == 0 && cudaEventRecord(event[0], stream) != cudaSuccess) return -1;
        if (multiply(b, p, algo, g, stream) != CUBLAS_STATUS_SUCCESS) return -1;
    }
    if (cudaEventRecord(event[1], stream) != cudaSuccess ||
        cudaEventSynchronize(event[1]) != cudaSuccess ||
        cudaEventElapsedTime(&ms, event[0], event[1]) != cudaSuccess)
        return -1;
    return ms;
}

static void take_fastest(fl_cuda_bf16 *b, plan *p, const cublasLtMatmulHeuristicResult_t *found,
                         int n, const fl_cuda_gemm_bf16 *g, cudaStream_t stream)
{
    enum cudaStreamCaptureStatus capturing = cudaStreamCaptureStatusNone;
    cudaEvent_t event[2] = {NULL, NULL};
    float best = -1;
    p->algo = found[0].algo;
    (void)cudaStreamIsCapturing(stream, &capturing);
    if (g->accumulate || n < 2 || capturing != cudaStreamCaptureStatusNone) return;
    if (cudaEventCreate(&event[0]) == cudaSuccess && cudaEventCreate(&event[1]) == cudaSuccess)
        for (int i = 0; i < n; i++) {
            const float ms = time_of(b, p, &found[i].algo, g, stream, event);
            if (ms < 0 || (best >= 0 && ms >= best)) continue;
            best = ms;
            p->algo = found[i].algo;
        }
    for (int i = 0; i < 2; i++)
        if (event[i]) (void)cudaEventDestroy(event[i]);
}

static fl_status make_plan(fl_cuda_bf16 *b, plan *p, const fl_cuda_gemm_bf16 *g,
                           cudaStream_t stream, fl_err *err)
{
    cublasLtMatmulHeuristicResult_t found[CANDIDATES];
    cublasLtMatmulPreference_t preference = NULL;
    int n = 0;
    *p = (plan){.M = g->M,
                .N = g->N,
                .K = g->K,
                .ldx = g->ldx,
                .ldy = g->ldy,
                .y_f32 = g->y_f32,
                .accumulate = g->accumulate,
                .bias = g->bias != NULL};
    cublasStatus_t s = describe(p, g);
    if (!s) s = cublasLtMatmulPreferenceCreate(&preference);
    if (!s)
        s = cublasLtMatmulPreferenceSetAttribute(
            preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &WORKSPACE, sizeof WORKSPACE);
    if (!s)
        s = cublasLtMatmulAlgoGetHeuristic(b->handle, p->op, p->w, p->x, p->y, p->y, preference,
                                           CANDIDATES, found, &n);
    if (!s && n == 0) s = CUBLAS_STATUS_NOT_SUPPORTED;
    if (preference) (void)cublasLtMatmulPreferenceDestroy(preference);
    if (!s) take_fastest(b, p, found, n, g, stream);
    else plan_fini(p);
    return s ? failed(s, g, err) : FL_OK;
}

fl_status fl__cuda_bf16_run(fl_cuda_bf16 *b, const fl_cuda_gemm_bf16 *g, void *stream,
                            fl_err *err)
{
    plan *p = NULL;
    if (g->M == 0) return FL_OK;
    for (int i = 0; i < b->n_plans && !p; i++)
        if (is_for(&b->plans[i], g)) p = &b->plans[i];
    if (!p) {
        p = &b->plans[b->n_plans == MAX_PLANS ? 0 : b->n_plans];
        plan_fini(p);
        const fl_status st = make_plan(b, p, g, (cudaStream_t)stream, err);
        if (st) return st;
        if (b->n_plans < MAX_PLANS) b->n_plans++;
    }
    cublasStatus_t s = CUBLAS_STATUS_SUCCESS;
    if (g->bias)
        s = cublasLtMatmulDescSetAttribute(p->op, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &g->bias,
                                           sizeof g->bias);
    if (!s) s = multiply(b, p, &p->algo, g, (cudaStream_t)stream);
    return s ? failed(s, g, err) : FL_OK;
}
