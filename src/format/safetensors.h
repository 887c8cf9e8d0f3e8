/* safetensors.h - the tensors of a checkpoint: one file or shards with an index, mapped, not
 * copied.
 *
 * Everything in the files is untrusted. After a successful open every view is known to lie
 * inside its mapping, with a size that equals shape times element size, at an address that
 * suits its element type, and no two views overlap; docs/formats.md lists the checks. The
 * contents are not looked at (NaNs, codes out of range): that is for those who know what they
 * mean. All failures are FL_E_INPUT, FL_E_IO or FL_E_NOMEM and name the file and the tensor.
 * SPDX-License-Identifier: MIT */
#ifndef FL_FORMAT_SAFETENSORS_H
#define FL_FORMAT_SAFETENSORS_H

#include "format/dtype.h"

typedef struct fl_tensor_view {
    const char *name; /* borrowed from the set, like everything here */
    const char *file; /* path of the file that holds it */
    fl_dtype dtype;
    int n_dims; /* 0: a scalar */
    int64_t dims[FL_MAX_DIMS];
    int64_t n_elements;
    const void *data; /* in the mapping, row-major, aligned to the element size */
    size_t n_bytes;
} fl_tensor_view;

typedef struct fl_tensors fl_tensors;

/* Opens model_dir/model.safetensors, or, where there is none, all the shards that
 * model.safetensors.index.json names. */
fl_status fl__tensors_open(fl_tensors **out, const char *model_dir, fl_err *err);
/* Opens one file. */
fl_status fl__tensors_open_file(fl_tensors **out, const char *path, fl_err *err);
/* The same over n_bytes at data that the caller keeps alive; where names them in errors. data
 * must be 8-byte aligned. */
fl_status fl__tensors_open_memory(fl_tensors **out, const void *data, size_t n_bytes,
                                  const char *where, fl_err *err);
void fl__tensors_close(fl_tensors **set);

/* In file order: by shard name, then by offset. */
size_t fl__tensors_count(const fl_tensors *set);
const fl_tensor_view *fl__tensors_at(const fl_tensors *set, size_t i);
/* NULL when there is no such tensor. O(log n). */
const fl_tensor_view *fl__tensors_find(const fl_tensors *set, const char *name);
/* The tensor, which must have a type out of dtypes (FL_DTYPE_BIT mask) and these dimensions
 * (-1: any; n_dims -1: any shape, dims unused). */
fl_status fl__tensors_require(const fl_tensor_view **out, const fl_tensors *set,
                              const char *name, uint32_t dtypes, int n_dims,
                              const int64_t *dims, fl_err *err);

/* Files of the set, and the value of a key of their __metadata__ (NULL: none; first file wins).
 */
size_t fl__tensors_file_count(const fl_tensors *set);
const char *fl__tensors_file(const fl_tensors *set, size_t i);
const char *fl__tensors_metadata(const fl_tensors *set, const char *key);

/* NULL when name may stand in a safetensors header, else why not. */
const char *fl__tensor_name_problem(const char *name);

#endif
