/* bench_bf16.h - a 16-bit model whose products oneDNN computes: the opponent of `bench model`.
 *
 * Weights packed beforehand, one primitive per number of rows, bf16 in, float32 out; the input
 * of a site is rounded once. Where rows are so few that the program's own kernel streams the
 * bf16 weights as they lie, that one runs: both copies are in memory. On machines where oneDNN
 * has plain loops only for bf16 nothing is attached, and the opponent is the program's float
 * path.
 * SPDX-License-Identifier: MIT */
#ifndef FL_API_BENCH_BF16_H
#define FL_API_BENCH_BF16_H

#include "model/model.h"

typedef struct fl_bench_bf16 fl_bench_bf16;

/* Attaches to the linears of the blocks; the head stays the program's own. counts: numbers of
 * rows that will come, at most FL_ONEDNN_MAX_COUNTS. *out NULL: nothing to attach. The model
 * must not run after _free. */
fl_status fl__bench_bf16_attach(fl_bench_bf16 **out, fl_model *model, const int *counts,
                                int n_counts, const fl_exec *ex, fl_err *err);
void fl__bench_bf16_free(fl_bench_bf16 **bf16);
/* "brg:avx512_core_amx_bf16, f32 out"; NULL: the program's own float path. */
const char *fl__bench_bf16_impl(const fl_bench_bf16 *bf16);
/* Bytes of the packed weights. */
size_t fl__bench_bf16_bytes(const fl_bench_bf16 *bf16);

#endif
