/* main.c - flatiron VERB ...: finds the verb, runs it, turns its status into an exit code.
 *
 * Results go to stdout, everything else to stderr. An error is one line, "flatiron: <what>:
 * <where>: <why>; <what to do>", and the exit code says of which kind it is.
 * SPDX-License-Identifier: MIT */
#include "interrupt.h"
#include "print.h"
#include "verbs.h"

#include <stdio.h>
#include <string.h>

static const cli_verb *const verbs[] = {
    &cli_verb_quantize, &cli_verb_eval,   &cli_verb_generate, &cli_verb_bench,
    &cli_verb_inspect,  &cli_verb_verify, &cli_verb_devices,
};
enum { N_VERBS = sizeof verbs / sizeof *verbs };

static const char later_verbs[] = "chat|serve|export";

static void print_usage(void)
{
    (void)printf("flatiron %s - quantises, evaluates and runs large language models\n\n"
                 "Usage: flatiron VERB [arguments] [options]\n\nVerbs:\n",
                 fl_version());
    for (int i = 0; i < N_VERBS; i++)
        (void)printf("  %-10s %s\n", verbs[i]->name, verbs[i]->summary);
    (void)printf(
        "\nflatiron VERB --help says more, with examples; flatiron --version prints the "
        "version.\n\n"
        "Exit codes: 0 done; 1 failure at run time; 2 usage; 3 bad input file; 4 out of "
        "memory\nor disk; 5 quality gate failed; 6 unsupported model, device or option; "
        "130, 143 stopped\nby SIGINT, SIGTERM.\n");
}

static fl_status unknown_verb(const char *name, fl_err *err)
{
    if (cli_in_list(later_verbs, name))
        return cli_fail(err, FL_E_UNSUPPORTED,
                        "not in this version: %s: the verb will come with a later version; see "
                        "flatiron --help for what there is",
                        name);
    return cli_fail(err, FL_E_USAGE,
                    "unknown verb: '%s': flatiron has no such verb; see flatiron --help", name);
}

static fl_status run(int argc, char **argv, fl_err *err)
{
    if (argc < 2)
        return cli_fail(
            err, FL_E_USAGE,
            "missing verb: flatiron: it needs something to do; see flatiron --help");
    if (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0) {
        print_usage();
        return FL_OK;
    }
    if (strcmp(argv[1], "--version") == 0) {
        (void)printf("flatiron %s\n", fl_version());
        return FL_OK;
    }
    if (argv[1][0] == '-')
        return cli_fail(err, FL_E_USAGE,
                        "unknown option: %s: the verb comes first; see flatiron --help",
                        argv[1]);
    for (int i = 0; i < N_VERBS; i++)
        if (strcmp(argv[1], verbs[i]->name) == 0)
            return verbs[i]->run(verbs[i], argc - 2, argv + 2, err);
    return unknown_verb(argv[1], err);
}

int main(int argc, char **argv)
{
    fl_err err = {""}, flush_err = {""};
    fl_status st = run(argc, argv, &err);
    const fl_status flushed = cli_flush(&flush_err);
    if (st == FL_OK && flushed != FL_OK) {
        st = flushed;
        err = flush_err;
    }
    if (st != FL_OK) (void)fprintf(stderr, "flatiron: %s\n", err.text);
    if (st == FL_E_INTERRUPTED && cli_interrupt_signal()) return 128 + cli_interrupt_signal();
    return fl_exit_code(st);
}
