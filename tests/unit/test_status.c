/* test_status.c - error texts: one line, bounded, optional; and the log sink.
 * SPDX-License-Identifier: MIT */
#include "base/log.h"
#include "base/status.h"
#include "support/fl_test.h"

#include <stdbool.h>
#include <string.h>

static void fail_returns_status_and_text(void **state)
{
    (void)state;
    fl_err err;
    assert_int_equal(
        fl__fail(&err, FL_E_INPUT, "bad tensor: %s: %d rows; use %s", "a.b", 3, "4"),
        FL_E_INPUT);
    assert_string_equal(err.text, "bad tensor: a.b: 3 rows; use 4");
    assert_int_equal(fl__fail(NULL, FL_E_GATE, "%s", "nobody listens"), FL_E_GATE);
}

static void text_is_one_line(void **state)
{
    (void)state;
    fl_err err;
    (void)fl__fail(&err, FL_E_IO, "%s", "a\nb\r\tc\x1b[31m\x7f d\xc3\xa9");
    assert_string_equal(err.text, "a b  c [31m  d\xc3\xa9");
}

static void text_is_cut_at_its_end(void **state)
{
    (void)state;
    struct {
        fl_err err;
        char guard[8];
    } x = {.guard = "guarded"};
    char name[2000];
    memset(name, 'n', sizeof name - 1);
    name[sizeof name - 1] = '\0';
    (void)fl__fail(&x.err, FL_E_IO, "bad file: %s", name);
    assert_int_equal(strlen(x.err.text), sizeof x.err.text - 1);
    assert_memory_equal(x.err.text, "bad file: nnn", 13);
    assert_string_equal(x.guard, "guarded");
}

static void text_may_quote_the_one_before(void **state)
{
    (void)state;
    fl_err err;
    (void)fl__fail(&err, FL_E_IO, "%s", "x.json: no such file");
    (void)fl__fail(&err, FL_E_INPUT, "bad model: %s; check it", err.text);
    assert_string_equal(err.text, "bad model: x.json: no such file; check it");
}

static void out_of_memory_names_what_and_how_much(void **state)
{
    (void)state;
    fl_err err;
    assert_int_equal(fl__fail_nomem(&err, "KV cache", 123456789), FL_E_NOMEM);
    assert_non_null(strstr(err.text, "out of memory: KV cache: 123456789 bytes wanted; "));
    assert_int_equal(fl__fail_nomem(NULL, "KV cache", 1), FL_E_NOMEM);
}

typedef struct {
    int n_lines;
    fl_log_level level;
    char line[1200];
} sink;

static void keep_line(void *user, fl_log_level level, const char *line)
{
    sink *s = user;
    s->n_lines++;
    s->level = level;
    strncpy(s->line, line, sizeof s->line - 1);
}

static void log_formats_and_bounds(void **state)
{
    (void)state;
    sink s = {0};
    char name[2000];
    const fl_log log = {.write = keep_line, .user = &s};
    fl__log(&log, FL_LOG_WARN, "layer %d of %s", 3, "seven");
    assert_int_equal(s.n_lines, 1);
    assert_int_equal(s.level, FL_LOG_WARN);
    assert_string_equal(s.line, "layer 3 of seven");
    memset(name, 'n', sizeof name - 1);
    name[sizeof name - 1] = '\0';
    fl__log(&log, FL_LOG_INFO, "%s", name);
    assert_int_equal(strlen(s.line), 1023);
}

static void log_without_sink_is_silent(void **state)
{
    (void)state;
    const fl_log silent = {0};
    fl__log(NULL, FL_LOG_INFO, "%d", 1);
    fl__log(&silent, FL_LOG_INFO, "%d", 1);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(fail_returns_status_and_text),
    cmocka_unit_test(text_is_one_line),
    cmocka_unit_test(text_is_cut_at_its_end),
    cmocka_unit_test(text_may_quote_the_one_before),
    cmocka_unit_test(out_of_memory_names_what_and_how_much),
    cmocka_unit_test(log_formats_and_bounds),
    cmocka_unit_test(log_without_sink_is_silent),
};
FL_TEST_MAIN(tests)
