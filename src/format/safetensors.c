/* safetensors.c - the set of tensors of a checkpoint.
 *
 * Files are mapped and their headers parsed one after the other (safetensors_header.c) into one
 * array of views, shards in the order of their names. At the end an index sorted by name serves
 * look-ups and shows names that occur twice.
 *
 * Not here: element types below one byte, tensors that straddle files, writing
 * (safetensors_write.c).
 * SPDX-License-Identifier: MIT */
#include "format/safetensors.h"

#include "base/file.h"
#include "base/mem.h"
#include "format/safetensors_header.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_INDEX_BYTES ((size_t)100000000)
enum { MAX_FILE_NAME_BYTES = 255 };

#define SINGLE_NAME "model.safetensors"
#define INDEX_NAME  "model.safetensors.index.json"

typedef struct {
    char *path;       /* owned */
    fl_file_map map;  /* owned; empty when the bytes are the caller's */
    json_t *metadata; /* owned, the __metadata__ object or NULL */
} tensor_file;

struct fl_tensors {
    char *where; /* owned: the file or index that was opened, for errors */
    tensor_file *files;
    size_t n_files;
    fl_view_list list;              /* owned, in file order */
    const fl_tensor_view **by_name; /* [n_views], sorted by name */
};

/* ---- the set ----------------------------------------------------------------------- */

static fl_status new_set(fl_tensors **out, const char *where, size_t n_files, fl_err *err)
{
    fl_tensors *set = fl__calloc(1, sizeof *set);
    if (set) set->files = fl__calloc(n_files, sizeof *set->files);
    if (set) set->where = fl__strdup(where);
    if (!set || !set->files || !set->where) {
        fl__tensors_close(&set);
        return fl__fail_nomem(err, where, n_files * sizeof(tensor_file));
    }
    *out = set;
    return FL_OK;
}

static fl_status add_file(fl_tensors *set, const char *path, fl_err *err)
{
    tensor_file *file = &set->files[set->n_files++];
    file->path = fl__strdup(path);
    if (!file->path) return fl__fail_nomem(err, path, strlen(path) + 1);
    const fl_status st = fl__file_map(&file->map, path, err);
    if (st) return st;
    return fl__safetensors_parse(&set->list, &file->metadata, file->map.data, file->map.n_bytes,
                                 file->path, err);
}

static int by_name(const void *a, const void *b)
{
    return strcmp((*(const fl_tensor_view *const *)a)->name,
                  (*(const fl_tensor_view *const *)b)->name);
}

/* Within a file JSON keys are unique, so that equal names are in two shards. */
static fl_status index_names(fl_tensors *set, fl_err *err)
{
    set->by_name = fl__alloc(set->list.n_views, sizeof *set->by_name);
    if (!set->by_name)
        return fl__fail_nomem(err, set->where, set->list.n_views * sizeof *set->by_name);
    for (size_t i = 0; i < set->list.n_views; i++) set->by_name[i] = &set->list.views[i];
    if (set->list.n_views > 1)
        qsort(set->by_name, set->list.n_views, sizeof *set->by_name, by_name);
    for (size_t i = 1; i < set->list.n_views; i++) {
        const fl_tensor_view *a = set->by_name[i - 1], *b = set->by_name[i];
        if (strcmp(a->name, b->name) == 0)
            return fl__fail(err, FL_E_INPUT,
                            "bad checkpoint: %s: %s: it is also in %s; get the files again",
                            a->file, a->name, b->file);
    }
    return FL_OK;
}

fl_status fl__tensors_open_file(fl_tensors **out, const char *path, fl_err *err)
{
    fl_tensors *set = NULL;
    *out = NULL;
    fl_status st = new_set(&set, path, 1, err);
    if (!st) st = add_file(set, path, err);
    if (!st) st = index_names(set, err);
    if (st) fl__tensors_close(&set);
    *out = set;
    return st;
}

fl_status fl__tensors_open_memory(fl_tensors **out, const void *data, size_t n_bytes,
                                  const char *where, fl_err *err)
{
    fl_tensors *set = NULL;
    *out = NULL;
    fl_status st = new_set(&set, where, 1, err);
    if (!st) {
        set->n_files = 1;
        set->files[0].path = fl__strdup(where);
        if (!set->files[0].path) st = fl__fail_nomem(err, where, strlen(where) + 1);
        else
            st = fl__safetensors_parse(&set->list, &set->files[0].metadata, data, n_bytes,
                                       set->files[0].path, err);
    }
    if (!st) st = index_names(set, err);
    if (st) fl__tensors_close(&set);
    *out = set;
    return st;
}

void fl__tensors_close(fl_tensors **set)
{
    fl_tensors *s = *set;
    if (!s) return;
    for (size_t i = 0; i < s->list.n_views; i++) fl__free(&s->list.views[i].name);
    for (size_t i = 0; i < s->n_files; i++) {
        fl__file_unmap(&s->files[i].map);
        json_decref(s->files[i].metadata);
        fl__free(&s->files[i].path);
    }
    fl__free(&s->list.views);
    fl__free(&s->by_name);
    fl__free(&s->files);
    fl__free(&s->where);
    fl__free(set);
}

/* ---- shards ------------------------------------------------------------------------ */

/* A shard's name may not lead out of the model directory. */
static bool plain_file_name(const char *name)
{
    return *name && strlen(name) <= MAX_FILE_NAME_BYTES && !strchr(name, '/') &&
           strcmp(name, ".") != 0 && strcmp(name, "..") != 0 && !fl__has_control_chars(name);
}

static int by_text(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

/* The distinct values of weight_map, sorted; borrowed from it, the array is owned. */
static fl_status list_shards(const char ***out, size_t *n_out, json_t *weight_map,
                             const char *where, fl_err *err)
{
    size_t n = 0, n_distinct = 0;
    const char *name;
    json_t *value;
    const char **shards = fl__alloc(json_object_size(weight_map), sizeof *shards);
    if (!shards)
        return fl__fail_nomem(err, where, json_object_size(weight_map) * sizeof *shards);
    json_object_foreach(weight_map, name, value)
    {
        const char *shard = json_string_value(value);
        if (!shard || !plain_file_name(shard)) {
            fl__free(&shards);
            return fl__fail(
                err, FL_E_INPUT,
                "bad index: %s: %.256s: %.255s is no plain file name; get the file again",
                where, name, shard ? shard : "its shard");
        }
        shards[n++] = shard;
    }
    if (n > 1) qsort(shards, n, sizeof *shards, by_text);
    for (size_t i = 0; i < n; i++)
        if (i == 0 || strcmp(shards[i], shards[n_distinct - 1]) != 0)
            shards[n_distinct++] = shards[i];
    *out = shards;
    *n_out = n_distinct;
    return FL_OK;
}

static const char *base_name(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

/* Every tensor of the index must be in the shard that the index names. */
static fl_status check_weight_map(const fl_tensors *set, json_t *weight_map, fl_err *err)
{
    const char *name;
    json_t *shard;
    json_object_foreach(weight_map, name, shard)
    {
        const fl_tensor_view *view = fl__tensors_find(set, name);
        if (!view || strcmp(base_name(view->file), json_string_value(shard)) != 0)
            return fl__fail(err, FL_E_INPUT,
                            "missing tensor: %s: %.256s: it is not in %s, where the index puts "
                            "it; get the files again",
                            set->where, name, json_string_value(shard));
    }
    return FL_OK;
}

static fl_status open_shards(fl_tensors **out, const char *dir, const char *index_path,
                             json_t *weight_map, fl_err *err)
{
    const char **shards = NULL;
    size_t n_shards = 0;
    fl_tensors *set = NULL;

    fl_status st = list_shards(&shards, &n_shards, weight_map, index_path, err);
    if (!st) st = new_set(&set, index_path, n_shards, err);
    for (size_t i = 0; !st && i < n_shards; i++) {
        char *path = fl__path_join(dir, shards[i]);
        st = path ? add_file(set, path, err) : fl__fail_nomem(err, dir, strlen(shards[i]));
        fl__free(&path);
    }
    if (!st) st = index_names(set, err);
    if (!st) st = check_weight_map(set, weight_map, err);
    if (st) fl__tensors_close(&set);
    fl__free(&shards);
    *out = set;
    return st;
}

static fl_status open_index(fl_tensors **out, const char *dir, const char *path, fl_err *err)
{
    json_t *index;
    fl_status st = fl__json_load(&index, path, MAX_INDEX_BYTES, err);
    if (st) return st;
    json_t *weight_map = json_object_get(index, "weight_map");
    if (!json_is_object(weight_map) || json_object_size(weight_map) == 0)
        st = fl__fail(err, FL_E_INPUT,
                      "bad index: %s: it has no weight_map with tensors; get the file again",
                      path);
    else st = open_shards(out, dir, path, weight_map, err);
    json_decref(index);
    return st;
}

fl_status fl__tensors_open(fl_tensors **out, const char *model_dir, fl_err *err)
{
    fl_status st;
    *out = NULL;
    char *single = fl__path_join(model_dir, SINGLE_NAME);
    char *index = fl__path_join(model_dir, INDEX_NAME);
    if (!single || !index) st = fl__fail_nomem(err, model_dir, strlen(model_dir));
    else if (fl__file_exists(single)) st = fl__tensors_open_file(out, single, err);
    else if (fl__file_exists(index)) st = open_index(out, model_dir, index, err);
    else
        st = fl__fail(err, FL_E_INPUT,
                      "no weights: %s: it has neither " SINGLE_NAME " nor " INDEX_NAME
                      "; name a model directory with safetensors",
                      model_dir);
    fl__free(&single);
    fl__free(&index);
    return st;
}

/* ---- look-up ----------------------------------------------------------------------- */

size_t fl__tensors_count(const fl_tensors *set)
{
    return set->list.n_views;
}

const fl_tensor_view *fl__tensors_at(const fl_tensors *set, size_t i)
{
    return &set->list.views[i];
}

const fl_tensor_view *fl__tensors_find(const fl_tensors *set, const char *name)
{
    size_t lo = 0, hi = set->list.n_views;
    while (lo < hi) {
        const size_t mid = lo + (hi - lo) / 2;
        const int order = strcmp(name, set->by_name[mid]->name);
        if (order == 0) return set->by_name[mid];
        if (order < 0) hi = mid;
        else lo = mid + 1;
    }
    return NULL;
}

/* "[2, *, 3]" */
static void print_shape(char *text, size_t text_bytes, int n_dims, const int64_t *dims)
{
    size_t n = (size_t)snprintf(text, text_bytes, "[");
    for (int i = 0; i < n_dims && n < text_bytes; i++) {
        if (dims[i] < 0) n += (size_t)snprintf(text + n, text_bytes - n, "%s*", i ? ", " : "");
        else
            n += (size_t)snprintf(text + n, text_bytes - n, "%s%" PRId64, i ? ", " : "",
                                  dims[i]);
    }
    if (n < text_bytes) (void)snprintf(text + n, text_bytes - n, "]");
}

static fl_status fail_dtype(fl_err *err, const fl_tensor_view *view, uint32_t dtypes)
{
    char wanted[160] = "";
    size_t n = 0;
    for (int i = 0; i < FL_N_DTYPES; i++)
        if (dtypes & FL_DTYPE_BIT(i))
            n += (size_t)snprintf(wanted + n, sizeof wanted - n, "%s%s", n ? " or " : "",
                                  fl__dtype_name((fl_dtype)i));
    return fl__fail(err, FL_E_INPUT,
                    "bad tensor: %s: %s: its dtype is %s, wanted %s; convert the checkpoint",
                    view->file, view->name, fl__dtype_name(view->dtype), wanted);
}

fl_status fl__tensors_require(const fl_tensor_view **out, const fl_tensors *set,
                              const char *name, uint32_t dtypes, int n_dims,
                              const int64_t *dims, fl_err *err)
{
    *out = NULL;
    const fl_tensor_view *view = fl__tensors_find(set, name);
    if (!view)
        return fl__fail(err, FL_E_INPUT,
                        "missing tensor: %s: %s: it is not there; check that config.json "
                        "belongs to these weights",
                        set->where, name);
    if (!(dtypes & FL_DTYPE_BIT(view->dtype))) return fail_dtype(err, view, dtypes);
    bool fits = n_dims < 0 || view->n_dims == n_dims;
    for (int i = 0; fits && i < n_dims; i++) fits = dims[i] < 0 || view->dims[i] == dims[i];
    if (!fits) {
        char has[24 * FL_MAX_DIMS], want[24 * FL_MAX_DIMS];
        print_shape(has, sizeof has, view->n_dims, view->dims);
        print_shape(want, sizeof want, n_dims, dims);
        return fl__fail(err, FL_E_INPUT,
                        "bad tensor: %s: %s: its shape is %s, wanted %s; check that "
                        "config.json belongs to these weights",
                        view->file, name, has, want);
    }
    *out = view;
    return FL_OK;
}

size_t fl__tensors_file_count(const fl_tensors *set)
{
    return set->n_files;
}

const char *fl__tensors_file(const fl_tensors *set, size_t i)
{
    return set->files[i].path;
}

const char *fl__tensors_metadata(const fl_tensors *set, const char *key)
{
    for (size_t i = 0; i < set->n_files; i++) {
        const char *value = json_string_value(json_object_get(set->files[i].metadata, key));
        if (value) return value;
    }
    return NULL;
}
