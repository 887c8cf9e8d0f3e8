/* test_base_exec.c - parallel loops: every item once, same bytes for any number of threads,
 * also from BLAS and LAPACK called inside.
 * SPDX-License-Identifier: MIT */
#include "base/exec.h"
#include "base/mem.h"
#include "base/rng.h"
#include "support/fl_test.h"

#include <lapacke.h>
#include <cblas.h>
#include <omp.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <string.h>

enum { N_ITEMS = 1000, MAX_THREADS = 8 };

typedef struct {
    atomic_int visits[N_ITEMS], bad_thread;
    int n_threads;
} visit_log;

static void visit(void *arg, int64_t item, int thread)
{
    visit_log *log = arg;
    atomic_fetch_add(&log->visits[item], 1);
    if (thread < 0 || thread >= log->n_threads) atomic_fetch_add(&log->bad_thread, 1);
}

static void each_item_runs_once(void **state)
{
    (void)state;
    static const int64_t counts[] = {0, 1, 2, 3, 7, 64, N_ITEMS};
    for (int t = 1; t <= MAX_THREADS; t++) {
        for (size_t c = 0; c < sizeof counts / sizeof *counts; c++) {
            visit_log log = {.n_threads = t};
            const fl_exec ex = {.n_threads = t};
            fl__parallel_for(&ex, counts[c], visit, &log);
            for (int i = 0; i < N_ITEMS; i++)
                assert_int_equal(log.visits[i], i < counts[c] ? 1 : 0);
            assert_int_equal(log.bad_thread, 0);
        }
    }
}

static void no_items_or_odd_counts_are_harmless(void **state)
{
    (void)state;
    visit_log log = {.n_threads = 1};
    fl__parallel_for(&(fl_exec){.n_threads = 0}, 3, visit, &log);
    fl__parallel_for(&(fl_exec){.n_threads = -2}, 3, visit, &log);
    fl__parallel_for(&(fl_exec){.n_threads = 4}, -5, visit, &log);
    for (int i = 0; i < N_ITEMS; i++) assert_int_equal(log.visits[i], i < 3 ? 2 : 0);
    assert_int_equal(log.bad_thread, 0);
}

static void note_thread(void *arg, int64_t item, int thread)
{
    (void)thread;
    int *seen = arg;
    seen[item] = omp_get_thread_num();
    const double until = omp_get_wtime() + 0.02;
    while (omp_get_wtime() < until) {
    }
}

static void threads_share_the_work(void **state)
{
    (void)state;
    int seen[8], used[2] = {0};
    fl__parallel_for(&(fl_exec){.n_threads = 2}, 8, note_thread, seen);
    for (int i = 0; i < 8; i++) used[seen[i]] = 1;
    assert_int_equal(used[0] + used[1], 2);
}

/* Item 0 takes until all others are done, and so do the neighbours that its thread would have
 * taken next. */
static void wait_for_others(void *arg, int64_t item, int thread)
{
    (void)thread;
    atomic_int *done = arg;
    const double until = omp_get_wtime() + 10;
    while (item == 0 && atomic_load(done) < 7 && omp_get_wtime() < until) {
    }
    if (item != 0 || atomic_load(done) == 7) atomic_fetch_add(done, 1);
}

static void a_slow_thread_is_helped(void **state)
{
    (void)state;
    atomic_int done = 0;
    fl__parallel_for(&(fl_exec){.n_threads = 2}, 8, wait_for_others, &done);
    assert_int_equal(done, 8);
}

/* More threads than shares of the items. */
static void many_threads_leave_nothing_out(void **state)
{
    (void)state;
    visit_log log = {.n_threads = 100};
    fl__parallel_for(&(fl_exec){.n_threads = 100}, N_ITEMS, visit, &log);
    for (int i = 0; i < N_ITEMS; i++) assert_int_equal(log.visits[i], 1);
    assert_int_equal(log.bad_thread, 0);
}

static void note_limits(void *arg, int64_t item, int thread)
{
    (void)thread;
    int *limits = arg;
    limits[2 * item] = omp_get_max_threads();
    limits[2 * item + 1] = openblas_get_num_threads();
}

static void libraries_see_one_thread_inside(void **state)
{
    (void)state;
    omp_set_num_threads(3);
    openblas_set_num_threads(2);
    for (int t = 1; t <= 4; t++) {
        int limits[16] = {0};
        fl__parallel_for(&(fl_exec){.n_threads = t}, 8, note_limits, limits);
        for (int i = 0; i < 16; i++) assert_int_equal(limits[i], 1);
        assert_int_equal(omp_get_max_threads(), 3); /* the caller's own setting is back */
    }
}

/* Inner loops: 16 outer items with 8 inner each, scratch owned by the outer item. */
typedef struct {
    const fl_exec *ex;
    int64_t sums[16];
    atomic_int bad_thread;
} nested;

typedef struct {
    int64_t terms[8];
    atomic_int *bad_thread;
} inner_job;

static void inner(void *arg, int64_t item, int thread)
{
    inner_job *job = arg;
    job->terms[item] = item * item;
    if (thread != 0) atomic_fetch_add(job->bad_thread, 1);
}

static void outer(void *arg, int64_t item, int thread)
{
    (void)thread;
    nested *n = arg;
    inner_job job = {.bad_thread = &n->bad_thread};
    fl__parallel_for(n->ex, 8, inner, &job);
    for (int i = 0; i < 8; i++) n->sums[item] += job.terms[i] * (item + 1);
}

static void nested_loops_run_on_their_thread(void **state)
{
    (void)state;
    const fl_exec ex = {.n_threads = 4};
    nested n = {.ex = &ex};
    fl__parallel_for(&ex, 16, outer, &n);
    for (int i = 0; i < 16; i++) assert_int_equal(n.sums[i], 140 * (i + 1));
    assert_int_equal(n.bad_thread, 0);
}

/* A job as the quantiser has them: per item an SGEMM and a Cholesky factor of its own. */
enum { DIM = 233, N_JOBS = 4, JOB_FLOATS = DIM * DIM };

static void factor(void *arg, int64_t item, int thread)
{
    (void)thread;
    float *out = (float *)arg + item * JOB_FLOATS;
    float *x = fl__alloc(JOB_FLOATS, sizeof *x);
    assert_non_null(x);
    fl_rng r = fl__rng_init(1, (int)item, "factor");
    for (int i = 0; i < JOB_FLOATS; i++) x[i] = (float)fl__rng_normal(&r);
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, DIM, DIM, DIM, 1.0f, x, DIM, x, DIM,
                0.0f, out, DIM);
    for (int i = 0; i < DIM; i++) out[i * DIM + i] += 1.0f;
    (void)LAPACKE_spotrf(LAPACK_ROW_MAJOR, 'L', DIM, out, DIM);
    fl__free(&x);
}

static void same_bytes_for_any_number_of_threads(void **state)
{
    (void)state;
    float *want = fl__calloc(N_JOBS * JOB_FLOATS, sizeof *want);
    float *got = fl__calloc(N_JOBS * JOB_FLOATS, sizeof *got);
    assert_non_null(want);
    assert_non_null(got);
    openblas_set_num_threads(2);
    fl__parallel_for(&(fl_exec){.n_threads = 1}, N_JOBS, factor, want);
    assert_true(want[0] > 0.0f);
    for (int t = 2; t <= 4; t++) {
        openblas_set_num_threads(t);
        fl__parallel_for(&(fl_exec){.n_threads = t}, N_JOBS, factor, got);
        assert_memory_equal(got, want, N_JOBS * JOB_FLOATS * sizeof *want);
    }
    fl__free(&want);
    fl__free(&got);
}

static void default_threads_follow_openmp(void **state)
{
    (void)state;
    const int n_procs = omp_get_num_procs();
    omp_set_num_threads(n_procs);
    assert_in_range(fl__default_threads(), 1, n_procs); /* physical cores */
    omp_set_num_threads(n_procs + 3);
    assert_int_equal(fl__default_threads(), n_procs + 3);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(each_item_runs_once),
    cmocka_unit_test(no_items_or_odd_counts_are_harmless),
    cmocka_unit_test(threads_share_the_work),
    cmocka_unit_test(a_slow_thread_is_helped),
    cmocka_unit_test(many_threads_leave_nothing_out),
    cmocka_unit_test(libraries_see_one_thread_inside),
    cmocka_unit_test(nested_loops_run_on_their_thread),
    cmocka_unit_test(same_bytes_for_any_number_of_threads),
    cmocka_unit_test(default_threads_follow_openmp),
};
FL_TEST_MAIN(tests)
