/* help.c - a verb's --help, derived from its table. SPDX-License-Identifier: MIT */
#include "options.h"

#include <stdio.h>
#include <string.h>

enum { HELP_COLUMN = 30, HELP_WIDTH = 96 };

/* "  -t, --threads N" or "  --[no-]smooth". */
static int print_names(const cli_option *o)
{
    int n = printf("  ");
    const char *alias = o->aliases;
    while (alias && *alias) { /* one-letter aliases are shown, old spellings only accepted */
        const size_t len = strcspn(alias, "|");
        if (len == 2) n += printf("%.*s, ", (int)len, alias);
        alias += len + (alias[len] == '|');
    }
    if (o->kind == CLI_SWITCH) n += printf("--[no-]%s", o->name + 2);
    else n += printf("%s", o->name);
    if (o->arg) n += printf(" %s", o->arg);
    return n;
}

static void number_text(char *out, size_t out_bytes, const cli_option *o, double x)
{
    if (o->word && x == o->word_value) (void)snprintf(out, out_bytes, "%s", o->word);
    else (void)snprintf(out, out_bytes, "%.6g", x);
}

/* The default as text; "" when there is none to show. */
static void default_text(char *out, size_t out_bytes, const cli_option *o, const void *args)
{
    const void *field = (const char *)args + o->offset;
    out[0] = '\0';
    if (o->shown_default) {
        (void)snprintf(out, out_bytes, "%s", o->shown_default);
        return;
    }
    if (o->required || o->kind == CLI_LATER) return;
    switch (o->kind) {
    case CLI_TEXT:
        if (*(const char *const *)field)
            (void)snprintf(out, out_bytes, "%s", *(const char *const *)field);
        break;
    case CLI_SWITCH: {
        const fl_switch s = *(const fl_switch *)field;
        (void)snprintf(out, out_bytes, "%s",
                       s == FL_AUTO ? "the method's" : (s == FL_ON ? "on" : "off"));
        break;
    }
    case CLI_INT:
        number_text(out, out_bytes, o, *(const int *)field);
        break;
    case CLI_FLOAT:
        number_text(out, out_bytes, o, (double)*(const float *)field);
        break;
    case CLI_DOUBLE:
        number_text(out, out_bytes, o, *(const double *)field);
        break;
    case CLI_UINT64:
        (void)snprintf(out, out_bytes, "%llu", (unsigned long long)*(const uint64_t *)field);
        break;
    default:
        break;
    }
}

/* Words of text from column `at` on, wrapped to the help column. */
static void print_wrapped(const char *text, int at)
{
    if (at >= HELP_COLUMN - 1) {
        (void)printf("\n");
        at = 0;
    }
    (void)printf("%*s", HELP_COLUMN - at, "");
    at = HELP_COLUMN;
    for (bool first = true; *text; first = false) {
        const int n = (int)strcspn(text, " ");
        if (!first && at + 1 + n > HELP_WIDTH) {
            (void)printf("\n%*s", HELP_COLUMN, "");
            at = HELP_COLUMN;
        } else if (!first) {
            at += printf(" ");
        }
        at += printf("%.*s", n, text);
        text += n + (text[n] == ' ');
    }
    (void)printf("\n");
}

static void print_option(const cli_option *o, const void *args)
{
    char value[128], text[1024];
    if (o->kind == CLI_GROUP) {
        (void)printf("\n%s:\n", o->help);
        return;
    }
    const char *note = "";
    default_text(value, sizeof value, o, args);
    if (o->required) note = " (required)";
    else if (o->kind == CLI_LATER) note = " (not in this version)";
    (void)snprintf(text, sizeof text, "%s%s%s%s%s%s%s", o->help, o->choices ? ": " : "",
                   o->choices ? o->choices : "", value[0] ? " (default " : "", value,
                   value[0] ? ")" : "", note);
    print_wrapped(text, print_names(o));
}

void cli_print_help(const cli_verb *verb, const void *args)
{
    (void)printf("Usage: flatiron %s %s [options]\n\n%s\n", verb->name, verb->usage,
                 verb->summary);
    if (verb->details) (void)printf("\n%s\n", verb->details);
    if (verb->n_options > 0 && verb->options[0].kind != CLI_GROUP) (void)printf("\nOptions:\n");
    for (int i = 0; i < verb->n_options; i++) print_option(&verb->options[i], args);
    (void)printf("  -h, --help                  this text\n");
    (void)printf("\nEach option can also be set in the environment, as FLATIRON_<OPTION> (for "
                 "example\nFLATIRON_THREADS=2); the command line wins.\n");
    (void)printf("\nExamples:\n%s", verb->examples);
}
