/* safetensors_header.h - the header of one safetensors file, read and checked; for
 * safetensors.c.
 *
 * A file is
 *     u64 little-endian: bytes of the header | header: one JSON object | data
 *     header: {"__metadata__": {"key": "text"}, "name": {"dtype": "BF16", "shape": [2, 3],
 *              "data_offsets": [begin, end]}}   offsets relative to the data
 * SPDX-License-Identifier: MIT */
#ifndef FL_FORMAT_SAFETENSORS_HEADER_H
#define FL_FORMAT_SAFETENSORS_HEADER_H

#include "base/json.h"
#include "format/safetensors.h"

typedef struct {
    fl_tensor_view *views; /* owned array, names owned */
    size_t n_views;
} fl_view_list;

/* Appends the tensors of a file's bytes to list, sorted by offset; their data points into
 * bytes, their file is path itself (not copied). *metadata is the __metadata__ object (caller:
 * json_decref) or NULL. On failure list may have gained views, which its owner frees as always.
 */
fl_status fl__safetensors_parse(fl_view_list *list, json_t **metadata,
                                const unsigned char *bytes, size_t n_bytes, const char *path,
                                fl_err *err);

bool fl__has_control_chars(const char *s);

#endif
