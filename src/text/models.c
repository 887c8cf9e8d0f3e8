/* models.c - the table of models: a piece becomes ids. So far byte-pair encoding.
 *
 * BPE: the characters of a piece are the first symbols. Of all neighbours that have a merge,
 * the one with the smallest rank (the leftmost of equals) is joined, until none is left.
 * Candidates wait in a heap by (rank, position); a join makes its neighbours' candidates stale,
 * which is noticed when they come up. n log n in the characters of the piece, whatever the
 * text.
 *
 * Details as in Hugging Face's tokenizers, because ids depend on them:
 *   - a candidate that came up is still good when the pair at its position merges to the same
 *     token, even if it is another pair by now;
 *   - a character that has no token and no bytes (byte_fallback) is the unk_token, or nothing
 *     when there is none; with fuse_unk neighbours become one; an unknown that waits to be
 *     fused is put behind the byte tokens that follow it;
 *   - of two equal merges the later one counts.
 * SPDX-License-Identifier: MIT */
#include "text/pipeline.h"

#include "base/mem.h"
#include "text/encoding.h"
#include "text/unicode.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

enum { NO_ID = -1 };

/* One slot of the hash table of merges. */
typedef struct merge {
    int32_t left, right; /* left NO_ID: free */
    uint32_t rank;
    int32_t id;
} merge;

typedef struct bpe {
    merge *merges; /* [n_slots], owned; n_slots is a power of two */
    size_t n_slots;
    int32_t byte_ids[256]; /* tokens <0x00>..<0xFF>, NO_ID where there is none */
    char *unk_token;       /* owned, or NULL */
    int32_t unk_id;        /* NO_ID: none, or not in the vocabulary */
    bool fuse_unk, byte_fallback, ignore_merges;
} bpe;

static merge *find_slot(const bpe *b, int32_t left, int32_t right)
{
    uint64_t h = ((uint64_t)(uint32_t)left << 32 | (uint32_t)right) * 0x9E3779B97F4A7C15u;
    h ^= h >> 32;
    size_t slot = h & (b->n_slots - 1);
    for (;; slot = (slot + 1) & (b->n_slots - 1)) {
        merge *m = &b->merges[slot];
        if (m->left == NO_ID || (m->left == left && m->right == right)) return m;
    }
}

static const merge *find_merge(const bpe *b, int32_t left, int32_t right)
{
    const merge *m = find_slot(b, left, right);
    return m->left == NO_ID ? NULL : m;
}

/* ---- reading ----------------------------------------------------------------------------- */

/* One merge of the file, for parsing and for errors. */
typedef struct merge_text {
    const char *left, *right; /* not NUL-terminated */
    size_t n_left_bytes, n_right_bytes;
    const char *where, *unit; /* "tokenizer.json", "model.merges entry" */
    size_t number;
} merge_text;

static fl_status fail_merge(fl_err *err, const merge_text *m, const char *why, const char *text,
                            size_t n_bytes)
{
    const int shown = (int)fl__utf8_valid_prefix(text, FL_MIN(n_bytes, (size_t)60));
    return fl__fail(err, FL_E_INPUT,
                    "bad tokenizer: %s: %s %zu: %s \"%.*s\"; get the file again", m->where,
                    m->unit, m->number, why, shown, text);
}

/* Splits "a b" at its only space. */
static fl_status split_merge(merge_text *m, const char *line, size_t n_bytes, fl_err *err)
{
    const char *space = memchr(line, ' ', n_bytes);
    const size_t n_left = space ? (size_t)(space - line) : n_bytes;
    if (!space || memchr(space + 1, ' ', n_bytes - n_left - 1))
        return fail_merge(err, m, "not two tokens and a space:", line, n_bytes);
    m->left = line;
    m->n_left_bytes = n_left;
    m->right = space + 1;
    m->n_right_bytes = n_bytes - n_left - 1;
    return FL_OK;
}

static fl_status add_merge(bpe *b, const fl_vocab *vocab, const merge_text *m, uint32_t rank,
                           fl_text_buf *joined, fl_err *err)
{
    const int32_t left = fl__vocab_id(vocab, m->left, m->n_left_bytes);
    const int32_t right = fl__vocab_id(vocab, m->right, m->n_right_bytes);
    if (left < 0)
        return fail_merge(err, m, "no such token in the vocabulary:", m->left, m->n_left_bytes);
    if (right < 0)
        return fail_merge(err, m, "no such token in the vocabulary:", m->right,
                          m->n_right_bytes);
    fl__text_buf_clear(joined);
    if (fl__text_buf_append(joined, m->left, m->n_left_bytes) ||
        fl__text_buf_append(joined, m->right, m->n_right_bytes))
        return fl__fail_nomem(err, "merges", m->n_left_bytes + m->n_right_bytes);
    const int32_t id = fl__vocab_id(vocab, joined->data, joined->n_bytes);
    if (id < 0)
        return fail_merge(err, m, "no such token in the vocabulary:", joined->data,
                          joined->n_bytes);
    *find_slot(b, left, right) = (merge){left, right, rank, id};
    return FL_OK;
}

/* Room for n merges, at most half full. */
static fl_status make_table(bpe *b, size_t n, fl_err *err)
{
    b->n_slots = 16;
    while (b->n_slots < 2 * n) b->n_slots *= 2;
    b->merges = fl__alloc(b->n_slots, sizeof *b->merges);
    if (!b->merges) return fl__fail_nomem(err, "merges", b->n_slots * sizeof *b->merges);
    memset(b->merges, 0xFF, b->n_slots * sizeof *b->merges); /* left = NO_ID */
    return FL_OK;
}

static fl_status read_merge(merge_text *m, const json_t *json, fl_err *err)
{
    const json_t *left = json_array_get(json, 0), *right = json_array_get(json, 1);
    if (json_is_string(json))
        return split_merge(m, json_string_value(json), json_string_length(json), err);
    if (json_array_size(json) != 2 || !json_is_string(left) || !json_is_string(right))
        return fail_merge(err, m, "neither \"a b\" nor [\"a\", \"b\"]", "", 0);
    m->left = json_string_value(left);
    m->n_left_bytes = json_string_length(left);
    m->right = json_string_value(right);
    m->n_right_bytes = json_string_length(right);
    return FL_OK;
}

static fl_status read_merge_list(bpe *b, const json_t *json, const fl_parse *at,
                                 fl_text_buf *joined, fl_err *err)
{
    const json_t *list = json_object_get(json, "merges");
    if (!json_is_array(list))
        return fl__fail(err, FL_E_INPUT,
                        "bad tokenizer: %s: %s.merges is no list; get the file again",
                        at->where, at->field);
    fl_status st = make_table(b, json_array_size(list), err);
    for (size_t i = 0; i < json_array_size(list) && !st; i++) {
        merge_text m = {.where = at->where, .unit = "model.merges entry", .number = i};
        st = read_merge(&m, json_array_get(list, i), err);
        if (!st) st = add_merge(b, at->vocab, &m, (uint32_t)i, joined, err);
    }
    return st;
}

/* merges.txt: one merge per line; "#version" lines and empty lines are passed over. */
static fl_status read_merge_lines(bpe *b, const fl_parse *at, fl_text_buf *joined, fl_err *err)
{
    const char *text = at->merges, *const end = text + at->n_merges_bytes;
    size_t n_lines = 1, number = 0;
    uint32_t rank = 0;
    for (const char *s = text; s < end; s++) n_lines += *s == '\n';
    fl_status st = make_table(b, n_lines, err);
    while (text < end && !st) {
        const char *newline = memchr(text, '\n', (size_t)(end - text));
        const char *line = text;
        size_t n_bytes = (size_t)((newline ? newline : end) - line);
        text = newline ? newline + 1 : end;
        number++;
        if (n_bytes > 0 && line[n_bytes - 1] == '\r') n_bytes--;
        if (n_bytes == 0 || (n_bytes >= 8 && memcmp(line, "#version", 8) == 0)) continue;
        merge_text m = {.where = at->merges_where, .unit = "line", .number = number};
        st = split_merge(&m, line, n_bytes, err);
        if (!st) st = add_merge(b, at->vocab, &m, rank++, joined, err);
    }
    return st;
}

static fl_status read_vocab(const json_t *json, const fl_parse *at, fl_err *err)
{
    json_t *vocab = json_object_get(json, "vocab"), *id;
    const char *token;
    if (!json_is_object(vocab))
        return fl__fail(err, FL_E_INPUT,
                        "bad tokenizer: %s: %s.vocab is no object; get the file again",
                        at->where, at->field);
    json_object_foreach(vocab, token, id)
    {
        if (!json_is_integer(id))
            return fl__fail(err, FL_E_INPUT,
                            "bad tokenizer: %s: %s.vocab: the id of \"%.40s\" is no integer; "
                            "get the file again",
                            at->where, at->field, token);
        const fl_status st = fl__vocab_add(at->vocab, token, strlen(token),
                                           json_integer_value(id), at->place, err);
        if (st) return st;
    }
    return FL_OK;
}

/* What must be off: parts of BPE that no tokenizer of ours needs. */
static fl_status refuse_extras(const json_t *json, const fl_parse *at, fl_err *err)
{
    static const char *const affixes[] = {"continuing_subword_prefix", "end_of_word_suffix"};
    double dropout = 0;
    fl_status st = fl__json_get_double(json, "dropout", false, &dropout, at->place, err);
    if (st) return st;
    if (dropout != 0) return fl__unsupported(err, at, "dropout", "not zero");
    for (size_t i = 0; i < FL_COUNT(affixes); i++) {
        const char *text = "";
        st = fl__json_get_string(json, affixes[i], false, &text, at->place, err);
        if (st) return st;
        if (text[0]) return fl__unsupported(err, at, affixes[i], "not empty");
    }
    return FL_OK;
}

static fl_status read_switches(bpe *b, const json_t *json, const fl_parse *at, fl_err *err)
{
    const char *unk = NULL;
    const struct {
        const char *key;
        bool *value;
    } switches[] = {{"fuse_unk", &b->fuse_unk},
                    {"byte_fallback", &b->byte_fallback},
                    {"ignore_merges", &b->ignore_merges}};
    for (size_t i = 0; i < FL_COUNT(switches); i++) {
        const fl_status st =
            fl__json_get_bool(json, switches[i].key, false, switches[i].value, at->place, err);
        if (st) return st;
    }
    const fl_status st = fl__json_get_string(json, "unk_token", false, &unk, at->place, err);
    if (st || !unk) return st;
    b->unk_token = fl__strdup(unk);
    return b->unk_token ? FL_OK : fl__fail_nomem(err, at->where, strlen(unk));
}

/* Ids that the vocabulary decides. */
static void look_up_ids(bpe *b, const fl_vocab *vocab)
{
    b->unk_id = b->unk_token ? fl__vocab_id(vocab, b->unk_token, strlen(b->unk_token)) : NO_ID;
    for (int i = 0; i < 256; i++) {
        char name[8];
        (void)snprintf(name, sizeof name, "<0x%02X>", (unsigned)i);
        b->byte_ids[i] = fl__vocab_id(vocab, name, 6);
    }
}

static void free_bpe(void **settings)
{
    bpe *b = *settings;
    fl__free(&b->merges);
    fl__free(&b->unk_token);
    fl__free(settings);
}

static fl_status parse_bpe(void **settings, const json_t *json, const fl_parse *at, fl_err *err)
{
    fl_text_buf joined = {0};
    bpe *b = fl__calloc(1, sizeof *b);
    if (!b) return fl__fail_nomem(err, at->where, sizeof *b);
    *settings = b;
    fl_status st = refuse_extras(json, at, err);
    if (!st) st = read_switches(b, json, at, err);
    if (!st) st = read_vocab(json, at, err);
    if (!st && at->merges) st = read_merge_lines(b, at, &joined, err);
    else if (!st) st = read_merge_list(b, json, at, &joined, err);
    if (!st) look_up_ids(b, at->vocab);
    else free_bpe(settings);
    fl__text_buf_fini(&joined);
    return st;
}

/* ---- merging ----------------------------------------------------------------------------- */

typedef struct symbol {
    int32_t id;          /* NO_ID: joined to its left neighbour */
    int32_t left, right; /* neighbours, -1: none */
} symbol;

/* A possible join of the symbol at `position` with its right neighbour. */
typedef struct candidate {
    uint64_t order; /* rank << 32 | position: the smallest comes first */
    int32_t id;
} candidate;

/* Scratch of one piece: symbols, then the heap. A piece of n symbols starts with n - 1
 * candidates; each of at most n - 1 joins takes at least one out and puts at most two in. */
typedef struct word {
    symbol *symbols; /* [n] */
    candidate *heap; /* [n_heap], room for 2 n */
    int32_t n;
    size_t n_heap;
} word;

static void heap_push(word *w, candidate c)
{
    size_t i = w->n_heap++;
    for (; i > 0 && w->heap[(i - 1) / 2].order > c.order; i = (i - 1) / 2)
        w->heap[i] = w->heap[(i - 1) / 2];
    w->heap[i] = c;
}

static candidate heap_pop(word *w)
{
    const candidate top = w->heap[0];
    const candidate last = w->heap[--w->n_heap];
    size_t i = 0;
    for (size_t child; (child = 2 * i + 1) < w->n_heap; i = child) {
        if (child + 1 < w->n_heap && w->heap[child + 1].order < w->heap[child].order) child++;
        if (w->heap[child].order >= last.order) break;
        w->heap[i] = w->heap[child];
    }
    w->heap[i] = last;
    return top;
}

static void consider(word *w, const bpe *b, int32_t position)
{
    const symbol *s = &w->symbols[position];
    const merge *m = find_merge(b, s->id, w->symbols[s->right].id);
    if (m) heap_push(w, (candidate){(uint64_t)m->rank << 32 | (uint32_t)position, m->id});
}

static void merge_all(word *w, const bpe *b)
{
    for (int32_t i = 0; i + 1 < w->n; i++) consider(w, b, i);
    while (w->n_heap > 0) {
        const candidate top = heap_pop(w);
        const int32_t position = (int32_t)(uint32_t)top.order;
        symbol *s = &w->symbols[position];
        if (s->id == NO_ID || s->right < 0) continue;
        symbol *right = &w->symbols[s->right];
        const merge *now = find_merge(b, s->id, right->id);
        if (!now || now->id != top.id) continue;
        s->id = top.id;
        s->right = right->right;
        right->id = NO_ID;
        if (s->right >= 0) w->symbols[s->right].left = position;
        if (s->left >= 0) consider(w, b, s->left);
        if (s->right >= 0) consider(w, b, position);
    }
}

static void add_symbol(word *w, int32_t id)
{
    const int32_t i = w->n++;
    w->symbols[i] = (symbol){id, i - 1, -1};
    if (i > 0) w->symbols[i - 1].right = i;
}

/* The tokens of a character's bytes; false when one has none. */
static bool add_bytes(word *w, const bpe *b, const char *text, int n_bytes)
{
    for (int i = 0; i < n_bytes; i++)
        if (b->byte_ids[(unsigned char)text[i]] == NO_ID) return false;
    for (int i = 0; i < n_bytes; i++) add_symbol(w, b->byte_ids[(unsigned char)text[i]]);
    return true;
}

static fl_status add_characters(word *w, const bpe *b, const fl_vocab *vocab, const char *text,
                                size_t n_bytes, fl_err *err)
{
    bool unknown_waits = false;
    for (size_t i = 0; i < n_bytes;) {
        const int n = fl__utf8_read(text + i, n_bytes - i).n_bytes;
        const char *character = text + i;
        const int32_t id = fl__vocab_id(vocab, character, (size_t)n);
        i += (size_t)n;
        if (id >= 0) {
            if (unknown_waits) add_symbol(w, b->unk_id);
            unknown_waits = false;
            add_symbol(w, id);
            continue;
        }
        if (b->byte_fallback && add_bytes(w, b, character, n)) continue;
        if (!b->unk_token) continue;
        if (b->unk_id == NO_ID)
            return fl__fail(err, FL_E_INPUT,
                            "bad tokenizer: model.unk_token: \"%.40s\" is needed for this text "
                            "and not in the vocabulary; use another tokenizer",
                            b->unk_token);
        if (unknown_waits && !b->fuse_unk) add_symbol(w, b->unk_id);
        unknown_waits = true;
    }
    if (unknown_waits) add_symbol(w, b->unk_id);
    return FL_OK;
}

static fl_status tokenize_bpe(fl_encoding *e, const void *settings, const fl_vocab *vocab,
                              const char *text, size_t n_bytes, fl_err *err)
{
    const bpe *b = settings;
    if (b->ignore_merges) {
        const int32_t id = fl__vocab_id(vocab, text, n_bytes);
        if (id >= 0) return fl__encoding_add(e, id, err);
    }
    /* A character gives at most one symbol per byte. */
    const size_t symbols_bytes = (n_bytes * sizeof(symbol) + 63) / 64 * 64;
    const size_t scratch_bytes = symbols_bytes + 2 * n_bytes * sizeof(candidate);
    char *scratch = fl__encoding_scratch(e, scratch_bytes);
    if (!scratch) return fl__fail_nomem(err, "the symbols of a word", scratch_bytes);
    word w = {(symbol *)(void *)scratch, (candidate *)(void *)(scratch + symbols_bytes), 0, 0};
    fl_status st = add_characters(&w, b, vocab, text, n_bytes, err);
    if (st) return st;
    merge_all(&w, b);
    for (int32_t i = 0; i >= 0 && i < w.n && !st; i = w.symbols[i].right)
        st = fl__encoding_add(e, w.symbols[i].id, err);
    return st;
}

static const fl_step_row rows[] = {
    {.type = "BPE", .parse = parse_bpe, .free = free_bpe, .tokenize = tokenize_bpe},
};

const fl_stage fl__model_stage = {"model", NULL, rows, FL_COUNT(rows)};
