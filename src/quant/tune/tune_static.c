/* tune_static.c - see tune_static.h. SPDX-License-Identifier: MIT */
#include "quant/tune/tune_static.h"

#include "base/status.h"

#include <math.h>
#include <stddef.h>

enum { ROWS = 32 };

typedef struct job {
    const fl_site *site;
    float *y;
    const float *x, *d; /* d NULL: forward */
    int R;
} job;

static void rows_item(void *arg, int64_t item, int thread)
{
    const job *j = arg;
    const fl_quantize_static *q = &j->site->spec;
    const size_t K = (size_t)j->site->n_in;
    (void)thread;
    for (size_t r = (size_t)item * ROWS; r < FL_MIN((size_t)(item + 1) * ROWS, (size_t)j->R);
         r++)
        for (size_t c = 0; c < K; c++) {
            const size_t at = r * K + c;
            const float t = nearbyintf(j->x[at] * q->inv_scale);
            const bool inside = t >= q->lo[c] && t <= q->hi[c];
            const float code = inside ? t : t > q->hi[c] ? q->hi[c] : q->lo[c];
            j->y[at] = !j->d ? j->site->scale * code : inside ? j->d[at] : 0.0f;
        }
}

void fl__tune_static_rows(const fl_exec *ex, const fl_site *site, float *x_hat, const float *x,
                          int R)
{
    job j = {.site = site, .y = x_hat, .x = x, .R = R};
    fl__parallel_for(ex, (R + ROWS - 1) / ROWS, rows_item, &j);
}

void fl__tune_static_grad(const fl_exec *ex, const fl_site *site, float *dx,
                          const float *dx_hat, const float *x, int R)
{
    job j = {.site = site, .y = dx, .x = x, .d = dx_hat, .R = R};
    fl__parallel_for(ex, (R + ROWS - 1) / ROWS, rows_item, &j);
}
