/* pretokenizers.c - the table of pre-tokenisers: a text is cut into the pieces that the model
 * sees one by one.
 *
 * Most of them find delimiters, and a "behavior" says which side of the cut a delimiter falls
 * on. The splitter below does that in one pass: it holds one span back, because the next one
 * may still join it.
 *   Removed             a|, |b    ->  a  b            Isolated     ->  a  ", "  b
 *   MergedWithPrevious            ->  "a, "  b        MergedWithNext  ->  a  ", b"
 *   Contiguous                    ->  a run of delimiters is one piece, and so is a run of
 *                                     what lies between
 * SPDX-License-Identifier: MIT */
#include "text/pipeline.h"

#include "base/mem.h"
#include "text/byte_level.h"
#include "text/encoding.h"
#include "text/unicode.h"

#include <stdio.h>
#include <string.h>

/* ---- the splitter ------------------------------------------------------------------------ */

typedef enum behavior {
    REMOVED,
    ISOLATED,
    MERGED_WITH_PREVIOUS,
    MERGED_WITH_NEXT,
    CONTIGUOUS
} behavior;

static fl_status parse_behavior(behavior *to, bool required, const json_t *json,
                                const fl_parse *at, fl_err *err)
{
    static const char *const names[] = {"Removed", "Isolated", "MergedWithPrevious",
                                        "MergedWithNext", "Contiguous"};
    const char *name = NULL;
    char what[64];
    const fl_status st = fl__json_get_string(json, "behavior", required, &name, at->place, err);
    if (st || !name) return st;
    for (size_t i = 0; i < FL_COUNT(names); i++) {
        if (strcmp(name, names[i]) != 0) continue;
        *to = (behavior)i;
        return FL_OK;
    }
    (void)snprintf(what, sizeof what, "\"%.50s\"", name);
    return fl__unsupported(err, at, "behavior", what);
}

typedef struct splitter {
    fl_encoding *e;
    int next_step;
    const char *text;
    behavior how;
    bool holds; /* start..end is held back */
    bool match; /* what was held back is a delimiter, or ends with one */
    size_t start, end;
} splitter;

static fl_status emit(const splitter *s, size_t start, size_t end, fl_err *err)
{
    if (start == end) return FL_OK;
    return fl__pretokenize(s->e, s->next_step, s->text + start, end - start, err);
}

/* Whether a span may join the one held back. */
static bool joins(const splitter *s, bool match)
{
    if (!s->holds) return false;
    switch (s->how) {
    case MERGED_WITH_PREVIOUS:
        return match && !s->match;
    case MERGED_WITH_NEXT:
        return !match && s->match;
    case CONTIGUOUS:
        return match == s->match;
    default:
        return false;
    }
}

/* Spans come in order and without gaps. */
static fl_status split_at(splitter *s, size_t start, size_t end, bool match, fl_err *err)
{
    if (s->how == REMOVED) return match ? FL_OK : emit(s, start, end, err);
    if (s->how == ISOLATED) return emit(s, start, end, err);
    if (joins(s, match)) {
        s->end = end;
        s->match = match;
        return FL_OK;
    }
    const fl_status st = s->holds ? emit(s, s->start, s->end, err) : FL_OK;
    s->holds = true;
    s->match = match;
    s->start = start;
    s->end = end;
    return st;
}

static fl_status split_end(const splitter *s, fl_err *err)
{
    return s->holds ? emit(s, s->start, s->end, err) : FL_OK;
}

static fl_status split_by_pattern(splitter *s, const fl_pattern *pattern, size_t n_bytes,
                                  bool invert, fl_err *err)
{
    fl_match_iter it = fl__match_iter_init(pattern, &s->e->matcher, s->text, n_bytes);
    size_t done = 0, start, end;
    fl_status st = FL_OK;
    for (;;) {
        bool found;
        st = fl__match_iter_next(&found, &start, &end, &it, err);
        if (st || !found) break;
        if (start != done) st = split_at(s, done, start, invert, err);
        if (!st) st = split_at(s, start, end, !invert, err);
        if (st) break;
        done = end;
    }
    if (!st && done != n_bytes) st = split_at(s, done, n_bytes, invert, err);
    return st ? st : split_end(s, err);
}

/* Every character of the class is a delimiter of its own. */
static fl_status split_by_class(splitter *s, bool is_member(int32_t), size_t n_bytes,
                                fl_err *err)
{
    size_t done = 0;
    fl_status st = FL_OK;
    for (size_t i = 0; i < n_bytes && !st;) {
        const fl_utf8_char c = fl__utf8_read(s->text + i, n_bytes - i);
        const size_t end = i + (size_t)c.n_bytes;
        if (is_member(c.cp)) {
            if (done != i) st = split_at(s, done, i, false, err);
            if (!st) st = split_at(s, i, end, true, err);
            done = end;
        }
        i = end;
    }
    if (!st && done != n_bytes) st = split_at(s, done, n_bytes, false, err);
    return st ? st : split_end(s, err);
}

/* ---- ByteLevel --------------------------------------------------------------------------- */

typedef struct byte_level {
    bool add_prefix_space;
    fl_pattern *regex; /* NULL: use_regex is false; owned */
} byte_level;

static void free_byte_level(void **settings)
{
    byte_level *b = *settings;
    fl__pattern_free(&b->regex);
    fl__free(settings);
}

static fl_status parse_byte_level(void **settings, const json_t *json, const fl_parse *at,
                                  fl_err *err)
{
    bool use_regex = true, trim_offsets;
    byte_level *b = fl__calloc(1, sizeof *b);
    if (!b) return fl__fail_nomem(err, at->where, sizeof *b);
    *settings = b;
    fl_status st =
        fl__json_get_bool(json, "add_prefix_space", true, &b->add_prefix_space, at->place, err);
    /* Offsets are not computed; the field is only checked. */
    if (!st) st = fl__json_get_bool(json, "trim_offsets", false, &trim_offsets, at->place, err);
    if (!st) st = fl__json_get_bool(json, "use_regex", false, &use_regex, at->place, err);
    if (!st && use_regex)
        st = fl__pattern_new_regex(&b->regex, fl__byte_level_regex, at->where, at->field, err);
    if (st) free_byte_level(settings);
    return st;
}

/* Hands on a piece in stand-ins for its bytes. */
static fl_status map_bytes(fl_encoding *e, int step, const char *text, size_t n_bytes,
                           fl_err *err)
{
    fl_text_buf *mapped = &e->mapped[step];
    fl__text_buf_clear(mapped);
    if (fl__byte_level_encode(mapped, text, n_bytes))
        return fl__fail_nomem(err, "byte-level text", 2 * n_bytes);
    return fl__pretokenize(e, step + 1, mapped->data, mapped->n_bytes, err);
}

static fl_status byte_level_run(fl_encoding *e, int step, const void *settings,
                                const char *text, size_t n_bytes, fl_err *err)
{
    const byte_level *b = settings;
    if (b->add_prefix_space && text[0] != ' ') {
        fl_text_buf *prefixed = &e->prefixed[step];
        fl__text_buf_clear(prefixed);
        if (fl__text_buf_append(prefixed, " ", 1) ||
            fl__text_buf_append(prefixed, text, n_bytes))
            return fl__fail_nomem(err, "text with a space in front", n_bytes);
        text = prefixed->data;
        n_bytes = prefixed->n_bytes;
    }
    if (!b->regex) return map_bytes(e, step, text, n_bytes, err);
    fl_match_iter it = fl__match_iter_init(b->regex, &e->matcher, text, n_bytes);
    for (size_t done = 0;;) { /* GPT-2's expression matches at every place: no gaps */
        size_t start, end;
        bool found;
        fl_status st = fl__match_iter_next(&found, &start, &end, &it, err);
        if (st || !found) return st;
        st = map_bytes(e, step, text + done, end - done, err);
        if (st) return st;
        done = end;
    }
}

/* ---- Split ------------------------------------------------------------------------------- */

typedef struct split {
    fl_pattern *pattern; /* owned */
    behavior how;
    bool invert;
} split;

static void free_split(void **settings)
{
    split *s = *settings;
    fl__pattern_free(&s->pattern);
    fl__free(settings);
}

static fl_status parse_split(void **settings, const json_t *json, const fl_parse *at,
                             fl_err *err)
{
    char field[sizeof at->field + 16];
    split *s = fl__calloc(1, sizeof *s);
    if (!s) return fl__fail_nomem(err, at->where, sizeof *s);
    *settings = s;
    (void)snprintf(field, sizeof field, "%s.pattern", at->field);
    fl_status st = parse_behavior(&s->how, true, json, at, err);
    if (!st) st = fl__json_get_bool(json, "invert", true, &s->invert, at->place, err);
    if (!st)
        st = fl__pattern_new(&s->pattern, json_object_get(json, "pattern"), at->where, field,
                             err);
    if (st) free_split(settings);
    return st;
}

static fl_status split_run(fl_encoding *e, int step, const void *settings, const char *text,
                           size_t n_bytes, fl_err *err)
{
    const split *s = settings;
    splitter to = {.e = e, .next_step = step + 1, .text = text, .how = s->how};
    return split_by_pattern(&to, s->pattern, n_bytes, s->invert, err);
}

/* ---- Digits, Punctuation, WhitespaceSplit: one class of characters ----------------------- */

static fl_status parse_digits(void **settings, const json_t *json, const fl_parse *at,
                              fl_err *err)
{
    bool individual = false;
    const fl_status st =
        fl__json_get_bool(json, "individual_digits", true, &individual, at->place, err);
    if (st) return st;
    behavior *how = fl__alloc(1, sizeof *how);
    if (!how) return fl__fail_nomem(err, at->where, sizeof *how);
    *how = individual ? ISOLATED : CONTIGUOUS;
    *settings = how;
    return FL_OK;
}

static fl_status digits_run(fl_encoding *e, int step, const void *settings, const char *text,
                            size_t n_bytes, fl_err *err)
{
    splitter to = {
        .e = e, .next_step = step + 1, .text = text, .how = *(const behavior *)settings};
    return split_by_class(&to, fl__char_is_numeric, n_bytes, err);
}

static fl_status parse_punctuation(void **settings, const json_t *json, const fl_parse *at,
                                   fl_err *err)
{
    behavior *how = fl__alloc(1, sizeof *how);
    if (!how) return fl__fail_nomem(err, at->where, sizeof *how);
    *how = ISOLATED;
    *settings = how;
    const fl_status st = parse_behavior(how, false, json, at, err);
    if (st) fl__free(settings);
    return st;
}

static fl_status punctuation_run(fl_encoding *e, int step, const void *settings,
                                 const char *text, size_t n_bytes, fl_err *err)
{
    splitter to = {
        .e = e, .next_step = step + 1, .text = text, .how = *(const behavior *)settings};
    return split_by_class(&to, fl__char_is_punctuation, n_bytes, err);
}

static fl_status whitespace_split_run(fl_encoding *e, int step, const void *settings,
                                      const char *text, size_t n_bytes, fl_err *err)
{
    splitter to = {.e = e, .next_step = step + 1, .text = text, .how = REMOVED};
    (void)settings;
    return split_by_class(&to, fl__char_is_space, n_bytes, err);
}

/* ---- Whitespace: \w+|[^\w\s]+ ------------------------------------------------------------ */

typedef enum char_kind { SPACE, WORD, OTHER } char_kind;

static char_kind kind_of(int32_t cp)
{
    if (fl__char_is_space(cp)) return SPACE;
    return fl__char_is_word(cp) ? WORD : OTHER;
}

static fl_status whitespace_run(fl_encoding *e, int step, const void *settings,
                                const char *text, size_t n_bytes, fl_err *err)
{
    size_t start = 0;
    char_kind kind = SPACE;
    (void)settings;
    for (size_t i = 0; i < n_bytes;) {
        const fl_utf8_char c = fl__utf8_read(text + i, n_bytes - i);
        const char_kind next = kind_of(c.cp);
        if (next != kind) {
            const fl_status st =
                kind == SPACE ? FL_OK
                              : fl__pretokenize(e, step + 1, text + start, i - start, err);
            if (st) return st;
            start = i;
            kind = next;
        }
        i += (size_t)c.n_bytes;
    }
    return kind == SPACE ? FL_OK
                         : fl__pretokenize(e, step + 1, text + start, n_bytes - start, err);
}

static const fl_step_row rows[] = {
    {.type = "ByteLevel",
     .parse = parse_byte_level,
     .free = free_byte_level,
     .pretokenize = byte_level_run},
    {.type = "Split", .parse = parse_split, .free = free_split, .pretokenize = split_run},
    {.type = "Digits", .parse = parse_digits, .pretokenize = digits_run},
    {.type = "Punctuation", .parse = parse_punctuation, .pretokenize = punctuation_run},
    {.type = "Whitespace", .pretokenize = whitespace_run},
    {.type = "WhitespaceSplit", .pretokenize = whitespace_split_run},
};

const fl_stage fl__pretokenizer_stage = {"pre_tokenizer", "pretokenizers", rows,
                                         FL_COUNT(rows)};
