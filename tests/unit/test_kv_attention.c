/* test_kv_attention.c - attention over the cache: a token has the same bits alone, in pieces of
 * a prefill and in one go, on any number of threads, with and without pieces as items of their
 * own; and it is softmax attention.
 * SPDX-License-Identifier: MIT */
#include "model/kv_attention.h"

#include "base/isa.h"
#include "base/mem.h"
#include "base/rng.h"
#include "support/fl_test.h"

#include <math.h>
#include <string.h>

enum { LONG = 2 * FL_ATTENTION_PIECE + 76, KV_HEADS = 2, SEQS = 2 };

typedef struct problem {
    fl_kv_cache *kv;
    int D, n_heads, width, n; /* n tokens in sequence 0, half of them in sequence 1 */
    float *q, *k, *v;         /* [n, width], keys and values [n, KV_HEADS * D] */
} problem;

static float *random_rows(int n, int width, const char *what)
{
    fl_rng rng = fl__rng_init(1, width, what);
    float *x = fl__alloc((size_t)n * (size_t)width, sizeof *x);
    assert_non_null(x);
    for (int i = 0; i < n * width; i++) x[i] = (float)fl__rng_normal(&rng);
    return x;
}

static problem problem_new(int n, int D, int group, fl_kv_format k, fl_kv_format v)
{
    problem p = {.D = D, .n_heads = KV_HEADS * group, .width = KV_HEADS * group * D, .n = n};
    const fl_kv_options o = {.n_layers = 2, .n_kv_heads = KV_HEADS, .head_dim = D,
                             .n_sequences = SEQS, .n_positions = n, .k_format = k,
                             .v_format = v};
    assert_int_equal(fl__kv_new(&p.kv, &o, NULL), FL_OK);
    p.q = random_rows(n, p.width, "q");
    p.k = random_rows(n, KV_HEADS * D, "k");
    p.v = random_rows(n, KV_HEADS * D, "v");
    const fl_kv_rows rows = {p.k, p.v, KV_HEADS * D, KV_HEADS * D, n, NULL};
    fl_kv_rows half = rows;
    half.n = (n + 1) / 2;
    fl__kv_resize(p.kv, 0, n);
    fl__kv_resize(p.kv, 1, half.n);
    fl__kv_append(p.kv, fl__isa_detect(), 1, 0, 0, &rows);
    fl__kv_append(p.kv, fl__isa_detect(), 1, 1, 0, &half);
    return p;
}

static void problem_free(problem *p)
{
    fl__kv_free(&p->kv);
    fl__free(&p->q);
    fl__free(&p->k);
    fl__free(&p->v);
}

/* out: rows of the spans, whose queries are those of their positions. pieces: room for them. */
static void attend(const problem *p, float *out, const fl_span *spans, int n_spans,
                   int n_threads, bool pieces)
{
    const fl_exec ex = {fl__isa_detect(), n_threads};
    fl_kv_options o = *fl__kv_options_of(p->kv);
    int n_rows = 0;
    for (int i = 0; i < n_spans; i++) n_rows += spans[i].n_rows;
    if (!pieces) o.n_positions = 1;
    const size_t bytes = fl__attention_scratch_bytes(&ex, &o, p->n_heads);
    float *q = fl__alloc((size_t)n_rows * (size_t)p->width, sizeof *q), *at = q;
    void *scratch = fl__alloc(bytes, 1);
    assert_true(q && scratch);
    for (int i = 0; i < n_spans; i++) {
        const size_t n = (size_t)spans[i].n_rows * (size_t)p->width;
        memcpy(at, p->q + (size_t)spans[i].pos * (size_t)p->width, n * sizeof *q);
        at += n;
    }
    const fl_attention a = {.kv = p->kv, .layer = 1, .spans = spans, .n_spans = n_spans,
                            .n_heads = p->n_heads, .q = q, .out = out, .q_stride = p->width,
                            .out_stride = p->width, .scratch = scratch,
                            .scratch_bytes = bytes};
    fl__attention_run(&ex, &a);
    fl__free(&q);
    fl__free(&scratch);
}

/* Token pos of either sequence alone has the bits of row pos of all. */
static void same_alone(const problem *p, const float *all, int pos, int n_threads, bool pieces)
{
    const fl_span spans[SEQS] = {{0, pos, 1}, {1, pos, 1}};
    const int n_spans = pos < (p->n + 1) / 2 && pieces ? 2 : 1;
    float *out = fl__alloc(2 * (size_t)p->width, sizeof *out);
    const size_t bytes = (size_t)p->width * sizeof *out;
    assert_non_null(out);
    attend(p, out, spans, n_spans, n_threads, pieces);
    for (int i = 0; i < n_spans; i++)
        assert_memory_equal(out + i * p->width, all + (size_t)pos * (size_t)p->width, bytes);
    fl__free(&out);
}

static void check(int n, int D, int group, fl_kv_format k, fl_kv_format v)
{
    static const int odd[] = {511, 512, 513, 575, 576, 1022, 1023, 1024, 1025, LONG - 1};
    problem p = problem_new(n, D, group, k, v);
    const size_t bytes = (size_t)n * (size_t)p.width * sizeof(float);
    const fl_span whole = {0, 0, n};
    const fl_span cut[] = {{0, 0, n / 3}, {0, n / 3, n - n / 3 - 1}, {0, n - 1, 1}};
    float *all = fl__alloc(bytes, 1), *other = fl__alloc(bytes, 1);
    assert_true(all && other);
    attend(&p, all, &whole, 1, 1, true);
    if (n > 3) {
        attend(&p, other, cut, 3, 2, false);
        assert_memory_equal(all, other, bytes);
    }
    for (int pos = 0; pos < n && pos < 300; pos += n > 300 ? 37 : 1)
        same_alone(&p, all, pos, 1, true);
    for (size_t i = 0; i < FL_COUNT(odd); i++)
        for (int threads = 1; threads <= 3 && odd[i] < n; threads++)
            same_alone(&p, all, odd[i], threads, threads != 2);
    fl__free(&all);
    fl__free(&other);
    problem_free(&p);
}

static void a_token_has_the_same_bits_alone(void **state)
{
    static const fl_kv_format formats[][2] = {
        {FL_KV_INT4, FL_KV_INT4}, {FL_KV_BF16, FL_KV_BF16}, {FL_KV_INT8, FL_KV_INT8},
        {FL_KV_INT3, FL_KV_INT3}, {FL_KV_INT2, FL_KV_INT2}, {FL_KV_INT8, FL_KV_INT3},
        {FL_KV_INT4, FL_KV_BF16}, {FL_KV_F32, FL_KV_INT2},  {FL_KV_F32, FL_KV_F32}};
    static const int widths[] = {64, 80, 128};
    (void)state;
    for (int f = 0; f < (int)FL_COUNT(formats); f++) {
        check(300, widths[f % 3], 1 + f % 8, formats[f][0], formats[f][1]);
        check(LONG, widths[(f + 1) % 3], 1 + (f + 3) % 4, formats[f][0], formats[f][1]);
    }
    for (int group = 1; group <= 8; group++)
        check(70 * group % 300 + 1, widths[group % 3], group, FL_KV_INT4, FL_KV_INT4);
}

/* Against double, over what the cache shows as values. */
static void it_is_softmax_attention(void **state)
{
    static const fl_kv_format formats[] = {FL_KV_F32, FL_KV_BF16, FL_KV_INT8, FL_KV_INT4,
                                           FL_KV_INT3, FL_KV_INT2};
    enum { D = 80, GROUP = 3 };
    static float page[2 * D * FL_KV_PAGE], out[KV_HEADS * GROUP * D];
    static double s[LONG];
    (void)state;
    for (size_t f = 0; f < FL_COUNT(formats); f++) {
        problem p = problem_new(LONG, D, GROUP, formats[f], formats[f]);
        const int n = f % 2 ? LONG : 500;
        const fl_span last = {0, n - 1, 1};
        attend(&p, out, &last, 1, 2, true);
        for (int h = 0; h < p.n_heads; h++) {
            double top = -INFINITY, l = 0, want[D] = {0};
            const float *k_t, *v;
            for (int i = 0; i < n; i++) {
                fl__kv_page(&k_t, &v, p.kv, 0, 1, 0, h / GROUP, i / FL_KV_PAGE, page);
                s[i] = 0;
                for (int d = 0; d < D; d++)
                    s[i] += (double)p.q[(n - 1) * p.width + h * D + d] *
                            k_t[d * FL_KV_PAGE + i % FL_KV_PAGE];
                s[i] /= sqrt(D);
                top = fmax(top, s[i]);
            }
            for (int i = 0; i < n; i++) {
                if (i % FL_KV_PAGE == 0)
                    fl__kv_page(&k_t, &v, p.kv, 0, 1, 0, h / GROUP, i / FL_KV_PAGE, page);
                l += exp(s[i] - top);
                for (int d = 0; d < D; d++)
                    want[d] += exp(s[i] - top) * v[i % FL_KV_PAGE * D + d];
            }
            for (int d = 0; d < D; d++) assert_true(fabs(out[h * D + d] - want[d] / l) < 4e-6);
        }
        problem_free(&p);
    }
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(a_token_has_the_same_bits_alone),
    cmocka_unit_test(it_is_softmax_attention),
};
FL_TEST_MAIN(tests)
