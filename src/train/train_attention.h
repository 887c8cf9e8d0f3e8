/* train_attention.h - causal attention over windows, forward and backward.
 *
 * Rows: n_windows windows of T tokens, one after the other, R = n_windows T. Query heads h =
 * 0..H-1, KV heads g = h / (H / G). With s = q k^T / sqrt(D), for keys up to the query:
 *     p = softmax(s), out = p v, lse = log sum exp s
 *
 *   q, out, dq, dout  float32 [R, H * D]
 *   k, v, dk, dv      float32 [R, G * D]
 *   lse               float32 [R, H]: all that backward needs of p, which it computes again
 *
 * Work items are (window, query head), blocks of queries inside; the gradients of a KV head are
 * summed over its query heads in order. Results do not depend on the number of threads.
 * Nothing is allocated after _new.
 * SPDX-License-Identifier: MIT */
#ifndef FL_TRAIN_TRAIN_ATTENTION_H
#define FL_TRAIN_TRAIN_ATTENTION_H

#include "base/exec.h"
#include "base/status.h"

typedef struct fl_train_attention_shape {
    int max_windows, T;
    int H, G, D; /* G divides H */
} fl_train_attention_shape;

typedef struct fl_train_attention fl_train_attention;

/* bf16: products with operands rounded to bfloat16 where this machine multiplies them (AMX,
 * AVX512-BF16, through oneDNN), else float32 all the same. */
fl_status fl__train_attention_new(fl_train_attention **out, const fl_exec *ex,
                                  const fl_train_attention_shape *shape, bool bf16,
                                  fl_err *err);
void fl__train_attention_free(fl_train_attention **attention);

/* n_windows <= max_windows, here and below. Not from inside a parallel loop. */
fl_status fl__train_attention_forward(fl_train_attention *attention, float *out, float *lse,
                                      const float *q, const float *k, const float *v,
                                      int n_windows, fl_err *err);
fl_status fl__train_attention_grad(fl_train_attention *attention, float *dq, float *dk,
                                   float *dv, const float *dout, const float *out,
                                   const float *lse, const float *q, const float *k,
                                   const float *v, int n_windows, fl_err *err);

#endif
