/* cmd_bench.c - flatiron bench: rates of the integer kernels, and of whole models, on this
 * machine.
 * SPDX-License-Identifier: MIT */
#include "bench_tables.h"
#include "print.h"
#include "progress.h"
#include "verbs.h"

#include <stdio.h>
#include <string.h>

enum { MAX_SHAPES = 256, MAX_DIM = 1 << 20 };

typedef struct bench_args {
    fl_bench_options o;
    fl_bench_model_options model;
    const char *what, *shape, *form, *isa, *device, *opponent;
    int n_repeats, n_threads;
    bool json;
} bench_args;

#define FIELD(F) .offset = offsetof(bench_args, F)

/* clang-format off */
static const cli_option options[] = {
    {.kind = CLI_TEXT, .name = "--shape", .arg = "SHAPE", FIELD(shape),
     .shown_default = "kernels: a built-in list, model: llama3-8b",
     .help = "kernels: MxNxK, llama3-8b, or a file with lines of M N K; model: llama3-8b, "
             "llama3-70b, llama2-7b, opt-6.7b, opt-30b, or a file with the sizes of a "
             "config.json"},
    {.kind = CLI_INT, .name = "--repeats", .aliases = "-r", .arg = "N", FIELD(n_repeats),
     .min = 1, .max = 1000, .help = "interleaved runs, of which the median counts"},
    {.kind = CLI_TEXT, .name = "--output", .aliases = "-o", .arg = "FORM", FIELD(form),
     .choices = "md|csv|json", .help = "how to print"},
    CLI_OPT_ISA(bench_args, isa),
    CLI_OPT_THREADS(bench_args, n_threads),
    CLI_OPT_DEVICE_RUN(bench_args, device),
    CLI_OPT_JSON(bench_args, json),

    CLI_GROUP_ROW("Only bench kernels"),
    {.kind = CLI_TEXT, .name = "--filter", .arg = "TEXT", FIELD(o.filter),
     .help = "only kernels whose name contains TEXT"},

    CLI_GROUP_ROW("Only bench model"),
    {.kind = CLI_INT, .name = "--layers", .arg = "N", FIELD(model.n_layers), .min = 1,
     .max = 1 << 12, .shown_default = "the shape's", .help = "layers that run"},
    {.kind = CLI_INT, .name = "--prompt", .aliases = "-p", .arg = "N", FIELD(model.n_prompt),
     .min = 1, .max = 1 << 20, .help = "tokens of the prefill"},
    {.kind = CLI_INT, .name = "--predict", .aliases = "-n", .arg = "N", FIELD(model.n_predict),
     .min = 1, .max = 1 << 20, .help = "tokens decoded behind it"},
    {.kind = CLI_INT, .name = "--batch", .aliases = "-b", .arg = "N", FIELD(model.n_sequences),
     .min = 1, .max = 256, .help = "sequences at once"},
    {.kind = CLI_TEXT, .name = "--method", .arg = "METHOD", FIELD(model.method),
     .choices = "flatquant|flattenquant|rtn",
     .help = "what is done to activations: transforms, static scales and copies, or neither"},
    {.kind = CLI_INT, .name = "--w-bits", .arg = "N", FIELD(model.w_bits), .max = 16,
     .choices = "16|8|4", .help = "bits of weights; 16: a model that is not quantised"},
    {.kind = CLI_INT, .name = "--a-bits", .arg = "N", FIELD(model.a_bits), .max = 16,
     .choices = "8|4", .help = "bits of activations"},
    {.kind = CLI_INT, .name = "--kv-bits", .arg = "N", FIELD(model.kv_bits), .max = 16,
     .choices = "16|8|4", .help = "bits of keys and values"},
    {.kind = CLI_INT, .name = "--head-bits", .arg = "N", FIELD(model.head_bits), .max = 16,
     .choices = "16|8", .help = "bits of the head"},
    {.kind = CLI_TEXT, .name = "--opponent", .arg = "WHAT", FIELD(opponent),
     .choices = "bf16|none", .help = "16-bit model of the same shape, run in turn"},
};
/* clang-format on */

/* M is a decode step and a prefill; N, K are the linear layers of the model. */
static const int llama3_8b[][3] = {
    {1, 6144, 4096},   {1, 4096, 4096},   {1, 28672, 4096},   {1, 4096, 14336},
    {512, 6144, 4096}, {512, 4096, 4096}, {512, 28672, 4096}, {512, 4096, 14336},
};

static bool parse_shape(int shape[3], const char *text, const char *form)
{
    int used = 0;
    if (sscanf(text, form, &shape[0], &shape[1], &shape[2], &used) != 3) return false;
    for (int i = 0; i < 3; i++)
        if (shape[i] < 1 || shape[i] > MAX_DIM) return false;
    return text[used + (int)strspn(text + used, " \t\r\n")] == '\0';
}

/* Lines of "M N K"; # begins a comment. */
static fl_status read_shapes(int shapes[][3], int *n_shapes, const char *path, fl_err *err)
{
    char line[256];
    int number = 0;
    fl_status st = FL_OK;
    FILE *f = fopen(path, "r");
    if (!f)
        return cli_fail(err, FL_E_INPUT,
                        "cannot read shapes: %s: no such shape and no such file; use MxNxK, "
                        "llama3-8b or a file with lines of M N K",
                        path);
    while (st == FL_OK && fgets(line, sizeof line, f)) {
        number++;
        line[strcspn(line, "#")] = '\0';
        if (line[strspn(line, " \t\r\n")] == '\0') continue;
        if (*n_shapes == MAX_SHAPES || !parse_shape(shapes[*n_shapes], line, "%d %d %d%n"))
            st =
                cli_fail(err, FL_E_INPUT,
                         "bad shape: %s: line %d is not M N K with each from 1 to %d, or there "
                         "are more than %d; fix the file",
                         path, number, MAX_DIM, MAX_SHAPES);
        else (*n_shapes)++;
    }
    if (st == FL_OK && *n_shapes == 0)
        st = cli_fail(err, FL_E_INPUT, "bad shape: %s: the file has none; write lines of M N K",
                      path);
    (void)fclose(f);
    return st;
}

static fl_status choose_shapes(fl_bench_options *o, int shapes[][3], const char *shape,
                               fl_err *err)
{
    fl_status st = FL_OK;
    int n = 0;
    if (!shape) return FL_OK;
    if (strcmp(shape, "llama3-8b") == 0) {
        n = (int)(sizeof llama3_8b / sizeof *llama3_8b);
        memcpy(shapes, llama3_8b, sizeof llama3_8b);
    } else if (parse_shape(shapes[0], shape, "%dx%dx%d%n")) {
        n = 1;
    } else {
        st = read_shapes(shapes, &n, shape, err);
    }
    o->shapes = (const int(*)[3])shapes;
    o->n_shapes = n;
    return st;
}

static void print_rows(const json_t *report, cli_table form)
{
    static const cli_column columns[] = {
        {.title = "kernel", .path = "kernel"},
        {.title = "op", .path = "op"},
        {.title = "M", .path = "M", .fmt = "%.0f"},
        {.title = "N", .path = "N", .fmt = "%.0f"},
        {.title = "K", .path = "K", .fmt = "%.0f"},
        {.title = "threads", .path = "threads", .fmt = "%.0f"},
        {.title = "ms", .path = "ms", .fmt = "%.4f"},
        {.title = "rate", .path = "rate", .fmt = "%.2f"},
        {.title = "unit", .path = "unit"},
        {.title = "of floor", .path = "fraction_of_floor", .fmt = "%.3f"},
        {.title = "floor", .path = "floor"},
        {.title = "floor ms", .path = "floor_ms", .fmt = "%.4f"},
        {.title = "x oneDNN s8", .path = "ratio_onednn_s8", .fmt = "%.3f"},
        {.title = "x oneDNN bf16", .path = "ratio_onednn_bf16", .fmt = "%.3f"},
    };
    cli_print_table(form, cli_json_at(report, "rows"), columns,
                    sizeof columns / sizeof *columns);
}

/* The scalars of "machine" and the like, one per line, as comments of the table. */
static void print_scalars(const json_t *report, const char *name, cli_table form)
{
    char text[256];
    const char *key;
    json_t *value, *scalars = json_object_get(report, name);
    json_object_foreach(scalars, key, value)
    {
        const cli_column column = {.path = key, .fmt = "%.6g"};
        if (json_is_object(value) || json_is_array(value)) continue;
        (void)printf("%s%s: %s\n", form == CLI_CSV ? "# " : "", key,
                     cli_json_text(text, sizeof text, scalars, &column));
    }
}

static bool is_model(const bench_args *a)
{
    return strcmp(a->what, "model") == 0;
}

static fl_status print_result(const bench_args *a, const char *text, fl_err *err)
{
    json_t *report = NULL;
    if (a->json || strcmp(a->form, "json") == 0) {
        cli_print_json_text(text);
        return FL_OK;
    }
    const fl_status st = cli_parse_report(&report, text, err);
    if (st != FL_OK) return st;
    const cli_table form = strcmp(a->form, "csv") == 0 ? CLI_CSV : CLI_MARKDOWN;
    print_scalars(report, "machine", form);
    print_scalars(report, "shape", form);
    (void)printf("%s", form == CLI_CSV ? "" : "\n");
    if (is_model(a)) bench_tables_print(report, form);
    else print_rows(report, form);
    json_decref(report);
    return FL_OK;
}

static fl_status run_kernels(char **report, bench_args *a, fl_err *err)
{
    int shapes[MAX_SHAPES][3];
    if (a->device && strcmp(a->device, "cpu") != 0)
        return cli_fail(err, FL_E_UNSUPPORTED,
                        "not here: bench kernels --device %s: the GPU's kernels are measured "
                        "by make cuda-bench; use that, or bench model",
                        a->device);
    const fl_status st = choose_shapes(&a->o, shapes, a->shape, err);
    return st ? st : fl_bench_kernels_run(report, &a->o, err);
}

static fl_status run_model(char **report, bench_args *a, fl_err *err)
{
    a->model.device = a->device;
    a->model.alone = strcmp(a->opponent, "none") == 0;
    if (a->shape) a->model.shape = a->shape;
    return fl_bench_model_run(report, &a->model, err);
}

static fl_status run(const cli_verb *verb, int argc, char **argv, fl_err *err)
{
    bench_args a = {.form = "md", .opponent = "bf16"};
    cli_progress progress;
    char *report = NULL;
    bool done;
    fl_bench_options_defaults(&a.o);
    fl_bench_model_options_defaults(&a.model);
    a.isa = a.o.isa;
    a.n_repeats = a.o.n_repeats;
    fl_status st = cli_parse(&done, verb, &a, argc, argv, err);
    if (st != FL_OK || done) return st;
    if (!is_model(&a) && strcmp(a.what, "kernels") != 0)
        return cli_fail(err, FL_E_USAGE,
                        "bad argument: WHAT: '%s' cannot be measured; use kernels or model",
                        a.what);
    cli_progress_init(&progress, 0);
    a.o.log = a.model.log = cli_progress_log(&progress);
    a.o.isa = a.model.isa = a.isa;
    a.o.n_repeats = a.model.n_repeats = a.n_repeats;
    a.o.n_threads = a.model.n_threads = a.n_threads;
    st = is_model(&a) ? run_model(&report, &a, err) : run_kernels(&report, &a, err);
    if (st == FL_OK) st = print_result(&a, report, err);
    fl_string_free(&report);
    return st;
}

const cli_verb cli_verb_bench = {
    .name = "bench",
    .summary = "rates of the kernels and of whole models on this machine",
    .usage = "kernels|model",
    .arguments = {{"WHAT", offsetof(bench_args, what)}},
    .options = options,
    .n_options = sizeof options / sizeof *options,
    .details =
        "bench model makes a model of random weights in memory and runs it as generate does, "
        "in turn\nwith a 16-bit model of the same shape: prefill and decode, time per part, "
        "memory, and the\nfloors that the machine sets, measured in the same run.",
    .examples = "  flatiron bench kernels --shape 512x4096x4096 --threads 2\n"
                "  flatiron bench kernels --shape llama3-8b --json\n"
                "  flatiron bench model --shape llama3-8b --layers 16 --threads 2\n"
                "  flatiron bench model --shape model/config.json --kv-bits 4 --head-bits 8\n",
    .run = run,
};
