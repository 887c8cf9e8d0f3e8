/* exec.h - where work runs: which instruction sets may be used, and on how many threads.
 *
 * Passed down to everything that computes; there is no global thread count. Work is cut into
 * items whose number and contents do not depend on the number of threads, each item writes its
 * own outputs, and sums over items are done afterwards in item order: results are the same
 * bytes for any number of threads. BLAS, LAPACK and oneDNN are called inside items only, where
 * they see one thread: with more they would cut sums differently.
 * SPDX-License-Identifier: MIT */
#ifndef FL_BASE_EXEC_H
#define FL_BASE_EXEC_H

#include <stdint.h>

typedef struct fl_exec {
    uint32_t isa;  /* FL_ISA_* bits that may be used, see base/isa.h */
    int n_threads; /* >= 1 */
} fl_exec;

/* Calls fn(arg, item, thread) for item = 0..n_items-1, thread in [0, n_threads): each thread
 * has a run of neighbouring items and takes them in order, then those of threads that are
 * behind. So fn must not let its result depend on `thread` (it may index scratch with it).
 * Costs about a microsecond where threads wait by spinning, ten where they sleep. Runs inline
 * when n_items or n_threads is 1. A loop inside an item runs on that item's thread alone, with
 * thread 0: its scratch must belong to the item. Sets OpenBLAS to one thread for the process
 * and leaves it there. */
typedef void fl__item_fn(void *arg, int64_t item, int thread);
void fl__parallel_for(const fl_exec *ex, int64_t n_items, fl__item_fn *fn, void *arg);

/* Physical cores that this process may run on, or what OpenMP was told (OMP_NUM_THREADS, or
 * omp_set_num_threads by the program around us). At least 1. */
int fl__default_threads(void);

/* Threads of libraries on OpenMP (oneDNN) that are called outside loops, which only the bench
 * does, for its opponents. Returns the setting before. */
int fl__library_threads_set(int n_threads);

#endif
