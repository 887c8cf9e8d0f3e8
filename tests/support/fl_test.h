/* fl_test.h - what every cmocka test executable shares.
 *
 * A test file ends with its table and one line:
 *     static const struct CMUnitTest tests[] = {cmocka_unit_test(adds), ...};
 *     FL_TEST_MAIN(tests)
 * The runner gives each test a process of its own, so that a crash, a leak or a changed global
 * stays with the test that caused it, and closes with 'N passed, N failed, N skipped' alone on
 * a line. It fails when a test failed and when none ran. An argument runs only the tests whose
 * name contains it: `build/test_base_mem grow`.
 * Group fixtures (FL_TEST_MAIN_FIXTURE) therefore run once per test, in its process.
 * SPDX-License-Identifier: MIT */
#ifndef FL_TEST_H
#define FL_TEST_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#define FL_TEST_MAIN(tests) FL_TEST_MAIN_FIXTURE(tests, NULL, NULL)
#define FL_TEST_MAIN_FIXTURE(tests, setup, teardown)                                           \
    int main(int argc, char **argv)                                                            \
    {                                                                                          \
        return fl_test_run(argc, argv, tests, sizeof(tests) / sizeof((tests)[0]), setup,       \
                           teardown);                                                          \
    }
int fl_test_run(int argc, char **argv, const struct CMUnitTest *tests, size_t n_tests,
                CMFixtureFunction setup, CMFixtureFunction teardown);

/* Ends the running test as skipped, with a line 'SKIP: <test>: <text>'. */
#define fl_test_skip(...) (fl_test_note_skip(__VA_ARGS__), _skip(__FILE__, __LINE__))
void fl_test_note_skip(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
/* cmocka's own skip() would not be counted. */
#undef skip
#define skip() fl_test_skip("%s:%d", __FILE__, __LINE__)

/* Path of a file or directory under shared/, the directory of models and data beside the
 * checkout ($FL_SHARED when set). Where it is missing the test ends as skipped, with a line
 * 'SKIP: <test>: needs ../shared/<path>'. Valid until the test ends. */
const char *fl_test_shared(const char *path);

/* An empty directory of the running test, under $TMPDIR or /tmp; removed with all that is in it
 * when the executable ends. */
const char *fl_test_dir(void);
/* fl_test_dir() + "/" + name. Valid until the test ends. */
const char *fl_test_path(const char *name);

#endif
