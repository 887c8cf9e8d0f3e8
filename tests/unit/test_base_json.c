/* test_base_json.c - JSON parsing, typed getters and their error texts.
 * SPDX-License-Identifier: MIT */
#include "base/file.h"
#include "base/json.h"
#include "base/mem.h"

#include "support/fl_test.h"

#include <string.h>

static json_t *parsed(const char *text)
{
    fl_err err;
    json_t *v;
    assert_int_equal(fl__json_parse(&v, text, strlen(text), "t.json", &err), FL_OK);
    return v;
}

static void parses_any_value(void **state)
{
    (void)state;
    static const char *const texts[] = {"{}", "[1, 2]", "\"x\"",
                                        "7",  "null",   " {\"a\": [true]} "};
    for (size_t i = 0; i < FL_COUNT(texts); i++) json_decref(parsed(texts[i]));
}

static void rejects_what_is_no_json(void **state)
{
    (void)state;
    static const struct {
        const char *text, *why;
    } cases[] = {
        {"", "t.json: line 1"},
        {"{", "t.json: line 1"},
        {"{\"a\": 1, \"a\": 2}", "duplicate"},
        {"{\"a\": 1}\n}", "line 2"},
        {"{\"a\\u0000b\": 1}", "\\u0000"},
        {"\"\xff\"", "unable to decode byte 0xff"},
        {"1e999", "real number overflow"},
    };
    for (size_t i = 0; i < FL_COUNT(cases); i++) {
        fl_err err;
        json_t *v = (json_t *)1;
        assert_int_equal(
            fl__json_parse(&v, cases[i].text, strlen(cases[i].text), "t.json", &err),
            FL_E_INPUT);
        assert_null(v);
        assert_non_null(strstr(err.text, "bad JSON: t.json: line "));
        assert_non_null(strstr(err.text, cases[i].why));
    }
}

static void deep_nesting_is_an_error(void **state)
{
    (void)state;
    char text[8192];
    fl_err err;
    json_t *v;
    memset(text, '[', sizeof text);
    assert_int_equal(fl__json_parse(&v, text, sizeof text, "t.json", &err), FL_E_INPUT);
    assert_non_null(strstr(err.text, "depth"));
}

static void huge_integers_become_reals(void **state)
{
    (void)state;
    json_t *v =
        parsed("{\"a\": 1000000000000000019884624838656, \"b\": 3, \"c\": \"x\\\"123456789"
               "01234567890\", \"d\": -12345678901234567890, \"e\": 1.12345678901234567890,"
               "\"f\": 1e-00000000000000000001}");
    assert_true(json_is_real(json_object_get(v, "a")));
    assert_true(json_real_value(json_object_get(v, "a")) == 1e30);
    assert_true(json_is_integer(json_object_get(v, "b")));
    assert_string_equal(json_string_value(json_object_get(v, "c")), "x\"12345678901234567890");
    assert_true(json_real_value(json_object_get(v, "d")) == -12345678901234567890.0);
    assert_true(json_real_value(json_object_get(v, "e")) == 1.12345678901234567890);
    assert_true(json_real_value(json_object_get(v, "f")) == 0.1);
    json_decref(v);
}

static void getters_read_typed_fields(void **state)
{
    (void)state;
    fl_err err;
    json_t *o = parsed("{\"i\": 5, \"d\": 2.5, \"b\": true, \"s\": \"text\", \"n\": null}");
    int64_t i = -1;
    double d = -1;
    bool b = false;
    const char *s = NULL;
    assert_int_equal(fl__json_get_int(o, "i", true, 0, 10, &i, "t.json", &err), FL_OK);
    assert_int_equal(fl__json_get_double(o, "d", true, &d, "t.json", &err), FL_OK);
    assert_int_equal(fl__json_get_bool(o, "b", true, &b, "t.json", &err), FL_OK);
    assert_int_equal(fl__json_get_string(o, "s", true, &s, "t.json", &err), FL_OK);
    assert_true(i == 5 && d == 2.5 && b && strcmp(s, "text") == 0);
    assert_int_equal(fl__json_get_double(o, "i", true, &d, "t.json", &err), FL_OK);
    assert_true(d == 5.0);
    /* absent and null keep the value */
    assert_int_equal(fl__json_get_int(o, "n", false, 0, 10, &i, "t.json", &err), FL_OK);
    assert_int_equal(fl__json_get_int(o, "absent", false, 0, 10, &i, "t.json", &err), FL_OK);
    assert_int_equal(i, 5);
    json_decref(o);
}

static void getters_name_file_and_field(void **state)
{
    (void)state;
    fl_err err;
    json_t *o =
        parsed("{\"i\": 50, \"s\": \"te\\txt\", \"n\": null, \"o\": {}, \"a\": [1],"
               "\"long\": \"0123456789012345678901234567890123456789012345678901234567890\"}");
    int64_t i = -1;
    double d;
    bool b;
    const char *s;
    assert_int_equal(fl__json_get_int(o, "i", true, 0, 10, &i, "t.json", &err), FL_E_INPUT);
    assert_string_equal(err.text, "bad field: t.json: i is 50, wanted an integer from 0 to 10; "
                                  "fix the file");
    assert_int_equal(fl__json_get_int(o, "n", true, 0, 10, &i, "t.json", &err), FL_E_INPUT);
    assert_string_equal(err.text, "missing field: t.json: n is not there; get the file again");
    assert_int_equal(fl__json_get_double(o, "s", true, &d, "t.json", &err), FL_E_INPUT);
    assert_non_null(strstr(err.text, "s is \"te\\txt\", wanted a number"));
    assert_int_equal(fl__json_get_bool(o, "o", true, &b, "t.json", &err), FL_E_INPUT);
    assert_non_null(strstr(err.text, "o is an object, wanted true or false"));
    assert_int_equal(fl__json_get_string(o, "a", false, &s, "t.json", &err), FL_E_INPUT);
    assert_non_null(strstr(err.text, "a is an array, wanted a text"));
    assert_int_equal(fl__json_get_bool(o, "long", true, &b, "t.json", &err), FL_E_INPUT);
    assert_non_null(strstr(err.text, "long is a text of 61 bytes"));
    assert_int_equal(i, -1);
    json_decref(o);
}

static void dump_keeps_the_order_of_keys(void **state)
{
    (void)state;
    json_t *o = parsed("{\"z\": 1, \"a\": [1.5, \"x\"]}");
    char *text = fl__json_dump(o, 0);
    assert_string_equal(text, "{\"z\":1,\"a\":[1.5,\"x\"]}");
    fl__free(&text);
    text = fl__json_dump(o, 2);
    assert_non_null(strstr(text, "{\n  \"z\": 1,\n"));
    fl__free(&text);
    json_decref(o);
}

static void load_limits_the_size(void **state)
{
    (void)state;
    fl_err err;
    json_t *v;
    const char *path = fl_test_path("t.json");
    assert_int_equal(fl__file_write(path, "{\"a\": 1}", 8, &err), FL_OK);
    assert_int_equal(fl__json_load(&v, path, 8, &err), FL_OK);
    json_decref(v);
    assert_int_equal(fl__json_load(&v, path, 7, &err), FL_E_INPUT);
    assert_non_null(strstr(err.text, path));
    assert_int_equal(fl__json_load(&v, "/nonexistent/x.json", 7, &err), FL_E_INPUT);
    assert_null(v);
}

static void out_of_memory_leaks_nothing(void **state)
{
    (void)state;
    const char *path = fl_test_path("t.json");
    const char text[] = "{\"a\": 1000000000000000019884624838656}";
    assert_int_equal(fl__file_write(path, text, sizeof text - 1, NULL), FL_OK);
    const size_t before = fl__mem_get().now_bytes;
    fl_status st = FL_E_NOMEM;
    int n = 0;
    while (st) {
        fl_err err;
        json_t *v;
        assert_true(n < 20);
        fl__mem_fail_after((uint64_t)++n);
        st = fl__json_load(&v, path, 1000, &err);
        fl__mem_fail_after(0);
        assert_true(st == FL_OK || st == FL_E_NOMEM);
        json_decref(v);
        assert_int_equal(fl__mem_get().now_bytes, before);
    }
    assert_true(n > 2);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(parses_any_value),
    cmocka_unit_test(rejects_what_is_no_json),
    cmocka_unit_test(deep_nesting_is_an_error),
    cmocka_unit_test(huge_integers_become_reals),
    cmocka_unit_test(getters_read_typed_fields),
    cmocka_unit_test(getters_name_file_and_field),
    cmocka_unit_test(dump_keeps_the_order_of_keys),
    cmocka_unit_test(load_limits_the_size),
    cmocka_unit_test(out_of_memory_leaks_nothing),
};
FL_TEST_MAIN(tests)
