/* perplexity.h - how well a model predicts a text, alone or beside a float model.
 *
 * Convention "windows": the text's ids are cut into non-overlapping windows of seq_len, the
 * tail is dropped, each window is predicted on its own from its first token on (seq_len - 1
 * predictions), and the perplexity is exp of the mean over windows of a window's mean cross
 * entropy. With a baseline, over the same positions: the mean of KL(baseline || model) and the
 * share of positions where both rank the same token first.
 *
 * Sums are float64 and taken in the order of the text; batches and chunks depend on the model
 * and the window length only, so the figures are the same bits for any number of threads.
 * SPDX-License-Identifier: MIT */
#ifndef FL_EVAL_PERPLEXITY_H
#define FL_EVAL_PERPLEXITY_H

#include "model/runner.h"

typedef struct fl_perplexity_job {
    const fl_model *model;
    const fl_model *baseline;                  /* same vocabulary; NULL: none */
    fl_device_model *device, *baseline_device; /* where they run; NULL: the CPU */
    const fl_exec *ex;
    const int32_t *ids; /* [n_ids], each below the vocabulary's size */
    size_t n_ids;
    int seq_len;        /* 2 .. the models' context */
    int max_windows;    /* 0: all */
    double *window_nll; /* NULL, or [n_ids / seq_len]: mean cross entropy of each window */
    /* After each batch; may be NULL. Returning false stops with FL_E_INTERRUPTED. */
    bool (*on_windows)(void *user, int n_done, int n_windows, double ppl_so_far);
    void *user;
} fl_perplexity_job;

typedef struct fl_perplexity {
    double ppl;
    double baseline_ppl, kld_mean, top1_agreement; /* NaN without a baseline */
    int n_windows;
    int64_t n_predictions;
} fl_perplexity;

/* FL_E_INPUT (less than one window of text), FL_E_USAGE (seq_len), FL_E_NOMEM, FL_E_FAIL
 * (logits that are no numbers, a device's failures), FL_E_INTERRUPTED. */
fl_status fl__perplexity_run(fl_perplexity *result, const fl_perplexity_job *job, fl_err *err);

/* One prediction scored. */
typedef struct fl_row_score {
    double nll;          /* -log p(target) */
    double baseline_nll; /* 0 without a baseline, like the fields below */
    double kld;          /* KL(baseline || model) */
    bool agrees;         /* same first-ranked token; equal logits rank by id */
} fl_row_score;

/* scores[i] of logits [n_rows, n_vocab] against targets[i]; baseline: logits of the same shape
 * or NULL. A row that holds no numbers gets a NaN. */
void fl__score_rows(const fl_exec *ex, fl_row_score *scores, const float *logits,
                    const float *baseline, const int32_t *targets, int n_rows, int n_vocab);

#endif
