/* json.h - reading JSON that nobody vouches for, on jansson.
 *
 * Limits that jansson does not set itself: file size, and (by its own default) nesting depth
 * 2048. Getters say which field of which file is wrong.
 * SPDX-License-Identifier: MIT */
#ifndef FL_BASE_JSON_H
#define FL_BASE_JSON_H

#include "base/status.h"

#include <jansson.h>

/* Parses n_bytes of text; where names it in errors (a path). Duplicate keys are errors.
 * FL_E_INPUT when it is no JSON value, with line and column. Caller: json_decref. */
fl_status fl__json_parse(json_t **out, const char *text, size_t n_bytes, const char *where,
                         fl_err *err);
/* Reads and parses a file. FL_E_INPUT when missing, above max_bytes or no JSON. */
fl_status fl__json_load(json_t **out, const char *path, size_t max_bytes, fl_err *err);
/* json_dumps into our own memory (indent 0: compact), keys in insertion order; or NULL. */
char *fl__json_dump(const json_t *v, int indent);

/* A string for texts that may hold any bytes, such as paths: where text is no UTF-8, '?' stands
 * for each byte above 0x7f. NULL when out of memory. */
json_t *fl__json_text(const char *text);

/* Typed fields of object o. Absent key: *value keeps what it holds and FL_OK, unless required.
 * JSON null counts as absent. Wrong type or out of range: FL_E_INPUT naming `where` and key. */
fl_status fl__json_get_int(const json_t *o, const char *key, bool required, int64_t min,
                           int64_t max, int64_t *value, const char *where, fl_err *err);
fl_status fl__json_get_double(const json_t *o, const char *key, bool required, double *value,
                              const char *where, fl_err *err);
fl_status fl__json_get_bool(const json_t *o, const char *key, bool required, bool *value,
                            const char *where, fl_err *err);
/* *value borrowed from o. */
fl_status fl__json_get_string(const json_t *o, const char *key, bool required,
                              const char **value, const char *where, fl_err *err);

/* Short print of a value for errors: numbers and short texts as they stand, else what it is. */
enum { FL_JSON_SHOWN_BYTES = 320 };
void fl__json_show(char shown[FL_JSON_SHOWN_BYTES], const json_t *v);

#endif
