/* train_activation.c - activations in items of ITEM elements. SPDX-License-Identifier: MIT */
#include "train/train_activation.h"

#include "base/status.h"
#include "train/train_rows.h"

enum { ITEM = 16384 };

typedef struct job {
    const fl_train_rows *rows;
    float *y, *y2;           /* outputs */
    const float *a, *b, *dy; /* inputs */
    int64_t n;
} job;

static void for_elements(const fl_exec *ex, job *j, fl__item_fn *fn)
{
    j->rows = fl__train_rows_select(ex->isa);
    fl__parallel_for(ex, (j->n + ITEM - 1) / ITEM, fn, j);
}

static int item_elements(const job *j, int64_t item)
{
    return (int)FL_MIN(j->n - item * ITEM, ITEM);
}

static void silu_mul(void *arg, int64_t item, int thread)
{
    const job *j = arg;
    const int64_t at = item * ITEM;
    (void)thread;
    j->rows->silu_mul(j->y + at, j->a + at, j->b + at, item_elements(j, item));
}

static void silu_mul_grad(void *arg, int64_t item, int thread)
{
    const job *j = arg;
    const int64_t at = item * ITEM;
    (void)thread;
    j->rows->silu_mul_grad(j->y + at, j->y2 + at, j->dy + at, j->a + at, j->b + at,
                           item_elements(j, item));
}

static void relu(void *arg, int64_t item, int thread)
{
    const job *j = arg;
    const int64_t at = item * ITEM;
    (void)thread;
    j->rows->relu(j->y + at, j->a + at, item_elements(j, item));
}

static void relu_grad(void *arg, int64_t item, int thread)
{
    const job *j = arg;
    const int64_t at = item * ITEM;
    (void)thread;
    j->rows->relu_grad(j->y + at, j->dy + at, j->a + at, item_elements(j, item));
}

static void add(void *arg, int64_t item, int thread)
{
    const job *j = arg;
    const int64_t at = item * ITEM;
    (void)thread;
    j->rows->add(j->y + at, j->a + at, j->b + at, item_elements(j, item));
}

void fl__silu_mul_forward(const fl_exec *ex, float *y, const float *gate, const float *up,
                          int64_t n)
{
    job j = {.y = y, .a = gate, .b = up, .n = n};
    for_elements(ex, &j, silu_mul);
}

void fl__silu_mul_grad(const fl_exec *ex, float *dgate, float *dup, const float *dy,
                       const float *gate, const float *up, int64_t n)
{
    job j = {.y = dgate, .y2 = dup, .dy = dy, .a = gate, .b = up, .n = n};
    for_elements(ex, &j, silu_mul_grad);
}

void fl__relu_forward(const fl_exec *ex, float *y, const float *x, int64_t n)
{
    job j = {.y = y, .a = x, .n = n};
    for_elements(ex, &j, relu);
}

void fl__relu_grad(const fl_exec *ex, float *dx, const float *dy, const float *x, int64_t n)
{
    job j = {.y = dx, .dy = dy, .a = x, .n = n};
    for_elements(ex, &j, relu_grad);
}

void fl__add_forward(const fl_exec *ex, float *y, const float *a, const float *b, int64_t n)
{
    job j = {.y = y, .a = a, .b = b, .n = n};
    for_elements(ex, &j, add);
}
