/* kron_rows.h - the two small products behind kron.c, one table row per instruction set.
 * SPDX-License-Identifier: MIT */
#ifndef FL_TRAIN_KRON_ROWS_H
#define FL_TRAIN_KRON_ROWS_H

#include <stdbool.h>
#include <stdint.h>

/* c[m, n] = sum_k a(k, m) b[k, n], or added to c; a(k, m) lies at a[k * ak + m * am], rows of b
 * and c are ldb and ldc floats apart. Sums in rising k, fused where the set can. c does not
 * overlap a or b. */
typedef struct fl_small_product {
    float *c;
    const float *a, *b;
    int64_t ldc, ak, am, ldb;
    int M, N, K;
    bool add;
} fl_small_product;

/* c[m, n] += sum over i and k of a[i, m, k] b[i, n, k]; a and b are [n_items, M or N, K], items
 * stride floats apart, c [M, N]. */
typedef struct fl_small_dots {
    float *c;
    const float *a, *b;
    int64_t stride;
    int n_items, M, N, K;
} fl_small_dots;

typedef struct fl_kron_kernel {
    const char *name;
    uint32_t isa;
    void (*product)(const fl_small_product *p);
    void (*dots)(const fl_small_dots *d);
} fl_kron_kernel;

extern const fl_kron_kernel fl__kron_avx512, fl__kron_avx2, fl__kron_ref;

#endif
