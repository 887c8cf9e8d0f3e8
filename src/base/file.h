/* file.h - files: mapping to read, atomic writing, the few directory operations needed.
 *
 * Writing never leaves a half-written file under its final name: data goes to "<path>.tmp", is
 * fsynced, renamed, and the directory is fsynced. A full disk is FL_E_NOSPACE, other failures
 * FL_E_IO (or FL_E_INPUT for a missing input), each naming the path and strerror.
 * SPDX-License-Identifier: MIT */
#ifndef FL_BASE_FILE_H
#define FL_BASE_FILE_H

#include "base/status.h"

/* Read-only private mapping of a regular file; an empty file has data NULL and n_bytes 0. */
typedef struct fl_file_map {
    const unsigned char *data;
    size_t n_bytes;
} fl_file_map;
fl_status fl__file_map(fl_file_map *map, const char *path, fl_err *err);
void fl__file_unmap(fl_file_map *map);

/* Whole file into *data (owned, a NUL behind the end); FL_E_INPUT above max_bytes. */
fl_status fl__file_read(char **data, size_t *n_bytes, const char *path, size_t max_bytes,
                        fl_err *err);
/* Atomic replacement of path. */
fl_status fl__file_write(const char *path, const void *data, size_t n_bytes, fl_err *err);
fl_status fl__file_copy(const char *from, const char *to, fl_err *err);
bool fl__file_exists(const char *path);

/* Stream for large files, same promise: open "<path>.tmp", write, commit or discard. */
typedef struct fl_file_writer {
    int fd;
    char *path, *tmp_path;
} fl_file_writer;
fl_status fl__file_writer_open(fl_file_writer *w, const char *path, fl_err *err);
fl_status fl__file_writer_write(fl_file_writer *w, const void *data, size_t n_bytes,
                                fl_err *err);
/* Writes at an offset from the start, leaving the stream's own position where it is; what
 * nobody writes is zero. */
fl_status fl__file_writer_write_at(fl_file_writer *w, int64_t offset, const void *data,
                                   size_t n_bytes, fl_err *err);
fl_status fl__file_writer_commit(fl_file_writer *w, fl_err *err);
void fl__file_writer_discard(fl_file_writer *w); /* no-op after commit */

/* dir + "/" + name, owned; NULL when out of memory. */
char *fl__path_join(const char *dir, const char *name);
fl_status fl__dir_make(const char *path, fl_err *err); /* ok if it exists as a directory */
fl_status fl__dir_sync(const char *path, fl_err *err);
fl_status fl__dir_rename(const char *from, const char *to, fl_err *err); /* + fsync of parent */
/* Removes a directory and the regular files directly in it (no recursion: ours are flat). */
fl_status fl__dir_remove(const char *path, fl_err *err);
/* Names of the regular files in dir, sorted by bytes, owned array of owned strings. */
fl_status fl__dir_list(char ***names, size_t *n_names, const char *dir, fl_err *err);
void fl__dir_list_free(char ***names, size_t n_names);
/* Bytes free for us on the file system that holds path (or its closest existing parent). */
int64_t fl__disk_free_bytes(const char *path);

#endif
