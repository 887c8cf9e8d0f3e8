/* cuda_test.h - what the GPU checks and benches share: buffers, random data, failing loudly.
 * SPDX-License-Identifier: MIT */
#ifndef FL_TESTS_CUDA_TEST_H
#define FL_TESTS_CUDA_TEST_H

#include "cuda/gemm_cuda.h"

#include <cuda_runtime.h>
#include <stdio.h>
#include <stdlib.h>

/* Every call is checked; a test that lost its device has nothing more to say. */
#define CUDA_OK(call)                                                                          \
    do {                                                                                       \
        const cudaError_t cuda_error = (call);                                                 \
        if (cuda_error != cudaSuccess) {                                                       \
            printf("%s:%d: %s: %s\n", __FILE__, __LINE__, #call,                               \
                   cudaGetErrorString(cuda_error));                                            \
            exit(1);                                                                           \
        }                                                                                      \
    } while (0)

/* A launch of the library's that must succeed; `err` is its last argument. */
#define FL_OK_OR_EXIT(call)                                                                    \
    do {                                                                                       \
        fl_err err = {};                                                                       \
        if ((call) != FL_OK) {                                                                 \
            printf("%s:%d: %s\n", __FILE__, __LINE__, err.text);                               \
            exit(1);                                                                           \
        }                                                                                      \
    } while (0)

static inline void *gpu_alloc(size_t n_bytes)
{
    void *p = NULL;
    CUDA_OK(cudaMalloc(&p, n_bytes));
    return p;
}

static inline void *gpu_copy(const void *host, size_t n_bytes)
{
    void *p = gpu_alloc(n_bytes);
    CUDA_OK(cudaMemcpy(p, host, n_bytes, cudaMemcpyHostToDevice));
    return p;
}

static inline uint64_t next_random(uint64_t *state)
{
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state * 0x2545f4914f6cdd1dull >> 11;
}

/* Bytes per ms, read + write, of a device copy: the median of 9. Launched plainly: as nodes of
 * a graph such copies came to two thirds of the rate (2.77 against 4.23 TB/s). */
static inline double gpu_copy_rate(const void *from, size_t n_bytes, cudaStream_t stream)
{
    enum { COPIES = 9 };
    void *to = gpu_alloc(n_bytes);
    cudaEvent_t start, stop;
    float ms[COPIES];
    CUDA_OK(cudaEventCreate(&start));
    CUDA_OK(cudaEventCreate(&stop));
    for (int i = -2; i < COPIES; i++) {
        CUDA_OK(cudaEventRecord(start, stream));
        CUDA_OK(cudaMemcpyAsync(to, from, n_bytes, cudaMemcpyDeviceToDevice, stream));
        CUDA_OK(cudaEventRecord(stop, stream));
        CUDA_OK(cudaEventSynchronize(stop));
        CUDA_OK(cudaEventElapsedTime(&ms[i < 0 ? 0 : i], start, stop));
    }
    for (int i = 1; i < COPIES; i++)
        for (int j = i; j > 0 && ms[j] < ms[j - 1]; j--) {
            const float swap = ms[j];
            ms[j] = ms[j - 1], ms[j - 1] = swap;
        }
    CUDA_OK(cudaEventDestroy(start));
    CUDA_OK(cudaEventDestroy(stop));
    CUDA_OK(cudaFree(to));
    return 2.0 * (double)n_bytes / ms[COPIES / 2];
}

/* One of the library's GEMMs: prefill by 4 or 8 bits, decode, or that of older GPUs. */
typedef enum gemm_kind { GEMM_W4, GEMM_W8, GEMM_DECODE, GEMM_SM80 } gemm_kind;

static inline void run_gemm(gemm_kind kind, const fl_cuda_gemm *g, fl_cuda_gemm_plan plan,
                            int n_sm, cudaStream_t stream)
{
    fl_err err = {};
    fl_status st;
    if (kind == GEMM_W4) st = fl__cuda_gemm_w4_sm90(g, plan, n_sm, stream, &err);
    else if (kind == GEMM_W8) st = fl__cuda_gemm_w8_sm90(g, plan, n_sm, stream, &err);
    else if (kind == GEMM_SM80) st = fl__cuda_gemm_sm80(g, plan, stream, &err);
    else st = fl__cuda_gemm_w4_decode(g, plan, n_sm, stream, &err);
    if (st != FL_OK) {
        printf("launch failed: %s\n", err.text);
        exit(1);
    }
}

/* What bench_gemm (bench_gemm_cuda.cu) prints. */
typedef struct bench_choice {
    bool quick; /* fewer shapes */
    bool plans; /* every plan of the prefill kernel as well */
    bool zeros; /* all operands zero: what random data cost in power */
    int min_rows, max_rows;
} bench_choice;

void bench_gemm(int n_sm, bench_choice choice);

/* bench_attention_cuda.cu; only: the shape of this number (for a profiler), -1: all */
void bench_attention(int n_sm, bool quick, int only);

#endif
