/* vocab.c - token text <-> id: an array by id and an open-addressing hash table, at most half
 * full, with linear probing. SPDX-License-Identifier: MIT */
#include "text/vocab.h"

#include "base/mem.h"
#include "text/unicode.h"

#include <inttypes.h>
#include <string.h>

enum { FIRST_SLOTS = 1024, FIRST_IDS = 512, MAX_SHOWN_BYTES = 40 };

/* FNV-1a over eight bytes at a time, with a final mix: token texts are short. */
uint64_t fl__text_hash(const char *s, size_t n_bytes)
{
    const uint64_t prime = 0x9E3779B97F4A7C15u;
    uint64_t h = 0xCBF29CE484222325u ^ n_bytes;
    for (; n_bytes >= 8; s += 8, n_bytes -= 8) {
        uint64_t w;
        memcpy(&w, s, sizeof w);
        h = (h ^ w) * prime;
        h ^= h >> 29;
    }
    if (n_bytes > 0) {
        uint64_t w = 0;
        memcpy(&w, s, n_bytes);
        h = (h ^ w) * prime;
    }
    h ^= h >> 32;
    h *= prime;
    return h ^ h >> 29;
}

static size_t find_slot(const fl_vocab *v, const char *text, size_t n_bytes)
{
    size_t slot = fl__text_hash(text, n_bytes) & (v->n_slots - 1);
    while (v->slots[slot] >= 0) {
        const fl_vocab_token *t = &v->tokens[v->slots[slot]];
        if (t->n_bytes == n_bytes && memcmp(v->texts.data + t->offset, text, n_bytes) == 0)
            break;
        slot = (slot + 1) & (v->n_slots - 1);
    }
    return slot;
}

static int grow_slots(fl_vocab *v)
{
    if (2 * (v->n_tokens + 1) <= v->n_slots) return 0;
    const size_t n_slots = v->n_slots > 0 ? 2 * v->n_slots : FIRST_SLOTS;
    int32_t *slots = fl__alloc(n_slots, sizeof *slots);
    if (!slots) return -1;
    memset(slots, 0xFF, n_slots * sizeof *slots);
    fl__free(&v->slots);
    v->slots = slots;
    v->n_slots = n_slots;
    for (size_t id = 0; id < v->n_ids; id++) {
        const fl_vocab_token *t = &v->tokens[id];
        if (t->offset == FL_VOCAB_HOLE) continue;
        slots[find_slot(v, v->texts.data + t->offset, t->n_bytes)] = (int32_t)id;
    }
    return 0;
}

/* Makes ids up to and including id exist, as holes. */
static int grow_ids(fl_vocab *v, size_t id)
{
    if (id < v->n_ids) return 0;
    if (id >= v->n_ids_room) {
        size_t room = v->n_ids_room > 0 ? v->n_ids_room : FIRST_IDS;
        while (room <= id) room *= 2;
        if (fl__grow((void **)&v->tokens, room, sizeof *v->tokens)) return -1;
        v->n_ids_room = room;
    }
    for (; v->n_ids <= id; v->n_ids++) v->tokens[v->n_ids] = (fl_vocab_token){FL_VOCAB_HOLE, 0};
    return 0;
}

/* How much of a text an error shows: whole characters. */
static int shown_bytes(const char *text, size_t n_bytes)
{
    return (int)fl__utf8_valid_prefix(text, FL_MIN(n_bytes, (size_t)MAX_SHOWN_BYTES));
}

fl_status fl__vocab_add(fl_vocab *v, const char *text, size_t n_bytes, int64_t id,
                        const char *where, fl_err *err)
{
    const int shown = shown_bytes(text, n_bytes);
    if (id < 0 || id >= FL_MAX_VOCAB)
        return fl__fail(err, FL_E_INPUT,
                        "bad tokenizer: %s: id %" PRId64 " of token \"%.*s\" is not in 0..%d; "
                        "get the file again",
                        where, id, shown, text, FL_MAX_VOCAB - 1);
    const size_t i = (size_t)id;
    if (i < v->n_ids && v->tokens[i].offset != FL_VOCAB_HOLE)
        return fl__fail(err, FL_E_INPUT,
                        "bad tokenizer: %s: id %" PRId64 " is given to \"%.*s\" and to "
                        "\"%.*s\"; get the file again",
                        where, id,
                        shown_bytes(v->texts.data + v->tokens[i].offset, v->tokens[i].n_bytes),
                        v->texts.data + v->tokens[i].offset, shown, text);
    if (n_bytes >= FL_VOCAB_HOLE - v->texts.n_bytes)
        return fl__fail(err, FL_E_INPUT,
                        "bad tokenizer: %s: the token texts are longer than 4 GiB; get the "
                        "file again",
                        where);
    if (grow_slots(v) || grow_ids(v, i)) return fl__fail_nomem(err, where, n_bytes);
    const size_t slot = find_slot(v, text, n_bytes);
    if (v->slots[slot] >= 0)
        return fl__fail(err, FL_E_INPUT,
                        "bad tokenizer: %s: token \"%.*s\" has ids %d and %" PRId64
                        "; get the file again",
                        where, shown, text, v->slots[slot], id);
    const size_t offset = v->texts.n_bytes;
    if (fl__text_buf_append(&v->texts, text, n_bytes))
        return fl__fail_nomem(err, where, n_bytes);
    v->tokens[i] = (fl_vocab_token){(uint32_t)offset, (uint32_t)n_bytes};
    v->slots[slot] = (int32_t)id;
    v->n_tokens++;
    return FL_OK;
}

int32_t fl__vocab_id(const fl_vocab *v, const char *text, size_t n_bytes)
{
    return v->n_slots > 0 ? v->slots[find_slot(v, text, n_bytes)] : -1;
}

const char *fl__vocab_text(const fl_vocab *v, int64_t id, size_t *n_bytes)
{
    if (id < 0 || (uint64_t)id >= v->n_ids || v->tokens[id].offset == FL_VOCAB_HOLE)
        return NULL;
    *n_bytes = v->tokens[id].n_bytes;
    return v->texts.data + v->tokens[id].offset;
}

void fl__vocab_fini(fl_vocab *v)
{
    fl__text_buf_fini(&v->texts);
    fl__free(&v->tokens);
    fl__free(&v->slots);
    *v = (fl_vocab){0};
}
