/* kv_attention.c - pieces of a context, their items of work, their joining.
 *
 * Two kernels: codes on both sides go through kernels/attention_codes.h as they are, the other
 * formats as float32 through kernels/attention.h, page by page. SPDX-License-Identifier: MIT */
#include "model/kv_attention.h"

#include "kernels/attention.h"
#include "kernels/attention_codes.h"

#include <math.h>
#include <stdatomic.h>
#include <string.h>

enum { QUERY_ROWS = 64, PIECE_PAGES = FL_ATTENTION_PIECE / FL_KV_PAGE, LANE_HEAD = 64 };
#define MAX_PARTS_BYTES ((size_t)8 << 20)
_Static_assert(FL_KV_PAGE == FL_ATTENTION_KEYS, "the attention takes the cache page by page");
_Static_assert((int)PIECE_PAGES == (int)FL_CODES_PAGES, "codes are taken piece by piece");

/* What rows have gathered: m, l, o of kernels/attention.h. */
typedef struct softmax {
    float *o, *m, *l; /* [rows, ld], [rows], [rows] */
} softmax;

/* Memory of one thread. */
typedef struct lane {
    int64_t *prepared;   /* block and head whose queries x holds, or -1 */
    void *x, *work;      /* of kernels/attention_codes.h */
    float *page;         /* K and V as float32 */
    softmax whole, part; /* of all pieces so far, of one piece */
} lane;

typedef struct job {
    const fl_attention *a;
    const fl_kv_options *o;
    uint32_t isa;
    const fl_attention_codes_kernel *codes; /* NULL: float pages */
    int group, ld, code_bits[2];
    float scale;
    size_t lane_bytes;
    int max_pieces; /* 0: an item runs all pieces of its rows */
    int64_t n_items; /* of pieces */
    float *parts;   /* [rows of the batch, n_heads, max_pieces, ld + 2]: o, m, l */
    atomic_int *left; /* [blocks, KV heads] pieces that are still to come */
} job;

/* Tokens [r0, r0 + n) of a span, one KV head. */
typedef struct item {
    const fl_span *span;
    int row; /* of r0 in the batch */
    int r0, n, kv_head;
} item;

static int pieces_of(int n_keys)
{
    return (n_keys + FL_ATTENTION_PIECE - 1) / FL_ATTENTION_PIECE;
}

static int query_blocks(int n_rows)
{
    return (n_rows + QUERY_ROWS - 1) / QUERY_ROWS;
}

/* Keys that token r of the item sees. */
static int keys_of(const item *it, int r)
{
    return it->span->pos + it->r0 + r + 1;
}

/* Where head g of the group and token r stand in a softmax. */
static int64_t row_of(const job *j, const item *it, int g, int r)
{
    return j->codes ? (int64_t)r * j->group + g : (int64_t)g * it->n + r;
}

static const float *query(const job *j, const item *it, int g)
{
    return j->a->q + (it->row) * j->a->q_stride +
           (int64_t)(it->kv_head * j->group + g) * j->o->head_dim;
}

/* ---- one piece --------------------------------------------------------------------------- */

/* Blocks of the piece to come, keys and values in turn. */
typedef struct piece_ahead {
    const void *block[2 * PIECE_PAGES];
    int n;
} piece_ahead;

static void prepare(const job *j, const item *it, const lane *t)
{
    if (j->codes)
        j->codes->prepare(t->x, query(j, it, 0), j->a->q_stride, it->n * j->group, j->group,
                          j->o->head_dim, j->scale);
}

static void run_codes(const job *j, const item *it, const lane *t, const softmax *s, int p0,
                      int p1, const piece_ahead *next)
{
    const void *k[PIECE_PAGES], *v[PIECE_PAGES];
    for (int p = p0; p < p1; p++)
        fl__kv_codes(&k[p - p0], &v[p - p0], j->a->kv, j->a->layer, it->span->seq, it->kv_head,
                     p);
    const fl_attention_codes c = {.o = s->o,
                                  .m = s->m,
                                  .l = s->l,
                                  .x = t->x,
                                  .work = t->work,
                                  .k = k,
                                  .v = v,
                                  .next = next ? next->block : NULL,
                                  .n_next = next ? next->n : 0,
                                  .n_pages = p1 - p0,
                                  .n_rows = it->n * j->group,
                                  .group = j->group,
                                  .n_keys = keys_of(it, 0) - p0 * FL_KV_PAGE,
                                  .D = j->o->head_dim,
                                  .k_bits = j->code_bits[0],
                                  .v_bits = j->code_bits[1]};
    j->codes->run(&c);
}

static void run_floats(const job *j, const item *it, const lane *t, const softmax *s, int p0,
                       int p1)
{
    fl_attention_page_fn *run = fl__attention_select(j->isa)->run;
    for (int p = p0; p < p1; p++) {
        const float *k_t, *v;
        fl__kv_page(&k_t, &v, j->a->kv, j->isa, j->a->layer, it->span->seq, it->kv_head, p,
                    t->page);
        for (int g = 0; g < j->group; g++) {
            const int64_t at = row_of(j, it, g, 0);
            run(s->o + at * j->ld, s->m + at, s->l + at, query(j, it, g), j->a->q_stride, it->n,
                keys_of(it, 0) - p * FL_KV_PAGE, k_t, v, j->o->head_dim, j->scale);
        }
    }
}

static void run_piece(const job *j, const item *it, const lane *t, const softmax *s, int piece,
                      const piece_ahead *next)
{
    const int n_rows = it->n * j->group, last_keys = keys_of(it, it->n - 1);
    const int n_pages = (last_keys + FL_KV_PAGE - 1) / FL_KV_PAGE, p0 = piece * PIECE_PAGES;
    const int p1 = FL_MIN(n_pages, p0 + PIECE_PAGES);
    if (j->codes) {
        run_codes(j, it, t, s, p0, p1, next);
        return;
    }
    memset(s->o, 0, (size_t)n_rows * (size_t)j->ld * sizeof *s->o);
    memset(s->l, 0, (size_t)n_rows * sizeof *s->l);
    for (int i = 0; i < n_rows; i++) s->m[i] = -INFINITY;
    run_floats(j, it, t, s, p0, p1);
}

/* ---- joining ----------------------------------------------------------------------------- */

static void join(float *restrict O, float *M, float *L, const float *restrict o, float m,
                 float l, int D)
{
    const float top = m > *M ? m : *M;
    const float before = expf(*M - top), now = expf(m - top);
    for (int d = 0; d < D; d++) O[d] = O[d] * before + o[d] * now;
    *L = *L * before + l * now;
    *M = top;
}

static void divide(float *restrict out, const float *restrict o, float l, int D)
{
    const float r_l = 1.0f / l;
    for (int d = 0; d < D; d++) out[d] = o[d] * r_l;
}

static float *result(const job *j, int row, int head)
{
    return j->a->out + row * j->a->out_stride + (int64_t)head * j->o->head_dim;
}

/* Adds piece t->part to t->whole, for the rows that see any of it. */
static void join_part(const job *j, const item *it, const lane *t, int piece)
{
    for (int r = 0; r < it->n; r++) {
        if (pieces_of(keys_of(it, r)) <= piece) continue;
        for (int g = 0; g < j->group; g++) {
            const int64_t at = row_of(j, it, g, r);
            join(t->whole.o + at * j->ld, t->whole.m + at, t->whole.l + at,
                 t->part.o + at * j->ld, t->part.m[at], t->part.l[at], j->o->head_dim);
        }
    }
}

static float *part_of(const job *j, int row, int head, int piece)
{
    const int64_t slot = ((int64_t)row * j->a->n_heads + head) * j->max_pieces + piece;
    return j->parts + slot * (j->ld + 2);
}

/* ---- items ------------------------------------------------------------------------------- */

static lane lane_of(const job *j, int thread)
{
    const int D = j->o->head_dim, rows = j->group * QUERY_ROWS;
    const size_t n_o = (size_t)rows * (size_t)fl__attention_ld(D);
    unsigned char *at = (unsigned char *)j->a->scratch + (size_t)thread * j->lane_bytes;
    lane t = {.prepared = (int64_t *)(void *)at};
    float *f = (float *)(void *)(at + LANE_HEAD);
    softmax *const s[2] = {&t.whole, &t.part};
    for (int i = 0; i < 2; i++) {
        s[i]->o = f;
        s[i]->m = f + n_o;
        s[i]->l = s[i]->m + rows;
        f = s[i]->l + rows;
    }
    t.page = f;
    t.work = f;
    t.x = (unsigned char *)(void *)f + fl__attention_codes_work_bytes(D);
    return t;
}

static size_t lane_bytes(int group, int D)
{
    const int rows = group * QUERY_ROWS;
    const size_t both = 2 * (size_t)rows * (size_t)(fl__attention_ld(D) + 2) * sizeof(float);
    const size_t page = 2 * (size_t)D * FL_KV_PAGE * sizeof(float);
    const size_t codes =
        fl__attention_codes_work_bytes(D) + fl__attention_codes_x_bytes(rows, D);
    return LANE_HEAD + (both + FL_MAX(page, codes) + 63) / 64 * 64;
}

/* Block b (64 tokens, or what a span has left) of the batch. */
static item item_of(const job *j, int b, int kv_head)
{
    item it = {.span = j->a->spans, .kv_head = kv_head};
    for (; b >= query_blocks(it.span->n_rows); it.span++) {
        b -= query_blocks(it.span->n_rows);
        it.row += it.span->n_rows;
    }
    it.r0 = b * QUERY_ROWS;
    it.row += it.r0;
    it.n = FL_MIN(QUERY_ROWS, it.span->n_rows - it.r0);
    return it;
}

static void whole_item(void *arg, int64_t i, int thread)
{
    const job *j = arg;
    const item it = item_of(j, (int)(i / j->o->n_kv_heads), (int)(i % j->o->n_kv_heads));
    const lane t = lane_of(j, thread);
    const int n_pieces = pieces_of(keys_of(&it, it.n - 1));
    prepare(j, &it, &t);
    run_piece(j, &it, &t, &t.whole, 0, NULL);
    for (int p = 1; p < n_pieces; p++) {
        run_piece(j, &it, &t, &t.part, p, NULL);
        join_part(j, &it, &t, p);
    }
    for (int r = 0; r < it.n; r++)
        for (int g = 0; g < j->group; g++) {
            const int64_t at = row_of(j, &it, g, r);
            divide(result(j, it.row + r, it.kv_head * j->group + g), t.whole.o + at * j->ld,
                   t.whole.l[at], j->o->head_dim);
        }
}

/* Item i of pieces: `piece` of a block and head. */
static item piece_of(const job *j, int64_t i, int *piece)
{
    const int head = (int)(i / j->max_pieces);
    *piece = (int)(i % j->max_pieces);
    return item_of(j, head / j->o->n_kv_heads, head % j->o->n_kv_heads);
}

static piece_ahead blocks_of_piece(const job *j, int64_t i)
{
    piece_ahead next = {.n = 0};
    int piece;
    if (!j->codes || i >= j->n_items) return next;
    const item it = piece_of(j, i, &piece);
    const int n_pages = (keys_of(&it, it.n - 1) + FL_KV_PAGE - 1) / FL_KV_PAGE;
    for (int p = piece * PIECE_PAGES; p < n_pages && next.n < 2 * PIECE_PAGES; p++, next.n += 2)
        fl__kv_codes(&next.block[next.n], &next.block[next.n + 1], j->a->kv, j->a->layer,
                     it.span->seq, it.kv_head, p);
    return next;
}

static void put_parts(const job *j, const item *it, const lane *t, int piece)
{
    for (int r = 0; r < it->n; r++)
        for (int g = 0; g < j->group; g++) {
            const int64_t at = row_of(j, it, g, r);
            float *to = part_of(j, it->row + r, it->kv_head * j->group + g, piece);
            memcpy(to, t->part.o + at * j->ld, (size_t)j->o->head_dim * sizeof *to);
            to[j->ld] = t->part.m[at];
            to[j->ld + 1] = t->part.l[at];
        }
}

/* All pieces of the item's rows, in their order. */
static void join_parts(const job *j, const item *it)
{
    for (int i = 0; i < it->n * j->group; i++) {
        const int r = i / j->group, row = it->row + r;
        const int head = it->kv_head * j->group + i % j->group;
        float *whole = part_of(j, row, head, 0);
        for (int p = 1; p < pieces_of(keys_of(it, r)); p++) {
            const float *part = part_of(j, row, head, p);
            join(whole, whole + j->ld, whole + j->ld + 1, part, part[j->ld], part[j->ld + 1],
                 j->o->head_dim);
        }
        divide(result(j, row, head), whole, whole[j->ld + 1], j->o->head_dim);
    }
}

/* Whoever is last with a piece joins them: no second loop, for which threads would have to meet
 * again. */
static void piece_item(void *arg, int64_t i, int thread)
{
    const job *j = arg;
    const int64_t block = i / j->max_pieces;
    int piece;
    const item it = piece_of(j, i, &piece);
    const lane t = lane_of(j, thread);
    if (piece < pieces_of(keys_of(&it, it.n - 1))) {
        const piece_ahead next = blocks_of_piece(j, i + 1);
        if (*t.prepared != block) prepare(j, &it, &t);
        *t.prepared = block;
        run_piece(j, &it, &t, &t.part, piece, &next);
        put_parts(j, &it, &t, piece);
    }
    if (atomic_fetch_sub_explicit(&j->left[block], 1, memory_order_acq_rel) == 1)
        join_parts(j, &it);
}

/* ---- the whole --------------------------------------------------------------------------- */

/* Parts of n rows, and what is left of n blocks. */
static size_t parts_bytes(int64_t n_rows, int64_t n_blocks, int64_t n_pieces, int n_heads,
                          int ld)
{
    return (size_t)(n_rows * n_heads * n_pieces * (ld + 2)) * sizeof(float) +
           (size_t)(n_blocks * n_heads) * sizeof(atomic_int);
}

size_t fl__attention_scratch_bytes(const fl_exec *ex, const fl_kv_options *kv, int n_heads)
{
    /* parts of one row of the longest context, as far as that is reasonable */
    const size_t parts = parts_bytes(1, 1, pieces_of(kv->n_positions), n_heads,
                                     fl__attention_ld(kv->head_dim));
    return (size_t)ex->n_threads * lane_bytes(n_heads / kv->n_kv_heads, kv->head_dim) +
           FL_MIN(parts, MAX_PARTS_BYTES);
}

void fl__attention_run(const fl_exec *ex, const fl_attention *a)
{
    const fl_kv_options *o = fl__kv_options_of(a->kv);
    const bool codes = fl__kv_all_codes(a->kv);
    job j = {.a = a,
             .o = o,
             .isa = ex->isa,
             .codes = codes ? fl__attention_codes_select(ex->isa) : NULL,
             .group = a->n_heads / o->n_kv_heads,
             .ld = codes ? fl__attention_ld(o->head_dim) : o->head_dim,
             .code_bits = {fl__kv_code_bits(o->k_format), fl__kv_code_bits(o->v_format)},
             .scale = 1.0f / sqrtf((float)o->head_dim)};
    int64_t n_blocks = 0, n_rows = 0, most = 1;
    for (int i = 0; i < a->n_spans; i++) {
        n_blocks += query_blocks(a->spans[i].n_rows);
        n_rows += a->spans[i].n_rows;
        most = FL_MAX(most, pieces_of(a->spans[i].pos + a->spans[i].n_rows));
    }
    j.lane_bytes = lane_bytes(j.group, o->head_dim);
    const size_t lanes = (size_t)ex->n_threads * j.lane_bytes;
    const size_t parts = parts_bytes(n_rows, n_blocks, most, a->n_heads, j.ld);
    if (most == 1 || parts > a->scratch_bytes - lanes) {
        fl__parallel_for(ex, n_blocks * o->n_kv_heads, whole_item, &j);
        return;
    }
    j.max_pieces = (int)most;
    j.parts = (float *)(void *)((unsigned char *)a->scratch + lanes);
    j.left = (atomic_int *)(void *)(j.parts + n_rows * a->n_heads * most * (j.ld + 2));
    j.n_items = n_blocks * o->n_kv_heads * most;
    for (int64_t i = 0; i < n_blocks * o->n_kv_heads; i++) atomic_init(&j.left[i], (int)most);
    for (int t = 0; t < ex->n_threads; t++) *lane_of(&j, t).prepared = -1;
    fl__parallel_for(ex, j.n_items, piece_item, &j);
}
