/* test_kv_bits.c - models with a quantised KV cache: what is evaluated is what is generated,
 * token by token; everything says which bits keys and values have; a stopped run ends in the
 * same bytes.
 * SPDX-License-Identifier: MIT */
#include "support/decode_once.h"
#include "support/fl_test.h"
#include "support/opt_model.h"
#include "support/quantize_once.h"
#include "support/small_model.h"

#include "format/safetensors.h"

#include <jansson.h>
#include <stdio.h>

static fl_err err;

static fl_engine *open_engine(const char *dir)
{
    fl_engine_options o;
    fl_engine *engine;
    fl_engine_options_defaults(&o);
    o.n_threads = 1;
    if (fl_engine_open(&engine, dir, &o, &err)) fail_msg("%s", err.text);
    return engine;
}

static void what_is_evaluated_is_generated(void **state)
{
    (void)state;
    static const struct {
        int kv, k, v, w_bits;
        const char *method, *format;
    } cases[] = {{4, 0, 0, 4, "rtn", "int4"},
                 {2, 0, 0, 8, "rtn", "int2"},
                 {8, 0, 3, 8, "smoothquant", "int8/int3"},
                 {16, 4, 0, 8, "flattenquant", "int4/bf16"}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char name[16];
        (void)snprintf(name, sizeof name, "out%zu", i);
        fl_quantize_options o = fl_test_quantize_options(NULL, name, cases[i].method);
        o.w_bits = o.a_bits = cases[i].w_bits;
        o.kv_bits = cases[i].kv;
        o.k_bits = cases[i].k;
        o.v_bits = cases[i].v;
        fl_test_decodes_as_it_evaluates(fl_test_quantize(&o, NULL), cases[i].format);
    }
}

static void opt_too(void **state)
{
    (void)state;
    const fl_opt_model m = fl_test_opt_model_defaults(); /* heads of 12: tails of all kinds */
    fl_quantize_options o =
        fl_test_quantize_options(fl_test_opt_model("opt", &m), "out", "flattenquant");
    o.kv_bits = 3;
    fl_test_decodes_as_it_evaluates(fl_test_quantize(&o, NULL), "int3");
}

/* Of a directory; names the tensor. */
static double sum_of_sizes(const char *dir, const char *tensor)
{
    fl_tensors *set;
    double sum = 0;
    assert_int_equal(fl__tensors_open(&set, dir, NULL), FL_OK);
    const fl_tensor_view *t = fl__tensors_find(set, tensor);
    assert_non_null(t);
    assert_int_equal(t->dtype, FL_DTYPE_F32);
    for (int64_t i = 0; i < t->n_elements; i++) {
        const double x = (double)((const float *)t->data)[i];
        sum += x < 0 ? -x : x;
    }
    fl__tensors_close(&set);
    return sum;
}

/* Neither the checkpoint's nor that of bias correction is written. */
static void the_key_bias_of_opt_is_dropped(void **state)
{
    (void)state;
    static const char *const k = "model.decoder.layers.1.self_attn.k_proj.bias";
    static const char *const v = "model.decoder.layers.1.self_attn.v_proj.bias";
    const fl_opt_model m = fl_test_opt_model_defaults();
    fl_quantize_options o =
        fl_test_quantize_options(fl_test_opt_model("opt", &m), "kv", "flattenquant");
    o.k_bits = 4;
    const char *dir = fl_test_quantize(&o, NULL);
    assert_true(sum_of_sizes(dir, k) == 0);
    assert_true(sum_of_sizes(dir, v) > 0);
    o.k_bits = 16;
    o.v_bits = 4;
    o.out_dir = fl_test_path("v");
    assert_true(sum_of_sizes(fl_test_quantize(&o, NULL), k) > 0);
}

static bool stop_after(void *user)
{
    return --*(int *)user < 0;
}

/* The lane behind the quantised blocks reads the quantised cache, before and after a stop. */
static void stopped_runs_continue_to_the_same_bytes(void **state)
{
    (void)state;
    const fl_opt_model m = fl_test_opt_model_defaults();
    const char *model = fl_test_opt_model("opt", &m);
    fl_quantize_options o = fl_test_quantize_options(model, "whole", "flattenquant");
    o.kv_bits = 2;
    const char *whole = fl_test_quantize(&o, NULL);
    o.out_dir = fl_test_path("cut");
    o.should_stop = stop_after;
    for (int limit = 4;; limit += 5) {
        int left = limit;
        char *report;
        o.user = &left;
        const fl_status st = fl_quantize_run(&report, &o, &err);
        fl_string_free(&report);
        o.resume = true;
        if (st == FL_OK) break;
        if (st != FL_E_INTERRUPTED) fail_msg("%s", err.text);
        assert_true(limit < 200);
    }
    fl_test_same_dirs(whole, o.out_dir);
}

/* Blocks are rounded behind the cache that they will run with: bias correction sees the bits of
 * K and those of V. */
static void calibration_reads_the_quantised_cache(void **state)
{
    (void)state;
    static const int bits[][2] = {{16, 16}, {2, 16}, {16, 2}};
    const fl_small_model m = fl_test_small_model_defaults();
    const char *model = fl_test_small_model("m", &m);
    double sum[3];
    for (int i = 0; i < 3; i++) {
        fl_quantize_options o =
            fl_test_quantize_options(model, i == 0 ? "b" : i == 1 ? "k" : "v", "flattenquant");
        o.k_bits = bits[i][0];
        o.v_bits = bits[i][1];
        sum[i] = sum_of_sizes(fl_test_quantize(&o, NULL), "model.layers.1.mlp.gate_proj.bias");
        for (int k = 0; k < i; k++) assert_true(sum[i] != sum[k]);
    }
}

static json_t *inspect(const char *dir)
{
    char *text;
    json_error_t why;
    if (fl_inspect_run(&text, dir, &err)) fail_msg("%s", err.text);
    json_t *doc = json_loads(text, 0, &why);
    if (!doc) fail_msg("%s", why.text);
    fl_string_free(&text);
    return doc;
}

static void check_inspect(const char *dir, const char *kv_format, int bytes_per_token)
{
    json_t *doc = inspect(dir);
    assert_string_equal(json_string_value(json_object_get(doc, "kv_format")), kv_format);
    assert_int_equal(json_integer_value(json_object_get(doc, "kv_bytes_per_token")),
                     bytes_per_token);
    json_decref(doc);
}

static void everything_says_the_bits(void **state)
{
    (void)state;
    const fl_small_model m = fl_test_small_model_defaults(); /* two KV heads of 16, 2 layers */
    const char *model = fl_test_small_model("m", &m);
    fl_quantize_options o = fl_test_quantize_options(model, "out", "rtn");
    o.w_bits = o.a_bits = 8;
    o.kv_bits = 4;
    o.v_bits = 2;
    const char *dir = fl_test_quantize(&o, NULL);
    json_t *doc = inspect(dir);
    const json_t *q = json_object_get(doc, "quantization");
    assert_int_equal(json_integer_value(json_object_get(q, "k_bits")), 4);
    assert_int_equal(json_integer_value(json_object_get(q, "v_bits")), 2);
    json_decref(doc);
    check_inspect(dir, "int4/int2", 2 * 2 * ((8 + 3) + (4 + 3)));
    check_inspect(model, "f32", 2 * 2 * 2 * 16 * 4);
    fl_eval_options e;
    fl_eval_result r;
    fl_eval_options_defaults(&e);
    e.model_dir = dir;
    e.ppl_path = fl_test_path("text");
    e.seq_len = 64;
    fl_test_write_text(e.ppl_path, "One window of text at least, of sixty-four tokens of one "
                                   "byte each, is what an evaluation asks for.");
    if (fl_eval_run(&r, &e, &err)) fail_msg("%s", err.text);
    assert_string_equal(r.model.kv_format, "int4/int2");
}

/* Nothing but the cache is quantised. */
static void the_cache_alone(void **state)
{
    (void)state;
    fl_quantize_options o = fl_test_quantize_options(NULL, "out", "rtn");
    o.w_bits = o.a_bits = 16;
    o.kv_bits = 4;
    fl_engine_info info;
    fl_engine *engine = open_engine(fl_test_quantize(&o, NULL));
    fl_engine_get_info(engine, &info);
    assert_true(info.w_bits == 16 && info.a_bits == 16);
    assert_string_equal(info.kv_format, "int4");
    fl_engine_close(&engine);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(what_is_evaluated_is_generated),
    cmocka_unit_test(opt_too),
    cmocka_unit_test(the_key_bias_of_opt_is_dropped),
    cmocka_unit_test(stopped_runs_continue_to_the_same_bytes),
    cmocka_unit_test(calibration_reads_the_quantised_cache),
    cmocka_unit_test(everything_says_the_bits),
    cmocka_unit_test(the_cache_alone),
};
FL_TEST_MAIN(tests)
