/* flatquant_weight.c - see flatquant_weight.h. Loops over channels run in a fixed order, in
 * items of rows or of columns. SPDX-License-Identifier: MIT */
#include "quant/flatquant/flatquant_weight.h"

#include "base/mem.h"
#include "train/train_activation.h"
#include "train/train_rows.h"

#include <string.h>

fl_status fl__flatquant_weight_init(fl_flatquant_weight *w, fl_flatquant_linear *lin,
                                    fl_flatquant_site *site, fl_factor *mix_head,
                                    fl_flatquant_site *mix_down,
                                    const fl_flatquant_options *o, fl_err *err)
{
    const size_t N = (size_t)lin->N, n = N * (size_t)lin->K;
    *w = (fl_flatquant_weight){.lin = lin, .site = site, .mix_head = mix_head,
                               .mix_down = mix_down};
    w->in = fl__alloc(n, sizeof(float));
    w->wt = fl__alloc(n, sizeof(float));
    w->w_hat = fl__alloc(n, sizeof(float));
    const bool clip_first = mix_head && o->clip_v_first && lin->clip.n;
    if (clip_first) {
        w->clipped = fl__alloc(n, sizeof(float));
        w->mixed = fl__alloc(n, sizeof(float));
    }
    if (lin->bias) {
        w->bias = fl__alloc(N, sizeof(float));
        w->d_bias = fl__calloc(N, sizeof(float));
    }
    if (w->in && w->wt && w->w_hat && (!clip_first || (w->clipped && w->mixed)) &&
        (!lin->bias || (w->bias && w->d_bias)))
        return FL_OK;
    fl__flatquant_weight_fini(w);
    return fl__fail_nomem(err, "weights in training", n * 5 * sizeof(float));
}

void fl__flatquant_weight_fini(fl_flatquant_weight *w)
{
    fl__free(&w->in);
    fl__free(&w->wt);
    fl__free(&w->w_hat);
    fl__free(&w->clipped);
    fl__free(&w->mixed);
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

/* Heads are mixed before everything else. */
static bool mixes_first(const fl_flatquant_weight *w)
{
    return w->mix_head && !w->clipped;
}

/* in = mix(W) / c; heads that are mixed first are in `in` already. */
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
        scale_row(j, to, mixes_first(w) ? to : w->lin->w + (size_t)r * K, f);
        if (w->bias && !w->mix_head) w->bias[r] = f * w->lin->bias[r];
    }
}

/* A head's rows [n, K] are one row of a Kronecker product with P_v on the left. */
static fl_status mix_heads(fl_flatquant_weight *w, fl_kron *kron, float *to, const float *from,
                           fl_err *err)
{
    const int n = w->mix_head->n;
    const float *P = w->mix_head->p;
    for (int r = 0; w->bias && r < w->lin->N; r++) {
        const int r0 = r / n * n, j = r - r0;
        w->bias[r] = 0;
        for (int i = 0; i < n; i++) w->bias[r] += P[i * n + j] * w->lin->bias[r0 + i];
    }
    return fl__kron_rows(kron, to, from, w->lin->N / n, n, w->lin->K, P, NULL, err);
}

/* ---- clips before heads are mixed -------------------------------------------------------- */

/* The first of the largest and of the smallest of a row, and the bounds their clips make. */
typedef struct bounds {
    int top, bottom;
    float most, least, hi, lo;
} bounds;

static bounds bounds_of(const fl_flatquant_weight *w, int r)
{
    const float *row = w->wt + (size_t)r * (size_t)w->lin->K;
    const fl_flatquant_clip *c = &w->lin->clip;
    bounds b = {-1, -1, 0, 0, 0, 0};
    for (int k = 0; k < w->lin->K; k++) {
        if (row[k] > b.most) b.most = row[b.top = k];
        if (row[k] < b.least) b.least = row[b.bottom = k];
    }
    b.hi = c->value[r] * b.most;
    b.lo = c->value[c->n + r] * b.least;
    return b;
}

static void clip_item(void *arg, int64_t item, int thread)
{
    const weight_job *j = arg;
    fl_flatquant_weight *w = j->w;
    const size_t K = (size_t)w->lin->K;
    const int r0 = (int)item * ROWS, r1 = FL_MIN(r0 + ROWS, w->lin->N);
    (void)thread;
    for (int r = r0; r < r1; r++) {
        const float *from = w->wt + (size_t)r * K;
        float *to = w->clipped + (size_t)r * K;
        const bounds b = bounds_of(w, r);
        for (size_t k = 0; k < K; k++)
            to[k] = from[k] > b.hi ? b.hi : from[k] < b.lo ? b.lo : from[k];
    }
}

/* A clamped weight passes its gradient to its bound, which moves with the clip and with the
 * row's extreme. */
static void clip_grad_item(void *arg, int64_t item, int thread)
{
    const weight_job *j = arg;
    const fl_flatquant_weight *w = j->w;
    const fl_flatquant_clip *c = &w->lin->clip;
    const size_t K = (size_t)w->lin->K;
    const int r0 = (int)item * ROWS, r1 = FL_MIN(r0 + ROWS, w->lin->N);
    (void)thread;
    for (int r = r0; r < r1; r++) {
        const float *row = w->wt + (size_t)r * K;
        float *d = j->d_in + (size_t)r * K;
        const bounds b = bounds_of(w, r);
        double d_hi = 0, d_lo = 0;
        for (size_t k = 0; k < K; k++) {
            if (row[k] <= b.hi && row[k] >= b.lo) continue;
            *(row[k] > b.hi ? &d_hi : &d_lo) += (double)d[k];
            d[k] = 0;
        }
        c->d_value[r] = (float)(d_hi * (double)b.most);
        c->d_value[c->n + r] = (float)(d_lo * (double)b.least);
        if (b.top >= 0) d[b.top] += (float)(d_hi * (double)c->value[r]);
        if (b.bottom >= 0) d[b.bottom] += (float)(d_lo * (double)c->value[c->n + r]);
    }
}

/* ---- forward: the whole ------------------------------------------------------------------ */

static const float *factor_q(const fl_factor *f)
{
    return f->n ? f->q : NULL;
}

fl_status fl__flatquant_weight_forward(fl_flatquant_weight *w, const fl_exec *ex,
                                       fl_kron *kron, const fl_flatquant_options *o,
                                       fl_err *err)
{
    const fl_flatquant_linear *l = w->lin;
    const float *clip_max = l->clip.n && !w->clipped ? l->clip.value : NULL;
    const float *clip_min = clip_max ? l->clip.value + l->N : NULL;
    weight_job j = {w, fl__train_rows_select(ex->isa), NULL};
    fl_status st = mixes_first(w) ? mix_heads(w, kron, w->in, l->w, err) : FL_OK;
    if (st) return st;
    fl__parallel_for(ex, n_items(w), forward_item, &j);
    st = fl__kron_rows(kron, w->wt, w->in, l->N, w->site->n_left, w->site->n_right,
                       factor_q(&w->site->left), factor_q(&w->site->right), err);
    if (!st && w->clipped) {
        fl__parallel_for(ex, n_items(w), clip_item, &j);
        st = mix_heads(w, kron, w->mixed, w->clipped, err);
    }
    if (st) return st;
    fl__fake_quant_weight(ex, o->w_bits, w->w_hat, NULL, NULL,
                          w->clipped ? w->mixed : w->wt, clip_max, clip_min, l->N, l->K);
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

/* dw = mix^T(d_in / c); of heads that are mixed first the division alone. */
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
        scale_row(j, mixes_first(w) ? d : w->lin->dw + (size_t)r * K, d, f);
    }
}

/* dP_v[i, j] += sum over heads of <from_i, d_j>; to, where wanted, = P_v d; to may be d. */
static fl_status mix_heads_grad(fl_flatquant_weight *w, const fl_exec *ex, fl_kron *kron,
                                float *to, const float *d, const float *from, float *work,
                                fl_err *err)
{
    fl_factor *P = w->mix_head;
    const int n = P->n;
    const fl_status st = fl__kron_rows_grad(kron, to, work, NULL, d, from, w->lin->N / n, n,
                                            w->lin->K, P->p, NULL, err);
    if (st) return st;
    fl__add_forward(ex, P->dp, P->dp, work, (int64_t)n * n);
    for (int r = 0; w->bias && r < w->lin->N; r++) {
        const int r0 = r / n * n, i = r - r0;
        for (int k = 0; k < n; k++)
            P->dp[i * n + k] += w->lin->bias[r] * w->d_bias[r0 + k];
    }
    return FL_OK;
}

/* d: gradient of w_hat becomes that of wt. */
static fl_status quantiser_grad(fl_flatquant_weight *w, const fl_exec *ex, fl_kron *kron,
                                const fl_flatquant_options *o, float *d, float *work,
                                fl_err *err)
{
    fl_flatquant_linear *l = w->lin;
    const bool clips = l->clip.n && !w->clipped;
    fl__fake_quant_weight_grad(ex, o->w_bits, d, clips ? l->clip.d_value : NULL,
                               clips ? l->clip.d_value + l->N : NULL, d,
                               w->clipped ? w->mixed : w->wt, clips ? l->clip.value : NULL,
                               clips ? l->clip.value + l->N : NULL, l->N, l->K);
    if (!w->clipped) return FL_OK;
    const fl_status st = mix_heads_grad(w, ex, kron, d, d, w->clipped, work, err);
    weight_job j = {w, fl__train_rows_select(ex->isa), d};
    if (!st) fl__parallel_for(ex, n_items(w), clip_grad_item, &j);
    return st;
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
    fl_status st = quantiser_grad(w, ex, kron, o, d_hat, work, err);
    if (!st)
        st = fl__kron_rows_grad(kron, d_hat, dq_left, dq_right, d_hat, w->in, l->N, s->n_left,
                                s->n_right, factor_q(&s->left), factor_q(&s->right), err);
    if (st) return st;
    if (dq_left) fl__add_forward(ex, s->left.dq, s->left.dq, dq_left, (int64_t)n_left);
    if (dq_right) fl__add_forward(ex, s->right.dq, s->right.dq, dq_right, (int64_t)n_right);
    weight_job j = {w, fl__train_rows_select(ex->isa), d_hat};
    if (s->c) fl__parallel_for(ex, (l->K + COLUMNS - 1) / COLUMNS, scale_item, &j);
    if (w->mix_down) fl__parallel_for(ex, (l->N + ROWS - 1) / ROWS, mix_down_item, &j);
    if (l->dw || mixes_first(w)) fl__parallel_for(ex, n_items(w), weight_grad_item, &j);
    return mixes_first(w) ? mix_heads_grad(w, ex, kron, l->dw, d_hat, l->w, work, err) : FL_OK;
}
