/* attention.h - one page of keys and values against a block of query rows: online softmax.
 *
 * Row r (r = 0..n_q-1) sees the first n_r = clamp(n_keys + r, 0, 64) keys of the page (causal:
 * later rows see more). With s_t = scale * sum_d q[r,d] * k_t[d,t] for t < n_r:
 *
 *   m' = max(m, max_t s_t);  c = exp(m - m');  p_t = exp(s_t - m')
 *   l = l * c + sum_t p_t;   o[d] = o[d] * c + sum_t p_t * v[t,d]
 *
 * Start: m = -inf, l = 0, o = 0; the caller divides o by l after the last page.
 *
 *   q    f32 [n_q, D], row stride q_stride floats      o  f32 [n_q, D] dense
 *   k_t  f32 [D, 64]                                   m, l  f32 [n_q]
 *   v    f32 [64, D]; entries of keys that no row sees are never read as numbers
 *   D    1..FL_ATTENTION_MAX_D
 *
 * Each row's sums run in an order that does not depend on n_q or on the other rows, so prefill
 * and decoding give the same bits on one row of the table. Across rows of the table: within
 * 1e-5 relative of _ref.
 * SPDX-License-Identifier: MIT */
#ifndef FL_KERNELS_ATTENTION_H
#define FL_KERNELS_ATTENTION_H

#include <stdint.h>

#define FL_ATTENTION_KEYS 64
#define FL_ATTENTION_MAX_D 512

typedef void fl_attention_page_fn(float *o, float *m, float *l, const float *q,
                                  int64_t q_stride, int n_q, int n_keys, const float *k_t,
                                  const float *v, int D, float scale);

typedef struct fl_attention_kernel {
    const char *name;
    uint32_t isa;
    fl_attention_page_fn *run;
} fl_attention_kernel;

extern const fl_attention_kernel fl__attention_kernels[];
extern const int fl__n_attention_kernels;
const fl_attention_kernel *fl__attention_select(uint32_t isa);

#endif
