/* test_flattenquant_search.c - a site's choice: by rule it is the rule's, searched it is no
 * worse, the copies are the best ones for their threshold, and the estimate is near the real
 * error.
 * SPDX-License-Identifier: MIT */
#include "quant/flattenquant/flattenquant.h"

#include "base/mem.h"
#include "base/rng.h"
#include "quant/weight_scale.h"
#include "support/fl_test.h"
#include "support/random_data.h"

#include <math.h>
#include <string.h>

enum { K = 48, N = 32, ROWS = 256 };

static const fl_exec one = {.n_threads = 1}, two = {.n_threads = 2};

typedef struct problem {
    float *x, *w; /* [ROWS, K], [N, K] */
    fl_site_stats stats;
    fl_flatten_weight weight;
    fl_flatten_groups groups;
} problem;

/* Independent channels of different widths; every 12th is `outlier` times wider. */
static problem make_problem(float outlier, bool is_unsigned)
{
    problem p = {.x = fl_test_normal(ROWS * K, 1, "x"), .w = fl_test_normal(N * K, 0.2, "w")};
    for (int i = 0; i < ROWS * K; i++) {
        const int c = i % K;
        p.x[i] *= (1 + 0.05f * (float)(c % 7)) * (c % 12 == 5 ? outlier : 1);
        if (is_unsigned) p.x[i] = fmaxf(p.x[i], 0);
    }
    assert_int_equal(fl__site_stats_init(&p.stats, K, ROWS, ROWS, NULL), FL_OK);
    fl__site_stats_add(&p.stats, p.x, ROWS);
    fl__site_stats_finish(&p.stats);
    p.weight = (fl_flatten_weight){p.w, N};
    p.groups = (fl_flatten_groups){NULL, K};
    return p;
}

static void problem_fini(problem *p)
{
    fl__site_stats_fini(&p->stats);
    fl__free(&p->x);
    fl__free(&p->w);
}

static fl_flatten_choice choose(const problem *p, int bits, int w_bits, bool is_unsigned,
                                const fl_flatten_options *o, const fl_exec *ex)
{
    fl_flatten_choice c;
    fl_err err;
    if (fl__flatten_choose(&c, ex, &p->stats, &p->weight, 1, p->groups, bits, w_bits,
                           is_unsigned, o, &err))
        fail_msg("%s", err.text);
    return c;
}

static const fl_flatten_options by_rule = {.smooth = true, .suppress = true, .flatten = true,
                                           .alpha = 0.5, .beta = 1.3, .max_ratio = 0.3};
static const fl_flatten_options searched = {.smooth = true, .suppress = true, .flatten = true,
                                            .alpha = -1, .beta = -1, .max_ratio = 0.3};

/* ---- the choice against the rule --------------------------------------------------------- */

static void fixed_options_give_the_published_rule(void **state)
{
    (void)state;
    problem p = make_problem(20, false);
    fl_flatten_choice c = choose(&p, 4, 16, false, &by_rule, &one);
    float w_max[K] = {0}, smooth[K], m[K], sorted[K];
    uint16_t copies[K];
    int64_t n_outliers, sum = 0;
    double bits = 0;
    for (int i = 0; i < N * K; i++) w_max[i % K] = fmaxf(w_max[i % K], fabsf(p.w[i]));
    fl__flatten_smooth(smooth, p.stats.absmax, w_max, K, p.groups, 0.5, m, sorted);
    for (int k = 0; k < K; k++) m[k] = p.stats.absmax[k] / smooth[k];
    const float T = fl__flatten_rule(copies, m, K, &by_rule, &n_outliers, sorted);
    for (int k = 0; k < K; k++) {
        sum += copies[k];
        bits += log2(2.0 * 7 * copies[k] + 1) / K;
    }
    assert_memory_equal(c.smooth, smooth, sizeof smooth);
    assert_memory_equal(c.copies, copies, sizeof copies);
    assert_true(c.threshold == T && c.scale == T / 7 && c.n_outliers == n_outliers);
    assert_true(c.alpha == 0.5 && c.bits == 4 && !c.is_unsigned);
    assert_true(fabs(c.ratio - (double)(sum - K) / K) < 1e-12);
    assert_true(fabs(c.effective_bits - bits) < 1e-9);
    fl__flatten_choice_fini(&c);
    problem_fini(&p);
}

static void stages_that_are_off_do_nothing(void **state)
{
    (void)state;
    problem p = make_problem(20, false);
    fl_flatten_options o = by_rule;
    o.smooth = o.flatten = o.suppress = false;
    fl_flatten_choice c = choose(&p, 8, 8, false, &o, &one);
    float top = 0;
    for (int k = 0; k < K; k++) {
        assert_true(c.smooth[k] == 1 && c.copies[k] == 1);
        top = fmaxf(top, p.stats.absmax[k]);
    }
    assert_true(fabsf(c.threshold / top - 1) < 1e-6f && c.ratio == 0 && c.clipped == 0);
    fl__flatten_choice_fini(&c);
    problem_fini(&p);
}

static void unsigned_codes_have_their_own_levels(void **state)
{
    (void)state;
    problem p = make_problem(1, true);
    fl_flatten_choice c = choose(&p, 4, 16, true, &by_rule, &one);
    fl_flatten_choice s = choose(&p, 4, 16, false, &by_rule, &one);
    assert_true(c.is_unsigned && c.scale == c.threshold / 15);
    double bits = 0;
    for (int k = 0; k < K; k++) bits += log2(15.0 * c.copies[k] + 1) / K;
    assert_true(fabs(c.effective_bits - bits) < 1e-9);
    assert_true(c.error < s.error); /* twice the levels for the same range */
    fl__flatten_choice_fini(&c);
    fl__flatten_choice_fini(&s);
    problem_fini(&p);
}

/* ---- the search -------------------------------------------------------------------------- */

static void searching_is_no_worse_than_the_rule(void **state)
{
    (void)state;
    static const float outliers[] = {1, 5, 60};
    for (size_t i = 0; i < FL_COUNT(outliers); i++)
        for (int bits = 4; bits <= 8; bits += 4) {
            problem p = make_problem(outliers[i], false);
            fl_flatten_choice rule = choose(&p, bits, bits, false, &by_rule, &one);
            fl_flatten_choice best = choose(&p, bits, bits, false, &searched, &one);
            int64_t extra = 0;
            for (int k = 0; k < K; k++) extra += best.copies[k] - 1;
            assert_true(best.error <= rule.error * 1.02); /* steps of the grid */
            assert_true(extra <= (int64_t)(0.3 * K));
            assert_true(fabs(best.ratio - (double)extra / K) < 1e-12);
            fl__flatten_choice_fini(&rule);
            fl__flatten_choice_fini(&best);
            problem_fini(&p);
        }
}

/* Real error of the site's output over its energy: quantised activations on quantised weights,
 * every sample row. */
static double real_error(const problem *p, const fl_flatten_choice *c, int w_bits)
{
    static float folded[N * K], xs[K];
    static int8_t codes[N * K];
    float scale[N];
    const int qmax = fl__flatten_qmax(c->bits, c->is_unsigned);
    double error = 0, energy = 0;
    for (int i = 0; i < N * K; i++) folded[i] = p->w[i] * c->smooth[i % K];
    fl__weight_scale_find(&one, scale, folded, N, K, w_bits == 16 ? 8 : w_bits, false, true,
                          NULL);
    (void)fl__weight_round(&one, codes, folded, scale, 1, N, K, w_bits == 16 ? 8 : w_bits,
                           NULL);
    for (int r = 0; r < ROWS; r++) {
        for (int k = 0; k < K; k++) {
            const float top = (float)(qmax * c->copies[k]);
            const float q = rintf(p->x[r * K + k] / c->smooth[k] / c->scale);
            xs[k] = c->scale * fminf(fmaxf(q, c->is_unsigned ? 0 : -top), top);
        }
        for (int n = 0; n < N; n++) {
            double want = 0, got = 0;
            for (int k = 0; k < K; k++) {
                const double w = w_bits == 16 ? (double)folded[n * K + k]
                                              : (double)scale[n] * codes[n * K + k];
                want += (double)p->x[r * K + k] * p->w[n * K + k];
                got += w * xs[k];
            }
            error += (want - got) * (want - got);
            energy += want * want;
        }
    }
    return error / energy;
}

static void estimate_is_near_the_real_error(void **state)
{
    (void)state;
    static const int widths[][2] = {{4, 16}, {8, 16}, {4, 4}, {8, 8}, {8, 4}};
    for (size_t i = 0; i < FL_COUNT(widths); i++)
        for (int s = 0; s < 2; s++) {
            problem p = make_problem(8, s);
            fl_flatten_choice c = choose(&p, widths[i][0], widths[i][1], s, &by_rule, &one);
            const double real = real_error(&p, &c, widths[i][1]);
            if (!(c.error / real > 0.6 && c.error / real < 1.6))
                fail_msg("a%d w%d: estimated %g, real %g", widths[i][0], widths[i][1], c.error,
                         real);
            fl__flatten_choice_fini(&c);
            problem_fini(&p);
        }
}

/* sum_c |s W_c|^2 E(clipping error) for the copies given. */
static double clipping(const problem *p, const fl_flatten_choice *c, const uint16_t *copies)
{
    double sum = 0;
    for (int k = 0; k < K; k++) {
        double energy = 0, error = 0;
        for (int n = 0; n < N; n++)
            energy += pow((double)p->w[n * K + k] * c->smooth[k], 2);
        for (int r = 0; r < ROWS; r++) {
            const double over = fabs((double)p->x[r * K + k]) / c->smooth[k] -
                                (double)copies[k] * c->threshold;
            if (over > 0) error += over * over / ROWS;
        }
        sum += energy * error;
    }
    return sum;
}

/* No move of one copy from a channel to another clips less. */
static void searched_copies_cannot_be_improved(void **state)
{
    (void)state;
    problem p = make_problem(12, false);
    fl_flatten_options o = searched;
    o.smooth = false; /* outliers stay, so that the cap binds */
    fl_flatten_choice c = choose(&p, 4, 16, false, &o, &one);
    const double best = clipping(&p, &c, c.copies);
    int64_t extra = 0;
    for (int k = 0; k < K; k++) extra += c.copies[k] - 1;
    assert_int_equal(extra, (int64_t)(0.3 * K)); /* all spent */
    for (int from = 0; from < K; from++)
        for (int to = 0; to < K && c.copies[from] > 1; to++) {
            uint16_t moved[K];
            memcpy(moved, c.copies, sizeof moved);
            moved[from]--;
            moved[to]++;
            assert_true(clipping(&p, &c, moved) >= best * (1 - 1e-6));
        }
    fl__flatten_choice_fini(&c);
    problem_fini(&p);
}

static void threads_do_not_change_a_bit(void **state)
{
    (void)state;
    problem p = make_problem(15, false);
    fl_flatten_choice a = choose(&p, 4, 4, false, &searched, &one);
    fl_flatten_choice b = choose(&p, 4, 4, false, &searched, &two);
    assert_memory_equal(a.smooth, b.smooth, sizeof(float) * K);
    assert_memory_equal(a.copies, b.copies, sizeof(uint16_t) * K);
    assert_true(a.threshold == b.threshold && a.error == b.error && a.alpha == b.alpha);
    fl__flatten_choice_fini(&a);
    fl__flatten_choice_fini(&b);
    problem_fini(&p);
}

static void channels_of_a_group_are_smoothed_alike(void **state)
{
    (void)state;
    int map[K];
    problem p = make_problem(15, false);
    for (int k = 0; k < K; k++) map[k] = k % (K / 4);
    p.groups = (fl_flatten_groups){map, K / 4};
    fl_flatten_choice c = choose(&p, 4, 4, false, &searched, &one);
    for (int k = 0; k < K; k++) assert_true(c.smooth[k] == c.smooth[k % (K / 4)]);
    fl__flatten_choice_fini(&c);
    problem_fini(&p);
}

static void silent_inputs_have_a_choice(void **state)
{
    (void)state;
    for (int all = 0; all < 2; all++) {
        problem p = make_problem(1, false);
        for (int i = 0; i < ROWS * K; i++)
            if (all || i % K < 5) p.x[i] = 0;
        fl__site_stats_fini(&p.stats);
        assert_int_equal(fl__site_stats_init(&p.stats, K, ROWS, ROWS, NULL), FL_OK);
        fl__site_stats_add(&p.stats, p.x, ROWS);
        fl__site_stats_finish(&p.stats);
        fl_flatten_choice c = choose(&p, 4, 4, false, &searched, &one);
        assert_true(isfinite(c.threshold) && c.scale > 0 && isfinite(c.error) && c.error >= 0);
        for (int k = 0; k < 5; k++) assert_true(c.copies[k] == 1 && c.smooth[k] == 1);
        fl__flatten_choice_fini(&c);
        problem_fini(&p);
    }
}

static void running_out_of_memory_leaves_nothing(void **state)
{
    (void)state;
    problem p = make_problem(5, false);
    const size_t before = fl__mem_get().now_bytes;
    for (unsigned n = 1;; n++) {
        fl_flatten_choice c;
        fl__mem_fail_after(n);
        const fl_status st = fl__flatten_choose(&c, &one, &p.stats, &p.weight, 1, p.groups, 4,
                                                4, false, &searched, NULL);
        fl__flatten_choice_fini(&c);
        assert_int_equal(fl__mem_get().now_bytes, before);
        if (!st) break;
        assert_int_equal(st, FL_E_NOMEM);
    }
    fl__mem_fail_after(0);
    problem_fini(&p);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(fixed_options_give_the_published_rule),
    cmocka_unit_test(stages_that_are_off_do_nothing),
    cmocka_unit_test(unsigned_codes_have_their_own_levels),
    cmocka_unit_test(searching_is_no_worse_than_the_rule),
    cmocka_unit_test(estimate_is_near_the_real_error),
    cmocka_unit_test(searched_copies_cannot_be_improved),
    cmocka_unit_test(threads_do_not_change_a_bit),
    cmocka_unit_test(channels_of_a_group_are_smoothed_alike),
    cmocka_unit_test(silent_inputs_have_a_choice),
    cmocka_unit_test(running_out_of_memory_leaves_nothing),
};
FL_TEST_MAIN(tests)
