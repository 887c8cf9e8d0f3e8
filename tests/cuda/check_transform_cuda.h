/* check_transform_cuda.h - what the transform's check and bench share.
 * SPDX-License-Identifier: MIT */
#ifndef FL_TESTS_CHECK_TRANSFORM_CUDA_H
#define FL_TESTS_CHECK_TRANSFORM_CUDA_H

#include "cuda/rowops_cuda.h"
#include "cuda/transform_cuda.h"
#include "cuda_test.h"

#include <string.h>

extern "C" {
#include "kernels/transform.h"

fl_transform_fn fl__transform_ref;
fl_quantize_static_fn fl__quantize_static_ref;
fl_quantize_token_fn fl__quantize_token_ref;
}

typedef struct tally {
    int passed, failed;
    int64_t codes[9], differ[9], open[9]; /* of the transform, by bits */
} tally;

static inline uint16_t bf16_of(float f)
{
    uint32_t u;
    memcpy(&u, &f, sizeof u);
    return (uint16_t)((u + 0x7fff + (u >> 16 & 1)) >> 16);
}

static inline float bf16_to(uint16_t h)
{
    const uint32_t u = (uint32_t)h << 16;
    float f;
    memcpy(&f, &u, sizeof f);
    return f;
}

static inline float normal(uint64_t *seed)
{
    float s = 0;
    for (int i = 0; i < 12; i++) s += (float)(next_random(seed) % 65536) / 65536.0f;
    return s - 6.0f;
}

static inline float *random_floats(size_t n, float scale, float offset, uint64_t *seed)
{
    float *v = (float *)malloc(n * sizeof *v);
    for (size_t i = 0; i < n; i++) v[i] = offset + scale * normal(seed);
    return v;
}

static inline uint16_t *to_bf16(const float *v, size_t n)
{
    uint16_t *h = (uint16_t *)malloc(n * sizeof *h);
    for (size_t i = 0; i < n; i++) h[i] = bf16_of(v[i]);
    return h;
}

/* check_rowops_cuda.cu */
void check_rowops(tally *t);

/* bench_transform_cuda.cu */
void bench_transform(int n_sm, bool quick);

#endif
