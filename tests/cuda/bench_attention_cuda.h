/* bench_attention_cuda.h - what attention's benches share: random words, medians of graphs.
 * SPDX-License-Identifier: MIT */
#ifndef FL_TESTS_BENCH_ATTENTION_CUDA_H
#define FL_TESTS_BENCH_ATTENTION_CUDA_H

#include "cuda_test.h"

#include "cuda/attention_cuda.h"

#include <vector>

enum { ROUNDS = 15, PER_ROUND = 20 };

static __global__ void fill_random(uint32_t *p, size_t n, uint32_t seed)
{
    size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x;
    for (; i < n; i += (size_t)gridDim.x * blockDim.x) {
        uint64_t h = (i + ((uint64_t)seed << 32)) * 0x9e3779b97f4a7c15ull;
        h = (h ^ h >> 30) * 0xbf58476d1ce4e5b9ull;
        p[i] = (uint32_t)(h ^ h >> 31) & 0x3fff3fffu; /* bf16, f16 below 2 */
    }
}

static inline int float_order(const void *a, const void *b)
{
    const float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

/* Median ms of one launch; graphs of PER_ROUND launches, i counting all of them. */
template <typename F> static inline float median_ms(F launch)
{
    cudaStream_t stream;
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    cudaEvent_t start, stop;
    float ms[ROUNDS];
    CUDA_OK(cudaStreamCreate(&stream));
    CUDA_OK(cudaEventCreate(&start));
    CUDA_OK(cudaEventCreate(&stop));
    launch(0, stream);
    CUDA_OK(cudaStreamSynchronize(stream));
    CUDA_OK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
    for (int i = 0; i < PER_ROUND; i++) launch(i, stream);
    CUDA_OK(cudaStreamEndCapture(stream, &graph));
    CUDA_OK(cudaGraphInstantiate(&exec, graph, 0));
    for (int r = -2; r < ROUNDS; r++) {
        CUDA_OK(cudaEventRecord(start, stream));
        CUDA_OK(cudaGraphLaunch(exec, stream));
        CUDA_OK(cudaEventRecord(stop, stream));
        CUDA_OK(cudaEventSynchronize(stop));
        CUDA_OK(cudaEventElapsedTime(&ms[r < 0 ? 0 : r], start, stop));
    }
    CUDA_OK(cudaGraphExecDestroy(exec));
    CUDA_OK(cudaGraphDestroy(graph));
    CUDA_OK(cudaEventDestroy(start));
    CUDA_OK(cudaEventDestroy(stop));
    CUDA_OK(cudaStreamDestroy(stream));
    qsort(ms, ROUNDS, sizeof *ms, float_order);
    return ms[ROUNDS / 2] / PER_ROUND;
}

#endif
