/* exec_options.h - from the public options isa and n_threads to where work runs.
 * SPDX-License-Identifier: MIT */
#ifndef FL_API_EXEC_OPTIONS_H
#define FL_API_EXEC_OPTIONS_H

#include "base/exec.h"
#include "base/status.h"

/* isa: a level's name, NULL for native; a level above the machine's is lowered to what there
 * is, and log says so. n_threads: 0 for one per core. FL_E_USAGE: unknown isa, n_threads out of
 * range. */
fl_status fl__exec_resolve(fl_exec *ex, const char *isa, int n_threads, const fl_log *log,
                           fl_err *err);

#endif
