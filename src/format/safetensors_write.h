/* safetensors_write.h - writing safetensors files tensor by tensor, and the index of shards.
 *
 * All tensors are declared when the file is opened, so that the header is known and the bytes
 * of each tensor can be written when they are ready, in pieces, in any order of tensors. The
 * bytes of the file are a function of the declarations and the data alone. The file appears
 * under its name only when it is complete and on disk (base/file.h).
 * SPDX-License-Identifier: MIT */
#ifndef FL_FORMAT_SAFETENSORS_WRITE_H
#define FL_FORMAT_SAFETENSORS_WRITE_H

#include "format/dtype.h"

typedef struct fl_tensor_decl {
    const char *name;
    fl_dtype dtype;
    int n_dims;
    int64_t dims[FL_MAX_DIMS];
} fl_tensor_decl;

typedef struct fl_metadata_pair {
    const char *key, *value;
} fl_metadata_pair;

typedef struct fl_safetensors_writer fl_safetensors_writer;

/* Nothing given is kept. Tensors lie in the file by falling element size, then as declared, so
 * that all are aligned. Metadata may be NULL with n_metadata 0.
 * FL_E_FAIL: a declaration that no reader would accept (name empty or twice, size overflow). */
fl_status fl__safetensors_writer_open(fl_safetensors_writer **out, const char *path,
                                      const fl_tensor_decl *decls, size_t n_decls,
                                      const fl_metadata_pair *metadata, size_t n_metadata,
                                      fl_err *err);
/* The next n_bytes of the tensor. FL_E_FAIL when it is not declared or gets too many. */
fl_status fl__safetensors_writer_write(fl_safetensors_writer *w, const char *name,
                                       const void *data, size_t n_bytes, fl_err *err);
/* fsync and rename; FL_E_FAIL when a tensor lacks bytes. Frees the writer in any case. */
fl_status fl__safetensors_writer_commit(fl_safetensors_writer **w, fl_err *err);
/* Frees the writer and leaves no file behind. No-op on NULL. */
void fl__safetensors_writer_discard(fl_safetensors_writer **w);

typedef struct fl_index_entry {
    const char *name, *file; /* tensor; name of its shard, without directory */
} fl_index_entry;

/* Writes dir/model.safetensors.index.json; total_bytes is the sum over the tensors' data. */
fl_status fl__tensors_write_index(const char *dir, const fl_index_entry *entries,
                                  size_t n_entries, int64_t total_bytes, fl_err *err);

#endif
