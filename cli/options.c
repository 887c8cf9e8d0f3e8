/* options.c - from argv and the environment to the fields of a verb's struct.
 *
 * Two passes: the command line first, noting which rows it set, then the environment for the
 * others. A value may follow its option or stand behind '='; a value that begins with a dash
 * and is no number must stand behind '=', so that a forgotten value is noticed. "--" ends
 * options.
 * SPDX-License-Identifier: MIT */
#include "options.h"

#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

fl_status cli_fail(fl_err *err, fl_status status, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    (void)vsnprintf(err->text, sizeof err->text, fmt, ap);
    va_end(ap);
    for (char *c = err->text; *c; c++)
        if ((unsigned char)*c < 0x20 || *c == 0x7f) *c = ' ';
    return status;
}

/* ---- names ------------------------------------------------------------------------------- */

bool cli_in_list(const char *list, const char *name)
{
    const size_t n = strlen(name);
    while (list && *list) {
        const size_t len = strcspn(list, "|");
        if (len == n && strncmp(list, name, n) == 0) return true;
        list += len + (list[len] == '|');
    }
    return false;
}

void cli_env_name(char *env, size_t env_bytes, const char *option_name)
{
    (void)snprintf(env, env_bytes, "FLATIRON_%s", option_name + 2);
    for (char *c = env; *c; c++) *c = *c == '-' ? '_' : (char)toupper((unsigned char)*c);
}

/* Row of an option as it was typed; *negated for the --no- form of a switch. -1: none. */
static int find_option(bool *negated, const cli_verb *verb, const char *name)
{
    for (int i = 0; i < verb->n_options; i++) {
        const cli_option *o = &verb->options[i];
        *negated = false;
        if (o->kind == CLI_GROUP) continue;
        if (strcmp(o->name, name) == 0 || cli_in_list(o->aliases, name)) return i;
        *negated = o->kind == CLI_SWITCH;
        if (*negated && strncmp(name, "--no-", 5) == 0 && strcmp(name + 5, o->name + 2) == 0)
            return i;
    }
    return -1;
}

static int min3(int a, int b, int c)
{
    const int ab = a < b ? a : b;
    return ab < c ? ab : c;
}

/* Edits between two names; long ones count as far apart. */
static int edit_distance(const char *a, const char *b)
{
    enum { MAX = 40 };
    int row[MAX + 1];
    const int n = (int)strlen(a), m = (int)strlen(b);
    if (n > MAX || m > MAX) return MAX;
    for (int j = 0; j <= m; j++) row[j] = j;
    for (int i = 1; i <= n; i++) {
        int diagonal = row[0];
        row[0] = i;
        for (int j = 1; j <= m; j++) {
            const int above = row[j];
            row[j] = min3(above + 1, row[j - 1] + 1, diagonal + (a[i - 1] != b[j - 1]));
            diagonal = above;
        }
    }
    return row[m];
}

static fl_status unknown_option(const cli_verb *verb, const char *name, fl_err *err)
{
    const char *nearest = NULL;
    int least = 4;
    for (int i = 0; i < verb->n_options; i++) {
        const cli_option *o = &verb->options[i];
        if (o->kind == CLI_GROUP) continue;
        const int distance = edit_distance(name, o->name);
        if (distance < least) {
            least = distance;
            nearest = o->name;
        }
    }
    if (nearest)
        return cli_fail(err, FL_E_USAGE,
                        "unknown option: %s: flatiron %s has no such option; did you mean %s?",
                        name, verb->name, nearest);
    return cli_fail(
        err, FL_E_USAGE,
        "unknown option: %s: flatiron %s has no such option; see flatiron %s --help", name,
        verb->name, verb->name);
}

/* ---- values ------------------------------------------------------------------------------ */

static bool takes_value(const cli_option *o)
{
    return o->kind >= CLI_TEXT && o->kind != CLI_LATER;
}

/* "a|b|c" as "a, b or c". */
static void spell_choices(char *out, size_t out_bytes, const char *choices)
{
    size_t n = 0;
    for (const char *c = choices; *c && n + 5 < out_bytes; c++) {
        if (*c != '|') {
            out[n++] = *c;
            continue;
        }
        const char *glue = strchr(c + 1, '|') ? ", " : " or ";
        n += (size_t)snprintf(out + n, out_bytes - n, "%s", glue);
    }
    out[n] = '\0';
}

static fl_status bad_choice(const cli_option *o, const char *where, const char *value,
                            fl_err *err)
{
    char choices[256], head[32];
    spell_choices(choices, sizeof choices, o->choices);
    (void)snprintf(head, sizeof head, "%.*s", (int)strcspn(value, ":"), value); /* cuda:1 */
    if (cli_in_list(o->later, head))
        return cli_fail(err, FL_E_UNSUPPORTED,
                        "not in this version: %s: %s will come with a later version; use %s",
                        where, value, choices);
    return cli_fail(err, FL_E_USAGE, "bad value: %s: '%s' is not one of the choices; use %s",
                    where, value, choices);
}

static fl_status bad_number(const cli_option *o, const char *where, const char *value,
                            const char *why, fl_err *err)
{
    char word[48] = "";
    if (o->word) (void)snprintf(word, sizeof word, " or %s", o->word);
    if (o->kind == CLI_UINT64)
        return cli_fail(err, FL_E_USAGE,
                        "bad value: %s: '%s' %s; use a whole number from 0 to 2^64 - 1", where,
                        value, why);
    return cli_fail(err, FL_E_USAGE, "bad value: %s: '%s' %s; use %s from %.10g to %.10g%s",
                    where, value, why, o->kind == CLI_INT ? "a whole number" : "a number",
                    o->min, o->max, word);
}

static fl_status parse_uint64(const cli_option *o, const char *where, const char *value,
                              uint64_t *out, fl_err *err)
{
    char *end;
    errno = 0;
    const unsigned long long x = strtoull(value, &end, 10);
    if (!isdigit((unsigned char)*value) || *end)
        return bad_number(o, where, value, "is no whole number", err);
    if (errno == ERANGE) return bad_number(o, where, value, "is out of range", err);
    *out = x;
    return FL_OK;
}

static fl_status parse_number(const cli_option *o, const char *where, const char *value,
                              double *out, fl_err *err)
{
    char *end;
    double x;
    if (o->word && strcmp(value, o->word) == 0) {
        *out = o->word_value;
        return FL_OK;
    }
    errno = 0;
    if (o->kind == CLI_INT)
        x = (double)strtoll(value, &end, 10); /* beyond 2^53 is out of range anyway */
    else x = strtod(value, &end);
    if (end == value || *end || isspace((unsigned char)*value) || isnan(x))
        return bad_number(o, where, value,
                          o->kind == CLI_INT ? "is no whole number" : "is no number", err);
    if (errno == ERANGE || x < o->min || x > o->max)
        return bad_number(o, where, value, "is out of range", err);
    *out = x;
    return FL_OK;
}

/* Stores the value of an option that takes one. */
static fl_status set_value(const cli_option *o, void *args, const char *where,
                           const char *value, fl_err *err)
{
    void *field = (char *)args + o->offset;
    double number = 0;
    if (o->choices && !cli_in_list(o->choices, value)) return bad_choice(o, where, value, err);
    if (o->kind == CLI_TEXT) {
        if (!*value)
            return cli_fail(err, FL_E_USAGE, "bad value: %s: it is empty; give it %s", where,
                            o->arg);
        *(const char **)field = value;
        return FL_OK;
    }
    if (o->kind == CLI_UINT64) return parse_uint64(o, where, value, field, err);
    const fl_status st = parse_number(o, where, value, &number, err);
    if (st != FL_OK) return st;
    if (o->kind == CLI_INT) *(int *)field = (int)number;
    else if (o->kind == CLI_FLOAT) *(float *)field = (float)number;
    else *(double *)field = number;
    return FL_OK;
}

/* Stores an option that stands alone; on is false for the --no- form. */
static void set_alone(const cli_option *o, void *args, bool on)
{
    void *field = (char *)args + o->offset;
    if (o->kind == CLI_FLAG) *(bool *)field = on;
    else if (o->kind == CLI_SWITCH) *(fl_switch *)field = on ? FL_ON : FL_OFF;
    else if (on) *(const char **)field = o->text;
}

static fl_status not_yet(const cli_verb *verb, const char *where, fl_err *err)
{
    return cli_fail(
        err, FL_E_UNSUPPORTED,
        "not in this version: %s: it will come with a later version; see flatiron %s "
        "--help for what there is",
        where, verb->name);
}

/* ---- the environment --------------------------------------------------------------------- */

static fl_status env_bool(const char *where, const char *value, bool *on, fl_err *err)
{
    *on = cli_in_list("1|true|yes|on", value);
    if (*on || cli_in_list("0|false|no|off", value)) return FL_OK;
    return cli_fail(err, FL_E_USAGE, "bad value: %s: '%s' is no yes or no; use 1 or 0", where,
                    value);
}

static const char *env_value(const char *name)
{
    const char *value = getenv(name);
    return value && *value ? value : NULL;
}

/* The foreign variable of an option: the first of a list such as OMP_NUM_THREADS=4,2. */
static const char *fallback_value(char *first, size_t first_bytes, const char *name)
{
    const char *value = name ? env_value(name) : NULL;
    if (!value) return NULL;
    (void)snprintf(first, first_bytes, "%.*s", (int)strcspn(value, ","), value);
    return first;
}

/* FLATIRON_NO_<NAME> of a switch. */
static fl_status apply_negated_env(const cli_option *o, void *args, fl_err *err)
{
    char flag[64], env[80];
    bool on;
    (void)snprintf(flag, sizeof flag, "--no-%s", o->name + 2);
    cli_env_name(env, sizeof env, flag);
    const char *value = env_value(env);
    if (!value) return FL_OK;
    const fl_status st = env_bool(env, value, &on, err);
    if (st == FL_OK) set_alone(o, args, !on);
    return st;
}

static fl_status apply_env(bool *given, const cli_verb *verb, const cli_option *o, void *args,
                           fl_err *err)
{
    char env[80], first[32];
    bool on;
    if (o->kind == CLI_GROUP) return FL_OK;
    cli_env_name(env, sizeof env, o->name);
    const char *where = env, *value = env_value(env);
    if (!value && o->kind == CLI_SWITCH) return apply_negated_env(o, args, err);
    if (!value) {
        where = o->fallback_env;
        value = fallback_value(first, sizeof first, where); /* numbers only: not kept */
    }
    if (!value) return FL_OK;
    *given = true;
    if (o->kind == CLI_LATER) return not_yet(verb, where, err);
    if (takes_value(o)) return set_value(o, args, where, value, err);
    const fl_status st = env_bool(where, value, &on, err);
    if (st == FL_OK) set_alone(o, args, on);
    return st;
}

/* ---- the command line -------------------------------------------------------------------- */

typedef struct parse {
    const cli_verb *verb;
    void *args;
    int argc;
    char **argv;
    int at; /* next of argv */
    int n_arguments;
    bool given[CLI_MAX_OPTIONS];
} parse;

static bool is_number(const char *s)
{
    char *end;
    (void)strtod(s, &end);
    return end != s && !*end;
}

/* The value of an option: behind its '=', or the next of argv. NULL: there is none. */
static const char *take_value(parse *p, const char *inline_value)
{
    if (inline_value) return inline_value;
    if (p->at >= p->argc) return NULL;
    const char *next = p->argv[p->at];
    if (next[0] == '-' && next[1] && !is_number(next)) return NULL;
    p->at++;
    return next;
}

static fl_status parse_option(parse *p, const char *token, fl_err *err)
{
    char name[64];
    bool negated;
    const char *equals = strncmp(token, "--", 2) == 0 ? strchr(token, '=') : NULL;
    const size_t n = equals ? (size_t)(equals - token) : strlen(token);
    if (n >= sizeof name) return unknown_option(p->verb, token, err);
    memcpy(name, token, n);
    name[n] = '\0';
    const int i = find_option(&negated, p->verb, name);
    if (i < 0) return unknown_option(p->verb, name, err);
    const cli_option *o = &p->verb->options[i];
    p->given[i] = true;
    if (o->kind == CLI_LATER) return not_yet(p->verb, name, err);
    if (!takes_value(o)) {
        if (equals)
            return cli_fail(err, FL_E_USAGE, "bad value: %s: it takes no value; write %s alone",
                            name, name);
        set_alone(o, p->args, !negated);
        return FL_OK;
    }
    const char *value = take_value(p, equals ? equals + 1 : NULL);
    if (!value)
        return cli_fail(err, FL_E_USAGE, "missing value: %s: it needs %s; write %s=%s", name,
                        o->arg, o->name, o->arg);
    return set_value(o, p->args, name, value, err);
}

static fl_status parse_argument(parse *p, const char *token, fl_err *err)
{
    const cli_argument *a = &p->verb->arguments[p->n_arguments];
    if (!a->name)
        return cli_fail(
            err, FL_E_USAGE,
            "too many arguments: '%s': flatiron %s takes %d; see flatiron %s --help", token,
            p->verb->name, p->n_arguments, p->verb->name);
    if (!*token)
        return cli_fail(err, FL_E_USAGE, "bad argument: %s: it is empty; give a path", a->name);
    *(const char **)((char *)p->args + a->offset) = token;
    p->n_arguments++;
    return FL_OK;
}

static fl_status check_complete(const parse *p, fl_err *err)
{
    const cli_argument *a = &p->verb->arguments[p->n_arguments];
    if (a->name)
        return cli_fail(err, FL_E_USAGE,
                        "missing argument: %s: flatiron %s needs it; write flatiron %s %s",
                        a->name, p->verb->name, p->verb->name, p->verb->usage);
    for (int i = 0; i < p->verb->n_options; i++) {
        const cli_option *o = &p->verb->options[i];
        if (o->required && !p->given[i])
            return cli_fail(err, FL_E_USAGE,
                            "missing option: %s: flatiron %s needs it; write %s %s", o->name,
                            p->verb->name, o->name, o->arg);
    }
    return FL_OK;
}

static bool wants_help(int argc, char **argv)
{
    for (int i = 0; i < argc && strcmp(argv[i], "--") != 0; i++)
        if (strcmp(argv[i], "--help") == 0 || strcmp(argv[i], "-h") == 0) return true;
    return false;
}

fl_status cli_parse(bool *done, const cli_verb *verb, void *args, int argc, char **argv,
                    fl_err *err)
{
    parse p = {.verb = verb, .args = args, .argc = argc, .argv = argv};
    bool options_end = false;
    fl_status st = FL_OK;
    *done = wants_help(argc, argv);
    if (*done) {
        cli_print_help(verb, args);
        return FL_OK;
    }
    while (p.at < argc && st == FL_OK) {
        const char *token = argv[p.at++];
        if (!options_end && strcmp(token, "--") == 0) options_end = true;
        else if (!options_end && token[0] == '-' && token[1]) st = parse_option(&p, token, err);
        else st = parse_argument(&p, token, err);
    }
    for (int i = 0; i < verb->n_options && st == FL_OK; i++)
        if (!p.given[i]) st = apply_env(&p.given[i], verb, &verb->options[i], args, err);
    return st == FL_OK ? check_complete(&p, err) : st;
}
