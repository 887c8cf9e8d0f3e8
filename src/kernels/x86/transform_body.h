/* transform_body.h - the transform of one row, vectorised over columns; one text for AVX2 and
 * AVX-512.
 *
 * The including file defines FL_TRANSFORM_NAME, LANES (floats of a vec), ROWS (rows of sums
 * that fit its registers), the type vec and load, store, broadcast, fused_add, multiply and
 * to_bf16 (floats rounded to bfloat16, still float32).
 *
 * Both products are C[m,:] = sum_k A(m,k) B[k,:] with blocks of ROWS x 16 sums in registers. A
 * is U, its rows n2_pad apart, or left^T, whose neighbours in m are neighbours in memory; B is
 * a panel of right, packed, or 16 columns of bf16(Y) as they lie. Every lane adds up its own
 * sum in rising k, as the definition does.
 * SPDX-License-Identifier: MIT */
#include "base/float16.h"
#include "kernels/transform_rows.h"

#include <string.h>

#define PANEL FL_TRANSFORM_PANEL
#define VECS  (PANEL / LANES)

/* A(m,k) = a[m * step_m + k * step_k]; row k of B is 16 floats at b + k * step_b. */
typedef struct product {
    const float *a, *b;
    int64_t step_m, step_k, step_b;
    int K;
    float *c; /* row m at c + m * step_c, n_columns of 16 are stored */
    int64_t step_c;
    int n_columns;
    bool round; /* to bf16 */
} product;

/* Rows m.. of C from their sums. A function of its own: its needs would cost the sums their
 * registers. */
__attribute__((noinline)) static void put_rows(const product *p, int m, const float *sums,
                                               int rows)
{
    float *to = p->c + m * p->step_c;
    for (int r = 0; r < rows; r++, to += p->step_c, sums += PANEL) {
        if (p->n_columns < PANEL) {
            memcpy(to, sums, (size_t)p->n_columns * sizeof *to); /* of y: not rounded */
        } else {
            for (int j = 0; j < PANEL; j += LANES)
                store(to + j, p->round ? to_bf16(load(sums + j)) : load(sums + j));
        }
    }
}

/* rows x 16 of C from row m on. step_m and step_k beside p's: constants where they are 1. */
FL_INLINE void block(const product *p, int m, int64_t step_m, int64_t step_k, const int rows)
{
    vec sum[ROWS * VECS];
    float sums[ROWS * PANEL];
    const float *a = p->a + m * step_m, *b = p->b;
#pragma GCC unroll 12
    for (int s = 0; s < rows * VECS; s++) sum[s] = broadcast_value(0);
    for (int k = 0; k < p->K; k++, a += step_k, b += p->step_b) {
#pragma GCC unroll 12
        for (int s = 0; s < rows * VECS; s++) {
            sum[s] = fused_add(broadcast(a + s / VECS * step_m), load(b + s % VECS * LANES),
                               sum[s]);
            FL_KEEP(sum[s]);
        }
    }
#pragma GCC unroll 12
    for (int s = 0; s < rows * VECS; s++) store(sums + s * LANES, sum[s]);
    put_rows(p, m, sums, rows);
}

FL_INLINE void all_rows(const product *p, int M, int64_t step_m, int64_t step_k)
{
    int m = 0;
    for (; m + ROWS <= M; m += ROWS) block(p, m, step_m, step_k, ROWS);
    for (; m + 4 <= M; m += 4) block(p, m, step_m, step_k, 4);
    for (; m < M; m++) block(p, m, step_m, step_k, 1);
}

/* U with rows n2_pad apart. The columns between become zeros: their sums are not stored, but
 * what lay there before could be subnormal and slow. */
static void round_input(float *u, const float *x, const float *premul, int n1, int n2,
                        int n2_pad)
{
    for (int i = 0; i < n1; i++, u += n2_pad, x += n2) {
        int k = 0;
        for (; k + LANES <= n2; k += LANES) {
            const vec v = load(x + k);
            store(u + k, to_bf16(premul ? multiply(v, load(premul + k)) : v));
        }
        for (; k < n2; k++)
            u[k] = fl__bf16_to_f32(fl__f32_to_bf16(premul ? x[k] * premul[k] : x[k]));
        for (; k < n2_pad; k++) u[k] = 0;
        if (premul) premul += n2;
    }
}

void FL_TRANSFORM_NAME(float *y, const float *x, const fl_transform *t, const float *premul,
                       void *scratch)
{
    const int n1 = t->n1, n2 = t->n2, n2_pad = fl__round_up(n2, PANEL);
    float *u = scratch, *rounded = u + (int64_t)n1 * n2_pad; /* [n1, n2_pad] each */
    round_input(u, x, premul, n1, n2, n2_pad);
    for (int j = 0; t->right && j < n2; j += PANEL) {
        product p = {.a = u, .step_m = n2_pad, .step_k = 1,
                     .b = t->right_panels + (int64_t)j * n2, .step_b = PANEL, .K = n2,
                     .c = rounded + j, .step_c = n2_pad, .n_columns = PANEL, .round = true};
        if (!t->left) {
            p.c = y + j;
            p.step_c = n2;
            p.n_columns = n2 - j < PANEL ? n2 - j : PANEL;
            p.round = false;
        }
        all_rows(&p, n1, p.step_m, 1);
    }
    for (int j = 0; t->left && j < n2; j += PANEL) {
        const product p = {.a = t->left, .step_m = 1, .step_k = n1,
                           .b = (t->right ? rounded : u) + j, .step_b = n2_pad, .K = n1,
                           .c = y + j, .step_c = n2,
                           .n_columns = n2 - j < PANEL ? n2 - j : PANEL};
        all_rows(&p, n1, 1, p.step_k);
    }
}
