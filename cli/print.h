/* print.h - stdout: JSON documents, tables, numbers for people. SPDX-License-Identifier: MIT */
#ifndef FL_CLI_PRINT_H
#define FL_CLI_PRINT_H

#include <flatiron/flatiron.h>
#include <jansson.h>

typedef enum cli_table { CLI_PLAIN, CLI_MARKDOWN, CLI_CSV } cli_table;

/* A column of a table over JSON objects. */
typedef struct cli_column {
    const char *title;
    const char *path; /* of the value, see cli_json_at */
    const char *fmt;  /* for a number: takes one double, such as "%.3f" */
    double factor;    /* what a number is multiplied with; 0: 1 */
} cli_column;

/* rows (a JSON array of objects) under the titles; CLI_PLAIN leaves out columns that no row has
 * a value for. */
void cli_print_table(cli_table form, const json_t *rows, const cli_column *columns,
                     int n_columns);

/* The document, and nothing else. cli_print_json consumes doc; NULL (no memory) is an error. */
fl_status cli_print_json(json_t *doc, fl_err *err);
void cli_print_json_text(const char *json);
/* A report of the library as a document; FL_E_FAIL if it is none. Caller: json_decref. */
fl_status cli_parse_report(json_t **doc, const char *json, fl_err *err);

/* Field at a path such as "memory.peak_bytes"; NULL when absent or null. Borrowed. */
const json_t *cli_json_at(const json_t *doc, const char *path);
/* The column's value of a row; "-" when absent. Returns out. */
const char *cli_json_text(char *out, size_t out_bytes, const json_t *row,
                          const cli_column *column);
/* A path as text; bytes that are no UTF-8 become '?'. */
json_t *cli_json_path(const char *path);
/* JSON number, or null for a NaN or an infinity. */
json_t *cli_json_number(double x);

/* "12.3 MB"; powers of ten. */
const char *cli_bytes(char *out, size_t out_bytes, double n_bytes);
/* "W4A8", "4/8 mix", "float": bits of weights and activations. */
const char *cli_bits(char *out, size_t out_bytes, int w_bits, int a_bits);

/* FL_E_IO when what was printed could not be written (a full disk, a closed pipe). */
fl_status cli_flush(fl_err *err);

#endif
