/* test_kv_cache.c - pages, truncation, formats: what was appended is what a page shows.
 * SPDX-License-Identifier: MIT */
#include "model/kv_cache.h"

#include "base/float16.h"
#include "base/mem.h"
#include "support/fl_test.h"

#include <math.h>

enum { LAYERS = 3, HEADS = 2, D = 6, SEQS = 3, POSITIONS = 150 }; /* 3 pages per sequence */

static float scratch[2 * D * FL_KV_PAGE];

static fl_kv_options options(fl_kv_format k, fl_kv_format v)
{
    return (fl_kv_options){.n_layers = LAYERS, .n_kv_heads = HEADS, .head_dim = D,
                           .n_sequences = SEQS, .n_positions = POSITIONS, .k_format = k,
                           .v_format = v};
}

static fl_kv_cache *make(fl_kv_format k, fl_kv_format v)
{
    const fl_kv_options o = options(k, v);
    fl_kv_cache *kv;
    assert_int_equal(fl__kv_new(&kv, &o, NULL), FL_OK);
    return kv;
}

/* A number that says where it belongs; not exact in bf16. */
static float value(int what, int layer, int seq, int pos, int head, int d, int generation)
{
    return (float)(((((what * LAYERS + layer) * SEQS + seq) * POSITIONS + pos) * HEADS + head) *
                       D +
                   d) +
           (float)generation / 8 + 0.1f;
}

/* Appends positions [pos, pos + n) in one call, strides wider than a token. */
static void append(fl_kv_cache *kv, int layer, int seq, int pos, int n, int generation)
{
    enum { K_STRIDE = HEADS * D + 3, V_STRIDE = HEADS * D + 5 };
    static float k[POSITIONS * K_STRIDE], v[POSITIONS * V_STRIDE];
    for (int i = 0; i < n; i++)
        for (int h = 0; h < HEADS; h++)
            for (int d = 0; d < D; d++) {
                k[i * K_STRIDE + h * D + d] = value(0, layer, seq, pos + i, h, d, generation);
                v[i * V_STRIDE + h * D + d] = value(1, layer, seq, pos + i, h, d, generation);
            }
    fl__kv_append(kv, layer, seq, pos, n, k, K_STRIDE, v, V_STRIDE);
}

static float rounded(float x, fl_kv_format f)
{
    return f == FL_KV_BF16 ? fl__bf16_to_f32(fl__f32_to_bf16(x)) : x;
}

static void check(const fl_kv_cache *kv, int layer, int seq, int from, int to, int generation)
{
    const fl_kv_options *o = fl__kv_options_of(kv);
    for (int pos = from; pos < to; pos++)
        for (int h = 0; h < HEADS; h++) {
            const float *k_t, *v;
            const int t = pos % FL_KV_PAGE;
            fl__kv_page(&k_t, &v, kv, layer, seq, h, pos / FL_KV_PAGE, scratch);
            for (int d = 0; d < D; d++) {
                assert_true(k_t[d * FL_KV_PAGE + t] ==
                            rounded(value(0, layer, seq, pos, h, d, generation), o->k_format));
                assert_true(v[t * D + d] ==
                            rounded(value(1, layer, seq, pos, h, d, generation), o->v_format));
            }
        }
}

static void pages_show_what_was_appended(void **state)
{
    (void)state;
    static const fl_kv_format formats[][2] = {{FL_KV_F32, FL_KV_F32}, {FL_KV_BF16, FL_KV_BF16},
                                              {FL_KV_F32, FL_KV_BF16}, {FL_KV_BF16, FL_KV_F32}};
    for (size_t f = 0; f < FL_COUNT(formats); f++) {
        fl_kv_cache *kv = make(formats[f][0], formats[f][1]);
        /* sequences grow by turns, over page boundaries, so that their pages are mixed */
        static const int cuts[] = {0, 1, 63, 64, 66, 130, 150};
        for (int i = 0; i < 6; i++)
            for (int seq = 0; seq < SEQS; seq++) {
                fl__kv_resize(kv, seq, cuts[i + 1]);
                assert_int_equal(fl__kv_length(kv, seq), cuts[i + 1]);
                for (int layer = 0; layer < LAYERS; layer++)
                    append(kv, layer, seq, cuts[i], cuts[i + 1] - cuts[i], 0);
            }
        for (int seq = 0; seq < SEQS; seq++)
            for (int layer = 0; layer < LAYERS; layer++) check(kv, layer, seq, 0, POSITIONS, 0);
        fl__kv_free(&kv);
        assert_null(kv);
    }
}

static void truncation_keeps_what_is_before(void **state)
{
    (void)state;
    fl_kv_cache *kv = make(FL_KV_F32, FL_KV_F32);
    for (int seq = 0; seq < SEQS; seq++) {
        fl__kv_resize(kv, seq, POSITIONS);
        append(kv, 1, seq, 0, POSITIONS, 0);
    }
    fl__kv_resize(kv, 1, 70); /* in the middle of the second page */
    check(kv, 1, 1, 0, 70, 0);
    fl__kv_resize(kv, 1, 140);
    append(kv, 1, 1, 70, 70, 1);
    check(kv, 1, 1, 0, 70, 0);
    check(kv, 1, 1, 70, 140, 1);
    check(kv, 1, 0, 0, POSITIONS, 0);
    check(kv, 1, 2, 0, POSITIONS, 0);
    fl__kv_free(&kv);
}

/* The pool has a page for every position, however often sequences give theirs back. */
static void pages_go_round_without_running_out(void **state)
{
    (void)state;
    fl_kv_cache *kv = make(FL_KV_BF16, FL_KV_BF16);
    static const int lengths[] = {150, 0, 1, 65, 128, 129, 64, 150};
    int length[SEQS] = {0}, generation[SEQS] = {0};
    for (int i = 0; i < 60; i++) {
        const int seq = i % SEQS, n = lengths[i * 5 % 8];
        fl__kv_resize(kv, seq, 0);
        fl__kv_resize(kv, seq, n);
        append(kv, 2, seq, 0, n, i % 8);
        length[seq] = n;
        generation[seq] = i % 8;
        for (int s = 0; s < SEQS; s++) check(kv, 2, s, 0, length[s], generation[s]);
    }
    for (int s = 0; s < SEQS; s++) fl__kv_resize(kv, s, POSITIONS);
    fl__kv_free(&kv);
}

static void announced_bytes_are_taken(void **state)
{
    (void)state;
    for (int f = 0; f < 2; f++) {
        const fl_kv_options o = options((fl_kv_format)f, (fl_kv_format)f);
        const size_t before = fl__mem_get().now_bytes;
        fl_kv_cache *kv = make((fl_kv_format)f, (fl_kv_format)f);
        assert_int_equal(fl__mem_get().now_bytes - before, fl__kv_bytes(&o));
        const uint64_t allocs = fl__mem_get().n_allocs;
        fl__kv_resize(kv, 0, POSITIONS);
        append(kv, 0, 0, 0, POSITIONS, 0);
        fl__kv_resize(kv, 0, 10);
        assert_int_equal(fl__mem_get().n_allocs, allocs); /* decoding takes no memory */
        fl__kv_free(&kv);
        assert_int_equal(fl__mem_get().now_bytes, before);
    }
}

static void running_out_of_memory_leaves_nothing(void **state)
{
    (void)state;
    const fl_kv_options o = options(FL_KV_F32, FL_KV_F32);
    const size_t before = fl__mem_get().now_bytes;
    for (unsigned n = 1;; n++) {
        fl_kv_cache *kv;
        fl__mem_fail_after(n);
        const fl_status st = fl__kv_new(&kv, &o, NULL);
        if (!st) {
            fl__kv_free(&kv);
            assert_true(n > 1);
            break;
        }
        assert_int_equal(st, FL_E_NOMEM);
        assert_null(kv);
        assert_int_equal(fl__mem_get().now_bytes, before);
    }
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(pages_show_what_was_appended),
    cmocka_unit_test(truncation_keeps_what_is_before),
    cmocka_unit_test(pages_go_round_without_running_out),
    cmocka_unit_test(announced_bytes_are_taken),
    cmocka_unit_test(running_out_of_memory_leaves_nothing),
};
FL_TEST_MAIN(tests)
