/* tune.c - batches in fixed order through all blocks and back. SPDX-License-Identifier: MIT */
#include "quant/tune/tune.h"

#include "base/mem.h"
#include "quant/checkpoint.h"
#include "quant/tune/tune_head.h"
#include "train/adamw.h"
#include "train/train_norm.h"

#include <string.h>

enum { MAX_RESTARTS = 4 };

typedef struct tuner {
    fl_tune_result *r;
    const fl_model *model;
    const fl_block *blocks;
    const fl_tune_data *data;
    const fl_tune_options *o;
    const fl_exec *ex;
    fl_tune_pass *pass;
    fl_tune_head *head;
    fl_adamw *adamw;
    int batch, D, L;
    float *x;                 /* [(L + 1), rows, D]: inputs of the blocks of this batch */
    float *d, *hidden, *goal; /* [rows, D] gradient, hidden states of both models */
    float *gain, *d_final; /* [D] */
    float *mean, *inv;        /* [rows] of the final norm */
    fl_tune_state state;      /* its arrays: [state.n] owned, one behind the other */
    bool resumes;             /* the next attempt goes on from data->resume */
} tuner;

static size_t batch_floats(const tuner *t)
{
    return (size_t)t->batch * (size_t)t->data->seq_len * (size_t)t->D;
}

/* ---- the final norm ---------------------------------------------------------------------- */

static void final_norm(tuner *t, float *y, const float *x, const float *gain, int R)
{
    const fl_norm *norm = &t->model->final_norm;
    const double eps = t->model->cfg.norm_eps;
    if (norm->bias)
        fl__layer_norm_rows(t->ex, y, t->mean, t->inv, x, gain, norm->bias, R, t->D, eps);
    else
        fl__rms_norm_rows(t->ex, y, t->inv, x, gain, R, t->D, eps);
}

static void final_norm_grad(tuner *t, float *dx, const float *dy, const float *x, int R)
{
    const fl_norm *norm = &t->model->final_norm;
    if (norm->bias)
        fl__layer_norm_grad(t->ex, dx, t->d_final, NULL, dy, x, t->gain, t->mean, t->inv, R,
                            t->D);
    else
        fl__rms_norm_grad(t->ex, dx, t->d_final, dy, x, t->gain, t->inv, R, t->D);
    for (int c = 0; c < t->D; c++) t->d_final[c] *= norm->gain[c];
}

/* ---- one batch --------------------------------------------------------------------------- */

static fl_status step(double *kl, tuner *t, int first, fl_err *err)
{
    const int n = FL_MIN(t->batch, t->data->n_windows - first), R = n * t->data->seq_len;
    const size_t at = (size_t)first * (size_t)t->data->seq_len * (size_t)t->D,
                 stride = batch_floats(t);
    fl_status st = FL_OK;
    memcpy(t->x, t->data->x + at, (size_t)R * (size_t)t->D * sizeof(float));
    for (int l = 0; l < t->L && !st; l++) {
        float *x = t->x + (size_t)l * stride;
        fl__tune_pass_load(t->pass, &t->blocks[l], &t->r->factors[l]);
        st = fl__tune_pass_forward(t->pass, x + stride, x, n, err);
    }
    if (st) return st;
    const float *last = t->x + (size_t)t->L * stride;
    final_norm(t, t->goal, t->data->teacher + at, t->model->final_norm.gain, R);
    for (int c = 0; c < t->D; c++)
        t->gain[c] = t->model->final_norm.gain[c] * t->r->final_norm[c];
    final_norm(t, t->hidden, last, t->gain, R);
    if ((st = fl__tune_head_loss(kl, t->head, t->hidden, t->hidden, t->goal, R, err)))
        return st;
    final_norm_grad(t, t->d, t->hidden, last, R);
    for (int l = t->L - 1; l >= 0 && !st; l--) {
        float *x = t->x + (size_t)l * stride;
        if (l < t->L - 1) { /* what the pass held is gone: the last block's is there */
            fl__tune_pass_load(t->pass, &t->blocks[l], &t->r->factors[l]);
            st = fl__tune_pass_forward(t->pass, x + stride, x, n, err);
        }
        if (!st) st = fl__tune_pass_backward(t->pass, t->d, x, n, err);
    }
    return st ? st : fl__adamw_step(t->adamw, *kl, err);
}

/* ---- epochs ------------------------------------------------------------------------------ */

static fl_status tell(tuner *t, fl_err *err)
{
    fl__adamw_get(t->adamw, &t->state.adamw);
    t->state.n_epochs = t->r->n_epochs;
    t->state.n_restarts = t->r->n_restarts;
    t->state.kl = t->r->kl;
    return t->data->on_epoch(t->data->epoch_user, &t->state, err);
}

static fl_status epoch(tuner *t, int number, fl_err *err)
{
    double sum = 0, kl = 0;
    int n = 0;
    for (int i = 0; i < t->data->n_windows; i += t->batch, n++) {
        if (t->data->should_stop && t->data->should_stop(t->data->user))
            return fl__checkpoint_interrupted(err);
        const fl_status st = step(&kl, t, i, err);
        if (st) return st;
        sum += kl;
    }
    t->r->kl[number] = sum / n;
    t->r->n_epochs = number + 1;
    (void)fl__adamw_keep_best(t->adamw, sum / n);
    return t->data->on_epoch ? tell(t, err) : FL_OK;
}

static fl_status make_optimiser(tuner *t, double rate, fl_err *err)
{
    const int n = t->L + 1, steps = (t->data->n_windows + t->batch - 1) / t->batch;
    fl_adamw_options a = fl__adamw_defaults((int64_t)t->o->epochs * steps);
    fl_adamw_group *groups = fl__alloc((size_t)n, sizeof *groups);
    if (!groups) return fl__fail_nomem(err, "tuning", (size_t)n * sizeof *groups);
    for (int l = 0; l < t->L; l++)
        groups[l] = (fl_adamw_group){"a block's factors", t->r->factors[l].p,
                                     t->r->factors[l].g, t->r->factors[l].n, 1};
    groups[t->L] = (fl_adamw_group){"the final norm", t->r->final_norm, t->d_final,
                                    (size_t)t->D, 1};
    a.rate = rate;
    a.rate_floor = 0;
    a.weight_decay = 0;
    const fl_status st = fl__adamw_new(&t->adamw, groups, n, &a, err);
    fl__free(&groups);
    return st;
}

static void start(tuner *t)
{
    for (int l = 0; l < t->L; l++)
        for (size_t i = 0; i < t->r->factors[l].n; i++) t->r->factors[l].p[i] = 1;
    for (int c = 0; c < t->D; c++) t->r->final_norm[c] = 1;
}

/* All epochs at one rate. */
static fl_status attempt(tuner *t, double rate, fl_err *err)
{
    start(t);
    fl_status st = make_optimiser(t, rate, err);
    int first = 0;
    t->state.rate = rate;
    if (!st && t->resumes) {
        fl__adamw_set(t->adamw, &t->data->resume->adamw);
        first = t->r->n_epochs;
    }
    t->resumes = false;
    for (int e = first; e < t->o->epochs && !st; e++) st = epoch(t, e, err);
    if (!st) fl__adamw_restore_best(t->adamw);
    fl__adamw_free(&t->adamw);
    return st;
}

/* ---- the whole --------------------------------------------------------------------------- */

static fl_status make_state(tuner *t, fl_err *err)
{
    const fl_tune_state *from = t->data->resume;
    size_t n = (size_t)t->D;
    for (int l = 0; l < t->L; l++) n += t->r->factors[l].n;
    float *all = fl__alloc(4 * n, sizeof *all);
    if (!all) return fl__fail_nomem(err, "tuning", 4 * n * sizeof *all);
    t->state.n = n;
    t->state.adamw = (fl_adamw_state){.p = all, .m = all + n, .v = all + 2 * n,
                                      .best = all + 3 * n};
    if (!from) return FL_OK;
    if (from->n != n || from->n_epochs > t->o->epochs)
        return fl__fail(
            err, FL_E_INPUT,
            "resume: tuning: %zu parameters and %d epochs instead of %zu and at most "
            "%d; remove the directory and start again",
            from->n, from->n_epochs, n, t->o->epochs);
    t->r->n_epochs = from->n_epochs;
    t->r->n_restarts = from->n_restarts;
    memcpy(t->r->kl, from->kl, (size_t)from->n_epochs * sizeof(double));
    t->resumes = true;
    return FL_OK;
}

static fl_status prepare(tuner *t, fl_err *err)
{
    const size_t D = (size_t)t->D, R = (size_t)t->batch * (size_t)t->data->seq_len;
    fl_status st = FL_OK;
    t->r->factors = fl__calloc((size_t)t->L, sizeof *t->r->factors);
    t->r->final_norm = fl__alloc(D, sizeof(float));
    t->r->kl = fl__calloc((size_t)t->o->epochs, sizeof(double));
    t->x = fl__alloc(((size_t)t->L + 1) * R * D, sizeof(float));
    t->d = fl__alloc(R * D, sizeof(float));
    t->hidden = fl__alloc(R * D, sizeof(float));
    t->goal = fl__alloc(R * D, sizeof(float));
    t->gain = fl__alloc(D, sizeof(float));
    t->d_final = fl__calloc(D, sizeof(float));
    t->mean = fl__alloc(R, sizeof(float));
    t->inv = fl__alloc(R, sizeof(float));
    if (!t->r->factors || !t->r->final_norm || !t->r->kl || !t->x || !t->d || !t->hidden ||
        !t->goal || !t->gain || !t->d_final || !t->mean || !t->inv)
        return fl__fail_nomem(err, "tuning", ((size_t)t->L + 4) * R * D * sizeof(float));
    for (int l = 0; l < t->L && !st; l++)
        st = fl__tune_factors_init(&t->r->factors[l], t->model, &t->blocks[l], err);
    if (!st) st = make_state(t, err);
    if (!st) st = fl__tune_pass_new(&t->pass, t->model, t->ex, t->batch, t->data->seq_len,
                                    t->o->bf16, err);
    if (!st) st = fl__tune_head_new(&t->head, t->model, t->ex, (int)R, t->o->bf16, err);
    return st;
}

static void release(tuner *t)
{
    fl__tune_pass_free(&t->pass);
    fl__tune_head_free(&t->head);
    fl__free(&t->x);
    fl__free(&t->d);
    fl__free(&t->hidden);
    fl__free(&t->goal);
    fl__free(&t->gain);
    fl__free(&t->d_final);
    fl__free(&t->mean);
    fl__free(&t->inv);
    fl__free(&t->state.adamw.p); /* and what lies behind it */
}

fl_status fl__tune(fl_tune_result *result, const fl_model *model, const fl_block *blocks,
                   const fl_tune_data *data, const fl_tune_options *o, const fl_exec *ex,
                   fl_err *err)
{
    tuner t = {.r = result, .model = model, .blocks = blocks, .data = data, .o = o, .ex = ex,
               .batch = FL_MIN(o->batch_windows, data->n_windows),
               .D = model->cfg.hidden_size, .L = model->cfg.n_layers};
    double rate = data->resume ? data->resume->rate : o->lr;
    *result = (fl_tune_result){0};
    fl_status st = prepare(&t, err);
    while (!st) {
        st = attempt(&t, rate, err);
        if (st != FL_E_FAIL || result->n_restarts == MAX_RESTARTS) break;
        st = FL_OK;
        result->n_restarts++;
        rate /= 4;
        fl__log(data->log, FL_LOG_WARN,
                "tuning met a number that is none; again from the start with rate %g", rate);
    }
    release(&t);
    if (st) fl__tune_result_fini(result, t.L);
    return st;
}

void fl__tune_result_fini(fl_tune_result *r, int n_layers)
{
    for (int l = 0; r->factors && l < n_layers; l++) fl__tune_factors_fini(&r->factors[l]);
    fl__free(&r->factors);
    fl__free(&r->final_norm);
    fl__free(&r->kl);
}

size_t fl__tune_bytes(const fl_model *model, int n_windows, int seq_len)
{
    const size_t R = (size_t)n_windows * (size_t)seq_len;
    const size_t rows = ((size_t)model->cfg.n_layers + 4) * R * (size_t)model->cfg.hidden_size;
    return rows * sizeof(float) + fl__tune_pass_bytes(model, (int)R) +
           fl__tune_head_bytes(model, (int)R);
}
