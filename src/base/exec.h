/* exec.h - where work runs: which instruction sets may be used, and on how many threads.
 *
 * Passed down to everything that computes; there is no global thread count. Work is cut into
 * items whose number and contents do not depend on the number of threads, each item writes its
 * own outputs, and sums over items are done afterwards in item order: results are the same bytes
 * for any number of threads.
 * SPDX-License-Identifier: MIT */
#ifndef FL_BASE_EXEC_H
#define FL_BASE_EXEC_H

#include <stdint.h>

typedef struct fl_exec {
    uint32_t isa;  /* FL_ISA_* bits that may be used, see base/isa.h */
    int n_threads; /* >= 1 */
} fl_exec;

/* Calls fn(arg, item, thread) for item = 0..n_items-1, thread in [0, n_threads): items are handed
 * out dynamically, so fn must not let its result depend on `thread` (it may index scratch with
 * it). Runs inline when n_items or n_threads is 1. Library GEMMs called inside see one thread. */
typedef void fl__item_fn(void *arg, int64_t item, int thread);
void fl__parallel_for(const fl_exec *ex, int64_t n_items, fl__item_fn *fn, void *arg);

/* Physical cores that this process may run on, at least 1. */
int fl__default_threads(void);

#endif
