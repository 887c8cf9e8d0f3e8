/* train_attention_blocks.c - products inside one head, float32 or bfloat16.
 *
 * bfloat16 operands (layouts of kernels/gemm_bf16.h; 32 and 64 mean rounded up to a multiple):
 *     rows     A operand [n, D32]: q, dout, all T of them once per head
 *     keys     B operand of scores, [T64 / 64] panels of [D32 / 2][64][2]: k, v, once per head
 *     columns  B operand of mix, [D64 / 64] panels of [T32 / 2][64][2]: v, k, once per head; a
 *              block reads the first L keys of each panel, so panels are multiplied one by one
 *     block    B operand of spread, the same with the m queries of a block: dout, q
 *     weights  A operand p or ds, as [m, L32] for mix and as [L, m32] for spread
 * L is a multiple of 32 in all blocks but the last, whose operands are padded with zeros.
 * SPDX-License-Identifier: MIT */
#include "train/train_attention_blocks.h"

#include "base/mem.h"
#include "kernels/gemm_bf16.h"
#include "kernels/onednn.h"

#include <string.h>

enum { PANEL = 64, STEP_K = 32, BLOCK = FL_ATTENTION_BLOCK };

typedef struct packed {
    uint16_t *q_rows, *dout_rows;    /* [T, D32] */
    uint16_t *k_keys, *v_keys;       /* [T64, D32] */
    uint16_t *k_columns, *v_columns; /* [D64, T32] */
    uint16_t *block;                 /* [D64, BLOCK] */
    uint16_t *weights;               /* [BLOCK, T32] or [T, BLOCK] */
} packed;

struct fl_attention_blocks {
    const fl_train_rows *rows;
    int n_threads, T, H, G, D;
    int ld;        /* of scores: T and some, see padded */
    float *floats; /* [n_threads]: p [BLOCK, ld], ds [BLOCK, ld], x_b [BLOCK, padded D] */
    const fl_gemm_bf16_kernel *fast; /* NULL: float32 */
    uint16_t *halves; /* [n_threads][halves_per_thread]: packed */
    size_t halves_per_thread;
};

static int up_to(int n, int multiple)
{
    return (n + multiple - 1) / multiple * multiple;
}

/* Length of rows of n floats that a product walks down: rows a power of two apart fall into the
 * same lines of the cache, which halves the speed of SGEMM. */
static int padded(int n)
{
    return up_to(n, 16) + 16;
}

static size_t floats_per_thread(const fl_attention_blocks *b)
{
    return (size_t)BLOCK * (2 * (size_t)b->ld + (size_t)padded(b->D));
}

int fl__attention_scratch_ld(const fl_attention_blocks *blocks)
{
    return blocks->ld;
}

float *fl__attention_scratch_p(const fl_attention_blocks *blocks, int thread)
{
    return blocks->floats + (size_t)thread * floats_per_thread(blocks);
}

float *fl__attention_scratch_ds(const fl_attention_blocks *blocks, int thread)
{
    return fl__attention_scratch_p(blocks, thread) + (size_t)BLOCK * (size_t)blocks->ld;
}

static float *scratch_x(const fl_attention_blocks *b, int thread)
{
    return fl__attention_scratch_ds(b, thread) + (size_t)BLOCK * (size_t)b->ld;
}

/* The parts of a thread's scratch, each a multiple of 64 long; returns the sum. base NULL: that
 * only. */
static size_t packed_at(const fl_attention_blocks *b, uint16_t *base, packed *p)
{
    const size_t D32 = (size_t)up_to(b->D, STEP_K), D64 = (size_t)up_to(b->D, PANEL);
    const size_t T32 = (size_t)up_to(b->T, STEP_K), T64 = (size_t)up_to(b->T, PANEL);
    uint16_t **const parts[] = {&p->q_rows,    &p->dout_rows, &p->k_keys, &p->v_keys,
                                &p->k_columns, &p->v_columns, &p->block,  &p->weights};
    const size_t sizes[] = {D32 * T64, D32 * T64, D32 * T64,   D32 * T64,
                            D64 * T32, D64 * T32, D64 * BLOCK, T64 * BLOCK};
    size_t at = 0;
    for (size_t i = 0; i < FL_COUNT(parts); i++) {
        if (base) *parts[i] = base + at;
        at += sizes[i];
    }
    return at;
}

static packed packed_of(const fl_attention_blocks *b, int thread)
{
    packed p = {0};
    if (b->halves) (void)packed_at(b, b->halves + (size_t)thread * b->halves_per_thread, &p);
    return p;
}

/* ---- set-up ----------------------------------------------------------------------------- */

static fl_status bf16_init(fl_attention_blocks *b, uint32_t isa, fl_err *err)
{
    packed unused;
    const fl_gemm_bf16_kernel *fast = fl__gemm_bf16_select(isa);
    if (!fast->isa) return FL_OK; /* the reference would be slower than float32 */
    b->fast = fast;
    b->halves_per_thread = packed_at(b, NULL, &unused);
    const size_t n = (size_t)b->n_threads * b->halves_per_thread;
    b->halves = fl__calloc(n, sizeof *b->halves);
    return b->halves ? FL_OK : fl__fail_nomem(err, "attention operands", n * sizeof *b->halves);
}

fl_status fl__attention_blocks_new(fl_attention_blocks **out, const fl_train_rows *rows,
                                   const fl_exec *ex, int T, int H, int G, int D, bool bf16,
                                   fl_err *err)
{
    fl_status st = FL_OK;
    *out = NULL;
    fl_attention_blocks *b = fl__calloc(1, sizeof *b);
    if (!b) return fl__fail_nomem(err, "attention", sizeof *b);
    b->rows = rows;
    b->n_threads = ex->n_threads;
    b->T = T;
    b->H = H;
    b->G = G;
    b->D = D;
    b->ld = padded(T);
    const size_t n_floats = (size_t)b->n_threads * floats_per_thread(b);
    b->floats = fl__alloc(n_floats, sizeof *b->floats);
    if (!b->floats) {
        st = fl__fail_nomem(err, "attention scores", n_floats * sizeof *b->floats);
        goto out;
    }
    if (bf16) st = bf16_init(b, ex->isa, err);
    if (st != FL_OK) goto out;
    *out = b;
    b = NULL;
out:
    fl__attention_blocks_free(&b);
    return st;
}

void fl__attention_blocks_free(fl_attention_blocks **blocks)
{
    fl_attention_blocks *b = *blocks;
    if (!b) return;
    fl__free(&b->floats);
    fl__free(&b->halves);
    fl__free(blocks);
}

/* ---- bfloat16 operands ------------------------------------------------------------------ */

/* x [n, ld] -> panels of 64 columns, rows as K. */
static void pack_columns(const fl_attention_blocks *b, uint16_t *to, const float *x, int64_t ld,
                         int n)
{
    for (int d = 0; d < b->D; d += PANEL) {
        b->rows->pack_b_transposed(to, x + d, ld, FL_MIN(PANEL, b->D - d), n);
        to += (size_t)PANEL * (size_t)up_to(n, STEP_K);
    }
}

/* x [T, ld] -> panels of 64 rows, columns as K. */
static void pack_keys(const fl_attention_blocks *b, uint16_t *to, const float *x, int64_t ld)
{
    for (int t = 0; t < b->T; t += PANEL) {
        b->rows->pack_b(to, x + t * ld, ld, FL_MIN(PANEL, b->T - t), b->D);
        to += (size_t)PANEL * (size_t)up_to(b->D, STEP_K);
    }
}

void fl__attention_head_begin(fl_attention_blocks *b, const fl_attention_head *head)
{
    const int64_t ld_q = (int64_t)b->H * b->D, ld_kv = (int64_t)b->G * b->D;
    if (!b->fast) return;
    const packed p = packed_of(b, head->thread);
    b->rows->pack_a(p.q_rows, head->q, ld_q, b->T, b->D);
    pack_keys(b, p.k_keys, head->k, ld_kv);
    if (!head->dout) {
        pack_columns(b, p.v_columns, head->v, ld_kv, b->T);
        return;
    }
    b->rows->pack_a(p.dout_rows, head->dout, ld_q, b->T, b->D);
    pack_keys(b, p.v_keys, head->v, ld_kv);
    pack_columns(b, p.k_columns, head->k, ld_kv, b->T);
}

/* ---- products --------------------------------------------------------------------------- */

/* to [m, ld] = x_b y^T */
static fl_status scores(const fl_attention_blocks *b, const fl_attention_block *block,
                        float *to, const float *x,
                        const float *y, const uint16_t *rows, const uint16_t *keys)
{
    const int64_t ld_q = (int64_t)b->H * b->D, ld_kv = (int64_t)b->G * b->D;
    if (!b->fast)
        return fl__onednn_sgemm(block->m, block->L, b->D, 1.0f, x + block->q0 * ld_q, ld_q, y,
                                ld_kv, true, 0.0f, to, b->ld, NULL);
    const int D32 = up_to(b->D, STEP_K);
    b->fast->run(to, b->ld, rows + (size_t)block->q0 * (size_t)D32, keys, block->m, block->L,
                 D32, false);
    return FL_OK;
}

fl_status fl__attention_scores(fl_attention_blocks *b, const fl_attention_head *head,
                               const fl_attention_block *block)
{
    const packed p = packed_of(b, head->thread);
    return scores(b, block, fl__attention_scratch_p(b, head->thread), head->q, head->k,
                  p.q_rows, p.k_keys);
}

fl_status fl__attention_scores_grad(fl_attention_blocks *b, const fl_attention_head *head,
                                    const fl_attention_block *block)
{
    const packed p = packed_of(b, head->thread);
    return scores(b, block, fl__attention_scratch_ds(b, head->thread), head->dout,
                  head->v, p.dout_rows, p.v_keys);
}

/* to [m, D] = w [m, L] y [L, D] */
static fl_status mix(fl_attention_blocks *b, const fl_attention_head *head,
                     const fl_attention_block *block, float *to, const float *w, const float *y,
                     const uint16_t *columns)
{
    const int64_t ld_q = (int64_t)b->H * b->D, ld_kv = (int64_t)b->G * b->D;
    if (!b->fast)
        return fl__onednn_sgemm(block->m, b->D, block->L, 1.0f, w, b->ld, y, ld_kv, false, 0.0f,
                                to, ld_q, NULL);
    const packed p = packed_of(b, head->thread);
    b->rows->pack_a(p.weights, w, b->ld, block->m, block->L);
    for (int d = 0; d < b->D; d += PANEL) {
        b->fast->run(to + d, ld_q, p.weights, columns, block->m, FL_MIN(PANEL, b->D - d),
                     up_to(block->L, STEP_K), false);
        columns += (size_t)PANEL * (size_t)up_to(b->T, STEP_K);
    }
    return FL_OK;
}

fl_status fl__attention_mix_p(fl_attention_blocks *b, const fl_attention_head *head,
                              const fl_attention_block *block, float *out)
{
    return mix(b, head, block, out, fl__attention_scratch_p(b, head->thread), head->v,
               packed_of(b, head->thread).v_columns);
}

fl_status fl__attention_mix_ds(fl_attention_blocks *b, const fl_attention_head *head,
                               const fl_attention_block *block, float *dq)
{
    return mix(b, head, block, dq, fl__attention_scratch_ds(b, head->thread), head->k,
               packed_of(b, head->thread).k_columns);
}

/* to [L, D] (+)= w [m, L]^T x_b [m, D] */
static fl_status spread(fl_attention_blocks *b, const fl_attention_head *head,
                        const fl_attention_block *block, float *to, const float *w,
                        const float *x)
{
    const int64_t ld = (int64_t)b->H * b->D;
    const float *x_b = x + block->q0 * ld;
    if (!b->fast) {
        float *x_near = scratch_x(b, head->thread);
        const int ld_near = padded(b->D);
        for (int i = 0; i < block->m; i++)
            memcpy(x_near + (size_t)i * (size_t)ld_near, x_b + i * ld,
                   (size_t)b->D * sizeof *x_near);
        return fl__onednn_sgemm_tn(block->L, b->D, block->m, 1.0f, w, b->ld, x_near, ld_near,
                                   block->L == b->T ? 0.0f : 1.0f, to, ld, NULL);
    }
    const packed p = packed_of(b, head->thread);
    const uint16_t *columns = p.block;
    b->rows->pack_a_transposed(p.weights, up_to(block->m, STEP_K), w, b->ld, block->L,
                               block->m);
    pack_columns(b, p.block, x_b, ld, block->m);
    for (int d = 0; d < b->D; d += PANEL) {
        b->fast->run(to + d, ld, p.weights, columns, block->L, FL_MIN(PANEL, b->D - d),
                     up_to(block->m, STEP_K), block->L != b->T);
        columns += (size_t)PANEL * (size_t)up_to(block->m, STEP_K);
    }
    return FL_OK;
}

fl_status fl__attention_spread_p(fl_attention_blocks *b, const fl_attention_head *head,
                                 const fl_attention_block *block, float *dv)
{
    return spread(b, head, block, dv, fl__attention_scratch_p(b, head->thread), head->dout);
}

fl_status fl__attention_spread_ds(fl_attention_blocks *b, const fl_attention_head *head,
                                  const fl_attention_block *block, float *dk)
{
    return spread(b, head, block, dk, fl__attention_scratch_ds(b, head->thread), head->q);
}
