/* forward.c - the executor of a block's program, and the pass through the whole model.
 *
 * Every op is cut into items whose size does not depend on the number of threads; rows are
 * independent of each other in all of them, and in the attention a row's order of sums depends
 * on its position only. So a token gets the same bits whether it comes alone or in a window,
 * but for float GEMMs (linear_float.c says why).
 * SPDX-License-Identifier: MIT */
#include "base/clock.h"
#include "base/mem.h"
#include "kernels/rowops.h"
#include "model/family.h"
#include "model/kv_attention.h"

#include <math.h>
#include <string.h>

enum { ROW_CHUNK = 16 };

typedef struct walk {
    const fl_model *model;
    const fl_block *block;
    int layer;
    const fl_exec *ex;
    fl_workspace *ws;
    fl_kv_cache *kv;
    const fl_span *spans;
    int n_spans, n_rows;
    const fl_op *op;
    const fl_norm *norm; /* of the current FL_OP_NORM */
} walk;

static int spans_rows(const fl_span *spans, int n_spans)
{
    int n = 0;
    for (int i = 0; i < n_spans; i++) n += spans[i].n_rows;
    return n;
}

static int span_of_row(const walk *w, int row, int *first)
{
    int i = 0;
    *first = 0;
    while (row >= *first + w->spans[i].n_rows) *first += w->spans[i++].n_rows;
    return i;
}

static int position_of_row(const walk *w, int row)
{
    int first;
    const int i = span_of_row(w, row, &first);
    return w->spans[i].pos + row - first;
}

/* ---- ops over chunks of rows ------------------------------------------------------------- */

typedef void row_range_fn(const walk *w, int r0, int r1);
typedef struct row_job {
    const walk *w;
    row_range_fn *fn;
} row_job;

static void row_chunk(void *arg, int64_t item, int thread)
{
    const row_job *j = arg;
    (void)thread;
    const int r0 = (int)item * ROW_CHUNK;
    j->fn(j->w, r0, FL_MIN(r0 + ROW_CHUNK, j->w->n_rows));
}

static void over_rows(const walk *w, row_range_fn *fn)
{
    row_job j = {w, fn};
    fl__parallel_for(w->ex, (w->n_rows + ROW_CHUNK - 1) / ROW_CHUNK, row_chunk, &j);
}

static float *buf_row(const walk *w, int buf, int row)
{
    return w->ws->buf[buf] + (size_t)row * (size_t)w->model->program.width[buf];
}

/* Row r of what an op that sees one row at a time writes to its dst: a norm or an activation
 * function. y may be the row of dst. */
static void make_row(const walk *w, const fl_op *op, float *y, int r)
{
    const float *x = buf_row(w, op->src, r);
    const int n = w->model->program.width[op->dst];
    const double eps = w->model->cfg.norm_eps;
    if (op->kind == FL_OP_SILU_MUL)
        fl__silu_mul_select(w->ex->isa)->run(y, x, buf_row(w, op->src2, r), n);
    else if (op->kind == FL_OP_RELU)
        for (int i = 0; i < n; i++) y[i] = x[i] < 0 ? 0 : x[i]; /* keeps NaN */
    else if (w->model->cfg.family == FL_FAMILY_OPT)
        fl__layer_norm(y, x, w->norm->gain, w->norm->bias, n, eps);
    else
        fl__rms_norm(y, x, w->norm->gain, n, eps);
}

static void make_rows(const walk *w, int r0, int r1)
{
    for (int r = r0; r < r1; r++) make_row(w, w->op, buf_row(w, w->op->dst, r), r);
}

static void rope_rows(const walk *w, int r0, int r1)
{
    const fl_model_config *cfg = &w->model->cfg;
    for (int r = r0; r < r1; r++) {
        const size_t at = (size_t)position_of_row(w, r) * (size_t)(cfg->head_dim / 2);
        const float *c = w->model->rope_cos + at, *s = w->model->rope_sin + at;
        for (int h = 0; h < cfg->n_heads; h++)
            fl__rope_head(buf_row(w, w->op->src, r) + (size_t)h * (size_t)cfg->head_dim, c, s,
                          cfg->head_dim);
        for (int h = 0; h < cfg->n_kv_heads; h++)
            fl__rope_head(buf_row(w, w->op->src2, r) + (size_t)h * (size_t)cfg->head_dim, c, s,
                          cfg->head_dim);
    }
}

/* Products of queries and keys stay what they were; the keys get easier to quantise. */
static void run_heads(const walk *w)
{
    const fl_transform *const t[2] = {&w->block->head_transform_q, &w->block->head_transform_k};
    const int buf[2] = {w->op->src, w->op->src2};
    for (int i = 0; i < 2; i++) {
        const int64_t ld = w->model->program.width[buf[i]];
        float *x = w->ws->buf[buf[i]];
        if (!t[i]->n1) continue;
        fl__transform_run(w->ex, x, ld, x, ld, w->n_rows, t[i], NULL, w->ws->scratch);
    }
}

static void add_rows(const walk *w, int r0, int r1)
{
    const int n = w->model->program.width[w->op->dst];
    float *y = buf_row(w, w->op->dst, r0);
    const float *x = buf_row(w, w->op->src, r0);
    for (int i = 0; i < (r1 - r0) * n; i++) y[i] += x[i];
}

/* ---- attention --------------------------------------------------------------------------- */

static int pages_touched(const fl_span *span)
{
    return (span->pos + span->n_rows - 1) / FL_KV_PAGE - span->pos / FL_KV_PAGE + 1;
}

/* Rows of a span that fall into one page. */
static void append_item(void *arg, int64_t item, int thread)
{
    const walk *w = arg;
    const fl_span *span = w->spans;
    int row = 0, page = (int)item;
    (void)thread;
    for (; page >= pages_touched(span); span++) {
        page -= pages_touched(span);
        row += span->n_rows;
    }
    page += span->pos / FL_KV_PAGE;
    const int from = FL_MAX(span->pos, page * FL_KV_PAGE);
    const int to = FL_MIN(span->pos + span->n_rows, (page + 1) * FL_KV_PAGE);
    row += from - span->pos;
    const fl_kv_rows rows = {.k = buf_row(w, w->op->src2, row),
                             .v = buf_row(w, w->op->src3, row),
                             .k_stride = w->model->program.width[w->op->src2],
                             .v_stride = w->model->program.width[w->op->src3],
                             .n = to - from,
                             .clip = w->block->kv_clip};
    fl__kv_append(w->kv, w->ex->isa, w->layer, span->seq, from, &rows);
}

static void run_attention(walk *w)
{
    const fl_attention a = {.kv = w->kv,
                            .layer = w->layer,
                            .spans = w->spans,
                            .n_spans = w->n_spans,
                            .n_heads = w->model->cfg.n_heads,
                            .q = w->ws->buf[w->op->src],
                            .out = w->ws->buf[w->op->dst],
                            .q_stride = w->model->program.width[w->op->src],
                            .out_stride = w->model->program.width[w->op->dst],
                            .scratch = w->ws->scratch,
                            .scratch_bytes = w->ws->scratch_bytes};
    int64_t n_pages = 0;
    for (int i = 0; i < w->n_spans; i++) n_pages += pages_touched(&w->spans[i]);
    fl__parallel_for(w->ex, n_pages, append_item, w);
    fl__attention_run(w->ex, &a);
}

/* ---- the walk ---------------------------------------------------------------------------- */

static void run_op(walk *w)
{
    const fl_op *op = w->op;
    float **buf = w->ws->buf;
    switch (op->kind) {
    case FL_OP_NORM:
        w->norm = &w->block->norm[op->which];
        over_rows(w, make_rows);
        break;
    case FL_OP_SILU_MUL:
    case FL_OP_RELU: over_rows(w, make_rows); break;
    case FL_OP_SITE: {
        float *const y[FL_SITE_MAX_LINEARS] = {buf[op->dst], buf[op->dst2], buf[op->dst3]};
        fl__site_run(w->ex, &w->block->site[op->which], buf[op->src], w->n_rows, y,
                     w->ws->scratch);
        break;
    }
    case FL_OP_ROPE: over_rows(w, rope_rows); break;
    case FL_OP_HEADS: run_heads(w); break;
    case FL_OP_ATTENTION: run_attention(w); break;
    case FL_OP_ADD: over_rows(w, add_rows); break;
    }
}

/* A site on integers, with the op before it whose rows nothing else reads, and the sum behind
 * it: one pass over the rows, one over the weights. */
typedef struct site_group {
    const fl_op *maker, *site, *add; /* maker, add: or NULL */
} site_group;

/* Of the n_ops ops from op on. Returns how many they are, 0: no such group. */
static int find_group(site_group *g, const fl_block *block, const fl_op *op, int n_ops)
{
    int n = 0;
    *g = (site_group){0};
    if (op->dst != FL_BUF_X && (op->kind == FL_OP_NORM || op->kind == FL_OP_SILU_MUL ||
                                op->kind == FL_OP_RELU))
        g->maker = &op[n++];
    if (n >= n_ops || op[n].kind != FL_OP_SITE) return 0;
    g->site = &op[n++];
    if (!fl__site_fuses(&block->site[g->site->which])) return 0;
    if (g->maker && g->maker->dst != g->site->src) return 0;
    if (n < n_ops && op[n].kind == FL_OP_ADD && op[n].src == g->site->dst) g->add = &op[n++];
    return n;
}

static void group_row(void *arg, float *row, int r)
{
    const walk *w = arg;
    make_row(w, w->op, row, r);
}

static void run_group(walk *w, const site_group *g)
{
    float **buf = w->ws->buf;
    const fl_op *op = g->site;
    float *const out = g->add ? buf[g->add->dst] : buf[op->dst];
    float *const y[FL_SITE_MAX_LINEARS] = {out, buf[op->dst2], buf[op->dst3]};
    const fl_rows x = {.x = buf[op->src],
                       .ldx = w->model->program.width[op->src],
                       .make = g->maker ? group_row : NULL,
                       .arg = w};
    w->op = g->maker;
    if (g->maker) w->norm = &w->block->norm[g->maker->which];
    fl__site_run_fused(w->ex, &w->block->site[op->which], x, w->n_rows, y,
                       g->add ? out : NULL, w->ws->scratch);
}

void fl__block_run(const fl_model *model, const fl_block *block, int layer, fl_half half,
                   const fl_exec *ex, fl_workspace *ws, fl_kv_cache *kv, const fl_span *spans,
                   int n_spans, fl_site_hook *hook, void *user)
{
    walk w = {.model = model, .block = block, .layer = layer, .ex = ex, .ws = ws, .kv = kv,
              .spans = spans, .n_spans = n_spans, .n_rows = spans_rows(spans, n_spans)};
    const fl_program *p = &model->program;
    const int end = half == FL_HALF_ATTENTION ? p->n_attention_ops : p->n_ops;
    for (int i = half == FL_HALF_MLP ? p->n_attention_ops : 0, n; i < end; i += n) {
        site_group g;
        /* a hook is shown the rows, so there they have to be in memory */
        n = hook ? 0 : find_group(&g, block, &p->ops[i], end - i);
        w.op = &p->ops[i];
        if (hook && w.op->kind == FL_OP_SITE &&
            !hook(user, w.op->which, ws->buf[w.op->src], w.n_rows))
            return;
        const double start = ws->op_s ? fl__now_s() : 0;
        if (n)
            run_group(&w, &g);
        else
            run_op(&w);
        if (ws->op_s) ws->op_s[n ? g.site - p->ops : i] += fl__now_s() - start;
        n = FL_MAX(n, 1);
    }
}

/* ---- around the blocks ------------------------------------------------------------------- */

static void add_row_of(float *to, const fl_linear *table, int row)
{
    const size_t n = (size_t)table->n_in;
    const unsigned char *w = table->w;
    for (size_t i = 0; i < n; i++) {
        float x;
        const size_t bytes = fl__dtype_bytes(table->w_type);
        fl__dtype_to_f32(&x, table->w_type, w + ((size_t)row * n + i) * bytes, 1);
        to[i] += x;
    }
}

void fl__model_embed(const fl_model *model, const fl_exec *ex, fl_workspace *ws,
                     const int32_t *ids, const fl_span *spans, int n_spans)
{
    const fl_model_config *cfg = &model->cfg;
    const int n = spans_rows(spans, n_spans), offset = fl__family(cfg)->position_offset;
    float *x = ws->buf[FL_BUF_X], *rows = model->project_in.n_out ? ws->embed : x;
    for (int r = 0; r < n; r++)
        fl__dtype_to_f32(rows + (size_t)r * (size_t)cfg->embed_size, model->embed.w_type,
                         (const unsigned char *)model->embed.w +
                             (size_t)ids[r] * (size_t)cfg->embed_size *
                                 fl__dtype_bytes(model->embed.w_type),
                         (size_t)cfg->embed_size);
    if (model->project_in.n_out)
        fl__linear_float_run(ex, &model->project_in, rows, cfg->embed_size, n, x,
                             cfg->hidden_size, ws->scratch);
    if (!model->positions.n_out) return;
    for (int i = 0, r = 0; i < n_spans; i++)
        for (int k = 0; k < spans[i].n_rows; k++, r++)
            add_row_of(x + (size_t)r * (size_t)cfg->hidden_size, &model->positions,
                       spans[i].pos + k + offset);
}

const float *fl__model_finish(const fl_model *model, const fl_exec *ex, fl_workspace *ws,
                              int n_rows)
{
    const fl_model_config *cfg = &model->cfg;
    const fl_op op = {FL_OP_NORM, .src = FL_BUF_X, .dst = FL_BUF_X};
    const walk w = {.model = model, .ex = ex, .ws = ws, .n_rows = n_rows, .op = &op,
                    .norm = &model->final_norm};
    if (model->final_norm.gain) over_rows(&w, make_rows);
    if (!model->project_out.n_out) return ws->buf[FL_BUF_X];
    fl__linear_float_run(ex, &model->project_out, ws->buf[FL_BUF_X], cfg->hidden_size, n_rows,
                         ws->embed, cfg->embed_size, ws->scratch);
    return ws->embed;
}

const float *fl__model_forward(const fl_model *model, const fl_exec *ex, fl_workspace *ws,
                               fl_kv_cache *kv, const int32_t *ids, const fl_span *spans,
                               int n_spans)
{
    for (int i = 0; i < n_spans; i++)
        fl__kv_resize(kv, spans[i].seq, spans[i].pos + spans[i].n_rows);
    fl__model_embed(model, ex, ws, ids, spans, n_spans);
    for (int i = 0; i < model->cfg.n_layers; i++)
        fl__block_run(model, &model->blocks[i], i, FL_HALF_BOTH, ex, ws, kv, spans, n_spans,
                      NULL, NULL);
    return fl__model_finish(model, ex, ws, spans_rows(spans, n_spans));
}

void fl__model_logits(const fl_model *model, const fl_exec *ex, fl_workspace *ws,
                      const float *hidden, int n, float *logits)
{
    float *const y[FL_SITE_MAX_LINEARS] = {logits};
    fl__site_run(ex, &model->head_site, hidden, n, y, ws->scratch);
}

/* ---- workspace --------------------------------------------------------------------------- */

/* Largest extra columns over the blocks, so that codes of any site fit. */
static int max_code_ld(const fl_model *model)
{
    int widest = 0;
    for (int b = 0; b < FL_N_BUFS; b++) widest = FL_MAX(widest, model->program.width[b]);
    int ld = FL_MAX(fl__gemm_ldx(widest), model->head_site.code_ld);
    for (int i = 0; model->blocks && i < model->cfg.n_layers; i++)
        for (int s = 0; s < FL_N_SITES; s++) ld = FL_MAX(ld, model->blocks[i].site[s].code_ld);
    if (model->blocks) return ld;
    return fl__gemm_ldx((int)ceil(widest * (1 + model->stream_max_extra)));
}

static size_t transform_bytes(const fl_model *model, const fl_exec *ex)
{
    size_t most = model->blocks ? 0 : model->stream_transform_bytes;
    for (int i = 0; model->blocks && i < model->cfg.n_layers; i++) {
        const fl_block *b = &model->blocks[i];
        const fl_transform *all[FL_N_SITES + 2] = {&b->head_transform_q, &b->head_transform_k};
        for (int s = 0; s < FL_N_SITES; s++) all[s + 2] = &b->site[s].transform;
        for (int t = 0; t < FL_N_SITES + 2; t++)
            most = FL_MAX(most, fl__transform_scratch_bytes(ex, all[t]->n1, all[t]->n2));
    }
    return most;
}

static bool has_own_clips(const fl_model *model)
{
    bool any = !model->blocks && model->stream_own_clips;
    for (int i = 0; model->blocks && i < model->cfg.n_layers; i++)
        for (int s = 0; s < FL_N_SITES; s++) any |= model->blocks[i].site[s].own_clips;
    return any;
}

static size_t scratch_bytes(const fl_model *model, const fl_exec *ex, int max_rows)
{
    int widest = model->cfg.embed_size;
    for (int b = 0; b < FL_N_BUFS; b++) widest = FL_MAX(widest, model->program.width[b]);
    const size_t site = fl__site_scratch_bytes(ex, max_rows, widest, max_code_ld(model),
                                               transform_bytes(model, ex),
                                               has_own_clips(model));
    const fl_kv_options kv = fl__model_kv_options(model, 1, model->cfg.n_positions);
    return FL_MAX(site, fl__attention_scratch_bytes(ex, &kv, model->cfg.n_heads));
}

static size_t embed_floats(const fl_model *model, int max_rows)
{
    return model->project_in.n_out ? (size_t)max_rows * (size_t)model->cfg.embed_size : 0;
}

size_t fl__workspace_bytes(const fl_model *model, const fl_exec *ex, int max_rows)
{
    size_t n = embed_floats(model, max_rows);
    for (int b = 0; b < FL_N_BUFS; b++) n += (size_t)max_rows * (size_t)model->program.width[b];
    return n * sizeof(float) + scratch_bytes(model, ex, max_rows) + sizeof(fl_workspace);
}

fl_status fl__workspace_new(fl_workspace **out, const fl_model *model, const fl_exec *ex,
                            int max_rows, fl_err *err)
{
    *out = NULL;
    fl_workspace *ws = fl__calloc(1, sizeof *ws);
    bool ok = ws != NULL;
    if (ok) {
        ws->max_rows = max_rows;
        ws->scratch_bytes = scratch_bytes(model, ex, max_rows);
        ok = (ws->scratch = fl__alloc(ws->scratch_bytes, 1)) != NULL &&
             (ws->embed = fl__alloc(embed_floats(model, max_rows), sizeof(float))) != NULL;
    }
    for (int b = 0; ok && b < FL_N_BUFS; b++) {
        const size_t n = (size_t)max_rows * (size_t)model->program.width[b];
        if (n) ok = (ws->buf[b] = fl__alloc(n, sizeof(float))) != NULL;
    }
    if (!ok) {
        fl__workspace_free(&ws);
        return fl__fail_nomem(err, "activations of a batch",
                              fl__workspace_bytes(model, ex, max_rows));
    }
    *out = ws;
    return FL_OK;
}

void fl__workspace_free(fl_workspace **ws)
{
    if (!*ws) return;
    for (int b = 0; b < FL_N_BUFS; b++) fl__free(&(*ws)->buf[b]);
    fl__free(&(*ws)->embed);
    fl__free(&(*ws)->scratch);
    fl__free(ws);
}
