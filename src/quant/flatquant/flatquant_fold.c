/* flatquant_fold.c - a trained block as a float32 block whose sites carry what runs online.
 *
 * All products are taken in double, from the learned float32 values. A factor that runs online
 * does so in bfloat16, so it is rounded first and the weight gets the inverse of the rounded
 * one: what rounding changes in P is undone exactly on the other side. P_v and the scales are
 * folded on both sides and stay as learned.
 * SPDX-License-Identifier: MIT */
#include "quant/flatquant/flatquant.h"

#include "base/float16.h"
#include "base/mem.h"
#include "quant/block.h"

#include <lapacke.h>
#include <string.h>

/* A factor as it will run, and its inverse transposed. n 0: identity. */
typedef struct exact {
    int n;
    double *p, *q; /* [n, n] owned */
} exact;

typedef struct folder {
    const fl_flatquant_params *params;
    const fl_model *model;
    const fl_exec *ex;
    fl_block *block;
    exact left[FL_N_SITES], right[FL_N_SITES], head;
    bool clip_weights;
} folder;

/* ---- factors ----------------------------------------------------------------------------- */

typedef struct invert_job {
    double *a;
    int n;
    lapack_int *pivot;
    lapack_int info;
} invert_job;

static void invert_item(void *arg, int64_t item, int thread)
{
    invert_job *j = arg;
    (void)item;
    (void)thread;
    j->info = LAPACKE_dgetrf(LAPACK_ROW_MAJOR, j->n, j->n, j->a, j->n, j->pivot);
    if (!j->info) j->info = LAPACKE_dgetri(LAPACK_ROW_MAJOR, j->n, j->a, j->n, j->pivot);
}

static fl_status exact_init(exact *e, const fl_factor *f, bool online, const fl_exec *ex,
                            fl_err *err)
{
    const size_t n = (size_t)f->n;
    fl_status st = FL_OK;
    if (!n) return FL_OK;
    double *inverse = fl__alloc(n * n, sizeof *inverse);
    lapack_int *pivot = fl__alloc(n, sizeof *pivot);
    e->p = fl__alloc(n * n, sizeof(double));
    e->q = fl__alloc(n * n, sizeof(double));
    if (!inverse || !pivot || !e->p || !e->q) {
        st = fl__fail_nomem(err, "transform", n * n * 3 * sizeof(double));
        goto out;
    }
    e->n = f->n;
    for (size_t i = 0; i < n * n; i++)
        e->p[i] = inverse[i] =
            (double)(online ? fl__bf16_to_f32(fl__f32_to_bf16(f->p[i])) : f->p[i]);
    invert_job j = {inverse, f->n, pivot, 0};
    fl__parallel_for(ex, 1, invert_item, &j);
    if (j.info) st = fl__fail(err, FL_E_FAIL, "flatquant: a transform became singular");
    for (size_t i = 0; i < n && !st; i++)
        for (size_t k = 0; k < n; k++) e->q[i * n + k] = inverse[k * n + i];
out:
    fl__free(&inverse);
    fl__free(&pivot);
    return st;
}

static void exact_fini(exact *e)
{
    fl__free(&e->p);
    fl__free(&e->q);
}

/* ---- weights ----------------------------------------------------------------------------- */

typedef struct fold_job {
    const folder *f;
    const fl_flatquant_linear *from;
    fl_linear *to;
    int site, which;
    double *scratch; /* [threads, 2 K]; of clips first [threads, (n + 2) K] */
} fold_job;

/* Clipped row after row, then mixed within heads. */
static bool clips_first(const fold_job *j)
{
    const fl_flatquant_params *p = j->f->params;
    return p->o.clip_v_first && j->which == FL_LIN_V && j->f->right[FL_SITE_O].n &&
           j->from->clip.n && j->f->clip_weights;
}

/* Row r of mix(W) / c; heads that are mixed later are not. */
static void mixed_row(double *row, const fold_job *j, int r)
{
    const fl_flatquant_params *p = j->f->params;
    const size_t K = (size_t)j->from->K;
    const exact *head =
        j->which == FL_LIN_V && !clips_first(j) ? &j->f->right[FL_SITE_O] : NULL;
    const float *down = j->which == FL_LIN_UP ? p->site[FL_SITE_DOWN].c : NULL;
    const float *c = p->site[j->site].c;
    if (head && head->n) {
        const int n = head->n, first = r / n * n;
        memset(row, 0, K * sizeof *row);
        for (int i = 0; i < n; i++) {
            const float *w = j->from->w + (size_t)(first + i) * K;
            const double f = head->p[i * n + r - first];
            for (size_t k = 0; k < K; k++) row[k] += f * (double)w[k];
        }
    } else {
        for (size_t k = 0; k < K; k++)
            row[k] = (double)j->from->w[(size_t)r * K + k] * (down ? (double)down[r] : 1);
    }
    for (size_t k = 0; c && k < K; k++) row[k] /= (double)c[k];
}

/* row (n1 x n2) = Q1^T row Q2. */
static void inverse_kron(double *row, double *tmp, const exact *left, const exact *right,
                         int n1, int n2)
{
    if (right->n)
        for (int i = 0; i < n1; i++) {
            memset(tmp + (size_t)i * (size_t)n2, 0, (size_t)n2 * sizeof *tmp);
            for (int k = 0; k < n2; k++)
                for (int j = 0; j < n2; j++)
                    tmp[i * n2 + j] += row[i * n2 + k] * right->q[k * n2 + j];
        }
    else
        memcpy(tmp, row, (size_t)n1 * (size_t)n2 * sizeof *tmp);
    if (!left->n) {
        memcpy(row, tmp, (size_t)n1 * (size_t)n2 * sizeof *tmp);
        return;
    }
    memset(row, 0, (size_t)n1 * (size_t)n2 * sizeof *row);
    for (int k = 0; k < n1; k++)
        for (int i = 0; i < n1; i++)
            for (int j = 0; j < n2; j++)
                row[i * n2 + j] += left->q[k * n1 + i] * tmp[k * n2 + j];
}

static void clip_row(double *row, const fl_flatquant_clip *clip, int r, size_t K)
{
    double hi = 0, lo = 0;
    for (size_t k = 0; k < K; k++) {
        hi = row[k] > hi ? row[k] : hi;
        lo = row[k] < lo ? row[k] : lo;
    }
    hi *= (double)clip->value[r];
    lo *= (double)clip->value[clip->n + r];
    for (size_t k = 0; k < K; k++) row[k] = row[k] > hi ? hi : row[k] < lo ? lo : row[k];
}

static void store_row(float *to, const double *row, const fl_flatquant_clip *clip, int r,
                      size_t K)
{
    float hi = 0, lo = 0;
    for (size_t k = 0; k < K; k++) {
        to[k] = (float)row[k];
        hi = to[k] > hi ? to[k] : hi;
        lo = to[k] < lo ? to[k] : lo;
    }
    if (!clip) return;
    hi *= clip->value[r];
    lo *= clip->value[clip->n + r];
    for (size_t k = 0; k < K; k++) to[k] = to[k] > hi ? hi : to[k] < lo ? lo : to[k];
}

static void fold_row(void *arg, int64_t item, int thread)
{
    const fold_job *j = arg;
    const size_t K = (size_t)j->from->K;
    const int r = (int)item;
    const fl_flatquant_site *s = &j->f->params->site[j->site];
    double *row = j->scratch + (size_t)thread * 2 * K;
    mixed_row(row, j, r);
    inverse_kron(row, row + K, &j->f->left[j->site], &j->f->right[j->site], s->n_left,
                 s->n_right);
    store_row(j->to->own_w + (size_t)r * K, row,
              j->f->clip_weights && j->from->clip.n ? &j->from->clip : NULL, r, K);
}

/* The rows of a head, each clipped, then mixed by P_v. */
static void fold_head(void *arg, int64_t item, int thread)
{
    const fold_job *j = arg;
    const size_t K = (size_t)j->from->K;
    const exact *head = &j->f->right[FL_SITE_O];
    const fl_flatquant_site *s = &j->f->params->site[j->site];
    const size_t n = (size_t)head->n, first = (size_t)item * n;
    double *rows = j->scratch + (size_t)thread * (n + 2) * K, *sum = rows + n * K;
    for (size_t i = 0; i < n; i++) {
        double *row = rows + i * K;
        mixed_row(row, j, (int)(first + i));
        inverse_kron(row, sum, &j->f->left[j->site], &j->f->right[j->site], s->n_left,
                     s->n_right);
        clip_row(row, &j->from->clip, (int)(first + i), K);
    }
    for (size_t r = 0; r < n; r++) {
        memset(sum, 0, K * sizeof *sum);
        for (size_t i = 0; i < n; i++)
            for (size_t k = 0; k < K; k++) sum[k] += head->p[i * n + r] * rows[i * K + k];
        store_row(j->to->own_w + (first + r) * K, sum, NULL, 0, K);
    }
}

static void fold_bias(const fold_job *j)
{
    const exact *head = j->which == FL_LIN_V ? &j->f->right[FL_SITE_O] : NULL;
    const float *down = j->which == FL_LIN_UP ? j->f->params->site[FL_SITE_DOWN].c : NULL;
    const float *from = j->from->bias;
    float *to = j->to->bias;
    if (to && !from) memset(to, 0, (size_t)j->from->N * sizeof *to); /* a dropped one */
    for (int r = 0; from && r < j->from->N; r++) {
        double b = (double)from[r] * (down ? (double)down[r] : 1);
        if (head && head->n) {
            const int n = head->n, first = r / n * n;
            b = 0;
            for (int i = 0; i < n; i++)
                b += head->p[i * n + r - first] * (double)from[first + i];
        }
        to[r] = (float)b;
    }
}

static fl_status fold_linear(const folder *f, int site, int which, fl_err *err)
{
    fold_job j = {.f = f, .from = &f->params->linear[which], .to = &f->block->linear[which],
                  .site = site, .which = which};
    const bool by_head = clips_first(&j);
    const int n = f->right[FL_SITE_O].n, rows = by_head ? n + 2 : 2;
    j.scratch = fl__alloc((size_t)f->ex->n_threads * (size_t)rows * (size_t)j.from->K,
                          sizeof(double));
    if (!j.scratch) return fl__fail_nomem(err, "fold", (size_t)j.from->K * 16);
    fl__parallel_for(f->ex, by_head ? j.from->N / n : j.from->N, by_head ? fold_head : fold_row,
                     &j);
    fold_bias(&j);
    fl__free(&j.scratch);
    return FL_OK;
}

/* ---- norms, sites, heads ----------------------------------------------------------------- */

/* The scale of a site behind a norm: into the norm, or kept at the site where the norm's output
 * is also the residual. */
static fl_status fold_scale(const folder *f, int which, fl_err *err)
{
    const int site = which ? FL_SITE_UP : FL_SITE_QKV;
    const size_t bytes = (size_t)f->model->cfg.hidden_size * sizeof(float);
    const float *c = f->params->site[site].c;
    fl_norm *norm = &f->block->norm[which];
    if (norm->bias) memcpy(norm->bias, f->params->norm_bias[which], bytes);
    if (c && !f->model->cfg.pre_norm) {
        float *premul = fl__alloc(bytes, 1);
        if (!premul) return fl__fail_nomem(err, "input multiplier", bytes);
        memcpy(premul, c, bytes);
        f->block->site[site].premul = premul;
        return FL_OK;
    }
    for (int i = 0; c && i < f->model->cfg.hidden_size; i++) {
        norm->gain[i] = (float)((double)norm->gain[i] * (double)c[i]);
        if (norm->bias) norm->bias[i] = (float)((double)norm->bias[i] * (double)c[i]);
    }
    return FL_OK;
}

static fl_status narrow(float **out, const double *p, int n, fl_err *err)
{
    const size_t count = (size_t)n * (size_t)n;
    *out = NULL;
    if (!n) return FL_OK;
    *out = fl__alloc(count, sizeof(float));
    if (!*out) return fl__fail_nomem(err, "transform", count * sizeof(float));
    for (size_t i = 0; i < count; i++) (*out)[i] = (float)p[i];
    return FL_OK;
}

/* The online part of a site: both factors, but for P_v, which is in v_proj. */
static fl_status fold_site(const folder *f, int which, fl_err *err)
{
    const fl_flatquant_site *from = &f->params->site[which];
    const fl_flatquant_options *o = &f->params->o;
    fl_site *to = &f->block->site[which];
    float *left, *right = NULL;
    fl_status st = narrow(&left, f->left[which].p, f->left[which].n, err);
    if (!st && which != FL_SITE_O)
        st = narrow(&right, f->right[which].p, f->right[which].n, err);
    if (!st && (left || right))
        st = fl__transform_init(&to->transform, from->n_left, from->n_right, left, right, err);
    to->asymmetric = o->asymmetric && o->a_bits < 16; /* the plan has the last word */
    to->own_clips = from->clip.n > 1;
    for (int i = 0; i < to->n_linears; i++) {
        const int pair = to->own_clips ? i : 0;
        to->clip_max[i] = from->clip.n ? from->clip.value[pair] : 1.0f;
        to->clip_min[i] = from->clip.n ? from->clip.value[from->clip.n + pair] : 1.0f;
    }
    fl__free(&left);
    fl__free(&right);
    return st;
}

static fl_status fold_heads(const folder *f, fl_err *err)
{
    const fl_flatquant_params *p = f->params;
    const int n = f->head.n;
    float *key, *query = NULL;
    fl_status st = narrow(&key, f->head.p, n, err);
    if (!st) st = narrow(&query, f->head.q, n, err);
    fl_transform *to_k = &f->block->head_transform_k, *to_q = &f->block->head_transform_q;
    if (!st && n) st = fl__transform_init(to_k, p->n_kv_heads, n, NULL, key, err);
    if (!st && n) st = fl__transform_init(to_q, p->n_heads, n, NULL, query, err);
    for (int i = 0; i < 2; i++) {
        f->block->kv_clip[i] = p->k_clip.n ? p->k_clip.value[i] : 1.0f;
        f->block->kv_clip[2 + i] = p->v_clip.n ? p->v_clip.value[i] : 1.0f;
    }
    fl__free(&key);
    fl__free(&query);
    return st;
}

static fl_status make_factors(folder *f, fl_err *err)
{
    fl_status st = exact_init(&f->head, &f->params->head, true, f->ex, err);
    for (int i = 0; i < FL_N_SITES && !st; i++) {
        st = exact_init(&f->left[i], &f->params->site[i].left, true, f->ex, err);
        if (!st)
            st =
                exact_init(&f->right[i], &f->params->site[i].right, i != FL_SITE_O, f->ex, err);
    }
    return st;
}

fl_status fl__flatquant_fold(fl_block *folded, const fl_flatquant_params *params,
                             const fl_model *model, int layer, bool clip_weights,
                             const fl_exec *ex, fl_err *err)
{
    folder f = {.params = params, .model = model, .ex = ex, .block = folded,
                .clip_weights = clip_weights};
    fl_status st = fl__block_fold(folded, model, layer, NULL, err);
    if (st) return st;
    st = make_factors(&f, err);
    for (int s = 0; s < FL_N_SITES && !st; s++) {
        int linears[FL_SITE_MAX_LINEARS];
        const int n = fl__site_linears(linears, &model->cfg, s);
        for (int i = 0; i < n && !st; i++) st = fold_linear(&f, s, linears[i], err);
        if (!st) st = fold_site(&f, s, err);
    }
    if (!st) st = fold_heads(&f, err);
    for (int i = 0; i < 2 && !st; i++) st = fold_scale(&f, i, err);
    for (int s = 0; s < FL_N_SITES; s++) {
        exact_fini(&f.left[s]);
        exact_fini(&f.right[s]);
    }
    exact_fini(&f.head);
    if (st) fl__block_fini(folded);
    return st;
}

void fl__flatquant_correct_mean(fl_block *folded, const fl_flatquant_result *result)
{
    const fl_linear *down = &folded->linear[FL_LIN_DOWN];
    for (int n = 0; result->mean_error && down->bias && n < down->n_out; n++)
        down->bias[n] = (float)((double)down->bias[n] - result->mean_error[n]);
}
