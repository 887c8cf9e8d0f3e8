/* perplexity.c - batches of windows through the model, chunks of rows through the head.
 *
 * Two sizes bound the memory. A batch is as many windows as fit in MAX_BATCH_ROWS tokens (at
 * least one), fewer while activations and cache would pass MAX_BATCH_BYTES: enough rows that
 * all threads have work. The head then runs on CHUNK_ROWS rows at a time, since the logits of a
 * whole window (2,048 x 128,256 floats) are a gigabyte. Neither size looks at the number of
 * threads.
 * SPDX-License-Identifier: MIT */
#include "eval/perplexity.h"

#include "base/mem.h"

#include <math.h>
#include <string.h>

enum { MAX_BATCH_ROWS = 4096, CHUNK_ROWS = 128 };
static const size_t MAX_BATCH_BYTES = (size_t)1 << 30;

/* ---- one row ----------------------------------------------------------------------------- */

/* First-ranked token of a row; -1 when a logit is NaN or +infinity, or all are -infinity. */
static int row_argmax(const float *row, int n_vocab)
{
    int best = -1;
    float max = -INFINITY;
    for (int i = 0; i < n_vocab; i++) {
        if (isnan(row[i])) return -1;
        if (row[i] > max) max = row[i], best = i;
    }
    return max < INFINITY ? best : -1;
}

/* log of the sum of exp of a row whose largest value is max. */
static double row_lse(const float *row, float max, int n_vocab)
{
    double sum = 0;
    for (int i = 0; i < n_vocab; i++) sum += (double)expf(row[i] - max);
    return log(sum) + max;
}

/* Baseline's cross entropy and the divergence in one pass over both rows:
 *   KL(b || m) = sum_i p_b(i) (b_i - m_i) - (lse_b - lse_m) */
static void compare_rows(fl_row_score *score, const float *row, double lse_m, const float *base,
                         float base_max, int n_vocab, int target)
{
    double sum = 0, weighted = 0;
    for (int i = 0; i < n_vocab; i++) {
        const double e = (double)expf(base[i] - base_max);
        if (e == 0) continue; /* 0 log 0 = 0, whatever the model says there */
        sum += e;
        weighted += e * ((double)base[i] - row[i]);
    }
    const double lse_b = log(sum) + base_max;
    score->baseline_nll = lse_b - base[target];
    score->kld = weighted / sum - (lse_b - lse_m);
}

typedef struct score_args {
    fl_row_score *scores;
    const float *logits, *baseline;
    const int32_t *targets;
    int n_vocab;
} score_args;

static void score_row(void *arg, int64_t i, int thread)
{
    const score_args *a = arg;
    (void)thread;
    const float *row = a->logits + i * a->n_vocab;
    const float *base = a->baseline ? a->baseline + i * a->n_vocab : NULL;
    const int best = row_argmax(row, a->n_vocab);
    const int base_best = base ? row_argmax(base, a->n_vocab) : 0;
    fl_row_score *score = &a->scores[i];
    *score = (fl_row_score){.nll = NAN};
    if (best < 0 || base_best < 0) return;
    const double lse = row_lse(row, row[best], a->n_vocab);
    score->nll = lse - row[a->targets[i]];
    if (!base) return;
    compare_rows(score, row, lse, base, base[base_best], a->n_vocab, a->targets[i]);
    score->agrees = best == base_best;
}

void fl__score_rows(const fl_exec *ex, fl_row_score *scores, const float *logits,
                    const float *baseline, const int32_t *targets, int n_rows, int n_vocab)
{
    score_args a = {scores, logits, baseline, targets, n_vocab};
    fl__parallel_for(ex, n_rows, score_row, &a);
}

/* ---- one model's memory ------------------------------------------------------------------ */

typedef struct lane {
    const fl_model *model; /* NULL: there is no such model */
    fl_runner *runner;
    float *logits; /* [CHUNK_ROWS, vocab] owned */
} lane;

static fl_status lane_init(lane *l, const fl_model *model, fl_device_model *dm,
                           const fl_exec *ex, int n_windows, int seq_len, fl_err *err)
{
    const size_t n_vocab = (size_t)model->cfg.vocab_size;
    l->model = model;
    const fl_status st =
        fl__runner_new(&l->runner, model, ex, dm, n_windows, seq_len, n_windows * seq_len, err);
    if (st != FL_OK) return st;
    l->logits = fl__alloc(CHUNK_ROWS * n_vocab, sizeof *l->logits);
    if (!l->logits)
        return fl__fail_nomem(err, "logits", CHUNK_ROWS * n_vocab * sizeof *l->logits);
    return FL_OK;
}

static void lane_fini(lane *l)
{
    fl__free(&l->logits);
    fl__runner_free(&l->runner);
}

/* For one thread, because the batch's shape may decide the last bit of a float GEMM. */
static size_t batch_bytes(const fl_model *model, const fl_exec *ex, int n_windows, int seq_len)
{
    const fl_exec one = {.isa = ex->isa, .n_threads = 1};
    if (!model) return 0;
    const fl_kv_options kv = fl__model_kv_options(model, n_windows, seq_len);
    return fl__kv_bytes(&kv) + fl__workspace_bytes(model, &one, n_windows * seq_len);
}

/* Windows per batch, so that all models together stay within the limits. */
static int batch_windows(const fl_perplexity_job *job)
{
    int n = FL_MAX(MAX_BATCH_ROWS / job->seq_len, 1);
    while (n > 1 && batch_bytes(job->model, job->ex, n, job->seq_len) +
                            batch_bytes(job->baseline, job->ex, n, job->seq_len) >
                        MAX_BATCH_BYTES)
        n--;
    return n;
}

/* ---- the run ----------------------------------------------------------------------------- */

typedef struct run {
    const fl_perplexity_job *job;
    lane model, baseline;
    fl_span *spans; /* [batch windows] owned */
    fl_row_score scores[CHUNK_ROWS];
    double nll, baseline_nll; /* sums over windows of the windows' means */
    double kld;               /* sum over predictions */
    int64_t n_agree;
} run;

static fl_status forward(const run *r, lane *l, const int32_t *ids, int n_windows, fl_err *err)
{
    if (!l->model) return FL_OK;
    for (int i = 0; i < n_windows; i++) fl__runner_resize(l->runner, i, 0);
    return fl__runner_forward(l->runner, ids, r->spans, n_windows, err);
}

/* l->logits of n rows of the batch. */
static fl_status chunk_logits(lane *l, int row, int n, fl_err *err)
{
    return l->model ? fl__runner_logits(l->runner, row, n, l->logits, err) : FL_OK;
}

/* Scores the predictions of window w, which is number i of its batch. */
static fl_status score_window(run *r, int w, int i, fl_err *err)
{
    const fl_perplexity_job *job = r->job;
    const int32_t *ids = job->ids + (int64_t)w * job->seq_len;
    const int n_rows = job->seq_len - 1;
    double nll = 0, baseline_nll = 0;
    for (int at = 0; at < n_rows; at += CHUNK_ROWS) {
        const int n = FL_MIN(n_rows - at, CHUNK_ROWS);
        fl_status st = chunk_logits(&r->model, i * job->seq_len + at, n, err);
        if (!st) st = chunk_logits(&r->baseline, i * job->seq_len + at, n, err);
        if (st) return st;
        fl__score_rows(job->ex, r->scores, r->model.logits, r->baseline.logits, ids + at + 1, n,
                       job->model->cfg.vocab_size);
        for (int k = 0; k < n; k++) {
            nll += r->scores[k].nll;
            baseline_nll += r->scores[k].baseline_nll;
            r->kld += r->scores[k].kld;
            r->n_agree += r->scores[k].agrees;
        }
    }
    if (isnan(nll))
        return fl__fail(err, FL_E_FAIL,
                        "evaluation failed: window %d: the logits are no finite numbers; check "
                        "the model with flatiron verify",
                        w);
    r->nll += nll / n_rows;
    r->baseline_nll += baseline_nll / n_rows;
    if (job->window_nll) job->window_nll[w] = nll / n_rows;
    return FL_OK;
}

static fl_status run_windows(run *r, int n_windows, int n_batch, fl_err *err)
{
    const fl_perplexity_job *job = r->job;
    for (int w = 0; w < n_windows; w += n_batch) {
        const int n = FL_MIN(n_windows - w, n_batch);
        const int32_t *ids = job->ids + (int64_t)w * job->seq_len;
        fl_status st = forward(r, &r->model, ids, n, err);
        if (!st) st = forward(r, &r->baseline, ids, n, err);
        for (int i = 0; i < n && !st; i++) st = score_window(r, w + i, i, err);
        if (st) return st;
        if (job->on_windows &&
            !job->on_windows(job->user, w + n, n_windows, exp(r->nll / (w + n))))
            return fl__fail(err, FL_E_INTERRUPTED,
                            "interrupted: evaluation: stopped after %d of %d windows; run it "
                            "again",
                            w + n, n_windows);
    }
    return FL_OK;
}

static fl_status check_job(const fl_perplexity_job *job, fl_err *err)
{
    int context = job->model->cfg.n_positions;
    if (job->baseline) context = FL_MIN(context, job->baseline->cfg.n_positions);
    if (job->seq_len < 2 || job->seq_len > context)
        return fl__fail(err, FL_E_USAGE,
                        "bad window length: %d: the model's context is %d tokens; use 2 to %d",
                        job->seq_len, context, context);
    if (job->n_ids < (size_t)job->seq_len)
        return fl__fail(err, FL_E_INPUT,
                        "text too short: %zu tokens: one window needs %d; use a longer text or "
                        "shorter windows",
                        job->n_ids, job->seq_len);
    if (job->n_ids / (size_t)job->seq_len > INT32_MAX)
        return fl__fail(err, FL_E_INPUT,
                        "text too long: %zu tokens: more than 2^31 windows; use a shorter text",
                        job->n_ids);
    return FL_OK;
}

static void collect(fl_perplexity *result, const run *r, int n_windows)
{
    const int64_t n_predictions = (int64_t)n_windows * (r->job->seq_len - 1);
    *result = (fl_perplexity){.ppl = exp(r->nll / n_windows),
                              .baseline_ppl = NAN,
                              .kld_mean = NAN,
                              .top1_agreement = NAN,
                              .n_windows = n_windows,
                              .n_predictions = n_predictions};
    if (!r->job->baseline) return;
    result->baseline_ppl = exp(r->baseline_nll / n_windows);
    result->kld_mean = r->kld / (double)n_predictions;
    result->top1_agreement = (double)r->n_agree / (double)n_predictions;
}

fl_status fl__perplexity_run(fl_perplexity *result, const fl_perplexity_job *job, fl_err *err)
{
    run *r = NULL;
    memset(result, 0, sizeof *result);
    fl_status st = check_job(job, err);
    if (st != FL_OK) return st;
    int n_windows = (int)(job->n_ids / (size_t)job->seq_len);
    if (job->max_windows > 0) n_windows = FL_MIN(n_windows, job->max_windows);
    const int n_batch = FL_MIN(batch_windows(job), n_windows);

    r = fl__calloc(1, sizeof *r);
    if (!r) return fl__fail_nomem(err, "evaluation", sizeof *r);
    r->job = job;
    r->spans = fl__calloc((size_t)n_batch, sizeof *r->spans);
    if (!r->spans) {
        st = fl__fail_nomem(err, "evaluation", (size_t)n_batch * sizeof *r->spans);
        goto out;
    }
    for (int i = 0; i < n_batch; i++)
        r->spans[i] = (fl_span){.seq = i, .pos = 0, .n_rows = job->seq_len};
    st = lane_init(&r->model, job->model, job->device, job->ex, n_batch, job->seq_len, err);
    if (st == FL_OK && job->baseline)
        st = lane_init(&r->baseline, job->baseline, job->baseline_device, job->ex, n_batch,
                       job->seq_len, err);
    if (st == FL_OK) st = run_windows(r, n_windows, n_batch, err);
    if (st == FL_OK) collect(result, r, n_windows);
out:
    lane_fini(&r->model);
    lane_fini(&r->baseline);
    fl__free(&r->spans);
    fl__free(&r);
    return st;
}
