/* test_quantize_memory.c - allocation n of a whole quantise job fails, n = 1..N: the job says
 * out of memory, everything is given back, no half-written model stands under the
 * output's name, and what was written before can be gone on from to the same bytes.
 *
 * The first allocations are walked one by one, later ones in steps that grow to 1/40 of n, so
 * that seconds do. A few can be done without (PCRE2's compiler, the report's comparison): such
 * runs end well, with the same bytes.
 * SPDX-License-Identifier: MIT */
#include "support/fl_test.h"
#include "support/quantize_once.h"
#include "support/small_model.h"

#include "base/file.h"
#include "base/mem.h"

#include <stdio.h>
#include <unistd.h>

enum { ONE_BY_ONE = 40 };

static fl_quantize_options small_job(const char *out)
{
    const fl_small_model small = {.n_layers = 2,
                                  .hidden_size = 32,
                                  .n_heads = 2,
                                  .n_kv_heads = 1,
                                  .ffn_size = 48,
                                  .n_positions = 32,
                                  .vocab_size = 264};
    const char *text = fl_test_path("short.txt");
    fl_quantize_options o =
        fl_test_quantize_options(fl_test_small_model("model", &small), out, "flattenquant");
    fl_test_write_text(text, "The harbour was quiet in the morning, and the boats lay still. "
                             "Nobody spoke of the storm that had come over the hills.");
    o.calib_path = text;
    o.n_samples = 2;
    o.seq_len = 16;
    o.flatten_weights = FL_ON;
    return o;
}

/* o with allocation n failing. *n_allocs: how many there were. */
static fl_status run_short_of_memory(const fl_quantize_options *o, uint64_t n,
                                     uint64_t *n_allocs)
{
    char *report;
    fl_err err = {""};
    const fl__mem_stats before = fl__mem_get();
    fl__mem_fail_after(n);
    const fl_status st = fl_quantize_run(&report, o, &err);
    fl__mem_fail_after(0);
    *n_allocs = fl__mem_get().n_allocs - before.n_allocs;
    if (st != FL_OK && st != FL_E_NOMEM)
        fail_msg("allocation %d: %d: %s", (int)n, st, err.text);
    if (st && report) fail_msg("allocation %d: a report", (int)n);
    fl_string_free(&report);
    if (fl__mem_get().now_bytes != before.now_bytes) fail_msg("allocation %d leaks", (int)n);
    return st;
}

/* What stands under the output's name is whole, whatever the run said: the last allocations are
 * those of the report that the caller gets. */
static bool take_output(const fl_quantize_options *o, const char *whole)
{
    if (access(o->out_dir, F_OK) != 0) return false;
    fl_test_same_dirs(whole, o->out_dir);
    assert_int_equal(fl__dir_remove(o->out_dir, NULL), FL_OK);
    return true;
}

static uint64_t next(uint64_t n)
{
    return n + FL_MAX(n / ONE_BY_ONE, 1);
}

/* Runs from the start. */
static void whole_runs_end_cleanly(void **state)
{
    (void)state;
    fl_quantize_options o = small_job("whole");
    const char *whole = fl_test_quantize(&o, NULL);
    const char *partial = fl_test_path("out.partial");
    uint64_t n_allocs = UINT64_MAX;
    int n_failed = 0, n_resumed = 0;
    o.out_dir = fl_test_path("out");
    for (uint64_t n = 1; n <= n_allocs; n = next(n)) {
        const fl_status st = run_short_of_memory(&o, n, &n_allocs);
        n_failed += st != FL_OK;
        if (st)
            n_allocs = UINT64_MAX; /* as far as it came: no end in sight */
        else
            assert_true(access(o.out_dir, F_OK) == 0);
        if (take_output(&o, whole) || access(partial, F_OK) != 0) continue;
        o.resume = true;
        (void)fl_test_quantize(&o, NULL);
        assert_true(take_output(&o, whole));
        o.resume = false;
        n_resumed++;
    }
    (void)printf("%d runs failed, %d of them resumed\n", n_failed, n_resumed);
    assert_true(n_failed > 100 && n_resumed > 5);
}

/* Each run goes on from what the one before left. */
static void resumed_runs_end_cleanly(void **state)
{
    (void)state;
    fl_quantize_options o = small_job("whole");
    const char *whole = fl_test_quantize(&o, NULL);
    uint64_t n_allocs = 0;
    o.out_dir = fl_test_path("out");
    o.resume = true;
    for (uint64_t n = 1;; n = next(n)) {
        const fl_status st = run_short_of_memory(&o, n, &n_allocs);
        if (!take_output(&o, whole)) assert_int_equal(st, FL_E_NOMEM);
        if (!st && n_allocs < n) break;
    }
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(whole_runs_end_cleanly),
    cmocka_unit_test(resumed_runs_end_cleanly),
};
FL_TEST_MAIN(tests)
