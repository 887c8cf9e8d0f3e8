/* print.c - tables, JSON and numbers on stdout. SPDX-License-Identifier: MIT */
#include "print.h"

#include "options.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

enum { MAX_COLUMNS = 32, JSON_INDENT_SPACES = 2 };

static const char *cell_at(const char *const *cells, int n_cols, int row, int col)
{
    const char *cell = cells[row * n_cols + col];
    return cell ? cell : "";
}

void cli_print_table(const char *const *cells, int n_rows, int n_cols)
{
    int width[MAX_COLUMNS] = {0};
    for (int r = 0; r < n_rows; r++)
        for (int c = 0; c < n_cols && c < MAX_COLUMNS; c++) {
            const int n = (int)strlen(cell_at(cells, n_cols, r, c));
            if (n > width[c]) width[c] = n;
        }
    for (int r = 0; r < n_rows; r++) {
        for (int c = 0; c < n_cols && c < MAX_COLUMNS; c++)
            (void)printf("%*s%s", c == 0 ? -width[c] : width[c], cell_at(cells, n_cols, r, c),
                         c + 1 < n_cols ? "  " : "\n");
    }
}

void cli_print_markdown(const char *const *cells, int n_rows, int n_cols)
{
    for (int r = 0; r < n_rows; r++) {
        for (int c = 0; c < n_cols; c++) (void)printf("| %s ", cell_at(cells, n_cols, r, c));
        (void)printf("|\n");
        for (int c = 0; c < n_cols && r == 0; c++) (void)printf(c == 0 ? "|---" : "|---:");
        if (r == 0) (void)printf("|\n");
    }
}

static void print_csv_cell(const char *cell)
{
    if (!strpbrk(cell, ",\"\n")) {
        (void)printf("%s", cell);
        return;
    }
    (void)putchar('"');
    for (; *cell; cell++) {
        if (*cell == '"') (void)putchar('"');
        (void)putchar(*cell);
    }
    (void)putchar('"');
}

void cli_print_csv(const char *const *cells, int n_rows, int n_cols)
{
    for (int r = 0; r < n_rows; r++)
        for (int c = 0; c < n_cols; c++) {
            print_csv_cell(cell_at(cells, n_cols, r, c));
            (void)putchar(c + 1 < n_cols ? ',' : '\n');
        }
}

/* ---- JSON ----------------------------------------------------------------------------------- */

fl_status cli_print_json(json_t *doc, fl_err *err)
{
    if (!doc)
        return cli_fail(err, FL_E_NOMEM,
                        "out of memory: result: no room for the JSON document; free memory");
    const int failed = json_dumpf(doc, stdout, JSON_INDENT(JSON_INDENT_SPACES));
    (void)putchar('\n');
    json_decref(doc);
    if (failed)
        return cli_fail(err, FL_E_IO, "cannot write: standard output: %s; check where it goes",
                        strerror(errno));
    return FL_OK;
}

void cli_print_json_text(const char *json)
{
    (void)printf("%s\n", json);
}

fl_status cli_parse_report(json_t **doc, const char *json, fl_err *err)
{
    json_error_t why;
    *doc = json_loads(json, 0, &why);
    if (*doc) return FL_OK;
    return cli_fail(err, FL_E_FAIL,
                    "bad report: line %d: %s; use --json to see it as it is, and report this",
                    why.line, why.text);
}

const json_t *cli_json_at(const json_t *doc, const char *path)
{
    while (doc && *path) {
        const size_t n = strcspn(path, ".");
        doc = json_object_getn(doc, path, n);
        path += n + (path[n] == '.');
    }
    return json_is_null(doc) ? NULL : doc;
}

const char *cli_json_text(char *out, size_t out_bytes, const json_t *doc, const char *path,
                          const char *fmt)
{
    const json_t *v = cli_json_at(doc, path);
    if (json_is_number(v))
        (void)snprintf(out, out_bytes, fmt, json_number_value(v));
    else if (json_is_string(v))
        (void)snprintf(out, out_bytes, "%s", json_string_value(v));
    else if (json_is_boolean(v))
        (void)snprintf(out, out_bytes, "%s", json_is_true(v) ? "yes" : "no");
    else
        (void)snprintf(out, out_bytes, "-");
    return out;
}

json_t *cli_json_number(double x)
{
    return isfinite(x) ? json_real(x) : json_null();
}

/* ---- numbers -------------------------------------------------------------------------------- */

const char *cli_bytes(char *out, size_t out_bytes, double n_bytes)
{
    static const char *const units[] = {"B", "kB", "MB", "GB", "TB"};
    size_t i = 0;
    while (n_bytes >= 999.5 && i + 1 < sizeof units / sizeof *units) {
        n_bytes /= 1000;
        i++;
    }
    (void)snprintf(out, out_bytes, i == 0 ? "%.0f %s" : "%.3g %s", n_bytes, units[i]);
    return out;
}

const char *cli_bits(char *out, size_t out_bytes, int w_bits, int a_bits)
{
    char w[8] = "4/8", a[8] = "4/8";
    if (w_bits > 0) (void)snprintf(w, sizeof w, "%d", w_bits);
    if (a_bits > 0) (void)snprintf(a, sizeof a, "%d", a_bits);
    if (w_bits == 16 && a_bits == 16)
        (void)snprintf(out, out_bytes, "float");
    else
        (void)snprintf(out, out_bytes, "W%sA%s", w, a);
    return out;
}

fl_status cli_flush(fl_err *err)
{
    errno = 0;
    if (fflush(stdout) == 0 && !ferror(stdout)) return FL_OK;
    return cli_fail(err, FL_E_IO, "cannot write: standard output: %s; check where it goes",
                    errno ? strerror(errno) : "write error");
}
