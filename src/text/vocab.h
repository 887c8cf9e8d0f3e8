/* vocab.h - token text <-> id, shared by the model and the added tokens.
 *
 * Ids come from files: each is below FL_MAX_VOCAB and given once; holes are allowed. All texts
 * lie in one buffer; the hash table stores ids and compares texts there.
 * SPDX-License-Identifier: MIT */
#ifndef FL_TEXT_VOCAB_H
#define FL_TEXT_VOCAB_H

#include "base/status.h"
#include "text/text_buf.h"

enum { FL_MAX_VOCAB = 1 << 21 };

typedef struct fl_vocab_token {
    uint32_t offset, n_bytes; /* in texts; offset FL_VOCAB_HOLE: no such id */
} fl_vocab_token;
#define FL_VOCAB_HOLE UINT32_MAX

typedef struct fl_vocab {
    fl_text_buf texts;
    fl_vocab_token *tokens; /* [n_ids] by id, capacity n_ids_room */
    int32_t *slots;         /* [n_slots] ids, -1: free; n_slots is a power of two */
    size_t n_ids;           /* largest id + 1 */
    size_t n_tokens;
    size_t n_ids_room, n_slots;
} fl_vocab;

/* Fails with FL_E_INPUT naming `where` when the id is out of range or taken, or the text
 * known. */
fl_status fl__vocab_add(fl_vocab *v, const char *text, size_t n_bytes, int64_t id,
                        const char *where, fl_err *err);
/* -1 when there is no such token. */
int32_t fl__vocab_id(const fl_vocab *v, const char *text, size_t n_bytes);
/* Borrowed, not NUL-terminated; NULL when there is no such id. */
const char *fl__vocab_text(const fl_vocab *v, int64_t id, size_t *n_bytes);
void fl__vocab_fini(fl_vocab *v);

/* Hash of n_bytes, good in its low bits. */
uint64_t fl__text_hash(const char *s, size_t n_bytes);

#endif
