/* fl_test.c - one process per test, counts, skips, temporary directories.
 *
 * The parent forks for each test and never starts a thread, so OpenMP's own fork limits (a
 * child may not use threads that its parent started) do not matter. A child reports through its
 * exit code. cmocka prints in its subunit form, one line per test.
 * SPDX-License-Identifier: MIT */
#include "support/fl_test.h"

#include <errno.h>
#include <ftw.h>
#include <limits.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

enum { CHILD_PASSED = 0, CHILD_FAILED = 1, CHILD_SKIPPED = 77, MAX_PATHS = 64 };

static const char *test_name = "";
static bool was_skipped;
static char base_dir[PATH_MAX / 2]; /* of the executable, made by the parent */
static char test_dir[PATH_MAX / 2 + 32];
static char paths[MAX_PATHS][PATH_MAX];
static int n_paths;

/* Joins into the next of a fixed number of buffers: a test process is short. */
static const char *join(const char *dir, const char *name)
{
    char *path = paths[n_paths++ % MAX_PATHS];
    if (snprintf(path, PATH_MAX, "%s/%s", dir, name) >= PATH_MAX)
        fail_msg("path too long: %s/%s", dir, name);
    return path;
}

void fl_test_note_skip(const char *fmt, ...)
{
    va_list ap;
    was_skipped = true;
    (void)printf("SKIP: %s: ", test_name);
    va_start(ap, fmt);
    (void)vprintf(fmt, ap);
    va_end(ap);
    (void)printf("\n");
}

const char *fl_test_shared(const char *path)
{
    const char *dir = getenv("FL_SHARED");
    const char *full = join(dir && *dir ? dir : FL_SOURCE_DIR "/../shared", path);
    if (access(full, R_OK) != 0) fl_test_skip("needs ../shared/%s", path);
    return full;
}

const char *fl_test_dir(void)
{
    if (mkdir(test_dir, 0700) != 0 && errno != EEXIST)
        fail_msg("%s: %s", test_dir, strerror(errno));
    return test_dir;
}

const char *fl_test_path(const char *name)
{
    return join(fl_test_dir(), name);
}

static int remove_entry(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
    (void)st, (void)type, (void)ftw;
    return remove(path);
}

static int make_base_dir(void)
{
    const char *tmp = getenv("TMPDIR");
    (void)snprintf(base_dir, sizeof base_dir, "%s/fl_test.XXXXXX", tmp && *tmp ? tmp : "/tmp");
    if (mkdtemp(base_dir)) return 0;
    (void)printf("cannot make %s: %s\n", base_dir, strerror(errno));
    return -1;
}

/* Runs in the child: one cmocka group of one test. */
static int run_one(const struct CMUnitTest *test, CMFixtureFunction setup,
                   CMFixtureFunction teardown)
{
    cmocka_set_message_output(CM_OUTPUT_SUBUNIT);
    if (_cmocka_run_group_tests(test->name, test, 1, setup, teardown) != 0) return CHILD_FAILED;
    return was_skipped ? CHILD_SKIPPED : CHILD_PASSED;
}

static int run_child(const struct CMUnitTest *test, CMFixtureFunction setup,
                     CMFixtureFunction teardown)
{
    int status;
    (void)fflush(NULL);
    const pid_t child = fork();
    if (child < 0) {
        (void)printf("FAILED: %s: fork: %s\n", test->name, strerror(errno));
        return CHILD_FAILED;
    }
    if (child == 0) exit(run_one(test, setup, teardown));
    while (waitpid(child, &status, 0) < 0) {
        if (errno != EINTR) return CHILD_FAILED;
    }
    if (WIFEXITED(status) && WEXITSTATUS(status) == CHILD_SKIPPED) return CHILD_SKIPPED;
    if (WIFEXITED(status) && WEXITSTATUS(status) == CHILD_PASSED) return CHILD_PASSED;
    if (WIFSIGNALED(status))
        (void)printf("FAILED: %s: %s\n", test->name, strsignal(WTERMSIG(status)));
    else
        (void)printf("FAILED: %s: exit code %d\n", test->name, WEXITSTATUS(status));
    return CHILD_FAILED;
}

int fl_test_run(int argc, char **argv, const struct CMUnitTest *tests, size_t n_tests,
                CMFixtureFunction setup, CMFixtureFunction teardown)
{
    int n_passed = 0, n_failed = 0, n_skipped = 0;
    const char *wanted = argc > 1 ? argv[1] : "";
    if (make_base_dir() != 0) n_failed++;
    for (size_t i = 0; i < n_tests; i++) {
        if (!strstr(tests[i].name, wanted)) continue;
        test_name = tests[i].name;
        (void)snprintf(test_dir, sizeof test_dir, "%s/%zu", base_dir, i);
        switch (run_child(&tests[i], setup, teardown)) {
        case CHILD_PASSED: n_passed++; break;
        case CHILD_SKIPPED: n_skipped++; break;
        default: n_failed++; break;
        }
    }
    (void)nftw(base_dir, remove_entry, 16, FTW_DEPTH | FTW_PHYS);
    (void)printf("%d passed, %d failed, %d skipped\n", n_passed, n_failed, n_skipped);
    return n_failed > 0 || n_passed + n_skipped == 0;
}
