/* kron.c - rows in batches that fit the first-level cache, tiles of rows for the gradients.
 *
 * With T = X P2, Y = P1^T T:   dP1 = sum T dY^T,  dT = P1 dY,  dP2 = sum X^T dT,  dX = dT P2^T.
 * T and dT are made again, batch by batch, instead of being kept. The batch is all that P2
 * works on at once, so that short rows share its loads; P1 takes a row at a time.
 * SPDX-License-Identifier: MIT */
#include "train/kron.h"

#include "base/mem.h"
#include "train/kron_rows.h"

#include <string.h>

enum {
    BATCH = 4096,       /* floats, or one row when that is longer */
    ITEM = 8 * BATCH,   /* floats of a forward item without hooks, at least */
    LEAST_ROWS = 16,    /* of a tile, */
    TILE = 65536,       /* but no more than so many floats of rows that are long */
    ALIGN = 16,         /* floats; 64 bytes */
};

struct fl_kron {
    fl_exec ex;
    const fl_kron_kernel *kernel;
    float *scratch; /* [n_scratch] P2^T, two batches per thread, two sums per tile */
    size_t n_scratch;
};

fl_status fl__kron_new(fl_kron **out, const fl_exec *ex, fl_err *err)
{
    static const fl_kron_kernel *const kernels[] = {&fl__kron_avx512, &fl__kron_avx2,
                                                    &fl__kron_ref};
    fl_kron *kron = fl__calloc(1, sizeof *kron);
    int i = 0;
    *out = NULL;
    if (!kron) return fl__fail_nomem(err, "Kronecker product", sizeof *kron);
    while ((kernels[i]->isa & ~ex->isa) != 0) i++; /* stops at ref at the latest */
    kron->ex = *ex;
    kron->kernel = kernels[i];
    *out = kron;
    return FL_OK;
}

void fl__kron_free(fl_kron **kron)
{
    if (*kron) fl__free(&(*kron)->scratch);
    fl__free(kron);
}

/* ---- one call ---------------------------------------------------------------------------- */

typedef struct job {
    const fl_kron_kernel *kernel;
    const fl_kron_hooks *hooks; /* or NULL */
    float *y; /* y or dx */
    const float *x, *dy, *P1, *P2;
    bool want_dP1, want_dP2;
    float *turned, *batches, *parts; /* in scratch */
    int64_t R, rows_per_item, batch_rows;
    int n1, n2;
} job;

static int64_t area(const job *j)
{
    return (int64_t)j->n1 * j->n2;
}

static size_t padded(int64_t n)
{
    return (size_t)((n + ALIGN - 1) / ALIGN * ALIGN);
}

static size_t part_floats(const job *j)
{
    return (j->want_dP1 ? padded((int64_t)j->n1 * j->n1) : 0) +
           (j->want_dP2 ? padded((int64_t)j->n2 * j->n2) : 0);
}

static int64_t n_items(const job *j)
{
    return (j->R + j->rows_per_item - 1) / j->rows_per_item;
}

static void call(const job *j, bool after, int64_t first, int64_t end, int thread)
{
    fl_kron_hook *hook = !j->hooks ? NULL : after ? j->hooks->after : j->hooks->before;
    if (hook) hook(j->hooks->user, first, end - first, thread);
}

static fl_status prepare(fl_kron *kron, job *j, bool grad, fl_err *err)
{
    const size_t turned = grad && j->P2 ? padded((int64_t)j->n2 * j->n2) : 0;
    const size_t threads = (size_t)kron->ex.n_threads;
    j->kernel = kron->kernel;
    j->batch_rows = FL_MAX(BATCH / area(j), 1);
    const size_t batches = threads * 2 * padded(j->batch_rows * area(j));
    const size_t need = turned + batches + (grad ? (size_t)n_items(j) * part_floats(j) : 0);
    if (need > kron->n_scratch) {
        fl__free(&kron->scratch);
        kron->n_scratch = 0;
        kron->scratch = fl__alloc(need, sizeof(float));
        if (!kron->scratch)
            return fl__fail_nomem(err, "Kronecker product", need * sizeof(float));
        kron->n_scratch = need;
    }
    j->turned = kron->scratch;
    j->batches = j->turned + turned;
    j->parts = j->batches + batches;
    return FL_OK;
}

/* c [rows, n2] = a [rows, n2] times right [n2, n2] */
static void times_right(const job *j, float *c, const float *a, const float *right, int rows)
{
    const fl_small_product p = {.c = c, .a = a, .b = right, .ldc = j->n2, .ak = 1, .am = j->n2,
                                .ldb = j->n2, .M = rows, .N = j->n2, .K = j->n2};
    j->kernel->product(&p);
}

/* c = left b for each of the matrices [n1, n2] in b; left(k, m) at ak, am. */
static void left_times(const job *j, float *c, int64_t ak, int64_t am, const float *b,
                       int64_t rows)
{
    for (int64_t r = 0; r < rows; r++) {
        const fl_small_product p = {.c = c + r * area(j), .a = j->P1, .b = b + r * area(j),
                                    .ldc = j->n2, .ak = ak, .am = am, .ldb = j->n2,
                                    .M = j->n1, .N = j->n2, .K = j->n1};
        j->kernel->product(&p);
    }
}

static void copy(float *to, const float *from, int64_t n)
{
    if (to != from) memcpy(to, from, (size_t)n * sizeof *to);
}

static void forward_batch(const job *j, float *y, const float *x, float *room, int64_t rows)
{
    const int64_t n = rows * area(j);
    const float *t = x;
    if (j->P2) {
        float *to = j->P1 || y == x ? room : y;
        times_right(j, to, x, j->P2, (int)rows * j->n1);
        t = to;
    } else if (j->P1 && y == x) {
        copy(room, x, n);
        t = room;
    }
    if (j->P1)
        left_times(j, y, j->n1, 1, t, rows);
    else
        copy(y, t, n);
}

static void forward_item(void *arg, int64_t item, int thread)
{
    const job *j = arg;
    const int64_t first = item * j->rows_per_item, end = FL_MIN(first + j->rows_per_item, j->R);
    float *room = j->batches + (size_t)thread * 2 * padded(j->batch_rows * area(j));
    call(j, false, first, end, thread);
    for (int64_t r = first; r < end; r += j->batch_rows)
        forward_batch(j, j->y + r * area(j), j->x + r * area(j), room,
                      FL_MIN(j->batch_rows, end - r));
    call(j, true, first, end, thread);
}

fl_status fl__kron_rows_hooked(fl_kron *kron, const fl_kron_hooks *hooks, float *y,
                               const float *x, int64_t R, int n1, int n2, const float *P1,
                               const float *P2, fl_err *err)
{
    job j = {.hooks = hooks, .y = y, .x = x, .P1 = P1, .P2 = P2, .R = R, .n1 = n1, .n2 = n2};
    j.rows_per_item = hooks ? FL_KRON_ITEM : FL_MAX(ITEM / area(&j), 1);
    const fl_status st = prepare(kron, &j, false, err);
    if (st == FL_OK) fl__parallel_for(&kron->ex, n_items(&j), forward_item, &j);
    return st;
}

fl_status fl__kron_rows(fl_kron *kron, float *y, const float *x, int64_t R, int n1, int n2,
                        const float *P1, const float *P2, fl_err *err)
{
    return fl__kron_rows_hooked(kron, NULL, y, x, R, n1, n2, P1, P2, err);
}

/* ---- gradients --------------------------------------------------------------------------- */

/* dx: NULL or where the batch's gradient goes; t, d: room for a batch each. */
static void grad_batch(const job *j, float *dx, const float *x, const float *dy, float *t,
                       float *d, float *dP1, float *dP2, int64_t rows)
{
    const int M = (int)rows * j->n1;
    if (j->want_dP1) {
        if (j->P2) times_right(j, t, x, j->P2, M);
        const fl_small_dots dots = {.c = dP1, .a = j->P2 ? t : x, .b = dy, .stride = area(j),
                                    .n_items = (int)rows, .M = j->n1, .N = j->n1, .K = j->n2};
        j->kernel->dots(&dots);
    }
    if (!dx && !j->want_dP2) return;
    if (j->P1)
        left_times(j, d, 1, j->n1, dy, rows);
    else if (dx == dy)
        copy(d, dy, rows * area(j));
    const float *dt = j->P1 || dx == dy ? d : dy;
    if (j->want_dP2) {
        const fl_small_product p = {.c = dP2, .a = x, .b = dt, .ldc = j->n2, .ak = j->n2,
                                    .am = 1, .ldb = j->n2, .M = j->n2, .N = j->n2, .K = M,
                                    .add = true};
        j->kernel->product(&p);
    }
    if (!dx) return;
    if (j->P2)
        times_right(j, dx, dt, j->turned, M);
    else
        copy(dx, dt, rows * area(j));
}

static void grad_item(void *arg, int64_t item, int thread)
{
    const job *j = arg;
    const int64_t first = item * j->rows_per_item, end = FL_MIN(first + j->rows_per_item, j->R);
    const size_t batch = padded(j->batch_rows * area(j));
    float *t = j->batches + (size_t)thread * 2 * batch, *d = t + batch;
    float *dP1 = j->parts + (size_t)item * part_floats(j);
    float *dP2 = dP1 + (j->want_dP1 ? padded((int64_t)j->n1 * j->n1) : 0);
    memset(dP1, 0, part_floats(j) * sizeof *dP1);
    call(j, false, first, end, thread);
    for (int64_t r = first; r < end; r += j->batch_rows)
        grad_batch(j, j->y ? j->y + r * area(j) : NULL, j->x + r * area(j), j->dy + r * area(j),
                   t, d, dP1, dP2, FL_MIN(j->batch_rows, end - r));
    call(j, true, first, end, thread);
}

/* sum [n] of what lies at `at` in each tile's part, tile by tile. */
static void add_parts(const job *j, float *sum, size_t at, int64_t n)
{
    if (!sum) return;
    memset(sum, 0, (size_t)n * sizeof *sum);
    for (int64_t item = 0; item < n_items(j); item++) {
        const float *part = j->parts + (size_t)item * part_floats(j) + at;
        for (int64_t i = 0; i < n; i++) sum[i] += part[i];
    }
}

int64_t fl__kron_tile_rows(int64_t R, int n1, int n2)
{
    const int64_t least = FL_MAX(FL_MIN(TILE / ((int64_t)n1 * n2), LEAST_ROWS), 1);
    return FL_MAX((R + FL_KRON_TILES - 1) / FL_KRON_TILES, least);
}

fl_status fl__kron_rows_grad_hooked(fl_kron *kron, const fl_kron_hooks *hooks, float *dx,
                                    float *dP1, float *dP2, const float *dy, const float *x,
                                    int64_t R, int n1, int n2, const float *P1,
                                    const float *P2, fl_err *err)
{
    job j = {.hooks = hooks, .y = dx, .x = x, .dy = dy, .P1 = P1, .P2 = P2,
             .want_dP1 = P1 && dP1, .want_dP2 = P2 && dP2, .R = R, .n1 = n1, .n2 = n2};
    j.rows_per_item = fl__kron_tile_rows(R, n1, n2);
    const fl_status st = prepare(kron, &j, true, err);
    if (st) return st;
    for (int64_t k = 0; P2 && k < n2; k++)
        for (int64_t i = 0; i < n2; i++) j.turned[i * n2 + k] = P2[k * n2 + i];
    fl__parallel_for(&kron->ex, n_items(&j), grad_item, &j);
    if (j.want_dP1) add_parts(&j, dP1, 0, (int64_t)n1 * n1);
    if (j.want_dP2)
        add_parts(&j, dP2, j.want_dP1 ? padded((int64_t)n1 * n1) : 0, (int64_t)n2 * n2);
    return FL_OK;
}

fl_status fl__kron_rows_grad(fl_kron *kron, float *dx, float *dP1, float *dP2, const float *dy,
                             const float *x, int64_t R, int n1, int n2, const float *P1,
                             const float *P2, fl_err *err)
{
    return fl__kron_rows_grad_hooked(kron, NULL, dx, dP1, dP2, dy, x, R, n1, n2, P1, P2,
                                     err);
}
