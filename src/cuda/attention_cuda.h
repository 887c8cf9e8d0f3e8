/* attention_cuda.h - the GPU's paged key/value cache: append, attention of one row or many.
 *
 * Formats: codes of 4 or 8 bits with the scale and zero point of kernels/kv_codec.h (the same
 * codes, bit for bit, from the same floats), or bf16. A page is 64 tokens: for each KV head in
 * turn 4 groups of 16 tokens, a group being
 *
 *   K words, V words   16 D values each
 *   scales and zeros   96 bytes (not at bf16): for r = 0..7 the words
 *     [0][r]  scale of K, token r | of token r + 8 << 16      (f16)
 *     [1][r]  the same of V
 *     [2][r]  zero of K, token r | of r + 8 << 8 | of V, token r << 16 | of r + 8 << 24
 *
 * Words are in the order of the tensor core's A fragments (mma m16n8k16), so that a lane's
 * 16-byte loads are what it multiplies. For K a fragment's rows i are tokens and its columns j
 * are d % 16; for V rows are d % 16 and columns tokens. The value at (i, j) of fragment d / 16
 * belongs to lane 4 (i % 8) + j % 8 / 2, register a = i / 8 + 2 (j / 8), half e = j % 2:
 *
 *   bf16    word 4 (d / 16) + a, half e
 *   4 bits  word d / 16, nibble a + 4 e
 *   8 bits  V: word 2 (d / 16) + a / 2, byte a % 2 + 2 e
 *           K: the value at (i, j) belongs to lane 4 (i % 8) + j / 4, word 2 (d / 16) + i / 8,
 *           byte j % 4: uint8 fragments of mma m16n8k32
 *
 * The lane's words w = 0.. lie four by four, [w / 4][lane][w % 4], and those past the last
 * four one by one, [w][lane].
 *
 * D is 64, 80 or 128; 1..8 query heads per KV head. Launches are asynchronous on `stream`;
 * nothing here allocates or synchronises.
 * SPDX-License-Identifier: MIT */
#ifndef FL_CUDA_ATTENTION_CUDA_H
#define FL_CUDA_ATTENTION_CUDA_H

#ifdef __cplusplus
extern "C" {
#endif

#include "base/status.h"

enum { FL_CUDA_KV_PAGE = 64, FL_CUDA_KV_GROUP = 16 };

/* One layer's cache. */
typedef struct fl_cuda_kv {
    int bits; /* 4, 8 or 16 (bf16) */
    int D, n_kv_heads;
    uint8_t *pages;       /* [n_pages][fl__cuda_kv_page_bytes], device, 128-byte aligned */
    const int32_t *table; /* [n_seqs, table_stride] page numbers, device */
    int table_stride;
} fl_cuda_kv;

/* New tokens of n_seqs sequences: sequence b has rows first_row[b] .. first_row[b + 1] - 1 of
 * q, k and v, whose positions are position[b] and on. */
typedef struct fl_cuda_kv_append {
    const fl_cuda_kv *kv;
    const void *q, *k, *v; /* bf16 or float32, 8-byte aligned, best 16; q may be NULL */
    int64_t ldq, ldk, ldv; /* elements between rows; even, best multiples of 8 */
    bool x_bf16;
    int n_heads;              /* of q */
    uint16_t *q_out;          /* bf16 [rows, n_heads, D], rotated; 16-byte aligned */
    const float *cos, *sin;   /* [positions, D / 2], 16-byte aligned; NULL: no rotation */
    const int32_t *first_row; /* [n_seqs + 1], device */
    const int32_t *position;  /* [n_seqs], device */
    int n_seqs, max_rows;     /* the most rows of a sequence */
    float clip[4];            /* factors on the largest and smallest of K, of V */
} fl_cuda_kv_append;

/* One new token per sequence against its cache. */
typedef struct fl_cuda_attention {
    const fl_cuda_kv *kv;
    const void *q; /* [n_seqs, n_heads, D] bf16 or float32 (rounded to bf16) */
    void *y;       /* the same shape, bf16 or float32 */
    bool q_bf16, y_bf16;
    int n_heads, n_seqs;
    const int32_t *n_tokens; /* [n_seqs], 1 and more, device: what the sequences hold */
    float scale;             /* of q . k */
    void *workspace; /* fl__cuda_attention_workspace_bytes, zero at first and left zero in its
                        counters */
} fl_cuda_attention;

/* Causal attention of n_seqs sequences' new rows against their cache, which already holds them
 * (append first): row i of sequence b, at first_row[b] + i of q and y, sees the tokens
 * 0 .. position[b] + i. Keys and values are those that decoding sees, rounded to bf16. */
typedef struct fl_cuda_attention_prefill {
    const fl_cuda_kv *kv;
    const uint16_t *q; /* bf16 [rows, n_heads, D], 16-byte aligned, as kv_append's q_out */
    void *y;           /* [rows, n_heads, D] bf16 or float32, 16-byte aligned */
    bool y_bf16;
    int n_heads, n_seqs;
    const int32_t *first_row; /* [n_seqs + 1], device */
    const int32_t *position;  /* [n_seqs], device: of each sequence's first row */
    int max_rows;             /* the most rows of a sequence */
    int max_tokens;           /* at least position + rows of every sequence */
    float scale;              /* of q . k */
    void *workspace; /* fl__cuda_attention_prefill_workspace_bytes, 128-byte aligned; of any
                        content, used until the launches end */
} fl_cuda_attention_prefill;

size_t fl__cuda_kv_group_bytes(int D, int bits);
size_t fl__cuda_kv_page_bytes(const fl_cuda_kv *kv);
fl_status fl__cuda_kv_append(const fl_cuda_kv_append *a, void *stream, fl_err *err);

size_t fl__cuda_attention_workspace_bytes(int D, int n_kv_heads, int n_seqs, int n_sm);
/* The same bits for the same inputs and n_sm, whatever else runs. */
fl_status fl__cuda_attention_decode(const fl_cuda_attention *a, int n_sm, void *stream,
                                    fl_err *err);

/* For up to n_seqs sequences of up to max_tokens: all their keys and values as bf16, by tiles
 * of 128 tokens. */
size_t fl__cuda_attention_prefill_workspace_bytes(int D, int n_kv_heads, int n_seqs,
                                                  int max_tokens);
/* The same bits for the same inputs, whatever else runs. */
fl_status fl__cuda_attention_prefill(const fl_cuda_attention_prefill *a, void *stream,
                                     fl_err *err);

#ifdef __cplusplus
}
#endif
#endif
