/* cmd_generate.c - flatiron generate: text that continues a prompt.
 *
 * Only the continuation goes to stdout, as it is generated; the timing goes to stderr.
 * SPDX-License-Identifier: MIT */
#include "interrupt.h"
#include "print.h"
#include "progress.h"
#include "verbs.h"

#include <stdio.h>
#include <string.h>

enum { MAX_DEFAULT_CONTEXT = 4096 };

typedef struct generate_args {
    const char *model_dir, *prompt, *prompt_path;
    fl_engine_options engine;
    fl_generate_options o;
    int ctx_size;
    bool json;
} generate_args;

#define FIELD(F) .offset = offsetof(generate_args, F)

/* clang-format off */
static const cli_option options[] = {
    {.kind = CLI_TEXT, .name = "--prompt", .aliases = "-p", .arg = "TEXT", FIELD(prompt),
     .help = "text to continue"},
    {.kind = CLI_TEXT, .name = "--file", .aliases = "-f", .arg = "FILE", FIELD(prompt_path),
     .help = "file with the text to continue"},
    {.kind = CLI_INT, .name = "--n-predict", .aliases = "-n|--n_predict", .arg = "N",
     FIELD(o.n_predict), .min = -1, .max = 1 << 20,
     .help = "tokens to generate, -1 until the end token or the context's end"},
    {.kind = CLI_INT, .name = "--ctx-size", .aliases = "-c", .arg = "N", FIELD(ctx_size),
     .min = 1, .max = 1 << 20, .shown_default = "the model's context, at most 4096",
     .help = "room for prompt and text, in tokens"},
    {.kind = CLI_FLAG, .name = "--special", FIELD(o.special),
     .help = "print special tokens such as <unk> too"},
    CLI_GROUP_ROW("Sampling"),
    {.kind = CLI_FLOAT, .name = "--temp", .aliases = "--temperature", .arg = "T",
     FIELD(o.sample.temperature), .max = 100, .help = "temperature, 0 is greedy"},
    {.kind = CLI_INT, .name = "--top-k", .arg = "K", FIELD(o.sample.top_k), .max = 1 << 30,
     .help = "only the K likeliest tokens, 0 is all"},
    {.kind = CLI_FLOAT, .name = "--top-p", .arg = "P", FIELD(o.sample.top_p), .min = 1e-6,
     .max = 1, .help = "only the likeliest tokens that together reach P, 1 is all"},
    {.kind = CLI_FLOAT, .name = "--min-p", .arg = "P", FIELD(o.sample.min_p), .max = 1,
     .help = "only tokens at least P times as likely as the likeliest, 0 is all"},
    {.kind = CLI_FLOAT, .name = "--repeat-penalty", .arg = "R",
     FIELD(o.sample.repeat_penalty), .min = 0.01, .max = 100,
     .help = "divides the logits of the last 64 tokens, 1 is off"},
    {.kind = CLI_UINT64, .name = "--seed", .aliases = "-s", .arg = "S", FIELD(o.sample.seed),
     .help = "same seed, same text"},
    CLI_GROUP_ROW("Running"),
    CLI_OPT_ISA(generate_args, engine.isa),
    CLI_OPT_THREADS(generate_args, engine.n_threads),
    CLI_OPT_JSON(generate_args, json),
    CLI_OPT_DEVICE_RUN(generate_args, engine.device),
};
/* clang-format on */

/* Called after each token, so that a signal is noticed between any two. */
static bool on_text(void *user, const char *text, size_t n_bytes)
{
    const generate_args *a = user;
    if (!a->json && n_bytes > 0) {
        (void)fwrite(text, 1, n_bytes, stdout);
        (void)fflush(stdout);
    }
    return cli_interrupt_signal() == 0;
}

static double tokens_per_s(const fl_generate_result *r)
{
    return r->decode_s > 0 ? r->n_tokens / r->decode_s : 0;
}

static json_t *result_json(const fl_generate_result *r)
{
    json_t *ids = json_array();
    for (int i = 0; i < r->n_tokens; i++)
        (void)json_array_append_new(ids, json_integer(r->ids[i]));
    return json_pack("{s:o, s:o, s:s, s:i, s:i, s:f, s:f, s:f}", "text",
                     json_stringn(r->text, r->n_text_bytes), "ids", ids, "finish_reason",
                     r->finish_reason, "n_prompt_tokens", r->n_prompt_tokens, "n_tokens",
                     r->n_tokens, "prefill_s", r->prefill_s, "decode_s", r->decode_s,
                     "tokens_per_s", tokens_per_s(r));
}

static fl_status print_result(const generate_args *a, const fl_generate_result *r, fl_err *err)
{
    if (a->json) return cli_print_json(result_json(r), err);
    (void)putchar('\n');
    (void)fprintf(stderr,
                  "%d prompt tokens in %.2f s, %d tokens in %.2f s (%.1f tokens/s), %s\n",
                  r->n_prompt_tokens, r->prefill_s, r->n_tokens, r->decode_s, tokens_per_s(r),
                  r->finish_reason);
    return FL_OK;
}

static fl_status generate(generate_args *a, fl_session *session, fl_err *err)
{
    fl_generate_result result;
    fl_status st = fl_session_generate(&result, session, &a->o, err);
    if (st != FL_OK) return st;
    st = print_result(a, &result, err);
    fl_generate_result_fini(&result);
    if (st == FL_OK && cli_interrupt_signal())
        return cli_fail(
            err, FL_E_INTERRUPTED,
            "interrupted: generate: stopped by a signal; the text so far is complete");
    return st;
}

static fl_status open_and_generate(generate_args *a, fl_err *err)
{
    fl_engine *engine = NULL;
    fl_session *session = NULL;
    fl_session_options so;
    fl_engine_info info;
    fl_status st = fl_engine_open(&engine, a->model_dir, &a->engine, err);
    if (st != FL_OK) return st;
    fl_engine_get_info(engine, &info);
    fl_session_options_defaults(&so);
    so.n_positions = a->ctx_size;
    if (!a->ctx_size && info.n_positions > MAX_DEFAULT_CONTEXT)
        so.n_positions = MAX_DEFAULT_CONTEXT;
    st = fl_session_new(&session, engine, &so, err);
    if (st == FL_OK) st = generate(a, session, err);
    fl_session_free(&session);
    fl_engine_close(&engine);
    return st;
}

static fl_status check_prompt(generate_args *a, fl_err *err)
{
    if (!a->prompt == !a->prompt_path)
        return cli_fail(err, FL_E_USAGE,
                        "%s: flatiron generate: the prompt comes from --prompt or from --file; "
                        "give one of them",
                        a->prompt ? "two prompts" : "missing option");
    a->o.prompt = a->prompt;
    a->o.n_prompt_bytes = a->prompt ? strlen(a->prompt) : 0;
    a->o.prompt_path = a->prompt_path;
    return FL_OK;
}

static fl_status run(const cli_verb *verb, int argc, char **argv, fl_err *err)
{
    generate_args a = {.json = false};
    cli_progress progress;
    bool done;
    fl_engine_options_defaults(&a.engine);
    fl_generate_options_defaults(&a.o);
    fl_status st = cli_parse(&done, verb, &a, argc, argv, err);
    if (st == FL_OK && !done) st = check_prompt(&a, err);
    if (st != FL_OK || done) return st;
    cli_progress_init(&progress, 0);
    cli_interrupt_install();
    a.engine.log = cli_progress_log(&progress);
    a.o.on_text = on_text;
    a.o.user = &a;
    return open_and_generate(&a, err);
}

const cli_verb cli_verb_generate = {
    .name = "generate",
    .summary = "text that continues a prompt",
    .usage = "MODEL -p TEXT|-f FILE",
    .arguments = {{"MODEL", offsetof(generate_args, model_dir)}},
    .options = options,
    .n_options = sizeof options / sizeof *options,
    .examples = "  flatiron generate out -p 'The history of the city' -n 64\n"
                "  flatiron generate out -f prompt.txt --temp 0 --json\n",
    .run = run,
};
