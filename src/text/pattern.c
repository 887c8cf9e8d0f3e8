/* pattern.c - compiling and running patterns on PCRE2.
 *
 * Both the pattern and the text are untrusted. The length of a pattern is bounded; each match
 * has a step limit that grows with the text (backing out of a long run costs one step per
 * character) and a memory limit. The JIT's small stack is tried first; when it is too small the
 * interpreter, whose frames live on the heap, takes over. UTF checks are off while matching,
 * because fl__tokenizer_encode repairs its text first and PCRE2 would check all of it again at
 * every match.
 * SPDX-License-Identifier: MIT */
#define PCRE2_CODE_UNIT_WIDTH 8
#include "text/pattern.h"

#include "base/mem.h"
#include "text/unicode.h"

#include <pcre2.h>
#include <string.h>

enum {
    MAX_PATTERN_BYTES = 1 << 14,
    STEPS_BASE = 1000000,
    STEPS_PER_BYTE = 8,
    HEAP_LIMIT_KIB = 256 * 1024
};

struct fl_pattern {
    char *literal; /* [n_literal_bytes], or NULL for a regular expression; owned */
    size_t n_literal_bytes;
    pcre2_code *code; /* owned */
};

static void *pcre2_alloc(size_t n_bytes, void *unused)
{
    (void)unused;
    return fl__alloc(n_bytes, 1);
}

static void pcre2_free(void *p, void *unused)
{
    (void)unused;
    fl__free(&p);
}

static pcre2_code *compile(const fl_text_buf *regex, int *code, PCRE2_SIZE *offset)
{
    pcre2_general_context *memory = pcre2_general_context_create(pcre2_alloc, pcre2_free, NULL);
    pcre2_compile_context *context = memory ? pcre2_compile_context_create(memory) : NULL;
    pcre2_code *compiled = NULL;
    *code = 0;
    if (context) {
        pcre2_set_newline(context, PCRE2_NEWLINE_LF); /* what '.' does not match */
        compiled = pcre2_compile((PCRE2_SPTR)regex->data, regex->n_bytes, PCRE2_UTF | PCRE2_UCP,
                                 code, offset, context);
    }
    pcre2_compile_context_free(context);
    pcre2_general_context_free(memory);
    /* Without a JIT the interpreter runs the same pattern, only slower. */
    if (compiled) (void)pcre2_jit_compile(compiled, PCRE2_JIT_COMPLETE);
    return compiled;
}

fl_status fl__pattern_new_regex(fl_pattern **out, const char *regex, const char *where,
                                const char *field, fl_err *err)
{
    fl_status st = FL_OK;
    fl_pattern *p = NULL;
    fl_text_buf translated = {0};
    const size_t n_bytes = strlen(regex);
    size_t at = 0;
    int code = 0;
    PCRE2_SIZE offset = 0;
    PCRE2_UCHAR message[160] = "";

    *out = NULL;
    if (n_bytes > MAX_PATTERN_BYTES) {
        st = fl__fail(err, FL_E_UNSUPPORTED,
                      "unsupported tokenizer: %s: %s has %zu bytes, more than %d; use another "
                      "tokenizer",
                      where, field, n_bytes, MAX_PATTERN_BYTES);
        goto out;
    }
    p = fl__calloc(1, sizeof *p);
    const char *why = p ? fl__regex_translate(&translated, regex, n_bytes, &at) : "";
    if (!p || (why && at == SIZE_MAX)) {
        st = fl__fail_nomem(err, where, n_bytes);
        goto out;
    }
    if (why) {
        st = fl__fail(err, FL_E_UNSUPPORTED,
                      "unsupported tokenizer: %s: %s, offset %zu: %s; use another tokenizer",
                      where, field, at, why);
        goto out;
    }
    p->code = compile(&translated, &code, &offset);
    if (!p->code && (code == 0 || code == PCRE2_ERROR_HEAP_FAILED)) {
        st = fl__fail_nomem(err, where, n_bytes);
        goto out;
    }
    if (!p->code) {
        (void)pcre2_get_error_message(code, message, sizeof message);
        st = fl__fail(err, FL_E_UNSUPPORTED,
                      "unsupported tokenizer: %s: %s is no regular expression for PCRE2: %s; "
                      "use another tokenizer",
                      where, field, (const char *)message);
        goto out;
    }
    *out = p;
    p = NULL;
out:
    fl__pattern_free(&p);
    fl__text_buf_fini(&translated);
    return st;
}

static fl_status new_literal(fl_pattern **out, const json_t *text, const char *where,
                             const char *field, fl_err *err)
{
    const size_t n_bytes = json_string_length(text);
    if (n_bytes == 0)
        return fl__fail(err, FL_E_UNSUPPORTED,
                        "unsupported tokenizer: %s: %s is an empty text; use another tokenizer",
                        where, field);
    fl_pattern *p = fl__calloc(1, sizeof *p);
    if (p) p->literal = fl__strndup(json_string_value(text), n_bytes);
    if (!p || !p->literal) {
        fl__pattern_free(&p);
        return fl__fail_nomem(err, where, n_bytes);
    }
    p->n_literal_bytes = n_bytes;
    *out = p;
    return FL_OK;
}

fl_status fl__pattern_new(fl_pattern **out, const json_t *json, const char *where,
                          const char *field, fl_err *err)
{
    const json_t *text = json_object_get(json, "String");
    const json_t *regex = json_object_get(json, "Regex");
    *out = NULL;
    if (json_object_size(json) == 1 && json_is_string(text))
        return new_literal(out, text, where, field, err);
    if (json_object_size(json) == 1 && json_is_string(regex))
        return fl__pattern_new_regex(out, json_string_value(regex), where, field, err);
    return fl__fail(
        err, FL_E_INPUT,
        "bad tokenizer: %s: %s is neither {\"String\": ..} nor {\"Regex\": ..}; get "
        "the file again",
        where, field);
}

void fl__pattern_free(fl_pattern **p)
{
    if (!*p) return;
    fl__free(&(*p)->literal);
    pcre2_code_free((*p)->code);
    fl__free(p);
}

/* ---- matching ---------------------------------------------------------------------------- */

static int prepare(fl_matcher *m, size_t n_bytes)
{
    if (!m->data) {
        pcre2_general_context *memory =
            pcre2_general_context_create(pcre2_alloc, pcre2_free, NULL);
        if (memory) {
            m->data = pcre2_match_data_create(1, memory); /* room for the whole match only */
            m->context = pcre2_match_context_create(memory);
        }
        pcre2_general_context_free(memory);
        if (!m->data || !m->context) {
            fl__matcher_fini(m);
            return -1;
        }
        pcre2_set_heap_limit(m->context, HEAP_LIMIT_KIB);
    }
    const size_t limit = STEPS_BASE + FL_MIN(n_bytes, (size_t)1 << 28) * STEPS_PER_BYTE;
    if (limit != m->limit) pcre2_set_match_limit(m->context, (uint32_t)limit);
    m->limit = limit;
    return 0;
}

void fl__matcher_fini(fl_matcher *m)
{
    pcre2_match_data_free(m->data);
    pcre2_match_context_free(m->context);
    *m = (fl_matcher){0};
}

fl_match_iter fl__match_iter_init(const fl_pattern *p, fl_matcher *m, const char *text,
                                  size_t n_bytes)
{
    return (fl_match_iter){p, m, text, n_bytes, 0, SIZE_MAX};
}

/* Next match at or behind it->position, empty or not. */
static fl_status search(bool *found, size_t *start, size_t *end, const fl_match_iter *it,
                        fl_err *err)
{
    const fl_pattern *p = it->pattern;
    fl_matcher *m = it->matcher;
    if (p->literal) {
        const char *hit = memmem(it->text + it->position, it->n_bytes - it->position,
                                 p->literal, p->n_literal_bytes);
        *found = hit != NULL;
        *start = hit ? (size_t)(hit - it->text) : 0;
        *end = *start + p->n_literal_bytes;
        return FL_OK;
    }
    if (prepare(m, it->n_bytes)) return fl__fail_nomem(err, "a pattern match", it->n_bytes);
    PCRE2_SPTR text = (PCRE2_SPTR)it->text;
    int rc = pcre2_match(p->code, text, it->n_bytes, it->position, PCRE2_NO_UTF_CHECK, m->data,
                         m->context);
    if (rc == PCRE2_ERROR_JIT_STACKLIMIT)
        rc = pcre2_match(p->code, text, it->n_bytes, it->position,
                         PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT, m->data, m->context);
    *found = rc >= 0; /* 0: there are groups, for which no room was asked */
    if (rc == PCRE2_ERROR_NOMATCH) return FL_OK;
    if (rc == PCRE2_ERROR_NOMEMORY) return fl__fail_nomem(err, "a pattern match", it->n_bytes);
    if (rc < 0)
        return fl__fail(
            err, FL_E_INPUT,
            "tokenizer pattern gave up: text of %zu bytes: PCRE2 error %d (steps or "
            "memory); use shorter lines or another tokenizer",
            it->n_bytes, rc);
    const PCRE2_SIZE *bounds = pcre2_get_ovector_pointer(m->data);
    *start = bounds[0];
    *end = bounds[1];
    return FL_OK;
}

fl_status fl__match_iter_next(bool *found, size_t *start, size_t *end, fl_match_iter *it,
                              fl_err *err)
{
    *found = false;
    while (it->position <= it->n_bytes) {
        const fl_status st = search(found, start, end, it, err);
        if (st || !*found) return st;
        if (*start != *end || *end != it->previous_end) {
            it->position = it->previous_end = *end;
            return FL_OK;
        }
        *found = false;
        if (it->position == it->n_bytes) break;
        it->position +=
            (size_t)fl__utf8_read(it->text + it->position, it->n_bytes - it->position).n_bytes;
    }
    return FL_OK;
}
