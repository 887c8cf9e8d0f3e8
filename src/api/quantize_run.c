/* quantize_run.c - fl_quantize_run: from options to a finished directory.
 *
 * Order of work: cheap checks first (options, model, output name, text), so that nothing is
 * begun that cannot end; then the job; then the gate, which compares the finished model with
 * the float one and may reject it.
 * SPDX-License-Identifier: MIT */
#include "api/exec_options.h"
#include "base/file.h"
#include "base/mem.h"
#include "eval/perplexity.h"
#include "model/tensor_specs.h"
#include "quant/job.h"
#include "text/tokenizer.h"

#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

enum { MAX_TEXT_BYTES = 1 << 30 };

/* ---- calibration text -------------------------------------------------------------------- */

static bool samples_itself(const fl_quantize_options *o)
{
    return strcmp(o->calib_path, "self") == 0;
}

static bool ends_with(const char *s, const char *end)
{
    const size_t n = strlen(s), m = strlen(end);
    return n >= m && strcmp(s + n - m, end) == 0;
}

/* {"text": ...} per line to the texts one after another, a blank line between them, in
 * place. */
static fl_status flatten_jsonl(char *text, size_t *n_bytes, const char *path, fl_err *err)
{
    size_t out = 0, at = 0;
    for (int line = 1; at < *n_bytes; line++) {
        const char *nl = memchr(text + at, '\n', *n_bytes - at);
        const size_t n = nl ? (size_t)(nl - (text + at)) : *n_bytes - at;
        json_t *o = NULL;
        const char *value = NULL;
        char where[512];
        (void)snprintf(where, sizeof where, "%s line %d", path, line);
        if (n > 0) {
            fl_status st = fl__json_parse(&o, text + at, n, where, err);
            if (!st) st = fl__json_get_string(o, "text", true, &value, where, err);
            if (st) {
                json_decref(o);
                return st;
            }
            /* the value is shorter than the line it came from: quotes, key and braces are
             * gone */
            const size_t m = strlen(value);
            memmove(text + out, value, m);
            out += m;
            if (out + 2 <= at + n) {
                text[out++] = '\n';
                text[out++] = '\n';
            }
            json_decref(o);
        }
        at += n + 1;
    }
    *n_bytes = out;
    return FL_OK;
}

static fl_status read_ids(int32_t **ids, size_t *n_ids, const char *model_dir, const char *path,
                          fl_err *err)
{
    fl_tokenizer *tokenizer = NULL;
    char *text = NULL;
    size_t n_bytes = 0;
    *ids = NULL;
    fl_status st = fl__file_read(&text, &n_bytes, path, MAX_TEXT_BYTES, err);
    if (!st && ends_with(path, ".jsonl")) st = flatten_jsonl(text, &n_bytes, path, err);
    if (!st) st = fl__tokenizer_open(&tokenizer, model_dir, err);
    if (!st) st = fl__tokenizer_encode(ids, n_ids, tokenizer, text, n_bytes, false, err);
    fl__tokenizer_close(&tokenizer);
    fl__free(&text);
    return st;
}

static fl_status sample_from_model(fl_calib *calib, const fl_quantize_options *o,
                                   const fl_quant_config *c, const fl_exec *ex, fl_err *err)
{
    fl_model *model = NULL;
    fl_status st = fl__model_open(&model, o->model_dir, ex, false, err);
    fl__log(&o->log, FL_LOG_INFO, "calibration: the model writes %d windows of %d tokens",
            c->n_samples, c->seq_len);
    if (!st)
        st = fl__calib_from_model(calib, model, ex, c->n_samples, c->seq_len, c->seed,
                                  o->should_stop, o->user, err);
    fl__model_close(&model);
    return st;
}

static fl_status load_calibration(fl_calib *calib, const fl_quantize_options *o,
                                  const fl_quant_config *c, const fl_model *model,
                                  const fl_exec *ex, fl_err *err)
{
    int32_t *ids = NULL;
    size_t n_ids = 0;
    if (samples_itself(o)) return sample_from_model(calib, o, c, ex, err);
    fl_status st = read_ids(&ids, &n_ids, o->model_dir, o->calib_path, err);
    if (!st)
        st = fl__calib_from_ids(calib, ids, n_ids, c->n_samples, c->seq_len, c->seed,
                                model->cfg.vocab_size, o->calib_path, err);
    fl__free(&ids);
    return st;
}

/* ---- quality gate ------------------------------------------------------------------------ */

static fl_status check_gate(const fl_quantize_options *o, const fl_quant_config *c,
                            json_t *report, fl_err *err)
{
    fl_eval_options eval;
    fl_eval_result r;
    if (o->max_ppl_increase < 0 && o->max_kld < 0) return FL_OK;
    fl_eval_options_defaults(&eval);
    eval.model_dir = o->out_dir;
    eval.baseline_dir = o->model_dir;
    eval.ppl_path = o->gate_path ? o->gate_path : o->calib_path;
    eval.seq_len = c->seq_len;
    eval.isa = o->isa;
    eval.n_threads = o->n_threads;
    eval.log = o->log;
    const fl_status st = fl_eval_run(&r, &eval, err);
    if (st) return st;
    const double increase = r.ppl / r.baseline_ppl - 1;
    (void)json_object_set_new(report, "gate",
                              json_pack("{s:f,s:f,s:f,s:f,s:i}", "ppl", r.ppl, "baseline_ppl",
                                        r.baseline_ppl, "ppl_increase", increase, "kld_mean",
                                        r.kld_mean, "windows", r.windows));
    if (o->max_ppl_increase >= 0 && !(increase <= o->max_ppl_increase))
        return fl__fail(
            err, FL_E_GATE,
            "quality gate: %s: perplexity rose by %.4f, allowed is %.4f; the model is "
            "kept, use more bits or loosen --max-ppl-increase",
            o->out_dir, increase, o->max_ppl_increase);
    if (o->max_kld >= 0 && !(r.kld_mean <= o->max_kld))
        return fl__fail(
            err, FL_E_GATE,
            "quality gate: %s: KL divergence is %.5f, allowed is %.5f; the model is kept, "
            "use more bits or loosen --max-kld",
            o->out_dir, r.kld_mean, o->max_kld);
    return FL_OK;
}

/* ---- memory ------------------------------------------------------------------------------ */

/* Of the calibration text; -1: the model samples it. */
static int64_t calibration_text_bytes(const fl_quantize_options *o)
{
    struct stat st;
    if (samples_itself(o)) return -1;
    return stat(o->calib_path, &st) == 0 ? st.st_size : 0;
}

/* What was foreseen and what came, beside the n_before bytes that the process held already. */
static void report_memory(json_t *report, const fl_quantize_options *o,
                          const fl_quant_config *c, const fl_model *model, const fl_exec *ex,
                          size_t n_before)
{
    struct rusage usage = {0};
    (void)getrusage(RUSAGE_SELF, &usage);
    json_t *estimate = fl__quant_estimate(c, model, ex, calibration_text_bytes(o), false);
    (void)json_object_set_new(
        report, "memory",
        json_pack("{s:O,s:O,s:I,s:I}", "estimated_items", json_object_get(estimate, "items"),
                  "estimated_peak_bytes", json_object_get(estimate, "peak_bytes"), "peak_bytes",
                  (json_int_t)(fl__mem_get().peak_bytes - n_before), "process_peak_bytes",
                  (json_int_t)usage.ru_maxrss * 1024));
    json_decref(estimate);
}

/* ---- the call ---------------------------------------------------------------------------- */

/* What fl__checkpoint_open will find, looked at before hours of work rather than after. */
static fl_status check_output(const fl_quantize_options *o, fl_err *err)
{
    const size_t n = strlen(o->out_dir);
    char *partial = fl__alloc(n + sizeof ".partial", 1), *parent = fl__strdup(o->out_dir);
    fl_status st = FL_OK;
    if (!partial || !parent) {
        st = fl__fail_nomem(err, "output", n);
        goto out;
    }
    (void)snprintf(partial, n + sizeof ".partial", "%s.partial", o->out_dir);
    char *slash = strrchr(parent, '/');
    if (slash) slash[slash == parent] = '\0';
    const char *dir = slash ? parent : ".";
    if (access(o->out_dir, F_OK) == 0)
        st = fl__fail(err, FL_E_USAGE,
                      "output: %s: exists already; choose another name or remove it",
                      o->out_dir);
    else if (access(partial, F_OK) == 0 && !o->resume && o->redo_from < 0 && !o->dry_run)
        st = fl__fail(
            err, FL_E_USAGE,
            "output: %s: holds an unfinished run; continue it with --resume or remove it",
            partial);
    else if (access(dir, W_OK | X_OK) != 0)
        st = fl__fail(err, FL_E_USAGE,
                      "output: %s: no directory that can be written; choose "
                      "another place",
                      dir);
out:
    fl__free(&partial);
    fl__free(&parent);
    return st;
}

static fl_status check_request(const fl_quantize_options *o, fl_err *err)
{
    if (!o->model_dir || !o->out_dir || !*o->out_dir)
        return fl__fail(err, FL_E_USAGE,
                        "quantize: model or output: missing; give MODEL and OUT");
    if (!o->method)
        return fl__fail(err, FL_E_USAGE,
                        "option: --method: missing; give flattenquant, smoothquant or rtn");
    if (!o->calib_path)
        return fl__fail(err, FL_E_USAGE,
                        "option: --calib: missing; give a text file, or self to "
                        "let the model write it");
    return check_output(o, err);
}

/* The calibration text must be readable even where the method does not look at it: a wrong name
 * is a wrong command. */
static fl_status check_calibration_file(const fl_quantize_options *o, fl_err *err)
{
    if (samples_itself(o) || access(o->calib_path, R_OK) == 0) return FL_OK;
    return fl__fail(err, FL_E_INPUT,
                    "calibration text: %s: cannot be read; give a text file or self",
                    o->calib_path);
}

/* A gate compares on a text; there is none when the model writes its own calibration. */
static fl_status check_gate_text(const fl_quantize_options *o, fl_err *err)
{
    const bool gated = o->max_ppl_increase >= 0 || o->max_kld >= 0;
    const size_t n = strlen(o->calib_path);
    const bool plain = strcmp(o->calib_path, "self") != 0 &&
                       !(n > 6 && strcmp(o->calib_path + n - 6, ".jsonl") == 0);
    if (!gated || o->gate_path || plain) return FL_OK;
    return fl__fail(
        err, FL_E_USAGE,
        "option: --gate-data: missing: the gates need a plain text and --calib is none; "
        "give --gate-data FILE");
}

/* out_dir without slashes behind it: ".partial" goes there. */
static fl_status run(char **report_json, const fl_quantize_options *o, fl_err *err)
{
    fl_exec ex;
    fl_model *model = NULL;
    fl_quant_config c;
    fl_calib calib = {0};
    json_t *report = NULL;
    fl_status st;

    const size_t n_before = fl__mem_get().now_bytes;
    fl__mem_peak_reset();
    if ((st = check_request(o, err))) goto out;
    if ((st = fl__exec_resolve(&ex, o->isa, o->n_threads, &o->log, err))) goto out;
    if ((st = fl__model_open(&model, o->model_dir, &ex, true, err))) goto out;
    if (model->sites) {
        st = fl__fail(
            err, FL_E_UNSUPPORTED,
            "model: %s: is quantised already; give the float checkpoint it was made from",
            o->model_dir);
        goto out;
    }
    if ((st = fl__quant_config_resolve(&c, o, &model->cfg, ex.isa, err))) goto out;
    model->stream_max_extra =
        c.flatten.max_ratio + (c.block.flatten_weights ? c.block.weight_max_ratio : 0);
    model->stream_own_clips = c.transforms && c.flatquant.clip_per_linear;
    model->stream_transform_bytes = fl__quant_transform_bytes(&c, &model->cfg, &ex);
    (void)fl__kv_format_of_bits(&model->stream_k_format, c.k_bits); /* checked by resolve */
    (void)fl__kv_format_of_bits(&model->stream_v_format, c.v_bits);
    if ((st = check_calibration_file(o, err))) goto out;
    if ((st = check_gate_text(o, err))) goto out;
    if (o->dry_run) {
        report = fl__quant_estimate(&c, model, &ex, calibration_text_bytes(o), true);
        if (!report) st = fl__fail_nomem(err, "estimate", 1024);
        goto out;
    }
    if ((st = fl__model_check_tensors(model, err))) goto out;
    if (fl__quant_needs_plan_pass(&c) &&
        (st = load_calibration(&calib, o, &c, model, &ex, err)))
        goto out;
    st = fl__quant_job_run(&report, o, &c, model, &ex, calib.ids ? &calib : NULL,
                           calib.ids ? o->calib_path : NULL, err);
    if (!st) report_memory(report, o, &c, model, &ex, n_before);
    if (!st) st = check_gate(o, &c, report, err);
out:
    if (report && (!st || st == FL_E_GATE)) {
        *report_json = fl__json_dump(report, 1);
        if (!*report_json && !st) st = fl__fail_nomem(err, "report", 4096);
    }
    json_decref(report);
    fl__calib_fini(&calib);
    fl__model_close(&model);
    return st;
}

FL_API fl_status fl_quantize_run(char **report_json, const fl_quantize_options *options,
                                 fl_err *err)
{
    fl_quantize_options o = *options;
    char *out_dir = NULL;
    *report_json = NULL;
    if (o.out_dir) {
        size_t n = strlen(o.out_dir);
        while (n > 1 && o.out_dir[n - 1] == '/') n--;
        out_dir = fl__strndup(o.out_dir, n);
        if (!out_dir) return fl__fail_nomem(err, "output", n);
        o.out_dir = out_dir;
    }
    const fl_status st = run(report_json, &o, err);
    fl__free(&out_dir);
    return st;
}
