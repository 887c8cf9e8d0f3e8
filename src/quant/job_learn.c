/* job_learn.c - FlatQuant inside a run: a block's transforms, learned on the lanes and folded.
 *
 * The float lane gives what the block should put out; the quantised lane (or, where asked, the
 * float lane) what it will be fed. Every site is treated alike; where activations have one
 * fixed scale, it is chosen when the block is folded.
 * SPDX-License-Identifier: MIT */
#include "quant/job.h"

#include "base/mem.h"

#include <math.h>

/* Of the channels of every site's input. */
typedef struct extremes {
    float *lowest[FL_N_SITES], *x_max[FL_N_SITES]; /* [n_in] owned; x_max: the highest, in the
                                                      end the largest magnitude */
    double *mean[FL_N_SITES];                      /* [n_in] owned; sums, in the end means */
    int n_in[FL_N_SITES];
    int64_t n_rows[FL_N_SITES];
} extremes;

static fl_status extremes_init(extremes *e, const fl_block *block, fl_err *err)
{
    for (int s = 0; s < FL_N_SITES; s++) {
        const size_t n = (size_t)block->site[s].n_in;
        e->n_in[s] = block->site[s].n_in;
        e->lowest[s] = fl__calloc(n, sizeof(float));
        e->x_max[s] = fl__calloc(n, sizeof(float));
        e->mean[s] = fl__calloc(n, sizeof(double));
        if (!e->lowest[s] || !e->x_max[s] || !e->mean[s])
            return fl__fail_nomem(err, "channel extremes", n * 16);
    }
    return FL_OK;
}

static void extremes_fini(extremes *e)
{
    for (int s = 0; s < FL_N_SITES; s++) {
        fl__free(&e->lowest[s]);
        fl__free(&e->x_max[s]);
        fl__free(&e->mean[s]);
    }
}

static bool see(void *user, int site, const float *x, int n_rows)
{
    extremes *e = user;
    const size_t n = (size_t)e->n_in[site];
    float *lowest = e->lowest[site], *highest = e->x_max[site];
    double *sum = e->mean[site];
    const bool first = e->n_rows[site] == 0 && n_rows > 0;
    for (size_t i = 0; i < n && first; i++) lowest[i] = highest[i] = x[i];
    for (int r = 0; r < n_rows; r++, x += n)
        for (size_t i = 0; i < n; i++) {
            lowest[i] = x[i] < lowest[i] ? x[i] : lowest[i];
            highest[i] = x[i] > highest[i] ? x[i] : highest[i];
            sum[i] += (double)x[i];
        }
    e->n_rows[site] += n_rows;
    return true;
}

/* Largest magnitudes, of inputs whose means are taken out where the block is centred. */
static void extremes_finish(extremes *e, bool centred)
{
    for (int s = 0; s < FL_N_SITES; s++)
        for (int i = 0; i < e->n_in[s]; i++) {
            e->mean[s][i] /= (double)FL_MAX(e->n_rows[s], (int64_t)1);
            const float m = centred && s != FL_SITE_DOWN ? (float)e->mean[s][i] : 0.0f;
            e->x_max[s][i] = FL_MAX(fabsf(e->x_max[s][i] - m), fabsf(e->lowest[s][i] - m));
        }
}

static json_t *training_report(const fl_flatquant_result *r)
{
    json_t *losses = json_array();
    for (int i = 0; i < r->n_epochs; i++)
        (void)json_array_append_new(losses, json_real(r->epoch_loss[i]));
    return json_pack("{s:o,s:i,s:s}", "epoch_loss", losses, "restarts", r->n_restarts, "gemm",
                     r->bf16 ? "bf16" : "float32");
}

static fl_status train(fl_flatquant_result *r, fl_flatquant_params *params,
                       const fl_block *block, fl_quant_job *job, int layer, fl_err *err)
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
    if (!job->c.flatquant.epochs) return FL_OK;
    return fl__flatquant_train(r, params, job->model, block, &data, job->ex, err);
}

fl_status fl__quant_learn_block(fl_block *folded, fl_block *plain, json_t **report,
                                fl_quant_job *job, int layer, fl_err *err)
{
    extremes e = {0};
    fl_flatquant_params params = {0};
    fl_flatquant_result result = {0};
    fl_status st = fl__block_fold(plain, job->model, layer, NULL, err);
    *report = NULL;
    if (st) return st;
    if ((st = extremes_init(&e, plain, err)) ||
        (st = fl__stream_target(job->stream, plain, see, &e, err)))
        goto out;
    extremes_finish(&e, job->c.flatquant.centre);
    if (job->c.flatquant.centre) fl__flatquant_centre(plain, job->model, e.mean);
    if ((st = fl__flatquant_params_init(&params, job->model, plain, layer, e.x_max,
                                        &job->c.flatquant, job->ex, err)) ||
        (st = train(&result, &params, plain, job, layer, err)))
        goto out;
    if (job->c.flatquant.epochs) *report = training_report(&result);
    st = fl__flatquant_fold(folded, &params, job->model, layer, true, job->ex, err);
    if (!st && !job->c.block.use_gptq) /* weights will be rounded as they were in training */
        fl__flatquant_correct_mean(folded, &result);
out:
    fl__flatquant_result_fini(&result);
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
