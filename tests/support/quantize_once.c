/* quantize_once.c - short quantisations, and comparing their output.
 * SPDX-License-Identifier: MIT */
#include "support/quantize_once.h"

#include "support/fl_test.h"

#include "base/file.h"
#include "base/mem.h"

#include <string.h>

fl_quantize_options fl_test_quantize_options(const char *model_dir, const char *out,
                                             const char *method)
{
    fl_quantize_options o;
    fl_quantize_options_defaults(&o);
    o.model_dir = model_dir ? model_dir : FL_TEST_TINY_LLAMA;
    o.out_dir = fl_test_path(out);
    o.method = method;
    o.calib_path = FL_SOURCE_DIR "/data/prose.txt";
    o.n_samples = 4;
    o.seq_len = 64;
    o.n_threads = 1;
    return o;
}

const char *fl_test_quantize(const fl_quantize_options *o, char **report)
{
    char *text = NULL;
    fl_err err = {""};
    if (fl_quantize_run(&text, o, &err)) fail_msg("%s", err.text);
    assert_non_null(text);
    if (report) *report = text;
    else fl_string_free(&text);
    return o->out_dir;
}

static void check_same_file(const char *a_dir, const char *b_dir, const char *name)
{
    fl_file_map a, b;
    char *a_path = fl__path_join(a_dir, name), *b_path = fl__path_join(b_dir, name);
    assert_int_equal(fl__file_map(&a, a_path, NULL), FL_OK);
    assert_int_equal(fl__file_map(&b, b_path, NULL), FL_OK);
    if (a.n_bytes != b.n_bytes || memcmp(a.data, b.data, a.n_bytes) != 0)
        fail_msg("%s and %s differ", a_path, b_path);
    fl__file_unmap(&a);
    fl__file_unmap(&b);
    fl__free(&a_path);
    fl__free(&b_path);
}

void fl_test_same_dirs(const char *a, const char *b)
{
    char **a_names, **b_names;
    size_t n_a, n_b;
    assert_int_equal(fl__dir_list(&a_names, &n_a, a, NULL), FL_OK);
    assert_int_equal(fl__dir_list(&b_names, &n_b, b, NULL), FL_OK);
    assert_int_equal(n_a, n_b);
    assert_true(n_a > 0);
    for (size_t i = 0; i < n_a; i++) {
        assert_string_equal(a_names[i], b_names[i]);
        check_same_file(a, b, a_names[i]);
    }
    fl__dir_list_free(&a_names, n_a);
    fl__dir_list_free(&b_names, n_b);
}
