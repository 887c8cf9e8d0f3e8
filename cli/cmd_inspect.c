/* cmd_inspect.c - flatiron inspect: what a model is and how it was made.
 * SPDX-License-Identifier: MIT */
#include "print.h"
#include "sites.h"
#include "verbs.h"

#include <stdio.h>

typedef struct inspect_args {
    const char *model_dir;
    bool json;
} inspect_args;

/* clang-format off */
static const cli_option options[] = {
    CLI_OPT_JSON(inspect_args, json),
    CLI_LATER_ROW("--report", "OUT.html", "report with pictures"),
};
/* clang-format on */

static long long number_at(const json_t *report, const char *path)
{
    return (long long)json_integer_value(cli_json_at(report, path));
}

static void print_tensors(const json_t *report)
{
    char bytes[24];
    const char *type;
    const json_t *row, *types = cli_json_at(report, "dtypes");
    (void)printf("tensors     %lld, %s:", number_at(report, "tensors"),
                 cli_bytes(bytes, sizeof bytes, (double)number_at(report, "tensor_bytes")));
    for (void *at = json_object_iter((json_t *)types); at;
         at = json_object_iter_next((json_t *)types, at)) {
        type = json_object_iter_key(at);
        row = json_object_iter_value(at);
        (void)printf(" %s %lld (%s)", type, number_at(row, "tensors"),
                     cli_bytes(bytes, sizeof bytes, (double)number_at(row, "bytes")));
    }
    (void)printf("\n");
}

/* The first layer's sizes, which are every layer's unless a plan says otherwise; all of them
 * are in --json. */
static void print_transforms(const json_t *report)
{
    const json_t *sites = cli_json_at(report, "transforms.sites"), *site;
    const size_t n_heads = json_array_size(cli_json_at(report, "transforms.heads"));
    size_t i;
    if (json_array_size(sites) == 0 && n_heads == 0) return;
    (void)printf("transforms  %zu inputs:", json_array_size(sites));
    json_array_foreach(sites, i, site)
    {
        if (number_at(site, "layer") != number_at(json_array_get(sites, 0), "layer")) break;
        (void)printf(" %s %lld x %lld", json_string_value(json_object_get(site, "site")),
                     number_at(site, "n1"), number_at(site, "n2"));
    }
    (void)printf("; heads of queries and keys in %zu layers\n", n_heads);
}

static void print_report(const json_t *report)
{
    const json_t *quantization = cli_json_at(report, "quantization");
    (void)printf("family      %s\n", json_string_value(cli_json_at(report, "family")));
    (void)printf("parameters  %lld\n", number_at(report, "n_params"));
    (void)printf("layers      %lld, hidden %lld, feed-forward %lld\n",
                 number_at(report, "n_layers"), number_at(report, "hidden_size"),
                 number_at(report, "ffn_size"));
    (void)printf("heads       %lld, of keys and values %lld, %lld wide\n",
                 number_at(report, "n_heads"), number_at(report, "n_kv_heads"),
                 number_at(report, "head_dim"));
    (void)printf("vocabulary  %lld\ncontext     %lld\n", number_at(report, "vocab_size"),
                 number_at(report, "n_positions"));
    print_tensors(report);
    (void)printf("head        %lld bits%s\n", number_at(report, "head_bits"),
                 json_is_true(cli_json_at(report, "tied_head")) &&
                         number_at(report, "head_bits") == 16
                     ? ", the embedding's" : "");
    (void)printf("KV cache    %s, %lld bytes per token\n",
                 json_string_value(cli_json_at(report, "kv_format")),
                 number_at(report, "kv_bytes_per_token"));
    (void)printf("quantised   %s\n",
                 quantization ? json_string_value(cli_json_at(report, "quant_method")) : "no");
    if (!quantization) return;
    print_transforms(report);
    (void)printf("\n");
    cli_print_sites(quantization);
}

static fl_status run(const cli_verb *verb, int argc, char **argv, fl_err *err)
{
    inspect_args a = {.json = false};
    char *text = NULL;
    json_t *report = NULL;
    bool done;
    fl_status st = cli_parse(&done, verb, &a, argc, argv, err);
    if (st != FL_OK || done) return st;
    st = fl_inspect_run(&text, a.model_dir, err);
    if (st != FL_OK) return st;
    if (a.json) {
        cli_print_json_text(text);
    } else {
        st = cli_parse_report(&report, text, err);
        if (st == FL_OK) print_report(report);
        json_decref(report);
    }
    fl_string_free(&text);
    return st;
}

const cli_verb cli_verb_inspect = {
    .name = "inspect",
    .summary = "what a model is and how it was made",
    .usage = "MODEL",
    .arguments = {{"MODEL", offsetof(inspect_args, model_dir)}},
    .options = options,
    .n_options = sizeof options / sizeof *options,
    .examples = "  flatiron inspect out\n  flatiron inspect out --json\n",
    .run = run,
};
