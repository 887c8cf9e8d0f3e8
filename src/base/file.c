/* file.c - mapping, whole files, atomic replacement and flat directories on POSIX.
 *
 * Writing: data goes to "<path>.tmp", is fsynced, renamed over path, and the directory is
 * fsynced, so that after a crash the name holds either all of the old bytes or all of the new
 * ones.
 *
 * Reading: a mapping is private and read-only; a file that someone else truncates while it is
 * mapped raises SIGBUS on access, which is why model directories must not change under a run.
 *
 * A failed read of something that the user named is FL_E_INPUT where naming another path helps
 * (missing, no permission, a directory), and FL_E_IO where the system is at fault.
 * SPDX-License-Identifier: MIT */
#include "base/file.h"

#include "base/mem.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

enum { COPY_CHUNK_BYTES = 1 << 16 };

static fl_status fail_read(fl_err *err, const char *path, int code)
{
    const bool by_user = code == ENOENT || code == ENOTDIR || code == EISDIR ||
                         code == EACCES || code == ELOOP || code == ENAMETOOLONG ||
                         code == ENXIO;
    return fl__fail(err, by_user ? FL_E_INPUT : FL_E_IO, "cannot read: %s: %s; %s", path,
                    strerror(code),
                    by_user ? "check the path" : "check the disk and try again");
}

static fl_status fail_write(fl_err *err, const char *path, int code)
{
    if (code == ENOSPC || code == EDQUOT || code == EFBIG)
        return fl__fail(err, FL_E_NOSPACE,
                        "cannot write: %s: %s; free disk space or choose another directory",
                        path, strerror(code));
    return fl__fail(err, FL_E_IO,
                    "cannot write: %s: %s; check the directory and its permissions", path,
                    strerror(code));
}

/* O_NONBLOCK keeps a FIFO in a model directory from blocking the open; it does nothing to
 * files. */
static fl_status open_regular(int *fd, struct stat *info, const char *path, fl_err *err)
{
    *fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (*fd < 0) return fail_read(err, path, errno);
    int code = 0;
    if (fstat(*fd, info) != 0) code = errno;
    else if (S_ISDIR(info->st_mode)) code = EISDIR;
    if (code == 0 && S_ISREG(info->st_mode)) return FL_OK;
    close(*fd);
    *fd = -1;
    if (code) return fail_read(err, path, code);
    return fl__fail(err, FL_E_INPUT, "cannot read: %s: no regular file; name a file", path);
}

fl_status fl__file_map(fl_file_map *map, const char *path, fl_err *err)
{
    struct stat info;
    int fd;

    *map = (fl_file_map){NULL, 0};
    fl_status st = open_regular(&fd, &info, path, err);
    if (st) return st;
    const size_t n_bytes = (size_t)info.st_size;
    void *data = NULL;
    if (n_bytes > 0) {
        data = mmap(NULL, n_bytes, PROT_READ, MAP_PRIVATE, fd, 0);
        if (data == MAP_FAILED)
            st = errno == ENOMEM ? fl__fail_nomem(err, path, n_bytes)
                                 : fail_read(err, path, errno);
    }
    close(fd);
    if (st) return st;
    *map = (fl_file_map){data, n_bytes};
    return FL_OK;
}

void fl__file_unmap(fl_file_map *map)
{
    if (map->data) munmap((void *)(uintptr_t)map->data, map->n_bytes);
    *map = (fl_file_map){NULL, 0};
}

/* read() until n_bytes or the end of the file; -1 with errno on failure. */
static ssize_t read_full(int fd, char *buffer, size_t n_bytes)
{
    size_t n = 0;
    while (n < n_bytes) {
        const ssize_t got = read(fd, buffer + n, n_bytes - n);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) return -1;
        if (got == 0) break;
        n += (size_t)got;
    }
    return (ssize_t)n;
}

static fl_status fail_too_large(fl_err *err, const char *path, size_t max_bytes)
{
    return fl__fail(err, FL_E_INPUT,
                    "cannot read: %s: larger than the %zu bytes that such a file may have; "
                    "check that it is the right file",
                    path, max_bytes);
}

fl_status fl__file_read(char **data, size_t *n_bytes, const char *path, size_t max_bytes,
                        fl_err *err)
{
    struct stat info;
    int fd;
    char *buffer = NULL;

    *data = NULL;
    *n_bytes = 0;
    fl_status st = open_regular(&fd, &info, path, err);
    if (st) return st;
    const size_t size = (size_t)info.st_size;
    if (size > max_bytes) {
        st = fail_too_large(err, path, max_bytes);
        goto out;
    }
    /* One byte more is asked for, so that a file that grew meanwhile is noticed. */
    buffer = fl__alloc(size + 2, 1);
    if (!buffer) {
        st = fl__fail_nomem(err, path, size);
        goto out;
    }
    const ssize_t got = read_full(fd, buffer, size + 1);
    if (got < 0) {
        st = fail_read(err, path, errno);
        goto out;
    }
    if ((size_t)got != size) {
        st = fl__fail(err, FL_E_IO,
                      "cannot read: %s: the file changed while it was read; try again when it "
                      "is complete",
                      path);
        goto out;
    }
    buffer[size] = '\0';
    *data = buffer;
    *n_bytes = size;
    buffer = NULL;
out:
    close(fd);
    fl__free(&buffer);
    return st;
}

fl_status fl__file_write(const char *path, const void *data, size_t n_bytes, fl_err *err)
{
    fl_file_writer w;
    fl_status st = fl__file_writer_open(&w, path, err);
    if (!st) st = fl__file_writer_write(&w, data, n_bytes, err);
    if (!st) st = fl__file_writer_commit(&w, err);
    fl__file_writer_discard(&w);
    return st;
}

fl_status fl__file_copy(const char *from, const char *to, fl_err *err)
{
    struct stat info;
    int fd;
    fl_file_writer w = {.fd = -1};

    fl_status st = open_regular(&fd, &info, from, err);
    if (st) return st;
    char *chunk = fl__alloc(COPY_CHUNK_BYTES, 1);
    if (!chunk) {
        st = fl__fail_nomem(err, from, COPY_CHUNK_BYTES);
        goto out;
    }
    st = fl__file_writer_open(&w, to, err);
    while (!st) {
        const ssize_t got = read_full(fd, chunk, COPY_CHUNK_BYTES);
        if (got < 0) st = fail_read(err, from, errno);
        if (got <= 0) break;
        st = fl__file_writer_write(&w, chunk, (size_t)got, err);
    }
    if (!st) st = fl__file_writer_commit(&w, err);
out:
    close(fd);
    fl__file_writer_discard(&w);
    fl__free(&chunk);
    return st;
}

bool fl__file_exists(const char *path)
{
    struct stat info;
    return stat(path, &info) == 0;
}

fl_status fl__file_writer_open(fl_file_writer *w, const char *path, fl_err *err)
{
    *w = (fl_file_writer){.fd = -1};
    const size_t n_bytes = strlen(path) + sizeof ".tmp";
    w->path = fl__strdup(path);
    w->tmp_path = fl__alloc(n_bytes, 1);
    if (!w->path || !w->tmp_path) {
        fl__free(&w->path);
        fl__free(&w->tmp_path);
        return fl__fail_nomem(err, path, n_bytes);
    }
    (void)snprintf(w->tmp_path, n_bytes, "%s.tmp", path);
    w->fd = open(w->tmp_path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    if (w->fd >= 0) return FL_OK;
    const fl_status st = fail_write(err, w->tmp_path, errno);
    fl__free(&w->path);
    fl__free(&w->tmp_path);
    return st;
}

fl_status fl__file_writer_write(fl_file_writer *w, const void *data, size_t n_bytes,
                                fl_err *err)
{
    const unsigned char *p = data;
    while (n_bytes > 0) {
        const ssize_t done = write(w->fd, p, n_bytes);
        if (done < 0 && errno == EINTR) continue;
        if (done < 0) return fail_write(err, w->tmp_path, errno);
        p += done;
        n_bytes -= (size_t)done;
    }
    return FL_OK;
}

fl_status fl__file_writer_write_at(fl_file_writer *w, int64_t offset, const void *data,
                                   size_t n_bytes, fl_err *err)
{
    const unsigned char *p = data;
    while (n_bytes > 0) {
        const ssize_t done = pwrite(w->fd, p, n_bytes, offset);
        if (done < 0 && errno == EINTR) continue;
        if (done < 0) return fail_write(err, w->tmp_path, errno);
        p += done;
        offset += done;
        n_bytes -= (size_t)done;
    }
    return FL_OK;
}

/* Directory part of path, owned: "a/b" -> "a", "a" -> ".", "/a" -> "/", trailing slashes
 * ignored. */
static char *parent_of(const char *path)
{
    size_t n = strlen(path);
    while (n > 1 && path[n - 1] == '/') n--;
    while (n > 0 && path[n - 1] != '/') n--;
    while (n > 1 && path[n - 1] == '/') n--;
    return n == 0 ? fl__strdup(".") : fl__strndup(path, n);
}

static fl_status sync_parent(const char *path, fl_err *err)
{
    char *parent = parent_of(path);
    if (!parent) return fl__fail_nomem(err, path, strlen(path));
    const fl_status st = fl__dir_sync(parent, err);
    fl__free(&parent);
    return st;
}

fl_status fl__file_writer_commit(fl_file_writer *w, fl_err *err)
{
    fl_status st = FL_OK;
    if (fsync(w->fd) != 0) st = fail_write(err, w->tmp_path, errno);
    const int closed = close(w->fd);
    w->fd = -1;
    if (!st && closed != 0) st = fail_write(err, w->tmp_path, errno);
    if (!st && rename(w->tmp_path, w->path) != 0) st = fail_write(err, w->path, errno);
    if (!st) {
        fl__free(&w->tmp_path); /* nothing left that discard would have to remove */
        st = sync_parent(w->path, err);
    }
    fl__file_writer_discard(w);
    return st;
}

void fl__file_writer_discard(fl_file_writer *w)
{
    if (!w->path) return;
    if (w->fd >= 0) close(w->fd);
    if (w->tmp_path) (void)unlink(w->tmp_path);
    w->fd = -1;
    fl__free(&w->path);
    fl__free(&w->tmp_path);
}

char *fl__path_join(const char *dir, const char *name)
{
    const size_t n_bytes = strlen(dir) + strlen(name) + 2;
    char *path = fl__alloc(n_bytes, 1);
    if (path) (void)snprintf(path, n_bytes, "%s/%s", dir, name);
    return path;
}

fl_status fl__dir_make(const char *path, fl_err *err)
{
    if (mkdir(path, 0777) == 0) return FL_OK;
    const int code = errno;
    struct stat info;
    if (code == EEXIST && stat(path, &info) == 0 && S_ISDIR(info.st_mode)) return FL_OK;
    return fail_write(err, path, code);
}

fl_status fl__dir_sync(const char *path, fl_err *err)
{
    const int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0) return fail_write(err, path, errno);
    const int code = fsync(fd) == 0 ? 0 : errno;
    close(fd);
    /* Some file systems have no fsync of directories and say so; there is nothing more to do.
     */
    if (code == 0 || code == EINVAL || code == ENOTSUP) return FL_OK;
    return fail_write(err, path, code);
}

fl_status fl__dir_rename(const char *from, const char *to, fl_err *err)
{
    if (rename(from, to) != 0) return fail_write(err, to, errno);
    return sync_parent(to, err);
}

static int by_bytes(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

typedef struct {
    char **names;
    size_t n_names, capacity;
} name_list;

static int push_name(name_list *list, const char *name)
{
    if (list->n_names == list->capacity) {
        const size_t capacity = list->capacity ? 2 * list->capacity : 16;
        if (fl__grow((void **)&list->names, capacity, sizeof *list->names)) return -1;
        list->capacity = capacity;
    }
    list->names[list->n_names] = fl__strdup(name);
    if (!list->names[list->n_names]) return -1;
    list->n_names++;
    return 0;
}

/* Names in dir, sorted: regular ones with symbolic links followed, or all of them. */
static fl_status list_names(name_list *list, const char *dir, bool regular_only, fl_err *err)
{
    fl_status st = FL_OK;
    *list = (name_list){0};
    DIR *d = opendir(dir);
    if (!d) return fail_read(err, dir, errno);
    for (;;) {
        errno = 0;
        const struct dirent *entry = readdir(d);
        if (!entry) {
            if (errno) st = fail_read(err, dir, errno);
            break;
        }
        if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0) continue;
        struct stat info;
        if (regular_only &&
            (fstatat(dirfd(d), entry->d_name, &info, 0) != 0 || !S_ISREG(info.st_mode)))
            continue;
        if (push_name(list, entry->d_name)) {
            st = fl__fail_nomem(err, dir, (list->n_names + 1) * sizeof *list->names);
            break;
        }
    }
    closedir(d);
    if (st) fl__dir_list_free(&list->names, list->n_names);
    else if (list->n_names > 1)
        qsort(list->names, list->n_names, sizeof *list->names, by_bytes);
    return st;
}

fl_status fl__dir_list(char ***names, size_t *n_names, const char *dir, fl_err *err)
{
    name_list list;
    *names = NULL;
    *n_names = 0;
    const fl_status st = list_names(&list, dir, true, err);
    if (st) return st;
    *names = list.names;
    *n_names = list.n_names;
    return FL_OK;
}

void fl__dir_list_free(char ***names, size_t n_names)
{
    if (!*names) return;
    for (size_t i = 0; i < n_names; i++) fl__free(&(*names)[i]);
    fl__free(names);
}

/* Whether removing these names is ours to do: files and links, never a directory or a device.
 */
static fl_status check_removable(int dir_fd, const char *path, const name_list *list,
                                 fl_err *err)
{
    for (size_t i = 0; i < list->n_names; i++) {
        struct stat info;
        if (fstatat(dir_fd, list->names[i], &info, AT_SYMLINK_NOFOLLOW) != 0)
            return fail_write(err, path, errno);
        if (!S_ISREG(info.st_mode) && !S_ISLNK(info.st_mode))
            return fl__fail(err, FL_E_IO,
                            "cannot remove: %s: %s in it is no regular file; look at it and "
                            "remove the directory yourself",
                            path, list->names[i]);
    }
    return FL_OK;
}

fl_status fl__dir_remove(const char *path, fl_err *err)
{
    name_list list;
    const int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0) return errno == ENOENT ? FL_OK : fail_write(err, path, errno);
    fl_status st = list_names(&list, path, false, err);
    if (st) goto out;
    st = check_removable(fd, path, &list, err);
    for (size_t i = 0; !st && i < list.n_names; i++)
        if (unlinkat(fd, list.names[i], 0) != 0) st = fail_write(err, path, errno);
    if (!st && rmdir(path) != 0) st = fail_write(err, path, errno);
    fl__dir_list_free(&list.names, list.n_names);
out:
    close(fd);
    return st;
}

int64_t fl__disk_free_bytes(const char *path)
{
    struct statvfs info;
    char *at = fl__strdup(path);
    int64_t n_bytes = -1;
    while (at) {
        if (statvfs(at, &info) == 0) {
            if (__builtin_mul_overflow(info.f_bavail, info.f_frsize, &n_bytes))
                n_bytes = INT64_MAX;
            break;
        }
        char *up = errno == ENOENT ? parent_of(at) : NULL;
        if (up && strcmp(up, at) == 0) fl__free(&up);
        fl__free(&at);
        at = up;
    }
    fl__free(&at);
    return n_bytes;
}
