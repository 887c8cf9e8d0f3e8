/* cmd_devices.c - flatiron devices: what there is to compute on. SPDX-License-Identifier: MIT
 */
#include "print.h"
#include "verbs.h"

#include <stdio.h>

typedef struct devices_args {
    bool json;
} devices_args;

static const cli_option options[] = {CLI_OPT_JSON(devices_args, json)};

static void print_cpu(const json_t *d)
{
    const json_t *isa = cli_json_at(d, "isa");
    (void)printf("  isa     ");
    for (size_t i = 0; i < json_array_size(isa); i++)
        (void)printf(" %s", json_string_value(json_array_get(isa, i)));
    (void)printf("%s\n  threads  %lld on %lld cores\n", json_array_size(isa) ? "" : " ref",
                 (long long)json_integer_value(cli_json_at(d, "threads")),
                 (long long)json_integer_value(cli_json_at(d, "cores")));
}

static void print_device(const json_t *d)
{
    char total[24], available[24];
    (void)printf("%s\n  name     %s\n", json_string_value(cli_json_at(d, "device")),
                 json_string_value(cli_json_at(d, "name")));
    if (cli_json_at(d, "isa")) print_cpu(d);
    else
        (void)printf("  detail   %s\n  units    %lld multiprocessors\n",
                     json_string_value(cli_json_at(d, "detail")),
                     (long long)json_integer_value(cli_json_at(d, "multiprocessors")));
    (void)printf(
        "  memory   %s, %s available\n",
        cli_bytes(total, sizeof total, json_number_value(cli_json_at(d, "memory_bytes"))),
        cli_bytes(available, sizeof available,
                  json_number_value(cli_json_at(d, "memory_available_bytes"))));
}

static fl_status run(const cli_verb *verb, int argc, char **argv, fl_err *err)
{
    devices_args a = {.json = false};
    char *text = NULL;
    json_t *report = NULL;
    bool done;
    fl_status st = cli_parse(&done, verb, &a, argc, argv, err);
    if (st != FL_OK || done) return st;
    st = fl_devices_run(&text, err);
    if (st != FL_OK) return st;
    if (a.json) {
        cli_print_json_text(text);
    } else {
        st = cli_parse_report(&report, text, err);
        const json_t *devices = cli_json_at(report, "devices");
        for (size_t i = 0; i < json_array_size(devices); i++)
            print_device(json_array_get(devices, i));
        if (json_is_string(cli_json_at(report, "no_gpu")))
            (void)printf("%s\n", json_string_value(cli_json_at(report, "no_gpu")));
        json_decref(report);
    }
    fl_string_free(&text);
    return st;
}

const cli_verb cli_verb_devices = {
    .name = "devices",
    .summary = "what there is to compute on",
    .usage = "",
    .options = options,
    .n_options = sizeof options / sizeof *options,
    .examples = "  flatiron devices\n  flatiron devices --json\n",
    .run = run,
};
