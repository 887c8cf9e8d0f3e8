/* test_bench_tables.c - what `flatiron bench model` prints. SPDX-License-Identifier: MIT */
#include "support/fl_test.h"
#include "support/run_program.h"
#include "support/small_model.h"

#include <jansson.h>
#include <string.h>

static void the_program_prints_tables(void **state)
{
    (void)state;
    static fl_test_run_result r;
    fl_test_write_text(fl_test_path("shape.json"),
                       "{\"model_type\": \"llama\", \"vocab_size\": 128, \"hidden_size\": 64,"
                       " \"intermediate_size\": 96, \"num_hidden_layers\": 2,"
                       " \"num_attention_heads\": 4}");
    fl_test_run_program(&r, "bench model --shape shape.json -p 4 -n 2 -r 1 -t 1", NULL);
    assert_int_equal(r.exit_code, 0);
    assert_non_null(strstr(r.out, "| W4A4KV16 head 16 flatquant | prefill |"));
    assert_non_null(strstr(r.out, "ms per part:"));
    fl_test_run_program(
        &r, "bench model --shape shape.json -p 4 -n 2 -r 1 -t 1 --opponent none -o csv", NULL);
    assert_int_equal(r.exit_code, 0);
    assert_non_null(strstr(r.out, "\nW4A4KV16 head 16 flatquant,decode,"));
    assert_null(strstr(r.out, "oneDNN,"));
    fl_test_run_program(&r, "bench model --shape shape.json -p 4 -n 2 -r 1 --json", NULL);
    json_t *doc = json_loads(r.out, 0, NULL);
    assert_int_equal(json_array_size(json_object_get(doc, "rows")), 4);
    json_decref(doc);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(the_program_prints_tables),
};
FL_TEST_MAIN(tests)
