/* train_attention.c - causal attention: loops over heads and blocks, softmax.
 *
 * Backward of a block of queries, with P computed again from lse:
 *     delta = rowsum(dout * out);  dS = P * (dout V^T - delta) / sqrt(D)
 *     dV += P^T dout,  dK += dS^T Q,  dQ = dS K
 * Blocks run from the last to the first: the last sees all keys and so writes every row of dK
 * and dV, which the others add to. With grouped heads each query head has a dK and dV of its
 * own, [R, H * D], summed afterwards.
 * SPDX-License-Identifier: MIT */
#include "train/train_attention.h"

#include "base/isa.h"
#include "base/mem.h"
#include "train/train_attention_blocks.h"

#include <math.h>
#include <stdatomic.h>
#include <string.h>

struct fl_train_attention {
    fl_exec ex;
    fl_train_attention_shape shape;
    const fl_train_rows *rows;
    fl_attention_blocks *blocks; /* owned */
    float *dk_heads, *dv_heads;  /* [max_windows * T, H * D] owned; NULL when G == H */
};

typedef struct job {
    const fl_train_attention *a;
    const float *q, *k, *v;        /* [R, H * D], [R, G * D] twice */
    const float *dout, *saved_out; /* [R, H * D] */
    const float *saved_lse;        /* [R, H] */
    float *out, *lse;
    float *dq, *dk, *dv;    /* dk, dv: [R, H * D] */
    float *dk_sum, *dv_sum; /* [R, G * D] */
    int R;
    float scale;
    atomic_int status; /* first failure of an item */
} job;

/* Where (window, head) of an item stand in the arrays. */
typedef struct place {
    int h;
    int64_t row, ld_q, at_q, at_kv;
} place;

static place place_of(const job *j, int64_t item)
{
    const fl_train_attention_shape *s = &j->a->shape;
    const int h = (int)(item % s->H), g = h / (s->H / s->G);
    const int64_t row = item / s->H * s->T, ld_q = (int64_t)s->H * s->D;
    return (place){.h = h,
                   .row = row,
                   .ld_q = ld_q,
                   .at_q = row * ld_q + (int64_t)h * s->D,
                   .at_kv = row * s->G * s->D + (int64_t)g * s->D};
}

static int n_blocks(const job *j)
{
    return (j->a->shape.T + FL_ATTENTION_BLOCK - 1) / FL_ATTENTION_BLOCK;
}

static fl_attention_block block_of(const job *j, int index)
{
    const int q0 = index * FL_ATTENTION_BLOCK;
    const int m = FL_MIN(FL_ATTENTION_BLOCK, j->a->shape.T - q0);
    return (fl_attention_block){.q0 = q0, .m = m, .L = q0 + m};
}

/* ---- forward ---------------------------------------------------------------------------- */

static fl_status forward_block(const job *j, const fl_attention_head *head, const place *at,
                               const fl_attention_block *b)
{
    const fl_train_attention *a = j->a;
    const int ld = fl__attention_scratch_ld(a->blocks), D = a->shape.D, H = a->shape.H;
    float *p = fl__attention_scratch_p(a->blocks, head->thread);
    float *out = j->out + at->at_q + b->q0 * at->ld_q;
    float inv_sum[FL_ATTENTION_BLOCK];

    fl_status st = fl__attention_scores(a->blocks, head, b);
    if (st != FL_OK) return st;
    for (int i = 0; i < b->m; i++) {
        float *row = p + (int64_t)i * ld, top;
        const int n = b->q0 + i + 1;
        const float sum = a->rows->exp_row(row, &top, j->scale, n);
        memset(row + n, 0, (size_t)(b->L - n) * sizeof *row);
        inv_sum[i] = 1.0f / sum;
        j->lse[(at->row + b->q0 + i) * H + at->h] = top + logf(sum);
    }
    st = fl__attention_mix_p(a->blocks, head, b, out);
    for (int i = 0; i < b->m; i++) a->rows->scale(out + i * at->ld_q, inv_sum[i], D);
    return st;
}

static void forward_head(void *arg, int64_t item, int thread)
{
    job *j = arg;
    const place at = place_of(j, item);
    const fl_attention_head head = {
        .q = j->q + at.at_q, .k = j->k + at.at_kv, .v = j->v + at.at_kv, .thread = thread};
    fl_status st = FL_OK;
    fl__attention_head_begin(j->a->blocks, &head);
    for (int i = 0; i < n_blocks(j) && st == FL_OK; i++) {
        const fl_attention_block block = block_of(j, i);
        st = forward_block(j, &head, &at, &block);
    }
    if (st != FL_OK) atomic_store(&j->status, (int)st);
}

/* ---- backward --------------------------------------------------------------------------- */

/* Scores and dout v^T in the scratch become P and dS. */
static void softmax_backward(const job *j, const place *at, const fl_attention_block *b,
                             int thread)
{
    const fl_train_attention *a = j->a;
    const int ld = fl__attention_scratch_ld(a->blocks), D = a->shape.D, H = a->shape.H;
    float *p = fl__attention_scratch_p(a->blocks, thread);
    float *ds = fl__attention_scratch_ds(a->blocks, thread);
    for (int i = 0; i < b->m; i++, p += ld, ds += ld) {
        const int64_t row = at->at_q + (b->q0 + i) * at->ld_q;
        const int n = b->q0 + i + 1;
        const float delta = a->rows->dot(j->dout + row, j->saved_out + row, D);
        const float lse = j->saved_lse[(at->row + b->q0 + i) * H + at->h];
        a->rows->softmax_grad(p, ds, lse, delta, j->scale, n);
        memset(p + n, 0, (size_t)(b->L - n) * sizeof *p);
        memset(ds + n, 0, (size_t)(b->L - n) * sizeof *ds);
    }
}

static void backward_head(void *arg, int64_t item, int thread)
{
    job *j = arg;
    fl_attention_blocks *blocks = j->a->blocks;
    const place at = place_of(j, item);
    const fl_attention_head head = {.q = j->q + at.at_q,
                                    .k = j->k + at.at_kv,
                                    .v = j->v + at.at_kv,
                                    .dout = j->dout + at.at_q,
                                    .thread = thread};
    fl_status st = FL_OK;
    fl__attention_head_begin(blocks, &head);
    for (int i = n_blocks(j) - 1; i >= 0 && st == FL_OK; i--) {
        const fl_attention_block b = block_of(j, i);
        st = fl__attention_scores(blocks, &head, &b);
        if (st == FL_OK) st = fl__attention_scores_grad(blocks, &head, &b);
        if (st != FL_OK) break;
        softmax_backward(j, &at, &b, thread);
        st = fl__attention_mix_ds(blocks, &head, &b, j->dq + at.at_q + b.q0 * at.ld_q);
        if (st == FL_OK) st = fl__attention_spread_p(blocks, &head, &b, j->dv + at.at_q);
        if (st == FL_OK) st = fl__attention_spread_ds(blocks, &head, &b, j->dk + at.at_q);
    }
    if (st != FL_OK) atomic_store(&j->status, (int)st);
}

enum { SUM_ROWS = 16 };

/* Query heads of a KV head, in order. */
static void sum_heads(void *arg, int64_t item, int thread)
{
    const job *j = arg;
    const fl_train_attention_shape *s = &j->a->shape;
    const int r0 = (int)item * SUM_ROWS, r1 = FL_MIN(r0 + SUM_ROWS, j->R), D = s->D;
    const int n_heads = s->H / s->G; /* at least two */
    const float *const heads[2] = {j->dk, j->dv};
    float *const sums[2] = {j->dk_sum, j->dv_sum};
    (void)thread;
    for (int which = 0; which < 2; which++)
        for (int64_t r = r0; r < r1; r++)
            for (int g = 0; g < s->G; g++) {
                float *to = sums[which] + (r * s->G + g) * D;
                const float *from = heads[which] + (r * s->H + (int64_t)g * n_heads) * D;
                j->a->rows->add(to, from, from + D, D);
                for (int h = 2; h < n_heads; h++) j->a->rows->add(to, to, from + h * D, D);
            }
}

/* ---- public ----------------------------------------------------------------------------- */

static fl_status report(job *j, fl_err *err)
{
    const fl_status st = (fl_status)atomic_load(&j->status);
    if (st == FL_OK) return FL_OK;
    return fl__fail(err, st,
                    "attention: products of a head: oneDNN: status %d; free memory and "
                    "try again",
                    (int)st);
}

fl_status fl__train_attention_forward(fl_train_attention *attention, float *out, float *lse,
                                      const float *q, const float *k, const float *v,
                                      int n_windows, fl_err *err)
{
    const fl_train_attention_shape *s = &attention->shape;
    job j = {.a = attention,
             .q = q,
             .k = k,
             .v = v,
             .out = out,
             .lse = lse,
             .scale = (float)(1.0 / sqrt(s->D))};
    fl__parallel_for(&attention->ex, (int64_t)n_windows * s->H, forward_head, &j);
    return report(&j, err);
}

fl_status fl__train_attention_grad(fl_train_attention *attention, float *dq, float *dk,
                                   float *dv, const float *dout, const float *out,
                                   const float *lse, const float *q, const float *k,
                                   const float *v, int n_windows, fl_err *err)
{
    const fl_train_attention_shape *s = &attention->shape;
    job j = {.a = attention,
             .q = q,
             .k = k,
             .v = v,
             .dout = dout,
             .saved_out = out,
             .saved_lse = lse,
             .dq = dq,
             .dk = attention->dk_heads ? attention->dk_heads : dk,
             .dv = attention->dv_heads ? attention->dv_heads : dv,
             .dk_sum = dk,
             .dv_sum = dv,
             .R = n_windows * s->T,
             .scale = (float)(1.0 / sqrt(s->D))};
    fl__parallel_for(&attention->ex, (int64_t)n_windows * s->H, backward_head, &j);
    if (attention->dk_heads)
        fl__parallel_for(&attention->ex, (j.R + SUM_ROWS - 1) / SUM_ROWS, sum_heads, &j);
    return report(&j, err);
}

static fl_status attention_init(fl_train_attention *a, bool bf16, fl_err *err)
{
    const fl_train_attention_shape *s = &a->shape;
    if (s->G != s->H) {
        const size_t n = (size_t)s->max_windows * (size_t)s->T * (size_t)s->H * (size_t)s->D;
        a->dk_heads = fl__alloc(n, sizeof *a->dk_heads);
        a->dv_heads = fl__alloc(n, sizeof *a->dv_heads);
        if (!a->dk_heads || !a->dv_heads)
            return fl__fail_nomem(err, "attention gradients", 2 * n * sizeof *a->dk_heads);
    }
    return fl__attention_blocks_new(&a->blocks, a->rows, &a->ex, s->T, s->H, s->G, s->D,
                                    bf16, err);
}

fl_status fl__train_attention_new(fl_train_attention **out, const fl_exec *ex,
                                  const fl_train_attention_shape *shape, bool bf16, fl_err *err)
{
    *out = NULL;
    fl_train_attention *a = fl__calloc(1, sizeof *a);
    if (!a) return fl__fail_nomem(err, "attention", sizeof *a);
    a->ex = *ex;
    a->shape = *shape;
    a->rows = fl__train_rows_select(ex->isa);
    const fl_status st = attention_init(a, bf16, err);
    if (st == FL_OK) *out = a;
    else fl__train_attention_free(&a);
    return st;
}

void fl__train_attention_free(fl_train_attention **attention)
{
    fl_train_attention *a = *attention;
    if (!a) return;
    fl__attention_blocks_free(&a->blocks);
    fl__free(&a->dk_heads);
    fl__free(&a->dv_heads);
    fl__free(attention);
}
