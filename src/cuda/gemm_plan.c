/* gemm_plan.c - how the prefill kernel cuts a problem (gemm_cuda.h), from a model of its time.
 *
 * A CTA's time for an item is proportional to its tokens and stages, plus a fixed part (ring
 * filling, epilogue, joining parts of K); items run in waves over the multiprocessors.
 * SPDX-License-Identifier: MIT */
#include "cuda/gemm_cuda.h"

/* In units of one stage of 64 tokens (0.15 us at full rate). */
enum { FIXED = 8, FIXED_SPLIT = 8, STAGE_K = 128, CHANNELS = 128 };

static int ceil_div(int n, int d)
{
    return (n + d - 1) / d;
}

/* Cost of a stage: small tiles feed more bytes of shared memory and fragments per product. */
static double stage_cost(int tokens)
{
    return tokens == 256 ? 4.0 : tokens == 128 ? 2.2 : 1.4;
}

static double plan_cost(const fl_cuda_gemm *g, fl_cuda_gemm_plan p, int n_sm)
{
    const int n_k = ceil_div(g->w->K, STAGE_K);
    const int tiles =
        ceil_div(g->M, p.tokens) * ceil_div(g->w->N, CHANNELS * p.cluster) * p.cluster;
    const int waves = ceil_div(tiles * p.n_split, n_sm / p.cluster * p.cluster);
    const double fixed = FIXED + (p.n_split > 1 ? FIXED_SPLIT * p.tokens / 64.0 : 0.0);
    return waves * (ceil_div(n_k, p.n_split) * stage_cost(p.tokens) + fixed);
}

static bool may_split(const fl_cuda_gemm *g, fl_cuda_gemm_plan p)
{
    const int tiles =
        ceil_div(g->M, p.tokens) * ceil_div(g->w->N, CHANNELS * p.cluster) * p.cluster;
    return g->workspace && p.n_split <= ceil_div(g->w->K, STAGE_K) / 4 &&
           tiles <= FL_CUDA_MAX_SPLIT_TILES;
}

fl_cuda_gemm_plan fl__cuda_gemm_plan(const fl_cuda_gemm *g, int n_sm)
{
    fl_cuda_gemm_plan best = {256, 2, 1};
    double best_cost = plan_cost(g, best, n_sm);
    for (int tokens = 128; tokens >= 64; tokens /= 2) {
        const fl_cuda_gemm_plan p = {tokens, 2, 1};
        const double cost = plan_cost(g, p, n_sm);
        if (cost < best_cost) best_cost = cost, best = p;
    }
    for (int tokens = 256; tokens >= 64; tokens /= 2)
        for (int n_split = 2; n_split <= 8; n_split++) {
            const fl_cuda_gemm_plan p = {tokens, 2, n_split};
            const double cost = plan_cost(g, p, n_sm);
            if (may_split(g, p) && cost < best_cost) best_cost = cost, best = p;
        }
    return best;
}

size_t fl__cuda_gemm_workspace_bytes(void)
{
    const size_t tile = (size_t)CHANNELS * 256;
    return sizeof(int32_t) * FL_CUDA_MAX_SPLIT_TILES * (tile + 2);
}
