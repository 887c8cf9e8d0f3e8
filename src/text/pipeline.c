/* pipeline.c - reading a stage of tokenizer.json into steps. SPDX-License-Identifier: MIT */
#include "text/pipeline.h"

#include "base/mem.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

enum { MAX_NESTING = 8 };

void fl__parse_enter(fl_parse *at, const char *fmt, ...)
{
    va_list args;
    va_start(args, fmt);
    (void)vsnprintf(at->field, sizeof at->field, fmt, args);
    va_end(args);
    size_t n = 0;
    const char *parts[] = {at->where, ": ", at->field};
    for (size_t i = 0; i < FL_COUNT(parts); i++)
        for (const char *s = parts[i]; *s && n + 1 < sizeof at->place; s++) at->place[n++] = *s;
    at->place[n] = '\0';
}

fl_status fl__unsupported(fl_err *err, const fl_parse *at, const char *key, const char *what)
{
    return fl__fail(err, FL_E_UNSUPPORTED,
                    "unsupported tokenizer: %s: %s%s%s is %s; use another tokenizer", at->where,
                    at->field, at->field[0] && key[0] ? "." : "", key, what);
}

static fl_status parse_object(fl_steps *steps, const fl_stage *stage, const json_t *json,
                              fl_parse *at, int nesting, fl_err *err);

static fl_status parse_list(fl_steps *steps, const fl_stage *stage, const json_t *json,
                            fl_parse *at, int nesting, fl_err *err)
{
    char parent[sizeof at->field];
    const json_t *list = json_object_get(json, stage->list_key);
    if (!json_is_array(list))
        return fl__fail(err, FL_E_INPUT,
                        "bad tokenizer: %s: %s.%s is no list; get the file again", at->where,
                        at->field, stage->list_key);
    if (nesting == MAX_NESTING)
        return fl__unsupported(err, at, "", "a Sequence nested too deeply");
    (void)snprintf(parent, sizeof parent, "%s", at->field);
    for (size_t i = 0; i < json_array_size(list); i++) {
        fl__parse_enter(at, "%s.%s[%zu]", parent, stage->list_key, i);
        const fl_status st =
            parse_object(steps, stage, json_array_get(list, i), at, nesting + 1, err);
        if (st) return st;
    }
    fl__parse_enter(at, "%s", parent);
    return FL_OK;
}

static fl_status add_step(fl_steps *steps, const fl_step_row *row, const json_t *json,
                          const fl_parse *at, fl_err *err)
{
    void *settings = NULL;
    if (steps->n == FL_MAX_STEPS) return fl__unsupported(err, at, "", "one step too many");
    if (row->parse) {
        const fl_status st = row->parse(&settings, json, at, err);
        if (st) return st;
    }
    steps->step[steps->n++] = (fl_step){row, settings};
    return FL_OK;
}

static fl_status parse_object(fl_steps *steps, const fl_stage *stage, const json_t *json,
                              fl_parse *at, int nesting, fl_err *err)
{
    const char *type = NULL;
    char what[64];
    fl_status st;
    if (!json_is_object(json))
        return fl__fail(err, FL_E_INPUT,
                        "bad tokenizer: %s: %s is no object; get the file again", at->where,
                        at->field);
    /* Files from before 0.8 leave out the model's type. */
    if (stage == &fl__model_stage && !json_object_get(json, "type")) type = "BPE";
    st = fl__json_get_string(json, "type", type == NULL, &type, at->place, err);
    if (st) return st;
    if (stage->list_key && strcmp(type, "Sequence") == 0)
        return parse_list(steps, stage, json, at, nesting, err);
    for (size_t i = 0; i < stage->n_rows; i++)
        if (strcmp(stage->rows[i].type, type) == 0)
            return add_step(steps, &stage->rows[i], json, at, err);
    (void)snprintf(what, sizeof what, "\"%.50s\"", type);
    return fl__unsupported(err, at, "type", what);
}

fl_status fl__steps_parse(fl_steps *steps, const fl_stage *stage, const json_t *tokenizer,
                          fl_parse *at, fl_err *err)
{
    const json_t *json = json_object_get(tokenizer, stage->key);
    if (!json || json_is_null(json)) return FL_OK;
    fl__parse_enter(at, "%s", stage->key);
    return parse_object(steps, stage, json, at, 0, err);
}

void fl__steps_fini(fl_steps *steps)
{
    for (int i = 0; i < steps->n; i++) {
        fl_step *s = &steps->step[i];
        if (s->row->free && s->settings) s->row->free(&s->settings);
        fl__free(&s->settings);
    }
    steps->n = 0;
}

fl_status fl__too_much_text(fl_err *err, size_t n_bytes)
{
    return fl__fail(err, FL_E_INPUT,
                    "bad tokenizer: normalizer: %zu bytes of text become more than %zu; use "
                    "another tokenizer",
                    n_bytes, fl__normalized_limit(n_bytes));
}

fl_status fl__normalize(const char **out, size_t *n_out_bytes, const fl_steps *steps,
                        const char *text, size_t n_bytes, fl_text_buf spare[2],
                        fl_matcher *matcher, fl_err *err)
{
    const size_t n_before = n_bytes;
    for (int i = 0; i < steps->n; i++) {
        fl_text_buf *to = &spare[i % 2]; /* text lies in the other one, or in neither */
        fl__text_buf_clear(to);
        if (fl__text_buf_reserve(to, n_bytes)) return fl__fail_nomem(err, "text", n_bytes);
        const fl_step *s = &steps->step[i];
        const fl_status st = s->row->normalize(to, s->settings, text, n_bytes, matcher, err);
        if (st) return st;
        if (to->n_bytes > fl__normalized_limit(n_before))
            return fl__too_much_text(err, n_before);
        text = to->data;
        n_bytes = to->n_bytes;
    }
    *out = text;
    *n_out_bytes = n_bytes;
    return FL_OK;
}
