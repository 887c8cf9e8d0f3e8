/* device_run.c - steps of a model on a device: cache pages, inputs, the walk over the program.
 *
 * The inputs of a step (token ids, positions, lengths) lie in one array, whose layout follows
 * from the numbers of sequences and rows alone, and the page tables in another; both are sent
 * before the ops, which find them at the same addresses in every step of that shape. So a step
 * of decoding is queued op by op once, and is a graph from then on.
 *
 * The walk joins ops as the CPU's does: what makes a site's rows goes into its encoder, the sum
 * behind a site into its linear; rotary embedding and head transforms go into the append of the
 * attention that follows them, silu(gate) * up into the product of a gated weight.
 * SPDX-License-Identifier: MIT */
#include "base/mem.h"
#include "model/device_parts.h"
#include "model/family.h"

#include <math.h>
#include <string.h>

enum { LOGIT_ROWS = 128, MAX_GRAPHS = 8 };

typedef struct step_graph {
    int n_seqs;
    bool warm; /* run once as single ops: kernels are loaded, plans made */
    void *graph;
} step_graph;

struct fl_device_run {
    fl_device_model *dm;
    int n_sequences, n_positions, max_rows;
    /* cache */
    fl_device_kv kv; /* of layer 0, whose pages begin the slab */
    size_t page_bytes, layer_bytes;
    int pages_per_seq, n_pages, n_free;
    int32_t *table; /* [n_sequences, pages_per_seq], -1: none */
    int32_t *free_pages;
    int *length; /* [n_sequences] */
    /* inputs */
    int32_t *step_host, *table_host;
    void *step_device, *table_device;
    bool table_is_sent; /* table_device holds the tables of the spans of table_seqs */
    int *table_seqs, n_table_seqs;
    fl_span *spans;      /* [n_sequences] of a step of decoding */
    fl_device_step step; /* of the last forward */
    const int32_t *last_rows;
    /* activations */
    fl_device_matrix buf[FL_N_BUFS];
    fl_device_matrix last;   /* [n_sequences, hidden] float32 */
    fl_device_matrix logits; /* [max(LOGIT_ROWS, n_sequences), vocab] float32 */
    fl_device_codes codes;
    void *q_out, *append_scratch, *attend_workspace;
    void *memory[32];
    int n_memory;
    size_t kv_bytes, workspace_bytes;
    step_graph graphs[MAX_GRAPHS];
    double *lap_ms; /* [FL_DEVICE_N_LAPS] borrowed, NULL: not measured */
    int n_laps;
    unsigned char lap_owner[FL_BACKEND_MAX_MARKS];
};

/* ---- memory ------------------------------------------------------------------------------ */

static fl_status take(fl_device_run *r, void **out, size_t n_bytes, fl_err *err)
{
    const fl_status st = r->dm->be->ops->alloc(r->dm->be, out, FL_MAX(n_bytes, 256), err);
    if (st) return st;
    r->memory[r->n_memory++] = *out;
    return FL_OK;
}

static fl_status take_matrix(fl_device_run *r, fl_device_matrix *m, int rows, int width,
                             bool f32, fl_err *err)
{
    m->ld = (width + 7) / 8 * 8;
    m->f32 = f32;
    return take(r, &m->data, (size_t)rows * (size_t)m->ld * (f32 ? 4 : 2), err);
}

/* Outputs of a site lie side by side in one matrix. */
static fl_status take_outputs(fl_device_run *r, const fl_op *op, fl_err *err)
{
    const int *width = r->dm->model->program.width;
    const int dst[FL_SITE_MAX_LINEARS] = {op->dst, op->dst2, op->dst3};
    const bool f32 = r->dm->be->f32_activations;
    int linears[FL_SITE_MAX_LINEARS], total = 0;
    const int n = fl__site_linears(linears, &r->dm->model->cfg, op->which);
    if (r->buf[op->dst].data) return FL_OK;
    for (int i = 0; i < n; i++) total += width[dst[i]];
    fl_device_matrix all;
    const fl_status st = take_matrix(r, &all, r->max_rows, total, f32, err);
    char *at = all.data;
    for (int i = 0; i < n && !st; i++) {
        r->buf[dst[i]] = (fl_device_matrix){at, all.ld, f32};
        at += (size_t)width[dst[i]] * (f32 ? 4 : 2);
    }
    return st;
}

static fl_status take_buffers(fl_device_run *r, fl_err *err)
{
    const fl_program *p = &r->dm->model->program;
    const bool f32 = r->dm->be->f32_activations;
    fl_status st =
        take_matrix(r, &r->buf[FL_BUF_X], r->max_rows, p->width[FL_BUF_X], true, err);
    for (int i = 0; i < p->n_ops && !st; i++) {
        const fl_op *op = &p->ops[i];
        if (op->kind == FL_OP_SITE && op->dst != FL_BUF_T) st = take_outputs(r, op, err);
        if (op->kind == FL_OP_ATTENTION)
            st = take_matrix(r, &r->buf[op->dst], r->max_rows, p->width[op->dst], f32, err);
    }
    return st;
}

static fl_status take_codes(fl_device_run *r, fl_err *err)
{
    const fl_device_model *dm = r->dm;
    const size_t rows = (size_t)FL_MAX(r->max_rows, LOGIT_ROWS);
    const size_t wide = dm->be->f32_activations ? 4 : 2;
    size_t row_bytes = (size_t)dm->head.code_ld * wide;
    for (int i = 0; i < dm->model->cfg.n_layers; i++)
        for (int s = 0; s < FL_N_SITES; s++) {
            const fl_device_site *ds = &dm->blocks[i].site[s];
            row_bytes = FL_MAX(row_bytes, (size_t)ds->code_ld * (ds->a_bits == 16 ? wide : 1));
        }
    void *p = NULL;
    fl_status st = take(r, &r->codes.data, rows * row_bytes, err);
    if (!st) st = take(r, &p, rows * 4, err);
    r->codes.sums = p;
    if (!st) st = take(r, &p, rows * 4, err);
    r->codes.scales = p;
    if (!st) st = take(r, &p, rows * 4, err);
    r->codes.zeros = p;
    return st;
}

static int pages_of(int n)
{
    return (n + FL_BACKEND_PAGE - 1) / FL_BACKEND_PAGE;
}

static fl_status take_cache(fl_device_run *r, fl_err *err)
{
    fl_backend *be = r->dm->be;
    const int n_seq = r->n_sequences;
    r->kv = fl__device_kv_of(r->dm->model);
    r->pages_per_seq = pages_of(r->n_positions);
    r->n_pages = r->n_free = n_seq * r->pages_per_seq;
    r->page_bytes = be->ops->kv_page_bytes(be, &r->kv);
    r->layer_bytes = (size_t)r->n_pages * r->page_bytes;
    r->kv_bytes = r->layer_bytes * (size_t)r->dm->model->cfg.n_layers;
    r->table = fl__alloc((size_t)r->n_pages, sizeof *r->table);
    r->free_pages = fl__alloc((size_t)r->n_pages, sizeof *r->free_pages);
    r->length = fl__calloc((size_t)n_seq, sizeof *r->length);
    r->table_host = fl__calloc((size_t)r->n_pages, sizeof *r->table_host);
    r->table_seqs = fl__alloc((size_t)n_seq, sizeof *r->table_seqs);
    r->spans = fl__alloc((size_t)n_seq, sizeof *r->spans);
    if (!r->table || !r->free_pages || !r->length || !r->table_host || !r->table_seqs ||
        !r->spans)
        return fl__fail_nomem(err, "page tables", (size_t)r->n_pages * 8);
    for (int i = 0; i < r->n_pages; i++) {
        r->table[i] = -1;
        r->free_pages[i] = r->n_pages - 1 - i;
    }
    fl_status st = take(r, &r->kv.pages, r->kv_bytes, err);
    if (!st) st = be->ops->clear(be, r->kv.pages, r->kv_bytes, err);
    if (!st) st = take(r, &r->table_device, (size_t)r->n_pages * sizeof *r->table, err);
    r->kv.table = r->table_device;
    r->kv.table_stride = r->pages_per_seq;
    return st;
}

/* Numbers of a step's inputs. */
static size_t step_ints(int n_seqs, int n_rows)
{
    return 2 * (size_t)n_rows + 4 * (size_t)n_seqs + 1;
}

static fl_status take_rest(fl_device_run *r, fl_err *err)
{
    fl_backend *be = r->dm->be;
    const fl_model_config *cfg = &r->dm->model->cfg;
    const size_t rows = (size_t)r->max_rows, wide = be->f32_activations ? 4 : 2;
    const size_t heads = (size_t)(cfg->n_heads * cfg->head_dim);
    const size_t kv_heads = (size_t)(cfg->n_kv_heads * cfg->head_dim);
    const size_t ints = step_ints(r->n_sequences, r->max_rows);
    const size_t attend = be->ops->attend_bytes(be, &r->kv, r->n_sequences, r->n_positions);
    r->step_host = fl__alloc(ints, sizeof *r->step_host);
    if (!r->step_host) return fl__fail_nomem(err, "inputs of a step", ints * 4);
    fl_status st = take(r, &r->step_device, ints * sizeof(int32_t), err);
    if (!st) st = take(r, &r->q_out, rows * heads * wide, err);
    if (!st) st = take(r, &r->append_scratch, rows * (heads + kv_heads) * wide, err);
    if (!st) st = take(r, &r->attend_workspace, attend, err);
    if (!st) st = be->ops->clear(be, r->attend_workspace, FL_MAX(attend, 256), err);
    if (!st) st = take_matrix(r, &r->last, r->n_sequences, cfg->hidden_size, true, err);
    if (!st)
        st = take_matrix(r, &r->logits, FL_MAX(LOGIT_ROWS, r->n_sequences), cfg->vocab_size,
                         true, err);
    return st;
}

fl_status fl__device_run_new(fl_device_run **out, fl_device_model *dm, int n_sequences,
                             int n_positions, int max_rows, fl_err *err)
{
    const size_t before = dm->be->allocated_bytes;
    *out = NULL;
    fl_device_run *r = fl__calloc(1, sizeof *r);
    if (!r) return fl__fail_nomem(err, "device run", sizeof *r);
    r->dm = dm;
    r->n_sequences = n_sequences;
    r->n_positions = n_positions;
    r->max_rows = FL_MAX(max_rows, n_sequences);
    fl_status st = take_cache(r, err);
    if (!st) st = take_buffers(r, err);
    if (!st) st = take_codes(r, err);
    if (!st) st = take_rest(r, err);
    if (st) {
        fl__device_run_free(&r);
        return st;
    }
    r->workspace_bytes = dm->be->allocated_bytes - before - r->kv_bytes;
    *out = r;
    return FL_OK;
}

void fl__device_run_free(fl_device_run **run)
{
    fl_device_run *r = *run;
    if (!r) return;
    fl_backend *be = r->dm->be;
    for (int i = 0; i < MAX_GRAPHS; i++)
        if (r->graphs[i].graph) be->ops->graph_free(be, r->graphs[i].graph);
    for (int i = 0; i < r->n_memory; i++) be->ops->release(be, r->memory[i]);
    fl__free(&r->table);
    fl__free(&r->free_pages);
    fl__free(&r->length);
    fl__free(&r->table_host);
    fl__free(&r->table_seqs);
    fl__free(&r->spans);
    fl__free(&r->step_host);
    fl__free(run);
}

size_t fl__device_run_kv_bytes(const fl_device_run *run)
{
    return run->kv_bytes;
}

size_t fl__device_run_workspace_bytes(const fl_device_run *run)
{
    return run->workspace_bytes;
}

/* ---- pages and inputs -------------------------------------------------------------------- */

void fl__device_run_resize(fl_device_run *r, int seq, int n)
{
    int32_t *table = r->table + (size_t)seq * (size_t)r->pages_per_seq;
    const int want = pages_of(n), have = pages_of(r->length[seq]);
    for (int p = have; p < want; p++) table[p] = r->free_pages[--r->n_free];
    for (int p = have; p-- > want;) {
        r->free_pages[r->n_free++] = table[p];
        table[p] = -1;
    }
    if (want != have) r->table_is_sent = false;
    r->length[seq] = n;
}

static bool same_sequences(const fl_device_run *r, const fl_span *spans, int n_spans)
{
    if (n_spans != r->n_table_seqs) return false;
    for (int i = 0; i < n_spans; i++)
        if (spans[i].seq != r->table_seqs[i]) return false;
    return true;
}

static fl_status send_tables(fl_device_run *r, const fl_span *spans, int n_spans, fl_err *err)
{
    const size_t width = (size_t)r->pages_per_seq;
    if (r->table_is_sent && same_sequences(r, spans, n_spans)) return FL_OK;
    for (int i = 0; i < n_spans; i++) {
        const int32_t *from = r->table + (size_t)spans[i].seq * width;
        for (size_t p = 0; p < width; p++)
            r->table_host[(size_t)i * width + p] = FL_MAX(from[p], 0);
        r->table_seqs[i] = spans[i].seq;
    }
    r->n_table_seqs = n_spans;
    r->table_is_sent = true;
    return r->dm->be->ops->send(r->dm->be, r->table_device, r->table_host,
                                (size_t)n_spans * width * sizeof *r->table_host, err);
}

static fl_status send_step(fl_device_run *r, const int32_t *ids, const fl_span *spans,
                           int n_spans, fl_err *err)
{
    fl_device_step *s = &r->step;
    int32_t *h = r->step_host, *const d = r->step_device;
    int row = 0;
    *s = (fl_device_step){.n_seqs = n_spans};
    for (int i = 0; i < n_spans; i++) s->n_rows += spans[i].n_rows;
    int32_t *first = h, *position = first + n_spans + 1, *n_tokens = position + n_spans;
    int32_t *last = n_tokens + n_spans, *host_ids = last + n_spans;
    int32_t *row_position = host_ids + s->n_rows;
    for (int i = 0; i < n_spans; i++) {
        first[i] = row;
        position[i] = spans[i].pos;
        n_tokens[i] = spans[i].pos + spans[i].n_rows;
        s->max_rows = FL_MAX(s->max_rows, spans[i].n_rows);
        s->max_tokens = FL_MAX(s->max_tokens, n_tokens[i]);
        for (int k = 0; k < spans[i].n_rows; k++) row_position[row++] = spans[i].pos + k;
        last[i] = row - 1;
    }
    first[n_spans] = row;
    memcpy(host_ids, ids, (size_t)s->n_rows * sizeof *ids);
    s->first_row = d;
    s->position = d + (position - h);
    s->n_tokens = d + (n_tokens - h);
    s->ids = d + (host_ids - h);
    s->row_position = d + (row_position - h);
    r->last_rows = d + (last - h);
    const fl_status st = send_tables(r, spans, n_spans, err);
    if (st) return st;
    return r->dm->be->ops->send(r->dm->be, d, h, step_ints(n_spans, s->n_rows) * sizeof *h,
                                err);
}

/* ---- time -------------------------------------------------------------------------------- */

/* What was queued since the last lap is `owner`'s. */
static fl_status lap(fl_device_run *r, int owner, fl_err *err)
{
    if (!r->lap_ms || r->n_laps >= FL_BACKEND_MAX_MARKS) return FL_OK;
    r->lap_owner[r->n_laps] = (unsigned char)owner;
    return r->dm->be->ops->mark(r->dm->be, r->n_laps++, err);
}

static fl_status add_laps(fl_device_run *r, fl_err *err)
{
    fl_backend *be = r->dm->be;
    if (!r->lap_ms) return FL_OK;
    fl_status st = be->ops->wait(be, err);
    for (int i = 1; i < r->n_laps && !st; i++) {
        double ms = 0;
        st = be->ops->between(be, &ms, i - 1, i, err);
        r->lap_ms[r->lap_owner[i]] += ms;
    }
    r->n_laps = 0;
    return st;
}

/* ---- the walk ---------------------------------------------------------------------------- */

typedef struct device_walk {
    fl_device_run *r;
    const fl_device_block *block;
    int layer;
    bool rotate, heads; /* asked for by ops on the way to the attention */
} device_walk;

static fl_device_rows plain_rows(const fl_device_matrix *x)
{
    return (fl_device_rows){.front = FL_FRONT_NONE, .x = *x};
}

static fl_device_rows norm_rows(const fl_device_run *r, const fl_device_matrix *x,
                                const fl_device_norm *norm)
{
    if (!norm->gain) return plain_rows(x);
    const bool layer = r->dm->model->cfg.family == FL_FAMILY_OPT;
    return (fl_device_rows){.front = layer ? FL_FRONT_LAYER_NORM : FL_FRONT_RMS_NORM,
                            .x = *x,
                            .gain = norm->gain,
                            .bias = norm->bias,
                            .eps = r->dm->model->cfg.norm_eps};
}

/* Rows as op makes them; NULL: as they lie in buffer `src`. */
static fl_device_rows made_rows(const device_walk *w, const fl_op *op, int src)
{
    const fl_device_matrix *buf = w->r->buf;
    if (!op) return plain_rows(&buf[src]);
    if (op->kind == FL_OP_NORM)
        return norm_rows(w->r, &buf[op->src], &w->block->norm[op->which]);
    if (op->kind == FL_OP_SILU_MUL && w->block->site[FL_SITE_UP].is_gated)
        return plain_rows(&buf[op->dst]); /* its product did it */
    if (op->kind == FL_OP_RELU)
        return (fl_device_rows){.front = FL_FRONT_RELU, .x = buf[op->src]};
    return (fl_device_rows){
        .front = FL_FRONT_SILU_MUL, .x = buf[op->src], .up = buf[op->src2].data};
}

/* M rows through a site; y: of its first linear, the others' beside it. */
static fl_status run_site(fl_device_run *r, const fl_device_site *ds,
                          const fl_device_rows *rows, const fl_device_matrix *y,
                          bool accumulate, int M, int lap_of, fl_err *err)
{
    fl_backend *be = r->dm->be;
    fl_device_matrix at = *y;
    for (int p = 0; p < ds->n_parts; p++) {
        fl_device_codes codes = r->codes;
        codes.ld = ds->code_ld;
        const bool as_it_is =
            ds->is_plain && rows->front == FL_FRONT_NONE && rows->x.f32 == be->f32_activations;
        const fl_device_encode e = {
            .encoder = ds->encoder[p], .rows = *rows, .out = codes, .M = M};
        fl_status st = as_it_is ? FL_OK : be->ops->encode(be, &e, err);
        if (st) return st;
        if ((st = lap(r, lap_of, err))) return st;
        if (as_it_is) codes = (fl_device_codes){.data = rows->x.data, .ld = rows->x.ld};
        const fl_device_linear l = {.encoder = ds->encoder[p],
                                    .x = codes,
                                    .w = ds->weight[p],
                                    .y = at,
                                    .accumulate = accumulate,
                                    .M = M};
        if ((st = be->ops->linear(be, &l, err))) return st;
        at.data = (char *)at.data + (size_t)ds->part_out[p] * (at.f32 ? 4 : 2);
    }
    return FL_OK;
}

static fl_status run_attention(device_walk *w, const fl_op *op, fl_err *err)
{
    fl_device_run *r = w->r;
    const fl_device_model *dm = r->dm;
    fl_backend *be = dm->be;
    fl_device_kv kv = r->kv;
    kv.pages = (char *)kv.pages + (size_t)w->layer * r->layer_bytes;
    fl_device_append append = {.kv = &kv,
                               .q = r->buf[op->src],
                               .k = r->buf[op->src2],
                               .v = r->buf[op->src3],
                               .cos = w->rotate ? dm->rope_cos : NULL,
                               .sin = w->rotate ? dm->rope_sin : NULL,
                               .q_factor = w->heads ? w->block->q_factor : NULL,
                               .k_factor = w->heads ? w->block->k_factor : NULL,
                               .q_out = r->q_out,
                               .scratch = r->append_scratch};
    memcpy(append.clip, w->block->kv_clip, sizeof append.clip);
    const fl_status st = be->ops->append(be, &append, &r->step, err);
    if (st) return st;
    const fl_device_attend attend = {.kv = &kv,
                                     .q = r->q_out,
                                     .y = r->buf[op->dst],
                                     .scale = 1.0f / sqrtf((float)kv.head_dim),
                                     .workspace = r->attend_workspace,
                                     .max_seqs = r->n_sequences};
    return be->ops->attend(be, &attend, &r->step, err);
}

static bool makes_rows(const fl_op *op)
{
    return op->dst != FL_BUF_X &&
           (op->kind == FL_OP_NORM || op->kind == FL_OP_SILU_MUL || op->kind == FL_OP_RELU);
}

/* Runs the ops from op on that belong together; *n: how many. */
static fl_status run_ops(device_walk *w, const fl_op *op, int n_left, int *n, fl_err *err)
{
    fl_device_run *r = w->r;
    const fl_op *maker = makes_rows(op) ? op : NULL;
    const fl_op *site = maker ? op + 1 : op;
    *n = 1;
    switch (op->kind) {
    case FL_OP_ROPE:
        w->rotate = true;
        return FL_OK;
    case FL_OP_HEADS:
        w->heads = true;
        return FL_OK;
    case FL_OP_ATTENTION:
        return run_attention(w, op, err);
    default:
        break;
    }
    if (op->kind == FL_OP_NORM && !maker) {
        const fl_device_rows rows = norm_rows(r, &r->buf[op->src], &w->block->norm[op->which]);
        return r->dm->be->ops->norm(r->dm->be, &r->buf[op->dst], &rows, r->step.n_rows,
                                    r->dm->model->cfg.hidden_size, err);
    }
    if ((maker && n_left < 2) || site->kind != FL_OP_SITE || (maker && maker->dst != site->src))
        return fl__fail(err, FL_E_UNSUPPORTED,
                        "model not for this device: an op of kind %d alone; use --device cpu",
                        (int)op->kind);
    *n = maker ? 2 : 1;
    const fl_op *add =
        *n < n_left && site[1].kind == FL_OP_ADD && site[1].src == site->dst ? site + 1 : NULL;
    *n += add != NULL;
    const fl_device_rows rows = made_rows(w, maker, site->src);
    const fl_device_site *ds = &w->block->site[site->which];
    const int dst = add ? add->dst : ds->is_gated ? site->dst2 : site->dst;
    return run_site(r, ds, &rows, &r->buf[dst], add != NULL, r->step.n_rows,
                    FL_DEVICE_LAP_ENCODE, err);
}

/* ---- steps ------------------------------------------------------------------------------- */

static fl_status run_blocks(fl_device_run *r, fl_err *err)
{
    const fl_device_model *dm = r->dm;
    const fl_program *p = &dm->model->program;
    fl_status st = FL_OK;
    for (int i = 0; i < dm->model->cfg.n_layers && !st; i++) {
        device_walk w = {.r = r, .block = &dm->blocks[i], .layer = i};
        for (int at = 0, n = 1; at < p->n_ops && !st; at += n) {
            st = run_ops(&w, &p->ops[at], p->n_ops - at, &n, err);
            if (!st) st = lap(r, n > 1 && makes_rows(&p->ops[at]) ? at + 1 : at, err);
        }
    }
    return st;
}

static fl_status run_embed(fl_device_run *r, fl_err *err)
{
    const fl_device_model *dm = r->dm;
    const fl_model_config *cfg = &dm->model->cfg;
    const fl_device_embed e = {.y = r->buf[FL_BUF_X],
                               .table = dm->embed,
                               .type = dm->embed_type,
                               .n = cfg->hidden_size,
                               .n_ids = cfg->vocab_size,
                               .positions = dm->positions,
                               .positions_type = dm->positions_type,
                               .offset = fl__family(cfg)->position_offset};
    return dm->be->ops->embed(dm->be, &e, &r->step, err);
}

fl_status fl__device_run_forward(fl_device_run *r, const int32_t *ids, const fl_span *spans,
                                 int n_spans, fl_err *err)
{
    for (int i = 0; i < n_spans; i++)
        fl__device_run_resize(r, spans[i].seq, spans[i].pos + spans[i].n_rows);
    fl_status st = send_step(r, ids, spans, n_spans, err);
    if (!st) st = lap(r, FL_DEVICE_LAP_OTHER, err);
    if (!st) st = run_embed(r, err);
    if (!st) st = lap(r, FL_DEVICE_LAP_OTHER, err);
    if (!st) st = run_blocks(r, err);
    return st ? st : add_laps(r, err);
}

static fl_status run_head(fl_device_run *r, const fl_device_matrix *x, int n, fl_err *err)
{
    const fl_device_rows rows = norm_rows(r, x, &r->dm->final_norm);
    return run_site(r, &r->dm->head, &rows, &r->logits, false, n, FL_DEVICE_LAP_HEAD, err);
}

static fl_status download_logits(fl_device_run *r, float *logits, int n, fl_err *err)
{
    fl_backend *be = r->dm->be;
    const size_t width = (size_t)r->dm->model->cfg.vocab_size * sizeof(float);
    return be->ops->download(be, logits, r->logits.data, (size_t)n * width, err);
}

fl_status fl__device_run_logits(fl_device_run *r, int row, int n, float *logits, fl_err *err)
{
    const size_t vocab = (size_t)r->dm->model->cfg.vocab_size;
    fl_device_matrix x = r->buf[FL_BUF_X];
    fl_status st = FL_OK;
    for (int at = 0; at < n && !st; at += LOGIT_ROWS) {
        const int m = FL_MIN(n - at, LOGIT_ROWS);
        x.data = (float *)r->buf[FL_BUF_X].data + (row + at) * x.ld;
        st = run_head(r, &x, m, err);
        if (!st) st = download_logits(r, logits + (size_t)at * vocab, m, err);
    }
    return st;
}

/* Queued only. */
static fl_status queue_last(fl_device_run *r, fl_err *err)
{
    fl_backend *be = r->dm->be;
    const int n = r->step.n_seqs, width = r->dm->model->cfg.hidden_size;
    const fl_device_matrix *x = &r->buf[FL_BUF_X];
    fl_status st = FL_OK;
    if (r->step.max_rows > 1) {
        st = be->ops->gather(be, &r->last, x, r->last_rows, n, width, err);
        x = &r->last;
    }
    if (!st) st = run_head(r, x, n, err);
    return st ? st : lap(r, FL_DEVICE_LAP_HEAD, err);
}

fl_status fl__device_run_last(fl_device_run *r, fl_err *err)
{
    fl_status st = lap(r, FL_DEVICE_LAP_OTHER, err);
    if (!st) st = queue_last(r, err);
    return st ? st : add_laps(r, err);
}

/* ---- decoding ---------------------------------------------------------------------------- */

static step_graph *find_graph(fl_device_run *r, int n_seqs)
{
    if (!r->dm->be->ops->graph_run || r->lap_ms) return NULL;
    for (int i = 0; i < MAX_GRAPHS; i++) {
        if (r->graphs[i].n_seqs == 0) r->graphs[i].n_seqs = n_seqs;
        if (r->graphs[i].n_seqs == n_seqs) return &r->graphs[i];
    }
    return NULL;
}

static fl_status decode_ops(fl_device_run *r, fl_err *err)
{
    fl_status st = lap(r, FL_DEVICE_LAP_OTHER, err);
    if (!st) st = run_embed(r, err);
    if (!st) st = lap(r, FL_DEVICE_LAP_OTHER, err);
    if (!st) st = run_blocks(r, err);
    return st ? st : queue_last(r, err);
}

/* The second step of a shape becomes its graph. */
static fl_status capture(fl_device_run *r, step_graph *g, fl_err *err)
{
    fl_backend *be = r->dm->be;
    fl_err dropped;
    fl_status st = be->ops->capture_begin(be, err);
    if (st) return st;
    st = decode_ops(r, err);
    const fl_status end = be->ops->capture_end(be, &g->graph, st ? &dropped : err);
    return st ? st : end;
}

fl_status fl__device_run_decode(fl_device_run *r, const int32_t *ids, const int *pos,
                                int n_seqs, float *logits, fl_err *err)
{
    fl_backend *be = r->dm->be;
    step_graph *g = find_graph(r, n_seqs);
    for (int i = 0; i < n_seqs; i++) {
        r->spans[i] = (fl_span){.seq = i, .pos = pos[i], .n_rows = 1};
        fl__device_run_resize(r, i, pos[i] + 1);
    }
    fl_status st = send_step(r, ids, r->spans, n_seqs, err);
    if (!st && g && g->warm && !g->graph) st = capture(r, g, err);
    if (!st) st = g && g->graph ? be->ops->graph_run(be, g->graph, err) : decode_ops(r, err);
    if (!st && g) g->warm = true;
    if (!st) st = add_laps(r, err);
    return st || !logits ? st : download_logits(r, logits, n_seqs, err);
}

void fl__device_run_time(fl_device_run *run, double *ms)
{
    run->lap_ms = ms;
}

fl_status fl__device_run_wait(fl_device_run *run, fl_err *err)
{
    return run->dm->be->ops->wait(run->dm->be, err);
}
