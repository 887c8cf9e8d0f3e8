/* broken_model.c - damaging copies of models. SPDX-License-Identifier: MIT */
#include "support/broken_model.h"

#include "support/fl_test.h"

#include "base/file.h"
#include "base/json.h"
#include "base/mem.h"
#include "format/safetensors.h"

#include <string.h>
#include <unistd.h>

enum { MAX_BYTES = 1 << 26 };

static void check(fl_status st, const fl_err *err)
{
    if (st != FL_OK) fail_msg("%s", err->text);
}

static char *join(const char *dir, const char *name)
{
    char *path = fl__path_join(dir, name);
    if (!path) fail_msg("out of memory");
    return path;
}

void fl_test_link_model(const char *dir, const char *from)
{
    char **names;
    size_t n;
    fl_err err = {""};
    if (access(dir, F_OK) == 0) check(fl__dir_remove(dir, &err), &err);
    check(fl__dir_make(dir, &err), &err);
    check(fl__dir_list(&names, &n, from, &err), &err);
    for (size_t i = 0; i < n; i++) {
        char *to = join(dir, names[i]), *source = join(from, names[i]);
        if (symlink(source, to) != 0) fail_msg("cannot link %s", to);
        fl__free(&to);
        fl__free(&source);
    }
    fl__dir_list_free(&names, n);
}

void fl_test_drop(const char *dir, const char *name)
{
    char *path = join(dir, name);
    if (unlink(path) != 0) fail_msg("cannot remove %s", path);
    fl__free(&path);
}

void fl_test_put(const char *dir, const char *name, const void *data, size_t n_bytes)
{
    char *path = join(dir, name);
    fl_err err = {""};
    (void)unlink(path); /* the link, not what it leads to */
    check(fl__file_write(path, data, n_bytes, &err), &err);
    fl__free(&path);
}

static char *read_all(const char *dir, const char *name, size_t *n_bytes)
{
    char *path = join(dir, name), *data;
    fl_err err = {""};
    check(fl__file_read(&data, n_bytes, path, MAX_BYTES, &err), &err);
    fl__free(&path);
    return data;
}

static json_t *parse(const char *text, size_t n_bytes)
{
    json_t *v;
    fl_err err = {""};
    check(fl__json_parse(&v, text, n_bytes, "test", &err), &err);
    return v;
}

static void merge(json_t *to, json_t *patch)
{
    const char *key;
    json_t *value;
    json_object_foreach(patch, key, value)
    {
        json_t *old = json_object_get(to, key);
        if (json_is_object(old) && json_is_object(value)) merge(old, value);
        else if (json_object_set(to, key, value) != 0) fail_msg("out of memory");
    }
}

void fl_test_patch_json(const char *dir, const char *name, const char *patch)
{
    size_t n_bytes;
    char *text = read_all(dir, name, &n_bytes);
    json_t *doc = parse(text, n_bytes), *changes = parse(patch, strlen(patch));
    merge(doc, changes);
    fl__free(&text);
    text = fl__json_dump(doc, 1);
    fl_test_put(dir, name, text, strlen(text));
    fl__free(&text);
    json_decref(doc);
    json_decref(changes);
}

void fl_test_patch_header(const char *dir, const char *name, const char *patch)
{
    size_t n_bytes;
    uint64_t n_header;
    char *file = read_all(dir, name, &n_bytes);
    json_t *changes = parse(patch, strlen(patch)), *value;
    const char *key;
    void *next;
    memcpy(&n_header, file, sizeof n_header);
    json_t *header = parse(file + 8, n_header);
    merge(header, changes);
    json_object_foreach_safe(header, next, key, value)
    {
        if (json_is_null(value)) (void)json_object_del(header, key);
    }
    char *text = fl__json_dump(header, 0);
    const size_t n_text = strlen(text), n_padded = (n_text + 7) / 8 * 8;
    const size_t n_data = n_bytes - 8 - n_header;
    char *out = fl__alloc(8 + n_padded + n_data, 1);
    memcpy(out, &(uint64_t){n_padded}, 8);
    memset(out + 8, ' ', n_padded);
    memcpy(out + 8, text, n_text);
    memcpy(out + 8 + n_padded, file + 8 + n_header, n_data);
    fl_test_put(dir, name, out, 8 + n_padded + n_data);
    fl__free(&out);
    fl__free(&text);
    fl__free(&file);
    json_decref(header);
    json_decref(changes);
}

void fl_test_poke(const char *dir, const char *tensor, size_t at, const void *bytes,
                  size_t n_bytes)
{
    fl_tensors *set;
    fl_err err = {""};
    size_t n_file;
    check(fl__tensors_open(&set, dir, &err), &err);
    const fl_tensor_view *view = fl__tensors_find(set, tensor);
    if (!view || at + n_bytes > view->n_bytes) fail_msg("no such bytes in %s", tensor);
    const char *name = strrchr(view->file, '/') + 1;
    char *file = read_all(dir, name, &n_file);
    /* where the view's data lies in the file: search from its first tensor */
    size_t first = n_file;
    for (size_t i = 0; i < fl__tensors_count(set); i++) {
        const fl_tensor_view *other = fl__tensors_at(set, i);
        if (strcmp(other->file, view->file) != 0) continue;
        const size_t distance = (size_t)((const char *)view->data - (const char *)other->data);
        uint64_t n_header;
        memcpy(&n_header, file, sizeof n_header);
        first = 8 + (size_t)n_header + distance; /* the first of a file comes first */
        break;
    }
    memcpy(file + first + at, bytes, n_bytes);
    fl_test_put(dir, name, file, n_file);
    fl__free(&file);
    fl__tensors_close(&set);
}
