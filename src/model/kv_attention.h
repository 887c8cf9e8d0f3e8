/* kv_attention.h - causal attention of a batch over one layer of the KV cache.
 *
 * The keys of a sequence are cut into pieces of FL_ATTENTION_PIECE; each piece is a softmax of
 * its own (largest score m, sum l, values o), and pieces are joined in their order:
 *
 *   M' = max(M, m);  L = L * exp(M - M') + l * exp(m - M');  O likewise;  out = O / L
 *
 * Where a row's pieces begin and end depends on its position only, so a token gets the same
 * bits alone, in a prefill and on any number of threads. Few rows with long contexts (decoding)
 * have an item of work per head and piece, joined by whoever ends last; otherwise an item is a
 * head and 64 tokens, piece after piece.
 * SPDX-License-Identifier: MIT */
#ifndef FL_MODEL_KV_ATTENTION_H
#define FL_MODEL_KV_ATTENTION_H

#include "base/exec.h"
#include "model/kv_cache.h"

#define FL_ATTENTION_PIECE 512

typedef struct fl_attention {
    const fl_kv_cache *kv; /* holds keys and values of all rows of the spans */
    int layer;
    const fl_span *spans;
    int n_spans;
    int n_heads;    /* a multiple of the cache's KV heads */
    const float *q; /* [rows of the spans, n_heads * head_dim] */
    float *out;     /* the same */
    int64_t q_stride, out_stride; /* floats between rows */
    void *scratch; /* fl__attention_scratch_bytes, 64-byte aligned */
    size_t scratch_bytes;
} fl_attention;

/* kv: n_sequences does not count; n_positions: of the longest context. */
size_t fl__attention_scratch_bytes(const fl_exec *ex, const fl_kv_options *kv, int n_heads);
void fl__attention_run(const fl_exec *ex, const fl_attention *a);

#endif
