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

/* One of the library's GEMMs: 4 or 8 bits by plan, or decode by variant: 0 the ring kernel,
 * from 1 on the stream kernel's plans. */
typedef enum gemm_kind { GEMM_W4, GEMM_W8, GEMM_DECODE } gemm_kind;

static const fl_cuda_decode_plan DECODE_PLANS[] = {
    {0, 0, false, false}, {16, 1, false, false}, {16, 2, false, false}, {8, 2, false, false},
    {8, 3, false, false}, {16, 1, true, false},  {16, 2, true, false},  {8, 2, true, false},
    {8, 3, true, false},  {16, 1, false, true},  {8, 2, false, true},   {16, 1, true, true},
    {8, 2, true, true},
};

static inline void run_gemm(gemm_kind kind, const fl_cuda_gemm *g, fl_cuda_gemm_plan plan,
                            int variant, int n_sm, cudaStream_t stream)
{
    fl_err err = {};
    fl_status st;
    if (kind == GEMM_W4) st = fl__cuda_gemm_w4_sm90(g, plan, n_sm, stream, &err);
    else if (kind == GEMM_W8) st = fl__cuda_gemm_w8_sm90(g, plan, n_sm, stream, &err);
    else if (variant == 0) st = fl__cuda_gemm_w4_decode(g, n_sm, stream, &err);
    else st = fl__cuda_gemm_w4_stream(g, DECODE_PLANS[variant], n_sm, stream, &err);
    if (st != FL_OK) {
        printf("launch failed: %s\n", err.text);
        exit(1);
    }
}

/* bench_gemm_cuda.cu: prints the table; quick: fewer shapes; plans: every plan of the prefill
 * kernel as well; max_rows: up to so many rows; variant: of decode, -1 for all. */
void bench_gemm(int n_sm, bool quick, bool plans, int max_rows, int variant);

#endif
