/* test_kv_cache.c - pages, truncation, formats: what was appended is what a page shows.
 * SPDX-License-Identifier: MIT */
#include "model/kv_cache.h"

#include "base/float16.h"
#include "base/isa.h"
#include "base/mem.h"
#include "support/fl_test.h"

#include <math.h>

enum { LAYERS = 3, HEADS = 2, D = 6, SEQS = 3, POSITIONS = 150 }; /* 3 pages per sequence */

static float scratch[2 * D * FL_KV_PAGE];
static const float clip[4] = {1, 0.75f, 0.5f, 1};
static bool clipped; /* rows are appended with clip */

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
    const fl_kv_rows rows = {k, v, K_STRIDE, V_STRIDE, n, clipped ? clip : NULL};
    fl__kv_append(kv, fl__isa_detect(), layer, seq, pos, &rows);
}

/* x [D] as the format keeps it. */
static void round_row(float *x, fl_kv_format f, float c_max, float c_min)
{
    const fl_kv_codec_kernel *ref = &fl__kv_codec_kernels[fl__n_kv_codec_kernels - 1];
    const int bits = fl__kv_code_bits(f);
    uint8_t block[64 * D + 64 * 3] = {0}; /* values of 8 bits */
    float all[FL_KV_PAGE * D];
    if (f == FL_KV_BF16)
        for (int d = 0; d < D; d++) x[d] = fl__bf16_to_f32(fl__f32_to_bf16(x[d]));
    if (!bits) return;
    ref->quantize(block, FL_KV_VALUES, 0, x, D, bits, c_max, c_min);
    ref->expand(all, block, FL_KV_VALUES, D, bits);
    memcpy(x, all, D * sizeof *x);
}

static void check(const fl_kv_cache *kv, int layer, int seq, int from, int to, int generation)
{
    const fl_kv_options *o = fl__kv_options_of(kv);
    for (int pos = from; pos < to; pos++)
        for (int h = 0; h < HEADS; h++) {
            const float *k_t, *v;
            const int t = pos % FL_KV_PAGE;
            float want_k[D], want_v[D];
            for (int d = 0; d < D; d++) {
                want_k[d] = value(0, layer, seq, pos, h, d, generation);
                want_v[d] = value(1, layer, seq, pos, h, d, generation);
            }
            round_row(want_k, o->k_format, clipped ? clip[0] : 1, clipped ? clip[1] : 1);
            round_row(want_v, o->v_format, clipped ? clip[2] : 1, clipped ? clip[3] : 1);
            fl__kv_page(&k_t, &v, kv, fl__isa_detect(), layer, seq, h, pos / FL_KV_PAGE,
                        scratch);
            for (int d = 0; d < D; d++) {
                assert_true(k_t[d * FL_KV_PAGE + t] == want_k[d]);
                assert_true(v[t * D + d] == want_v[d]);
            }
        }
}

static void pages_show_what_was_appended(void **state)
{
    (void)state;
    static const fl_kv_format formats[][2] = {
        {FL_KV_F32, FL_KV_F32},   {FL_KV_BF16, FL_KV_BF16}, {FL_KV_F32, FL_KV_BF16},
        {FL_KV_BF16, FL_KV_F32},  {FL_KV_INT8, FL_KV_INT8}, {FL_KV_INT4, FL_KV_INT2},
        {FL_KV_INT3, FL_KV_BF16}, {FL_KV_F32, FL_KV_INT3},  {FL_KV_INT2, FL_KV_INT4}};
    for (size_t f = 0; f < FL_COUNT(formats); f++) {
        clipped = f % 2;
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
    fl_kv_cache *kv = make(FL_KV_INT4, FL_KV_F32);
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
    for (int f = 0; f < FL_N_KV_FORMATS; f++) {
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

/* A page of codes: 64 rows, 64 f16 and 64 bytes for each head, for K and for V. */
static void codes_take_their_bits(void **state)
{
    (void)state;
    const fl_kv_options f32 = {1, 1, 128, 1, 64, FL_KV_F32, FL_KV_F32};
    static const int bits[] = {16, 8, 4, 3, 2};
    for (size_t i = 0; i < FL_COUNT(bits); i++) {
        fl_kv_options o = f32;
        assert_true(fl__kv_format_of_bits(&o.k_format, bits[i]));
        const size_t k = 64 * (size_t)(128 * bits[i] / 8 + (bits[i] < 16 ? 3 : 0));
        assert_int_equal(fl__kv_bytes(&f32) - fl__kv_bytes(&o), 64 * 128 * 4 - k);
        assert_int_equal(fl__kv_token_bytes(&o), 128 * 4 + k / 64);
        assert_int_equal(fl__kv_code_bits(o.k_format), bits[i] < 16 ? bits[i] : 0);
    }
    fl_kv_format unused;
    static const int others[] = {0, 1, 5, 6, 7, 15, 17, 32, -4};
    for (size_t i = 0; i < FL_COUNT(others); i++)
        assert_false(fl__kv_format_of_bits(&unused, others[i]));
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
    cmocka_unit_test(codes_take_their_bits),
    cmocka_unit_test(running_out_of_memory_leaves_nothing),
};
FL_TEST_MAIN(tests)
