/* engine_kernels.h - the small kernels that only the backend needs (backend_cuda.h): what a
 * family has beside rowops_cuda.h, and bringing weights into the kernels' order.
 *
 * Rows as in rowops_cuda.h. Launches are asynchronous on `stream`; nothing here allocates or
 * synchronises.
 * SPDX-License-Identifier: MIT */
#ifndef FL_CUDA_ENGINE_KERNELS_H
#define FL_CUDA_ENGINE_KERNELS_H

#ifdef __cplusplus
extern "C" {
#endif

#include "cuda/attention_cuda.h"
#include "cuda/rowops_cuda.h"
#include "kernels/gemm_f32.h"

/* y = row ids[m] of table (+ row positions[m] + offset of the other), float32 [M, n]. */
typedef struct fl_cuda_embedding {
    float *y;
    int64_t ldy;
    const void *table, *positions;
    fl_float_type type, positions_type;
    const int32_t *ids, *row_position;
    int n, n_ids, offset;
} fl_cuda_embedding;
fl_status fl__cuda_embed_rows(const fl_cuda_embedding *e, int M, void *stream, fl_err *err);

fl_status fl__cuda_gather_rows(const fl_cuda_matrix *y, const fl_cuda_matrix *x,
                               const int32_t *rows, int M, int n, void *stream, fl_err *err);

/* Each head of q and k: rotated (cos not NULL), rounded to bf16, times its factor (packed by
 * _pack), to bf16, dense. D 32, 64, 128; rows and angles 8-byte aligned. */
typedef struct fl_cuda_heads {
    fl_cuda_matrix q, k;
    uint16_t *q_out, *k_out; /* [M, heads, D] */
    const uint16_t *q_factor, *k_factor;
    const float *cos, *sin;
    const int32_t *row_position;
    int n_heads, n_kv_heads, D;
} fl_cuda_heads;
/* Host: dst [D, D] from the factor [D, D] row-major, rounded to bf16 here. */
void fl__cuda_heads_pack(uint16_t *dst, int D, const float *factor);
fl_status fl__cuda_heads(const fl_cuda_heads *h, int M, void *stream, fl_err *err);

/* Per-token codes of left^T X, X being the row as [n1, n2]: the transform without its right
 * factor, as it stands in front of the attention's output. Sums of the tensor cores run in
 * their own order (transform_cuda.h). n1 <= 64, n2 32, 64 or 128; x_sum is not made. */
typedef struct fl_cuda_mix {
    const uint16_t *x; /* bf16 [M, ldx] */
    int64_t ldx;
    fl_cuda_codes y;
    fl_cuda_grid grid;
    const void *factor; /* of _pack, on the device */
    int n1, n2;
} fl_cuda_mix;
bool fl__cuda_mix_fits(int n1, int n2);
size_t fl__cuda_mix_bytes(int n1);
/* Host: left [n1, n1] row-major, rounded to bf16 here. */
void fl__cuda_mix_pack(void *dst, int n1, const float *left);
fl_status fl__cuda_mix_heads(const fl_cuda_mix *m, int M, int n_sm, void *stream, fl_err *err);

/* Codes of the file's packing (kernels/layout.h), on the device, into the layout of
 * gemm_cuda.h, and their sums: row r becomes channel n0 + r * step. The channels of a panel of
 * 16 may come from several calls (step 2: gate and up). */
typedef struct fl_cuda_pack {
    uint8_t *dst;
    int32_t *col_sum;
    const void *codes; /* [N, n_columns] */
    const int32_t *extra;
    int bits, n0, step, N, K, n_columns, n_in;
} fl_cuda_pack;
fl_status fl__cuda_pack_codes(const fl_cuda_pack *p, void *stream, fl_err *err);

/* n elements of type to bf16. */
fl_status fl__cuda_to_bf16(uint16_t *y, const void *x, fl_float_type type, int64_t n,
                           void *stream, fl_err *err);
/* Random bytes; random bf16 of random sign from `least` (a power of 2) to twice that. */
fl_status fl__cuda_random_bytes(void *y, int64_t n_bytes, uint64_t seed, void *stream,
                                fl_err *err);
fl_status fl__cuda_random_bf16(uint16_t *y, int64_t n, float least, uint64_t seed, void *stream,
                               fl_err *err);

/* Attention of any rows over the paged cache, one query row at a time: the contract of
 * fl__cuda_attention_prefill for all sizes of heads (D % 16 == 0, up to 128) and groups, slow;
 * y bf16 or float32. */
typedef struct fl_cuda_attention_simple {
    const fl_cuda_kv *kv;
    const uint16_t *q; /* bf16 [rows, n_heads, D] */
    void *y;
    bool y_bf16;
    int n_heads, n_seqs;
    const int32_t *first_row, *position;
    int max_rows;
    float scale;
} fl_cuda_attention_simple;
fl_status fl__cuda_attention_simple(const fl_cuda_attention_simple *a, void *stream,
                                    fl_err *err);

#ifdef __cplusplus
}
#endif
#endif
