/* test_bench_model.c - flatiron bench model on a tiny shape: the document, and options that
 * make no sense. SPDX-License-Identifier: MIT */
#include "support/fl_test.h"
#include "support/small_model.h"

#include "base/mem.h"

#include <flatiron/flatiron.h>

#include <jansson.h>
#include <math.h>
#include <string.h>

static fl_err err;

static const char *tiny_shape(void)
{
    const char *path = fl_test_path("shape.json");
    fl_test_write_text(path, "{\"model_type\": \"llama\", \"vocab_size\": 128,"
                             " \"hidden_size\": 64, \"intermediate_size\": 96,"
                             " \"num_hidden_layers\": 4, \"num_attention_heads\": 4,"
                             " \"num_key_value_heads\": 2, \"max_position_embeddings\": 600,"
                             " \"quantization_config\": {\"quant_method\": \"flatiron\","
                             " \"version\": 1}}");
    return path;
}

static fl_bench_model_options tiny(void)
{
    fl_bench_model_options o;
    fl_bench_model_options_defaults(&o);
    o.shape = tiny_shape();
    o.n_layers = 2;
    o.n_prompt = 5;
    o.n_predict = 3;
    o.n_repeats = 2;
    o.n_threads = 1;
    return o;
}

static json_t *run(const fl_bench_model_options *o)
{
    char *text;
    if (fl_bench_model_run(&text, o, &err)) fail_msg("%s", err.text);
    json_t *doc = json_loads(text, 0, NULL);
    fl_string_free(&text);
    assert_non_null(doc);
    return doc;
}

static double number(const json_t *o, const char *name)
{
    const json_t *v = json_object_get(o, name);
    if (!json_is_number(v)) fail_msg("%s is no number", name);
    return json_number_value(v);
}

static void check_row(const json_t *row, const fl_bench_model_options *o)
{
    const char *phase = json_string_value(json_object_get(row, "phase"));
    const bool decode = strcmp(phase, "decode") == 0;
    const double ms = number(row, "ms"), layer = number(row, "ms_per_layer");
    const json_t *parts = json_object_get(row, "parts_ms");
    const double head = number(parts, "head"), tokens = number(row, "tokens");
    assert_true(tokens == o->n_sequences * (decode ? 1 : o->n_prompt));
    assert_true(ms > 0 && fabs(number(row, "tokens_per_s") - tokens / ms * 1e3) < 1e-6 * 1e6);
    assert_true(fabs(layer * 2 + head - ms) < 1e-9 * ms + 1e-12);
    assert_true(fabs(layer * 4 + head - number(row, "ms_all_layers")) < 1e-9 * ms + 1e-12);
    assert_int_equal(json_object_size(parts), 8);
    const char *key;
    json_t *part;
    json_object_foreach((json_t *)(uintptr_t)parts, key, part)
        assert_true(json_number_value(part) >= 0);
    assert_true(number(row, "weight_bytes") > 0 && number(row, "kv_bytes") > 0);
}

static void the_document_has_what_is_promised(void **state)
{
    (void)state;
    fl_bench_model_options o = tiny();
    for (int i = 0; i < 3; i++) {
        o.method = i == 0 ? "flatquant" : i == 1 ? "flattenquant" : "rtn";
        o.n_sequences = 1 + i;
        o.n_prompt = i == 1 ? 300 : 5; /* in chunks of 256 */
        o.head_bits = i == 1 ? 8 : 16;
        o.kv_bits = i == 1 ? 16 : 4;
        json_t *doc = run(&o), *rows = json_object_get(doc, "rows");
        const json_t *machine = json_object_get(doc, "machine");
        assert_int_equal(json_array_size(rows), 4);
        for (size_t r = 0; r < 4; r++) check_row(json_array_get(rows, r), &o);
        for (size_t r = 0; r < 4; r += 2) { /* the model; behind it its opponent */
            assert_true(number(json_array_get(rows, r), "ratio_bf16") > 0);
            assert_true(number(json_array_get(rows, r), "fraction_of_floor") > 0);
            assert_true(json_is_null(json_object_get(json_array_get(rows, r + 1),
                                                     "ratio_bf16")));
            assert_true(number(json_array_get(rows, r), "weight_bytes") <
                        number(json_array_get(rows, r + 1), "weight_bytes"));
        }
        assert_true(number(machine, "peak_tops") > 0 && number(machine, "bandwidth_gb_s") > 0);
        assert_true(json_is_string(json_object_get(machine, "cpu")));
        assert_true(json_is_string(json_object_get(machine, "compiler")));
        assert_true(json_is_string(json_object_get(machine, "commit")));
        const json_t *shape = json_object_get(doc, "shape");
        assert_int_equal(number(shape, "layers"), 2);
        assert_int_equal(number(shape, "layers_of_shape"), 4);
        assert_non_null(
            strstr(json_string_value(json_object_get(shape, "note")), "4 x the time per"));
        json_decref(doc);
    }
}

static void a_model_alone_has_no_opponent(void **state)
{
    (void)state;
    fl_bench_model_options o = tiny();
    o.alone = true;
    o.w_bits = 16;
    json_t *doc = run(&o), *rows = json_object_get(doc, "rows");
    assert_int_equal(json_array_size(rows), 2);
    assert_true(json_is_null(json_object_get(json_array_get(rows, 0), "ratio_bf16")));
    json_decref(doc);
}

static void running_out_of_memory_leaves_nothing(void **state)
{
    (void)state;
    const fl_bench_model_options o = tiny();
    const size_t before = fl__mem_get().now_bytes;
    fl_status st = FL_E_NOMEM;
    int n_failed = 0;
    for (uint64_t n = 1; st; n += 1 + n / 8) {
        char *text;
        fl__mem_fail_after(n);
        st = fl_bench_model_run(&text, &o, &err);
        fl__mem_fail_after(0);
        if (st) assert_int_equal(st, FL_E_NOMEM);
        n_failed += st != FL_OK;
        fl_string_free(&text);
        assert_int_equal(fl__mem_get().now_bytes, before);
    }
    assert_true(n_failed > 20);
}

static void refused(const fl_bench_model_options *o, fl_status wanted, const char *part)
{
    char *text;
    assert_int_equal(fl_bench_model_run(&text, o, &err), wanted);
    assert_null(text);
    if (!strstr(err.text, part)) fail_msg("%s", err.text);
}

static void options_without_sense_are_refused(void **state)
{
    (void)state;
    fl_bench_model_options o = tiny();
    o.n_layers = 5;
    refused(&o, FL_E_USAGE, "give 1 to 4");
    o = tiny();
    o.n_prompt = 600;
    refused(&o, FL_E_USAGE, "context");
    o = tiny();
    o.method = "gptq";
    refused(&o, FL_E_USAGE, "method");
    o = tiny();
    o.w_bits = 3;
    refused(&o, FL_E_USAGE, "w_bits");
    o = tiny();
    o.n_sequences = 0;
    refused(&o, FL_E_USAGE, "sequences");
    o = tiny();
    o.shape = "llama9";
    refused(&o, FL_E_INPUT, "no such shape");
    fl_test_write_text(fl_test_path("shape.json"), "{\"model_type\": \"mamba\"}");
    o.shape = fl_test_path("shape.json");
    refused(&o, FL_E_UNSUPPORTED, "mamba");
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(the_document_has_what_is_promised),
    cmocka_unit_test(a_model_alone_has_no_opponent),
    cmocka_unit_test(running_out_of_memory_leaves_nothing),
    cmocka_unit_test(options_without_sense_are_refused),
};
FL_TEST_MAIN(tests)
