/* flatquant_train.c - the training loop: batches in fixed order, AdamW, guards.
 *
 * Loss: mean squared error of the block's output, its gradient divided by the loss itself (the
 * official code's normalisation). A loss or gradient that is no number puts the best
 * parameters back and halves the rate; after the second time bfloat16 gives way to float32.
 * The parameters with the lowest loss over an epoch are kept, over all attempts; before there
 * are any, those of the start.
 * SPDX-License-Identifier: MIT */
#include "quant/flatquant/flatquant.h"

#include "base/mem.h"
#include "quant/checkpoint.h"

#include <float.h>
#include <math.h>
#include <string.h>

enum { MAX_RESTARTS = 6, TILE = 16384 };

/* ---- loss -------------------------------------------------------------------------------- */

typedef struct loss_job {
    float *dy;
    const float *y, *target;
    double *sums; /* [tiles] */
    size_t n;
    float factor;
} loss_job;

static void difference_item(void *arg, int64_t item, int thread)
{
    const loss_job *j = arg;
    const size_t from = (size_t)item * TILE, to = FL_MIN(from + TILE, j->n);
    double sum = 0;
    (void)thread;
    for (size_t i = from; i < to; i += 16) {
        float part = 0;
        for (size_t k = i; k < FL_MIN(i + 16, to); k++) {
            j->dy[k] = j->y[k] - j->target[k];
            part += j->dy[k] * j->dy[k];
        }
        sum += (double)part;
    }
    j->sums[item] = sum;
}

static void scale_item(void *arg, int64_t item, int thread)
{
    const loss_job *j = arg;
    const size_t from = (size_t)item * TILE, to = FL_MIN(from + TILE, j->n);
    (void)thread;
    for (size_t i = from; i < to; i++) j->dy[i] *= j->factor;
}

/* dy = d (loss / loss itself) / d y; returns the loss. */
static double loss_and_gradient(loss_job *j, const fl_exec *ex)
{
    const int64_t tiles = (int64_t)((j->n + TILE - 1) / TILE);
    double sum = 0;
    fl__parallel_for(ex, tiles, difference_item, j);
    for (int64_t i = 0; i < tiles; i++) sum += j->sums[i];
    const double loss = sum / (double)j->n;
    j->factor = loss > 0 ? (float)(2 / ((double)j->n * loss)) : 0;
    fl__parallel_for(ex, tiles, scale_item, j);
    return loss;
}

/* ---- one attempt at a rate --------------------------------------------------------------- */

typedef struct trainer {
    fl_flatquant_result *r;
    fl_flatquant_params *p;
    const fl_flatquant_data *data;
    const fl_model *model;
    const fl_exec *ex;
    fl_flatquant_pass *pass;
    fl_adamw *adamw;
    float *dy;
    double *sums;
    double best; /* loss of the parameters to go back to */
} trainer;

static int n_batches(const trainer *t)
{
    return (t->data->n_windows + t->p->o.batch_windows - 1) / t->p->o.batch_windows;
}

static fl_status step(double *loss, trainer *t, int batch, fl_err *err)
{
    const int first = batch * t->p->o.batch_windows, T = t->data->seq_len;
    const int n = FL_MIN(t->p->o.batch_windows, t->data->n_windows - first);
    const size_t width = (size_t)t->model->cfg.hidden_size,
                 at = (size_t)first * (size_t)T * width;
    const float *y;
    fl_status st = fl__flatquant_pass_weights(t->pass, err);
    if (!st) st = fl__flatquant_pass_forward(&y, t->pass, t->data->x + at, n, err);
    if (st) return st;
    loss_job j = {.dy = t->dy, .y = y, .target = t->data->y + at, .sums = t->sums,
                  .n = (size_t)n * (size_t)T * width};
    *loss = loss_and_gradient(&j, t->ex);
    if ((st = fl__flatquant_pass_backward(t->pass, t->dy, n, err))) return st;
    if ((st = fl__adamw_step(t->adamw, *loss, err))) return st;
    return fl__flatquant_params_update(t->p, t->ex, err);
}

static fl_status epoch(trainer *t, int number, fl_err *err)
{
    const int n = n_batches(t);
    double sum = 0, loss = 0;
    for (int i = 0; i < n; i++) {
        if (t->data->should_stop && t->data->should_stop(t->data->user))
            return fl__checkpoint_interrupted(err);
        const fl_status st = step(&loss, t, i, err);
        if (st) return st;
        sum += loss;
    }
    t->r->epoch_loss[number] = sum / n;
    t->r->n_epochs = number + 1;
    if (fl__adamw_keep_best(t->adamw, sum / n)) t->best = sum / n;
    return FL_OK;
}

static fl_status prepare(trainer *t, const fl_block *block, double rate, fl_err *err)
{
    const fl_flatquant_options *o = &t->p->o;
    fl_adamw_group groups[FL_FLATQUANT_MAX_GROUPS];
    const int n = fl__flatquant_params_groups(t->p, groups);
    fl_adamw_options a = fl__adamw_defaults((int64_t)o->epochs * n_batches(t));
    a.rate = rate;
    a.rate_floor = o->min_lr;
    a.weight_decay = o->weight_decay;
    a.n_warmup = o->warmup_steps;
    fl_status st = fl__flatquant_pass_new(&t->pass, t->model, block, t->p, t->ex,
                                          FL_MIN(o->batch_windows, t->data->n_windows),
                                          t->data->seq_len, err);
    if (!st) st = fl__adamw_new(&t->adamw, groups, n, &a, err);
    if (!st) (void)fl__adamw_keep_best(t->adamw, t->best); /* until an epoch is better */
    return st;
}

static void put_best_back(trainer *t)
{
    fl_err ignored;
    fl__adamw_restore_best(t->adamw);
    (void)fl__flatquant_params_update(t->p, t->ex, &ignored);
}

/* What a bias behind the block's last layer could take off its error. */
static fl_status measure_mean_error(trainer *t, fl_err *err)
{
    const size_t width = (size_t)t->model->cfg.hidden_size;
    const size_t T = (size_t)t->data->seq_len, step = (size_t)t->p->o.batch_windows;
    const size_t n_windows = (size_t)t->data->n_windows;
    double *mean = fl__calloc(width, sizeof *mean);
    fl_status st = mean ? fl__flatquant_pass_weights(t->pass, err)
                        : fl__fail_nomem(err, "mean error", width * sizeof *mean);
    for (size_t first = 0; first < n_windows && !st; first += step) {
        const size_t n = FL_MIN(step, n_windows - first), at = first * T * width;
        const float *y;
        st = fl__flatquant_pass_forward(&y, t->pass, t->data->x + at, (int)n, err);
        for (size_t i = 0; i < n * T * width && !st; i++)
            mean[i % width] += (double)y[i] - (double)t->data->y[at + i];
    }
    for (size_t i = 0; i < width && !st; i++) mean[i] /= (double)(n_windows * T);
    if (st)
        fl__free(&mean);
    else
        t->r->mean_error = mean;
    return st;
}

static fl_status attempt(trainer *t, const fl_block *block, double rate, fl_err *err)
{
    fl_status st = prepare(t, block, rate, err);
    for (int e = 0; e < t->p->o.epochs && !st; e++) st = epoch(t, e, err);
    if (t->adamw) put_best_back(t);
    if (!st && t->p->o.centre) st = measure_mean_error(t, err);
    fl__flatquant_pass_free(&t->pass);
    fl__adamw_free(&t->adamw);
    return st;
}

/* ---- training ---------------------------------------------------------------------------- */

static void summarize(fl_flatquant_result *r, double best)
{
    r->first_loss = r->n_epochs ? r->epoch_loss[0] : NAN;
    r->last_loss = r->n_epochs ? r->epoch_loss[r->n_epochs - 1] : NAN;
    r->best_loss = r->n_epochs ? best : NAN;
}

fl_status fl__flatquant_train(fl_flatquant_result *result, fl_flatquant_params *params,
                              const fl_model *model, const fl_block *block,
                              const fl_flatquant_data *data, const fl_exec *ex, fl_err *err)
{
    trainer t = {.r = result, .p = params, .data = data, .model = model, .ex = ex,
                 .best = DBL_MAX};
    const size_t n = (size_t)FL_MIN(params->o.batch_windows, data->n_windows) *
                     (size_t)data->seq_len * (size_t)model->cfg.hidden_size;
    double rate = params->o.lr;
    fl_status st = FL_OK;

    *result = (fl_flatquant_result){.bf16 = params->o.bf16};
    result->epoch_loss = fl__calloc((size_t)params->o.epochs, sizeof(double));
    t.dy = fl__alloc(n, sizeof(float));
    t.sums = fl__alloc((n + TILE - 1) / TILE, sizeof(double));
    if (!result->epoch_loss || !t.dy || !t.sums)
        st = fl__fail_nomem(err, "training", n * sizeof(float));
    while (!st) {
        st = attempt(&t, block, rate, err);
        if (st != FL_E_FAIL || result->n_restarts == MAX_RESTARTS) break;
        st = FL_OK;
        result->n_restarts++;
        rate /= 2;
        if (result->n_restarts == 2) params->o.bf16 = result->bf16 = false;
        fl__log(data->log, FL_LOG_WARN,
                "layer %d: training met a number that is none; again from the best state with "
                "rate %g in %s",
                data->layer, rate, params->o.bf16 ? "bfloat16" : "float32");
    }
    summarize(result, t.best);
    fl__free(&t.dy);
    fl__free(&t.sums);
    if (st) fl__flatquant_result_fini(result);
    return st;
}

void fl__flatquant_result_fini(fl_flatquant_result *r)
{
    fl__free(&r->epoch_loss);
    fl__free(&r->mean_error);
}
