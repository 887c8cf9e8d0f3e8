/* kron_body.h - the products of kron_rows.h, compiled once per instruction set.
 *
 * Factors are so small (up to 128 x 128) that everything stays in the caches and nothing is
 * packed: blocks of 6 rows by two vectors of c in registers for the product, 4 x 3 dot products
 * for the other.
 * SPDX-License-Identifier: MIT */
#include "train/kron_rows.h"
#include "kernels/x86/simd.h"
#include "train/x86/train_vec_masks.h"

enum { MR = 6, DOT_M = 4, DOT_N = 3 };

/* mr rows by nv vectors, the last of them with `left` lanes; all but K constants. */
FL_INLINE void product_block(const fl_small_product *p, float *c, const float *a,
                              const float *b, int mr, int nv, int left)
{
    vec acc[MR][2];
    for (int i = 0; i < mr; i++)
        for (int j = 0; j < nv; j++)
            acc[i][j] = p->add ? vec_load(c + i * p->ldc + j * VEC_N,
                                          j == nv - 1 ? left : VEC_N)
                               : vec_set(0);
    for (int k = 0; k < p->K; k++) {
        vec row[2];
        for (int j = 0; j < nv; j++)
            row[j] = vec_load(b + j * VEC_N, j == nv - 1 ? left : VEC_N);
        for (int i = 0; i < mr; i++) {
            const vec at = vec_set(a[i * p->am]);
            for (int j = 0; j < nv; j++) acc[i][j] = vec_fma(at, row[j], acc[i][j]);
        }
        a += p->ak;
        b += p->ldb;
    }
    for (int i = 0; i < mr; i++)
        for (int j = 0; j < nv; j++)
            vec_store(c + i * p->ldc + j * VEC_N, acc[i][j], j == nv - 1 ? left : VEC_N);
}

/* All rows of one panel of c, in blocks of equal size but for one row. */
FL_INLINE void product_panel(const fl_small_product *p, int n, int nv, int left)
{
    const int blocks = (p->M + MR - 1) / MR, least = p->M / blocks, more = p->M % blocks;
    const float *a = p->a, *b = p->b + n;
    float *c = p->c + n;
    for (int i = 0; i < blocks; i++) {
        const int mr = least + (i < more);
        switch (mr) {
        case 6: product_block(p, c, a, b, 6, nv, left); break;
        case 5: product_block(p, c, a, b, 5, nv, left); break;
        case 4: product_block(p, c, a, b, 4, nv, left); break;
        case 3: product_block(p, c, a, b, 3, nv, left); break;
        case 2: product_block(p, c, a, b, 2, nv, left); break;
        default: product_block(p, c, a, b, 1, nv, left); break;
        }
        a += mr * p->am;
        c += mr * p->ldc;
    }
}

static void product(const fl_small_product *p)
{
    int n = 0;
    for (; n + 2 * VEC_N <= p->N; n += 2 * VEC_N) product_panel(p, n, 2, VEC_N);
    const int left = p->N - n;
    if (left > VEC_N)
        product_panel(p, n, 2, left - VEC_N);
    else if (left == VEC_N)
        product_panel(p, n, 1, VEC_N);
    else if (left > 0)
        product_panel(p, n, 1, left);
}

FL_INLINE void dot_step(vec acc[DOT_N][DOT_M], const float *a, const float *b, int K, int mr,
                         int nr, int n)
{
    vec left[DOT_M];
    for (int i = 0; i < mr; i++) left[i] = vec_load(a + (int64_t)i * K, n);
    for (int j = 0; j < nr; j++) {
        const vec right = vec_load(b + (int64_t)j * K, n);
        for (int i = 0; i < mr; i++) acc[j][i] = vec_fma(left[i], right, acc[j][i]);
    }
}

FL_INLINE void dot_block(const fl_small_dots *d, int m, int n, int mr, int nr)
{
    vec acc[DOT_N][DOT_M];
    for (int j = 0; j < nr; j++)
        for (int i = 0; i < DOT_M; i++) acc[j][i] = vec_set(0);
    for (int item = 0; item < d->n_items; item++) {
        const float *a = d->a + item * d->stride + (int64_t)m * d->K;
        const float *b = d->b + item * d->stride + (int64_t)n * d->K;
        int k = 0;
        for (; k + VEC_N <= d->K; k += VEC_N) dot_step(acc, a + k, b + k, d->K, mr, nr, VEC_N);
        if (k < d->K) dot_step(acc, a + k, b + k, d->K, mr, nr, d->K - k);
    }
    for (int j = 0; j < nr; j++) {
        float sum[4];
        vec_sum_four(sum, acc[j]);
        for (int i = 0; i < mr; i++) d->c[(int64_t)(m + i) * d->N + n + j] += sum[i];
    }
}

static void dots(const fl_small_dots *d)
{
    for (int m = 0; m < d->M; m += DOT_M) {
        int n = 0;
        if (m + DOT_M <= d->M) {
            for (; n + DOT_N <= d->N; n += DOT_N) dot_block(d, m, n, DOT_M, DOT_N);
            for (; n < d->N; n++) dot_block(d, m, n, DOT_M, 1);
            continue;
        }
        for (int i = m; i < d->M; i++)
            for (n = 0; n < d->N; n++) dot_block(d, i, n, 1, 1);
    }
}

const fl_kron_kernel VEC_NAME(fl__kron_) = {
    .name = "kron_" VEC_TEXT,
    .isa = VEC_ISA,
    .product = product,
    .dots = dots,
};
