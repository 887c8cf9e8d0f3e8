/* fuzz_index.c - any bytes as model.safetensors.index.json beside two good shards.
 * SPDX-License-Identifier: MIT */
#include "base/file.h"
#include "base/mem.h"
#include "format/safetensors.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes);

static char dir[64] = "";

static void remove_dir(void)
{
    (void)fl__dir_remove(dir, NULL);
}

/* Plain writes: nothing here has to survive a crash, and fsync would cost most of the time. */
static void put(const char *name, const void *data, size_t n_bytes)
{
    char path[128];
    (void)snprintf(path, sizeof path, "%s/%s", dir, name);
    FILE *f = fopen(path, "wb");
    if (!f || fwrite(data, 1, n_bytes, f) != n_bytes || fclose(f) != 0) abort();
}

static void make_dir(void)
{
    static const char a[] = "\x38\0\0\0\0\0\0\0{\"a\":{\"dtype\":\"U8\",\"shape\":[2],\"data_"
                            "offsets\":[0,2]}}   xy";
    static const char b[] = "\x38\0\0\0\0\0\0\0{\"b\":{\"dtype\":\"U8\",\"shape\":[2],\"data_"
                            "offsets\":[0,2]}}   xy";
    (void)snprintf(dir, sizeof dir, "/tmp/flatiron-fuzz-XXXXXX");
    if (!mkdtemp(dir)) abort();
    (void)atexit(remove_dir);
    put("1.safetensors", a, sizeof a - 1);
    put("2.safetensors", b, sizeof b - 1);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes)
{
    fl_err err = {""};
    fl_tensors *set;
    const size_t before = fl__mem_get().now_bytes;
    if (!dir[0]) make_dir();
    put("model.safetensors.index.json", data, n_bytes);
    const fl_status st = fl__tensors_open(&set, dir, &err);
    if (st ? set || !err.text[0] : fl__tensors_count(set) == 0) abort();
    fl__tensors_close(&set);
    if (fl__mem_get().now_bytes != before) abort();
    return 0;
}
