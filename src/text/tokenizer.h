/* tokenizer.h - text to token ids and back, as the files of a Hugging Face model directory say.
 *
 * A tokenizer is the pipeline of tokenizer.json: normalizer, pre_tokenizer, model,
 * post_processor, decoder, with the added tokens cut out in front; pipeline.h has the tables of
 * what each may be. A file that asks for something else is FL_E_UNSUPPORTED, naming the field
 * and its type. Truncation and padding in tokenizer.json are not applied: nothing is ever cut
 * or filled.
 *
 * A tokenizer never changes after opening: any number of threads may use one.
 * SPDX-License-Identifier: MIT */
#ifndef FL_TEXT_TOKENIZER_H
#define FL_TEXT_TOKENIZER_H

#include "base/status.h"

typedef struct fl_tokenizer fl_tokenizer;

/* Reads tokenizer.json, or else vocab.json + merges.txt with added_tokens.json,
 * special_tokens_map.json and tokenizer_config.json where present (the last one's
 * tokenizer_class picks the pre-tokeniser: docs/tokenizers.md). */
fl_status fl__tokenizer_open(fl_tokenizer **out, const char *model_dir, fl_err *err);
/* The text of a tokenizer.json; bos and eos are not known then. */
fl_status fl__tokenizer_open_memory(fl_tokenizer **out, const char *json, size_t n_bytes,
                                    fl_err *err);
void fl__tokenizer_close(fl_tokenizer **t);

/* Ids of n_bytes of text; ill-formed UTF-8 is read as U+FFFD, one for each maximal subpart.
 * add_special: also what the post-processor adds (BOS and the like). *ids is owned by the
 * caller (fl__free), and valid when *n_ids is 0. FL_E_NOMEM; FL_E_INPUT when the text is longer
 * than 1 GiB, exceeds a match limit of a pattern, or needs an unknown-token that does not
 * exist. */
fl_status fl__tokenizer_encode(int32_t **ids, size_t *n_ids, const fl_tokenizer *t,
                               const char *text, size_t n_bytes, bool add_special, fl_err *err);

/* Text of ids, well-formed UTF-8, owned by the caller (fl__free), with a NUL behind its
 * n_bytes. Ids that no token has add nothing (the embedding matrix of a model may be larger
 * than its vocabulary). skip_special leaves out special tokens. */
fl_status fl__tokenizer_decode(char **text, size_t *n_bytes, const fl_tokenizer *t,
                               const int32_t *ids, size_t n_ids, bool skip_special,
                               fl_err *err);

/* Decoding id by id. The pieces are whole characters, and all of them together are what
 * fl__tokenizer_decode gives for all ids at once: what a later id could still change (the first
 * bytes of a character; a run of <0x..> tokens) comes only when it is settled. */
typedef struct fl_detok fl_detok;
fl_status fl__detok_new(fl_detok **out, const fl_tokenizer *t, bool skip_special, fl_err *err);
/* *text is borrowed until the next call on d, not NUL-terminated, and may be empty. */
fl_status fl__detok_push(const char **text, size_t *n_bytes, fl_detok *d, int32_t id,
                         fl_err *err);
/* What was held back. Only fl__detok_reset or _free may follow. */
fl_status fl__detok_finish(const char **text, size_t *n_bytes, fl_detok *d, fl_err *err);
/* Ready for another sequence; keeps its memory. */
void fl__detok_reset(fl_detok *d);
void fl__detok_free(fl_detok **d);

/* Largest id + 1. There may be holes below. */
int fl__tokenizer_n_vocab(const fl_tokenizer *t);
/* -1 when no token has this text. */
int32_t fl__tokenizer_id(const fl_tokenizer *t, const char *text, size_t n_bytes);
/* The token as in the vocabulary (byte-level tokens in their printable form), borrowed, not
 * NUL-terminated; NULL when there is no such id. */
const char *fl__tokenizer_text(const fl_tokenizer *t, int32_t id, size_t *n_bytes);
bool fl__tokenizer_is_special(const fl_tokenizer *t, int32_t id);
/* -1 when not known. */
int32_t fl__tokenizer_bos(const fl_tokenizer *t);
int32_t fl__tokenizer_eos(const fl_tokenizer *t);

#endif
