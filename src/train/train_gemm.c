/* train_gemm.c - matrix products of training: plan, operands, tiles, sum of parts.
 *
 * A product is planned from its shape: tiles of TILE_M x TILE_N, and, where K is rows of
 * tokens, parts of K when there are fewer than MIN_ITEMS tiles. An item is one tile of one
 * part; with several parts each writes to a buffer of its own, [parts, M, N], and a last loop
 * adds them up in order.
 *
 * bfloat16 operands are packed beforehand (train_operand.h), once for all tiles, and once for
 * all products of a matrix that several of them read. float32 operands that SGEMM walks across
 * rows are copied where their rows are a multiple of 1 KiB apart: such rows share lines of the
 * cache, at up to half the speed.
 * SPDX-License-Identifier: MIT */
#include "train/train_gemm.h"

#include "base/isa.h"
#include "base/mem.h"
#include "kernels/gemm_bf16.h"
#include "kernels/onednn.h"
#include "train/train_rows.h"

#include <stdatomic.h>
#include <string.h>

enum { TILE_M = 128, TILE_N = 256, MIN_ITEMS = 32 };
enum { ITEM_ELEMENTS = 16384, ITEM_ROWS = 16 };
enum { BAD_ROW = 256, ROW_PAD = 16 }; /* floats */

struct fl_train_gemm {
    fl_exec ex;
    const fl_train_rows *rows;
    bool bf16;
    const fl_gemm_bf16_kernel *fast; /* NULL: float32 products */
    fl_train_packed packed_a, packed_b; /* of products whose operands are not shared */
    void *a, *b;  /* operands rounded or copied, owned, grown */
    float *parts; /* [parts, M, N], owned, grown */
    size_t a_bytes, b_bytes, parts_bytes;
};

typedef struct product {
    const fl_train_gemm *gemm;
    int M, N, K;
    const float *A, *B; /* [M, K] or, transposed, [K, M]; [K, N] or, transposed, [N, K] */
    int64_t lda, ldb;
    bool transpose_a, transpose_b;
    const uint16_t *packed_a, *packed_b; /* bfloat16 */
    float beta, *C;
    int m_tiles, n_tiles, n_parts;
    int part_k;        /* of all parts but the last, which may be shorter */
    atomic_int status; /* first failure of an item */
} product;

static int64_t ceil_div(int64_t a, int64_t b)
{
    return (a + b - 1) / b;
}

static int part_length(const product *p, int part)
{
    return FL_MIN(p->part_k, p->K - part * p->part_k);
}

static void plan(product *p)
{
    p->m_tiles = (int)ceil_div(p->M, TILE_M);
    p->n_tiles = (int)ceil_div(p->N, TILE_N);
    const int64_t tiles = (int64_t)p->m_tiles * p->n_tiles;
    int parts = 1;
    while (p->transpose_a && tiles * parts < MIN_ITEMS && p->K / (parts * 2) >= FL_PACK_CHUNK)
        parts *= 2;
    p->part_k = parts == 1 ? p->K
                           : (int)ceil_div(ceil_div(p->K, parts), FL_PACK_CHUNK) *
                                 FL_PACK_CHUNK;
    p->n_parts = (int)ceil_div(p->K, p->part_k);
}

/* buffer: address of the pointer. Contents are lost. */
static fl_status reserve(void *buffer, size_t *have_bytes, size_t n, size_t elem_bytes,
                         fl_err *err)
{
    void **p = buffer;
    if (n * elem_bytes <= *have_bytes) return FL_OK;
    fl__free(p);
    *have_bytes = 0;
    *p = fl__alloc(n, elem_bytes);
    if (!*p) return fl__fail_nomem(err, "training GEMM", n * elem_bytes);
    *have_bytes = n * elem_bytes;
    return FL_OK;
}

/* ---- tiles ------------------------------------------------------------------------------ */

typedef struct tile {
    int part, m0, n0, m, n;
    float *C;
    float beta;
} tile;

static tile tile_of(const product *p, int64_t item)
{
    const int i = (int)(item % p->m_tiles);
    const int j = (int)(item / p->m_tiles % p->n_tiles);
    tile t = {
        .part = (int)(item / p->m_tiles / p->n_tiles), .m0 = i * TILE_M, .n0 = j * TILE_N};
    t.m = FL_MIN(TILE_M, p->M - t.m0);
    t.n = FL_MIN(TILE_N, p->N - t.n0);
    const int64_t at = (int64_t)t.m0 * p->N + t.n0;
    t.C = p->n_parts == 1 ? p->C + at : p->gemm->parts + (int64_t)t.part * p->M * p->N + at;
    t.beta = p->n_parts == 1 ? p->beta : 0.0f;
    return t;
}

static void note(product *p, fl_status st)
{
    if (st != FL_OK) atomic_store(&p->status, (int)st);
}

static void tile_f32(void *arg, int64_t item, int thread)
{
    product *p = arg;
    const tile t = tile_of(p, item);
    const int K = part_length(p, t.part);
    const int64_t k0 = (int64_t)t.part * p->part_k;
    const float *A = p->transpose_a ? p->A + k0 * p->lda + t.m0 : p->A + t.m0 * p->lda + k0;
    const float *B = p->transpose_b ? p->B + t.n0 * p->ldb + k0 : p->B + k0 * p->ldb + t.n0;
    (void)thread;
    if (p->transpose_a)
        note(p, fl__onednn_sgemm_tn(t.m, t.n, K, 1.0f, A, p->lda, B, p->ldb, t.beta, t.C, p->N,
                                    NULL));
    else
        note(p, fl__onednn_sgemm(t.m, t.n, K, 1.0f, A, p->lda, B, p->ldb, p->transpose_b,
                                 t.beta, t.C, p->N, NULL));
}

/* Chunk after chunk of K, each added to what is there. */
static void tile_bf16(void *arg, int64_t item, int thread)
{
    product *p = arg;
    const fl_train_gemm *g = p->gemm;
    const tile t = tile_of(p, item);
    const int chunk = p->transpose_a ? FL_PACK_CHUNK : p->K;
    const int64_t first = (int64_t)t.part * p->part_k, end = first + part_length(p, t.part);
    (void)thread;
    if (t.beta != 0.0f && t.beta != 1.0f)
        for (int m = 0; m < t.m; m++) g->rows->scale(t.C + (int64_t)m * p->N, t.beta, t.n);
    for (int64_t k = first; k < end; k += chunk) {
        const int64_t K = fl__pack_length((int)FL_MIN(chunk, end - k));
        g->fast->run(t.C, p->N, p->packed_a + k * p->M + t.m0 * K,
                     p->packed_b + k * fl__pack_columns(p->N) + t.n0 * K, t.m, t.n, (int)K,
                     k > first || t.beta != 0.0f);
    }
}

static void add_parts(void *arg, int64_t item, int thread)
{
    const product *p = arg;
    const fl_train_rows *rows = p->gemm->rows;
    const int64_t size = (int64_t)p->M * p->N, at = item * ITEM_ELEMENTS;
    const int n = (int)FL_MIN(ITEM_ELEMENTS, size - at);
    const float *parts = p->gemm->parts + at;
    float *C = p->C + at;
    (void)thread;
    if (p->beta != 0.0f) {
        if (p->beta != 1.0f) rows->scale(C, p->beta, n);
        rows->add(C, C, parts, n);
        for (int i = 1; i < p->n_parts; i++) rows->add(C, C, parts + i * size, n);
        return;
    }
    rows->add(C, parts, parts + size, n); /* at least two */
    for (int i = 2; i < p->n_parts; i++) rows->add(C, C, parts + i * size, n);
}

/* ---- operands --------------------------------------------------------------------------- */

typedef struct copying {
    const fl_train_rows *rows;
    float *to;
    const float *x;
    int64_t n_rows, ld; /* of to */
    int n;
    bool round;
} copying;

static void copy_rows(void *arg, int64_t item, int thread)
{
    const copying *c = arg;
    const int64_t r1 = FL_MIN((item + 1) * ITEM_ROWS, c->n_rows);
    (void)thread;
    for (int64_t r = item * ITEM_ROWS; r < r1; r++) {
        if (c->round) c->rows->round_bf16(c->to + r * c->ld, c->x + r * c->n, c->n);
        else memcpy(c->to + r * c->ld, c->x + r * c->n, (size_t)c->n * sizeof *c->x);
    }
}

/* *x [n_rows, *ld] is replaced by a copy in buffer where that is needed. by_column: SGEMM goes
 * from row to row of it in its innermost loop. */
static fl_status copy_operand(const fl_train_gemm *g, void *buffer, size_t *buffer_bytes,
                              const float **x, int64_t *ld, int64_t n_rows, bool by_column,
                              fl_err *err)
{
    const bool pad = by_column && *ld % BAD_ROW == 0;
    if (!pad && !g->bf16) return FL_OK;
    copying c = {.rows = g->rows,
                 .x = *x,
                 .n_rows = n_rows,
                 .ld = pad ? *ld + ROW_PAD : *ld,
                 .n = (int)*ld,
                 .round = g->bf16};
    const fl_status st =
        reserve(buffer, buffer_bytes, (size_t)n_rows * (size_t)c.ld, sizeof(float), err);
    if (st != FL_OK) return st;
    c.to = *(void **)buffer;
    fl__parallel_for(&g->ex, ceil_div(n_rows, ITEM_ROWS), copy_rows, &c);
    *x = c.to;
    *ld = c.ld;
    return FL_OK;
}

static fl_status copy_operands(fl_train_gemm *g, product *p, fl_err *err)
{
    const fl_status st = copy_operand(g, &g->a, &g->a_bytes, &p->A, &p->lda,
                                      p->transpose_a ? p->K : p->M, p->transpose_a, err);
    if (st != FL_OK) return st;
    return copy_operand(g, &g->b, &g->b_bytes, &p->B, &p->ldb, p->transpose_b ? p->N : p->K,
                        !p->transpose_b, err);
}

/* What is not packed yet. */
static fl_status pack_operands(fl_train_gemm *g, product *p, fl_err *err)
{
    fl_status st = FL_OK;
    if (!p->packed_a) {
        const fl_pack_form form = p->transpose_a ? FL_PACK_COLUMNS : FL_PACK_ROWS;
        st = fl__train_pack(&g->packed_a, &g->ex, p->A, p->transpose_a ? p->K : p->M,
                            p->transpose_a ? p->M : p->K, 1u << form, err);
        p->packed_a = g->packed_a.at[form];
    }
    if (!p->packed_b && !st) {
        const fl_pack_form form = p->transpose_b   ? FL_PACK_KEYS
                                  : p->transpose_a ? FL_PACK_PAIRS
                                                   : FL_PACK_PAIRS_WHOLE;
        st = fl__train_pack(&g->packed_b, &g->ex, p->B, p->transpose_b ? p->N : p->K,
                            p->transpose_b ? p->K : p->N, 1u << form, err);
        p->packed_b = g->packed_b.at[form];
    }
    return st;
}

/* ---- public ----------------------------------------------------------------------------- */

static fl_status run(fl_train_gemm *g, product *p, fl_err *err)
{
    fl_status st = FL_OK;
    p->gemm = g;
    p->lda = p->transpose_a ? p->M : p->K;
    p->ldb = p->transpose_b ? p->K : p->N;
    plan(p);
    if (p->n_parts > 1)
        st = reserve(&g->parts, &g->parts_bytes,
                     (size_t)p->n_parts * (size_t)p->M * (size_t)p->N, sizeof(float), err);
    if (st == FL_OK) st = g->fast ? pack_operands(g, p, err) : copy_operands(g, p, err);
    if (st != FL_OK) return st;

    fl__parallel_for(&g->ex, (int64_t)p->n_parts * p->m_tiles * p->n_tiles,
                     g->fast ? tile_bf16 : tile_f32, p);
    if (p->n_parts > 1)
        fl__parallel_for(&g->ex, ceil_div((int64_t)p->M * p->N, ITEM_ELEMENTS), add_parts, p);
    st = (fl_status)atomic_load(&p->status);
    if (st != FL_OK)
        return fl__fail(err, st,
                        "training GEMM: %d x %d x %d: oneDNN: status %d; free memory and try "
                        "again",
                        p->M, p->N, p->K, (int)st);
    return FL_OK;
}

fl_status fl__train_gemm_nt(fl_train_gemm *gemm, int M, int N, int K, const float *A,
                            const float *B, float beta, float *C, fl_err *err)
{
    product p = {
        .M = M, .N = N, .K = K, .A = A, .B = B, .transpose_b = true, .beta = beta, .C = C};
    return run(gemm, &p, err);
}

fl_status fl__train_gemm_nn(fl_train_gemm *gemm, int M, int N, int K, const float *A,
                            const float *B, float beta, float *C, fl_err *err)
{
    product p = {.M = M, .N = N, .K = K, .A = A, .B = B, .beta = beta, .C = C};
    return run(gemm, &p, err);
}

fl_status fl__train_gemm_tn(fl_train_gemm *gemm, int M, int N, int K, const float *A,
                            const float *B, float beta, float *C, fl_err *err)
{
    product p = {
        .M = M, .N = N, .K = K, .A = A, .B = B, .transpose_a = true, .beta = beta, .C = C};
    return run(gemm, &p, err);
}

/* ---- shared operands --------------------------------------------------------------------- */

enum {
    X_FORMS = 1u << FL_PACK_ROWS | 1u << FL_PACK_PAIRS,
    DY_FORMS = 1u << FL_PACK_ROWS | 1u << FL_PACK_COLUMNS,
};

bool fl__train_gemm_packs(const fl_train_gemm *gemm)
{
    return gemm->fast != NULL;
}

static void set(fl_train_operand *o, const float *x, int R, int n)
{
    o->x = x;
    o->R = R;
    o->n = n;
}

fl_status fl__train_operand_begin(fl_train_gemm *gemm, fl_train_operand *o, const float *x,
                                  int R, int n, fl_err *err)
{
    set(o, x, R, n);
    return gemm->fast ? fl__train_pack_reserve(&o->packed, R, n, X_FORMS, err) : FL_OK;
}

void fl__train_operand_rows(const fl_train_gemm *gemm, const fl_train_operand *o,
                            const float *rows, int first)
{
    if (gemm->fast)
        fl__train_pack_rows(&o->packed, &gemm->ex, rows, first, o->R, o->n, X_FORMS);
}

fl_status fl__train_operand_dy(fl_train_gemm *gemm, fl_train_operand *o, const float *dy, int R,
                               int n, fl_err *err)
{
    set(o, dy, R, n);
    return gemm->fast ? fl__train_pack(&o->packed, &gemm->ex, dy, R, n, DY_FORMS, err) : FL_OK;
}

void fl__train_operand_fini(fl_train_operand *o)
{
    fl__train_packed_fini(&o->packed);
}

fl_status fl__train_linear(fl_train_gemm *gemm, float *y, const fl_train_operand *x,
                           const float *w, int N, fl_err *err)
{
    product p = {.M = x->R, .N = N, .K = x->n, .A = x->x, .B = w, .transpose_b = true, .C = y,
                 .packed_a = x->packed.at[FL_PACK_ROWS]};
    return run(gemm, &p, err);
}

fl_status fl__train_linear_dx(fl_train_gemm *gemm, float *dx, float beta,
                              const fl_train_operand *dy, const float *w, int K, fl_err *err)
{
    product p = {.M = dy->R, .N = K, .K = dy->n, .A = dy->x, .B = w, .beta = beta, .C = dx,
                 .packed_a = dy->packed.at[FL_PACK_ROWS]};
    return run(gemm, &p, err);
}

fl_status fl__train_linear_dw(fl_train_gemm *gemm, float *dw, const fl_train_operand *dy,
                              const fl_train_operand *x, fl_err *err)
{
    product p = {.M = dy->n, .N = x->n, .K = x->R, .A = dy->x, .B = x->x, .transpose_a = true,
                 .C = dw, .packed_a = dy->packed.at[FL_PACK_COLUMNS],
                 .packed_b = x->packed.at[FL_PACK_PAIRS]};
    return run(gemm, &p, err);
}

/* ---- the object -------------------------------------------------------------------------- */

fl_status fl__train_gemm_new(fl_train_gemm **out, const fl_exec *ex, bool bf16, fl_err *err)
{
    *out = NULL;
    fl_train_gemm *g = fl__calloc(1, sizeof *g);
    if (!g) return fl__fail_nomem(err, "training GEMM", sizeof *g);
    g->ex = *ex;
    g->rows = fl__train_rows_select(ex->isa);
    g->bf16 = bf16;
    const fl_gemm_bf16_kernel *fast = fl__gemm_bf16_select(ex->isa);
    if (bf16 && fast->isa) g->fast = fast; /* the reference would be slower than float32 */
    *out = g;
    return FL_OK;
}

void fl__train_gemm_free(fl_train_gemm **gemm)
{
    fl_train_gemm *g = *gemm;
    if (!g) return;
    fl__train_packed_fini(&g->packed_a);
    fl__train_packed_fini(&g->packed_b);
    fl__free(&g->a);
    fl__free(&g->b);
    fl__free(&g->parts);
    fl__free(gemm);
}

const char *fl__train_gemm_impl(const fl_train_gemm *gemm)
{
    if (gemm->fast) return gemm->fast->name;
    return gemm->bf16 ? "bf16 rounded, f32 products" : "f32";
}
