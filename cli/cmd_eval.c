/* cmd_eval.c - flatiron eval: perplexity of a model, and what it lost against a float one.
 * SPDX-License-Identifier: MIT */
#include "interrupt.h"
#include "print.h"
#include "progress.h"
#include "verbs.h"

#include <stdio.h>

typedef struct eval_args {
    fl_eval_options o;
    bool json;
} eval_args;

#define FIELD(F) .offset = offsetof(eval_args, F)

/* clang-format off */
static const cli_option options[] = {
    {.kind = CLI_TEXT, .name = "--ppl", .arg = "FILE", FIELD(o.ppl_path), .required = true,
     .help = "text whose perplexity is measured"},
    {.kind = CLI_INT, .name = "--seq-len", .arg = "N", FIELD(o.seq_len), .min = 2,
     .max = 1 << 20, .shown_default = "the model's context, at most 2048",
     .help = "tokens per window"},
    {.kind = CLI_INT, .name = "--limit", .aliases = "--max-windows", .arg = "N",
     FIELD(o.max_windows), .min = 1, .max = 1 << 30, .shown_default = "all",
     .help = "only the first N windows"},
    {.kind = CLI_TEXT, .name = "--baseline", .arg = "FP_MODEL", FIELD(o.baseline_dir),
     .help = "float model to compare with: KL divergence and top-1 agreement"},
    CLI_OPT_ISA(eval_args, o.isa),
    CLI_OPT_THREADS(eval_args, o.n_threads),
    CLI_OPT_DEVICE_RUN(eval_args, o.device),
    CLI_OPT_JSON(eval_args, json),
    CLI_LATER_ROW("--tasks", "LIST", "accuracy on benchmark tasks"),
    CLI_LATER_ROW("--data", "DIR", "directory of the tasks"),
};
/* clang-format on */

static void on_progress(void *user, int window, int n_windows, double ppl)
{
    char detail[48];
    (void)snprintf(detail, sizeof detail, "ppl %.3f", ppl);
    cli_progress_show(user, "window", window, n_windows, detail, -1);
}

/* One model of the result: how it ran and how well. */
static json_t *model_row(const char *dir, const fl_eval_model *m, double ppl)
{
    char bits[16];
    return json_pack("{s:o, s:s, s:s, s:i, s:i, s:i, s:s, s:I, s:o}", "model",
                     cli_json_path(dir), "quant_method", m->quant_method, "bits",
                     cli_bits(bits, sizeof bits, m->w_bits, m->a_bits), "w_bits", m->w_bits,
                     "a_bits", m->a_bits, "head_bits", m->head_bits, "kv_format", m->kv_format,
                     "weight_bytes", (json_int_t)m->weight_bytes, "ppl", cli_json_number(ppl));
}

static json_t *result_json(const eval_args *a, const fl_eval_result *r)
{
    json_t *baseline = a->o.baseline_dir
                           ? model_row(a->o.baseline_dir, &r->baseline, r->baseline_ppl)
                           : json_null();
    return json_pack(
        "{s:o, s:i, s:I, s:o, s:o, s:i, s:I, s:o, s:o, s:s, s:s, s:i, s:f}", "ppl",
        cli_json_number(r->ppl), "windows", r->windows, "tokens", (json_int_t)r->tokens,
        "kld_mean", cli_json_number(r->kld_mean), "top1_agreement",
        cli_json_number(r->top1_agreement), "seq_len", r->seq_len, "n_predictions",
        (json_int_t)r->n_predictions, "model", model_row(a->o.model_dir, &r->model, r->ppl),
        "baseline", baseline, "device", r->device, "isa", r->isa, "threads", r->n_threads,
        "elapsed_s", r->elapsed_s);
}

static void print_result(const eval_args *a, const fl_eval_result *r)
{
    static const cli_column columns[] = {
        {.title = "model", .path = "model"},
        {.title = "method", .path = "quant_method"},
        {.title = "bits", .path = "bits"},
        {.title = "head", .path = "head_bits", .fmt = "%.0f"},
        {.title = "kv", .path = "kv_format"},
        {.title = "weights MB", .path = "weight_bytes", .fmt = "%.2f", .factor = 1e-6},
        {.title = "ppl", .path = "ppl", .fmt = "%.3f"},
        {.title = "ratio", .path = "ratio", .fmt = "%.4f"},
        {.title = "KL", .path = "kld_mean", .fmt = "%.5f"},
        {.title = "top-1 %", .path = "top1_agreement", .fmt = "%.2f", .factor = 100},
    };
    char elapsed[24];
    json_t *rows = json_array();
    json_t *row = model_row(a->o.model_dir, &r->model, r->ppl);
    if (a->o.baseline_dir) {
        (void)json_array_append_new(
            rows, model_row(a->o.baseline_dir, &r->baseline, r->baseline_ppl));
        (void)json_object_set_new(row, "ratio", cli_json_number(r->ppl / r->baseline_ppl));
        (void)json_object_set_new(row, "kld_mean", cli_json_number(r->kld_mean));
        (void)json_object_set_new(row, "top1_agreement", cli_json_number(r->top1_agreement));
    }
    (void)json_array_append_new(rows, row);
    cli_print_table(CLI_PLAIN, rows, columns, sizeof columns / sizeof *columns);
    json_decref(rows);
    cli_duration(elapsed, sizeof elapsed, r->elapsed_s);
    (void)printf(
        "%d windows of %d tokens, %lld predictions, of %lld tokens in the text; %s, %s, "
        "%d thread%s, %s\n",
        r->windows, r->seq_len, (long long)r->n_predictions, (long long)r->tokens, r->device,
        r->isa, r->n_threads, r->n_threads == 1 ? "" : "s", elapsed);
}

static fl_status run(const cli_verb *verb, int argc, char **argv, fl_err *err)
{
    eval_args a = {.json = false};
    fl_eval_result result;
    cli_progress progress;
    bool done;
    fl_eval_options_defaults(&a.o);
    fl_status st = cli_parse(&done, verb, &a, argc, argv, err);
    if (st != FL_OK || done) return st;
    cli_progress_init(&progress, 10);
    cli_interrupt_install();
    a.o.log = cli_progress_log(&progress);
    a.o.on_progress = on_progress;
    a.o.should_stop = cli_should_stop;
    a.o.user = &progress;
    st = fl_eval_run(&result, &a.o, err);
    cli_progress_clear(&progress);
    if (st != FL_OK) return st;
    if (a.json) return cli_print_json(result_json(&a, &result), err);
    print_result(&a, &result);
    return FL_OK;
}

const cli_verb cli_verb_eval = {
    .name = "eval",
    .summary = "perplexity of a model, alone or beside the float model it came from",
    .usage = "MODEL --ppl FILE",
    .arguments = {{"MODEL", offsetof(eval_args, o.model_dir)}},
    .options = options,
    .n_options = sizeof options / sizeof *options,
    .details =
        "The file's bytes are tokenised once, nothing is added, and cut into windows that "
        "do not\noverlap; the tail is dropped. Perplexity is exp of the mean cross entropy "
        "over the windows.",
    .examples = "  flatiron eval out --ppl wiki.test.raw --seq-len 1024 --baseline model\n"
                "  flatiron eval model --ppl text.txt --limit 8 --json\n",
    .run = run,
};
