/* job_learn.c - FlatQuant inside a run: a block's transforms, learned on the lanes and folded.
 *
 * The float lane gives what the block should put out; the quantised lane (or, where asked, the
 * float lane) what it will be fed. Every site is treated alike; where activations have one
 * fixed scale, it is chosen when the block is folded.
 * SPDX-License-Identifier: MIT */
#include "quant/job.h"

#include "base/mem.h"

#include <math.h>

typedef struct extremes {
    float *x_max[FL_N_SITES]; /* [n_in] owned */
    int n_in[FL_N_SITES];
} extremes;

static fl_status extremes_init(extremes *e, const fl_block *block, fl_err *err)
{
    for (int s = 0; s < FL_N_SITES; s++) {
        e->n_in[s] = block->site[s].n_in;
        e->x_max[s] = fl__calloc((size_t)e->n_in[s], sizeof(float));
        if (!e->x_max[s]) return fl__fail_nomem(err, "channel maxima", (size_t)e->n_in[s] * 4);
    }
    return FL_OK;
}

static void extremes_fini(extremes *e)
{
    for (int s = 0; s < FL_N_SITES; s++) fl__free(&e->x_max[s]);
}

static bool see(void *user, int site, const float *x, int n_rows)
{
    const extremes *e = user;
    const size_t n = (size_t)e->n_in[site];
    float *most = e->x_max[site];
    for (int r = 0; r < n_rows; r++, x += n)
        for (size_t i = 0; i < n; i++) most[i] = fabsf(x[i]) > most[i] ? fabsf(x[i]) : most[i];
    return true;
}

static json_t *training_report(const fl_flatquant_result *r)
{
    json_t *losses = json_array();
    for (int i = 0; i < r->n_epochs; i++)
        (void)json_array_append_new(losses, json_real(r->epoch_loss[i]));
    return json_pack("{s:o,s:i,s:s}", "epoch_loss", losses, "restarts", r->n_restarts, "gemm",
                     r->bf16 ? "bf16" : "float32");
}

static fl_status train(json_t **report, fl_flatquant_params *params, const fl_block *block,
                       fl_quant_job *job, int layer, fl_err *err)
{
    const fl_stream *s = job->stream;
    const fl_flatquant_data data = {.x = job->c.flatquant.quantized_inputs ? s->x_quant
                                                                           : s->x_float,
                                    .y = s->target,
                                    .n_windows = s->calib->n_windows,
                                    .seq_len = s->calib->seq_len,
                                    .should_stop = job->o->should_stop,
                                    .user = job->o->user,
                                    .log = &job->o->log,
                                    .layer = layer};
    fl_flatquant_result r;
    if (!job->c.flatquant.epochs) return FL_OK;
    const fl_status st =
        fl__flatquant_train(&r, params, job->model, block, &data, job->ex, err);
    if (st) return st;
    *report = training_report(&r);
    fl__flatquant_result_fini(&r);
    return FL_OK;
}

fl_status fl__quant_learn_block(fl_block *folded, fl_block *plain, json_t **report,
                                fl_quant_job *job, int layer, fl_err *err)
{
    extremes e = {0};
    fl_flatquant_params params = {0};
    fl_status st = fl__block_fold(plain, job->model, layer, NULL, err);
    *report = NULL;
    if (st) return st;
    if ((st = extremes_init(&e, plain, err)) ||
        (st = fl__stream_target(job->stream, plain, see, &e, err)) ||
        (st = fl__flatquant_params_init(&params, job->model, plain, layer, e.x_max,
                                        &job->c.flatquant, job->ex, err)) ||
        (st = train(report, &params, plain, job, layer, err)))
        goto out;
    st = fl__flatquant_fold(folded, &params, job->model, layer, true, job->ex, err);
out:
    fl__flatquant_params_fini(&params);
    extremes_fini(&e);
    if (!st && job->c.act == FL_ACT_STATIC) {
        st = fl__quant_plan_learned(job, layer, folded, err);
        if (st) fl__block_fini(folded);
    }
    if (st) {
        fl__block_fini(plain);
        json_decref(*report);
        *report = NULL;
    }
    return st;
}
