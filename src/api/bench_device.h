/* bench_device.h - `bench model` on a GPU. SPDX-License-Identifier: MIT */
#ifndef FL_API_BENCH_DEVICE_H
#define FL_API_BENCH_DEVICE_H

#include "model/model.h"

/* o->device is not the CPU; cfg: with the layers that run and a context of prompt and
 * predict. */
fl_status fl__bench_device_run(char **report_json, const fl_bench_model_options *o,
                               const fl_model_config *cfg, int n_shape_layers,
                               const fl_exec *ex, fl_err *err);

#endif
