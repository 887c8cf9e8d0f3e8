/* test_verify.c - fl_verify_run: what its report says about good, odd and broken models.
 * SPDX-License-Identifier: MIT */
#include "support/broken_model.h"
#include "support/fl_test.h"
#include "support/opt_model.h"
#include "support/quantize_once.h"

#include "base/mem.h"

#include <jansson.h>
#include <string.h>

/* The report; *st and *err are the call's. */
static json_t *verify(const char *dir, fl_status *st, fl_err *err)
{
    char *text;
    json_error_t why;
    err->text[0] = '\0';
    *st = fl_verify_run(&text, dir, err);
    if (!text) fail_msg("no report: %s", err->text);
    json_t *report = json_loads(text, 0, &why);
    if (!report) fail_msg("%s: %s", why.text, text);
    fl_string_free(&text);
    return report;
}

static size_t length(const json_t *report, const char *key)
{
    const json_t *list = json_object_get(report, key);
    assert_true(json_is_array(list));
    return json_array_size(list);
}

static bool lists(const json_t *report, const char *key, const char *part)
{
    json_t *text;
    size_t i;
    json_array_foreach(json_object_get(report, key), i, text)
    {
        if (strstr(json_string_value(text), part)) return true;
    }
    return false;
}

static void check_good(const char *dir, const char *quant_method)
{
    fl_status st;
    fl_err err;
    json_t *report = verify(dir, &st, &err);
    if (st) fail_msg("%s: %s", dir, err.text);
    assert_int_equal(length(report, "problems"), 0);
    assert_int_equal(length(report, "unexpected"), 0);
    assert_string_equal(json_string_value(json_object_get(report, "quant_method")),
                        quant_method);
    assert_string_equal(json_string_value(json_object_get(report, "model")), dir);
    assert_true(json_integer_value(json_object_get(report, "tensors")) > 10);
    assert_true(json_integer_value(json_object_get(report, "bytes")) > 10000);
    json_decref(report);
}

static void good_models_have_no_problems(void **state)
{
    (void)state;
    fl_opt_model opt = fl_test_opt_model_defaults();
    opt.pre_norm = false;
    opt.embed_size = 32;
    check_good(FL_TEST_TINY_LLAMA, "none");
    const char *dir = fl_test_opt_model("opt", &opt);
    check_good(dir, "none");
    fl_quantize_options o = fl_test_quantize_options(dir, "quantised", "flattenquant");
    check_good(fl_test_quantize(&o, NULL), "flattenquant");
    o = fl_test_quantize_options(NULL, "w4a16", "rtn");
    o.w_bits = 4;
    o.a_bits = 16;
    o.w_granularity = "tensor";
    check_good(fl_test_quantize(&o, NULL), "rtn");
}

static void unused_tensors_are_listed_but_no_problem(void **state)
{
    (void)state;
    fl_status st;
    fl_err err;
    const char *dir = fl_test_path("m");
    fl_test_link_model(dir, FL_TEST_TINY_LLAMA);
    fl_test_patch_header(
        dir, "model.safetensors",
        "{\"model.layers.0.rotary_emb.inv_freq\": {\"dtype\": \"F32\", \"shape\": [0], "
        "\"data_offsets\": [0, 0]}}");
    json_t *report = verify(dir, &st, &err);
    assert_int_equal(st, FL_OK);
    assert_int_equal(length(report, "problems"), 0);
    assert_int_equal(length(report, "unexpected"), 1);
    assert_true(lists(report, "unexpected", "inv_freq"));
    json_decref(report);
    /* a layer less in the config: its tensors are left over */
    fl_test_link_model(dir, FL_TEST_TINY_LLAMA);
    fl_test_patch_json(dir, "config.json", "{\"num_hidden_layers\": 3}");
    report = verify(dir, &st, &err);
    assert_int_equal(st, FL_OK);
    assert_int_equal(length(report, "unexpected"), 9);
    json_decref(report);
}

static void all_problems_are_listed(void **state)
{
    (void)state;
    static const uint16_t nan = 0x7fc0;
    fl_status st;
    fl_err err;
    const char *dir = fl_test_path("m");
    fl_test_link_model(dir, FL_TEST_TINY_LLAMA);
    fl_test_poke(dir, "model.layers.1.mlp.up_proj.weight", 20, &nan, 2);
    fl_test_poke(dir, "model.norm.weight", 0, &nan, 2);
    fl_test_patch_header(dir, "model.safetensors",
                         "{\"model.layers.2.mlp.up_proj.weight\": {\"shape\": [160, 448]}, "
                         "\"model.layers.3.mlp.up_proj.weight\": {\"dtype\": \"I16\"}}");
    fl_test_patch_json(dir, "config.json", "{\"mlp_bias\": true}");
    json_t *report = verify(dir, &st, &err);
    assert_int_equal(st, FL_E_INPUT);
    assert_int_equal(length(report, "problems"),
                     4 + 4 * 3); /* and a bias for three linears each */
    assert_true(lists(report, "problems", "model.norm.weight: element 0 is nan"));
    assert_true(lists(report, "problems", "layers.1.mlp.up_proj.weight: element 10 is nan"));
    assert_true(
        lists(report, "problems", "layers.2.mlp.up_proj.weight: its shape is [160, 448]"));
    assert_true(lists(report, "problems", "layers.3.mlp.up_proj.weight: its dtype is I16"));
    assert_true(lists(report, "problems", "layers.0.mlp.gate_proj.bias"));
    assert_non_null(strstr(err.text, "first of 16 problems"));
    json_decref(report);
}

static void codes_and_scales_are_looked_at(void **state)
{
    (void)state;
    static const int8_t code = -128;
    static const float scale = -1;
    fl_status st;
    fl_err err;
    const char *dir = fl_test_path("m");
    fl_quantize_options o = fl_test_quantize_options(NULL, "out", "rtn");
    o.w_bits = o.a_bits = 8;
    fl_test_link_model(dir, fl_test_quantize(&o, NULL));
    fl_test_poke(dir, "model.layers.1.mlp.up_proj.weight", 7, &code, 1);
    fl_test_poke(dir, "model.layers.2.mlp.up_proj.weight_scale", 8, &scale, 4);
    json_t *report = verify(dir, &st, &err);
    assert_int_equal(st, FL_E_INPUT);
    assert_int_equal(length(report, "problems"), 2);
    assert_true(lists(report, "problems", "up_proj.weight: element 7 is -128"));
    assert_true(lists(report, "problems", "up_proj.weight_scale: element 2 is -1"));
    json_decref(report);
}

static void models_that_do_not_open_have_a_report_too(void **state)
{
    (void)state;
    fl_status st;
    fl_err err;
    const char *dir = fl_test_path("m");
    json_t *report = verify(fl_test_path("nothing"), &st, &err);
    assert_int_equal(st, FL_E_INPUT);
    assert_int_equal(length(report, "problems"), 1);
    assert_true(json_is_null(json_object_get(report, "quant_method")));
    assert_int_equal(json_integer_value(json_object_get(report, "tensors")), 0);
    json_decref(report);
    fl_test_link_model(dir, FL_TEST_TINY_LLAMA);
    fl_test_patch_json(dir, "config.json", "{\"model_type\": \"gpt2\"}");
    report = verify(dir, &st, &err);
    assert_int_equal(st, FL_E_UNSUPPORTED);
    assert_true(lists(report, "problems", "gpt2"));
    json_decref(report);
    report = verify("/no/such/\xff\xfe/place", &st, &err); /* no UTF-8 */
    assert_int_equal(st, FL_E_INPUT);
    assert_string_equal(json_string_value(json_object_get(report, "model")),
                        "/no/such/\?\?/place");
    json_decref(report);
}

static void running_out_of_memory_leaves_nothing(void **state)
{
    (void)state;
    fl_opt_model opt = fl_test_opt_model_defaults();
    const char *dir = fl_test_opt_model("opt", &opt);
    const size_t before = fl__mem_get().now_bytes;
    for (unsigned n = 1;; n++) {
        char *text;
        fl__mem_fail_after(n);
        const fl_status st = fl_verify_run(&text, dir, NULL);
        fl_string_free(&text);
        assert_int_equal(fl__mem_get().now_bytes, before);
        if (!st) break;
        assert_int_equal(st, FL_E_NOMEM);
    }
    fl__mem_fail_after(0);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(good_models_have_no_problems),
    cmocka_unit_test(unused_tensors_are_listed_but_no_problem),
    cmocka_unit_test(all_problems_are_listed),
    cmocka_unit_test(codes_and_scales_are_looked_at),
    cmocka_unit_test(models_that_do_not_open_have_a_report_too),
    cmocka_unit_test(running_out_of_memory_leaves_nothing),
};
FL_TEST_MAIN(tests)
