/* cmd_quantize.c - flatiron quantize: from a float checkpoint to a quantised one.
 * SPDX-License-Identifier: MIT */
#include "interrupt.h"
#include "print.h"
#include "progress.h"
#include "sites.h"
#include "verbs.h"

#include <math.h>
#include <stdio.h>

typedef struct quantize_args {
    fl_quantize_options o;
    const char *device;
    bool json, verbose;
} quantize_args;

#define FIELD(F) .offset = offsetof(quantize_args, F)

/* clang-format off */
static const cli_option options[] = {
    CLI_GROUP_ROW("Method"),
    {.kind = CLI_TEXT, .name = "--method", .arg = "METHOD", FIELD(o.method), .required = true,
     .choices = "flattenquant|flatquant|smoothquant|quarot|rtn", .help = "method"},
    {.kind = CLI_TEXT, .name = "--preset", .arg = "NAME", FIELD(o.preset), .choices = "paper",
     .help = "FlattenQuant as published: one scale per weight tensor, mean rule, KL selection"},
    {.kind = CLI_INT, .name = "--w-bits", .aliases = "--w_bits", .arg = "N", FIELD(o.w_bits),
     .max = 16, .choices = "16|8|4|3",
     .shown_default = "flattenquant: 4/8 mix, others 4", .help = "bits of weights"},
    {.kind = CLI_INT, .name = "--a-bits", .aliases = "--a_bits", .arg = "N", FIELD(o.a_bits),
     .max = 16, .choices = "16|8|4|3", .shown_default = "flattenquant: 4/8 mix, others 4",
     .help = "bits of activations"},
    {.kind = CLI_INT, .name = "--kv-bits", .arg = "N", FIELD(o.kv_bits), .max = 16,
     .choices = "16|8|4|3|2",
     .help = "bits of keys and values, 16 is bfloat16 on quantised models"},
    {.kind = CLI_INT, .name = "--k-bits", .aliases = "--k_bits", .arg = "N", FIELD(o.k_bits),
     .max = 16, .choices = "16|8|4|3|2", .shown_default = "as --kv-bits",
     .help = "bits of keys alone"},
    {.kind = CLI_INT, .name = "--v-bits", .aliases = "--v_bits", .arg = "N", FIELD(o.v_bits),
     .max = 16, .choices = "16|8|4|3|2", .shown_default = "as --kv-bits",
     .help = "bits of values alone"},
    {.kind = CLI_INT, .name = "--head-bits", .arg = "N", FIELD(o.head_bits), .max = 16,
     .choices = "16|8",
     .help = "bits of the head (lm_head): 8 is int8 per output channel, its input per token"},
    {.kind = CLI_TEXT, .name = "--w-granularity", .arg = "G", FIELD(o.w_granularity),
     .choices = "channel|tensor",
     .help = "one weight scale per output channel or per tensor"},
    {.kind = CLI_TEXT, .name = "--a-granularity", .aliases = "--granularity", .arg = "G",
     FIELD(o.a_granularity), .choices = "tensor|token",
     .shown_default = "flattenquant tensor, others token",
     .help = "one activation scale, fixed, or one per token"},
    {.kind = CLI_TEXT, .name = "--weights", .arg = "HOW", FIELD(o.weights),
     .choices = "rtn|gptq", .shown_default = "flattenquant gptq, others rtn",
     .help = "how weights are rounded"},
    {.kind = CLI_SET_TEXT, .name = "--no-gptq", FIELD(o.weights), .text = "rtn",
     .shown_default = "", .help = "the same as --weights rtn"},

    CLI_GROUP_ROW("Calibration"),
    {.kind = CLI_TEXT, .name = "--calib", .arg = "FILE", FIELD(o.calib_path), .required = true,
     .help = "text (.txt, or .jsonl with \"text\" fields), or the word self: text that the "
             "model itself samples"},
    {.kind = CLI_INT, .name = "--samples", .aliases = "--nsamples", .arg = "N",
     FIELD(o.n_samples), .min = 1, .max = 1 << 20, .help = "windows of calibration text"},
    {.kind = CLI_INT, .name = "--seq-len", .arg = "N", FIELD(o.seq_len), .min = 2,
     .max = 1 << 20, .shown_default = "the model's context, at most 2048",
     .help = "tokens per window"},
    {.kind = CLI_UINT64, .name = "--seed", .arg = "S", FIELD(o.seed),
     .help = "same seed, same bytes, whatever the number of threads"},

    CLI_GROUP_ROW("FlattenQuant, each stage"),
    {.kind = CLI_SWITCH, .name = "--smooth", FIELD(o.smooth),
     .help = "move activation outliers into the weights"},
    {.kind = CLI_DOUBLE, .name = "--alpha", .arg = "X", FIELD(o.alpha), .max = 1,
     .word = "auto", .word_value = -1,
     .help = "smoothing exponent, or auto: searched per layer"},
    {.kind = CLI_SWITCH, .name = "--suppress", FIELD(o.suppress),
     .help = "keep outlier channels out of the threshold"},
    {.kind = CLI_DOUBLE, .name = "--beta", .arg = "X", FIELD(o.beta), .min = 0.01, .max = 100,
     .word = "auto", .word_value = -1,
     .help = "threshold factor, or auto: searched per layer"},
    {.kind = CLI_TEXT, .name = "--threshold", .arg = "RULE", FIELD(o.threshold),
     .choices = "mean|iqr", .help = "T = beta mean, or T = Q3 + beta IQR of channel maxima"},
    {.kind = CLI_SWITCH, .name = "--flatten", FIELD(o.flatten),
     .help = "split channels above the threshold"},
    {.kind = CLI_DOUBLE, .name = "--flatten-max-ratio", .arg = "R", FIELD(o.flatten_max_ratio),
     .max = 100, .help = "largest share of extra channels, in every layer"},
    {.kind = CLI_DOUBLE, .name = "--int4-ratio", .arg = "R", FIELD(o.int4_ratio), .max = 1,
     .help = "share of linear layers at 4 bits"},
    {.kind = CLI_DOUBLE, .name = "--gamma", .arg = "X", FIELD(o.gamma), .max = 1e9,
     .word = "off", .word_value = -1,
     .help = "instead of --int4-ratio: 4 bits where D_4 - D_8 is at most X"},
    {.kind = CLI_TEXT, .name = "--select", .arg = "HOW", FIELD(o.select),
     .choices = "kl|output|random",
     .help = "what ranks the layers for 4 bits (default output, with --preset paper kl)"},
    {.kind = CLI_SWITCH, .name = "--unsigned", FIELD(o.unsigned_codes),
     .help = "unsigned codes where an activation cannot be negative"},
    {.kind = CLI_SWITCH, .name = "--bias-correction", FIELD(o.bias_correction),
     .help = "add the mean error of a layer's output to its bias"},
    {.kind = CLI_SWITCH, .name = "--flatten-weights", FIELD(o.flatten_weights),
     .help = "split large columns of the weights into digits too"},
    {.kind = CLI_DOUBLE, .name = "--weight-beta", .arg = "X", FIELD(o.weight_beta), .min = 0.01,
     .max = 100, .help = "threshold factor of --flatten-weights"},

    CLI_GROUP_ROW("GPTQ"),
    {.kind = CLI_DOUBLE, .name = "--damping", .arg = "X", FIELD(o.damping), .min = 1e-9,
     .max = 10, .help = "part of the mean Hessian diagonal that is added to it"},
    {.kind = CLI_INT, .name = "--gptq-block", .arg = "N", FIELD(o.gptq_block), .min = 1,
     .max = 1 << 16, .help = "columns per block"},
    {.kind = CLI_SWITCH, .name = "--act-order", FIELD(o.act_order),
     .help = "round columns by falling Hessian diagonal"},
    {.kind = CLI_SWITCH, .name = "--compensate", FIELD(o.compensate),
     .help = "fit the float layer's output on the quantised inputs before rounding"},

    CLI_GROUP_ROW("FlatQuant"),
    {.kind = CLI_TEXT, .name = "--recipe", .arg = "NAME", FIELD(o.recipe),
     .choices = "official",
     .help = "the published code's choices: svd, symmetric activations, float inputs, clips "
             "per linear"},
    {.kind = CLI_TEXT, .name = "--transform", .arg = "KIND", FIELD(o.transform),
     .choices = "inverse|svd|random-kron|hadamard|none",
     .shown_default = "inverse, quarot hadamard", .help = "what multiplies activations"},
    {.kind = CLI_SWITCH, .name = "--learn-scale", FIELD(o.learn_scale),
     .help = "learn a scale per channel"},
    {.kind = CLI_SWITCH, .name = "--learn-clip", FIELD(o.learn_clip),
     .help = "learn where weights, activations, keys and values are clipped"},
    {.kind = CLI_SWITCH, .name = "--clip-per-linear", FIELD(o.clip_per_linear),
     .help = "a clip for each linear layer's input, also where several share one"},
    {.kind = CLI_SWITCH, .name = "--centre", FIELD(o.centre), .shown_default = "on for OPT",
     .help = "move the means of layers' inputs into biases (OPT, norms in front)"},
    {.kind = CLI_SWITCH, .name = "--asymmetric", FIELD(o.asymmetric),
     .help = "a zero point per token"},
    {.kind = CLI_SWITCH, .name = "--quantized-inputs", FIELD(o.quantized_inputs),
     .help = "train a block on what the quantised blocks before it put out"},
    {.kind = CLI_INT, .name = "--epochs", .arg = "N", FIELD(o.epochs), .max = 10000,
     .shown_default = "15",
     .help = "passes over the calibration windows per block; 0: transforms stay as they start"},
    {.kind = CLI_INT, .name = "--cali-bsz", .aliases = "--cali_bsz", .arg = "N",
     FIELD(o.batch_windows), .min = 1, .max = 1 << 16, .shown_default = "4",
     .help = "windows per training step"},
    {.kind = CLI_INT, .name = "--warmup-steps", .arg = "N", FIELD(o.warmup_steps),
     .max = 1 << 20, .shown_default = "0", .help = "steps in which the rate rises"},
    {.kind = CLI_DOUBLE, .name = "--flat-lr", .aliases = "--flat_lr", .arg = "X", FIELD(o.lr),
     .max = 10, .shown_default = "0.005", .help = "learning rate"},
    {.kind = CLI_DOUBLE, .name = "--min-lr", .arg = "X", FIELD(o.min_lr), .max = 10,
     .shown_default = "5e-6", .help = "rate at the end of the cosine"},
    {.kind = CLI_DOUBLE, .name = "--clip-lr", .arg = "X", FIELD(o.clip_lr), .max = 1e6,
     .shown_default = "10", .help = "rate of the clips, times the learning rate"},
    {.kind = CLI_DOUBLE, .name = "--weight-lr", .arg = "X", FIELD(o.weight_lr), .max = 1e6,
     .shown_default = "0", .help = "rate of the weights themselves, times the learning rate"},
    {.kind = CLI_DOUBLE, .name = "--weight-decay", .arg = "X", FIELD(o.weight_decay),
     .max = 10, .shown_default = "0.01", .help = "of AdamW"},
    {.kind = CLI_DOUBLE, .name = "--diag-alpha", .aliases = "--diag_alpha", .arg = "X",
     FIELD(o.diag_alpha), .max = 1, .shown_default = "0.3",
     .help = "start of the scales: 1 leaves nothing in the activations"},
    {.kind = CLI_TEXT, .name = "--train-dtype", .arg = "T", FIELD(o.train_dtype),
     .choices = "auto|float32|bf16", .help = "matrix products in training"},

    CLI_GROUP_ROW("End-to-end tuning"),
    {.kind = CLI_INT, .name = "--tune-epochs", .arg = "N", FIELD(o.tune_epochs), .max = 10000,
     .shown_default = "4, other methods than flatquant 0",
     .help = "passes of the quantised model, whose norm gains and weight scales learn the "
             "float model's predictions"},
    {.kind = CLI_DOUBLE, .name = "--tune-lr", .arg = "X", FIELD(o.tune_lr), .max = 10,
     .shown_default = "0.005", .help = "learning rate of that"},

    CLI_GROUP_ROW("Job"),
    {.kind = CLI_FLAG, .name = "--dry-run", FIELD(o.dry_run),
     .help = "print memory, disk and time needed; write nothing"},
    {.kind = CLI_FLAG, .name = "--resume", FIELD(o.resume),
     .help = "go on where an earlier run stopped"},
    {.kind = CLI_INT, .name = "--redo-from", .arg = "BLOCK", FIELD(o.redo_from), .max = 1 << 20,
     .word = "off", .word_value = -1,
     .help = "with the checkpoint: do again from this block on"},
    {.kind = CLI_DOUBLE, .name = "--max-ppl-increase", .arg = "P", FIELD(o.max_ppl_increase),
     .max = 1e6, .word = "off", .word_value = -1,
     .help = "quality gate (exit code 5): perplexity over the float model's, 0.05 is 5 %"},
    {.kind = CLI_DOUBLE, .name = "--max-kld", .arg = "D", FIELD(o.max_kld), .max = 1e6,
     .word = "off", .word_value = -1,
     .help = "quality gate: mean KL divergence from the float model"},
    {.kind = CLI_TEXT, .name = "--gate-data", .arg = "FILE", FIELD(o.gate_path),
     .shown_default = "the calibration text", .help = "text of the gates"},
    CLI_OPT_ISA(quantize_args, o.isa),
    CLI_OPT_THREADS(quantize_args, o.n_threads),
    CLI_OPT_DEVICE(quantize_args, device),
    {.kind = CLI_FLAG, .name = "--verbose", .aliases = "-v", FIELD(verbose),
     .help = "print a line per layer at the end"},
    CLI_OPT_JSON(quantize_args, json),
};
/* clang-format on */

static void on_progress(void *user, const fl_quantize_progress *p)
{
    char label[48], loss[48] = "";
    (void)snprintf(label, sizeof label, "%s: block", p->stage);
    if (isfinite(p->loss)) (void)snprintf(loss, sizeof loss, "loss %.3e", p->loss);
    cli_progress_show(user, label, p->block + 1, p->n_blocks, loss, p->eta_s);
}

/* One line per value that the report has. */
static void print_values(const json_t *report, const cli_column *values, int n)
{
    char text[256];
    for (int i = 0; i < n; i++)
        if (cli_json_at(report, values[i].path))
            (void)printf("%-28s %s\n", values[i].title,
                         cli_json_text(text, sizeof text, report, &values[i]));
}

/* What a person wants to know; --json has everything. */
static void print_summary(const json_t *report)
{
    static const cli_column values[] = {
        {"method", "options.method", "%g", 0},
        {"activations", "options.activation", "%g", 0},
        {"weights", "options.weights", "%g", 0},
        {"bits of keys", "options.k_bits", "%.0f", 0},
        {"bits of values", "options.v_bits", "%.0f", 0},
        {"bits of the head", "options.head_bits", "%.0f", 0},
        {"linear layers at INT4, %", "summary.int4_share_linears", "%.2f", 100},
        {"weights at INT4, %", "summary.int4_share_parameters", "%.2f", 100},
        {"flatten ratio, %", "summary.flatten_ratio", "%.2f", 100},
        {"largest of an INT4 layer, %", "summary.max_flatten_ratio_int4", "%.2f", 100},
        {"effective activation bits", "summary.effective_activation_bits", "%.3f", 0},
        {"stored bits per weight", "summary.stored_weight_bits", "%.3f", 0},
        {"perplexity increase, %", "gate.ppl_increase", "%.3f", 100},
        {"KL divergence", "gate.kld_mean", "%.5f", 0},
        {"peak memory, MB", "memory.peak_bytes", "%.1f", 1e-6},
        {"estimated before, MB", "memory.estimated_peak_bytes", "%.1f", 1e-6},
        {"time, s", "seconds", "%.1f", 0},
        {"written to", "output", "%g", 0},
    };
    print_values(report, values, sizeof values / sizeof *values);
}

static void print_estimate(const json_t *estimate)
{
    static const cli_column values[] = {
        {"one block in float32, MB", "items.block_float32", "%.1f", 1e-6},
        {"its integers, MB", "items.block_integer", "%.1f", 1e-6},
        {"its Hessians, MB", "items.hessians", "%.1f", 1e-6},
        {"activations, MB", "items.activations", "%.1f", 1e-6},
        {"workspace of a batch, MB", "items.workspace", "%.1f", 1e-6},
        {"statistics, MB", "items.plan_statistics", "%.1f", 1e-6},
        {"training, MB", "items.training", "%.1f", 1e-6},
        {"tuning, MB", "items.tuning", "%.1f", 1e-6},
        {"peak memory, MB", "peak_bytes", "%.1f", 1e-6},
        {"disk, MB", "disk_bytes", "%.1f", 1e-6},
        {"time, s (rough)", "seconds", "%.0f", 0},
    };
    print_values(estimate, values, sizeof values / sizeof *values);
}

static fl_status print_result(const quantize_args *a, const char *text, fl_err *err)
{
    json_t *report = NULL;
    if (a->json) {
        cli_print_json_text(text);
        return FL_OK;
    }
    const fl_status st = cli_parse_report(&report, text, err);
    if (st != FL_OK) return st;
    if (a->o.dry_run) print_estimate(report);
    else print_summary(report);
    if (a->verbose) cli_print_sites(report);
    json_decref(report);
    return FL_OK;
}

static fl_status run(const cli_verb *verb, int argc, char **argv, fl_err *err)
{
    quantize_args a = {.json = false};
    fl_err print_err = {""};
    cli_progress progress;
    char *report = NULL;
    bool done;
    fl_quantize_options_defaults(&a.o);
    fl_status st = cli_parse(&done, verb, &a, argc, argv, err);
    if (st != FL_OK || done) return st;
    cli_progress_init(&progress, 0);
    cli_interrupt_install();
    a.o.log = cli_progress_log(&progress);
    a.o.on_progress = on_progress;
    a.o.should_stop = cli_should_stop;
    a.o.user = &progress;
    st = fl_quantize_run(&report, &a.o, err);
    cli_progress_clear(&progress);
    /* A failed gate has a report too, and it says by how much. */
    if (report) {
        const fl_status printed = print_result(&a, report, &print_err);
        if (st == FL_OK && printed != FL_OK) {
            st = printed;
            *err = print_err;
        }
    }
    fl_string_free(&report);
    return st;
}

const cli_verb cli_verb_quantize = {
    .name = "quantize",
    .summary = "makes a quantised model from a float one",
    .usage = "MODEL OUT --method METHOD --calib FILE",
    .arguments = {{"MODEL", offsetof(quantize_args, o.model_dir)},
                  {"OUT", offsetof(quantize_args, o.out_dir)}},
    .options = options,
    .n_options = sizeof options / sizeof *options,
    .details =
        "Reads the directory MODEL (Hugging Face layout) and writes the directory OUT, "
        "which must\nnot exist. Works in OUT.partial, where a stopped run can be resumed.",
    .examples =
        "  flatiron quantize model out --method flattenquant --calib wiki.train.txt\n"
        "  flatiron quantize model out8 --method flattenquant --w-bits 8 --a-bits 8 --calib "
        "self\n"
        "  flatiron quantize model out4 --method flattenquant --kv-bits 4 --calib self\n"
        "  flatiron quantize model out4 --method rtn --w-bits 4 --a-bits 16 --calib self "
        "--dry-run\n",
    .run = run,
};
