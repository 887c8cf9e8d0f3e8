/* test_checkpoint.c - what OUT.partial promises: it is there, it is ours, it goes away.
 * SPDX-License-Identifier: MIT */
#include "quant/checkpoint.h"

#include "base/file.h"
#include "base/mem.h"
#include "support/fl_test.h"

#include <string.h>
#include <unistd.h>

static json_t *fingerprint(const char *model, int bits)
{
    return json_pack("{s:s,s:{s:i}}", "model", model, "option set", "w_bits", bits);
}

static fl_status open_it(fl_checkpoint *c, const char *model, int bits, bool resume,
                         fl_err *err)
{
    json_t *f = fingerprint(model, bits);
    const fl_status st = fl__checkpoint_open(c, fl_test_path("out"), f, resume, err);
    json_decref(f);
    return st;
}

static bool exists(const char *name)
{
    return access(fl_test_path(name), F_OK) == 0;
}

static void save_block(const fl_checkpoint *c, int block)
{
    char name[FL_BLOCK_NAME_BYTES];
    json_t *v = json_pack("{s:i}", "layer", block);
    fl__checkpoint_block_name(name, block);
    assert_int_equal(fl__checkpoint_save(c, name, v, NULL), FL_OK);
    json_decref(v);
}

static int n_blocks_done(const fl_checkpoint *c)
{
    int n = 0;
    for (int i = 0; i < 8; i++) {
        char name[FL_BLOCK_NAME_BYTES];
        json_t *v;
        fl__checkpoint_block_name(name, i);
        assert_int_equal(fl__checkpoint_load(&v, c, name, NULL), FL_OK);
        n += v && json_integer_value(json_object_get(v, "layer")) == i;
        json_decref(v);
    }
    return n;
}

static void equal_fingerprints_continue(void **state)
{
    (void)state;
    fl_checkpoint c;
    fl_err err = {""};
    assert_int_equal(open_it(&c, "abc", 4, false, &err), FL_OK);
    assert_false(c.resumed);
    save_block(&c, 0);
    save_block(&c, 1);
    fl__checkpoint_close(&c, true); /* not empty: stays */
    assert_true(exists("out.partial"));
    assert_int_equal(open_it(&c, "abc", 4, true, &err), FL_OK);
    assert_true(c.resumed);
    assert_int_equal(n_blocks_done(&c), 2);
    fl__checkpoint_close(&c, false);
    assert_null(c.dir);
}

static void other_fingerprints_are_refused_by_name(void **state)
{
    (void)state;
    fl_checkpoint c;
    fl_err err = {""};
    assert_int_equal(open_it(&c, "abc", 4, false, &err), FL_OK);
    fl__checkpoint_close(&c, false);
    assert_int_equal(open_it(&c, "abd", 4, true, &err), FL_E_USAGE);
    assert_non_null(strstr(err.text, "another model"));
    assert_null(c.dir);
    assert_int_equal(open_it(&c, "abc", 8, true, &err), FL_E_USAGE);
    assert_non_null(strstr(err.text, "another option set"));
    /* a key more in the saved state, a state that is none */
    json_t *more =
        json_pack("{s:s,s:{s:i},s:i}", "model", "abc", "option set", "w_bits", 4, "x", 1);
    char *text = fl__json_dump(more, 0);
    assert_int_equal(
        fl__file_write(fl_test_path("out.partial/state.json"), text, strlen(text), NULL),
        FL_OK);
    assert_int_equal(open_it(&c, "abc", 4, true, &err), FL_E_USAGE);
    assert_int_equal(fl__file_write(fl_test_path("out.partial/state.json"), "[]", 2, NULL),
                     FL_OK);
    assert_int_equal(open_it(&c, "abc", 4, true, &err), FL_E_USAGE);
    assert_int_equal(fl__file_write(fl_test_path("out.partial/state.json"), "{", 1, NULL),
                     FL_OK);
    assert_int_equal(open_it(&c, "abc", 4, true, &err), FL_E_INPUT);
    assert_int_equal(fl__file_write(fl_test_path("out.partial/x"), "x", 1, NULL), FL_OK);
    assert_int_equal(unlink(fl_test_path("out.partial/state.json")), 0);
    assert_int_equal(open_it(&c, "abc", 4, true, &err), FL_E_USAGE);
    assert_true(exists("out.partial")); /* a refusal removes nothing */
    json_decref(more);
    fl__free(&text);
}

static void existing_names_are_refused(void **state)
{
    (void)state;
    fl_checkpoint c;
    fl_err err = {""};
    assert_int_equal(open_it(&c, "abc", 4, false, &err), FL_OK);
    fl__checkpoint_close(&c, false);
    assert_int_equal(open_it(&c, "abc", 4, false, &err), FL_E_USAGE);
    assert_non_null(strstr(err.text, "--resume"));
    assert_int_equal(fl__dir_make(fl_test_path("out"), NULL), FL_OK);
    assert_int_equal(open_it(&c, "abc", 4, true, &err), FL_E_USAGE);
    assert_non_null(strstr(err.text, "exists already"));
}

static void resuming_nothing_starts(void **state)
{
    (void)state;
    fl_checkpoint c;
    assert_int_equal(open_it(&c, "abc", 4, true, NULL), FL_OK);
    assert_false(c.resumed);
    fl__checkpoint_close(&c, true); /* nothing was finished: leaves nothing */
    assert_false(exists("out.partial"));
}

/* Killed before the first file was complete: as good as nothing. */
static void resuming_an_empty_directory_starts(void **state)
{
    (void)state;
    for (int i = 0; i < 2; i++) {
        fl_checkpoint c;
        assert_int_equal(fl__dir_make(fl_test_path("out.partial"), NULL), FL_OK);
        if (i)
            assert_int_equal(
                fl__file_write(fl_test_path("out.partial/state.json.tmp"), "{", 1, NULL),
                FL_OK);
        assert_int_equal(open_it(&c, "abc", 4, false, NULL), FL_E_USAGE);
        assert_int_equal(open_it(&c, "abc", 4, true, NULL), FL_OK);
        assert_false(c.resumed);
        assert_true(exists("out.partial/state.json"));
        fl__checkpoint_close(&c, true);
        assert_false(exists("out.partial"));
    }
}

static void running_out_of_memory_leaves_nothing(void **state)
{
    (void)state;
    const size_t before = fl__mem_get().now_bytes;
    for (unsigned n = 1;; n++) {
        fl_checkpoint c;
        fl__mem_fail_after(n);
        const fl_status st = open_it(&c, "abc", 4, false, NULL);
        fl__mem_fail_after(0);
        fl__checkpoint_close(&c, true);
        assert_int_equal(fl__mem_get().now_bytes, before);
        assert_false(exists("out.partial"));
        if (!st) break;
        assert_int_equal(st, FL_E_NOMEM);
    }
}

static void redo_forgets_from_a_block_on(void **state)
{
    (void)state;
    fl_checkpoint c;
    assert_int_equal(open_it(&c, "abc", 4, false, NULL), FL_OK);
    for (int i = 0; i < 5; i++) save_block(&c, i);
    assert_int_equal(fl__checkpoint_redo(&c, 3, 8, NULL), FL_OK);
    assert_int_equal(n_blocks_done(&c), 3);
    assert_true(exists("out.partial/block-00002.json"));
    assert_false(exists("out.partial/block-00003.json"));
    assert_int_equal(fl__checkpoint_save(&c, FL_CHECKPOINT_TUNED, json_true(), NULL), FL_OK);
    assert_int_equal(fl__checkpoint_redo(&c, 1, 8, NULL), FL_E_USAGE);
    assert_true(exists("out.partial/block-00002.json"));
    fl__checkpoint_close(&c, false);
}

static void finishing_renames_and_tidies(void **state)
{
    (void)state;
    char **names;
    size_t n;
    fl_checkpoint c;
    assert_int_equal(open_it(&c, "abc", 4, false, NULL), FL_OK);
    for (int i = 0; i < 3; i++) save_block(&c, i);
    char *path = fl__checkpoint_path(&c, "model.safetensors");
    assert_int_equal(fl__file_write(path, "x", 1, NULL), FL_OK);
    assert_int_equal(fl__checkpoint_finish(&c, 3, NULL), FL_OK);
    fl__checkpoint_close(&c, true);
    assert_false(exists("out.partial"));
    assert_int_equal(fl__dir_list(&names, &n, fl_test_path("out"), NULL), FL_OK);
    assert_int_equal(n, 1);
    assert_string_equal(names[0], "model.safetensors");
    fl__dir_list_free(&names, n);
    fl__free(&path);
}

static void directories_that_cannot_be_made_are_errors(void **state)
{
    (void)state;
    fl_checkpoint c;
    fl_err err = {""};
    json_t *f = fingerprint("abc", 4);
    assert_int_equal(fl__checkpoint_open(&c, fl_test_path("no/such/place"), f, false, &err),
                     FL_E_IO);
    assert_non_null(strstr(err.text, "no/such/place"));
    assert_null(c.dir);
    json_decref(f);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(equal_fingerprints_continue),
    cmocka_unit_test(other_fingerprints_are_refused_by_name),
    cmocka_unit_test(existing_names_are_refused),
    cmocka_unit_test(resuming_nothing_starts),
    cmocka_unit_test(resuming_an_empty_directory_starts),
    cmocka_unit_test(running_out_of_memory_leaves_nothing),
    cmocka_unit_test(redo_forgets_from_a_block_on),
    cmocka_unit_test(finishing_renames_and_tidies),
    cmocka_unit_test(directories_that_cannot_be_made_are_errors),
};
FL_TEST_MAIN(tests)
