/* train_operand.c - packing, 64 rows per item. SPDX-License-Identifier: MIT */
#include "train/train_operand.h"

#include "base/mem.h"
#include "train/train_rows.h"

enum { ROWS = FL_PACK_ITEM, PANEL = 64, STEP_K = 32 };

int fl__pack_length(int K)
{
    return (K + STEP_K - 1) / STEP_K * STEP_K;
}

int fl__pack_columns(int N)
{
    return (N + PANEL - 1) / PANEL * PANEL;
}

typedef struct job {
    const fl_train_rows *rows;
    uint16_t *to[FL_N_PACK_FORMS]; /* NULL: not wanted */
    const float *x;
    int R, n;
} job;

/* Rows r0.. as k of a chunk's A operand: columns are its rows. */
static void pack_columns(const job *j, const float *x, int r0, int n_rows)
{
    const int k0 = r0 / FL_PACK_CHUNK * FL_PACK_CHUNK;
    const int length = fl__pack_length(FL_MIN(FL_PACK_CHUNK, j->R - k0));
    uint16_t *to = j->to[FL_PACK_COLUMNS] + (int64_t)k0 * j->n + (r0 - k0);
    j->rows->pack_a_transposed(to, length, x, j->n, j->n, n_rows);
}

/* Rows r0.. as k of a chunk's B operand. */
static void pack_pairs(const job *j, uint16_t *to, int chunk, const float *x, int r0,
                       int n_rows)
{
    const int k0 = r0 / chunk * chunk;
    const int length = fl__pack_length(FL_MIN(chunk, j->R - k0));
    to += (int64_t)k0 * fl__pack_columns(j->n) + (int64_t)(r0 - k0) * PANEL;
    for (int c = 0; c < j->n; c += PANEL, to += (int64_t)length * PANEL)
        j->rows->pack_b_transposed(to, x + c, j->n, FL_MIN(PANEL, j->n - c), n_rows);
}

/* x: row r0. */
static void pack_rows(const job *j, const float *x, int r0)
{
    const int n_rows = FL_MIN(ROWS, j->R - r0);
    const int64_t at = (int64_t)r0 * fl__pack_length(j->n);
    if (j->to[FL_PACK_ROWS]) j->rows->pack_a(j->to[FL_PACK_ROWS] + at, x, j->n, n_rows, j->n);
    if (j->to[FL_PACK_KEYS]) j->rows->pack_b(j->to[FL_PACK_KEYS] + at, x, j->n, n_rows, j->n);
    if (j->to[FL_PACK_COLUMNS]) pack_columns(j, x, r0, n_rows);
    if (j->to[FL_PACK_PAIRS])
        pack_pairs(j, j->to[FL_PACK_PAIRS], FL_PACK_CHUNK, x, r0, n_rows);
    if (j->to[FL_PACK_PAIRS_WHOLE])
        pack_pairs(j, j->to[FL_PACK_PAIRS_WHOLE], fl__pack_length(j->R), x, r0, n_rows);
}

static void pack_item(void *arg, int64_t item, int thread)
{
    const job *j = arg;
    const int r0 = (int)item * ROWS;
    (void)thread;
    pack_rows(j, j->x + (int64_t)r0 * j->n, r0);
}

/* Numbers of a form, its padding included. */
static size_t form_length(fl_pack_form form, int R, int n)
{
    switch (form) {
    case FL_PACK_ROWS: return (size_t)R * (size_t)fl__pack_length(n);
    case FL_PACK_KEYS: return (size_t)fl__pack_columns(R) * (size_t)fl__pack_length(n);
    case FL_PACK_COLUMNS: return (size_t)fl__pack_length(R) * (size_t)n;
    default: return (size_t)fl__pack_length(R) * (size_t)fl__pack_columns(n);
    }
}

fl_status fl__train_pack_reserve(fl_train_packed *packed, int R, int n, unsigned forms,
                                 fl_err *err)
{
    for (int f = 0; f < FL_N_PACK_FORMS; f++) {
        const size_t length = form_length(f, R, n), bytes = length * sizeof *packed->at[f];
        if (!(forms >> f & 1u) || bytes <= packed->bytes[f]) continue;
        fl__free(&packed->at[f]);
        packed->bytes[f] = 0;
        packed->at[f] = fl__alloc(length, sizeof *packed->at[f]);
        if (!packed->at[f]) return fl__fail_nomem(err, "training GEMM", bytes);
        packed->bytes[f] = bytes;
    }
    return FL_OK;
}

static job job_of(const fl_train_packed *packed, const fl_exec *ex, const float *x, int R,
                  int n, unsigned forms)
{
    job j = {.rows = fl__train_rows_select(ex->isa), .x = x, .R = R, .n = n};
    for (int f = 0; f < FL_N_PACK_FORMS; f++)
        if (forms >> f & 1u) j.to[f] = packed->at[f];
    return j;
}

void fl__train_pack_rows(const fl_train_packed *packed, const fl_exec *ex, const float *x,
                         int first, int R, int n, unsigned forms)
{
    const job j = job_of(packed, ex, x, R, n, forms);
    pack_rows(&j, x, first);
}

fl_status fl__train_pack(fl_train_packed *packed, const fl_exec *ex, const float *x, int R,
                         int n, unsigned forms, fl_err *err)
{
    const fl_status st = fl__train_pack_reserve(packed, R, n, forms, err);
    if (st) return st;
    job j = job_of(packed, ex, x, R, n, forms);
    fl__parallel_for(ex, (R + ROWS - 1) / ROWS, pack_item, &j);
    return FL_OK;
}

void fl__train_packed_fini(fl_train_packed *packed)
{
    for (int f = 0; f < FL_N_PACK_FORMS; f++) fl__free(&packed->at[f]);
    *packed = (fl_train_packed){0};
}
