/* test_sampling.c - Token sampling: order of the steps, ties, seeds, bad logits.
 * SPDX-License-Identifier: MIT */
#include "support/fl_test.h"
#include "base/mem.h"
#include "text/sampling.h"

#include <math.h>
#include <string.h>

enum { N_VOCAB = 8 };

static fl_sample_options plain(float temperature)
{
    return (fl_sample_options){.temperature = temperature, .top_p = 1, .repeat_penalty = 1};
}

static int32_t pick(const fl_sample_options *o, const float *logits, int position)
{
    fl_sampler s;
    assert_int_equal(fl__sampler_init(&s, o, N_VOCAB, NULL), FL_OK);
    const int32_t id = fl__sampler_pick(&s, logits, NULL, 0, position);
    fl__sampler_fini(&s);
    return id;
}

/* How often each token comes at positions 0..n-1. */
static void count_picks(int counts[N_VOCAB], const fl_sample_options *o, const float *logits,
                        int n)
{
    fl_sampler s;
    memset(counts, 0, N_VOCAB * sizeof *counts);
    assert_int_equal(fl__sampler_init(&s, o, N_VOCAB, NULL), FL_OK);
    for (int i = 0; i < n; i++) {
        const int32_t id = fl__sampler_pick(&s, logits, NULL, 0, i);
        assert_in_range(id, 0, N_VOCAB - 1);
        counts[id]++;
    }
    fl__sampler_fini(&s);
}

static void greedy_takes_the_largest_and_the_lower_id_of_equals(void **state)
{
    (void)state;
    const fl_sample_options o = plain(0);
    const float one[N_VOCAB] = {0, 1, 2, 9, 4, 5, 6, 7};
    const float tie[N_VOCAB] = {0, 1, 3, 3, 3, -1, 2, 3};
    const float masked[N_VOCAB] = {-INFINITY, -INFINITY, -5, -INFINITY, -6, -INFINITY, -7, -8};
    assert_int_equal(pick(&o, one, 0), 3);
    assert_int_equal(pick(&o, tie, 0), 2);
    assert_int_equal(pick(&o, masked, 0), 2);
}

static void top_k_keeps_the_k_best_with_ties_to_the_lower_id(void **state)
{
    (void)state;
    int counts[N_VOCAB];
    const float logits[N_VOCAB] = {1, 2, 2, 0, 2, 1, 2, -3};
    fl_sample_options o = plain(1);
    o.top_k = 3;
    count_picks(counts, &o, logits, 300);
    for (int i = 0; i < N_VOCAB; i++) {
        if (i == 1 || i == 2 || i == 4) assert_in_range(counts[i], 60, 140);
        else assert_int_equal(counts[i], 0);
    }
    o.top_k = 1;
    assert_int_equal(pick(&o, logits, 7), 1);
    o.top_k = 1000; /* more than there are is all */
    count_picks(counts, &o, logits, 2000);
    assert_true(counts[0] > 0 && counts[7] > 0);
}

static void top_p_keeps_the_smallest_front_that_reaches_p(void **state)
{
    (void)state;
    int counts[N_VOCAB];
    /* probabilities 0.5, 0.25, 0.125, ... */
    float logits[N_VOCAB];
    for (int i = 0; i < N_VOCAB; i++) logits[i] = -(float)i * logf(2);
    fl_sample_options o = plain(1);
    o.top_p = 0.7f;
    count_picks(counts, &o, logits, 600);
    assert_int_equal(counts[0] + counts[1], 600);
    assert_in_range(counts[0], 360, 440);
    o.top_p = 0.01f; /* at least one stays */
    count_picks(counts, &o, logits, 50);
    assert_int_equal(counts[0], 50);
}

static void min_p_is_relative_to_the_best_and_comes_before_temperature(void **state)
{
    (void)state;
    int counts[N_VOCAB];
    float logits[N_VOCAB];
    for (int i = 0; i < N_VOCAB; i++) logits[i] = -(float)i * logf(2);
    fl_sample_options o = plain(100); /* nearly uniform over what is kept */
    o.min_p = 0.2f;                   /* keeps 1, 1/2, 1/4 of the best */
    count_picks(counts, &o, logits, 900);
    for (int i = 0; i < 3; i++) assert_in_range(counts[i], 240, 360);
    assert_int_equal(counts[0] + counts[1] + counts[2], 900);
}

static void temperature_sharpens(void **state)
{
    (void)state;
    int cold[N_VOCAB], warm[N_VOCAB];
    const float logits[N_VOCAB] = {1, 0, 0, 0, 0, 0, 0, 0};
    const fl_sample_options low = plain(0.2f), high = plain(5);
    count_picks(cold, &low, logits, 500);
    count_picks(warm, &high, logits, 500);
    assert_true(cold[0] > 450);
    assert_true(warm[0] < 150);
}

static void repeat_penalty_counts_each_recent_token_once(void **state)
{
    (void)state;
    fl_sampler s;
    fl_sample_options o = plain(0);
    float logits[N_VOCAB] = {4, 3, -1, -1.5f, -8, -8, -8, -8};
    const int32_t recent[] = {0, 0, 0};
    o.repeat_penalty = 1.2f; /* 4 / 1.2 = 3.33 once, 2.31 if it were counted three times */
    assert_int_equal(fl__sampler_init(&s, &o, N_VOCAB, NULL), FL_OK);
    assert_int_equal(fl__sampler_pick(&s, logits, recent, 3, 0), 0);
    fl__sampler_fini(&s);

    o.repeat_penalty = 2; /* a negative logit grows: -1 becomes -2 */
    for (int i = 0; i < 2; i++) logits[i] = -8;
    const int32_t two[] = {2};
    assert_int_equal(fl__sampler_init(&s, &o, N_VOCAB, NULL), FL_OK);
    assert_int_equal(fl__sampler_pick(&s, logits, two, 1, 0), 3);
    fl__sampler_fini(&s);
}

static void repeat_penalty_looks_back_64_tokens(void **state)
{
    (void)state;
    fl_sampler s;
    fl_sample_options o = plain(0);
    const float logits[N_VOCAB] = {4, 3, 0, 0, 0, 0, 0, 0};
    int32_t recent[FL_REPEAT_WINDOW + 1];
    o.repeat_penalty = 2;
    assert_int_equal(fl__sampler_init(&s, &o, N_VOCAB, NULL), FL_OK);
    for (int i = 0; i <= FL_REPEAT_WINDOW; i++) recent[i] = 7;
    recent[0] = 0; /* the 65th from the end */
    assert_int_equal(fl__sampler_pick(&s, logits, recent, FL_REPEAT_WINDOW + 1, 0), 0);
    recent[1] = 0;
    assert_int_equal(fl__sampler_pick(&s, logits, recent, FL_REPEAT_WINDOW + 1, 0), 1);
    fl__sampler_fini(&s);
}

static void draws_are_keyed_by_seed_and_position(void **state)
{
    (void)state;
    const float logits[N_VOCAB] = {0};
    fl_sample_options a = plain(1), b = plain(1);
    int n_same_seed = 0, n_other_seed = 0;
    b.seed = 1;
    for (int p = 0; p < 200; p++) {
        n_same_seed += pick(&a, logits, p) == pick(&a, logits, p);
        n_other_seed += pick(&a, logits, p) == pick(&b, logits, p);
    }
    assert_int_equal(n_same_seed, 200);
    assert_in_range(n_other_seed, 5, 60); /* 1 in 8 by chance */
}

static void a_pick_allocates_nothing(void **state)
{
    (void)state;
    fl_sampler s;
    fl_sample_options o;
    const float logits[N_VOCAB] = {1, 2, 3};
    const int32_t recent[] = {1, 2};
    fl_sample_options_defaults(&o);
    o.repeat_penalty = 1.1f;
    assert_int_equal(fl__sampler_init(&s, &o, N_VOCAB, NULL), FL_OK);
    const uint64_t before = fl__mem_get().n_allocs;
    for (int i = 0; i < 20; i++) (void)fl__sampler_pick(&s, logits, recent, 2, i);
    assert_int_equal(fl__mem_get().n_allocs, before);
    fl__sampler_fini(&s);
}

static void logits_that_are_no_numbers_are_refused(void **state)
{
    (void)state;
    float logits[N_VOCAB] = {0};
    const fl_sample_options greedy = plain(0), warm = plain(1);
    logits[3] = NAN;
    assert_int_equal(pick(&greedy, logits, 0), -1);
    assert_int_equal(pick(&warm, logits, 0), -1);
    logits[3] = INFINITY;
    assert_int_equal(pick(&greedy, logits, 0), -1);
    for (int i = 0; i < N_VOCAB; i++) logits[i] = -INFINITY;
    assert_int_equal(pick(&greedy, logits, 0), -1);
}

static void options_out_of_range_are_usage_errors(void **state)
{
    (void)state;
    fl_sample_options bad[8];
    for (int i = 0; i < 8; i++) bad[i] = plain(1);
    bad[0].temperature = -1;
    bad[1].temperature = NAN;
    bad[2].top_k = -1;
    bad[3].top_p = 0;
    bad[4].top_p = 1.5f;
    bad[5].min_p = -0.1f;
    bad[6].repeat_penalty = 0;
    bad[7].repeat_penalty = INFINITY;
    for (int i = 0; i < 8; i++) {
        fl_sampler s;
        fl_err err = {""};
        assert_int_equal(fl__sampler_init(&s, &bad[i], N_VOCAB, &err), FL_E_USAGE);
        assert_non_null(strstr(err.text, "bad sampling option: "));
        fl__sampler_fini(&s);
    }
}

static void running_out_of_memory_is_reported(void **state)
{
    (void)state;
    fl_sampler s;
    const fl_sample_options o = plain(1);
    fl__mem_fail_after(1);
    assert_int_equal(fl__sampler_init(&s, &o, N_VOCAB, NULL), FL_E_NOMEM);
    fl__sampler_fini(&s);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(greedy_takes_the_largest_and_the_lower_id_of_equals),
    cmocka_unit_test(top_k_keeps_the_k_best_with_ties_to_the_lower_id),
    cmocka_unit_test(top_p_keeps_the_smallest_front_that_reaches_p),
    cmocka_unit_test(min_p_is_relative_to_the_best_and_comes_before_temperature),
    cmocka_unit_test(temperature_sharpens),
    cmocka_unit_test(repeat_penalty_counts_each_recent_token_once),
    cmocka_unit_test(repeat_penalty_looks_back_64_tokens),
    cmocka_unit_test(draws_are_keyed_by_seed_and_position),
    cmocka_unit_test(a_pick_allocates_nothing),
    cmocka_unit_test(logits_that_are_no_numbers_are_refused),
    cmocka_unit_test(options_out_of_range_are_usage_errors),
    cmocka_unit_test(running_out_of_memory_is_reported),
};
FL_TEST_MAIN(tests)
