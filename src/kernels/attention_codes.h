/* attention_codes.h - a piece of quantised keys and values, up to 8 pages, against query rows:
 * softmax whose products are exact integer sums over the codes.
 *
 * Numbers x [n] that meet codes are taken in fixed point, 22 bits with their sign:
 *
 *   top = max |x[i]|;  step = top / FL_FIXED_MAX;  X[i] = rne(x[i] * (FL_FIXED_MAX / top))
 *   top not finite: step = NaN, X = 0;  top < FL_FIXED_TINY: step = 0, X = 0
 *
 * (float32, one rounding per step), half a step being 2^-22 of the largest, where float32
 * itself has 2^-24. With X = 16384 H + L, H = (X + 8192) >> 14, sums over codes are exact:
 *
 *   sum_i x[i] * (code[i] - zero) = step * T(sum H[i] * (code[i] - zero),
 *                                            sum L[i] * (code[i] - zero))
 *   T(h, l) = fma((float)h, 16384, (float)l)
 *
 * so no row of the table, tile or number of query rows can change them: a decoded token equals
 * the same token in a prefill. For row r, which sees the first n tokens of the piece:
 *
 *   s_t = T(..q, k_t..) * ((q's step * scale) * k's scale_t)            for t < n
 *   m = max_t s_t;  p_t = exp(s_t - m), 0 where s_t is -inf;  l = sum_t p_t
 *   w_t = p_t * v's scale_t for t < n, else 0;  taken in fixed point
 *   o[d] = T(..w, v[d]..) * w's step
 *
 * A score that is NaN does not count as largest. Rows that see nothing get m = -inf, l = 0,
 * o = 0. Who called joins pieces and divides o by l.
 *
 * Each row's sums run in an order that does not depend on the other rows. Across rows of the
 * table: m, l and o within 1e-5 relative of _ref (exp and the sum l differ).
 * SPDX-License-Identifier: MIT */
#ifndef FL_KERNELS_ATTENTION_CODES_H
#define FL_KERNELS_ATTENTION_CODES_H

#include "kernels/kv_codec.h"

#define FL_FIXED_MAX  2080768.0f /* 127 * 16384 */
#define FL_FIXED_TINY 1e-30f

enum { FL_CODES_PAGES = 8 }; /* of a piece, at most */

/* Query rows: heads of a group that share keys and values, `group` rows per token. Row r is
 * head r % group of token r / group and sees clamp(n_keys + r / group, 0, 64 * n_pages) keys,
 * counted from the first page on. */
typedef struct fl_attention_codes {
    float *o, *m, *l; /* [n_rows, fl__attention_ld(D)], [n_rows], [n_rows], written */
    const void *x;    /* what prepare made of the rows' queries */
    void *work;       /* fl__attention_codes_work_bytes(D), 64-byte aligned */
    const void *const *k, *const *v; /* [n_pages] blocks of kernels/kv_codec.h */
    const void *const *next; /* [n_next] blocks that the call behind this one on this thread
                                will read: keys, values of its first page, of its second, ..;
                                or NULL. Rows that care fetch them meanwhile */
    int n_next;
    int n_pages, n_rows, group, n_keys, D, k_bits, v_bits;
} fl_attention_codes;

/* q of row r: f32 [D] at q + r / group * q_stride + r % group * D. */
typedef void fl_attention_prepare_fn(void *x, const float *q, int64_t q_stride, int n_rows,
                                     int group, int D, float scale);
typedef void fl_attention_codes_fn(const fl_attention_codes *a);

typedef struct fl_attention_codes_kernel {
    const char *name;
    uint32_t isa;
    fl_attention_prepare_fn *prepare;
    fl_attention_codes_fn *run;
} fl_attention_codes_kernel;

extern const fl_attention_codes_kernel fl__attention_codes_kernels[];
extern const int fl__n_attention_codes_kernels;
const fl_attention_codes_kernel *fl__attention_codes_select(uint32_t isa);

/* Floats between rows of o. */
static inline int fl__attention_ld(int D)
{
    return (D + 15) / 16 * 16;
}

/* Of x, 64-byte aligned, for any row of the table. */
size_t fl__attention_codes_x_bytes(int n_rows, int D);
size_t fl__attention_codes_work_bytes(int D);

#endif
