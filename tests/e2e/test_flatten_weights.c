/* test_flatten_weights.c - models with columns of weights in digits: what they are, and that
 * everything that reads models reads them.
 * SPDX-License-Identifier: MIT */
#include "support/broken_model.h"
#include "support/fl_test.h"
#include "support/quantize_once.h"

#include "format/safetensors.h"

#include <jansson.h>
#include <string.h>

static json_t *parse(char *text)
{
    json_error_t why;
    json_t *v = json_loads(text, 0, &why);
    if (!v) fail_msg("report: %s", why.text);
    fl_string_free(&text);
    return v;
}

static double summary(const json_t *report, const char *key)
{
    const json_t *v = json_object_get(json_object_get(report, "summary"), key);
    if (!json_is_number(v)) fail_msg("no number at %s", key);
    return json_number_value(v);
}

/* Error left in the weights, over all linears. */
static double weight_error(const json_t *report)
{
    double sum = 0;
    size_t i, k;
    json_t *site, *error;
    json_array_foreach(json_object_get(report, "sites"), i, site)
    {
        json_array_foreach(json_object_get(site, "gptq_error"), k, error)
        {
            sum += json_number_value(error);
        }
    }
    return sum;
}

static fl_quantize_options options(const char *out, int bits, const char *granularity)
{
    fl_quantize_options o = fl_test_quantize_options(NULL, out, "flattenquant");
    o.w_bits = o.a_bits = bits;
    o.w_granularity = granularity;
    o.alpha = 0.5;
    o.beta = 1.3;
    return o;
}

static void check_verified(const char *dir)
{
    char *report;
    fl_err err = {""};
    if (fl_verify_run(&report, dir, &err)) fail_msg("%s", err.text);
    json_t *v = parse(report);
    assert_int_equal(json_array_size(json_object_get(v, "unexpected")), 0);
    json_decref(v);
}

/* Copies and codes of every site agree: [N, K + sum (copies - 1)]; how many sites have any. */
static int check_tensors(const char *dir, int bits)
{
    static const char *const sites[][2] = {{"self_attn.q_proj", "self_attn.v_proj"},
                                           {"self_attn.o_proj", "self_attn.o_proj"},
                                           {"mlp.gate_proj", "mlp.up_proj"},
                                           {"mlp.down_proj", "mlp.down_proj"}};
    fl_tensors *set;
    int n = 0;
    assert_int_equal(fl__tensors_open(&set, dir, NULL), FL_OK);
    for (int layer = 0; layer < 4; layer++)
        for (int s = 0; s < 4; s++) {
            char name[128];
            (void)snprintf(name, sizeof name, "model.layers.%d.%s.weight_copies", layer,
                           sites[s][0]);
            const fl_tensor_view *copies = fl__tensors_find(set, name);
            (void)snprintf(name, sizeof name, "model.layers.%d.%s.weight", layer, sites[s][1]);
            const fl_tensor_view *weight = fl__tensors_find(set, name);
            if (!copies) continue;
            int64_t columns = 0;
            for (int64_t c = 0; c < copies->n_elements; c++)
                columns += ((const uint16_t *)copies->data)[c];
            assert_true(columns > copies->n_elements);
            assert_true(weight->dims[1] == (bits == 4 ? (columns + 1) / 2 : columns));
            n++;
        }
    fl__tensors_close(&set);
    return n;
}

static void split_columns_lose_less(void **state)
{
    (void)state;
    static const char *const granularities[] = {"tensor", "channel"};
    for (int bits = 4; bits <= 8; bits += 4)
        for (int g = 0; g < 2; g++) {
            char plain[16], split[16], *text;
            (void)snprintf(plain, sizeof plain, "plain%d%d", bits, g);
            (void)snprintf(split, sizeof split, "split%d%d", bits, g);
            fl_quantize_options a = options(plain, bits, granularities[g]),
                                b = options(split, bits, granularities[g]);
            b.flatten_weights = FL_ON;
            b.n_threads = 2;
            (void)fl_test_quantize(&a, &text);
            json_t *without = parse(text);
            (void)fl_test_quantize(&b, &text);
            json_t *with = parse(text);
            const double ratio = summary(with, "weight_flatten_ratio");
            assert_true(summary(without, "weight_flatten_ratio") == 0);
            assert_true(summary(without, "stored_weight_bits") == bits);
            assert_true(ratio > 0.005 && ratio <= 0.3);
            assert_true(summary(with, "stored_weight_bits") == bits * (1 + ratio));
            assert_true(weight_error(with) < 0.97 * weight_error(without));
            check_verified(b.out_dir);
            assert_int_equal(check_tensors(a.out_dir, bits), 0);
            assert_true(check_tensors(b.out_dir, bits) >= 8);
            json_decref(without);
            json_decref(with);
        }
}

static void threads_do_not_change_a_byte(void **state)
{
    (void)state;
    fl_quantize_options a = options("one", 0, "channel"), b = options("two", 0, "channel");
    a.flatten_weights = b.flatten_weights = FL_ON;
    a.weights = b.weights = "rtn";
    b.n_threads = 2;
    (void)fl_test_quantize(&a, NULL);
    (void)fl_test_quantize(&b, NULL);
    fl_test_same_dirs(a.out_dir, b.out_dir);
    check_verified(a.out_dir);
}

/* The dry run's figures, at thresholds that do and do not fill the cap. */
static void estimates_hold(void **state)
{
    (void)state;
    static const double betas[] = {0.8, 1.3, 1.6};
    for (int i = 0; i < 3; i++) {
        char out[16], *text;
        (void)snprintf(out, sizeof out, "out%d", i);
        fl_quantize_options o = options(out, 4, "tensor");
        o.flatten_weights = FL_ON;
        o.weight_beta = betas[i];
        (void)fl_test_quantize(&o, &text);
        json_t *report = parse(text), *memory = json_object_get(report, "memory");
        const double said =
            json_number_value(json_object_get(memory, "estimated_peak_bytes")) /
            json_number_value(json_object_get(memory, "peak_bytes"));
        if (!(said > 0.9 && said < 1.1))
            fail_msg("beta %g: estimate is %g of it", betas[i], said);
        json_decref(report);
    }
}

/* One problem in the list, not one for every linear behind the site. */
static void damaged_copies_are_one_problem(void **state)
{
    (void)state;
    static const char zero[2] = {0, 0};
    fl_quantize_options o = options("good", 4, "tensor");
    char *text;
    fl_err err = {""};
    o.flatten_weights = FL_ON;
    const char *good = fl_test_quantize(&o, NULL), *dir = fl_test_path("m");
    fl_test_link_model(dir, good);
    fl_test_poke(dir, "model.layers.1.self_attn.q_proj.weight_copies", 4, zero, 2);
    assert_int_equal(fl_verify_run(&text, dir, &err), FL_E_INPUT);
    assert_non_null(strstr(err.text, "q_proj.weight_copies: element 2 is 0"));
    json_t *report = parse(text);
    assert_int_equal(json_array_size(json_object_get(report, "problems")), 1);
    json_decref(report);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(split_columns_lose_less),
    cmocka_unit_test(threads_do_not_change_a_byte),
    cmocka_unit_test(estimates_hold),
    cmocka_unit_test(damaged_copies_are_one_problem),
};
FL_TEST_MAIN(tests)
