/* json.c - jansson with limits and with errors that name the file and the field.
 *
 * Numbers: jansson refuses integers beyond 64 bits, but Hugging Face files hold some (an
 * "unlimited" model_max_length of 10^30). Such a text is parsed a second time with ".0" behind
 * every integer literal of 19 digits or more, so that only those become reals.
 * SPDX-License-Identifier: MIT */
#include "base/json.h"

#include "base/file.h"
#include "base/mem.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

enum { MAX_INT_DIGITS = 18, MAX_SHOWN_CHARS = 40 };

static bool is_digit(char c)
{
    return c >= '0' && c <= '9';
}

/* Copies text to dst (NULL: only counts) with ".0" behind long integers; returns the bytes. A
 * literal that goes on with '.', 'e' or 'E' is a real already. Strings are copied untouched. */
static size_t widen_integers(char *dst, const char *text, size_t n_bytes)
{
    size_t n = 0;
    bool in_string = false;
    for (size_t i = 0; i < n_bytes;) {
        size_t run = 1;
        bool widen = false;
        if (in_string && text[i] == '\\' && i + 1 < n_bytes) {
            run = 2;
        } else if (text[i] == '"') {
            in_string = !in_string;
        } else if (!in_string && is_digit(text[i])) {
            while (i + run < n_bytes && is_digit(text[i + run])) run++;
            const char next = i + run < n_bytes ? text[i + run] : '\0';
            const char before = i > 0 ? text[i - 1] : '\0';
            const bool real = next == '.' || next == 'e' || next == 'E' || before == '.' ||
                              before == '+' || before == 'e' || before == 'E' ||
                              (before == '-' && i > 1 && (text[i - 2] | 0x20) == 'e');
            widen = run > MAX_INT_DIGITS && !real;
        }
        if (dst) memcpy(dst + n, text + i, run);
        n += run;
        i += run;
        if (widen && dst) memcpy(dst + n, ".0", 2);
        if (widen) n += 2;
    }
    return n;
}

static json_t *parse(const char *text, size_t n_bytes, json_error_t *why)
{
    return json_loadb(text, n_bytes, JSON_REJECT_DUPLICATES | JSON_DECODE_ANY, why);
}

fl_status fl__json_parse(json_t **out, const char *text, size_t n_bytes, const char *where,
                         fl_err *err)
{
    json_error_t why;
    *out = parse(text, n_bytes, &why);
    if (!*out && json_error_code(&why) == json_error_numeric_overflow) {
        const size_t wide_bytes = widen_integers(NULL, text, n_bytes);
        char *wide = fl__alloc(wide_bytes, 1);
        if (!wide) return fl__fail_nomem(err, where, wide_bytes);
        (void)widen_integers(wide, text, n_bytes);
        *out = parse(wide, wide_bytes, &why);
        fl__free(&wide);
    }
    if (*out) return FL_OK;
    if (json_error_code(&why) == json_error_out_of_memory)
        return fl__fail_nomem(err, where, n_bytes);
    return fl__fail(err, FL_E_INPUT,
                    "bad JSON: %s: line %d, column %d: %s; fix the file or get it again", where,
                    why.line, why.column, why.text);
}

fl_status fl__json_load(json_t **out, const char *path, size_t max_bytes, fl_err *err)
{
    char *text;
    size_t n_bytes;
    *out = NULL;
    fl_status st = fl__file_read(&text, &n_bytes, path, max_bytes, err);
    if (st) return st;
    st = fl__json_parse(out, text, n_bytes, path, err);
    fl__free(&text);
    return st;
}

char *fl__json_dump(const json_t *v, int indent)
{
    const size_t flags =
        JSON_ENCODE_ANY | (indent > 0 ? JSON_INDENT((size_t)indent) : (size_t)JSON_COMPACT);
    const size_t n_bytes = json_dumpb(v, NULL, 0, flags);
    if (n_bytes == 0) return NULL;
    char *text = fl__alloc(n_bytes + 1, 1);
    if (!text) return NULL;
    if (json_dumpb(v, text, n_bytes, flags) != n_bytes) {
        fl__free(&text);
        return NULL;
    }
    text[n_bytes] = '\0';
    return text;
}

json_t *fl__json_text(const char *text)
{
    json_t *v = json_string(text);
    if (v) return v;
    char *ascii = fl__strdup(text);
    if (!ascii) return NULL;
    for (char *c = ascii; *c; c++)
        if ((unsigned char)*c > 0x7f) *c = '?';
    v = json_string(ascii);
    fl__free(&ascii);
    return v;
}

/* The field, or NULL when it is absent; *st says whether absence is an error. */
static json_t *field(fl_status *st, const json_t *o, const char *key, bool required,
                     const char *where, fl_err *err)
{
    *st = FL_OK;
    json_t *v = json_object_get(o, key);
    if (v && !json_is_null(v)) return v;
    if (required)
        *st = fl__fail(err, FL_E_INPUT,
                       "missing field: %s: %s is not there; get the file again", where, key);
    return NULL;
}

void fl__json_show(char shown[FL_JSON_SHOWN_BYTES], const json_t *v)
{
    const size_t room = FL_JSON_SHOWN_BYTES - 1; /* an escaped byte takes 6 */
    if (json_is_object(v)) {
        (void)snprintf(shown, room, "an object");
    } else if (json_is_array(v)) {
        (void)snprintf(shown, room, "an array");
    } else if (json_is_string(v) && json_string_length(v) > MAX_SHOWN_CHARS) {
        (void)snprintf(shown, room, "a text of %zu bytes", json_string_length(v));
    } else {
        const size_t flags = JSON_ENCODE_ANY | JSON_COMPACT | JSON_ENSURE_ASCII;
        const size_t n = json_dumpb(v, shown, room, flags);
        shown[FL_MIN(n, room)] = '\0';
    }
}

static fl_status fail_field(fl_err *err, const json_t *v, const char *key, const char *want,
                            const char *where)
{
    char shown[FL_JSON_SHOWN_BYTES];
    fl__json_show(shown, v);
    return fl__fail(err, FL_E_INPUT, "bad field: %s: %s is %s, wanted %s; fix the file", where,
                    key, shown, want);
}

fl_status fl__json_get_int(const json_t *o, const char *key, bool required, int64_t min,
                           int64_t max, int64_t *value, const char *where, fl_err *err)
{
    fl_status st;
    const json_t *v = field(&st, o, key, required, where, err);
    if (!v) return st;
    const int64_t n = json_integer_value(v);
    if (!json_is_integer(v) || n < min || n > max) {
        char want[96];
        (void)snprintf(want, sizeof want, "an integer from %" PRId64 " to %" PRId64, min, max);
        return fail_field(err, v, key, want, where);
    }
    *value = n;
    return FL_OK;
}

fl_status fl__json_get_double(const json_t *o, const char *key, bool required, double *value,
                              const char *where, fl_err *err)
{
    fl_status st;
    const json_t *v = field(&st, o, key, required, where, err);
    if (!v) return st;
    if (!json_is_number(v)) return fail_field(err, v, key, "a number", where);
    *value = json_number_value(v);
    return FL_OK;
}

fl_status fl__json_get_bool(const json_t *o, const char *key, bool required, bool *value,
                            const char *where, fl_err *err)
{
    fl_status st;
    const json_t *v = field(&st, o, key, required, where, err);
    if (!v) return st;
    if (!json_is_boolean(v)) return fail_field(err, v, key, "true or false", where);
    *value = json_is_true(v);
    return FL_OK;
}

fl_status fl__json_get_string(const json_t *o, const char *key, bool required,
                              const char **value, const char *where, fl_err *err)
{
    fl_status st;
    const json_t *v = field(&st, o, key, required, where, err);
    if (!v) return st;
    if (!json_is_string(v)) return fail_field(err, v, key, "a text", where);
    *value = json_string_value(v);
    return FL_OK;
}
