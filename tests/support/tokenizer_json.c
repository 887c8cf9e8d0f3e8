/* tokenizer_json.c - tokenizers from JSON written in a test. SPDX-License-Identifier: MIT */
#include "support/tokenizer_json.h"

#include "base/mem.h"

#include "support/fl_test.h"

#include <stdio.h>
#include <string.h>

char *fl_test_quoted(const char *json)
{
    char *copy = fl__strdup(json);
    assert_non_null(copy);
    for (char *c = copy; *c; c++) {
        if (*c == '\'') *c = '"';
        else if (*c == '`') *c = '\'';
    }
    return copy;
}

fl_status fl_test_tokenizer_open(fl_tokenizer **t, const char *json, fl_err *err)
{
    char *text = fl_test_quoted(json);
    const fl_status st = fl__tokenizer_open_memory(t, text, strlen(text), err);
    fl__free(&text);
    return st;
}

fl_tokenizer *fl_test_tokenizer(const char *json)
{
    fl_tokenizer *t;
    fl_err err = {""};
    if (fl_test_tokenizer_open(&t, json, &err)) fail_msg("%s\n%s", err.text, json);
    return t;
}

const char *fl_test_ids(const fl_tokenizer *t, const char *text, size_t n_bytes, bool special)
{
    static char shown[2048];
    int32_t *ids;
    size_t n_ids, n = 0;
    fl_err err = {""};
    if (fl__tokenizer_encode(&ids, &n_ids, t, text, n_bytes, special, &err))
        fail_msg("%s", err.text);
    shown[0] = '\0';
    for (size_t i = 0; i < n_ids && n < sizeof shown; i++)
        n += (size_t)snprintf(shown + n, sizeof shown - n, i ? " %d" : "%d", ids[i]);
    fl__free(&ids);
    return shown;
}
