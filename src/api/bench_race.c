/* bench_race.c - interleaved timing; the two yardsticks. SPDX-License-Identifier: MIT */
#include "api/bench_race.h"

#include "base/clock.h"
#include "base/mem.h"
#include "kernels/peak.h"

#include <stdatomic.h>
#include <stdlib.h>

#define REPEAT_MS       2.0 /* least time of one repeat of one contender */
#define MAX_CALLS       256
#define PEAK_ITEMS      4    /* per thread and call */
#define PEAK_OPS        2e8  /* of one item */
#define READ_ITEM_BYTES (size_t)(256 * 1024)

static int compare(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

double fl__bench_median(double *values, int n)
{
    qsort(values, (size_t)n, sizeof *values, compare);
    return n % 2 ? values[n / 2] : (values[n / 2 - 1] + values[n / 2]) / 2;
}

/* Milliseconds of one call, over n_calls from call number `first` on. */
static double time_calls(const fl_bench_contender *c, int first, int n_calls)
{
    const double start = fl__now_s();
    for (int i = 0; i < n_calls; i++) c->run(c->arg, first + i);
    return (fl__now_s() - start) * 1e3 / n_calls;
}

fl_status fl__bench_race(fl_bench_contender *contenders, int n, int n_repeats, fl_err *err)
{
    const size_t n_times = (size_t)n * (size_t)n_repeats;
    double *times = fl__alloc(n_times, sizeof *times);
    if (!times) return fl__fail_nomem(err, "timings", n_times * sizeof *times);
    for (int i = 0; i < n; i++) {
        fl_bench_contender *c = &contenders[i];
        (void)time_calls(c, 0, 1);
        const double ms = time_calls(c, 1, 1);
        c->n_calls = ms * MAX_CALLS < REPEAT_MS ? MAX_CALLS : 1 + (int)(REPEAT_MS / ms);
    }
    for (int r = 0; r < n_repeats; r++)
        for (int i = 0; i < n; i++)
            times[i * n_repeats + r] = time_calls(&contenders[i], 2 + r * contenders[i].n_calls,
                                                  contenders[i].n_calls);
    for (int i = 0; i < n; i++)
        contenders[i].ms = fl__bench_median(times + i * n_repeats, n_repeats);
    fl__free(&times);
    return FL_OK;
}

static int64_t peak_rounds(const fl_peak_kernel *k)
{
    return (int64_t)(PEAK_OPS / k->n_ops);
}

static void peak_item(void *arg, int64_t item, int thread)
{
    const fl_peak_kernel *k = arg;
    (void)item;
    (void)thread;
    k->run(peak_rounds(k));
}

void fl__bench_peak_run(void *peak, int call)
{
    const fl_bench_peak *p = peak;
    const fl_peak_kernel *k = fl__peak_select(p->ex->isa);
    (void)call;
    fl__parallel_for(p->ex, PEAK_ITEMS * p->ex->n_threads, peak_item, (void *)(uintptr_t)k);
}

double fl__bench_peak_ops(const fl_exec *ex)
{
    const fl_peak_kernel *k = fl__peak_select(ex->isa);
    return (double)peak_rounds(k) * k->n_ops * PEAK_ITEMS * ex->n_threads;
}

const char *fl__bench_peak_name(const fl_exec *ex)
{
    return fl__peak_select(ex->isa)->name;
}

typedef struct {
    fl_read_fn *read;
    const uint8_t *block;
    size_t n_bytes;
    _Atomic uint64_t sum;
} read_job;

static void read_item(void *arg, int64_t item, int thread)
{
    read_job *j = arg;
    const size_t first = (size_t)item * READ_ITEM_BYTES;
    (void)thread;
    atomic_fetch_xor(&j->sum,
                     j->read(j->block + first, FL_MIN(READ_ITEM_BYTES, j->n_bytes - first)));
}

void fl__bench_read_run(void *read, int call)
{
    fl_bench_read *r = read;
    read_job job = {.read = fl__read_select(r->ex->isa),
                    .block = r->blocks[call % r->n_blocks],
                    .n_bytes = r->n_bytes};
    const size_t n_items = (r->n_bytes + READ_ITEM_BYTES - 1) / READ_ITEM_BYTES;
    fl__parallel_for(r->ex, (int64_t)n_items, read_item, &job);
    r->sink ^= job.sum;
}
