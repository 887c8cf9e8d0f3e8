/* flatquant_site.c - see flatquant_site.h. SPDX-License-Identifier: MIT */
#include "quant/flatquant/flatquant_site.h"

#include "base/mem.h"
#include "train/fake_quant.h"
#include "train/train_activation.h"
#include "train/train_rows.h"

#include <string.h>

fl_status fl__flatquant_act_init(fl_flatquant_act *a, fl_flatquant_site *site, int max_rows,
                                 const fl_exec *ex, const fl_train_gemm *gemm, fl_err *err)
{
    const size_t width = (size_t)site->n_in, n = (size_t)max_rows * width;
    const size_t n_items = (size_t)ex->n_threads * FL_KRON_ITEM * width;
    *a = (fl_flatquant_act){.site = site, .n_hats = FL_MAX(site->clip.n, 1)};
    const size_t n_all = fl__train_gemm_packs(gemm) ? n_items : n * (size_t)a->n_hats;
    a->xt = fl__alloc(n, sizeof(float));
    a->x_hat = fl__alloc(n_all, sizeof(float));
    a->sums = fl__alloc(FL_KRON_TILES * width, sizeof(float));
    if (a->xt && a->x_hat && a->sums) return FL_OK;
    fl__flatquant_act_fini(a);
    return fl__fail_nomem(err, "activations in training", (n + n_all) * sizeof(float));
}

void fl__flatquant_act_fini(fl_flatquant_act *a)
{
    fl__free(&a->xt);
    fl__free(&a->x_hat);
    fl__free(&a->sums);
    for (int i = 0; i < FL_SITE_MAX_LINEARS; i++) fl__train_operand_fini(&a->operand[i]);
}

const fl_train_operand *fl__flatquant_act_operand(const fl_flatquant_act *a, int i)
{
    return &a->operand[a->n_hats > 1 ? i : 0];
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

/* One direction of one site. */
typedef struct act_job {
    fl_flatquant_act *a;
    const fl_flatquant_means *m;
    fl_exec one; /* inside items */
    const fl_train_rows *rows;
    fl_fake_quant q[FL_SITE_MAX_LINEARS];
    fl_flatquant_rows_fn *fn;
    void *user;
    const float *x;
    int n_rows;
    float *const *d;     /* backward */
    double (*d_clip)[FL_SITE_MAX_LINEARS][2]; /* [FL_KRON_TILES] */
    int64_t tile_rows;
} act_job;

static act_job job_of(fl_flatquant_act *a, const fl_flatquant_means *m,
                      fl_flatquant_rows_fn *fn, void *user, const float *x, int n_rows)
{
    act_job j = {.a = a, .m = m, .one = {m->ex->isa, 1}, .fn = fn, .user = user, .x = x,
                 .n_rows = n_rows};
    for (int i = 0; i < a->n_hats; i++) j.q[i] = quantizer(a, m->o, i);
    return j;
}

/* ---- forward ----------------------------------------------------------------------------- */

static void make_rows(void *user, int64_t first, int64_t n_rows, int thread)
{
    const act_job *j = user;
    (void)thread;
    if (j->fn) j->fn(j->user, (int)first, (int)n_rows);
}

/* Form i from row `first` on: all rows of it, or, where they are packed, one item's. */
static float *hat(const act_job *j, int i, int64_t first, int thread)
{
    const fl_flatquant_act *a = j->a;
    const bool packs = fl__train_gemm_packs(j->m->gemm);
    const int64_t row = packs ? (int64_t)thread * FL_KRON_ITEM : i * (int64_t)j->n_rows + first;
    return a->x_hat + row * a->site->n_in;
}

static void quantize_rows(void *user, int64_t first, int64_t n_rows, int thread)
{
    const act_job *j = user;
    const fl_flatquant_act *a = j->a;
    const int n = a->site->n_in;
    for (int i = 0; i < a->n_hats; i++) {
        float *x_hat = hat(j, i, first, thread);
        fl__fake_quant_rows(&j->one, &j->q[i], x_hat, NULL, NULL, NULL, a->xt + first * n,
                            n_rows, n);
        fl__train_operand_rows(j->m->gemm, &a->operand[i], x_hat, (int)first);
    }
}

fl_status fl__flatquant_act_forward(fl_flatquant_act *a, const fl_flatquant_means *m,
                                    const float *x, int n_rows, fl_flatquant_rows_fn *make,
                                    void *user, fl_err *err)
{
    const fl_flatquant_site *s = a->site;
    act_job j = job_of(a, m, make, user, x, n_rows);
    const fl_kron_hooks hooks = {make_rows, quantize_rows, &j};
    for (int i = 0; i < a->n_hats; i++) {
        const fl_status st = fl__train_operand_begin(m->gemm, &a->operand[i], hat(&j, i, 0, 0),
                                                     n_rows, s->n_in, err);
        if (st) return st;
    }
    return fl__kron_rows_hooked(m->kron, &hooks, a->xt, x, n_rows, s->n_left, s->n_right,
                                left(a), right(a), err);
}

/* ---- backward ---------------------------------------------------------------------------- */

/* Each form's gradient through its quantiser; what they make of xt's adds up in the first. */
static void quantize_rows_grad(void *user, int64_t first, int64_t n_rows, int thread)
{
    const act_job *j = user;
    const int n = j->a->site->n_in;
    float *sum = j->d[0] + first * n;
    (void)thread;
    for (int i = 0; i < j->a->n_hats; i++) {
        float *d = j->d[i] + first * n;
        fl__fake_quant_rows_grad(&j->one, &j->q[i], d, j->d_clip[first / j->tile_rows][i], d,
                                 j->a->xt + first * n, n_rows, n);
        if (i > 0) fl__add_forward(&j->one, sum, sum, d, n_rows * n);
    }
}

static void take_rows(void *user, int64_t first, int64_t n_rows, int thread)
{
    const act_job *j = user;
    const size_t n = (size_t)j->a->site->n_in, at = (size_t)first * n;
    (void)thread;
    if (j->a->site->c && j->a->scaled_here) {
        float *sum = j->a->sums + (size_t)(first / j->tile_rows) * n;
        const float *d = j->d[0] + at, *x = j->x + at;
        memset(sum, 0, n * sizeof *sum);
        for (int64_t r = 0; r < n_rows; r++, d += n, x += n)
            j->rows->add_product(sum, d, x, (int)n);
    }
    if (j->fn) j->fn(j->user, (int)first, (int)n_rows);
}

/* What the tiles left, in their order. */
static void add_tiles(const act_job *j, int n_tiles)
{
    fl_flatquant_site *s = j->a->site;
    for (int i = 0; i < s->clip.n; i++) {
        double d_clip[2] = {0, 0};
        for (int t = 0; t < n_tiles; t++)
            for (int k = 0; k < 2; k++) d_clip[k] += j->d_clip[t][i][k];
        s->clip.d_value[i] = (float)d_clip[0];
        s->clip.d_value[s->clip.n + i] = (float)d_clip[1];
    }
    if (!s->c || !j->a->scaled_here) return;
    for (int k = 0; k < s->n_in; k++) {
        float sum = 0;
        for (int t = 0; t < n_tiles; t++)
            sum += j->a->sums[(size_t)t * (size_t)s->n_in + (size_t)k];
        s->d_c[k] += sum / s->c[k];
    }
}

fl_status fl__flatquant_act_backward(fl_flatquant_act *a, const fl_flatquant_means *m,
                                     float *const d[FL_SITE_MAX_LINEARS], const float *x,
                                     int n_rows, fl_flatquant_rows_fn *take, void *user,
                                     fl_err *err)
{
    fl_flatquant_site *s = a->site;
    float *d_left = left(a) ? m->work : NULL;
    float *d_right = right(a) ? m->work + area(&s->left) : NULL;
    double d_clip[FL_KRON_TILES][FL_SITE_MAX_LINEARS][2];
    act_job j = job_of(a, m, take, user, x, n_rows);
    j.d = d;
    j.d_clip = d_clip;
    j.rows = fl__train_rows_select(m->ex->isa);
    j.tile_rows = fl__kron_tile_rows(n_rows, s->n_left, s->n_right);
    const fl_kron_hooks hooks = {quantize_rows_grad, take_rows, &j};
    const fl_status st =
        fl__kron_rows_grad_hooked(m->kron, &hooks, d[0], d_left, d_right, d[0], x, n_rows,
                                  s->n_left, s->n_right, left(a), right(a), err);
    if (st) return st;
    if (d_left) fl__add_forward(m->ex, s->left.dp, s->left.dp, d_left, area(&s->left));
    if (d_right) fl__add_forward(m->ex, s->right.dp, s->right.dp, d_right, area(&s->right));
    add_tiles(&j, (int)((n_rows + j.tile_rows - 1) / j.tile_rows));
    return FL_OK;
}

/* ---- biases ------------------------------------------------------------------------------ */

enum { COLUMNS = 64 };

typedef struct sum_job {
    float *out;
    const float *a;
    size_t n_rows, n;
} sum_job;

static void sum_item(void *arg, int64_t item, int thread)
{
    const sum_job *j = arg;
    const size_t k0 = (size_t)item * COLUMNS, m = FL_MIN((size_t)COLUMNS, j->n - k0);
    float sum[COLUMNS] = {0};
    (void)thread;
    for (size_t r = 0; r < j->n_rows; r++)
        for (size_t k = 0; k < m; k++) sum[k] += j->a[r * j->n + k0 + k];
    memcpy(j->out + k0, sum, m * sizeof *sum);
}

void fl__flatquant_column_sum(const fl_exec *ex, float *out, const float *a, int n_rows, int n)
{
    sum_job j = {out, a, (size_t)n_rows, (size_t)n};
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
