/* job_memory.c - memory, disk and time of a run before it starts.
 *
 * Each item is computed by the module that will allocate it, so that the estimate and the run cannot drift apart. The
 * two passes are not in memory together: the peak is the larger one.
 * SPDX-License-Identifier: MIT */
#include "quant/job.h"

#include "base/mem.h"
#include "kernels/onednn.h"

#include <math.h>

enum { SAMPLE_ROWS = 1024, ROW_CHUNK = 32 };

static int widest_input(const fl_model *model)
{
    int widest = 0;
    for (int i = 0; i < FL_N_LINEARS; i++) {
        int n_out, n_in;
        fl__linear_shape(&n_out, &n_in, &model->cfg, i);
        widest = FL_MAX(widest, n_in);
    }
    return widest;
}

static size_t block_parameters(const fl_model *model)
{
    size_t n = 0;
    for (int i = 0; i < FL_N_LINEARS; i++) {
        int n_out, n_in;
        fl__linear_shape(&n_out, &n_in, &model->cfg, i);
        n += (size_t)n_out * (size_t)n_in;
    }
    return n;
}

/* A site's Hessian, cross moments and factors while they are made, or factors and rounding rows after. */
static size_t hessian_bytes(const fl_quant_config *c, const fl_model *model, const fl_exec *ex)
{
    size_t most = 0;
    if (!c->block.use_gptq) return 0;
    for (int i = 0; i < FL_N_LINEARS; i++) {
        int n_out, n_in;
        fl__linear_shape(&n_out, &n_in, &model->cfg, i);
        if (!n_out) continue;
        const size_t made = fl__gram_bytes(n_in, true) + fl__gptq_bytes(n_in, 0, &c->block.gptq);
        const size_t rows = (size_t)ex->n_threads * ROW_CHUNK * (size_t)n_in * (sizeof(float) + sizeof(double));
        const size_t used = fl__gptq_bytes(n_in, 0, &c->block.gptq) - (size_t)n_in * (size_t)n_in * sizeof(double) +
                            (size_t)n_out * (size_t)n_in * sizeof(float) + rows;
        most = FL_MAX(most, FL_MAX(made, used));
    }
    return most;
}

static size_t statistics_bytes(const fl_model *model)
{
    size_t n = 0;
    for (int s = 0; s < FL_N_SITES; s++) {
        int linears[FL_SITE_MAX_LINEARS], n_out, n_in;
        (void)fl__site_linears(linears, &model->cfg, s);
        fl__linear_shape(&n_out, &n_in, &model->cfg, linears[0]);
        n += fl__site_stats_bytes(n_in, SAMPLE_ROWS);
    }
    return n;
}

/* GFLOP/s of the float GEMM on all threads, from one quick run; 0 when it cannot be measured. */
typedef struct rate_job {
    float *a, *b, *c;
    int n;
} rate_job;

static void rate_item(void *arg, int64_t item, int thread)
{
    const rate_job *r = arg;
    const size_t n = (size_t)r->n;
    (void)thread;
    (void)fl__onednn_sgemm(r->n, r->n, r->n, 1.0f, r->a, r->n, r->b, r->n, true, 0.0f, r->c + (size_t)item * n * n, r->n, NULL);
}

static double measure_rate(const fl_exec *ex)
{
    enum { N = 256 };
    const int items = 4 * ex->n_threads;
    rate_job r = {fl__calloc(N * N, 4), fl__calloc(N * N, 4), fl__calloc((size_t)items * N * N, 4), N};
    double best = 0;
    for (int i = 0; i < 4 && r.a && r.b && r.c; i++) {
        const double start = fl__quant_now_s();
        fl__parallel_for(ex, items, rate_item, &r);
        const double s = fl__quant_now_s() - start;
        best = fmax(best, s > 0 ? 2.0 * N * N * N * items / s : 0);
    }
    fl__free(&r.a);
    fl__free(&r.b);
    fl__free(&r.c);
    return best;
}

/* Passes of a batch through a block: one and the costs in the plan; with GPTQ both lanes up to o and down, and
 * once through each half. */
static double work_flops(const fl_quant_config *c, const fl_model *model)
{
    const double tokens = (double)c->n_samples * c->seq_len, params = (double)block_parameters(model);
    double passes = fl__quant_needs_plan_pass(c) ? 1.2 : 0, moments = 0;
    if (c->block.use_gptq) {
        passes += 3.3;
        for (int s = 0; s < FL_N_SITES; s++) {
            int linears[FL_SITE_MAX_LINEARS], n_out, n_in;
            (void)fl__site_linears(linears, &model->cfg, s);
            fl__linear_shape(&n_out, &n_in, &model->cfg, linears[0]);
            moments += 3.0 * tokens * n_in * n_in + 3.0 * pow(n_in, 3);
        }
    }
    return model->cfg.n_layers * (2 * passes * tokens * params + moments);
}

static double disk_bytes(const fl_quant_config *c, const fl_model *model)
{
    const double bits = c->mixed ? 8 - 4 * c->int4_ratio : c->w_bits;
    double n = (double)block_parameters(model) * model->cfg.n_layers * bits / 8;
    n += (double)model->cfg.vocab_size * model->cfg.embed_size * 2 * (model->cfg.tied_head ? 1 : 2);
    return n * 1.02; /* scales, norms, indices */
}

json_t *fl__quant_estimate(const fl_quant_config *c, const fl_model *model, const fl_exec *ex,
                           bool with_time)
{
    const bool lanes = fl__quant_needs_lanes(c), pass = fl__quant_needs_plan_pass(c);
    const fl_stream_bytes stream = pass ? fl__stream_bytes(model, ex, c->n_samples, c->seq_len, lanes)
                                        : (fl_stream_bytes){0, 0};
    const size_t block = fl__block_job_bytes(model), hessian = hessian_bytes(c, model, ex);
    const size_t floats = block_parameters(model) * sizeof(float);
    const size_t stats = pass && c->act != FL_ACT_FLOAT ? statistics_bytes(model) : 0;
    const size_t planning = floats + stats + (size_t)widest_input(model) * 512;
    const size_t rounding = block + hessian;
    const size_t peak = stream.activations + stream.workspace + FL_MAX(planning, rounding);
    const double rate = with_time ? measure_rate(ex) : 0;
    return json_pack("{s:{s:I,s:I,s:I,s:I,s:I},s:I,s:I,s:o}", "items", "block_float32", (json_int_t)block, "hessians",
                     (json_int_t)hessian, "activations", (json_int_t)stream.activations, "workspace",
                     (json_int_t)stream.workspace, "plan_statistics", (json_int_t)stats, "peak_bytes",
                     (json_int_t)peak, "disk_bytes", (json_int_t)disk_bytes(c, model), "seconds",
                     rate > 0 ? json_real(work_flops(c, model) / rate) : json_null());
}
