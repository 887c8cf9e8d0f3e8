/* bench_race.h - contenders timed in turn, so that a noisy neighbour slows all of them alike.
 * SPDX-License-Identifier: MIT */
#ifndef FL_API_BENCH_RACE_H
#define FL_API_BENCH_RACE_H

#include "base/exec.h"
#include "base/status.h"

typedef struct fl_bench_contender {
    void (*run)(void *arg, int call); /* call = 0, 1, 2, .. over the whole race */
    void *arg;
    double ms;   /* result: median over the repeats, of one call */
    int n_calls; /* per repeat, so many that a repeat can be timed */
} fl_bench_contender;

/* One warm-up round, then n_repeats rounds in which each contender runs once. FL_E_NOMEM. */
fl_status fl__bench_race(fl_bench_contender *contenders, int n, int n_repeats, fl_err *err);

/* Contender: the register peak of ex's best instruction set on all its threads. */
typedef struct fl_bench_peak {
    const fl_exec *ex;
} fl_bench_peak;
void fl__bench_peak_run(void *peak, int call);
double fl__bench_peak_ops(const fl_exec *ex); /* operations of one call */
const char *fl__bench_peak_name(const fl_exec *ex);

/* Of n values, which are sorted. */
double fl__bench_median(double *values, int n);
/* Commit that the program was built from, "-dirty" behind it when the tree had changes. */
const char *fl__bench_commit(void);

/* Contender: one of n blocks of n_bytes is read by all threads, the next one with each call. */
typedef struct fl_bench_read {
    const fl_exec *ex;
    const void *const *blocks; /* each 64-byte aligned */
    int n_blocks;
    size_t n_bytes;
    uint64_t sink; /* what was read, so that the reading is not left out */
} fl_bench_read;
void fl__bench_read_run(void *read, int call);

#endif
