/* check_attention.c - rows of the attention table against the reference, the reference against
 * softmax in double, and a query row alone against the same row in a block: bit for bit.
 * SPDX-License-Identifier: MIT */
#include "check/ck.h"

#include "kernels/attention.h"

#include <math.h>
#include <string.h>

enum { KEYS = FL_ATTENTION_KEYS, MAX_Q = 64, MAX_PAGES = 3 };

/* Queries at positions of a sequence, and its pages; what no query sees is NaN. */
typedef struct attention_problem {
    int D, n_q, n_keys, n_pages; /* keys that row 0 sees, counted from the first page on */
    int64_t stride;
    float scale;
    ck_buf q, k_t[MAX_PAGES], v[MAX_PAGES];
} attention_problem;

/* Row r sees n_keys + r keys. */
static attention_problem problem_new(ck *t, int D, int n_q, int n_keys, double size)
{
    fl_rng rng = fl__rng_init(t->seed, D * 1000 + n_q * 70 + n_keys, "attention");
    attention_problem p = {.D = D, .n_q = n_q, .n_keys = n_keys, .stride = D + 3};
    const int last = n_keys + n_q - 1;
    p.n_pages = FL_MAX((last + KEYS - 1) / KEYS, 1);
    p.scale = 1.0f / sqrtf((float)D);
    p.q = ck_buf_new((size_t)(n_q * p.stride) * sizeof(float));
    for (int i = 0; i < n_q * (int)p.stride; i++)
        ((float *)p.q.data)[i] = (float)(size * fl__rng_normal(&rng));
    for (int page = 0; page < p.n_pages; page++) {
        p.k_t[page] = ck_buf_new((size_t)(D * KEYS) * sizeof(float));
        p.v[page] = ck_buf_new((size_t)(D * KEYS) * sizeof(float));
        for (int key = 0; key < KEYS; key++)
            for (int d = 0; d < D; d++) {
                const bool seen = page * KEYS + key < last;
                ((float *)p.k_t[page].data)[d * KEYS + key] =
                    seen ? (float)(size * fl__rng_normal(&rng)) : NAN;
                ((float *)p.v[page].data)[key * D + d] =
                    seen ? (float)fl__rng_normal(&rng) : NAN;
            }
    }
    return p;
}

static void problem_free(attention_problem *p)
{
    ck_buf_free(&p->q);
    for (int i = 0; i < p->n_pages; i++) {
        ck_buf_free(&p->k_t[i]);
        ck_buf_free(&p->v[i]);
    }
}

typedef struct attention_result {
    ck_buf o, m, l;
} attention_result;

/* Rows [r0, r0 + n) through all pages. */
static attention_result run(const fl_attention_kernel *k, const attention_problem *p, int r0,
                            int n)
{
    attention_result a = {ck_buf_new((size_t)(n * p->D) * sizeof(float)),
                          ck_buf_new((size_t)n * sizeof(float)),
                          ck_buf_new((size_t)n * sizeof(float))};
    memset(a.o.data, 0, a.o.n_bytes);
    memset(a.l.data, 0, a.l.n_bytes);
    for (int r = 0; r < n; r++) ((float *)a.m.data)[r] = -INFINITY;
    for (int page = 0; page < p->n_pages; page++)
        k->run(a.o.data, a.m.data, a.l.data, (float *)p->q.data + r0 * p->stride, p->stride, n,
               p->n_keys + r0 - page * KEYS, p->k_t[page].data, p->v[page].data, p->D,
               p->scale);
    return a;
}

static bool result_intact(const attention_result *a)
{
    return ck_buf_intact(&a->o) && ck_buf_intact(&a->m) && ck_buf_intact(&a->l);
}

static void result_free(attention_result *a)
{
    ck_buf_free(&a->o);
    ck_buf_free(&a->m);
    ck_buf_free(&a->l);
}

static float at(const ck_buf *b, int i)
{
    return ((const float *)b->data)[i];
}

static const fl_attention_kernel *reference(void)
{
    return &fl__attention_kernels[fl__n_attention_kernels - 1];
}

static void complain(ck *t, const attention_problem *p, const char *what, int row)
{
    ck_complain(t, "%s: D %d, %d rows, %d keys, row %d, seed %llu", what, p->D, p->n_q,
                p->n_keys, row, (unsigned long long)t->seed);
}

/* Within 1e-5: m of the scores' size, l of itself, o of the largest value times l. */
static void compare(ck *t, const attention_problem *p, const attention_result *a,
                    const attention_result *b)
{
    for (int r = 0; r < p->n_q; r++) {
        if (p->n_keys + r <= 0) {
            if (at(&a->l, r) != 0 || at(&a->m, r) != -INFINITY) complain(t, p, "untouched", r);
            continue;
        }
        const double m = at(&b->m, r), l = at(&b->l, r);
        if (!(fabs(at(&a->m, r) - m) <= 1e-5 * fmax(1, fabs(m)))) complain(t, p, "m", r);
        if (!(fabs(at(&a->l, r) - l) <= 1e-5 * fmax(1, fabs(m)) * l)) complain(t, p, "l", r);
        for (int d = 0; d < p->D; d++) {
            const double x = at(&a->o, r * p->D + d) / (double)at(&a->l, r);
            const double y = at(&b->o, r * p->D + d) / l;
            if (!(fabs(x - y) <= 4e-5 * fmax(1, fabs(m)))) complain(t, p, "o", r);
        }
    }
}

static void row_alone(ck *t, const fl_attention_kernel *k, const attention_problem *p,
                      const attention_result *all)
{
    for (int r = 0; r < p->n_q; r++) {
        attention_result one = run(k, p, r, 1);
        if (memcmp(one.o.data, (float *)all->o.data + r * p->D, one.o.n_bytes) != 0 ||
            at(&one.m, 0) != at(&all->m, r) || at(&one.l, 0) != at(&all->l, r))
            complain(t, p, "alone it is another", r);
        result_free(&one);
    }
}

static void row(ck *t, const fl_attention_kernel *k)
{
    static const int widths[] = {1, 2, 7, 8, 15, 16, 17, 31, 32, 64, 80, 128, 192, 512};
    static const int rows[] = {1, 2, 3, 4, 5, 7, 8, 33, MAX_Q};
    static const int keys[] = {-2, 0, 1, 2, 15, 16, 17, 63, 64, 65, 100, 128};
    for (size_t d = 0; d < FL_COUNT(widths); d++)
        for (size_t q = 0; q < FL_COUNT(rows); q++)
            for (size_t n = 0; n < FL_COUNT(keys); n++) {
                if (keys[n] + rows[q] - 1 > MAX_PAGES * KEYS || (d + q + n) % 3 != 0) continue;
                const double size =
                    (d + n) % 5 == 0 ? 6 : 1; /* a softmax of one key, of many */
                attention_problem p = problem_new(t, widths[d], rows[q], keys[n], size);
                attention_result a = run(k, &p, 0, p.n_q), b = run(reference(), &p, 0, p.n_q);
                compare(t, &p, &a, &b);
                row_alone(t, k, &p, &a);
                if (!result_intact(&a)) complain(t, &p, "guard", -1);
                result_free(&a);
                result_free(&b);
                problem_free(&p);
            }
}

/* Softmax attention in double over all keys at once. */
static void reference_against_double(ck *t)
{
    for (int n_keys = 1; n_keys < 150; n_keys += 29) {
        attention_problem p = problem_new(t, 24, 5, n_keys, 2);
        attention_result a = run(reference(), &p, 0, p.n_q);
        for (int r = 0; r < p.n_q; r++) {
            double s[MAX_PAGES * KEYS], top = -INFINITY, l = 0, want[24] = {0};
            for (int i = 0; i < n_keys + r; i++) {
                const float *k_t = p.k_t[i / KEYS].data, *q = (float *)p.q.data + r * p.stride;
                s[i] = 0;
                for (int d = 0; d < p.D; d++) s[i] += (double)q[d] * k_t[d * KEYS + i % KEYS];
                s[i] *= p.scale;
                top = fmax(top, s[i]);
            }
            for (int i = 0; i < n_keys + r; i++) {
                const float *v = (float *)p.v[i / KEYS].data + i % KEYS * p.D;
                l += exp(s[i] - top);
                for (int d = 0; d < p.D; d++) want[d] += exp(s[i] - top) * v[d];
            }
            for (int d = 0; d < p.D; d++)
                if (!(fabs(at(&a.o, r * p.D + d) / at(&a.l, r) - want[d] / l) < 2e-5))
                    complain(t, &p, "reference", r);
        }
        result_free(&a);
        problem_free(&p);
    }
}

void check_attention(ck *t)
{
    for (int i = 0; i < fl__n_attention_kernels; i++) {
        const fl_attention_kernel *k = &fl__attention_kernels[i];
        if (k->isa & ~t->isa) {
            ck_skip(t, k->name, "this machine cannot");
            continue;
        }
        if (!ck_begin(t, k->name)) continue;
        row(t, k);
        ck_end(t);
    }
    if (!ck_begin(t, "attention_ref in double")) return;
    reference_against_double(t);
    ck_end(t);
}
