/* encoding.h - the state of one call of fl__tokenizer_encode.
 *
 * Lives on the caller's stack, so that a tokenizer stays immutable. Words that came before in
 * the same text are looked up in a cache instead of being merged again.
 * SPDX-License-Identifier: MIT */
#ifndef FL_TEXT_ENCODING_H
#define FL_TEXT_ENCODING_H

#include "text/pipeline.h"

/* A piece whose ids are known: they are ids[first_id .. first_id + n_ids) of the encoding. */
typedef struct fl_cached_piece {
    uint64_t hash;
    size_t key; /* offset in keys */
    size_t first_id;
    uint32_t n_key_bytes, n_ids;
    bool used;
} fl_cached_piece;

struct fl_encoding {
    const fl_tokenizer *tokenizer;
    int32_t *ids; /* [n_ids], owned */
    size_t n_ids, ids_room;
    fl_matcher matcher;
    fl_text_buf repaired, normalized[2];
    fl_text_buf prefixed[FL_MAX_STEPS], mapped[FL_MAX_STEPS]; /* scratch of each step */
    fl_cached_piece *cache; /* [n_cache], owned; n_cache is a power of two or 0 */
    size_t n_cache, n_cached;
    fl_text_buf keys;
    void *model_scratch; /* owned by the encoding, laid out by the model */
    size_t model_scratch_bytes;
};

void fl__encoding_init(fl_encoding *e, const fl_tokenizer *t);
void fl__encoding_fini(fl_encoding *e);
fl_status fl__encoding_add(fl_encoding *e, int32_t id, fl_err *err);
/* A piece (n_bytes > 0) that is through with pre-tokeniser steps before `step`. */
fl_status fl__pretokenize(fl_encoding *e, int step, const char *text, size_t n_bytes,
                          fl_err *err);
/* At least n_bytes of scratch, contents undefined; valid until the next call. NULL: no
 * memory. */
void *fl__encoding_scratch(fl_encoding *e, size_t n_bytes);

#endif
