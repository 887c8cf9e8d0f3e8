/* added_tokens.h - tokens that are cut out of the text before the model sees it.
 *
 * As in Hugging Face's tokenizers: the leftmost-longest match counts; tokens with normalized
 * false are looked for in the raw text, the others (in their normalised form) in the normalised
 * text; single_word drops a match that touches a word character; lstrip and rstrip take the
 * white space beside the match along.
 * SPDX-License-Identifier: MIT */
#ifndef FL_TEXT_ADDED_TOKENS_H
#define FL_TEXT_ADDED_TOKENS_H

#include "base/status.h"

typedef struct fl_added_token {
    char *content;    /* [n_content_bytes], owned */
    char *normalized; /* [n_normalized_bytes], owned; what is matched and decoded */
    size_t n_content_bytes, n_normalized_bytes;
    int32_t id;
    bool special, single_word, lstrip, rstrip, normalize;
} fl_added_token;

/* Tokens to look for in one kind of text, sorted by bytes: those that start with byte b are
 * order[first[b]] .. order[first[b + 1] - 1]. */
typedef struct fl_added_index {
    const fl_added_token **order; /* [n], owned, pointing into tokens */
    size_t n;
    uint32_t first[257];
} fl_added_index;

typedef struct fl_added_tokens {
    fl_added_token *tokens; /* [n], owned */
    size_t n;
    fl_added_index raw, normalized;
} fl_added_tokens;

/* Builds both indices when tokens are complete. 0, or -1 when out of memory. */
int fl__added_tokens_index(fl_added_tokens *a);
void fl__added_tokens_fini(fl_added_tokens *a);

/* Next token at or behind from. start..end includes stripped white space; text before start and
 * behind the previous end is not token. Returns NULL when there is none. */
typedef struct fl_added_search {
    const fl_added_index *index;
    const char *text;
    size_t n_bytes;
    size_t from; /* where to look next */
    size_t done; /* end of the previous token with its white space */
} fl_added_search;
const fl_added_token *fl__added_search_next(fl_added_search *s, size_t *start, size_t *end);

#endif
