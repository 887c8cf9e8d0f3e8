/* train_norm.c - norms over rows. SPDX-License-Identifier: MIT */
#include "train/train_norm.h"

#include "base/status.h"
#include "train/train_rows.h"

enum { ITEM_ELEMENTS = 16384 };

typedef struct job {
    const fl_train_rows *rows;
    float *y, *mean, *inv;               /* forward */
    float *dx, *dgain, *dbias;           /* backward */
    const float *x, *gain, *bias, *dy;   /* [R, n], [n], [n], [R, n] */
    const float *saved_mean, *saved_inv; /* [R]; saved_mean NULL: RMS norm */
    int R, n, item_rows, item_columns;
    double eps;
} job;

static void for_rows(const fl_exec *ex, job *j, fl__item_fn *fn)
{
    j->item_rows = FL_MAX(ITEM_ELEMENTS / FL_MAX(j->n, 1), 1);
    fl__parallel_for(ex, ((int64_t)j->R + j->item_rows - 1) / j->item_rows, fn, j);
}

/* Columns of an item: two cache lines, more where rows are so far apart that each is another
 * page. A column's sum does not depend on it. */
static void for_columns(const fl_exec *ex, job *j, fl__item_fn *fn)
{
    j->item_columns = j->n >= 2048 ? 64 : 32;
    fl__parallel_for(ex, (j->n + j->item_columns - 1) / j->item_columns, fn, j);
}

static void rms_forward(void *arg, int64_t item, int thread)
{
    const job *j = arg;
    const int r0 = (int)item * j->item_rows, r1 = FL_MIN(r0 + j->item_rows, j->R);
    (void)thread;
    for (int r = r0; r < r1; r++) {
        const int64_t at = (int64_t)r * j->n;
        j->inv[r] = j->rows->rms_norm(j->y + at, j->x + at, j->gain, j->n, j->eps);
    }
}

static void layer_forward(void *arg, int64_t item, int thread)
{
    const job *j = arg;
    const int r0 = (int)item * j->item_rows, r1 = FL_MIN(r0 + j->item_rows, j->R);
    (void)thread;
    for (int r = r0; r < r1; r++) {
        const int64_t at = (int64_t)r * j->n;
        j->inv[r] = j->rows->layer_norm(j->y + at, j->mean + r, j->x + at, j->gain, j->bias,
                                        j->n, j->eps);
    }
}

static void backward(void *arg, int64_t item, int thread)
{
    const job *j = arg;
    const int r0 = (int)item * j->item_rows, r1 = FL_MIN(r0 + j->item_rows, j->R);
    (void)thread;
    for (int r = r0; r < r1; r++) {
        const int64_t at = (int64_t)r * j->n;
        if (j->saved_mean)
            j->rows->layer_norm_grad(j->dx + at, j->dy + at, j->x + at, j->gain,
                                     j->saved_mean[r], j->saved_inv[r], j->n);
        else
            j->rows->rms_norm_grad(j->dx + at, j->dy + at, j->x + at, j->gain, j->saved_inv[r],
                                   j->n);
    }
}

static void gain_backward(void *arg, int64_t item, int thread)
{
    const job *j = arg;
    const int c0 = (int)item * j->item_columns;
    (void)thread;
    j->rows->norm_gain_grad(j->dgain + c0, j->dbias ? j->dbias + c0 : NULL, j->dy + c0,
                            j->x + c0, j->saved_mean, j->saved_inv, j->R, j->n,
                            FL_MIN(j->item_columns, j->n - c0));
}

void fl__rms_norm_rows(const fl_exec *ex, float *y, float *inv_rms, const float *x,
                       const float *gain, int R, int n, double eps)
{
    job j = {.rows = fl__train_rows_select(ex->isa),
             .y = y,
             .inv = inv_rms,
             .x = x,
             .gain = gain,
             .R = R,
             .n = n,
             .eps = eps};
    for_rows(ex, &j, rms_forward);
}

void fl__layer_norm_rows(const fl_exec *ex, float *y, float *mean, float *inv_std,
                         const float *x, const float *gain, const float *bias, int R, int n,
                         double eps)
{
    job j = {.rows = fl__train_rows_select(ex->isa),
             .y = y,
             .mean = mean,
             .inv = inv_std,
             .x = x,
             .gain = gain,
             .bias = bias,
             .R = R,
             .n = n,
             .eps = eps};
    for_rows(ex, &j, layer_forward);
}

/* The sums over rows first: dx may overwrite dy. */
static void both_backward(const fl_exec *ex, job *j)
{
    if (j->dgain) for_columns(ex, j, gain_backward);
    for_rows(ex, j, backward);
}

void fl__rms_norm_grad(const fl_exec *ex, float *dx, float *dgain, const float *dy,
                       const float *x, const float *gain, const float *inv_rms, int R, int n)
{
    job j = {.rows = fl__train_rows_select(ex->isa),
             .dx = dx,
             .dgain = dgain,
             .dy = dy,
             .x = x,
             .gain = gain,
             .saved_inv = inv_rms,
             .R = R,
             .n = n};
    both_backward(ex, &j);
}

void fl__layer_norm_grad(const fl_exec *ex, float *dx, float *dgain, float *dbias,
                         const float *dy, const float *x, const float *gain, const float *mean,
                         const float *inv_std, int R, int n)
{
    job j = {.rows = fl__train_rows_select(ex->isa),
             .dx = dx,
             .dgain = dgain,
             .dbias = dbias,
             .dy = dy,
             .x = x,
             .gain = gain,
             .saved_mean = mean,
             .saved_inv = inv_std,
             .R = R,
             .n = n};
    both_backward(ex, &j);
}
