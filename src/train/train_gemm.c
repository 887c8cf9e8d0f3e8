/* train_gemm.c - matrix products of training: plan, operands, tiles, sum of parts.
 *
 * A product is planned from its shape: tiles of TILE_M x TILE_N, and parts of K when there are
 * fewer than MIN_ITEMS tiles. An item is one tile of one part; with several parts each writes
 * to a buffer of its own, [parts, M, N], and a last loop adds them up in order.
 *
 * bfloat16 operands are packed beforehand, in parallel, once for all tiles: A [parts][M, part
 * K], B [parts][panels of 64 columns] (kernels/onednn.h). Packing reads A and B once, little
 * beside the product. float32 operands that SGEMM walks across rows are copied where their rows
 * are a multiple of 1 KiB apart: such rows share lines of the cache, at up to half the speed.
 * SPDX-License-Identifier: MIT */
#include "train/train_gemm.h"

#include "base/isa.h"
#include "base/mem.h"
#include "kernels/gemm_bf16.h"
#include "kernels/onednn.h"
#include "train/train_rows.h"

#include <stdatomic.h>
#include <string.h>

enum { TILE_M = 128, TILE_N = 256, MIN_ITEMS = 32, MIN_PART = 512 };
enum { PACK_ROWS = 64, PANEL = 64, STEP_K = 32 }; /* layout of the packed operands */
enum { ITEM_ELEMENTS = 16384, ITEM_ROWS = 16 };
enum { BAD_ROW = 256, ROW_PAD = 16 }; /* floats */

struct fl_train_gemm {
    fl_exec ex;
    const fl_train_rows *rows;
    bool bf16;
    const fl_gemm_bf16_kernel *fast; /* NULL: float32 products */
    void *a, *b;          /* operands packed, rounded or copied, owned, grown */
    float *parts;         /* [parts, M, N], owned, grown */
    size_t a_bytes, b_bytes, parts_bytes;
};

typedef struct product {
    const fl_train_gemm *gemm;
    int M, N, K;
    const float *A, *B; /* [M, K] or, transposed, [K, M]; [K, N] or, transposed, [N, K] */
    int64_t lda, ldb;
    bool transpose_a, transpose_b;
    float beta, *C;
    int m_tiles, n_tiles, n_parts,
        part_k;          /* part_k: a multiple of STEP_K; the last is shorter */
    atomic_int status;   /* first failure of an item */
} product;

static int64_t ceil_div(int64_t a, int64_t b)
{
    return (a + b - 1) / b;
}

static int part_length(const product *p, int part)
{
    return FL_MIN(p->part_k, p->K - part * p->part_k);
}

/* As the packed operands have it. */
static int part_length_packed(const product *p, int part)
{
    return (int)ceil_div(part_length(p, part), STEP_K) * STEP_K;
}

static int columns_packed(const product *p)
{
    return (int)ceil_div(p->N, PANEL) * PANEL;
}

static void plan(product *p)
{
    p->m_tiles = (int)ceil_div(p->M, TILE_M);
    p->n_tiles = (int)ceil_div(p->N, TILE_N);
    const int64_t tiles = (int64_t)p->m_tiles * p->n_tiles;
    int parts = 1;
    while (tiles * parts < MIN_ITEMS && p->K / (parts * 2) >= MIN_PART) parts *= 2;
    p->part_k = (int)ceil_div(ceil_div(p->K, parts), STEP_K) * STEP_K;
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

static void tile_bf16(void *arg, int64_t item, int thread)
{
    product *p = arg;
    const fl_train_gemm *g = p->gemm;
    const tile t = tile_of(p, item);
    const int64_t k0 = (int64_t)t.part * p->part_k, K = part_length_packed(p, t.part);
    const uint16_t *A = (const uint16_t *)g->a + k0 * p->M + t.m0 * K;
    const uint16_t *B = (const uint16_t *)g->b + k0 * columns_packed(p) + t.n0 * K;
    (void)thread;
    if (t.beta != 0.0f && t.beta != 1.0f)
        for (int m = 0; m < t.m; m++) g->rows->scale(t.C + (int64_t)m * p->N, t.beta, t.n);
    const bool add = p->n_parts == 1 && p->beta != 0.0f;
    g->fast->run(t.C, p->N, A, B, t.m, t.n, (int)K, add);
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

static void pack_a_item(const product *p, int part, int m0)
{
    const int64_t k0 = (int64_t)part * p->part_k;
    const int n = FL_MIN(PACK_ROWS, p->M - m0), K = part_length(p, part);
    uint16_t *to =
        (uint16_t *)p->gemm->a + k0 * p->M + (int64_t)m0 * part_length_packed(p, part);
    if (p->transpose_a)
        p->gemm->rows->pack_a_transposed(to, p->A + k0 * p->lda + m0, p->lda, n, K);
    else p->gemm->rows->pack_a(to, p->A + m0 * p->lda + k0, p->lda, n, K);
}

/* B as models store a weight, [N, K], has its columns as rows. */
static void pack_b_item(const product *p, int part, int n0)
{
    const int64_t k0 = (int64_t)part * p->part_k;
    const int n = FL_MIN(PANEL, p->N - n0), K = part_length(p, part);
    uint16_t *to = (uint16_t *)p->gemm->b + k0 * columns_packed(p) +
                   (int64_t)n0 * part_length_packed(p, part);
    if (p->transpose_b) p->gemm->rows->pack_b(to, p->B + n0 * p->ldb + k0, p->ldb, n, K);
    else p->gemm->rows->pack_b_transposed(to, p->B + k0 * p->ldb + n0, p->ldb, n, K);
}

static void pack_item(void *arg, int64_t item, int thread)
{
    const product *p = arg;
    const int64_t a_blocks = ceil_div(p->M, PACK_ROWS), a_items = a_blocks * p->n_parts;
    const int64_t b_blocks = ceil_div(p->N, PANEL), b_item = item - a_items;
    (void)thread;
    if (item < a_items)
        pack_a_item(p, (int)(item / a_blocks), (int)(item % a_blocks) * PACK_ROWS);
    else pack_b_item(p, (int)(b_item / b_blocks), (int)(b_item % b_blocks) * PANEL);
}

static fl_status pack_operands(fl_train_gemm *g, product *p, fl_err *err)
{
    const size_t K32 = (size_t)ceil_div(p->K, STEP_K) * STEP_K;
    fl_status st = reserve(&g->a, &g->a_bytes, K32 * (size_t)p->M, sizeof(uint16_t), err);
    if (st == FL_OK)
        st =
            reserve(&g->b, &g->b_bytes, K32 * (size_t)columns_packed(p), sizeof(uint16_t), err);
    if (st != FL_OK) return st;
    const int64_t items = ceil_div(p->M, PACK_ROWS) + ceil_div(p->N, PANEL);
    fl__parallel_for(&g->ex, items * p->n_parts, pack_item, p);
    return FL_OK;
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
