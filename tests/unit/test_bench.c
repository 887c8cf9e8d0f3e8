/* test_bench.c - the document of fl_bench_kernels_run, on tiny shapes.
 * SPDX-License-Identifier: MIT */
#include "support/fl_test.h"

#include <flatiron/flatiron.h>

#include <jansson.h>
#include <math.h>
#include <string.h>

static const int shapes[][3] = {{1, 64, 128}, {40, 33, 100}};

static fl_bench_options tiny(void)
{
    fl_bench_options o;
    fl_bench_options_defaults(&o);
    o.n_threads = 1;
    o.n_repeats = 1;
    o.shapes = shapes;
    o.n_shapes = 2;
    return o;
}

static void check_row(const json_t *row)
{
    static const char *const numbers[] = {"M",  "N",    "K",                "threads",
                                          "ms", "rate", "fraction_of_floor"};
    static const char *const texts[] = {"kernel", "op", "unit"};
    static const char *const ratios[] = {"ratio_onednn_s8", "ratio_onednn_bf16"};
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++) {
        const double value = json_number_value(json_object_get(row, numbers[i]));
        assert_true(value > 0 && isfinite(value));
    }
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++)
        assert_true(json_is_string(json_object_get(row, texts[i])));
    for (size_t i = 0; i < 2; i++) {
        const json_t *ratio = json_object_get(row, ratios[i]);
        assert_true(json_is_null(ratio) || json_number_value(ratio) > 0);
    }
}

static void rows_have_the_promised_fields(void **state)
{
    const fl_bench_options o = tiny();
    char *text = NULL;
    fl_err err;
    (void)state;
    assert_int_equal(fl_bench_kernels_run(&text, &o, &err), FL_OK);
    json_t *report = json_loads(text, 0, NULL);
    json_t *machine = json_object_get(report, "machine"),
           *rows = json_object_get(report, "rows");
    assert_true(json_number_value(json_object_get(machine, "peak_tops")) > 0);
    assert_true(json_number_value(json_object_get(machine, "bandwidth_gb_s")) > 0);
    assert_true(json_is_string(json_object_get(machine, "onednn")));
    bool gemm4 = false, gemm8 = false, flatten = false;
    for (size_t i = 0; i < json_array_size(rows); i++) {
        const json_t *row = json_array_get(rows, i);
        check_row(row);
        const char *kernel = json_string_value(json_object_get(row, "kernel"));
        gemm4 = gemm4 || strstr(kernel, "a8w4");
        gemm8 = gemm8 || strstr(kernel, "a8w8");
        flatten = flatten ||
                  strcmp(json_string_value(json_object_get(row, "op")), "flatten_expand") == 0;
    }
    assert_true(gemm4 && gemm8 && flatten);
    json_decref(report);
    fl_string_free(&text);
}

static void refused(const fl_bench_options *o, const char *part)
{
    char *text = NULL;
    fl_err err;
    assert_int_equal(fl_bench_kernels_run(&text, o, &err), FL_E_USAGE);
    assert_non_null(strstr(err.text, part));
    assert_null(text);
}

static void bad_options_are_refused(void **state)
{
    static const int empty[][3] = {{0, 1, 1}}, long_K[][3] = {{1, 1, 65537}};
    fl_bench_options o = tiny();
    (void)state;
    o.filter = "no such kernel";
    refused(&o, "no such kernel");
    o = tiny();
    o.isa = "sse9";
    refused(&o, "sse9");
    o = tiny();
    o.n_repeats = 0;
    refused(&o, "0 repeats");
    o = tiny();
    o.n_shapes = 1;
    o.shapes = empty;
    refused(&o, "0x1x1");
    o.shapes = long_K;
    refused(&o, "65537");
}

static void the_filter_keeps_only_matching_rows(void **state)
{
    fl_bench_options o = tiny();
    char *text = NULL;
    fl_err err;
    (void)state;
    o.filter = "a8w4";
    assert_int_equal(fl_bench_kernels_run(&text, &o, &err), FL_OK);
    json_t *report = json_loads(text, 0, NULL), *rows = json_object_get(report, "rows");
    assert_true(json_array_size(rows) > 0);
    for (size_t i = 0; i < json_array_size(rows); i++) {
        const json_t *row = json_array_get(rows, i);
        assert_non_null(strstr(json_string_value(json_object_get(row, "kernel")), "a8w4"));
    }
    json_decref(report);
    fl_string_free(&text);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(rows_have_the_promised_fields),
    cmocka_unit_test(bad_options_are_refused),
    cmocka_unit_test(the_filter_keeps_only_matching_rows),
};

FL_TEST_MAIN(tests)
