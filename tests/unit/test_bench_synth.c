/* test_bench_synth.c - models of random weights: codes and sums in the kernels' layout, sizes
 * and sites of every method, memory that is given back; the rival of a float linear.
 * SPDX-License-Identifier: MIT */
#include "api/bench_model.h"
#include "api/bench_synth.h"
#include "base/isa.h"
#include "base/mem.h"
#include "support/fl_test.h"

#include <math.h>
#include <string.h>

static fl_err err;

/* ---- random codes ------------------------------------------------------------------------ */

static void check_random(int N, int K, int bits)
{
    const fl_exec one = {0, 1}, two = {0, 2};
    fl_weight a, b, packed;
    int seen[256] = {0}, n_seen = 0;
    assert_int_equal(fl__weight_random(&a, &one, N, K, bits, 7, &err), FL_OK);
    assert_int_equal(fl__weight_random(&b, &two, N, K, bits, 7, &err), FL_OK);
    int8_t *codes = fl__alloc((size_t)(N * K), 1);
    fl__weight_unpack(codes, &a);
    assert_int_equal(fl__weight_pack(&packed, codes, N, K, bits, &err), FL_OK);
    assert_true(a.n_bytes == packed.n_bytes && a.N_pad == packed.N_pad);
    assert_memory_equal(a.data, packed.data, a.n_bytes); /* padding too */
    assert_memory_equal(a.data, b.data, a.n_bytes);
    assert_memory_equal(a.col_sum, packed.col_sum, (size_t)a.N_pad * sizeof *a.col_sum);
    for (int i = 0; i < N * K; i++) n_seen += seen[codes[i] + 128]++ == 0;
    assert_int_equal(n_seen, bits == 4 ? 16 : 255);
    fl__free(&codes);
    fl__weight_fini(&a);
    fl__weight_fini(&b);
    fl__weight_fini(&packed);
}

static void random_codes_are_a_packed_weight(void **state)
{
    (void)state;
    check_random(37, 100, 4);
    check_random(48, 128, 4);
    check_random(37, 100, 8);
    check_random(64, 65, 8);
    fl_weight w;
    const fl_exec ex = {0, 1};
    assert_int_equal(fl__weight_random(&w, &ex, 16, 65537, 4, 0, &err), FL_E_UNSUPPORTED);
}

/* ---- models ------------------------------------------------------------------------------ */

static const fl_model_config llama = {.family = FL_FAMILY_LLAMA,
                                      .n_layers = 2,
                                      .hidden_size = 96,
                                      .n_heads = 6,
                                      .n_kv_heads = 2,
                                      .head_dim = 16,
                                      .ffn_size = 200,
                                      .vocab_size = 300,
                                      .n_positions = 80,
                                      .embed_size = 96,
                                      .norm_eps = 1e-5,
                                      .pre_norm = true,
                                      .final_norm = true,
                                      .rope = {FL_ROPE_DEFAULT, 10000, 1, 0, 0, 0}};
static const fl_model_config opt = {.family = FL_FAMILY_OPT,
                                    .n_layers = 2,
                                    .hidden_size = 48,
                                    .n_heads = 4,
                                    .n_kv_heads = 4,
                                    .head_dim = 12,
                                    .ffn_size = 130,
                                    .vocab_size = 300,
                                    .n_positions = 80,
                                    .embed_size = 24,
                                    .norm_eps = 1e-5,
                                    .tied_head = true,
                                    .attn_bias = true,
                                    .mlp_bias = true};

/* Finite logits behind 70 tokens, the same alone and in a window. */
static void check_runs(const fl_model *m)
{
    enum { T = 70 };
    const fl_exec ex = {fl__isa_detect(), 1};
    const fl_kv_options o = fl__model_kv_options(m, 2, T);
    const size_t n_vocab = (size_t)m->cfg.vocab_size;
    int32_t ids[T];
    float *whole = fl__alloc(n_vocab, sizeof *whole), *one = fl__alloc(n_vocab, sizeof *one);
    const size_t width = (size_t)m->cfg.embed_size;
    fl_workspace *ws;
    fl_kv_cache *kv;
    double size = 0;
    for (int i = 0; i < T; i++) ids[i] = i * 31 % m->cfg.vocab_size;
    assert_int_equal(fl__kv_new(&kv, &o, &err), FL_OK);
    assert_int_equal(fl__workspace_new(&ws, m, &ex, T, &err), FL_OK);
    const fl_span window = {0, 0, T};
    const float *hidden = fl__model_forward(m, &ex, ws, kv, ids, &window, 1);
    fl__model_logits(m, &ex, ws, hidden + (T - 1) * width, 1, whole);
    for (int i = 0; i < T; i++) {
        const fl_span span = {1, i, 1};
        hidden = fl__model_forward(m, &ex, ws, kv, ids + i, &span, 1);
    }
    fl__model_logits(m, &ex, ws, hidden, 1, one);
    assert_memory_equal(one, whole, n_vocab * sizeof *one);
    for (size_t i = 0; i < n_vocab; i++) size += fabs((double)whole[i]);
    assert_true(isfinite(size) && size > 1e-3 && size < 1e6);
    fl__workspace_free(&ws);
    fl__kv_free(&kv);
    fl__free(&whole);
    fl__free(&one);
}

static void every_method_and_family_runs(void **state)
{
    (void)state;
    static const fl_synth kinds[] = {
        {"flatquant", 4, 4, 4, 16, NULL, false},   {"flatquant", 4, 8, 16, 8, NULL, false},
        {"flattenquant", 8, 8, 8, 8, NULL, false}, {"flattenquant", 4, 4, 16, 16, NULL, false},
        {"rtn", 8, 8, 16, 16, NULL, false},        {"none", 16, 16, 16, 16, NULL, false},
        {"none", 16, 16, 4, 8, NULL, false},
    };
    const fl_exec ex = {fl__isa_detect(), 2};
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++)
        for (int family = 0; family < 2; family++) {
            fl_model *m;
            const size_t before = fl__mem_get().now_bytes;
            if (fl__synth_model(&m, family ? &opt : &llama, &kinds[i], &ex, &err))
                fail_msg("%s", err.text);
            assert_int_equal(m->blocks[1].linear[FL_LIN_DOWN].w_bits, kinds[i].w_bits);
            assert_int_equal(m->head.w_bits, kinds[i].head_bits);
            check_runs(m);
            fl__model_close(&m);
            assert_int_equal(fl__mem_get().now_bytes, before);
        }
}

static void transforms_have_the_sizes_of_flatquant(void **state)
{
    (void)state;
    const fl_synth o = {"flatquant", 4, 4, 4, 16, NULL, false};
    const fl_exec ex = {fl__isa_detect(), 1};
    static const int sizes[FL_N_SITES][2] = {{8, 12}, {6, 16}, {8, 12}, {10, 20}};
    fl_model *m;
    assert_int_equal(fl__synth_model(&m, &llama, &o, &ex, &err), FL_OK);
    for (int s = 0; s < FL_N_SITES; s++) {
        const fl_transform *t = &m->blocks[0].site[s].transform;
        assert_int_equal(t->n1, sizes[s][0]);
        assert_int_equal(t->n2, sizes[s][1]);
        assert_true(t->left && (s == FL_SITE_O) == !t->right);
    }
    assert_int_equal(m->blocks[1].head_transform_k.n2, 16);
    fl__model_close(&m);
}

static void the_opponent_borrows(void **state)
{
    (void)state;
    const fl_exec ex = {fl__isa_detect(), 1};
    const fl_synth o = {"rtn", 4, 4, 16, 16, NULL, false};
    fl_model *m, *wide;
    assert_int_equal(fl__synth_model(&m, &llama, &o, &ex, &err), FL_OK);
    const fl_synth other = {"none", 16, 16, 16, 16, m, false};
    assert_int_equal(fl__synth_model(&wide, &llama, &other, &ex, &err), FL_OK);
    assert_ptr_equal(wide->embed.w, m->embed.w);
    assert_ptr_equal(wide->head.w, m->head.w);
    assert_true(wide->weight_bytes > m->weight_bytes);
    check_runs(wide);
    fl__model_close(&wide);
    check_runs(m);
    fl__model_close(&m);
}

static void running_out_of_memory_leaves_nothing(void **state)
{
    (void)state;
    const fl_exec ex = {0, 1};
    const fl_synth o = {"flatquant", 4, 4, 4, 8, NULL, false};
    const fl__mem_stats before = fl__mem_get();
    fl_status st = FL_E_NOMEM;
    for (uint64_t n = 1; st; n++) {
        fl_model *m;
        fl__mem_fail_after(n);
        st = fl__synth_model(&m, &llama, &o, &ex, &err);
        fl__mem_fail_after(0);
        if (st) assert_int_equal(st, FL_E_NOMEM);
        fl__model_close(&m);
        assert_int_equal(fl__mem_get().now_bytes, before.now_bytes);
        assert_true(n < 1000);
    }
}

/* ---- shapes, rivals ---------------------------------------------------------------------- */

static void built_in_shapes_are_those_models(void **state)
{
    (void)state;
    fl_model_config cfg;
    assert_int_equal(fl__bench_shape(&cfg, "llama3-8b", &err), FL_OK);
    assert_true(cfg.n_layers == 32 && cfg.ffn_size == 14336 && cfg.n_kv_heads == 8 &&
                cfg.head_dim == 128 && cfg.vocab_size == 128256 && !cfg.tied_head);
    /* 7 GB of bf16 and 1.75 GB at 4 bits for 16 layers */
    cfg.n_layers = 16;
    assert_true(fl__synth_block_bytes(&cfg, 16) == (size_t)6979321856);
    assert_true(fl__synth_block_bytes(&cfg, 4) == (size_t)6979321856 / 4);
    assert_int_equal(fl__bench_shape(&cfg, "llama2-7b", &err), FL_OK);
    assert_true(cfg.ffn_size == 11008 && cfg.n_kv_heads == 32 && cfg.vocab_size == 32000);
    assert_int_equal(fl__bench_shape(&cfg, "opt-6.7b", &err), FL_OK);
    assert_true(cfg.family == FL_FAMILY_OPT && cfg.ffn_size == 16384 && cfg.tied_head);
    assert_int_equal(fl__bench_shape(&cfg, "opt-30b", &err), FL_OK);
    assert_true(cfg.family == FL_FAMILY_OPT && cfg.n_layers == 48 && cfg.hidden_size == 7168 &&
                cfg.ffn_size == 28672 && cfg.head_dim == 128 && cfg.tied_head);
    assert_int_equal(fl__bench_shape(&cfg, "llama3-70b", &err), FL_OK);
    assert_true(cfg.n_layers == 80 && cfg.hidden_size == 8192 && cfg.ffn_size == 28672 &&
                cfg.n_kv_heads == 8 && cfg.head_dim == 128 && !cfg.tied_head);
    /* 70.55e9 weights with head and embedding: the blocks in 16 bits */
    assert_true(fl__synth_block_bytes(&cfg, 16) == (size_t)80 * 2 * 855638016);
}

static bool twos(const fl_linear *lin, const float *x, int n_rows, float *y)
{
    (void)x;
    for (int i = 0; i < n_rows * lin->n_out; i++) y[i] = 2;
    return n_rows != 3;
}

static void a_rival_takes_the_rows_that_it_has(void **state)
{
    (void)state;
    static const fl_linear_rival rival = {twos};
    const fl_exec ex = {0, 1};
    float w[2] = {3, 4}, x[3] = {1, 10, 100}, y[6];
    const fl_linear lin = {
        .n_out = 2, .n_in = 1, .w_type = FL_DTYPE_F32, .w = w, .w_bits = 16, .rival = &rival};
    void *scratch = fl__alloc(fl__linear_float_scratch_bytes(&ex), 1);
    fl__linear_float_run(&ex, &lin, x, 1, 2, y, 2, scratch);
    for (int i = 0; i < 4; i++) assert_true(y[i] == 2);
    fl__linear_float_run(&ex, &lin, x, 1, 3, y, 2, scratch);
    for (int i = 0; i < 6; i++) assert_true(y[i] == x[i / 2] * w[i % 2]);
    fl__free(&scratch);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(random_codes_are_a_packed_weight),
    cmocka_unit_test(every_method_and_family_runs),
    cmocka_unit_test(transforms_have_the_sizes_of_flatquant),
    cmocka_unit_test(the_opponent_borrows),
    cmocka_unit_test(running_out_of_memory_leaves_nothing),
    cmocka_unit_test(built_in_shapes_are_those_models),
    cmocka_unit_test(a_rival_takes_the_rows_that_it_has),
};
FL_TEST_MAIN(tests)
