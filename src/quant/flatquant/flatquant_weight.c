/* flatquant_weight.c - see flatquant_weight.h. Loops over channels run in a fixed order, in
 * items of rows or of columns. SPDX-License-Identifier: MIT */
#include "quant/flatquant/flatquant_weight.h"

#include "base/mem.h"
#include "train/train_activation.h"
#include "train/train_rows.h"

#include <string.h>

fl_status fl__flatquant_weight_init(fl_flatquant_weight *w, fl_flatquant_linear *lin,
                                    fl_flatquant_site *site, fl_factor *mix_head,
                                    fl_flatquant_site *mix_down, fl_err *err)
{
    const size_t N = (size_t)lin->N, n = N * (size_t)lin->K;
    *w = (fl_flatquant_weight){.lin = lin, .site = site, .mix_head = mix_head,
                               .mix_down = mix_down};
    w->in = fl__alloc(n, sizeof(float));
    w->wt = fl__alloc(n, sizeof(float));
    w->w_hat = fl__alloc(n, sizeof(float));
    if (lin->bias) {
        w->bias = fl__alloc(N, sizeof(float));
        w->d_bias = fl__calloc(N, sizeof(float));
    }
    if (w->in && w->wt && w->w_hat && (!lin->bias || (w->bias && w->d_bias)))
        return FL_OK;
    fl__flatquant_weight_fini(w);
    return fl__fail_nomem(err, "weights in training", n * 3 * sizeof(float));
}

void fl__flatquant_weight_fini(fl_flatquant_weight *w)
{
    fl__free(&w->in);
    fl__free(&w->wt);
    fl__free(&w->w_hat);
    fl__free(&w->bias);
    fl__free(&w->d_bias);
}

/* ---- forward ----------------------------------------------------------------------------- */

enum { ROWS = 64 };

typedef struct weight_job {
    fl_flatquant_weight *w;
    const fl_train_rows *rows;
    float *d_in; /* backward */
} weight_job;

static int n_items(const fl_flatquant_weight *w)
{
    return (w->lin->N + ROWS - 1) / ROWS;
}

/* to = f from / c; c NULL: 1. to may be from. */
static void scale_row(const weight_job *j, float *to, const float *from, float f)
{
    const float *c = j->w->site->c;
    const int K = j->w->lin->K;
    if (c)
        j->rows->divide(to, from, f, c, K);
    else
        for (int k = 0; k < K; k++) to[k] = f * from[k];
}

/* in = mix(W) / c; heads are mixed in `in` already. */
static void forward_item(void *arg, int64_t item, int thread)
{
    const weight_job *j = arg;
    fl_flatquant_weight *w = j->w;
    const size_t K = (size_t)w->lin->K;
    const int r0 = (int)item * ROWS, r1 = FL_MIN(r0 + ROWS, w->lin->N);
    (void)thread;
    for (int r = r0; r < r1; r++) {
        const float f = w->mix_down ? w->mix_down->c[r] : 1.0f;
        float *to = w->in + (size_t)r * K;
        scale_row(j, to, w->mix_head ? to : w->lin->w + (size_t)r * K, f);
        if (w->bias && !w->mix_head) w->bias[r] = f * w->lin->bias[r];
    }
}

/* A head's rows [n, K] are one row of a Kronecker product with P_v on the left. */
static fl_status mix_heads(fl_flatquant_weight *w, fl_kron *kron, fl_err *err)
{
    const int n = w->mix_head->n;
    const float *P = w->mix_head->p;
    for (int r = 0; w->bias && r < w->lin->N; r++) {
        const int r0 = r / n * n, j = r - r0;
        w->bias[r] = 0;
        for (int i = 0; i < n; i++) w->bias[r] += P[i * n + j] * w->lin->bias[r0 + i];
    }
    return fl__kron_rows(kron, w->in, w->lin->w, w->lin->N / n, n, w->lin->K, P, NULL, err);
}

static const float *factor_q(const fl_factor *f)
{
    return f->n ? f->q : NULL;
}

fl_status fl__flatquant_weight_forward(fl_flatquant_weight *w, const fl_exec *ex,
                                       fl_kron *kron, const fl_flatquant_options *o,
                                       fl_err *err)
{
    const fl_flatquant_linear *l = w->lin;
    weight_job j = {w, fl__train_rows_select(ex->isa), NULL};
    fl_status st = w->mix_head ? mix_heads(w, kron, err) : FL_OK;
    if (st) return st;
    fl__parallel_for(ex, n_items(w), forward_item, &j);
    st = fl__kron_rows(kron, w->wt, w->in, l->N, w->site->n_left, w->site->n_right,
                       factor_q(&w->site->left), factor_q(&w->site->right), err);
    if (st) return st;
    fl__fake_quant_weight(ex, o->w_bits, w->w_hat, NULL, NULL, w->wt,
                          l->clip.n ? l->clip.value : NULL,
                          l->clip.n ? l->clip.value + l->N : NULL, l->N, l->K);
    return FL_OK;
}

/* ---- backward ---------------------------------------------------------------------------- */

/* d_c -= sum over rows of d_in * in / c, columns in items of their own. */
enum { COLUMNS = 64 };
static void scale_item(void *arg, int64_t item, int thread)
{
    const weight_job *j = arg;
    const size_t K = (size_t)j->w->lin->K, k0 = (size_t)item * COLUMNS;
    const size_t m = FL_MIN((size_t)COLUMNS, K - k0);
    float sum[COLUMNS] = {0};
    (void)thread;
    for (size_t at = k0; at < (size_t)j->w->lin->N * K; at += K)
        j->rows->add_product(sum, j->d_in + at, j->w->in + at, (int)m);
    for (size_t k = 0; k < m; k++) j->w->site->d_c[k0 + k] -= sum[k] / j->w->site->c[k0 + k];
}

/* The scale of the next linear's input multiplies this one's outputs. */
static void mix_down_item(void *arg, int64_t item, int thread)
{
    const weight_job *j = arg;
    fl_flatquant_weight *w = j->w;
    const size_t K = (size_t)w->lin->K;
    const int r0 = (int)item * ROWS, r1 = FL_MIN(r0 + ROWS, w->lin->N);
    (void)thread;
    for (int r = r0; r < r1; r++) {
        w->mix_down->d_c[r] +=
            j->rows->dot(j->d_in + (size_t)r * K, w->in + (size_t)r * K, (int)K) /
            w->mix_down->c[r];
        if (w->bias) w->mix_down->d_c[r] += w->d_bias[r] * w->lin->bias[r];
    }
}

/* dw = mix^T(d_in / c); of heads the division alone. */
static void weight_grad_item(void *arg, int64_t item, int thread)
{
    const weight_job *j = arg;
    fl_flatquant_weight *w = j->w;
    const size_t K = (size_t)w->lin->K;
    const int r0 = (int)item * ROWS, r1 = FL_MIN(r0 + ROWS, w->lin->N);
    (void)thread;
    for (int r = r0; r < r1; r++) {
        const float f = w->mix_down ? w->mix_down->c[r] : 1.0f;
        float *d = j->d_in + (size_t)r * K;
        scale_row(j, w->mix_head ? d : w->lin->dw + (size_t)r * K, d, f);
    }
}

/* dP_v[i, j] += sum over heads of <W_i, d_in_j / c>; dw, where wanted, = P_v (d_in / c). */
static fl_status mix_heads_grad(fl_flatquant_weight *w, const fl_exec *ex, fl_kron *kron,
                                const float *d_in, float *work, fl_err *err)
{
    fl_factor *P = w->mix_head;
    const int n = P->n;
    const fl_status st = fl__kron_rows_grad(kron, w->lin->dw, work, NULL, d_in, w->lin->w,
                                            w->lin->N / n, n, w->lin->K, P->p, NULL, err);
    if (st) return st;
    fl__add_forward(ex, P->dp, P->dp, work, (int64_t)n * n);
    for (int r = 0; w->bias && r < w->lin->N; r++) {
        const int r0 = r / n * n, i = r - r0;
        for (int k = 0; k < n; k++)
            P->dp[i * n + k] += w->lin->bias[r] * w->d_bias[r0 + k];
    }
    return FL_OK;
}

fl_status fl__flatquant_weight_backward(fl_flatquant_weight *w, const fl_exec *ex,
                                        fl_kron *kron, const fl_flatquant_options *o,
                                        float *d_hat, float *work, fl_err *err)
{
    fl_flatquant_linear *l = w->lin;
    fl_flatquant_site *s = w->site;
    const size_t n_left = (size_t)s->left.n * (size_t)s->left.n;
    const size_t n_right = (size_t)s->right.n * (size_t)s->right.n;
    float *dq_left = n_left ? work : NULL, *dq_right = n_right ? work + n_left : NULL;
    fl__fake_quant_weight_grad(ex, o->w_bits, d_hat, l->clip.n ? l->clip.d_value : NULL,
                               l->clip.n ? l->clip.d_value + l->N : NULL, d_hat, w->wt,
                               l->clip.n ? l->clip.value : NULL,
                               l->clip.n ? l->clip.value + l->N : NULL, l->N, l->K);
    const fl_status st =
        fl__kron_rows_grad(kron, d_hat, dq_left, dq_right, d_hat, w->in, l->N, s->n_left,
                           s->n_right, factor_q(&s->left), factor_q(&s->right), err);
    if (st) return st;
    if (dq_left) fl__add_forward(ex, s->left.dq, s->left.dq, dq_left, (int64_t)n_left);
    if (dq_right) fl__add_forward(ex, s->right.dq, s->right.dq, dq_right, (int64_t)n_right);
    weight_job j = {w, fl__train_rows_select(ex->isa), d_hat};
    if (s->c) fl__parallel_for(ex, (l->K + COLUMNS - 1) / COLUMNS, scale_item, &j);
    if (w->mix_down) fl__parallel_for(ex, (l->N + ROWS - 1) / ROWS, mix_down_item, &j);
    if (l->dw || w->mix_head) fl__parallel_for(ex, n_items(w), weight_grad_item, &j);
    return w->mix_head ? mix_heads_grad(w, ex, kron, d_hat, work, err) : FL_OK;
}
