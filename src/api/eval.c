/* eval.c - perplexity of a model on a text file, alone or beside a baseline.
 *
 * Both models must agree on what the tokens of the text are, or the comparison means nothing:
 * the text is encoded by both tokenizers and the ids are compared, and the vocabularies must
 * have the same size.
 * SPDX-License-Identifier: MIT */
#include "api/engine.h"

#include "api/exec_options.h"
#include "base/clock.h"
#include "base/file.h"
#include "base/isa.h"
#include "base/log.h"
#include "base/mem.h"
#include "eval/perplexity.h"

#include <stdio.h>
#include <string.h>

enum { MAX_DEFAULT_SEQ_LEN = 2048 };

typedef struct side {
    const char *dir;
    fl_model *model; /* NULL: no baseline */
    fl_device_model *device; /* NULL: CPU */
    int32_t *ids;    /* [n_ids] owned: the text in this model's tokens */
    size_t n_ids;
} side;

static fl_status side_open(side *s, const char *dir, fl_device *device, const fl_exec *ex,
                           const fl_file_map *text, fl_err *err)
{
    fl_tokenizer *tokenizer = NULL;
    s->dir = dir;
    fl_status st = fl__device_load(&s->model, &s->device, dir, device, ex, err);
    if (st == FL_OK) st = fl__tokenizer_open(&tokenizer, dir, err);
    if (st == FL_OK)
        st = fl__tokenizer_encode(&s->ids, &s->n_ids, tokenizer, (const char *)text->data,
                                  text->n_bytes, false, err);
    if (st == FL_OK) st = fl__engine_check_ids(s->model, s->ids, s->n_ids, err);
    fl__tokenizer_close(&tokenizer);
    return st;
}

static void side_close(side *s)
{
    fl__free(&s->ids);
    fl__device_model_free(&s->device);
    fl__model_close(&s->model);
}

static fl_status check_same_tokens(const side *model, const side *baseline, fl_err *err)
{
    const int n_vocab = model->model->cfg.vocab_size;
    const int base_vocab = baseline->model->cfg.vocab_size;
    if (n_vocab != base_vocab)
        return fl__fail(
            err, FL_E_INPUT,
            "models do not compare: %s: vocabulary of %d tokens, the baseline %s has %d; "
            "use the float model that this one was made from",
            model->dir, n_vocab, baseline->dir, base_vocab);
    const size_t n = FL_MIN(model->n_ids, baseline->n_ids);
    size_t at = 0;
    while (at < n && model->ids[at] == baseline->ids[at]) at++;
    if (at == n && model->n_ids == baseline->n_ids) return FL_OK;
    return fl__fail(
        err, FL_E_INPUT,
        "models do not compare: %s: its tokens of the text differ from those of the "
        "baseline %s from number %zu on; use the float model that this one was made "
        "from",
        model->dir, baseline->dir, at);
}

static int default_seq_len(const side *model, const side *baseline)
{
    int n = FL_MIN(MAX_DEFAULT_SEQ_LEN, model->model->cfg.n_positions);
    if (baseline->model) n = FL_MIN(n, baseline->model->cfg.n_positions);
    return n;
}

static bool on_windows(void *user, int n_done, int n_windows, double ppl)
{
    const fl_eval_options *o = user;
    if (o->on_progress) o->on_progress(o->user, n_done, n_windows, ppl);
    return !o->should_stop || !o->should_stop(o->user);
}

static void describe(fl_eval_model *out, const fl_model *model)
{
    if (!model) return;
    (void)snprintf(out->quant_method, sizeof out->quant_method, "%s", model->quant_method);
    out->w_bits = model->w_bits;
    out->a_bits = model->a_bits;
    out->head_bits = model->head.w_bits;
    out->kv_format = fl__kv_format_name(model);
    out->weight_bytes = model->weight_bytes;
}

static fl_status run(fl_eval_result *result, const fl_eval_options *o, const fl_exec *ex,
                     const side *model, const side *baseline, fl_err *err)
{
    fl_eval_options copy = *o;
    fl_perplexity p;
    const fl_perplexity_job job = {
        .model = model->model,
        .baseline = baseline->model,
        .device = model->device,
        .baseline_device = baseline->device,
        .ex = ex,
        .ids = model->ids,
        .n_ids = model->n_ids,
        .seq_len = o->seq_len ? o->seq_len : default_seq_len(model, baseline),
        .max_windows = o->max_windows,
        .on_windows = on_windows,
        .user = &copy,
    };
    const double start = fl__now_s();
    const fl_status st = fl__perplexity_run(&p, &job, err);
    if (st != FL_OK) return st;
    *result = (fl_eval_result){
        .ppl = p.ppl,
        .baseline_ppl = p.baseline_ppl,
        .kld_mean = p.kld_mean,
        .top1_agreement = p.top1_agreement,
        .windows = p.n_windows,
        .seq_len = job.seq_len,
        .tokens = (int64_t)model->n_ids,
        .n_predictions = p.n_predictions,
        .isa = fl__isa_name(ex->isa),
        .n_threads = ex->n_threads,
        .elapsed_s = fl__now_s() - start,
    };
    describe(&result->model, model->model);
    describe(&result->baseline, baseline->model);
    return FL_OK;
}

static fl_status check_options(const fl_eval_options *o, fl_err *err)
{
    if (!o->model_dir || !o->ppl_path)
        return fl__fail(err, FL_E_USAGE, "missing option: eval: %s is not set; name it",
                        o->model_dir ? "ppl_path" : "model_dir");
    if (o->max_windows < 0)
        return fl__fail(err, FL_E_USAGE,
                        "bad option: eval: max_windows is %d; use 0 (all) or more",
                        o->max_windows);
    return FL_OK;
}

fl_status fl_eval_run(fl_eval_result *result, const fl_eval_options *options, fl_err *err)
{
    const fl_eval_options *o = options;
    side model = {0}, baseline = {0};
    fl_file_map text = {0};
    fl_device device = {0};
    fl_exec ex;
    fl_status st;

    memset(result, 0, sizeof *result);
    if ((st = check_options(o, err))) goto out;
    if ((st = fl__exec_resolve(&ex, o->isa, o->n_threads, &o->log, err))) goto out;
    if ((st = fl__device_open(&device, o->device, err))) goto out;
    if ((st = fl__file_map(&text, o->ppl_path, err))) goto out;
    if ((st = side_open(&model, o->model_dir, &device, &ex, &text, err))) goto out;
    if (o->baseline_dir) {
        if ((st = side_open(&baseline, o->baseline_dir, &device, &ex, &text, err))) goto out;
        if ((st = check_same_tokens(&model, &baseline, err))) goto out;
    }
    st = run(result, o, &ex, &model, &baseline, err);
    (void)snprintf(result->device, sizeof result->device, "%s", device.name);
out:
    side_close(&baseline);
    side_close(&model);
    fl__device_close(&device);
    fl__file_unmap(&text);
    return st;
}
