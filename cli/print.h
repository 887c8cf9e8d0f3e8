/* print.h - stdout: JSON documents, tables, numbers for people. SPDX-License-Identifier: MIT */
#ifndef FL_CLI_PRINT_H
#define FL_CLI_PRINT_H

#include <flatiron/flatiron.h>
#include <jansson.h>

/* Rows of cells [n_rows, n_cols]: the first column flush left, the others right; the first row is
 * the heading. A NULL cell is empty. */
void cli_print_table(const char *const *cells, int n_rows, int n_cols);
/* The same as a Markdown table or as CSV. */
void cli_print_markdown(const char *const *cells, int n_rows, int n_cols);
void cli_print_csv(const char *const *cells, int n_rows, int n_cols);

/* The document, and nothing else. cli_print_json consumes doc; NULL (no memory) is an error. */
fl_status cli_print_json(json_t *doc, fl_err *err);
void cli_print_json_text(const char *json);
/* A report of the library as a document; FL_E_FAIL if it is none. Caller: json_decref. */
fl_status cli_parse_report(json_t **doc, const char *json, fl_err *err);

/* Field at a path such as "memory.peak_bytes"; NULL when absent or null. Borrowed. */
const json_t *cli_json_at(const json_t *doc, const char *path);
/* Text of a number, string or boolean field into out; "-" when absent. fmt takes one double. */
const char *cli_json_text(char *out, size_t out_bytes, const json_t *doc, const char *path,
                          const char *fmt);
/* JSON number, or null for a NaN or an infinity. */
json_t *cli_json_number(double x);

/* "12.3 MB"; powers of ten. */
const char *cli_bytes(char *out, size_t out_bytes, double n_bytes);
/* "W4A8", "4/8 mix", "float": bits of weights and activations. */
const char *cli_bits(char *out, size_t out_bytes, int w_bits, int a_bits);

/* FL_E_IO when what was printed could not be written (a full disk, a closed pipe). */
fl_status cli_flush(fl_err *err);

#endif
