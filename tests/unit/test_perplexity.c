/* test_perplexity.c - Scores of single predictions against the definition in float64; windows
 * of a small model that the test writes itself: the figures must be those of the scored rows,
 * whatever the number of threads.
 * SPDX-License-Identifier: MIT */
#include "support/fl_test.h"
#include "base/rng.h"
#include "eval/perplexity.h"

#include <math.h>
#include <string.h>

enum { N_ROWS = 37, N_VOCAB = 101 };

static float logits[N_ROWS * N_VOCAB], baseline[N_ROWS * N_VOCAB];
static int32_t targets[N_ROWS];

static int fill(void **state)
{
    (void)state;
    fl_rng r = fl__rng_init(1, 0, "test");
    for (int i = 0; i < N_ROWS * N_VOCAB; i++) {
        logits[i] = (float)(4 * fl__rng_normal(&r));
        baseline[i] = logits[i] + (float)(0.3 * fl__rng_normal(&r));
    }
    for (int i = 0; i < N_ROWS; i++) targets[i] = (int32_t)fl__rng_below(&r, N_VOCAB);
    return 0;
}

static double log_p(const float *row, int id)
{
    double sum = 0;
    for (int i = 0; i < N_VOCAB; i++) sum += exp((double)row[i]);
    return row[id] - log(sum);
}

static int first_ranked(const float *row)
{
    int best = 0;
    for (int i = 1; i < N_VOCAB; i++)
        if (row[i] > row[best]) best = i;
    return best;
}

static void scores_are_those_of_the_definition(void **state)
{
    (void)state;
    const fl_exec ex = {.n_threads = 2};
    fl_row_score scores[N_ROWS];
    fl__score_rows(&ex, scores, logits, baseline, targets, N_ROWS, N_VOCAB);
    for (int r = 0; r < N_ROWS; r++) {
        const float *m = logits + r * N_VOCAB, *b = baseline + r * N_VOCAB;
        double kld = 0;
        for (int i = 0; i < N_VOCAB; i++) kld += exp(log_p(b, i)) * (log_p(b, i) - log_p(m, i));
        assert_float_equal(scores[r].nll, -log_p(m, targets[r]), 1e-5);
        assert_float_equal(scores[r].baseline_nll, -log_p(b, targets[r]), 1e-5);
        assert_float_equal(scores[r].kld, kld, 1e-6);
        assert_int_equal(scores[r].agrees, first_ranked(m) == first_ranked(b));
    }
}

static void without_a_baseline_only_the_cross_entropy_is_set(void **state)
{
    (void)state;
    const fl_exec ex = {.n_threads = 1};
    fl_row_score with[N_ROWS], without[N_ROWS];
    fl__score_rows(&ex, with, logits, baseline, targets, N_ROWS, N_VOCAB);
    fl__score_rows(&ex, without, logits, NULL, targets, N_ROWS, N_VOCAB);
    for (int r = 0; r < N_ROWS; r++) {
        assert_true(with[r].nll == without[r].nll);
        assert_true(without[r].kld == 0 && without[r].baseline_nll == 0 && !without[r].agrees);
    }
}

static void a_model_does_not_diverge_from_itself(void **state)
{
    (void)state;
    const fl_exec ex = {.n_threads = 1};
    fl_row_score scores[N_ROWS];
    fl__score_rows(&ex, scores, logits, logits, targets, N_ROWS, N_VOCAB);
    for (int r = 0; r < N_ROWS; r++) {
        assert_float_equal(scores[r].kld, 0, 1e-12);
        assert_true(scores[r].agrees);
    }
}

static void large_and_masked_logits_are_no_trouble(void **state)
{
    (void)state;
    const fl_exec ex = {.n_threads = 1};
    fl_row_score score;
    const int32_t target = 1;
    float row[N_VOCAB], base[N_VOCAB];
    for (int i = 0; i < N_VOCAB; i++) row[i] = base[i] = -INFINITY;
    row[0] = row[1] = base[0] = base[1] = 80000;
    fl__score_rows(&ex, &score, row, base, &target, 1, N_VOCAB);
    assert_float_equal(score.nll, log(2), 1e-9);
    assert_float_equal(score.kld, 0, 1e-9);
    row[0] = -INFINITY; /* the baseline deems possible what the model excludes */
    fl__score_rows(&ex, &score, row, base, &target, 1, N_VOCAB);
    assert_float_equal(score.nll, 0, 1e-9);
    assert_true(isinf(score.kld) && score.kld > 0);
}

static void rows_without_numbers_score_nan(void **state)
{
    (void)state;
    const fl_exec ex = {.n_threads = 1};
    fl_row_score score;
    const int32_t target = 1;
    float row[N_VOCAB] = {0};
    row[50] = NAN;
    fl__score_rows(&ex, &score, row, NULL, &target, 1, N_VOCAB);
    assert_true(isnan(score.nll));
    row[50] = INFINITY;
    fl__score_rows(&ex, &score, row, NULL, &target, 1, N_VOCAB);
    assert_true(isnan(score.nll));
    for (int i = 0; i < N_VOCAB; i++) row[i] = -INFINITY;
    fl__score_rows(&ex, &score, row, NULL, &target, 1, N_VOCAB);
    assert_true(isnan(score.nll));
}

static void scores_do_not_depend_on_the_threads(void **state)
{
    (void)state;
    fl_row_score one[N_ROWS], three[N_ROWS];
    memset(one, 0, sizeof one);
    memset(three, 0, sizeof three);
    fl__score_rows(&(fl_exec){.n_threads = 1}, one, logits, baseline, targets, N_ROWS, N_VOCAB);
    fl__score_rows(&(fl_exec){.n_threads = 3}, three, logits, baseline, targets, N_ROWS,
                   N_VOCAB);
    assert_memory_equal(one, three, sizeof one);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(scores_are_those_of_the_definition),
    cmocka_unit_test(without_a_baseline_only_the_cross_entropy_is_set),
    cmocka_unit_test(a_model_does_not_diverge_from_itself),
    cmocka_unit_test(large_and_masked_logits_are_no_trouble),
    cmocka_unit_test(rows_without_numbers_score_nan),
    cmocka_unit_test(scores_do_not_depend_on_the_threads),
};
FL_TEST_MAIN_FIXTURE(tests, fill, NULL)
