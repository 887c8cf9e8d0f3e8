/* check_gemm_bf16.c - every row of the bfloat16 GEMM table against sums in double, within the
 * bound of its contract; nothing beside C's columns is touched. SPDX-License-Identifier: MIT */
#include "check/ck.h"

#include "base/float16.h"
#include "kernels/gemm_bf16.h"

#include <math.h>
#include <string.h>

static const int shapes[][3] = {{1, 1, 32},    {1, 64, 64},   {16, 16, 32},  {17, 33, 64},
                                {31, 65, 96},  {32, 128, 32}, {33, 31, 160}, {48, 130, 256},
                                {100, 200, 64}};
enum { PAD = 5 }; /* columns of C beyond N */

typedef struct bf16_problem {
    int M, N, K;
    ck_buf a, b, c;
} bf16_problem;

static bf16_problem problem_new(ck *t, const int shape[3])
{
    fl_rng rng = fl__rng_init(t->seed, shape[0] * 1000 + shape[1], "gemm-bf16");
    bf16_problem p = {shape[0], shape[1], shape[2], {0}, {0}, {0}};
    const int panels = (p.N + FL_GEMM_BF16_PANEL - 1) / FL_GEMM_BF16_PANEL;
    const int columns = panels * FL_GEMM_BF16_PANEL;
    p.a = ck_buf_new((size_t)(p.M * p.K) * 2);
    p.b = ck_buf_new((size_t)(columns * p.K) * 2);
    p.c = ck_buf_new((size_t)(p.M * (p.N + PAD)) * sizeof(float));
    uint16_t *a = (uint16_t *)p.a.data, *b = (uint16_t *)p.b.data;
    for (int i = 0; i < p.M * p.K; i++) a[i] = fl__f32_to_bf16((float)fl__rng_normal(&rng));
    for (int n = 0; n < columns; n++)
        for (int k = 0; k < p.K; k++)
            b[(n / 64 * (p.K / 2) + k / 2) * 128 + n % 64 * 2 + k % 2] =
                n < p.N ? fl__f32_to_bf16((float)fl__rng_normal(&rng)) : 0;
    return p;
}

static void compare(ck *t, const bf16_problem *p, const float *before, bool add)
{
    const uint16_t *a = (const uint16_t *)p->a.data, *b = (const uint16_t *)p->b.data;
    const float *c = (const float *)p->c.data;
    for (int m = 0; m < p->M; m++)
        for (int n = 0; n < p->N + PAD; n++) {
            const int at = m * (p->N + PAD) + n;
            double sum = add ? (double)before[at] : 0, size = fabs(sum);
            if (n >= p->N) {
                ck_true(t, memcmp(&c[at], &before[at], sizeof *c) == 0);
                continue;
            }
            for (int k = 0; k < p->K; k++) {
                const double x =
                    (double)fl__bf16_to_f32(a[m * p->K + k]) *
                    (double)fl__bf16_to_f32(
                        b[(n / 64 * (p->K / 2) + k / 2) * 128 + n % 64 * 2 + k % 2]);
                sum += x;
                size += fabs(x);
            }
            if (!(fabs((double)c[at] - sum) <= (p->K + 3) * 0x1p-24 * size + p->K * 0x1p-126))
                ck_complain(t, "M %d N %d K %d add %d: C[%d,%d] is %g, not %g", p->M, p->N,
                            p->K, add, m, n, (double)c[at], sum);
        }
}

static void check_shape(ck *t, const fl_gemm_bf16_kernel *k, const int shape[3], bool add)
{
    bf16_problem p = problem_new(t, shape);
    const size_t n = (size_t)(p.M * (p.N + PAD));
    ck_buf before = ck_buf_new(n * sizeof(float));
    fl_rng rng = fl__rng_init(t->seed, (int)n, "gemm-bf16-c");
    for (size_t i = 0; i < n; i++) ((float *)before.data)[i] = (float)fl__rng_normal(&rng);
    memcpy(p.c.data, before.data, n * sizeof(float));
    k->run((float *)p.c.data, p.N + PAD, (const uint16_t *)p.a.data,
           (const uint16_t *)p.b.data, p.M, p.N, p.K, add);
    compare(t, &p, (const float *)before.data, add);
    ck_buf *const all[] = {&p.a, &p.b, &p.c, &before};
    for (size_t i = 0; i < FL_COUNT(all); i++) ck_buf_free(all[i]);
}

void check_gemm_bf16(ck *t)
{
    for (int i = 0; i < fl__n_gemm_bf16_kernels; i++) {
        const fl_gemm_bf16_kernel *k = &fl__gemm_bf16_kernels[i];
        if (k->isa & ~t->isa) {
            ck_skip(t, k->name, "this machine or --isa lacks its instructions");
            continue;
        }
        if (!ck_begin(t, k->name)) continue;
        for (size_t s = 0; s < FL_COUNT(shapes); s++)
            for (int add = 0; add < 2; add++) check_shape(t, k, shapes[s], add);
        ck_end(t);
    }
}
