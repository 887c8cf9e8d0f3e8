/* kv_cache.h - keys and values of the tokens seen so far, in pages of 64 tokens.
 *
 * A cache is a pool of pages and a page table per sequence; pages are handed out as sequences
 * grow and go back when they are truncated. One page holds, for every layer and KV head,
 *     K transposed  [head_dim, 64]    (a query meets 64 keys with contiguous loads)
 *     V             [64, head_dim]
 * in the format of the cache: K and V each have a codec {append, expand}, independent of each
 * other. Prefill, evaluation and decoding all read what append stored: what was evaluated is
 * what runs.
 * SPDX-License-Identifier: MIT */
#ifndef FL_MODEL_KV_CACHE_H
#define FL_MODEL_KV_CACHE_H

#include "base/status.h"

#define FL_KV_PAGE 64 /* tokens per page */

typedef enum fl_kv_format { FL_KV_F32, FL_KV_BF16 } fl_kv_format;

typedef struct fl_kv_options {
    int n_layers, n_kv_heads, head_dim;
    int n_sequences, n_positions; /* room: n_sequences x n_positions tokens */
    fl_kv_format k_format, v_format;
} fl_kv_options;

typedef struct fl_kv_cache fl_kv_cache;

/* Bytes that fl__kv_new takes for o. */
size_t fl__kv_bytes(const fl_kv_options *o);
fl_status fl__kv_new(fl_kv_cache **out, const fl_kv_options *o, fl_err *err);
void fl__kv_free(fl_kv_cache **kv);

/* Makes room for positions [0, n) of sequence seq; never fails within the options' room (the
 * pool has a page for each). Positions from n on are forgotten. */
void fl__kv_resize(fl_kv_cache *kv, int seq, int n);
int fl__kv_length(const fl_kv_cache *kv, int seq);
const fl_kv_options *fl__kv_options_of(const fl_kv_cache *kv);

/* Stores k and v (f32 [n_kv_heads, head_dim] each, strides in floats between tokens) of n
 * tokens at positions pos.. of seq, for one layer; fl__kv_resize must have made room. Different
 * tokens may be appended from different threads. */
void fl__kv_append(fl_kv_cache *kv, int layer, int seq, int pos, int n, const float *k,
                   int64_t k_stride, const float *v, int64_t v_stride);

/* Borrowed page of one head: K [head_dim, 64] and V [64, head_dim] as float32. Formats other
 * than F32 are expanded into scratch (2 * head_dim * 64 floats). */
void fl__kv_page(const float **k_t, const float **v, const fl_kv_cache *kv, int layer, int seq,
                 int kv_head, int page, float *scratch);

#endif
