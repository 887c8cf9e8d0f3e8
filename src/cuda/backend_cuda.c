/* backend_cuda.c - the plugin: a GPU opened, its memory, its stream, graphs, marks.
 * SPDX-License-Identifier: MIT */
#include "cuda/backend_cuda.h"

#include "base/mem.h"
#include "cuda/engine_kernels.h"

#include <cublasLt.h>
#include <stdio.h>
#include <string.h>

fl_status fl__cuda_check(cudaError_t e, const char *what, fl_err *err)
{
    if (e == cudaSuccess) return FL_OK;
    return fl__fail(err, e == cudaErrorMemoryAllocation ? FL_E_NOMEM : FL_E_FAIL,
                    "cuda: %s: %s; see the GPU's log", what, cudaGetErrorString(e));
}

/* ---- memory ------------------------------------------------------------------------------ */

/* Each block carries its size in front, so that live bytes are exact. */
enum { HEADER = 256 };

fl_status fl__cuda_alloc(fl_backend *be, void **device, size_t n_bytes, fl_err *err)
{
    unsigned char *p = NULL;
    *device = NULL;
    const cudaError_t e = cudaMalloc((void **)&p, n_bytes + HEADER);
    if (e != cudaSuccess) {
        (void)cudaGetLastError();
        return fl__fail(err, e == cudaErrorMemoryAllocation ? FL_E_NOMEM : FL_E_FAIL,
                        "out of GPU memory: %s: %.1f MB do not fit beside the %.1f MB in use; "
                        "use a smaller model, batch or context",
                        be->name, (double)n_bytes * 1e-6, (double)be->allocated_bytes * 1e-6);
    }
    const fl_status st = fl__cuda_check(
        cudaMemcpy(p, &n_bytes, sizeof n_bytes, cudaMemcpyHostToDevice), "allocation", err);
    if (st) {
        (void)cudaFree(p);
        return st;
    }
    be->allocated_bytes += n_bytes;
    be->peak_bytes = FL_MAX(be->peak_bytes, be->allocated_bytes);
    *device = p + HEADER;
    return FL_OK;
}

void fl__cuda_release(fl_backend *be, void *device)
{
    size_t n_bytes = 0;
    if (!device) return;
    unsigned char *p = (unsigned char *)device - HEADER;
    if (cudaMemcpy(&n_bytes, p, sizeof n_bytes, cudaMemcpyDeviceToHost) == cudaSuccess)
        be->allocated_bytes -= n_bytes;
    (void)cudaFree(p);
}

fl_status fl__cuda_upload(fl_backend *be, void *device, const void *src, size_t n_bytes,
                          fl_err *err)
{
    fl_cuda_backend_state *s = fl__cuda_state(be);
    const fl_status st =
        fl__cuda_check(cudaMemcpyAsync(device, src, n_bytes, cudaMemcpyHostToDevice, s->stream),
                       "upload", err);
    return st ? st : fl__cuda_check(cudaStreamSynchronize(s->stream), "upload", err);
}

static fl_status download(fl_backend *be, void *dst, const void *device, size_t n_bytes,
                          fl_err *err)
{
    fl_cuda_backend_state *s = fl__cuda_state(be);
    const fl_status st =
        fl__cuda_check(cudaMemcpyAsync(dst, device, n_bytes, cudaMemcpyDeviceToHost, s->stream),
                       "download", err);
    return st ? st : fl__cuda_check(cudaStreamSynchronize(s->stream), "download", err);
}

static fl_status clear(fl_backend *be, void *device, size_t n_bytes, fl_err *err)
{
    return fl__cuda_check(cudaMemsetAsync(device, 0, n_bytes, fl__cuda_state(be)->stream),
                          "clearing memory", err);
}

static fl_status fill_random(fl_backend *be, void *device, int64_t n, float least,
                             uint64_t seed, fl_err *err)
{
    return fl__cuda_random_bf16(device, n, least, seed, fl__cuda_state(be)->stream, err);
}

/* Through a ring of pinned slots; what is larger waits. */
static fl_status send(fl_backend *be, void *device, const void *src, size_t n_bytes,
                      fl_err *err)
{
    fl_cuda_backend_state *s = fl__cuda_state(be);
    if (n_bytes > SEND_BYTES) return fl__cuda_upload(be, device, src, n_bytes, err);
    const int i = s->next_slot;
    unsigned char *slot = s->slots + (size_t)i * SEND_BYTES;
    s->next_slot = (i + 1) % SEND_SLOTS;
    cudaError_t e = cudaEventSynchronize(s->slot_free[i]);
    if (e == cudaSuccess) {
        memcpy(slot, src, n_bytes);
        e = cudaMemcpyAsync(device, slot, n_bytes, cudaMemcpyHostToDevice, s->stream);
    }
    if (e == cudaSuccess) e = cudaEventRecord(s->slot_free[i], s->stream);
    return fl__cuda_check(e, "sending inputs", err);
}

static fl_status wait_for(fl_backend *be, fl_err *err)
{
    return fl__cuda_check(cudaStreamSynchronize(fl__cuda_state(be)->stream), "execution", err);
}

/* ---- graphs and marks -------------------------------------------------------------------- */

static fl_status capture_begin(fl_backend *be, fl_err *err)
{
    return fl__cuda_check(
        cudaStreamBeginCapture(fl__cuda_state(be)->stream, cudaStreamCaptureModeThreadLocal),
        "graph", err);
}

static fl_status capture_end(fl_backend *be, void **graph, fl_err *err)
{
    cudaGraph_t captured = NULL;
    cudaGraphExec_t exec = NULL;
    *graph = NULL;
    cudaError_t e = cudaStreamEndCapture(fl__cuda_state(be)->stream, &captured);
    if (e == cudaSuccess) e = cudaGraphInstantiate(&exec, captured, 0);
    if (captured) (void)cudaGraphDestroy(captured);
    if (e == cudaSuccess) *graph = exec;
    return fl__cuda_check(e, "graph", err);
}

static fl_status graph_run(fl_backend *be, void *graph, fl_err *err)
{
    return fl__cuda_check(cudaGraphLaunch(graph, fl__cuda_state(be)->stream), "graph", err);
}

static void graph_free(fl_backend *be, void *graph)
{
    (void)be;
    (void)cudaGraphExecDestroy(graph);
}

static fl_status mark(fl_backend *be, int at, fl_err *err)
{
    fl_cuda_backend_state *s = fl__cuda_state(be);
    cudaError_t e = cudaSuccess;
    while (s->n_marks <= at && e == cudaSuccess) e = cudaEventCreate(&s->marks[s->n_marks++]);
    if (e == cudaSuccess) e = cudaEventRecord(s->marks[at], s->stream);
    return fl__cuda_check(e, "mark", err);
}

static fl_status between(fl_backend *be, double *ms, int from, int to, fl_err *err)
{
    fl_cuda_backend_state *s = fl__cuda_state(be);
    float t = 0;
    cudaError_t e = cudaEventSynchronize(s->marks[to]);
    if (e == cudaSuccess) e = cudaEventElapsedTime(&t, s->marks[from], s->marks[to]);
    *ms = t;
    return fl__cuda_check(e, "mark", err);
}

static fl_status copy_rate(fl_backend *be, double *bytes_per_s, size_t n_bytes, fl_err *err)
{
    enum { COPIES = 9 };
    fl_cuda_backend_state *s = fl__cuda_state(be);
    void *from = NULL, *to = NULL;
    double ms[COPIES];
    fl_status st = fl__cuda_alloc(be, &from, n_bytes, err);
    if (!st) st = fl__cuda_alloc(be, &to, n_bytes, err);
    for (int i = -2; i < COPIES && !st; i++) {
        st = mark(be, 0, err);
        if (!st)
            st = fl__cuda_check(
                cudaMemcpyAsync(to, from, n_bytes, cudaMemcpyDeviceToDevice, s->stream), "copy",
                err);
        if (!st) st = mark(be, 1, err);
        if (!st) st = between(be, &ms[FL_MAX(i, 0)], 0, 1, err);
    }
    for (int i = 1; i < COPIES && !st; i++)
        for (int j = i; j > 0 && ms[j] < ms[j - 1]; j--) {
            const double swap = ms[j];
            ms[j] = ms[j - 1];
            ms[j - 1] = swap;
        }
    if (!st) *bytes_per_s = 2.0 * (double)n_bytes / ms[COPIES / 2] * 1e3;
    fl__cuda_release(be, from);
    fl__cuda_release(be, to);
    return st;
}

/* ---- opening ----------------------------------------------------------------------------- */

static void close_backend(fl_backend **be)
{
    if (!*be) return;
    fl_cuda_backend_state *s = fl__cuda_state(*be);
    for (int i = 0; i < s->n_marks; i++) (void)cudaEventDestroy(s->marks[i]);
    for (int i = 0; i < SEND_SLOTS; i++)
        if (s->slot_free[i]) (void)cudaEventDestroy(s->slot_free[i]);
    if (s->slots) (void)cudaFreeHost(s->slots);
    fl__cuda_bf16_free(&s->bf16);
    fl__cuda_release(*be, s->gemm_workspace);
    if (s->stream) (void)cudaStreamDestroy(s->stream);
    fl__free(&s);
    *be = NULL;
}

static const fl_backend_ops ops = {
    .close = close_backend,
    .alloc = fl__cuda_alloc,
    .release = fl__cuda_release,
    .upload = fl__cuda_upload,
    .download = download,
    .clear = clear,
    .fill_random = fill_random,
    .send = send,
    .wait = wait_for,
    .weight_new = fl__cuda_weight_new,
    .weight_fill = fl__cuda_weight_fill,
    .weight_free = fl__cuda_weight_free,
    .encoder_new = fl__cuda_encoder_new,
    .encoder_free = fl__cuda_encoder_free,
    .factor_new = fl__cuda_factor_new,
    .factor_free = fl__cuda_factor_free,
    .kv_page_bytes = fl__cuda_op_page_bytes,
    .attend_bytes = fl__cuda_op_attend_bytes,
    .embed = fl__cuda_op_embed,
    .norm = fl__cuda_op_norm,
    .encode = fl__cuda_op_encode,
    .linear = fl__cuda_op_linear,
    .append = fl__cuda_op_append,
    .attend = fl__cuda_op_attend,
    .gather = fl__cuda_op_gather,
    .capture_begin = capture_begin,
    .capture_end = capture_end,
    .graph_run = graph_run,
    .graph_free = graph_free,
    .mark = mark,
    .between = between,
    .copy_rate = copy_rate,
};

static fl_status describe(fl_cuda_backend_state *s, fl_err *err)
{
    struct cudaDeviceProp p;
    int driver = 0, runtime = 0;
    size_t n_free = 0, n_total = 0;
    cudaError_t e = cudaSetDevice(s->device);
    if (e == cudaSuccess) e = cudaGetDeviceProperties(&p, s->device);
    if (e == cudaSuccess) e = cudaMemGetInfo(&n_free, &n_total);
    if (e != cudaSuccess) return fl__cuda_check(e, "opening the GPU", err);
    (void)cudaDriverGetVersion(&driver);
    (void)cudaRuntimeGetVersion(&runtime);
    if (p.major != 9)
        return fl__fail(err, FL_E_UNSUPPORTED,
                        "GPU not supported: %s: its kernels are for compute capability 9.0, it "
                        "has %d.%d; use --device cpu",
                        p.name, p.major, p.minor);
    (void)snprintf(s->base.name, sizeof s->base.name, "%.*s", (int)sizeof s->base.name - 1,
                   p.name);
    (void)snprintf(s->base.detail, sizeof s->base.detail,
                   "driver %d.%d, runtime %d.%d, cuBLASLt %zu", driver / 1000,
                   driver % 1000 / 10, runtime / 1000, runtime % 1000 / 10,
                   cublasLtGetVersion());
    s->n_sm = s->base.n_units = p.multiProcessorCount;
    s->base.memory_bytes = n_total;
    s->base.memory_free_bytes = n_free;
    return FL_OK;
}

static fl_status open_state(fl_cuda_backend_state *s, fl_err *err)
{
    const size_t n = fl__cuda_gemm_workspace_bytes();
    void *workspace = NULL;
    fl_status st = describe(s, err);
    if (!st)
        st = fl__cuda_check(cudaStreamCreateWithFlags(&s->stream, cudaStreamNonBlocking),
                            "stream", err);
    if (!st)
        st = fl__cuda_check(cudaMallocHost((void **)&s->slots, (size_t)SEND_SLOTS * SEND_BYTES),
                            "pinned memory", err);
    for (int i = 0; i < SEND_SLOTS && !st; i++)
        st = fl__cuda_check(cudaEventCreateWithFlags(&s->slot_free[i], cudaEventDisableTiming),
                            "event", err);
    if (!st) st = fl__cuda_alloc(&s->base, &workspace, n, err);
    s->gemm_workspace = workspace;
    if (!st) st = clear(&s->base, workspace, n, err);
    return st ? st : fl__cuda_bf16_new(&s->bf16, err);
}

FL_API fl_backend_open_fn fl_cuda_backend;

fl_status fl_cuda_backend(fl_backend **out, int version, int ordinal, fl_err *err)
{
    int n = 0;
    *out = NULL;
    if (version != FL_BACKEND_VERSION)
        return fl__fail(err, FL_E_UNSUPPORTED,
                        "plugin of another version: libflatiron-cuda.so: interface %d, wanted "
                        "%d; build both from the same source",
                        FL_BACKEND_VERSION, version);
    const cudaError_t e = cudaGetDeviceCount(&n);
    if (e != cudaSuccess || n == 0)
        return fl__fail(err, FL_E_UNSUPPORTED, "no GPU: %s; use --device cpu",
                        e == cudaSuccess ? "there is none" : cudaGetErrorString(e));
    if (ordinal < 0 || ordinal >= n)
        return fl__fail(err, FL_E_UNSUPPORTED,
                        "no such GPU: cuda:%d: there %s %d; use cuda:0%s", ordinal,
                        n == 1 ? "is" : "are", n, n == 1 ? "" : " and on");
    fl_cuda_backend_state *s = fl__calloc(1, sizeof *s);
    if (!s) return fl__fail_nomem(err, "GPU", sizeof *s);
    s->device = ordinal;
    s->base.ops = &ops;
    s->base.gates = true;
    fl_backend *be = &s->base;
    const fl_status st = open_state(s, err);
    if (st) close_backend(&be);
    *out = be;
    return st;
}
