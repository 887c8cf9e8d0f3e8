/* gemm_plan.c - which kernel takes a problem, and how it cuts it (gemm_cuda.h).
 *
 * Prefill by a model of its time: items (a tile, or a part of one's K) run in waves over the
 * multiprocessors; an item takes a time per stage of K and a time of its own (filling the ring,
 * epilogue), and joining the parts of a tile takes longer the more there are. The microseconds
 * are those of an H200. Decode where it won there: always up to 8 rows, beyond only while x is
 * small, since each multiprocessor reads all of x.
 * SPDX-License-Identifier: MIT */
#include "cuda/gemm_cuda.h"

enum {
    STAGE_K = 128,
    CHANNELS = 128,
    MAX_SPLIT = 8,
    SM80_FEW = 32, /* the tiles of gemm_s4_sm80.cu */
    SM80_MANY = 128,
    MANY_GROUP = 12, /* of many rows; divides 132 too */
    GROUP = 4,       /* divides 132: a CTA stays with its tokens */
    DECODE_ROWS = 16,
    DECODE_X_BYTES = 131072, /* of more than 8 rows: 64 KB won, 224 KB lost, between unknown */
};

typedef struct tile_cost {
    int tokens;
    double stage, item;
} tile_cost;

/* The tensor cores need 0.14 us for a stage of 64 tokens: small tiles wait for fragments. */
static const tile_cost COSTS[] = {{256, 0.572, 3.6}, {128, 0.295, 1.9}, {64, 0.22, 1.4}};

static int ceil_div(int n, int d)
{
    return (n + d - 1) / d;
}

static int count_tiles(const fl_cuda_gemm *g, int tokens)
{
    return ceil_div(g->M, tokens) * ceil_div(g->w->N, CHANNELS);
}

static double plan_time(const fl_cuda_gemm *g, const tile_cost *c, int n_split, int n_sm)
{
    const int n_stages = ceil_div(ceil_div(g->w->K, STAGE_K), n_split);
    const int waves = ceil_div(count_tiles(g, c->tokens) * n_split, n_sm);
    const double join = n_split > 1 ? (1.0 + 0.75 * n_split) * c->tokens / 64.0 : 0.0;
    return waves * (n_stages * c->stage + c->item + join);
}

static int decode_ctas(const fl_cuda_gemm *g)
{
    if (g->w->bits != 4 || g->M > DECODE_ROWS) return 0;
    return g->M <= 8 || (int64_t)g->M * g->w->K_pad <= DECODE_X_BYTES ? 2 : 0;
}

/* About as many stages as the ring of the largest tile holds: so many the one warpgroup can
 * multiply while the other, which scales and stores, gives no stage back. Once a launch it
 * costs their time, so not where a CTA has one tile. */
static int plan_shift(const fl_cuda_gemm *g, const fl_cuda_gemm_plan *plan, int n_sm)
{
    if (plan->tokens != 256 || plan->n_split > 1 || count_tiles(g, 256) <= n_sm) return 0;
    return g->w->bits == 4 ? 5 : 3;
}

fl_cuda_gemm_plan fl__cuda_gemm_plan(const fl_cuda_gemm *g, int n_sm)
{
    fl_cuda_gemm_plan best = {0};
    double best_time = 0.0;
    for (size_t i = 0; i < FL_COUNT(COSTS); i++)
        for (int n_split = 1; n_split <= MAX_SPLIT; n_split++) {
            const double t = plan_time(g, &COSTS[i], n_split, n_sm);
            if (n_split > 1 && (!g->workspace || n_split > ceil_div(g->w->K, STAGE_K) / 4 ||
                                count_tiles(g, COSTS[i].tokens) > FL_CUDA_MAX_SPLIT_TILES))
                break;
            if (best.tokens != 0 && t >= best_time) continue;
            best_time = t;
            best = (fl_cuda_gemm_plan){COSTS[i].tokens, n_split, 0, 0, GROUP, 0};
        }
    best.decode_ctas = decode_ctas(g);
    best.shift = plan_shift(g, &best, n_sm);
    if (g->w->bits == 4 && count_tiles(g, 256) / ceil_div(g->w->N, CHANNELS) >= 2 * MANY_GROUP)
        best.group = MANY_GROUP;
    return best;
}

fl_status fl__cuda_gemm(const fl_cuda_gemm *g, const fl_cuda_gpu *gpu, void *stream,
                        fl_err *err)
{
    fl_cuda_gemm_plan plan = {0};
    if (gpu->capability / 10 == 8) {
        plan.tokens = g->M <= SM80_FEW ? SM80_FEW : SM80_MANY;
        return fl__cuda_gemm_sm80(g, plan, stream, err);
    }
    if (gpu->capability != 90)
        return fl__fail(err, FL_E_UNSUPPORTED,
                        "cuda: gemm: compute capability %d.%d; the kernels are for 8.0 to 9.0",
                        gpu->capability / 10, gpu->capability % 10);
    if (g->x_packed)
        return fl__fail(err, FL_E_UNSUPPORTED,
                        "cuda: gemm: packed 4-bit activations on compute capability 9.0, which "
                        "multiplies bytes; leave them unpacked");
    if (g->w->bits == 8 && g->M <= DECODE_ROWS)
        return fl__cuda_gemm_w8_decode(g, gpu->n_sm, stream, err);
    plan = fl__cuda_gemm_plan(g, gpu->n_sm);
    if (plan.decode_ctas > 0) return fl__cuda_gemm_w4_decode(g, plan, gpu->n_sm, stream, err);
    if (g->w->bits == 4) return fl__cuda_gemm_w4_sm90(g, plan, gpu->n_sm, stream, err);
    return fl__cuda_gemm_w8_sm90(g, plan, gpu->n_sm, stream, err);
}

size_t fl__cuda_gemm_workspace_bytes(void)
{
    const size_t tile = (size_t)CHANNELS * 256;
    return sizeof(int32_t) * FL_CUDA_MAX_SPLIT_TILES * (tile + 2);
}
