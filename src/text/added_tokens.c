/* added_tokens.c - finding added tokens: a walk over the text that stops at bytes with which
 * some token starts, and narrows the sorted list down byte by byte from there.
 * SPDX-License-Identifier: MIT */
#include "text/added_tokens.h"

#include "base/mem.h"
#include "text/unicode.h"

#include <stdlib.h>
#include <string.h>

static int compare(const void *left, const void *right)
{
    const fl_added_token *a = *(const fl_added_token *const *)left;
    const fl_added_token *b = *(const fl_added_token *const *)right;
    const size_t n = FL_MIN(a->n_normalized_bytes, b->n_normalized_bytes);
    const int order = memcmp(a->normalized, b->normalized, n);
    if (order != 0) return order;
    if (a->n_normalized_bytes != b->n_normalized_bytes)
        return a->n_normalized_bytes < b->n_normalized_bytes ? -1 : 1;
    return a->id < b->id ? -1 : a->id > b->id;
}

static int build(fl_added_index *index, const fl_added_tokens *a, bool normalize)
{
    index->order = fl__alloc(a->n, sizeof *index->order);
    if (!index->order) return -1;
    for (size_t i = 0; i < a->n; i++)
        if (a->tokens[i].normalize == normalize && a->tokens[i].n_normalized_bytes > 0)
            index->order[index->n++] = &a->tokens[i];
    qsort(index->order, index->n, sizeof *index->order, compare);
    size_t i = 0;
    for (int byte = 0; byte < 256; byte++) {
        index->first[byte] = (uint32_t)i;
        while (i < index->n && (unsigned char)index->order[i]->normalized[0] == byte) i++;
    }
    index->first[256] = (uint32_t)i;
    return 0;
}

int fl__added_tokens_index(fl_added_tokens *a)
{
    return build(&a->raw, a, false) || build(&a->normalized, a, true) ? -1 : 0;
}

void fl__added_tokens_fini(fl_added_tokens *a)
{
    for (size_t i = 0; i < a->n; i++) {
        fl__free(&a->tokens[i].content);
        fl__free(&a->tokens[i].normalized);
    }
    fl__free(&a->tokens);
    fl__free(&a->raw.order);
    fl__free(&a->normalized.order);
    *a = (fl_added_tokens){0};
}

/* First of order[low..high) whose byte `at` is >= byte (all are longer than `at`, and agree on
 * the bytes before). */
static size_t lower_bound(const fl_added_index *index, size_t low, size_t high, size_t at,
                          int byte)
{
    while (low < high) {
        const size_t middle = low + (high - low) / 2;
        if ((unsigned char)index->order[middle]->normalized[at] < byte) low = middle + 1;
        else high = middle;
    }
    return low;
}

/* Longest token that text starts with, or NULL. Of tokens with the same text the first one. */
static const fl_added_token *longest_match(const fl_added_index *index, const char *text,
                                           size_t n_bytes)
{
    const fl_added_token *best = NULL;
    size_t low = index->first[(unsigned char)text[0]];
    size_t high = index->first[(unsigned char)text[0] + 1];
    for (size_t at = 1; low < high; at++) {
        if (index->order[low]->n_normalized_bytes == at) best = index->order[low];
        while (low < high && index->order[low]->n_normalized_bytes == at) low++;
        if (at == n_bytes) break;
        const int byte = (unsigned char)text[at];
        const size_t narrowed = lower_bound(index, low, high, at, byte);
        high = lower_bound(index, narrowed, high, at, byte + 1);
        low = narrowed;
    }
    return best;
}

static bool touches_word(const char *text, size_t n_bytes, size_t start, size_t end)
{
    if (start > 0) {
        const size_t last = fl__utf8_last(text, start);
        if (fl__char_is_word(fl__utf8_read(text + last, start - last).cp)) return true;
    }
    return end < n_bytes && fl__char_is_word(fl__utf8_read(text + end, n_bytes - end).cp);
}

static void take_spaces(size_t *start, size_t *end, const fl_added_token *token,
                        const fl_added_search *s)
{
    while (token->lstrip && *start > s->done) {
        const size_t last = fl__utf8_last(s->text, *start);
        if (!fl__char_is_space(fl__utf8_read(s->text + last, *start - last).cp)) break;
        *start = last;
    }
    while (token->rstrip && *end < s->n_bytes) {
        const fl_utf8_char c = fl__utf8_read(s->text + *end, s->n_bytes - *end);
        if (!fl__char_is_space(c.cp)) break;
        *end += (size_t)c.n_bytes;
    }
}

const fl_added_token *fl__added_search_next(fl_added_search *s, size_t *start, size_t *end)
{
    if (s->index->n == 0) return NULL;
    while (s->from < s->n_bytes) {
        const fl_added_token *token =
            longest_match(s->index, s->text + s->from, s->n_bytes - s->from);
        if (!token) {
            s->from++;
            continue;
        }
        *start = s->from;
        *end = s->from += token->n_normalized_bytes;
        if (token->single_word && touches_word(s->text, s->n_bytes, *start, *end)) continue;
        take_spaces(start, end, token, s);
        s->done = *end;
        return token;
    }
    return NULL;
}
