/* cmd_verify.c - flatiron verify: is every tensor of a model what its config says?
 * SPDX-License-Identifier: MIT */
#include "print.h"
#include "verbs.h"

#include <stdio.h>

typedef struct verify_args {
    const char *model_dir;
    bool json;
} verify_args;

static const cli_option options[] = {CLI_OPT_JSON(verify_args, json)};

static void print_report(const json_t *report)
{
    char bytes[24];
    const json_t *problems = cli_json_at(report, "problems");
    const json_t *unexpected = cli_json_at(report, "unexpected");
    const size_t n = json_array_size(problems);
    for (size_t i = 0; i < json_array_size(unexpected); i++)
        (void)printf("note: %s: the model does not use this tensor\n",
                     json_string_value(json_array_get(unexpected, i)));
    for (size_t i = 0; i < n; i++)
        (void)printf("%s\n", json_string_value(json_array_get(problems, i)));
    const size_t n_unexpected = json_array_size(cli_json_at(report, "unexpected"));
    if (n_unexpected > 0)
        (void)printf("%zu tensors that the model does not use (--json names them)\n",
                     n_unexpected);
    (void)printf("%s: %lld tensors, %s\n", n == 0 ? "ok" : "not ok",
                 (long long)json_integer_value(cli_json_at(report, "tensors")),
                 cli_bytes(bytes, sizeof bytes,
                           (double)json_integer_value(cli_json_at(report, "bytes"))));
}

static fl_status run(const cli_verb *verb, int argc, char **argv, fl_err *err)
{
    verify_args a = {.json = false};
    char *text = NULL;
    json_t *report = NULL;
    fl_err report_err;
    bool done;
    fl_status st = cli_parse(&done, verb, &a, argc, argv, err);
    if (st != FL_OK || done) return st;
    st = fl_verify_run(&text, a.model_dir, err);
    if (text && a.json) cli_print_json_text(text);
    else if (text && cli_parse_report(&report, text, &report_err) == FL_OK)
        print_report(report);
    json_decref(report);
    fl_string_free(&text);
    return st;
}

const cli_verb cli_verb_verify = {
    .name = "verify",
    .summary = "checks every tensor of a model against its config",
    .usage = "MODEL",
    .arguments = {{"MODEL", offsetof(verify_args, model_dir)}},
    .options = options,
    .n_options = sizeof options / sizeof *options,
    .details =
        "Names, shapes, types, finite values, codes in range. Exit code 3 when the model "
        "cannot\nbe used.",
    .examples = "  flatiron verify out\n  flatiron verify model --json\n",
    .run = run,
};
