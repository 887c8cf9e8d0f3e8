/* safetensors_header.c - one safetensors file's header into views.
 *
 * The header is parsed as JSON, each entry is checked by itself, then the views are sorted by
 * offset. In that order one pass proves the layout: each view must begin where the one before
 * ends (so there is neither overlap nor hole), the first at 0, and the last must end where the
 * file ends.
 * SPDX-License-Identifier: MIT */
#include "format/safetensors_header.h"

#include "base/mem.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The limit of the format's own library: beyond it a header is an attack or an accident. */
#define MAX_HEADER_BYTES ((size_t)100000000)
enum { LENGTH_BYTES = 8, MAX_NAME_BYTES = 256 };

/* One file's bytes while its header is being read. */
typedef struct {
    const char *path;
    const unsigned char *data; /* behind the header */
    size_t data_bytes;
    fl_err *err;
} source;

static fl_status fail_tensor(const source *src, const char *name, const char *why)
{
    return fl__fail(src->err, FL_E_INPUT, "bad tensor: %s: %s: %s; get the file again",
                    src->path, name, why);
}

bool fl__has_control_chars(const char *s)
{
    for (; *s; s++)
        if ((unsigned char)*s < 0x20 || *s == 0x7f) return true;
    return false;
}

const char *fl__tensor_name_problem(const char *name)
{
    if (!*name) return "the name is empty";
    if (strlen(name) > MAX_NAME_BYTES) return "the name is longer than 256 bytes";
    if (fl__has_control_chars(name)) return "the name has control characters";
    if (strcmp(name, "__metadata__") == 0) return "the name is reserved";
    return NULL;
}

/* ---- one tensor's header entry ----------------------------------------------------- */

static fl_status parse_dtype(fl_tensor_view *view, const json_t *entry, const source *src)
{
    char why[96];
    const char *name = json_string_value(json_object_get(entry, "dtype"));
    if (!name) return fail_tensor(src, view->name, "it has no dtype");
    if (fl__dtype_parse(&view->dtype, name) == 0) return FL_OK;
    (void)snprintf(why, sizeof why, "dtype %.32s is not known", name);
    return fail_tensor(src, view->name, why);
}

static fl_status parse_shape(fl_tensor_view *view, const json_t *entry, const source *src)
{
    const json_t *shape = json_object_get(entry, "shape");
    if (!json_is_array(shape)) return fail_tensor(src, view->name, "it has no shape");
    if (json_array_size(shape) > FL_MAX_DIMS)
        return fail_tensor(src, view->name, "it has more than 8 dimensions");
    view->n_dims = (int)json_array_size(shape);
    for (int i = 0; i < view->n_dims; i++) {
        const json_t *dim = json_array_get(shape, (size_t)i);
        view->dims[i] = json_integer_value(dim);
        if (!json_is_integer(dim) || view->dims[i] < 0)
            return fail_tensor(src, view->name, "its shape has something else than sizes");
    }
    if (fl__shape_bytes(&view->n_elements, &view->n_bytes, view->dtype, view->n_dims,
                        view->dims))
        return fail_tensor(src, view->name, "its shape overflows 64 bits");
    return FL_OK;
}

/* Sets data; that it lies behind all others is checked later, over all tensors. */
static fl_status parse_offsets(fl_tensor_view *view, const json_t *entry, const source *src)
{
    char why[160];
    const json_t *offsets = json_object_get(entry, "data_offsets");
    const json_t *first = json_array_get(offsets, 0), *last = json_array_get(offsets, 1);
    if (json_array_size(offsets) != 2 || !json_is_integer(first) || !json_is_integer(last))
        return fail_tensor(src, view->name, "its data_offsets are no pair of integers");
    const int64_t begin = json_integer_value(first), end = json_integer_value(last);
    if (begin < 0 || end < begin)
        return fail_tensor(src, view->name, "its data_offsets run backwards");
    if ((uint64_t)end > src->data_bytes) {
        (void)snprintf(
            why, sizeof why,
            "it ends at byte %" PRId64
            " of the data, which has only %zu: the file is truncated or the offset is wrong",
            end, src->data_bytes);
        return fail_tensor(src, view->name, why);
    }
    if ((uint64_t)(end - begin) != view->n_bytes) {
        (void)snprintf(why, sizeof why,
                       "its data_offsets hold %" PRId64
                       " bytes, but its shape and dtype %s need %zu",
                       end - begin, fl__dtype_name(view->dtype), view->n_bytes);
        return fail_tensor(src, view->name, why);
    }
    view->data = src->data + begin;
    if ((uintptr_t)view->data % fl__dtype_bytes(view->dtype) != 0)
        return fail_tensor(src, view->name, "its data is not aligned to its element size");
    return FL_OK;
}

static fl_status parse_entry(fl_tensor_view *view, const char *name, const json_t *entry,
                             const source *src)
{
    const char *problem = fl__tensor_name_problem(name);
    if (problem) {
        /* Names of that kind are not printed whole. */
        char start[40];
        (void)snprintf(start, sizeof start, "\"%.32s\"", name);
        return fail_tensor(src, start, problem);
    }
    *view = (fl_tensor_view){.name = fl__strdup(name), .file = src->path};
    if (!view->name) return fl__fail_nomem(src->err, src->path, strlen(name) + 1);
    fl_status st = FL_OK;
    if (!json_is_object(entry)) st = fail_tensor(src, name, "its header entry is no object");
    if (!st) st = parse_dtype(view, entry, src);
    if (!st) st = parse_shape(view, entry, src);
    if (!st) st = parse_offsets(view, entry, src);
    if (st) fl__free(&view->name);
    return st;
}

/* ---- one file ---------------------------------------------------------------------- */

/* By offset; tensors without elements stand before the one that begins at the same place. */
static int by_place(const void *pa, const void *pb)
{
    const fl_tensor_view *a = pa, *b = pb;
    const uintptr_t x = (uintptr_t)a->data, y = (uintptr_t)b->data;
    if (x != y) return x < y ? -1 : 1;
    if (a->n_bytes != b->n_bytes) return a->n_bytes < b->n_bytes ? -1 : 1;
    return strcmp(a->name, b->name);
}

/* views are sorted by place. */
static fl_status check_layout(const fl_tensor_view *views, size_t n_views, const source *src)
{
    char why[MAX_NAME_BYTES + 96];
    const unsigned char *at = src->data, *end = src->data + src->data_bytes;
    for (size_t i = 0; i < n_views; i++) {
        const unsigned char *begin = views[i].data;
        if (begin < at) {
            (void)snprintf(why, sizeof why, "its data overlaps that of %s", views[i - 1].name);
            return fail_tensor(src, views[i].name, why);
        }
        if (begin > at) {
            (void)snprintf(why, sizeof why, "%td bytes before its data belong to no tensor",
                           begin - at);
            return fail_tensor(src, views[i].name, why);
        }
        at = begin + views[i].n_bytes;
    }
    if (at == end) return FL_OK;
    (void)snprintf(why, sizeof why, "%td bytes behind its data belong to no tensor", end - at);
    return fail_tensor(src, n_views ? views[n_views - 1].name : "(no tensors)", why);
}

static fl_status fail_file(fl_err *err, const char *path, const char *why)
{
    return fl__fail(err, FL_E_INPUT, "bad safetensors file: %s: %s; get the file again", path,
                    why);
}

/* Splits the bytes into header and data. */
static fl_status read_header(json_t **header, source *src, const unsigned char *bytes,
                             size_t n_bytes)
{
    char why[128];
    uint64_t header_bytes = 0;

    *header = NULL;
    if (n_bytes < LENGTH_BYTES)
        return fail_file(src->err, src->path, "it has no 8-byte length");
    for (int i = 0; i < LENGTH_BYTES; i++) header_bytes |= (uint64_t)bytes[i] << (8 * i);
    if (header_bytes > MAX_HEADER_BYTES || header_bytes > n_bytes - LENGTH_BYTES) {
        (void)snprintf(why, sizeof why, "a header of %" PRIu64 " bytes does not fit %s",
                       header_bytes,
                       header_bytes > MAX_HEADER_BYTES ? "the limit of 100 MB"
                                                       : "the file, which may be truncated");
        return fail_file(src->err, src->path, why);
    }
    const char *text = (const char *)bytes + LENGTH_BYTES;
    if (header_bytes == 0 || text[0] != '{')
        return fail_file(src->err, src->path, "its header does not begin with {");
    const fl_status st =
        fl__json_parse(header, text, (size_t)header_bytes, src->path, src->err);
    if (st) return st;
    src->data = bytes + LENGTH_BYTES + header_bytes;
    src->data_bytes = n_bytes - LENGTH_BYTES - (size_t)header_bytes;
    return FL_OK;
}

static fl_status read_metadata(json_t **metadata, json_t *header, const source *src)
{
    const char *key;
    json_t *value, *object = json_object_get(header, "__metadata__");
    if (!object) return FL_OK;
    if (!json_is_object(object))
        return fail_file(src->err, src->path, "its __metadata__ is no object");
    json_object_foreach(object, key, value)
    {
        if (!json_is_string(value))
            return fail_file(src->err, src->path,
                             "its __metadata__ holds something else than texts");
    }
    *metadata = json_incref(object);
    return FL_OK;
}

fl_status fl__safetensors_parse(fl_view_list *list, json_t **metadata,
                                const unsigned char *bytes, size_t n_bytes, const char *path,
                                fl_err *err)
{
    source src = {.path = path, .err = err};
    json_t *header, *entry;
    const char *name;
    const size_t first = list->n_views;

    *metadata = NULL;
    fl_status st = read_header(&header, &src, bytes, n_bytes);
    if (st) return st;
    const size_t n_views = first + json_object_size(header);
    if (fl__grow((void **)&list->views, n_views, sizeof *list->views)) {
        st = fl__fail_nomem(err, path, n_views * sizeof *list->views);
        goto out;
    }
    json_object_foreach(header, name, entry)
    {
        if (strcmp(name, "__metadata__") == 0) continue;
        st = parse_entry(&list->views[list->n_views], name, entry, &src);
        if (st) goto out;
        list->n_views++;
    }
    if (list->n_views - first > 1)
        qsort(list->views + first, list->n_views - first, sizeof *list->views, by_place);
    st = check_layout(list->views + first, list->n_views - first, &src);
    if (!st) st = read_metadata(metadata, header, &src);
out:
    json_decref(header);
    return st;
}
