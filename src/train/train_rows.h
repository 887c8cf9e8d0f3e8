/* train_rows.h - the inner loops of training, one table row per instruction set.
 *
 * All rows are the one body of train/x86/train_rows_body.h, compiled with vectors of 16, 8 and
 * 1 floats: an element's value differs between rows of the table in its last bits only (sums
 * over n elements: n * 2^-24 of the sum of magnitudes; exp: 3e-7). Nothing here allocates,
 * fails or starts threads. Outputs may be the inputs of the same shape.
 * SPDX-License-Identifier: MIT */
#ifndef FL_TRAIN_TRAIN_ROWS_H
#define FL_TRAIN_TRAIN_ROWS_H

#include <stdint.h>

typedef struct fl_train_rows {
    const char *name;
    uint32_t isa; /* all of these bits needed */

    /* One row of a norm, see train_norm.h. Return 1 / sqrt(..). */
    float (*rms_norm)(float *y, const float *x, const float *gain, int n, double eps);
    float (*layer_norm)(float *y, float *mean, const float *x, const float *gain,
                        const float *bias, int n, double eps);
    void (*rms_norm_grad)(float *dx, const float *dy, const float *x, const float *gain,
                          float inv_rms, int n);
    void (*layer_norm_grad)(float *dx, const float *dy, const float *x, const float *gain,
                            float mean, float inv_std, int n);
    /* dgain[j] = sum_r dy[r, j] (x[r, j] - mean[r]) inv[r], dbias[j] = sum_r dy[r, j] over
     * n_columns columns of arrays with rows of n; mean NULL: 0; dbias NULL: not wanted. */
    void (*norm_gain_grad)(float *dgain, float *dbias, const float *dy, const float *x,
                           const float *mean, const float *inv, int n_rows, int n,
                           int n_columns);

    /* n elements, see train_activation.h. */
    void (*silu_mul)(float *y, const float *gate, const float *up, int n);
    void (*silu_mul_grad)(float *dgate, float *dup, const float *dy, const float *gate,
                          const float *up, int n);
    void (*relu)(float *y, const float *x, int n);
    void (*relu_grad)(float *dx, const float *dy, const float *x, int n);
    void (*add)(float *y, const float *a, const float *b, int n);
    void (*add_product)(float *y, const float *a, const float *b, int n); /* y += a b */
    void (*divide)(float *y, const float *a, float f, const float *b, int n); /* y = f a / b */

    /* One head: (x[i], x[i + D/2]) turned by the angle whose cosine and sine are cos[i] and
     * sign * sin[i]. */
    void (*rope)(float *x, const float *cos, const float *sin, float sign, int D);

    /* One row of scores s: with u = scale s (scale > 0), s -> exp(u - max u); returns their
     * sum, and max u in *top. */
    float (*exp_row)(float *s, float *top, float scale, int n);
    /* s -> p = exp(scale s - lse); ds -> p * (ds - delta) * scale. */
    void (*softmax_grad)(float *s, float *ds, float lse, float delta, float scale, int n);
    void (*scale)(float *x, float by, int n);
    float (*dot)(const float *a, const float *b, int n);

    /* n floats rounded to bfloat16 and kept as float32. */
    void (*round_bf16)(float *y, const float *x, int n);
    /* Operands of the bfloat16 product, see kernels/gemm_bf16.h: K rounded up to K32 (a
     * multiple of 32) with zeros. pack_a: rows of A[., lda] as [n_rows, K32]; transposed:
     * columns of A[lda: next k], ld_to numbers apart. pack_b: up to 64 rows of B[., ldb]
     * (transposed: columns) as one panel [K32 / 2][64][2], missing ones as zeros. */
    void (*pack_a)(uint16_t *to, const float *A, int64_t lda, int n_rows, int K);
    void (*pack_a_transposed)(uint16_t *to, int64_t ld_to, const float *A, int64_t lda,
                              int n_rows, int K);
    void (*pack_b)(uint16_t *to, const float *B, int64_t ldb, int n_columns, int K);
    void (*pack_b_transposed)(uint16_t *to, const float *B, int64_t ldb, int n_columns, int K);
} fl_train_rows;

extern const fl_train_rows fl__train_rows_avx512, fl__train_rows_avx2, fl__train_rows_ref;
/* Best first, the reference last. */
extern const fl_train_rows *const fl__train_rows[];
extern const int fl__n_train_rows;
const fl_train_rows *fl__train_rows_select(uint32_t isa);

#endif
