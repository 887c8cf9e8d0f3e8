/* check_attention_codes.c - rows of the table of attention over codes against the reference,
 * the reference against softmax in double, and a query row alone against the same row among
 * others: bit for bit.
 * SPDX-License-Identifier: MIT */
#include "check/ck.h"

#include "kernels/attention_codes.h"

#include <math.h>
#include <string.h>

enum { KEYS = FL_KV_PAGE, MAX_PAGES = FL_CODES_PAGES };

/* Queries at positions of a sequence, and its pages; the scales of what no query sees are
 * NaN. */
typedef struct codes_problem {
    int D, n_tokens, group, n_keys, n_pages; /* keys that token 0 sees */
    int bits[2];
    int64_t stride;
    float scale;
    ck_buf q, k[MAX_PAGES], v[MAX_PAGES];
    const void *k_pages[MAX_PAGES], *v_pages[MAX_PAGES];
} codes_problem;

static const fl_kv_codec_kernel *codec(void)
{
    return &fl__kv_codec_kernels[fl__n_kv_codec_kernels - 1];
}

/* A page of one side, of which the first n tokens are there. */
static ck_buf page_new(fl_kv_side side, int D, int bits, int n, double size, fl_rng *rng)
{
    ck_buf b = ck_buf_new(fl__kv_block_bytes(side, D, bits));
    float x[FL_KV_MAX_D];
    for (int i = 0; i < KEYS; i++) {
        const double shift = fl__rng_normal(rng);
        for (int d = 0; d < D; d++) x[d] = (float)(size * (fl__rng_normal(rng) + shift));
        if (i < n) codec()->quantize(b.data, side, i, x, D, bits, 1, 1);
        else memset((uint8_t *)b.data + fl__kv_scale_at(side, D, bits) + 2 * i, 0xff, 2);
    }
    return b;
}

/* Token i sees n_keys + i keys. */
static codes_problem problem_new(ck *t, int D, int n_tokens, int group, int n_keys, int k_bits,
                                 int v_bits, double size)
{
    fl_rng rng = fl__rng_init(t->seed, D * 1000 + n_tokens * 70 + n_keys, "attention-codes");
    codes_problem p = {.D = D, .n_tokens = n_tokens, .group = group, .n_keys = n_keys,
                       .bits = {k_bits, v_bits}, .stride = group * D + 3};
    const int last = n_keys + n_tokens - 1;
    p.n_pages = FL_MAX((last + KEYS - 1) / KEYS, 1);
    p.scale = 1.0f / sqrtf((float)D);
    const int n = (int)(n_tokens * p.stride);
    p.q = ck_buf_new((size_t)n * sizeof(float));
    for (int i = 0; i < n; i++) ((float *)p.q.data)[i] = (float)(size * fl__rng_normal(&rng));
    for (int i = 0; i < p.n_pages; i++) {
        p.k[i] = page_new(FL_KV_KEYS, D, k_bits, last - i * KEYS, size, &rng);
        p.v[i] = page_new(FL_KV_VALUES, D, v_bits, last - i * KEYS, 1, &rng);
        p.k_pages[i] = p.k[i].data;
        p.v_pages[i] = p.v[i].data;
    }
    return p;
}

static void problem_free(codes_problem *p)
{
    ck_buf_free(&p->q);
    for (int i = 0; i < p->n_pages; i++) {
        ck_buf_free(&p->k[i]);
        ck_buf_free(&p->v[i]);
    }
}

typedef struct codes_result {
    ck_buf o, m, l;
    bool intact;
} codes_result;

/* Tokens [t0, t0 + n), heads [h0, h0 + heads). */
static codes_result run(const fl_attention_codes_kernel *k, const codes_problem *p, int t0,
                        int n, int h0, int heads)
{
    const int rows = n * heads;
    const size_t ld = (size_t)fl__attention_ld(p->D);
    codes_result a = {ck_buf_new((size_t)rows * ld * sizeof(float)),
                      ck_buf_new((size_t)rows * sizeof(float)),
                      ck_buf_new((size_t)rows * sizeof(float)), true};
    ck_buf x = ck_buf_new(fl__attention_codes_x_bytes(rows, p->D));
    ck_buf work = ck_buf_new(fl__attention_codes_work_bytes(p->D));
    k->prepare(x.data, (float *)p->q.data + t0 * p->stride + h0 * p->D, p->stride, rows, heads,
               p->D, p->scale);
    const fl_attention_codes c = {.o = a.o.data, .m = a.m.data, .l = a.l.data,
                                  .x = x.data, .work = work.data,
                                  .k = p->k_pages, .v = p->v_pages,
                                  .n_pages = p->n_pages, .n_rows = rows,
                                  .group = heads, .n_keys = p->n_keys + t0,
                                  .D = p->D, .k_bits = p->bits[0], .v_bits = p->bits[1]};
    k->run(&c);
    a.intact = ck_buf_intact(&a.o) && ck_buf_intact(&a.m) && ck_buf_intact(&a.l) &&
               ck_buf_intact(&x) && ck_buf_intact(&work);
    ck_buf_free(&x);
    ck_buf_free(&work);
    return a;
}

static void result_free(codes_result *a)
{
    ck_buf_free(&a->o);
    ck_buf_free(&a->m);
    ck_buf_free(&a->l);
}

static float at(const ck_buf *b, int i)
{
    return ((const float *)b->data)[i];
}

static const fl_attention_codes_kernel *reference(void)
{
    return &fl__attention_codes_kernels[fl__n_attention_codes_kernels - 1];
}

static void complain(ck *t, const codes_problem *p, const char *what, int row)
{
    ck_complain(t, "%s: D %d, %d tokens x %d, %d keys, %d and %d bits, row %d, seed %llu", what,
                p->D, p->n_tokens, p->group, p->n_keys, p->bits[0], p->bits[1], row,
                (unsigned long long)t->seed);
}

/* m and scores are the same but for the last bit or two, l and o follow exp. */
static void compare(ck *t, const codes_problem *p, const codes_result *a,
                    const codes_result *b)
{
    const int ld = fl__attention_ld(p->D);
    for (int r = 0; r < p->n_tokens * p->group; r++) {
        if (p->n_keys + r / p->group <= 0) {
            if (at(&a->l, r) != 0 || at(&a->m, r) != -INFINITY || at(&a->o, r * ld) != 0)
                complain(t, p, "sees nothing", r);
            continue;
        }
        const double m = at(&b->m, r), l = at(&b->l, r);
        if (at(&a->m, r) != at(&b->m, r)) complain(t, p, "m", r);
        if (!(fabs(at(&a->l, r) - l) <= 1e-5 * fmax(1, fabs(m)) * l)) complain(t, p, "l", r);
        for (int d = 0; d < p->D; d++) {
            const double x = at(&a->o, r * ld + d) / (double)at(&a->l, r);
            const double y = at(&b->o, r * ld + d) / l;
            if (!(fabs(x - y) <= 2e-5)) complain(t, p, "o", r);
        }
    }
}

static void row_alone(ck *t, const fl_attention_codes_kernel *k, const codes_problem *p,
                      const codes_result *all)
{
    const int ld = fl__attention_ld(p->D);
    for (int r = 0; r < p->n_tokens * p->group; r++) {
        codes_result one = run(k, p, r / p->group, 1, r % p->group, 1);
        if (memcmp(one.o.data, (float *)all->o.data + r * ld, (size_t)p->D * sizeof(float)) ||
            at(&one.m, 0) != at(&all->m, r) || at(&one.l, 0) != at(&all->l, r))
            complain(t, p, "alone it is another", r);
        result_free(&one);
    }
}

static void row(ck *t, const fl_attention_codes_kernel *k)
{
    static const int widths[] = {2, 6, 16, 24, 64, 80, 128, 136, 512};
    static const int tokens[] = {1, 2, 3, 5, 11, 33};
    static const int groups[] = {1, 2, 3, 4, 5, 8};
    static const int keys[] = {-2, 0, 1, 15, 16, 63, 64, 65, 100, 150, 479, 512};
    static const int bits[] = {8, 4, 3, 2};
    for (size_t d = 0; d < FL_COUNT(widths); d++)
        for (size_t q = 0; q < FL_COUNT(tokens); q++)
            for (size_t n = 0; n < FL_COUNT(keys); n++) {
                const int i = (int)(d + q + n);
                if (keys[n] + tokens[q] - 1 > MAX_PAGES * KEYS || (widths[d] > 99 && i % 2))
                    continue;
                codes_problem p =
                    problem_new(t, widths[d], tokens[q], groups[i % 6], keys[n], bits[i % 4],
                                bits[i / 4 % 4], i % 5 == 0 ? 4 : 1);
                codes_result a = run(k, &p, 0, p.n_tokens, 0, p.group);
                codes_result b = run(reference(), &p, 0, p.n_tokens, 0, p.group);
                compare(t, &p, &a, &b);
                row_alone(t, k, &p, &a);
                if (!a.intact || !b.intact) complain(t, &p, "guard", -1);
                result_free(&a);
                result_free(&b);
                problem_free(&p);
            }
}

/* Queries without a number give none; very large and very small ones do no harm. */
static void odd_numbers(ck *t, const fl_attention_codes_kernel *k)
{
    static const float odd[] = {NAN, INFINITY, -INFINITY, 1e-38f, 0, 1e30f};
    for (size_t i = 0; i < FL_COUNT(odd); i++) {
        codes_problem p = problem_new(t, 64, 3, 2, 70, 4, 4, 1);
        const bool finite = isfinite(odd[i]);
        for (int d = 0; d < (finite ? p.D : 1); d++)
            ((float *)p.q.data)[p.stride + d] = odd[i]; /* token 1, head 0 */
        codes_result a = run(k, &p, 0, p.n_tokens, 0, p.group);
        for (int r = 0; r < 6; r++)
            for (int d = 0; d < p.D; d++)
                if (isfinite(at(&a.o, r * 64 + d) / at(&a.l, r)) != (finite || r != 2))
                    complain(t, &p, "odd numbers", r);
        result_free(&a);
        problem_free(&p);
    }
}

/* Softmax attention in double over the values of all codes at once. */
static void reference_against_double(ck *t)
{
    enum { D = 24 };
    static float k_t[MAX_PAGES][D * KEYS], v[MAX_PAGES][D * KEYS];
    for (int n_keys = 1; n_keys < 150; n_keys += 29) {
        codes_problem p = problem_new(t, D, 5, 2, n_keys, n_keys % 2 ? 8 : 4, 8, 2);
        codes_result a = run(reference(), &p, 0, p.n_tokens, 0, p.group);
        for (int i = 0; i < p.n_pages; i++) {
            codec()->expand(k_t[i], p.k[i].data, FL_KV_KEYS, D, p.bits[0]);
            codec()->expand(v[i], p.v[i].data, FL_KV_VALUES, D, p.bits[1]);
        }
        for (int r = 0; r < 10; r++) {
            const float *q = (float *)p.q.data + r / 2 * p.stride + r % 2 * D;
            double s[MAX_PAGES * KEYS], top = -INFINITY, l = 0, want[D] = {0};
            for (int i = 0; i < n_keys + r / 2; i++) {
                s[i] = 0;
                for (int d = 0; d < D; d++)
                    s[i] += (double)q[d] * k_t[i / KEYS][d * KEYS + i % KEYS];
                s[i] *= p.scale;
                top = fmax(top, s[i]);
            }
            for (int i = 0; i < n_keys + r / 2; i++) {
                l += exp(s[i] - top);
                for (int d = 0; d < D; d++)
                    want[d] += exp(s[i] - top) * v[i / KEYS][i % KEYS * D + d];
            }
            for (int d = 0; d < D; d++)
                if (!(fabs(at(&a.o, r * fl__attention_ld(D) + d) / at(&a.l, r) - want[d] / l) <
                      2e-5))
                    complain(t, &p, "reference", r);
        }
        result_free(&a);
        problem_free(&p);
    }
}

void check_attention_codes(ck *t)
{
    for (int i = 0; i < fl__n_attention_codes_kernels; i++) {
        const fl_attention_codes_kernel *k = &fl__attention_codes_kernels[i];
        if (k->isa & ~t->isa) {
            ck_skip(t, k->name, "this machine cannot");
            continue;
        }
        if (!ck_begin(t, k->name)) continue;
        row(t, k);
        odd_numbers(t, k);
        ck_end(t);
    }
    if (!ck_begin(t, "attention_codes_ref in double")) return;
    reference_against_double(t);
    ck_end(t);
}
