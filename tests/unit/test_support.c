/* test_support.c - the test runner itself: what it counts, what it survives, what it removes.
 *
 * Each test runs an inner table through the runner with the output in a file.
 * SPDX-License-Identifier: MIT */
#include "support/fl_test.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void passes(void **state)
{
    (void)state;
}

static void fails(void **state)
{
    (void)state;
    assert_int_equal(1, 2);
}

static void crashes(void **state)
{
    (void)state;
    abort();
}

static void skips(void **state)
{
    (void)state;
    skip();
}

static void needs_a_missing_file(void **state)
{
    (void)state;
    (void)fl_test_shared("no/such/file");
    fail();
}

static void leaves_files(void **state)
{
    (void)state;
    FILE *f = fopen(fl_test_path("left"), "w");
    assert_non_null(f);
    (void)fprintf(f, "x");
    (void)fclose(f);
    (void)printf("DIR %s\n", fl_test_dir());
}

static int broken_setup(void **state)
{
    (void)state;
    return -1;
}

static char output[65536];

/* Runs the table and returns the runner's exit code, with what was printed in output. */
static int run(const struct CMUnitTest *tests, size_t n, char *filter, CMFixtureFunction setup)
{
    char *argv[] = {(char *)"test", filter, NULL};
    const char *path = fl_test_path("output");
    (void)fflush(NULL);
    const int saved_out = dup(STDOUT_FILENO), saved_err = dup(STDERR_FILENO);
    FILE *f = fopen(path, "w+");
    assert_non_null(f);
    (void)dup2(fileno(f), STDOUT_FILENO);
    (void)dup2(fileno(f), STDERR_FILENO);
    const int rc = fl_test_run(filter ? 2 : 1, argv, tests, n, setup, NULL);
    (void)fflush(NULL);
    (void)dup2(saved_out, STDOUT_FILENO);
    (void)dup2(saved_err, STDERR_FILENO);
    (void)close(saved_out), (void)close(saved_err);
    rewind(f);
    output[fread(output, 1, sizeof output - 1, f)] = '\0';
    (void)fclose(f);
    return rc;
}

static void ends_with(const char *line)
{
    const size_t n = strlen(output), m = strlen(line);
    assert_true(n > m);
    assert_string_equal(output + n - m, line);
}

static const struct CMUnitTest mixed[] = {
    cmocka_unit_test(passes), cmocka_unit_test(fails),  cmocka_unit_test(crashes),
    cmocka_unit_test(skips),  cmocka_unit_test(passes), cmocka_unit_test(needs_a_missing_file),
};

static void counts_every_outcome(void **state)
{
    (void)state;
    assert_int_not_equal(run(mixed, 6, NULL, NULL), 0);
    ends_with("\n2 passed, 2 failed, 2 skipped\n");
    assert_non_null(strstr(output, "FAILED: fails: "));
    assert_non_null(strstr(output, "FAILED: crashes: "));
    assert_non_null(strstr(output, "SKIP: skips: "));
    assert_non_null(
        strstr(output, "SKIP: needs_a_missing_file: needs ../shared/no/such/file\n"));
}

static void a_filter_picks_by_name(void **state)
{
    (void)state;
    assert_int_equal(run(mixed, 6, (char *)"pass", NULL), 0);
    ends_with("\n2 passed, 0 failed, 0 skipped\n");
}

static void no_test_is_a_failure(void **state)
{
    (void)state;
    assert_int_not_equal(run(mixed, 6, (char *)"no such name", NULL), 0);
    assert_non_null(strstr(output, "0 passed, 0 failed, 0 skipped\n"));
    assert_int_not_equal(run(mixed, 0, NULL, NULL), 0);
}

static void a_broken_fixture_is_a_failure(void **state)
{
    (void)state;
    assert_int_not_equal(run(mixed, 1, NULL, broken_setup), 0);
    ends_with("\n0 passed, 1 failed, 0 skipped\n");
}

static void directories_are_removed(void **state)
{
    (void)state;
    static const struct CMUnitTest leaving[] = {cmocka_unit_test(leaves_files)};
    char dir[1024];
    assert_int_equal(run(leaving, 1, NULL, NULL), 0);
    const char *line = strstr(output, "DIR ");
    assert_non_null(line);
    assert_int_equal(sscanf(line, "DIR %1023s", dir), 1);
    assert_int_not_equal(access(dir, F_OK), 0);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(counts_every_outcome),          cmocka_unit_test(a_filter_picks_by_name),
    cmocka_unit_test(no_test_is_a_failure),          cmocka_unit_test(directories_are_removed),
    cmocka_unit_test(a_broken_fixture_is_a_failure),
};
FL_TEST_MAIN(tests)
