/* replay_main.c - runs a fuzz target over its corpus where there is no libFuzzer.
 *
 * Every file named on the command line or lying in a directory named there is fed as it is,
 * then in N_VARIANTS damaged forms (cut short, bytes changed), the same ones on every run. Each
 * input lies in memory of exactly its size, for the address sanitizer to guard. A target
 * reports by crashing, so the file is printed before it runs.
 * SPDX-License-Identifier: MIT */
#include "base/file.h"
#include "base/mem.h"
#include "base/rng.h"

#include <stdio.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes);

enum { N_VARIANTS = 64, MAX_CHANGES = 4, MAX_BYTES = 1 << 24 };

static int n_passed, n_failed;

static void feed(const char *data, size_t n_bytes)
{
    uint8_t *exact = fl__alloc(n_bytes, 1);
    if (!exact) return;
    if (n_bytes > 0) memcpy(exact, data, n_bytes);
    (void)LLVMFuzzerTestOneInput(exact, n_bytes);
    fl__free(&exact);
}

static void feed_damaged(const char *data, size_t n_bytes, int variant)
{
    char *copy = fl__strndup(data, n_bytes);
    if (!copy) return;
    fl_rng r = fl__rng_init(0, variant, "replay");
    const size_t n = variant % 2 == 0 ? (size_t)fl__rng_below(&r, n_bytes) : n_bytes;
    for (int i = 0; variant % 4 != 0 && n > 0 && i < MAX_CHANGES; i++)
        copy[fl__rng_below(&r, n)] = (char)fl__rng_u64(&r);
    feed(copy, n);
    fl__free(&copy);
}

static void replay_file(const char *path)
{
    fl_err err;
    char *data = NULL;
    size_t n_bytes = 0;
    (void)printf("replay: %s\n", path);
    (void)fflush(stdout);
    if (fl__file_read(&data, &n_bytes, path, MAX_BYTES, &err) != FL_OK) {
        (void)printf("FAILED: %s\n", err.text);
        n_failed++;
        return;
    }
    feed(data, n_bytes);
    for (int variant = 0; n_bytes > 0 && variant < N_VARIANTS; variant++)
        feed_damaged(data, n_bytes, variant);
    fl__free(&data);
    n_passed++;
}

/* path: a file, or a directory whose files are replayed in the order of their names. */
static void replay(const char *path)
{
    char **names = NULL;
    size_t n_names = 0;
    if (fl__dir_list(&names, &n_names, path, NULL) != FL_OK) {
        replay_file(path);
        return;
    }
    for (size_t i = 0; i < n_names; i++) {
        char *file = fl__path_join(path, names[i]);
        if (file) replay_file(file);
        fl__free(&file);
    }
    fl__dir_list_free(&names, n_names);
}

int main(int argc, char **argv)
{
    feed("", 0);
    for (int i = 1; i < argc; i++) replay(argv[i]);
    (void)printf("%d passed, %d failed, 0 skipped\n", n_passed, n_failed);
    return n_failed > 0 || n_passed == 0;
}
