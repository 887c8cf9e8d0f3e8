/* job_time.c - how long a run will take, roughly.
 *
 * The work is counted in four currencies, each with a rate measured on the spot in some
 * hundredths of a second: multiply-adds of GEMMs on all threads, the same on one (LAPACK),
 * numbers rounded in searches, and bytes to disk, whose rate is assumed. What the counts leave
 * out (attention's softmax, norms) is a few per cent in models of more than a few hundred
 * channels; small ones take longer than said. FlatQuant's training is counted and measured by
 * itself (flatquant_time.c).
 * SPDX-License-Identifier: MIT */
#include "quant/job.h"

#include "base/clock.h"
#include "base/mem.h"
#include "kernels/onednn.h"
#include "quant/weight_scale.h"

#include <math.h>

#define DISK_BYTES_PER_S 5e8
#define SYNC_S           0.002 /* a file that must be on disk */
enum { SEARCHED_SCALES = 32, N_TRIES = 8 };

typedef struct work {
    double flops, serial_flops; /* GEMMs; factorisations */
    double numbers, serial_numbers;
    double bytes, files;
} work;

/* ---- rates ------------------------------------------------------------------------------- */

enum { GEMM_N = 256, SEARCH_ROWS = 64, SEARCH_K = 512 };

typedef struct rate_job {
    float *a, *b, *c, *scale;
} rate_job;

static void gemm_item(void *arg, int64_t item, int thread)
{
    const rate_job *r = arg;
    const size_t n = GEMM_N;
    (void)thread;
    (void)fl__onednn_sgemm(GEMM_N, GEMM_N, GEMM_N, 1.0f, r->a, GEMM_N, r->b, GEMM_N, true, 0.0f,
                           r->c + (size_t)item * n * n, GEMM_N, NULL);
}

/* Best of several; per second. */
static double gemm_rate(rate_job *r, const fl_exec *ex)
{
    double best = 0;
    for (int i = 0; i < N_TRIES; i++) {
        const double start = fl__now_s();
        fl__parallel_for(ex, ex->n_threads, gemm_item, r);
        const double s = fl__now_s() - start;
        best = fmax(best, s > 0 ? 2.0 * GEMM_N * GEMM_N * GEMM_N * ex->n_threads / s : 0);
    }
    return best;
}

static double search_rate(rate_job *r, const fl_exec *ex)
{
    double best = 0;
    for (int i = 0; i < N_TRIES; i++) {
        const double start = fl__now_s();
        fl__weight_scale_find(ex, r->scale, r->a, SEARCH_ROWS, SEARCH_K, 4, false, true, r->b);
        const double s = fl__now_s() - start;
        best = fmax(best, s > 0 ? (double)SEARCH_ROWS * SEARCH_K * SEARCHED_SCALES / s : 0);
    }
    return best;
}

/* ---- counts ------------------------------------------------------------------------------ */

static double tokens_of(const fl_quant_config *c)
{
    return (double)c->n_samples * c->seq_len;
}

/* Multiply-adds of a token through a block up to (not with) what follows `site`, in flops. */
static double flops_to(const fl_quant_config *c, const fl_model *model, int site)
{
    const fl_model_config *cfg = &model->cfg;
    const double attention = 2.0 * c->seq_len * cfg->n_heads * cfg->head_dim; /* causal: half of
                                                                                 4 */
    double n = 0;
    for (int s = 0; s <= site; s++) {
        int linears[FL_SITE_MAX_LINEARS];
        const int count = fl__site_linears(linears, cfg, s);
        for (int i = 0; i < count; i++) {
            int n_out, n_in;
            fl__linear_shape(&n_out, &n_in, cfg, linears[i]);
            n += 2.0 * n_out * n_in;
        }
        if (s == FL_SITE_QKV) n += 4 * attention; /* slower than a GEMM by about that */
    }
    return n;
}

/* Shape of a site: input channels, and output channels of all its linears. */
static void site_shape(int *K, int *N, const fl_model *model, int site)
{
    int linears[FL_SITE_MAX_LINEARS], n_out;
    const int n = fl__site_linears(linears, &model->cfg, site);
    *N = 0;
    for (int i = 0; i < n; i++) {
        fl__linear_shape(&n_out, K, &model->cfg, linears[i]);
        *N += n_out;
    }
}

static void count_planning(work *w, const fl_quant_config *c, const fl_model *model)
{
    const double tokens = tokens_of(c), whole = flops_to(c, model, FL_SITE_DOWN);
    const double first_batch = fmin(tokens, fmax(2048, c->seq_len));
    const int sample = (int)fmin(tokens, FL_QUANT_SAMPLE_ROWS);
    fl_flatten_options at8 = c->flatten;
    if (c->mixed) at8.beta = 1.3; /* searched at 4 bits only */
    w->flops += tokens * whole;
    if (c->mixed) w->flops += first_batch * whole * (1 + FL_N_SITES);
    for (int s = 0; s < FL_N_SITES; s++) {
        int K, N;
        site_shape(&K, &N, model, s);
        w->serial_numbers += 2 * tokens * K; /* observers */
        w->numbers += fl__flatten_choose_work(K, N, sample, &c->flatten) + 10.0 * K * sample;
        if (c->mixed)
            w->numbers +=
                fl__flatten_choose_work(K, N, sample, &at8) + (double)SEARCHED_SCALES * K * N;
    }
}

/* Both lanes: to the input of every site from the start of its half, and once through both
 * halves. */
static double lanes_flops(const fl_quant_config *c, const fl_model *model)
{
    const double qkv = flops_to(c, model, FL_SITE_QKV), o = flops_to(c, model, FL_SITE_O);
    const double up = flops_to(c, model, FL_SITE_UP) - o;
    return 2 * tokens_of(c) * (qkv + up + flops_to(c, model, FL_SITE_DOWN));
}

/* Second moments that GPTQ takes at a site: of its input, or as each linear clips it. */
static int grams_of(const fl_quant_config *c, const fl_model *model, int site)
{
    int linears[FL_SITE_MAX_LINEARS];
    const int n = fl__site_linears(linears, &model->cfg, site);
    return c->transforms && c->flatquant.clip_per_linear ? n : 1;
}

static void count_rounding(work *w, const fl_quant_config *c, const fl_model *model)
{
    const double tokens = tokens_of(c);
    const bool searched = c->block.use_gptq || c->block.search_scale;
    if (c->block.use_gptq) w->flops += lanes_flops(c, model);
    /* What learned blocks aim at, which the float lane takes over, and the quantised lane to
     * the next block. GPTQ: both lanes are counted, with a half that the float lane skips. */
    if (c->transforms)
        w->flops += tokens * (c->block.use_gptq ? flops_to(c, model, FL_SITE_O)
                                                : 2 * flops_to(c, model, FL_SITE_DOWN));
    for (int s = 0; s < FL_N_SITES; s++) {
        int K, N;
        site_shape(&K, &N, model, s);
        w->numbers += (double)(searched ? SEARCHED_SCALES + 2 : 2) * K * N;
        if (!c->block.use_gptq) continue;
        const double square = (double)K * K, n_grams = grams_of(c, model, s);
        w->flops += n_grams * 3.0 * tokens * square +
                    (c->block.gptq.compensate ? 8.0 : 2.0) * N * square;
        w->serial_flops += n_grams * 4.0 * square * K; /* doubles count twice */
        w->numbers += n_grams * 2 * tokens * K;
    }
}

/* The model writing its own windows, or reading all of itself once for the check. */
static void count_start(work *w, const fl_quant_config *c, const fl_model *model,
                        int64_t text_bytes)
{
    const double params = (double)model->n_params;
    w->serial_numbers += params;
    if (fl__quant_needs_plan_pass(c) && text_bytes < 0) w->flops += 6.0 * tokens_of(c) * params;
    if (fl__quant_needs_plan_pass(c) && text_bytes > 0)
        w->serial_numbers += 20.0 * (double)text_bytes;
}

/* A block's step in tuning takes what it takes in training, and a third more: one forward pass
 * more, no gradients of weights (seen: 250 and 185 ms, llama-28m, AMX, 2 threads). The head is
 * products alone, which are a third of a block's time. */
static double tuning_seconds(const fl_quant_config *c, const fl_model *model, const fl_exec *ex)
{
    double block = 0;
    if (!c->tune.epochs || fl__quant_tune_obstacle(c, &model->cfg)) return 0;
    for (int i = 0; i < FL_N_LINEARS; i++) {
        int n_out, n_in;
        fl__linear_shape(&n_out, &n_in, &model->cfg, i);
        block += (double)n_out * n_in;
    }
    const double head = (double)model->cfg.vocab_size * model->cfg.embed_size / block / 3;
    const fl_flatquant_options o = {.transform = c->transforms ? c->flatquant.transform
                                                               : FL_TRANSFORM_NONE,
                                    .w_bits = 16, .a_bits = c->a_bits, .k_bits = c->k_bits,
                                    .v_bits = c->v_bits, .epochs = c->tune.epochs,
                                    .batch_windows = c->tune.batch_windows,
                                    .bf16 = c->tune.bf16};
    return 1.35 * (model->cfg.n_layers + head) *
           fl__flatquant_seconds(model, ex, &o, c->n_samples, c->seq_len);
}

double fl__quant_seconds(const fl_quant_config *c, const fl_model *model, const fl_exec *ex,
                         int64_t text_bytes)
{
    const size_t square = (size_t)GEMM_N * GEMM_N;
    rate_job r = {fl__calloc(square, 4), fl__calloc(square, 4),
                  fl__calloc((size_t)ex->n_threads * square, 4), fl__calloc(SEARCH_ROWS, 4)};
    double seconds = NAN;
    if (r.a && r.b && r.c && r.scale) {
        const double flops = gemm_rate(&r, ex), numbers = search_rate(&r, ex);
        work block = {0}, start = {0};
        count_start(&start, c, model, text_bytes);
        if (fl__quant_needs_statistics(c)) count_planning(&block, c, model);
        count_rounding(&block, c, model);
        const double threads = ex->n_threads, layers = model->cfg.n_layers;
        const double total_flops =
            start.flops + layers * (block.flops + threads * block.serial_flops);
        const double total_numbers =
            layers * block.numbers +
            threads * (start.serial_numbers + layers * block.serial_numbers);
        const double bytes = (double)fl__block_float_bytes(model) * layers / 4;
        seconds = total_flops / flops + total_numbers / numbers + bytes / DISK_BYTES_PER_S +
                  SYNC_S * (2 * layers + 6);
        if (c->transforms)
            seconds += layers * fl__flatquant_seconds(model, ex, &c->flatquant, c->n_samples,
                                                      c->seq_len);
        seconds += tuning_seconds(c, model, ex);
    }
    fl__free(&r.a);
    fl__free(&r.b);
    fl__free(&r.c);
    fl__free(&r.scale);
    return seconds;
}
