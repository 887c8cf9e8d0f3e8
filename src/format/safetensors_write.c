/* safetensors_write.c - streaming writer.
 *
 * Each tensor's place is fixed at open: element size falling, then the order of declaration;
 * with the header padded to 8 bytes every tensor is then aligned without holes between them.
 * Data goes to its place with positioned writes, so that a caller that works block by block
 * need not know the order. SPDX-License-Identifier: MIT */
#include "format/safetensors_write.h"

#include "base/file.h"
#include "base/json.h"
#include "base/mem.h"
#include "format/safetensors.h"

#include <stdlib.h>
#include <string.h>

enum { LENGTH_BYTES = 8, HEADER_ALIGN_BYTES = 8 };

typedef struct {
    const fl_tensor_decl *decl; /* the caller's, used while opening */
    char *name;                 /* owned */
    size_t n_bytes, n_written;
    int64_t offset; /* from the start of the data */
} slot;

struct fl_safetensors_writer {
    fl_file_writer file;
    slot *slots; /* [n_slots] in file order */
    size_t n_slots;
    size_t n_header_bytes; /* with the length in front */
    size_t last;           /* slot written last: writes mostly go on there or behind it */
};

static fl_status fail_write(fl_err *err, const fl_safetensors_writer *w, const char *name,
                            const char *why)
{
    return fl__fail(err, FL_E_FAIL,
                    "cannot write tensor: %s: %s: %s; this is a fault of the program",
                    w->file.path, name, why);
}

static int by_element_size(const void *pa, const void *pb)
{
    const slot *a = pa, *b = pb;
    const size_t x = fl__dtype_bytes(a->decl->dtype), y = fl__dtype_bytes(b->decl->dtype);
    if (x != y) return x > y ? -1 : 1;
    return a->decl < b->decl ? -1 : a->decl > b->decl; /* as declared */
}

static int by_name(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

static fl_status check_unique(const fl_safetensors_writer *w, fl_err *err)
{
    fl_status st = FL_OK;
    const char **names = fl__alloc(w->n_slots, sizeof *names);
    if (!names) return fl__fail_nomem(err, w->file.path, w->n_slots * sizeof *names);
    for (size_t i = 0; i < w->n_slots; i++) names[i] = w->slots[i].name;
    if (w->n_slots > 1) qsort(names, w->n_slots, sizeof *names, by_name);
    for (size_t i = 1; !st && i < w->n_slots; i++)
        if (strcmp(names[i - 1], names[i]) == 0)
            st = fail_write(err, w, names[i], "it is declared twice");
    fl__free(&names);
    return st;
}

/* Fills the slots in file order and checks the declarations. */
static fl_status place(fl_safetensors_writer *w, const fl_tensor_decl *decls, size_t n_decls,
                       fl_err *err)
{
    int64_t n_elements, at = 0;
    w->slots = fl__calloc(n_decls, sizeof *w->slots);
    if (!w->slots) return fl__fail_nomem(err, w->file.path, n_decls * sizeof *w->slots);
    w->n_slots = n_decls;
    for (size_t i = 0; i < n_decls; i++) {
        const char *problem = fl__tensor_name_problem(decls[i].name);
        if (problem) return fail_write(err, w, decls[i].name, problem);
        w->slots[i].decl = &decls[i];
        w->slots[i].name = fl__strdup(decls[i].name);
        if (!w->slots[i].name) return fl__fail_nomem(err, w->file.path, strlen(decls[i].name));
    }
    if (n_decls > 1) qsort(w->slots, n_decls, sizeof *w->slots, by_element_size);
    for (size_t i = 0; i < n_decls; i++) {
        slot *s = &w->slots[i];
        s->offset = at;
        if (s->decl->n_dims < 0 || s->decl->n_dims > FL_MAX_DIMS)
            return fail_write(err, w, s->name, "it has more than 8 dimensions");
        if (fl__shape_bytes(&n_elements, &s->n_bytes, s->decl->dtype, s->decl->n_dims,
                            s->decl->dims) ||
            __builtin_add_overflow(at, s->n_bytes, &at) || at > INT64_MAX / 2)
            return fail_write(err, w, s->name, "its size overflows");
    }
    return check_unique(w, err);
}

/* {"dtype": ..., "shape": [...], "data_offsets": [...]} or NULL. */
static json_t *entry_of(const slot *s)
{
    json_t *shape = json_array();
    for (int i = 0; i < s->decl->n_dims; i++)
        if (json_array_append_new(shape, json_integer(s->decl->dims[i]))) {
            json_decref(shape);
            return NULL;
        }
    return json_pack("{s:s, s:o, s:[I, I]}", "dtype", fl__dtype_name(s->decl->dtype), "shape",
                     shape, "data_offsets", (json_int_t)s->offset,
                     (json_int_t)(s->offset + (int64_t)s->n_bytes));
}

/* The header's text, owned, or NULL. */
static char *header_text(const fl_safetensors_writer *w, const fl_metadata_pair *metadata,
                         size_t n_metadata)
{
    char *text = NULL;
    json_t *header = json_object(), *pairs = json_object();
    int failed = !header || !pairs;
    for (size_t i = 0; !failed && i < n_metadata; i++)
        failed = json_object_set_new(pairs, metadata[i].key, json_string(metadata[i].value));
    if (!failed && n_metadata > 0) failed = json_object_set(header, "__metadata__", pairs);
    for (size_t i = 0; !failed && i < w->n_slots; i++)
        failed = json_object_set_new(header, w->slots[i].name, entry_of(&w->slots[i]));
    if (!failed) text = fl__json_dump(header, 0);
    json_decref(pairs);
    json_decref(header);
    return text;
}

/* Length, header, spaces up to a multiple of 8 bytes. */
static fl_status write_header(fl_safetensors_writer *w, const fl_metadata_pair *metadata,
                              size_t n_metadata, fl_err *err)
{
    unsigned char length[LENGTH_BYTES];
    char *text = header_text(w, metadata, n_metadata);
    if (!text)
        return fl__fail(
            err, FL_E_NOMEM,
            "cannot write header: %s: memory ran out or a text is no UTF-8; free memory",
            w->file.path);
    const size_t text_bytes = strlen(text);
    const size_t n_pad =
        (HEADER_ALIGN_BYTES - text_bytes % HEADER_ALIGN_BYTES) % HEADER_ALIGN_BYTES;
    const uint64_t header_bytes = text_bytes + n_pad;
    for (int i = 0; i < LENGTH_BYTES; i++) length[i] = (unsigned char)(header_bytes >> (8 * i));
    fl_status st = fl__file_writer_write(&w->file, length, sizeof length, err);
    if (!st) st = fl__file_writer_write(&w->file, text, text_bytes, err);
    if (!st) st = fl__file_writer_write(&w->file, "        ", n_pad, err);
    w->n_header_bytes = LENGTH_BYTES + (size_t)header_bytes;
    fl__free(&text);
    return st;
}

fl_status fl__safetensors_writer_open(fl_safetensors_writer **out, const char *path,
                                      const fl_tensor_decl *decls, size_t n_decls,
                                      const fl_metadata_pair *metadata, size_t n_metadata,
                                      fl_err *err)
{
    *out = NULL;
    fl_safetensors_writer *w = fl__calloc(1, sizeof *w);
    if (!w) return fl__fail_nomem(err, path, sizeof *w);
    fl_status st = fl__file_writer_open(&w->file, path, err);
    if (!st) st = place(w, decls, n_decls, err);
    if (!st) st = write_header(w, metadata, n_metadata, err);
    if (st) {
        fl__safetensors_writer_discard(&w);
        return st;
    }
    for (size_t i = 0; i < w->n_slots; i++)
        w->slots[i].decl = NULL; /* the caller's, not kept */
    *out = w;
    return FL_OK;
}

/* From the slot written last on, around to it again. */
static slot *find_slot(fl_safetensors_writer *w, const char *name)
{
    for (size_t i = 0; i < w->n_slots; i++) {
        const size_t k = (w->last + i) % w->n_slots;
        if (strcmp(w->slots[k].name, name) != 0) continue;
        w->last = k;
        return &w->slots[k];
    }
    return NULL;
}

fl_status fl__safetensors_writer_write(fl_safetensors_writer *w, const char *name,
                                       const void *data, size_t n_bytes, fl_err *err)
{
    slot *s = find_slot(w, name);
    if (!s) return fail_write(err, w, name, "it was not declared");
    if (n_bytes > s->n_bytes - s->n_written)
        return fail_write(err, w, name, "it gets more bytes than declared");
    const int64_t at = (int64_t)w->n_header_bytes + s->offset + (int64_t)s->n_written;
    const fl_status st = fl__file_writer_write_at(&w->file, at, data, n_bytes, err);
    if (!st) s->n_written += n_bytes;
    return st;
}

fl_status fl__safetensors_writer_commit(fl_safetensors_writer **pw, fl_err *err)
{
    fl_safetensors_writer *w = *pw;
    fl_status st = FL_OK;
    for (size_t i = 0; !st && i < w->n_slots; i++)
        if (w->slots[i].n_written != w->slots[i].n_bytes)
            st = fail_write(err, w, w->slots[i].name, "not all of its bytes were written");
    if (!st) st = fl__file_writer_commit(&w->file, err);
    fl__safetensors_writer_discard(pw);
    return st;
}

void fl__safetensors_writer_discard(fl_safetensors_writer **pw)
{
    fl_safetensors_writer *w = *pw;
    if (!w) return;
    fl__file_writer_discard(&w->file);
    for (size_t i = 0; i < w->n_slots; i++) fl__free(&w->slots[i].name);
    fl__free(&w->slots);
    fl__free(pw);
}

fl_status fl__tensors_write_index(const char *dir, const fl_index_entry *entries,
                                  size_t n_entries, int64_t total_bytes, fl_err *err)
{
    char *text = NULL, *path = fl__path_join(dir, "model.safetensors.index.json");
    json_t *map = json_object();
    json_t *index = json_pack("{s:{s:I}, s:O}", "metadata", "total_size",
                              (json_int_t)total_bytes, "weight_map", map);
    int failed = !path || !index;
    for (size_t i = 0; !failed && i < n_entries; i++)
        failed = json_object_set_new(map, entries[i].name, json_string(entries[i].file));
    if (!failed) text = fl__json_dump(index, 2);
    const fl_status st = text ? fl__file_write(path, text, strlen(text), err)
                              : fl__fail_nomem(err, dir, n_entries * sizeof *entries);
    json_decref(index);
    json_decref(map);
    fl__free(&text);
    fl__free(&path);
    return st;
}
