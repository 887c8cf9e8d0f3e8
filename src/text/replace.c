/* replace.c - every match of a pattern becomes a text. SPDX-License-Identifier: MIT */
#include "text/replace.h"

#include "base/mem.h"

#include <stdio.h>
#include <string.h>

typedef struct replace {
    fl_pattern *pattern; /* owned */
    char *content;       /* NUL-terminated, owned */
} replace;

void fl__replace_free(void **settings)
{
    replace *r = *settings;
    fl__pattern_free(&r->pattern);
    fl__free(&r->content);
    fl__free(settings);
}

fl_status fl__replace_parse(void **settings, const json_t *json, const fl_parse *at,
                            fl_err *err)
{
    const char *content = NULL;
    char field[sizeof at->field + 16];
    fl_status st = fl__json_get_string(json, "content", true, &content, at->place, err);
    if (st) return st;
    (void)snprintf(field, sizeof field, "%s.pattern", at->field);
    replace *r = fl__calloc(1, sizeof *r);
    if (!r) return fl__fail_nomem(err, at->where, sizeof *r);
    *settings = r;
    r->content = fl__strdup(content);
    st = r->content ? fl__pattern_new(&r->pattern, json_object_get(json, "pattern"), at->where,
                                      field, err)
                    : fl__fail_nomem(err, at->where, strlen(content));
    if (st) fl__replace_free(settings);
    return st;
}

fl_status fl__replace_run(fl_text_buf *out, const void *settings, const char *text,
                          size_t n_bytes, fl_matcher *matcher, fl_err *err)
{
    const replace *r = settings;
    const size_t n_content_bytes = strlen(r->content);
    fl_match_iter it = fl__match_iter_init(r->pattern, matcher, text, n_bytes);
    size_t done = 0, start, end;
    bool found = n_bytes > 0; /* an empty text has no matches, not even of an empty pattern */
    while (found) {
        const fl_status st = fl__match_iter_next(&found, &start, &end, &it, err);
        if (st) return st;
        if (!found) break;
        if (out->n_bytes + n_content_bytes > fl__normalized_limit(n_bytes))
            return fl__too_much_text(err, n_bytes);
        if (fl__text_buf_append(out, text + done, start - done) ||
            fl__text_buf_append(out, r->content, n_content_bytes))
            return fl__fail_nomem(err, "replaced text", n_bytes);
        done = end;
    }
    if (fl__text_buf_append(out, text + done, n_bytes - done))
        return fl__fail_nomem(err, "replaced text", n_bytes);
    return FL_OK;
}
