/* kv_cache.h - keys and values of the tokens seen so far, in pages of 64 tokens.
 *
 * A cache is a pool of pages and a page table per sequence; pages are handed out as sequences
 * grow and go back when they are truncated. One page holds, for every layer and KV head, a
 * block of K and a block of V, each in a format of its own:
 *
 *   F32, BF16    K transposed [head_dim, 64] (a query meets 64 keys with contiguous loads), V
 *                [64, head_dim]
 *   INT8 .. INT2 codes, scales and zeros of kernels/kv_codec.h; each head of a token is
 *                quantised when it comes, and never again
 *
 * Prefill, evaluation and decoding all read what append stored: what was evaluated is what
 * runs.
 * SPDX-License-Identifier: MIT */
#ifndef FL_MODEL_KV_CACHE_H
#define FL_MODEL_KV_CACHE_H

#include "base/status.h"
#include "kernels/kv_codec.h"

typedef enum fl_kv_format {
    FL_KV_F32,
    FL_KV_BF16,
    FL_KV_INT8,
    FL_KV_INT4,
    FL_KV_INT3,
    FL_KV_INT2,
    FL_N_KV_FORMATS
} fl_kv_format;

/* Of 16 (bfloat16), 8, 4, 3 and 2 bits; false for any other number. */
bool fl__kv_format_of_bits(fl_kv_format *format, int bits);
/* Codes of this many bits; 0: F32 and BF16, which have none. */
int fl__kv_code_bits(fl_kv_format format);

typedef struct fl_kv_options {
    int n_layers, n_kv_heads, head_dim;
    int n_sequences, n_positions; /* room: n_sequences x n_positions tokens */
    fl_kv_format k_format, v_format;
} fl_kv_options;

typedef struct fl_kv_cache fl_kv_cache;

/* Rows of one sequence in a batch: n_rows tokens at positions pos.. of cache sequence seq. */
typedef struct fl_span {
    int seq, pos, n_rows;
} fl_span;

/* Bytes that fl__kv_new takes for o. */
size_t fl__kv_bytes(const fl_kv_options *o);
/* Bytes that one more token takes, its share of a page. */
size_t fl__kv_token_bytes(const fl_kv_options *o);
fl_status fl__kv_new(fl_kv_cache **out, const fl_kv_options *o, fl_err *err);
void fl__kv_free(fl_kv_cache **kv);

/* Makes room for positions [0, n) of sequence seq; never fails within the options' room (the
 * pool has a page for each). Positions from n on are forgotten. */
void fl__kv_resize(fl_kv_cache *kv, int seq, int n);
int fl__kv_length(const fl_kv_cache *kv, int seq);
const fl_kv_options *fl__kv_options_of(const fl_kv_cache *kv);

/* Keys and values of n tokens: f32 [n_kv_heads, head_dim] each. */
typedef struct fl_kv_rows {
    const float *k, *v;
    int64_t k_stride, v_stride; /* floats between tokens */
    int n;
    const float *clip; /* [4] largest and smallest of K, of V: factors of kv_codec.h; NULL: 1 */
} fl_kv_rows;

/* Stores rows at positions pos.. of seq, for one layer; fl__kv_resize must have made room.
 * Different pages may be appended to from different threads. isa: allowed instruction sets; the
 * result does not depend on them. */
void fl__kv_append(fl_kv_cache *kv, uint32_t isa, int layer, int seq, int pos,
                   const fl_kv_rows *rows);

/* Borrowed page of one head: K [head_dim, 64] and V [64, head_dim] as float32. Formats other
 * than F32 are expanded into scratch (2 * head_dim * 64 floats). */
void fl__kv_page(const float **k_t, const float **v, const fl_kv_cache *kv, uint32_t isa,
                 int layer, int seq, int kv_head, int page, float *scratch);

/* Both K and V are codes: fl__kv_codes may be called. */
bool fl__kv_all_codes(const fl_kv_cache *kv);
/* Borrowed blocks (kernels/kv_codec.h) of one page of one head. */
void fl__kv_codes(const void **k, const void **v, const fl_kv_cache *kv, int layer, int seq,
                  int kv_head, int page);
/* All blocks of a layer, as they lie in memory. */
const void *fl__kv_layer(const fl_kv_cache *kv, int layer, size_t *n_bytes);

#endif
