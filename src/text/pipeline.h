/* pipeline.h - the five stages of a tokenizer and the tables of what each may be.
 *
 * A stage of tokenizer.json is an object with a "type", perhaps a "Sequence" of others. Reading
 * it gives a flat list of steps, each a table row with the row's own settings:
 *
 *   text -> [added tokens cut out] -> normalizer steps -> [normalized added tokens cut out]
 *        -> pre_tokenizer steps -> model -> ids -> post_processor steps -> ids
 *   ids  -> token texts -> decoder steps -> text
 *
 * To add a kind: write its functions and one row in the table of its stage (normalizers.c,
 * pretokenizers.c, models.c, postprocessors.c, decoders.c). Nothing else names types.
 *
 * Pre-tokeniser steps push each piece to the next step as they find it, decoder steps likewise,
 * so no list of pieces is ever held. SPDX-License-Identifier: MIT */
#ifndef FL_TEXT_PIPELINE_H
#define FL_TEXT_PIPELINE_H

#include "base/json.h"
#include "base/status.h"
#include "text/added_tokens.h"
#include "text/pattern.h"
#include "text/text_buf.h"
#include "text/tokenizer.h"
#include "text/vocab.h"

enum { FL_MAX_STEPS = 16 };

typedef struct fl_encoding fl_encoding;
typedef struct fl_decoding fl_decoding;

/* What a row's parse function may look at besides its own JSON object. */
typedef struct fl_parse {
    const char *where; /* file, for errors */
    char field[128];   /* path of the object in it, e.g. "pre_tokenizer.pretokenizers[1]" */
    char place[512];   /* "<where>: <field>" */
    fl_vocab *vocab;   /* filled by the model, which is read first */
    /* The model's merges when they are no part of the JSON: lines of merges.txt, else NULL. */
    const char *merges;
    size_t n_merges_bytes;
    const char *merges_where;
} fl_parse;

typedef fl_status fl_parse_fn(void **settings, const json_t *json, const fl_parse *at,
                              fl_err *err);
/* Appends the normal form of text to out. */
typedef fl_status fl_normalize_fn(fl_text_buf *out, const void *settings, const char *text,
                                  size_t n_bytes, fl_matcher *matcher, fl_err *err);
/* Cuts a piece up, calling fl__pretokenize(e, step + 1, ..) for each part that is not empty. */
typedef fl_status fl_pretokenize_fn(fl_encoding *e, int step, const void *settings,
                                    const char *text, size_t n_bytes, fl_err *err);
/* Appends the ids of one piece with fl__encoding_add. */
typedef fl_status fl_tokenize_fn(fl_encoding *e, const void *settings, const fl_vocab *vocab,
                                 const char *text, size_t n_bytes, fl_err *err);
/* Changes the ids of the whole text. */
typedef fl_status fl_postprocess_fn(int32_t **ids, size_t *n_ids, const void *settings,
                                    bool add_special, fl_err *err);
/* Takes a fragment of a piece; `ends` says that the piece ends with it. Hands on with
 * fl__decoding_push(d, step + 1, ..). Fragments are whole characters. */
typedef fl_status fl_decode_push_fn(fl_decoding *d, int step, const void *settings,
                                    const char *text, size_t n_bytes, bool ends, fl_err *err);
/* No more pieces: hands on what was held back. */
typedef fl_status fl_decode_finish_fn(fl_decoding *d, int step, const void *settings,
                                      fl_err *err);

typedef struct fl_step_row {
    const char *type;      /* as in tokenizer.json */
    fl_parse_fn *parse;    /* NULL: no settings */
    void (*free)(void **); /* of the settings; NULL: fl__free is enough */
    fl_normalize_fn *normalize;
    fl_pretokenize_fn *pretokenize;
    fl_tokenize_fn *tokenize;
    fl_postprocess_fn *postprocess;
    fl_decode_push_fn *push;
    fl_decode_finish_fn *finish; /* NULL: never holds anything back */
} fl_step_row;

/* One stage: its key in tokenizer.json, the key of the list in its Sequence, its rows. */
typedef struct fl_stage {
    const char *key, *list_key;
    const fl_step_row *rows;
    size_t n_rows;
} fl_stage;
extern const fl_stage fl__normalizer_stage, fl__pretokenizer_stage, fl__model_stage,
    fl__postprocessor_stage, fl__decoder_stage;

typedef struct fl_step {
    const fl_step_row *row;
    void *settings; /* owned */
} fl_step;

typedef struct fl_steps {
    fl_step step[FL_MAX_STEPS];
    int n;
} fl_steps;

/* Reads stage->key of the tokenizer.json object; null or absent is no step at all. */
fl_status fl__steps_parse(fl_steps *steps, const fl_stage *stage, const json_t *tokenizer,
                          fl_parse *at, fl_err *err);
void fl__steps_fini(fl_steps *steps);
/* Sets field and place; a text that does not fit is cut. */
void fl__parse_enter(fl_parse *at, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* FL_E_UNSUPPORTED: "<field>.<key> is <what>". */
fl_status fl__unsupported(fl_err *err, const fl_parse *at, const char *key, const char *what);

/* How long a text of n_bytes may become: a file could otherwise ask for a thousand bytes in
 * place of each one, sixteen times over. Unicode's normal forms need a factor of 11 at most. */
static inline size_t fl__normalized_limit(size_t n_bytes)
{
    return ((size_t)1 << 20) + 32 * n_bytes;
}
fl_status fl__too_much_text(fl_err *err, size_t n_bytes);

/* Text through all steps; *out is text itself or lies in one of the two buffers. */
fl_status fl__normalize(const char **out, size_t *n_out_bytes, const fl_steps *steps,
                        const char *text, size_t n_bytes, fl_text_buf spare[2],
                        fl_matcher *matcher, fl_err *err);

/* Builds a tokenizer from a parsed tokenizer.json; at->vocab is set here. */
fl_status fl__tokenizer_build(fl_tokenizer **out, const json_t *tokenizer, fl_parse *at,
                              fl_err *err);

struct fl_tokenizer {
    fl_vocab vocab;
    fl_added_tokens added;
    fl_steps normalizer, pretokenizer, model, postprocessor, decoder;
    int32_t *added_of; /* [vocab.n_ids] index in added.tokens, -1: none; owned */
    size_t longest_token_bytes;
    int32_t bos, eos; /* -1: not known */
};

#endif
