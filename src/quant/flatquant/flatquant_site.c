/* flatquant_site.c - see flatquant_site.h. SPDX-License-Identifier: MIT */
#include "quant/flatquant/flatquant_site.h"

#include "base/mem.h"
#include "train/train_activation.h"

fl_status fl__flatquant_act_init(fl_flatquant_act *a, fl_flatquant_site *site, int max_rows,
                                 fl_err *err)
{
    const size_t n = (size_t)max_rows * (size_t)site->n_in;
    const int n_hats = FL_MAX(site->clip.n, 1);
    *a = (fl_flatquant_act){.site = site};
    a->xt = fl__alloc(n, sizeof(float));
    bool ok = a->xt != NULL;
    for (int i = 0; ok && i < n_hats; i++)
        ok = (a->x_hat[i] = fl__alloc(n, sizeof(float))) != NULL;
    if (ok) return FL_OK;
    fl__flatquant_act_fini(a);
    return fl__fail_nomem(err, "activations in training",
                          n * (size_t)(1 + n_hats) * sizeof(float));
}

void fl__flatquant_act_fini(fl_flatquant_act *a)
{
    fl__free(&a->xt);
    for (int i = 0; i < FL_SITE_MAX_LINEARS; i++) fl__free(&a->x_hat[i]);
}

bool fl__flatquant_act_is_split(const fl_flatquant_act *a)
{
    return a->site->clip.n > 1;
}

const float *fl__flatquant_act_input(const fl_flatquant_act *a, int i)
{
    return a->x_hat[fl__flatquant_act_is_split(a) ? i : 0];
}

static fl_fake_quant quantizer(const fl_flatquant_act *a, const fl_flatquant_options *o, int i)
{
    const fl_flatquant_clip *c = &a->site->clip;
    return (fl_fake_quant){.bits = o->a_bits,
                           .asymmetric = o->asymmetric,
                           .clip_max = c->n ? c->value[i] : 1.0f,
                           .clip_min = c->n ? c->value[c->n + i] : 1.0f};
}

static const float *left(const fl_flatquant_act *a)
{
    return a->site->left.n ? a->site->left.p : NULL;
}

static const float *right(const fl_flatquant_act *a)
{
    return a->site->right.n && !a->right_folded ? a->site->right.p : NULL;
}

static int64_t area(const fl_factor *f)
{
    return (int64_t)f->n * f->n;
}

fl_status fl__flatquant_act_forward(fl_flatquant_act *a, const fl_exec *ex, fl_kron *kron,
                                    const fl_flatquant_options *o, const float *x, int n_rows,
                                    fl_err *err)
{
    const fl_flatquant_site *s = a->site;
    const fl_status st = fl__kron_rows(kron, a->xt, x, n_rows, s->n_left, s->n_right, left(a),
                                       right(a), err);
    for (int i = 0; !st && i < FL_SITE_MAX_LINEARS && a->x_hat[i]; i++) {
        const fl_fake_quant q = quantizer(a, o, i);
        fl__fake_quant_rows(ex, &q, a->x_hat[i], NULL, NULL, NULL, a->xt, n_rows, s->n_in);
    }
    return st;
}

void fl__flatquant_act_quantizer_grad(fl_flatquant_act *a, const fl_exec *ex,
                                      const fl_flatquant_options *o, int i, float *d,
                                      int n_rows)
{
    fl_flatquant_clip *c = &a->site->clip;
    const fl_fake_quant q = quantizer(a, o, i);
    double d_clip[2];
    fl__fake_quant_rows_grad(ex, &q, d, d_clip, d, a->xt, n_rows, a->site->n_in);
    if (!c->n) return;
    c->d_value[i] = (float)d_clip[0];
    c->d_value[c->n + i] = (float)d_clip[1];
}

fl_status fl__flatquant_act_backward(fl_flatquant_act *a, const fl_exec *ex, fl_kron *kron,
                                     const fl_flatquant_options *o, float *d, const float *x,
                                     int n_rows, float *work, fl_err *err)
{
    fl_flatquant_site *s = a->site;
    float *d_left = left(a) ? work : NULL;
    float *d_right = right(a) ? work + area(&s->left) : NULL;
    if (!fl__flatquant_act_is_split(a))
        fl__flatquant_act_quantizer_grad(a, ex, o, 0, d, n_rows);
    const fl_status st = fl__kron_rows_grad(kron, d, d_left, d_right, d, x, n_rows, s->n_left,
                                            s->n_right, left(a), right(a), err);
    if (st) return st;
    if (d_left) fl__add_forward(ex, s->left.dp, s->left.dp, d_left, area(&s->left));
    if (d_right) fl__add_forward(ex, s->right.dp, s->right.dp, d_right, area(&s->right));
    if (s->c && a->scaled_here)
        fl__flatquant_column_sum(ex, s->d_c, d, x, s->c, n_rows, s->n_in);
    return FL_OK;
}

/* ---- sums over rows ---------------------------------------------------------------------- */

enum { COLUMNS = 64 };

typedef struct sum_job {
    float *out;
    const float *a, *b, *divisor;
    size_t n_rows, n;
} sum_job;

static void sum_item(void *arg, int64_t item, int thread)
{
    const sum_job *j = arg;
    const size_t k0 = (size_t)item * COLUMNS, m = FL_MIN((size_t)COLUMNS, j->n - k0);
    float sum[COLUMNS] = {0};
    (void)thread;
    for (size_t r = 0; r < j->n_rows; r++) {
        const float *a = j->a + r * j->n + k0, *b = j->b ? j->b + r * j->n + k0 : NULL;
        if (b)
            for (size_t k = 0; k < m; k++) sum[k] += a[k] * b[k];
        else
            for (size_t k = 0; k < m; k++) sum[k] += a[k];
    }
    for (size_t k = 0; k < m; k++)
        j->out[k0 + k] += j->divisor ? sum[k] / j->divisor[k0 + k] : sum[k];
}

void fl__flatquant_column_sum(const fl_exec *ex, float *out, const float *a, const float *b,
                              const float *divisor, int n_rows, int n)
{
    sum_job j = {out, a, b, divisor, (size_t)n_rows, (size_t)n};
    fl__parallel_for(ex, (n + COLUMNS - 1) / COLUMNS, sum_item, &j);
}

/* ---- rows and one vector ----------------------------------------------------------------- */

typedef struct rows_job {
    float *y;
    const float *x, *vector;
    int n_rows, n;
} rows_job;

enum { ITEM_ROWS = 64 };

static void scale_item(void *arg, int64_t item, int thread)
{
    const rows_job *j = arg;
    const int r0 = (int)item * ITEM_ROWS, r1 = FL_MIN(r0 + ITEM_ROWS, j->n_rows);
    (void)thread;
    for (int r = r0; r < r1; r++) {
        float *y = j->y + (size_t)r * (size_t)j->n;
        const float *x = j->x + (size_t)r * (size_t)j->n;
        for (int i = 0; i < j->n; i++) y[i] = j->vector ? x[i] * j->vector[i] : x[i];
    }
}

void fl__flatquant_scale_rows(const fl_exec *ex, float *y, const float *x, const float *c,
                              int n_rows, int n)
{
    rows_job j = {y, x, c, n_rows, n};
    fl__parallel_for(ex, (n_rows + ITEM_ROWS - 1) / ITEM_ROWS, scale_item, &j);
}

static void bias_item(void *arg, int64_t item, int thread)
{
    const rows_job *j = arg;
    const int r0 = (int)item * ITEM_ROWS, r1 = FL_MIN(r0 + ITEM_ROWS, j->n_rows);
    (void)thread;
    for (int r = r0; r < r1; r++) {
        float *y = j->y + (size_t)r * (size_t)j->n;
        for (int i = 0; i < j->n; i++) y[i] += j->vector[i];
    }
}

void fl__flatquant_add_bias(const fl_exec *ex, float *y, const float *bias, int n_rows, int n)
{
    rows_job j = {y, NULL, bias, n_rows, n};
    fl__parallel_for(ex, (n_rows + ITEM_ROWS - 1) / ITEM_ROWS, bias_item, &j);
}
