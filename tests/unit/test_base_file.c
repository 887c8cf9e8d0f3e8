/* test_base_file.c - mapping, atomic writing, directories, and their failures.
 * SPDX-License-Identifier: MIT */
#include "base/file.h"
#include "base/mem.h"

#include "support/fl_test.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

static void write_then_map_and_read(void **state)
{
    (void)state;
    fl_err err;
    const char *path = fl_test_path("a");
    char *data;
    size_t n_bytes;
    fl_file_map map;
    assert_int_equal(fl__file_write(path, "first", 5, &err), FL_OK);
    assert_int_equal(fl__file_write(path, "hello", 5, &err), FL_OK);
    assert_int_equal(fl__file_map(&map, path, &err), FL_OK);
    assert_int_equal(map.n_bytes, 5);
    assert_memory_equal(map.data, "hello", 5);
    fl__file_unmap(&map);
    assert_null(map.data);
    assert_int_equal(fl__file_read(&data, &n_bytes, path, 5, &err), FL_OK);
    assert_string_equal(data, "hello");
    assert_int_equal(n_bytes, 5);
    fl__free(&data);
    assert_int_equal(fl__file_read(&data, &n_bytes, path, 4, &err), FL_E_INPUT);
    assert_null(data);
    assert_non_null(strstr(err.text, path));
    assert_non_null(strstr(err.text, "larger than the 4 bytes"));
    assert_false(fl__file_exists(fl_test_path("a.tmp")));
}

static void empty_files(void **state)
{
    (void)state;
    fl_err err;
    const char *path = fl_test_path("empty");
    fl_file_map map;
    char *data;
    size_t n_bytes = 1;
    assert_int_equal(fl__file_write(path, NULL, 0, &err), FL_OK);
    assert_int_equal(fl__file_map(&map, path, &err), FL_OK);
    assert_null(map.data);
    assert_int_equal(map.n_bytes, 0);
    fl__file_unmap(&map);
    assert_int_equal(fl__file_read(&data, &n_bytes, path, 0, &err), FL_OK);
    assert_int_equal(n_bytes, 0);
    assert_string_equal(data, "");
    fl__free(&data);
}

static void unreadable_paths_are_bad_input(void **state)
{
    (void)state;
    fl_err err;
    fl_file_map map;
    char *data;
    size_t n_bytes;
    assert_int_equal(fl__file_map(&map, fl_test_path("missing"), &err), FL_E_INPUT);
    assert_non_null(strstr(err.text, "cannot read: "));
    assert_non_null(strstr(err.text, "No such file"));
    assert_int_equal(fl__file_map(&map, fl_test_dir(), &err), FL_E_INPUT);
    assert_non_null(strstr(err.text, "directory"));
    assert_int_equal(fl__file_read(&data, &n_bytes, fl_test_dir(), 10, &err), FL_E_INPUT);
    assert_int_equal(fl__file_read(&data, &n_bytes, "/dev/null", 10, &err), FL_E_INPUT);
    assert_non_null(strstr(err.text, "no regular file"));
    const char *fifo = fl_test_path("fifo");
    assert_int_equal(mkfifo(fifo, 0600), 0);
    assert_int_equal(fl__file_map(&map, fifo, &err), FL_E_INPUT);
    assert_int_equal(unlink(fifo), 0);
}

static void copies(void **state)
{
    (void)state;
    fl_err err;
    char *big = fl__alloc(200000, 1), *back;
    size_t n_bytes;
    for (int i = 0; i < 200000; i++) big[i] = (char)(i * 7 + i / 256);
    assert_int_equal(fl__file_write(fl_test_path("big"), big, 200000, &err), FL_OK);
    assert_int_equal(fl__file_copy(fl_test_path("big"), fl_test_path("copy"), &err), FL_OK);
    assert_int_equal(fl__file_read(&back, &n_bytes, fl_test_path("copy"), 200000, &err), FL_OK);
    assert_int_equal(n_bytes, 200000);
    assert_memory_equal(big, back, 200000);
    fl__free(&back);
    fl__free(&big);
    assert_int_equal(fl__file_copy(fl_test_path("none"), fl_test_path("copy"), &err),
                     FL_E_INPUT);
    assert_true(fl__file_exists(fl_test_path("copy")));
}

static void discarded_writer_leaves_nothing(void **state)
{
    (void)state;
    fl_err err;
    fl_file_writer w;
    const char *path = fl_test_path("kept");
    assert_int_equal(fl__file_write(path, "old", 3, &err), FL_OK);
    assert_int_equal(fl__file_writer_open(&w, path, &err), FL_OK);
    assert_int_equal(fl__file_writer_write(&w, "new", 3, &err), FL_OK);
    assert_true(fl__file_exists(fl_test_path("kept.tmp")));
    fl__file_writer_discard(&w);
    fl__file_writer_discard(&w);
    assert_false(fl__file_exists(fl_test_path("kept.tmp")));
    char *data;
    size_t n_bytes;
    assert_int_equal(fl__file_read(&data, &n_bytes, path, 10, &err), FL_OK);
    assert_string_equal(data, "old");
    fl__free(&data);
}

static void write_failures(void **state)
{
    (void)state;
    fl_err err;
    assert_int_equal(fl__file_write(fl_test_path("no/such/dir"), "x", 1, &err), FL_E_IO);
    assert_non_null(strstr(err.text, "cannot write: "));
    /* Renaming a file over a directory fails after the data was written. */
    assert_int_equal(fl__dir_make(fl_test_path("d"), &err), FL_OK);
    assert_int_equal(fl__file_write(fl_test_path("d"), "x", 1, &err), FL_E_IO);
    assert_false(fl__file_exists(fl_test_path("d.tmp")));
    assert_int_equal(fl__dir_remove(fl_test_path("d"), &err), FL_OK);
}

static void full_disk_is_no_space(void **state)
{
    (void)state;
    fl_err err;
    struct rlimit old, small = {.rlim_cur = 4096, .rlim_max = RLIM_INFINITY};
    char data[8192] = {0};
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &old), 0);
    small.rlim_max = old.rlim_max;
    void (*handler)(int) = signal(SIGXFSZ, SIG_IGN);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &small), 0);
    const fl_status st = fl__file_write(fl_test_path("large"), data, sizeof data, &err);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &old), 0);
    signal(SIGXFSZ, handler);
    assert_int_equal(st, FL_E_NOSPACE);
    assert_non_null(strstr(err.text, "large.tmp"));
    assert_false(fl__file_exists(fl_test_path("large")));
    assert_false(fl__file_exists(fl_test_path("large.tmp")));
}

static void directories(void **state)
{
    (void)state;
    fl_err err;
    char **names;
    size_t n_names;
    const char *d = fl_test_path("sub");
    assert_int_equal(fl__dir_make(d, &err), FL_OK);
    assert_int_equal(fl__dir_make(d, &err), FL_OK);
    assert_int_equal(fl__file_write(fl_test_path("sub/b"), "b", 1, &err), FL_OK);
    assert_int_equal(fl__file_write(fl_test_path("sub/a"), "a", 1, &err), FL_OK);
    assert_int_equal(fl__file_write(fl_test_path("sub/B"), "B", 1, &err), FL_OK);
    assert_int_equal(symlink("a", fl_test_path("sub/link")), 0);
    assert_int_equal(symlink("nothing", fl_test_path("sub/broken")), 0);
    assert_int_equal(fl__dir_make(fl_test_path("sub/inner"), &err), FL_OK);
    assert_int_equal(fl__dir_make(fl_test_path("sub/a"), &err), FL_E_IO);

    assert_int_equal(fl__dir_list(&names, &n_names, d, &err), FL_OK);
    assert_int_equal(n_names, 4);
    assert_string_equal(names[0], "B");
    assert_string_equal(names[1], "a");
    assert_string_equal(names[2], "b");
    assert_string_equal(names[3], "link");
    fl__dir_list_free(&names, n_names);
    assert_null(names);

    assert_int_equal(fl__dir_rename(d, fl_test_path("sub2"), &err), FL_OK);
    assert_false(fl__file_exists(d));
    /* A directory inside is none of ours: nothing is removed. */
    assert_int_equal(fl__dir_remove(fl_test_path("sub2"), &err), FL_E_IO);
    assert_non_null(strstr(err.text, "inner"));
    assert_true(fl__file_exists(fl_test_path("sub2/a")));
    assert_int_equal(rmdir(fl_test_path("sub2/inner")), 0);
    assert_int_equal(fl__dir_remove(fl_test_path("sub2"), &err), FL_OK);
    assert_false(fl__file_exists(fl_test_path("sub2")));
    assert_int_equal(fl__dir_remove(fl_test_path("sub2"), &err), FL_OK);
    assert_int_equal(fl__dir_list(&names, &n_names, fl_test_path("sub2"), &err), FL_E_INPUT);
    assert_null(names);
}

static void empty_directory_lists_nothing(void **state)
{
    (void)state;
    fl_err err;
    char **names;
    size_t n_names;
    assert_int_equal(fl__dir_make(fl_test_path("none"), &err), FL_OK);
    assert_int_equal(fl__dir_list(&names, &n_names, fl_test_path("none"), &err), FL_OK);
    assert_int_equal(n_names, 0);
    fl__dir_list_free(&names, n_names);
    assert_int_equal(fl__dir_remove(fl_test_path("none"), &err), FL_OK);
}

static void relative_paths_sync_their_directory(void **state)
{
    (void)state;
    fl_err err;
    char cwd[4096];
    assert_non_null(getcwd(cwd, sizeof cwd));
    assert_int_equal(chdir(fl_test_dir()), 0);
    assert_int_equal(fl__file_write("plain", "x", 1, &err), FL_OK);
    assert_int_equal(fl__dir_make("one", &err), FL_OK);
    assert_int_equal(fl__dir_rename("one", "two/", &err), FL_OK);
    assert_int_equal(fl__dir_remove("two", &err), FL_OK);
    assert_int_equal(chdir(cwd), 0);
}

static void joins_and_free_space(void **state)
{
    (void)state;
    char *path = fl__path_join("a", "b.txt");
    assert_string_equal(path, "a/b.txt");
    fl__free(&path);
    const int64_t here = fl__disk_free_bytes(fl_test_dir());
    assert_true(here > 0);
    assert_true(fl__disk_free_bytes(fl_test_path("not/yet/there")) > 0);
    assert_true(fl__disk_free_bytes("not-yet-there") > 0);
}

static fl_status everything(void)
{
    fl_err err;
    char **names = NULL, *data = NULL;
    size_t n_names = 0, n_bytes;
    fl_status st = fl__dir_make(fl_test_path("oom"), &err);
    if (!st) st = fl__file_write(fl_test_path("oom/f"), "x", 1, &err);
    if (!st) st = fl__file_copy(fl_test_path("oom/f"), fl_test_path("oom/g"), &err);
    if (!st) st = fl__file_read(&data, &n_bytes, fl_test_path("oom/g"), 10, &err);
    if (!st) st = fl__dir_list(&names, &n_names, fl_test_path("oom"), &err);
    if (!st) st = fl__dir_rename(fl_test_path("oom"), fl_test_path("oom2"), &err);
    fl__dir_list_free(&names, n_names);
    fl__free(&data);
    if (!st) st = fl__dir_remove(fl_test_path("oom2"), &err);
    return st;
}

static void out_of_memory_leaks_nothing(void **state)
{
    (void)state;
    const size_t before = fl__mem_get().now_bytes;
    fl_status st = FL_E_NOMEM;
    int n = 0;
    while (st) {
        assert_true(n < 100);
        fl__mem_fail_after((uint64_t)++n);
        st = everything();
        fl__mem_fail_after(0);
        assert_true(st == FL_OK || st == FL_E_NOMEM);
        assert_int_equal(fl__mem_get().now_bytes, before);
        assert_int_equal(fl__dir_remove(fl_test_path("oom"), NULL), FL_OK);
        assert_int_equal(fl__dir_remove(fl_test_path("oom2"), NULL), FL_OK);
    }
    assert_true(n > 8);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(write_then_map_and_read),
    cmocka_unit_test(empty_files),
    cmocka_unit_test(unreadable_paths_are_bad_input),
    cmocka_unit_test(copies),
    cmocka_unit_test(discarded_writer_leaves_nothing),
    cmocka_unit_test(write_failures),
    cmocka_unit_test(full_disk_is_no_space),
    cmocka_unit_test(directories),
    cmocka_unit_test(empty_directory_lists_nothing),
    cmocka_unit_test(relative_paths_sync_their_directory),
    cmocka_unit_test(joins_and_free_space),
    cmocka_unit_test(out_of_memory_leaks_nothing),
};
FL_TEST_MAIN(tests)
