/* flatquant_weight.c - see flatquant_weight.h. Loops over channels run in a fixed order, in
 * items of rows or of columns. SPDX-License-Identifier: MIT */
#include "quant/flatquant/flatquant_weight.h"

#include "base/mem.h"
#include "train/train_activation.h"

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

/* in = mix(W) / c for one head's rows (or ROWS rows where no head is mixed). */
enum { ROWS = 64 };

typedef struct weight_job {
    fl_flatquant_weight *w;
    const float *d_in; /* backward */
} weight_job;

static int rows_per_item(const fl_flatquant_weight *w)
{
    return w->mix_head ? w->mix_head->n : ROWS;
}

static int n_items(const fl_flatquant_weight *w)
{
    return (w->lin->N + rows_per_item(w) - 1) / rows_per_item(w);
}

static void divide_row(float *row, const float *c, int K)
{
    for (int k = 0; c && k < K; k++) row[k] /= c[k];
}

static void mix_head_rows(fl_flatquant_weight *w, int r0, int n)
{
    const size_t K = (size_t)w->lin->K;
    const float *from = w->lin->w + (size_t)r0 * K, *P = w->mix_head->p;
    for (int j = 0; j < n; j++) {
        float *to = w->in + (size_t)(r0 + j) * K;
        memset(to, 0, K * sizeof *to);
        for (int i = 0; i < n; i++) {
            const float f = P[i * n + j];
            for (size_t k = 0; k < K; k++) to[k] += f * from[(size_t)i * K + k];
        }
        divide_row(to, w->site->c, w->lin->K);
    }
    for (int j = 0; w->bias && j < n; j++) {
        w->bias[r0 + j] = 0;
        for (int i = 0; i < n; i++) w->bias[r0 + j] += P[i * n + j] * w->lin->bias[r0 + i];
    }
}

static void forward_item(void *arg, int64_t item, int thread)
{
    const weight_job *j = arg;
    fl_flatquant_weight *w = j->w;
    const size_t K = (size_t)w->lin->K;
    const int rows = rows_per_item(w), r0 = (int)item * rows, r1 = FL_MIN(r0 + rows, w->lin->N);
    (void)thread;
    if (w->mix_head) {
        mix_head_rows(w, r0, rows);
        return;
    }
    for (int r = r0; r < r1; r++) {
        const float f = w->mix_down ? w->mix_down->c[r] : 1.0f;
        float *to = w->in + (size_t)r * K;
        for (size_t k = 0; k < K; k++) to[k] = f * w->lin->w[(size_t)r * K + k];
        divide_row(to, w->site->c, w->lin->K);
        if (w->bias) w->bias[r] = f * w->lin->bias[r];
    }
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
    weight_job j = {w, NULL};
    fl__parallel_for(ex, n_items(w), forward_item, &j);
    const fl_status st =
        fl__kron_rows(kron, w->wt, w->in, l->N, w->site->n_left, w->site->n_right,
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
    const size_t K = (size_t)j->w->lin->K;
    const size_t k0 = (size_t)item * COLUMNS, k1 = FL_MIN(k0 + COLUMNS, K);
    float sum[COLUMNS] = {0};
    (void)thread;
    for (size_t n = 0; n < (size_t)j->w->lin->N; n++)
        for (size_t k = k0; k < k1; k++)
            sum[k - k0] += j->d_in[n * K + k] * j->w->in[n * K + k];
    for (size_t k = k0; k < k1; k++)
        j->w->site->d_c[k] -= sum[k - k0] / j->w->site->c[k];
}

static float dot(const float *a, const float *b, size_t n)
{
    float lane[16] = {0}, sum = 0;
    size_t i = 0;
    for (; i + 16 <= n; i += 16)
        for (size_t k = 0; k < 16; k++) lane[k] += a[i + k] * b[i + k];
    for (size_t k = 0; i < n; i++, k++) lane[k] += a[i] * b[i];
    for (size_t k = 0; k < 16; k++) sum += lane[k];
    return sum;
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
            dot(j->d_in + (size_t)r * K, w->in + (size_t)r * K, K) / w->mix_down->c[r];
        if (w->bias) w->mix_down->d_c[r] += w->d_bias[r] * w->lin->bias[r];
    }
}

/* dP_v[i, j] += sum over heads of <W_i / c, d_in_j>: rows i of dP in items of their own. */
static void head_grad_item(void *arg, int64_t item, int thread)
{
    const weight_job *j = arg;
    fl_flatquant_weight *w = j->w;
    const int n = w->mix_head->n, i = (int)item;
    const size_t K = (size_t)w->lin->K;
    const float *c = w->site->c;
    (void)thread;
    for (int r0 = 0; r0 < w->lin->N; r0 += n) {
        const float *from = w->lin->w + (size_t)(r0 + i) * K;
        for (int k = 0; k < n; k++) {
            const float *d = j->d_in + (size_t)(r0 + k) * K;
            float lane[16] = {0}, sum = 0;
            size_t x = 0;
            for (; x + 16 <= K; x += 16)
                for (size_t y = 0; y < 16; y++)
                    lane[y] += d[x + y] * (c ? from[x + y] / c[x + y] : from[x + y]);
            for (size_t y = 0; x < K; x++, y++)
                lane[y] += d[x] * (c ? from[x] / c[x] : from[x]);
            for (size_t y = 0; y < 16; y++) sum += lane[y];
            w->mix_head->dp[i * n + k] += sum;
            if (w->bias) w->mix_head->dp[i * n + k] += w->lin->bias[r0 + i] * w->d_bias[r0 + k];
        }
    }
}

/* dw = mix^T(d_in / c). */
static void weight_grad_item(void *arg, int64_t item, int thread)
{
    const weight_job *j = arg;
    fl_flatquant_weight *w = j->w;
    const size_t K = (size_t)w->lin->K;
    const int rows = rows_per_item(w), r0 = (int)item * rows, r1 = FL_MIN(r0 + rows, w->lin->N);
    (void)thread;
    for (int r = r0; r < r1; r++) {
        float *to = w->lin->dw + (size_t)r * K;
        if (w->mix_head) {
            memset(to, 0, K * sizeof *to);
            for (int i = 0; i < rows; i++) {
                const float f = w->mix_head->p[(r - r0) * rows + i];
                const float *d = j->d_in + (size_t)(r0 + i) * K;
                for (size_t k = 0; k < K; k++) to[k] += f * d[k];
            }
        } else {
            const float f = w->mix_down ? w->mix_down->c[r] : 1.0f;
            for (size_t k = 0; k < K; k++) to[k] = f * j->d_in[(size_t)r * K + k];
        }
        divide_row(to, w->site->c, w->lin->K);
    }
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
    weight_job j = {w, d_hat};
    if (s->c) fl__parallel_for(ex, (l->K + COLUMNS - 1) / COLUMNS, scale_item, &j);
    if (w->mix_down) fl__parallel_for(ex, (l->N + ROWS - 1) / ROWS, mix_down_item, &j);
    if (w->mix_head) fl__parallel_for(ex, w->mix_head->n, head_grad_item, &j);
    if (l->dw) fl__parallel_for(ex, n_items(w), weight_grad_item, &j);
    return FL_OK;
}
