/* test_calib.c - calibration windows depend on the seed and their number alone.
 * SPDX-License-Identifier: MIT */
#include "quant/calib.h"

#include "base/isa.h"
#include "base/mem.h"
#include "support/fl_test.h"
#include "support/small_model.h"

#include <string.h>

enum { N_IDS = 1000, VOCAB = 300 };

static void fill(int32_t *ids)
{
    for (int i = 0; i < N_IDS; i++) ids[i] = (i * 7919 + i / 13) % VOCAB;
}

static fl_calib cut(const int32_t *ids, int n_windows, int seq_len, uint64_t seed)
{
    fl_calib c;
    fl_err err = {""};
    if (fl__calib_from_ids(&c, ids, N_IDS, n_windows, seq_len, seed, VOCAB, "text", &err))
        fail_msg("%s", err.text);
    assert_true(c.n_windows == n_windows && c.seq_len == seq_len);
    return c;
}

static void windows_are_runs_of_the_text(void **state)
{
    (void)state;
    int32_t ids[N_IDS];
    fill(ids);
    fl_calib c = cut(ids, 40, 17, 0);
    int n_different = 0;
    for (int w = 0; w < 40; w++) {
        const int32_t *window = c.ids + w * 17;
        bool found = false;
        for (int at = 0; at + 17 <= N_IDS && !found; at++)
            found = memcmp(ids + at, window, 17 * sizeof *ids) == 0;
        assert_true(found);
        n_different += memcmp(window, c.ids, 17 * sizeof *ids) != 0;
    }
    assert_true(n_different > 30);
    fl__calib_fini(&c);
    c = cut(ids, 3, N_IDS, 5); /* the one place there is */
    for (int w = 0; w < 3; w++) assert_memory_equal(c.ids + w * N_IDS, ids, sizeof ids);
    fl__calib_fini(&c);
}

static void seeds_and_counts_decide(void **state)
{
    (void)state;
    int32_t ids[N_IDS];
    fill(ids);
    fl_calib a = cut(ids, 10, 16, 1), b = cut(ids, 10, 16, 1), more = cut(ids, 20, 16, 1),
             other = cut(ids, 10, 16, 2);
    const size_t n_bytes = 10 * 16 * sizeof *ids;
    assert_memory_equal(a.ids, b.ids, n_bytes);
    assert_memory_equal(a.ids, more.ids, n_bytes); /* more windows keep the first ones */
    assert_true(memcmp(a.ids, other.ids, n_bytes) != 0);
    assert_true(fl__calib_hash(&a) == fl__calib_hash(&b));
    assert_true(fl__calib_hash(&a) != fl__calib_hash(&more));
    assert_true(fl__calib_hash(&a) != fl__calib_hash(&other));
    b.ids[159]++;
    assert_true(fl__calib_hash(&a) != fl__calib_hash(&b));
    fl__calib_fini(&a);
    fl__calib_fini(&b);
    fl__calib_fini(&more);
    fl__calib_fini(&other);
}

static void texts_that_do_not_fit_are_refused(void **state)
{
    (void)state;
    int32_t ids[N_IDS];
    fl_calib c;
    fl_err err = {""};
    fill(ids);
    assert_int_equal(fl__calib_from_ids(&c, ids, 15, 4, 16, 0, VOCAB, "short.txt", &err),
                     FL_E_INPUT);
    assert_non_null(strstr(err.text, "short.txt: 15 tokens"));
    ids[500] = VOCAB;
    assert_int_equal(fl__calib_from_ids(&c, ids, N_IDS, 4, 16, 0, VOCAB, "t", &err),
                     FL_E_INPUT);
    ids[500] = -1;
    assert_int_equal(fl__calib_from_ids(&c, ids, N_IDS, 4, 16, 0, VOCAB, "t", &err),
                     FL_E_INPUT);
    assert_null(c.ids);
}

static fl_calib sample(const fl_model *model, int n_threads, int n_windows, uint64_t seed)
{
    const fl_exec ex = {fl__isa_detect(), n_threads};
    fl_calib c;
    fl_err err = {""};
    if (fl__calib_from_model(&c, model, &ex, n_windows, 24, seed, NULL, NULL, &err))
        fail_msg("%s", err.text);
    return c;
}

static void models_write_their_own_text(void **state)
{
    (void)state;
    const fl_small_model m = fl_test_small_model_defaults();
    const fl_exec ex = {fl__isa_detect(), 1};
    fl_model *model;
    assert_int_equal(
        fl__model_open(&model, fl_test_small_model("model", &m), &ex, false, NULL), FL_OK);
    fl_calib a = sample(model, 1, 6, 1), b = sample(model, 2, 6, 1),
             other = sample(model, 1, 6, 2);
    const size_t n = 6 * 24;
    int n_kinds = 0;
    bool seen[264] = {false};
    for (size_t i = 0; i < n; i++) {
        assert_in_range(a.ids[i], 0, m.vocab_size - 1);
        n_kinds += !seen[a.ids[i]];
        seen[a.ids[i]] = true;
    }
    assert_true(n_kinds > 40);                                 /* temperature 1, random
                                                                  weights */
    assert_memory_equal(a.ids, b.ids, n * sizeof *a.ids);      /* threads do not matter */
    assert_true(memcmp(a.ids, other.ids, n * sizeof *a.ids) != 0);
    fl__calib_fini(&a);
    fl__calib_fini(&b);
    fl__calib_fini(&other);
    fl__model_close(&model);
}

static bool stop_at_zero(void *user)
{
    int *left = user;
    return (*left)-- == 0;
}

static void sampling_can_be_stopped(void **state)
{
    (void)state;
    const fl_small_model m = fl_test_small_model_defaults();
    const fl_exec ex = {fl__isa_detect(), 1};
    fl_model *model;
    assert_int_equal(
        fl__model_open(&model, fl_test_small_model("model", &m), &ex, false, NULL), FL_OK);
    const size_t before = fl__mem_get().now_bytes;
    for (int questions = 0; questions < 8; questions++) { /* 7 tokens are drawn */
        fl_calib c;
        fl_err err = {""};
        int left = questions;
        const fl_status st =
            fl__calib_from_model(&c, model, &ex, 2, 8, 0, stop_at_zero, &left, &err);
        assert_int_equal(st, questions < 7 ? FL_E_INTERRUPTED : FL_OK);
        if (st) assert_true(left == -1 && !c.ids && strstr(err.text, "interrupted"));
        fl__calib_fini(&c);
        assert_int_equal(fl__mem_get().now_bytes, before);
    }
    fl__model_close(&model);
}

static void running_out_of_memory_leaves_nothing(void **state)
{
    (void)state;
    const fl_small_model m = fl_test_small_model_defaults();
    const fl_exec ex = {fl__isa_detect(), 1};
    fl_model *model;
    assert_int_equal(
        fl__model_open(&model, fl_test_small_model("model", &m), &ex, false, NULL), FL_OK);
    const size_t before = fl__mem_get().now_bytes;
    for (unsigned n = 1;; n++) {
        fl_calib c;
        fl__mem_fail_after(n);
        const fl_status st = fl__calib_from_model(&c, model, &ex, 2, 8, 0, NULL, NULL, NULL);
        fl__calib_fini(&c);
        assert_int_equal(fl__mem_get().now_bytes, before);
        if (!st) break;
        assert_int_equal(st, FL_E_NOMEM);
    }
    fl__mem_fail_after(0);
    fl__model_close(&model);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(windows_are_runs_of_the_text),
    cmocka_unit_test(seeds_and_counts_decide),
    cmocka_unit_test(texts_that_do_not_fit_are_refused),
    cmocka_unit_test(models_write_their_own_text),
    cmocka_unit_test(sampling_can_be_stopped),
    cmocka_unit_test(running_out_of_memory_leaves_nothing),
};
FL_TEST_MAIN(tests)
