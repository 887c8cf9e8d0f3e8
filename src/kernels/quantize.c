/* quantize.c - the table of quantise kernels, choice of a row, loops over rows of x.
 * SPDX-License-Identifier: MIT */
#include "kernels/quantize.h"

#include "base/isa.h"
#include "kernels/quantize_rows.h"

#define ROWS_PER_ITEM 4

const fl_quantize_kernel fl__quantize_kernels[] = {
    {"quantize_avx512", FL_ISA_AVX2 | FL_ISA_AVX512, fl__quantize_static_avx512,
     fl__quantize_token_avx512},
    {"quantize_avx2", FL_ISA_AVX2, fl__quantize_static_avx2, fl__quantize_token_avx2},
    {"quantize_ref", 0, fl__quantize_static_ref, fl__quantize_token_ref},
};
const int fl__n_quantize_kernels = (int)FL_COUNT(fl__quantize_kernels);

const fl_quantize_kernel *fl__quantize_select(uint32_t isa)
{
    const fl_quantize_kernel *k = fl__quantize_kernels;
    while ((k->isa & ~isa) != 0) k++; /* stops at the reference row at the latest */
    return k;
}

typedef struct {
    const fl_quantize_kernel *kernel;
    int8_t *codes;
    int32_t *x_sum;
    float *scale;  /* per token only */
    int32_t *zero; /* per token only */
    fl_rows x;
    int M;
    const fl_quantize_static *spec; /* or */
    const fl_quantize_token *token;
    uint8_t *scratch;
} quantize_job;

static size_t row_bytes(int n_channels)
{
    return ((size_t)n_channels * sizeof(float) + 63) / 64 * 64;
}

static float *thread_row(const quantize_job *j, int n_channels, int thread)
{
    if (!j->x.make) return NULL;
    return (float *)(void *)(j->scratch + (size_t)thread * row_bytes(n_channels));
}

static void static_item(void *arg, int64_t item, int thread)
{
    const quantize_job *j = arg;
    float *row = thread_row(j, j->spec->n_channels, thread);
    const int first = (int)item * ROWS_PER_ITEM, end = FL_MIN(first + ROWS_PER_ITEM, j->M);
    for (int m = first; m < end; m++)
        j->kernel->run_static(j->codes + (int64_t)m * j->spec->ld, j->x_sum + m,
                              fl__rows_get(&j->x, m, row), j->spec);
}

static void token_item(void *arg, int64_t item, int thread)
{
    const quantize_job *j = arg;
    float *row = thread_row(j, j->token->n_channels, thread);
    const int first = (int)item * ROWS_PER_ITEM, end = FL_MIN(first + ROWS_PER_ITEM, j->M);
    for (int m = first; m < end; m++)
        j->kernel->run_token(j->codes + (int64_t)m * j->token->ld, j->x_sum + m, j->scale + m,
                             j->zero + m, fl__rows_get(&j->x, m, row), j->token);
}

static int64_t n_items(int M)
{
    return ((int64_t)M + ROWS_PER_ITEM - 1) / ROWS_PER_ITEM;
}

size_t fl__quantize_scratch_bytes(const fl_exec *ex, int n_channels)
{
    return (size_t)ex->n_threads * row_bytes(n_channels);
}

void fl__quantize_static_run(const fl_exec *ex, int8_t *codes, int32_t *x_sum, fl_rows x, int M,
                             const fl_quantize_static *spec, void *scratch)
{
    quantize_job job = {.kernel = fl__quantize_select(ex->isa),
                        .codes = codes,
                        .x_sum = x_sum,
                        .x = x,
                        .M = M,
                        .spec = spec,
                        .scratch = scratch};
    fl__parallel_for(ex, n_items(M), static_item, &job);
}

void fl__quantize_token_run(const fl_exec *ex, int8_t *codes, int32_t *x_sum, float *scale,
                            int32_t *zero, fl_rows x, int M, const fl_quantize_token *spec,
                            void *scratch)
{
    quantize_job job = {.kernel = fl__quantize_select(ex->isa),
                        .codes = codes,
                        .x_sum = x_sum,
                        .scale = scale,
                        .zero = zero,
                        .x = x,
                        .M = M,
                        .token = spec,
                        .scratch = scratch};
    fl__parallel_for(ex, n_items(M), token_item, &job);
}
