/* checkpoint.c - OUT.partial. SPDX-License-Identifier: MIT */
#include "quant/checkpoint.h"

#include "base/file.h"
#include "base/mem.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

enum { MAX_JSON = 1 << 30 };

fl_status fl__checkpoint_interrupted(fl_err *err)
{
    return fl__fail(err, FL_E_INTERRUPTED,
                    "quantize: interrupted: the checkpoint is valid; go on with --resume");
}

char *fl__checkpoint_path(const fl_checkpoint *c, const char *name)
{
    return fl__path_join(c->dir, name);
}

void fl__checkpoint_block_name(char name[FL_BLOCK_NAME_BYTES], int block)
{
    (void)snprintf(name, FL_BLOCK_NAME_BYTES, "block-%05d.json", block);
}

fl_status fl__checkpoint_load(json_t **out, const fl_checkpoint *c, const char *name,
                              fl_err *err)
{
    char *path = fl__checkpoint_path(c, name);
    fl_status st = FL_OK;
    *out = NULL;
    if (!path) return fl__fail_nomem(err, name, strlen(name));
    if (fl__file_exists(path)) st = fl__json_load(out, path, MAX_JSON, err);
    fl__free(&path);
    return st;
}

fl_status fl__checkpoint_save(const fl_checkpoint *c, const char *name, const json_t *v,
                              fl_err *err)
{
    char *path = fl__checkpoint_path(c, name), *text = v ? fl__json_dump(v, 1) : NULL;
    const fl_status st = path && text ? fl__file_write(path, text, strlen(text), err)
                                      : fl__fail_nomem(err, name, strlen(name));
    fl__free(&path);
    fl__free(&text);
    return st;
}

/* path: room for dir, a slash and FL_BLOCK_NAME_BYTES. */
static fl_status forget(char *path, const char *dir, const char *name, fl_err *err)
{
    const size_t n = strlen(dir) + 1;
    memcpy(path, dir, n - 1);
    path[n - 1] = '/';
    (void)snprintf(path + n, FL_BLOCK_NAME_BYTES, "%s", name);
    if (!fl__file_exists(path) || unlink(path) == 0) return FL_OK;
    return fl__fail(err, FL_E_IO, "checkpoint: %s: cannot be removed; check its permissions",
                    path);
}

static char *path_for_forgetting(const char *dir, fl_err *err)
{
    const size_t n = strlen(dir) + 1 + FL_BLOCK_NAME_BYTES;
    char *path = fl__alloc(n, 1);
    if (!path) (void)fl__fail_nomem(err, dir, n);
    return path;
}

static fl_status forget_blocks(char *path, const char *dir, int first, int n_blocks,
                               fl_err *err)
{
    fl_status st = FL_OK;
    for (int i = first; i < n_blocks && !st; i++) {
        char name[FL_BLOCK_NAME_BYTES];
        fl__checkpoint_block_name(name, i);
        st = forget(path, dir, name, err);
    }
    return st;
}

fl_status fl__checkpoint_redo(const fl_checkpoint *c, int first, int n_blocks, fl_err *err)
{
    char *path = fl__checkpoint_path(c, FL_CHECKPOINT_TUNED);
    if (!path) return fl__fail_nomem(err, "redo", 64);
    const bool tuned = fl__file_exists(path);
    fl__free(&path);
    if (tuned) /* blocks may hold tuned values already */
        return fl__fail(
            err, FL_E_USAGE,
            "redo: %s: all blocks are tuned already; finish with --resume, or start "
            "again elsewhere",
            c->dir);
    path = path_for_forgetting(c->dir, err);
    fl_status st = path ? forget_blocks(path, c->dir, first, n_blocks, err) : FL_E_NOMEM;
    if (!st) st = forget(path, c->dir, FL_CHECKPOINT_TUNING, err);
    fl__free(&path);
    return st;
}

/* The first key whose value differs, NULL: equal. */
static const char *difference(const json_t *a, const json_t *b)
{
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)(uintptr_t)a, key, value)
    {
        if (!json_equal(value, json_object_get(b, key))) return key;
    }
    return json_object_size(a) == json_object_size(b) ? NULL : "program";
}

static fl_status check_fingerprint(const fl_checkpoint *c, const json_t *fingerprint,
                                   fl_err *err)
{
    json_t *state = NULL;
    fl_status st = fl__checkpoint_load(&state, c, "state.json", err);
    if (st) return st;
    const char *key = difference(fingerprint, state);
    if (!state || key)
        st = fl__fail(err, FL_E_USAGE,
                      "resume: %s: was made with another %s; use the same command line, or "
                      "remove the directory and start again",
                      c->dir, state ? key : "program (no state.json)");
    json_decref(state);
    return st;
}

/* A run that was killed before its first file leaves an empty directory, or half of that
 * file. */
static bool is_empty(const char *dir)
{
    char **names;
    size_t n;
    if (fl__dir_list(&names, &n, dir, NULL)) return false;
    const bool empty = n == 0 || (n == 1 && strcmp(names[0], "state.json.tmp") == 0);
    fl__dir_list_free(&names, n);
    return empty;
}

fl_status fl__checkpoint_open(fl_checkpoint *c, const char *out_dir, const json_t *fingerprint,
                              bool resume, fl_err *err)
{
    const size_t n = strlen(out_dir) + sizeof ".partial";
    fl_status st = FL_OK;

    *c = (fl_checkpoint){.out_dir = fl__strdup(out_dir), .dir = fl__alloc(n, 1)};
    if (!c->out_dir || !c->dir) {
        st = fl__fail_nomem(err, "checkpoint", n);
        goto out;
    }
    (void)snprintf(c->dir, n, "%s.partial", out_dir);
    if (access(out_dir, F_OK) == 0) {
        st = fl__fail(err, FL_E_USAGE,
                      "output: %s: exists already; choose another name or remove it", out_dir);
        goto out;
    }
    const bool there = access(c->dir, F_OK) == 0;
    if (there && !resume) {
        st = fl__fail(err, FL_E_USAGE,
                      "output: %s: holds an unfinished run; continue it with --resume or "
                      "remove it",
                      c->dir);
    } else if (there && !is_empty(c->dir)) {
        c->resumed = true;
        st = check_fingerprint(c, fingerprint, err);
    } else if (!(st = fl__dir_make(c->dir, err))) {
        st = fl__checkpoint_save(c, "state.json", fingerprint, err);
        if (st) (void)fl__dir_remove(c->dir, NULL);
    }
out:
    if (st) {
        fl__free(&c->dir);
        fl__free(&c->out_dir);
    }
    return st;
}

void fl__checkpoint_close(fl_checkpoint *c, bool remove_if_empty)
{
    if (c->dir && remove_if_empty && !c->resumed) {
        char first[FL_BLOCK_NAME_BYTES];
        fl__checkpoint_block_name(first, 0);
        char *path = fl__checkpoint_path(c, first);
        if (path && !fl__file_exists(path)) (void)fl__dir_remove(c->dir, NULL);
        fl__free(&path);
    }
    fl__free(&c->dir);
    fl__free(&c->out_dir);
}

fl_status fl__checkpoint_finish(fl_checkpoint *c, int n_blocks, fl_err *err)
{
    /* Renamed first, tidied up after: a kill in between loses nothing but tidiness. What
     * tidying needs is there before, so that no whole model is left untidy for want of it. */
    char *path = path_for_forgetting(c->out_dir, err);
    fl_status st = path ? fl__dir_sync(c->dir, err) : FL_E_NOMEM;
    if (!st) st = fl__dir_rename(c->dir, c->out_dir, err);
    if (!st) st = forget_blocks(path, c->out_dir, 0, n_blocks, err);
    if (!st) st = forget(path, c->out_dir, "plan.json", err);
    if (!st) st = forget(path, c->out_dir, FL_CHECKPOINT_TUNED, err);
    if (!st) st = forget(path, c->out_dir, FL_CHECKPOINT_TUNING, err);
    if (!st) st = forget(path, c->out_dir, "tuning.json", err);
    if (!st) st = forget(path, c->out_dir, "state.json", err);
    fl__free(&path);
    return st;
}
