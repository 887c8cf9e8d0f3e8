/* train_rope.c - rotary embedding over rows. SPDX-License-Identifier: MIT */
#include "train/train_rope.h"

#include "base/status.h"
#include "train/train_rows.h"

enum { ITEM_ROWS = 16 };

typedef struct job {
    const fl_train_rows *rows;
    float *x, sign;
    const float *cos, *sin;
    int R, T, n_heads, D;
} job;

static void turn(void *arg, int64_t item, int thread)
{
    const job *j = arg;
    const int r0 = (int)item * ITEM_ROWS, r1 = FL_MIN(r0 + ITEM_ROWS, j->R);
    (void)thread;
    for (int r = r0; r < r1; r++) {
        const int64_t angle = (int64_t)(r % j->T) * (j->D / 2);
        float *x = j->x + (int64_t)r * j->n_heads * j->D;
        for (int h = 0; h < j->n_heads; h++)
            j->rows->rope(x + (int64_t)h * j->D, j->cos + angle, j->sin + angle, j->sign, j->D);
    }
}

static void turn_rows(const fl_exec *ex, job *j)
{
    j->rows = fl__train_rows_select(ex->isa);
    fl__parallel_for(ex, ((int64_t)j->R + ITEM_ROWS - 1) / ITEM_ROWS, turn, j);
}

void fl__rope_rows(const fl_exec *ex, float *x, const float *cos, const float *sin, int R,
                   int T, int n_heads, int D)
{
    job j = {.x = x,
             .sign = 1.0f,
             .cos = cos,
             .sin = sin,
             .R = R,
             .T = T,
             .n_heads = n_heads,
             .D = D};
    turn_rows(ex, &j);
}

void fl__rope_grad_rows(const fl_exec *ex, float *dx, const float *cos, const float *sin, int R,
                        int T, int n_heads, int D)
{
    job j = {.x = dx,
             .sign = -1.0f,
             .cos = cos,
             .sin = sin,
             .R = R,
             .T = T,
             .n_heads = n_heads,
             .D = D};
    turn_rows(ex, &j);
}
