/* open_device.h - from the public option `device` to where a model runs.
 * SPDX-License-Identifier: MIT */
#ifndef FL_API_OPEN_DEVICE_H
#define FL_API_OPEN_DEVICE_H

#include "model/device.h"

typedef struct fl_device {
    const char *name;    /* "cpu", or the GPU's; borrowed */
    fl_backend *backend; /* NULL: the CPU */
    void *plugin;        /* of dlopen */
} fl_device;

/* name: "cpu" or NULL, "cuda", "cuda:N". FL_E_USAGE: any other; FL_E_UNSUPPORTED: no plugin, no
 * GPU. *device is empty then. */
fl_status fl__device_open(fl_device *device, const char *name, fl_err *err);
void fl__device_close(fl_device *device);

/* The model of a directory, on the device where that is not the CPU (*dm NULL otherwise). */
fl_status fl__device_load(fl_model **model, fl_device_model **dm, const char *dir,
                          fl_device *device, const fl_exec *ex, fl_err *err);

#endif
