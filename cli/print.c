/* print.c - tables, JSON and numbers on stdout. SPDX-License-Identifier: MIT */
#include "print.h"

#include "options.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

enum { MAX_COLUMNS = 32, CELL_BYTES = 256, JSON_INDENT_SPACES = 2 };

/* ---- tables ------------------------------------------------------------------------------ */

typedef struct layout {
    cli_table form;
    const cli_column *columns[MAX_COLUMNS];
    int width[MAX_COLUMNS];
    int n;
} layout;

static int text_width(const char *text)
{
    int n = 0;
    for (; *text; text++) n += ((unsigned char)*text & 0xc0) != 0x80; /* UTF-8 characters */
    return n;
}

/* Keeps all columns for other programs, for people those that some row has; their widths. */
static void lay_out(layout *l, const json_t *rows, const cli_column *columns, int n_columns)
{
    char cell[CELL_BYTES];
    for (int c = 0; c < n_columns && l->n < MAX_COLUMNS; c++) {
        bool used = l->form != CLI_PLAIN;
        int width = text_width(columns[c].title);
        for (size_t r = 0; r < json_array_size(rows); r++) {
            const json_t *row = json_array_get(rows, r);
            used |= cli_json_at(row, columns[c].path) != NULL;
            const int n = text_width(cli_json_text(cell, sizeof cell, row, &columns[c]));
            if (n > width) width = n;
        }
        if (!used) continue;
        l->columns[l->n] = &columns[c];
        l->width[l->n++] = width;
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

/* The first column flush left, the others right. */
static void print_cell(const layout *l, int c, const char *cell)
{
    const bool last = c + 1 == l->n;
    const int pad = l->width[c] - text_width(cell);
    switch (l->form) {
    case CLI_PLAIN:
        if (c == 0) (void)printf("%s%*s%s", cell, last ? 0 : pad, "", last ? "\n" : "  ");
        else (void)printf("%*s%s%s", pad, "", cell, last ? "\n" : "  ");
        break;
    case CLI_MARKDOWN:
        (void)printf("| %s %s", cell, last ? "|\n" : "");
        break;
    case CLI_CSV:
        print_csv_cell(cell);
        (void)putchar(last ? '\n' : ',');
        break;
    }
}

void cli_print_table(cli_table form, const json_t *rows, const cli_column *columns,
                     int n_columns)
{
    char cell[CELL_BYTES];
    layout l = {.form = form};
    lay_out(&l, rows, columns, n_columns);
    for (int c = 0; c < l.n; c++) print_cell(&l, c, l.columns[c]->title);
    for (int c = 0; c < l.n && form == CLI_MARKDOWN; c++)
        (void)printf("%s%s", c == 0 ? "|---" : "|---:", c + 1 == l.n ? "|\n" : "");
    for (size_t r = 0; r < json_array_size(rows); r++)
        for (int c = 0; c < l.n; c++)
            print_cell(&l, c,
                       cli_json_text(cell, sizeof cell, json_array_get(rows, r), l.columns[c]));
}

/* ---- JSON -------------------------------------------------------------------------------- */

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

const char *cli_json_text(char *out, size_t out_bytes, const json_t *row,
                          const cli_column *column)
{
    const json_t *v = cli_json_at(row, column->path);
    const double factor = column->factor != 0 ? column->factor : 1;
    if (json_is_number(v))
        (void)snprintf(out, out_bytes, column->fmt, json_number_value(v) * factor);
    else if (json_is_string(v)) (void)snprintf(out, out_bytes, "%s", json_string_value(v));
    else if (json_is_boolean(v))
        (void)snprintf(out, out_bytes, "%s", json_is_true(v) ? "yes" : "no");
    else (void)snprintf(out, out_bytes, "-");
    return out;
}

json_t *cli_json_path(const char *path)
{
    char ascii[1024];
    json_t *text = json_string(path);
    if (text) return text;
    (void)snprintf(ascii, sizeof ascii, "%s", path);
    for (char *c = ascii; *c; c++)
        if ((unsigned char)*c >= 0x80) *c = '?';
    return json_string(ascii);
}

json_t *cli_json_number(double x)
{
    return isfinite(x) ? json_real(x) : json_null();
}

/* ---- numbers ----------------------------------------------------------------------------- */

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
    char w[16] = "4/8", a[16] = "4/8";
    if (w_bits > 0) (void)snprintf(w, sizeof w, "%d", w_bits);
    if (a_bits > 0) (void)snprintf(a, sizeof a, "%d", a_bits);
    if (w_bits == 0 && a_bits == 0) (void)snprintf(out, out_bytes, "4/8 mix");
    else if (w_bits == 16 && a_bits == 16) (void)snprintf(out, out_bytes, "float");
    else (void)snprintf(out, out_bytes, "W%sA%s", w, a);
    return out;
}

fl_status cli_flush(fl_err *err)
{
    errno = 0;
    if (fflush(stdout) == 0 && !ferror(stdout)) return FL_OK;
    return cli_fail(err, FL_E_IO, "cannot write: standard output: %s; check where it goes",
                    errno ? strerror(errno) : "write error");
}
