/* options.h - the command line as data.
 *
 * A verb is a table: its arguments, its options, its examples. From one option row follow how
 * the option is parsed and checked, its line in --help with the default (read from the freshly
 * defaulted field, so it cannot be out of date), its environment mirror FLATIRON_<NAME> (the
 * command line wins), and its aliases. A row names the field of the verb's own struct that it
 * sets. Whatever is wrong is FL_E_USAGE; what later versions will have is FL_E_UNSUPPORTED.
 * SPDX-License-Identifier: MIT */
#ifndef FL_CLI_OPTIONS_H
#define FL_CLI_OPTIONS_H

#include <flatiron/flatiron.h>

typedef enum cli_kind {
    CLI_GROUP,    /* no option: a heading of the help, in `help` */
    CLI_FLAG,     /* bool: set by the option alone */
    CLI_SWITCH,   /* fl_switch: --name is FL_ON, --no-name FL_OFF */
    CLI_SET_TEXT, /* const char *: set to `text` by the option alone */
    CLI_TEXT,     /* const char *: any text; one of `choices` where there are some */
    CLI_INT,      /* int in min..max; one of `choices` where there are some */
    CLI_UINT64,   /* uint64_t */
    CLI_DOUBLE,   /* double in min..max */
    CLI_FLOAT,    /* float in min..max */
    CLI_LATER,    /* not in this version, whatever its value */
} cli_kind;

typedef struct cli_option {
    cli_kind kind;
    const char *name;    /* "--seq-len" */
    const char *aliases; /* "--nsamples|-n", or NULL */
    const char *arg;     /* "N": how the help calls the value */
    const char *help;
    size_t offset;       /* of the field in the verb's struct */
    double min, max;     /* numbers; both included */
    const char *choices; /* "rtn|gptq", or NULL */
    const char *later;   /* values that a later version will take, like choices */
    const char *text;    /* CLI_SET_TEXT: the value */
    const char *word;    /* numbers: a word that stands for word_value, such as "auto" */
    double word_value;
    const char *shown_default; /* instead of the field's own value; "": show none */
    const char *fallback_env;  /* numbers: a foreign variable asked after FLATIRON_<NAME> */
    bool required;
} cli_option;

enum { CLI_MAX_ARGUMENTS = 2, CLI_MAX_OPTIONS = 80 };

/* A positional argument; its field is a const char *. */
typedef struct cli_argument {
    const char *name; /* "MODEL"; NULL ends the list */
    size_t offset;
} cli_argument;

typedef struct cli_verb {
    const char *name;
    const char *summary;
    const char *usage; /* what follows the verb in the usage line, before [options] */
    cli_argument arguments[CLI_MAX_ARGUMENTS + 1];
    const cli_option *options;
    int n_options;        /* at most CLI_MAX_OPTIONS */
    const char *details;  /* paragraphs of the help, or NULL */
    const char *examples; /* lines, each a command */
    /* argv from the one after the verb on. */
    fl_status (*run)(const struct cli_verb *verb, int argc, char **argv, fl_err *err);
} cli_verb;

/* Fills args (defaulted by the caller) from the environment and the command line. *done: --help
 * was asked for and printed, there is nothing to run. */
fl_status cli_parse(bool *done, const cli_verb *verb, void *args, int argc, char **argv,
                    fl_err *err);

/* Writes a usage error or the like into err, on one line, and returns status. */
fl_status cli_fail(fl_err *err, fl_status status, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

/* help.c: the verb's --help on stdout. */
void cli_print_help(const cli_verb *verb, const void *args);
/* "--seq-len" to "FLATIRON_SEQ_LEN". */
void cli_env_name(char *env, size_t env_bytes, const char *option_name);
/* Whether name is one of "a|b|c". */
bool cli_in_list(const char *list, const char *name);

/* clang-format off */
/* Rows that several verbs share: struct type T, field F. */
#define CLI_OPT_JSON(T, F)                                                                     \
    {.kind = CLI_FLAG,                                                                         \
     .name = "--json",                                                                         \
     .offset = offsetof(T, F),                                                                 \
     .help = "one JSON document on stdout, nothing else"}
#define CLI_OPT_ISA(T, F)                                                                      \
    {.kind = CLI_TEXT,                                                                         \
     .name = "--isa",                                                                          \
     .arg = "LEVEL",                                                                           \
     .offset = offsetof(T, F),                                                                 \
     .choices = "native|ref|avx2|avxvnni|avx512|avx512vnni|amx",                               \
     .shown_default = "native",                                                                \
     .help = "highest instruction set to use"}
#define CLI_OPT_THREADS(T, F)                                                                  \
    {.kind = CLI_INT,                                                                          \
     .name = "--threads",                                                                      \
     .aliases = "-t",                                                                          \
     .arg = "N",                                                                               \
     .offset = offsetof(T, F),                                                                 \
     .max = 1024,                                                                              \
     .shown_default = "OMP_NUM_THREADS, else one per core",                                    \
     .fallback_env = "OMP_NUM_THREADS",                                                        \
     .help = "threads"}
#define CLI_OPT_DEVICE_RUN(T, F)                                                               \
    {.kind = CLI_TEXT,                                                                         \
     .name = "--device",                                                                       \
     .arg = "DEVICE",                                                                          \
     .offset = offsetof(T, F),                                                                 \
     .shown_default = "cpu",                                                                   \
     .help = "where to run: cpu, cuda or cuda:N (see flatiron devices)"}
/* For what runs on the CPU only; the field is for later versions. */
#define CLI_OPT_DEVICE(T, F)                                                                   \
    {.kind = CLI_TEXT,                                                                         \
     .name = "--device",                                                                       \
     .arg = "DEVICE",                                                                          \
     .offset = offsetof(T, F),                                                                 \
     .choices = "cpu",                                                                         \
     .later = "cuda",                                                                          \
     .shown_default = "cpu",                                                                   \
     .help = "where to run"}
#define CLI_GROUP_ROW(TITLE)                                                                   \
    {.kind = CLI_GROUP, .help = (TITLE)}
#define CLI_LATER_ROW(NAME, ARG, HELP)                                                         \
    {.kind = CLI_LATER, .name = (NAME), .arg = (ARG), .help = (HELP)}
/* clang-format on */

#endif
