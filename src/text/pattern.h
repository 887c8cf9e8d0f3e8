/* pattern.h - the patterns of tokenizer.json: {"String": "..."} or {"Regex": "..."}.
 *
 * Hugging Face's tokenizers compiles regular expressions with Oniguruma in Ruby syntax. They
 * run here on PCRE2 after a translation that spells out what the two read differently, and that
 * refuses (FL_E_UNSUPPORTED) what it does not know to be the same: see regex_translate.c.
 *
 * A pattern is immutable and may be used from several threads, each with its own fl_matcher.
 * SPDX-License-Identifier: MIT */
#ifndef FL_TEXT_PATTERN_H
#define FL_TEXT_PATTERN_H

#include "base/json.h"
#include "text/text_buf.h"

typedef struct fl_pattern fl_pattern;

/* where: file; field: path of the pattern in it, such as "pre_tokenizer.pattern". */
fl_status fl__pattern_new(fl_pattern **out, const json_t *json, const char *where,
                          const char *field, fl_err *err);
fl_status fl__pattern_new_regex(fl_pattern **out, const char *regex, const char *where,
                                const char *field, fl_err *err);
void fl__pattern_free(fl_pattern **p);

/* Scratch of one thread; {0} is valid, memory comes with the first regular expression. */
typedef struct fl_matcher {
    void *data, *context; /* pcre2_match_data, pcre2_match_context, owned */
    size_t limit;         /* match limit set in context */
} fl_matcher;
void fl__matcher_fini(fl_matcher *m);

/* Walks the matches from left to right. As in the onig crate, an empty match directly behind
 * the previous match is passed over. */
typedef struct fl_match_iter {
    const fl_pattern *pattern;
    fl_matcher *matcher;
    const char *text; /* well-formed UTF-8 */
    size_t n_bytes, position;
    size_t previous_end; /* SIZE_MAX before the first match */
} fl_match_iter;
fl_match_iter fl__match_iter_init(const fl_pattern *p, fl_matcher *m, const char *text,
                                  size_t n_bytes);
/* *found false at the end. FL_E_INPUT when the pattern gives up on this text (match limits). */
fl_status fl__match_iter_next(bool *found, size_t *start, size_t *end, fl_match_iter *it,
                              fl_err *err);

/* Translation of an Oniguruma pattern, well-formed UTF-8, into PCRE2 syntax. NULL when all went
 * well, else what is not supported (static text) with *at the byte offset; out then holds
 * rubbish. "out of memory" is told by *at == SIZE_MAX. */
const char *fl__regex_translate(fl_text_buf *out, const char *regex, size_t n_bytes,
                                size_t *at);

#endif
