/* open_device.c - finding and loading the plugin of a GPU.
 *
 * libflatiron-cuda.so is looked for in the directory of the file that this code is in (the
 * program, or libflatiron), in ../lib and ../build-cuda seen from there, and in the library
 * path. It is not unloaded: the CUDA runtime in it does not like to be.
 * SPDX-License-Identifier: MIT */
#include "api/open_device.h"

#include "base/mem.h"

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PLUGIN "libflatiron-cuda.so"

enum { MAX_PATH = 4096 };

/* Directory of this code, with the slash; "" where it cannot be known. */
static void own_directory(char *dir, size_t n_bytes)
{
    static const char anchor = 0;
    Dl_info info;
    *dir = '\0';
    if (!dladdr(&anchor, &info) || !info.dli_fname) return;
    const char *slash = strrchr(info.dli_fname, '/');
    if (slash)
        (void)snprintf(dir, n_bytes, "%.*s", (int)(slash + 1 - info.dli_fname), info.dli_fname);
}

static void *open_plugin(char *why, size_t n_bytes)
{
    static const char *const places[] = {"", "../lib/", "../build-cuda/"};
    char dir[MAX_PATH], path[2 * MAX_PATH];
    void *plugin;
    own_directory(dir, sizeof dir);
    for (size_t i = 0; i < FL_COUNT(places); i++) {
        (void)snprintf(path, sizeof path, "%s%s%s", dir, places[i], PLUGIN);
        FILE *f = fopen(path, "rb");
        if (!f) continue;
        (void)fclose(f);
        plugin = dlopen(strchr(path, '/') ? path : "./" PLUGIN, RTLD_NOW | RTLD_LOCAL);
        if (!plugin) (void)snprintf(why, n_bytes, "%s", dlerror());
        return plugin; /* one that is there and does not load is an error, not a miss */
    }
    plugin = dlopen(PLUGIN, RTLD_NOW | RTLD_LOCAL);
    if (!plugin) (void)snprintf(why, n_bytes, "%s", dlerror());
    return plugin;
}

/* -1: no name of a device of ours. */
static int ordinal_of(const char *name)
{
    char *end;
    if (strcmp(name, "cuda") == 0) return 0;
    if (strncmp(name, "cuda:", 5) != 0 || name[5] < '0' || name[5] > '9') return -1;
    const long n = strtol(name + 5, &end, 10);
    return *end == '\0' && n < 1024 ? (int)n : -1;
}

fl_status fl__device_open(fl_device *device, const char *name, fl_err *err)
{
    char why[512] = "";
    fl_backend_open_fn *open_backend = NULL;
    *device = (fl_device){.name = "cpu"};
    if (!name || strcmp(name, "cpu") == 0) return FL_OK;
    const int ordinal = ordinal_of(name);
    if (ordinal < 0)
        return fl__fail(err, FL_E_USAGE,
                        "bad option: device: '%s' is no device; use cpu, cuda or cuda:N", name);
    device->plugin = open_plugin(why, sizeof why);
    if (!device->plugin)
        return fl__fail(err, FL_E_UNSUPPORTED,
                        "no GPU plugin: " PLUGIN ": %s; build it with make cuda, or use "
                        "--device cpu",
                        why);
    void *symbol = dlsym(device->plugin, "fl_cuda_backend");
    memcpy(&open_backend, &symbol, sizeof symbol);
    if (!open_backend)
        return fl__fail(err, FL_E_UNSUPPORTED,
                        "bad GPU plugin: " PLUGIN ": it has no fl_cuda_backend; build it with "
                        "make cuda");
    const fl_status st = open_backend(&device->backend, FL_BACKEND_VERSION, ordinal, err);
    if (!st) device->name = device->backend->name;
    return st;
}

void fl__device_close(fl_device *device)
{
    if (device->backend) device->backend->ops->close(&device->backend);
    *device = (fl_device){0};
}

fl_status fl__device_load(fl_model **model, fl_device_model **dm, const char *dir,
                          fl_device *device, const fl_exec *ex, fl_err *err)
{
    *dm = NULL;
    if (!device->backend) return fl__model_open(model, dir, ex, false, err);
    const fl_status st = fl__model_open_codes(model, dir, err);
    return st ? st : fl__device_model_new(dm, *model, device->backend, err);
}
