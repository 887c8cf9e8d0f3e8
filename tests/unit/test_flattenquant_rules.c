/* test_flattenquant_rules.c - the published rules, worked by hand.
 * SPDX-License-Identifier: MIT */
#include "quant/flattenquant/flattenquant.h"

#include "base/mem.h"
#include "base/rng.h"
#include "support/fl_test.h"
#include "support/random_data.h"

#include <math.h>
#include <string.h>

static bool near(double a, double b)
{
    return fabs(a - b) <= 1e-6 * fmax(1, fabs(b));
}

/* ---- smoothing --------------------------------------------------------------------------- */

static void smoothing_follows_its_formula(void **state)
{
    (void)state;
    static const float a[] = {4, 16, 0, 3}, w[] = {1, 0.25f, 2, 0};
    float s[4];
    fl__flatten_smooth(s, a, w, 4, (fl_flatten_groups){NULL, 4}, 0.5, NULL, NULL);
    assert_true(near(s[0], 2) && near(s[1], 8)); /* sqrt(4 / 1), sqrt(16 / 0.25) */
    assert_true(s[2] == 1 && s[3] == 1);         /* no activation, no weight */
    fl__flatten_smooth(s, a, w, 4, (fl_flatten_groups){NULL, 4}, 1, NULL, NULL);
    assert_true(near(s[0], 4) && near(s[1], 16));
    fl__flatten_smooth(s, a, w, 4, (fl_flatten_groups){NULL, 4}, 0, NULL, NULL);
    assert_true(near(s[0], 1) && near(s[1], 4));
}

static void groups_share_their_factor(void **state)
{
    (void)state;
    static const float a[] = {1, 2, 9, 4}, w[] = {1, 4, 0.5f, 2};
    static const int map[] = {0, 1, 0, 1};
    float s[4], maxima[2][2];
    fl__flatten_smooth(s, a, w, 4, (fl_flatten_groups){map, 2}, 0.5, maxima[0], maxima[1]);
    assert_true(near(s[0], 3) && s[0] == s[2]); /* maxima 9 and 1 */
    assert_true(near(s[1], 1) && s[1] == s[3]); /* maxima 4 and 4 */
}

/* ---- box plot and threshold -------------------------------------------------------------- */

static void quartiles_are_interpolated(void **state)
{
    (void)state;
    static const float odd[] = {5, 1, 3, 2, 4}, even[] = {4, 1, 3, 2}, single[] = {7};
    float sorted[5];
    double q3, iqr;
    assert_true(near(fl__flatten_fence(odd, 5, &q3, &iqr, sorted), 4 + 1.5 * 2));
    assert_true(q3 == 4 && iqr == 2);
    assert_true(near(fl__flatten_fence(even, 4, &q3, &iqr, sorted), 3.25 + 1.5 * 1.5));
    assert_true(q3 == 3.25 && iqr == 1.5);
    assert_true(fl__flatten_fence(single, 1, &q3, &iqr, sorted) == 7);
    assert_true(odd[0] == 5 && even[0] == 4); /* the input keeps its order */
}

/* Maxima 1, 2, 3, 4, 100: Q1 2, Q3 4, IQR 2, fence 7, so that 100 is the one outlier. */
static const float five[] = {1, 2, 3, 4, 100};

static float rule(uint16_t copies[5], int64_t *n_outliers, fl_flatten_options o)
{
    float sorted[5];
    return fl__flatten_rule(copies, five, 5, &o, n_outliers, sorted);
}

static void threshold_is_beta_times_the_mean_of_the_rest(void **state)
{
    (void)state;
    uint16_t k[5];
    int64_t n;
    fl_flatten_options o = {.suppress = true, .flatten = true, .beta = 1.3, .max_ratio = 1000};
    /* mean of 1, 2, 3, 4 is 2.5; T = 3.25 */
    assert_true(near(rule(k, &n, o), 3.25) && n == 1);
    assert_true(k[0] == 1 && k[1] == 1 && k[2] == 1 && k[3] == 2 && k[4] == 31);
    o.suppress = false; /* mean 22, T = 28.6 */
    assert_true(near(rule(k, &n, o), 28.6));
    assert_true(k[3] == 1 && k[4] == 4);
    o.suppress = true;
    o.iqr_rule = true; /* Q3 + 1.3 IQR = 6.6 */
    assert_true(near(rule(k, &n, o), 6.6));
    assert_true(k[3] == 1 && k[4] == 16);
}

static void threshold_rises_until_the_cap_holds(void **state)
{
    (void)state;
    uint16_t k[5];
    int64_t n;
    fl_flatten_options o = {.suppress = true, .flatten = true, .beta = 1.3, .max_ratio = 0.6};
    /* 5 channels may have 8 copies: 100 in 4, so that T is 25 */
    assert_true(near(rule(k, &n, o), 25));
    assert_true(k[0] + k[1] + k[2] + k[3] == 4 && k[4] == 4);
    o.max_ratio = 0.1; /* less than one copy: none */
    assert_true(near(rule(k, &n, o), 100));
    assert_true(k[4] == 1);
    o.flatten = false;
    o.max_ratio = 1000;
    assert_true(near(rule(k, &n, o), 100)); /* nothing is clipped */
    assert_true(k[3] == 1 && k[4] == 1);
    o.flatten = true;
    o.beta = 1e9; /* no threshold above the largest maximum */
    assert_true(near(rule(k, &n, o), 100));
}

static void smaller_beta_makes_more_channels(void **state)
{
    (void)state;
    enum { K = 200 };
    float *m = fl_test_normal(K, 1, "maxima"), sorted[K];
    uint16_t copies[K];
    int64_t n, before = 0;
    for (int c = 0; c < K; c++) m[c] = expf(m[c]);
    for (double beta = 4; beta > 0.2; beta *= 0.8) {
        const fl_flatten_options o = {.suppress = true, .flatten = true, .beta = beta,
                                      .max_ratio = 16};
        const float T = fl__flatten_rule(copies, m, K, &o, &n, sorted);
        int64_t sum = 0;
        for (int c = 0; c < K; c++) {
            assert_true(copies[c] * T >= m[c] * (1 - 1e-6f)); /* nothing is clipped */
            assert_true(copies[c] == 1 || (copies[c] - 1) * T < m[c]);
            sum += copies[c];
        }
        assert_true(sum >= before);
        before = sum;
    }
    assert_true(before > 2 * K);
    fl__free(&m);
}

static void cap_holds_for_any_maxima(void **state)
{
    (void)state;
    enum { K = 64 };
    fl_rng rng = fl__rng_init(1, 0, "cap");
    for (int i = 0; i < 300; i++) {
        float m[K], sorted[K];
        uint16_t copies[K];
        int64_t n, sum = 0;
        const double spread = 6 * fl__rng_unit(&rng);
        const fl_flatten_options o = {.suppress = true, .flatten = true,
                                      .beta = 0.1 + 2 * fl__rng_unit(&rng),
                                      .max_ratio = fl__rng_unit(&rng)};
        for (int c = 0; c < K; c++) m[c] = (float)exp(spread * fl__rng_normal(&rng));
        if (i % 3 == 0) m[i % K] = 0;
        const float T = fl__flatten_rule(copies, m, K, &o, &n, sorted);
        assert_true(isfinite(T) && T > 0);
        for (int c = 0; c < K; c++) sum += copies[c] - 1;
        assert_true(sum <= (int64_t)(o.max_ratio * K));
    }
}

static void silent_sites_have_a_threshold(void **state)
{
    (void)state;
    float m[8] = {0}, sorted[8];
    uint16_t copies[8];
    int64_t n;
    const fl_flatten_options o = {
        .suppress = true, .flatten = true, .beta = 1.3, .max_ratio = 1};
    assert_true(near(fl__flatten_rule(copies, m, 8, &o, &n, sorted), 1));
    for (int c = 0; c < 8; c++) assert_true(copies[c] == 1);
    m[5] = 3; /* one channel speaks: it is above a fence of 0 */
    const float T = fl__flatten_rule(copies, m, 8, &o, &n, sorted);
    assert_true(near(T, 3) && copies[5] == 1 && n == 1);
}

/* ---- divergence -------------------------------------------------------------------------- */

static fl_site_stats stats_of(const float *x, int n_rows, int K)
{
    fl_site_stats s;
    assert_int_equal(fl__site_stats_init(&s, K, n_rows, n_rows, NULL), FL_OK);
    fl__site_stats_add(&s, x, n_rows);
    fl__site_stats_finish(&s);
    return s;
}

/* D_b by its definition, bin by bin. */
static double plain_divergence(const float *x, int n, double top, int qmax)
{
    enum { BINS = 2048 };
    static double p[BINS], q[BINS];
    double kl = 0;
    memset(p, 0, sizeof p);
    memset(q, 0, sizeof q);
    for (int i = 0; i < n; i++) {
        const int bin = (int)(fabs(x[i]) / top * BINS);
        p[bin < BINS ? bin : BINS - 1] += 1.0 / n;
    }
    for (int level = 0; level <= qmax; level++) {
        double mass = 0;
        int filled = 0;
        for (int b = 0; b < BINS; b++)
            if (rint((b + 0.5) / BINS * qmax) == level) {
                mass += p[b];
                filled += p[b] > 0;
            }
        for (int b = 0; b < BINS; b++)
            if (p[b] > 0 && rint((b + 0.5) / BINS * qmax) == level) q[b] = mass / filled;
    }
    for (int b = 0; b < BINS; b++)
        if (p[b] > 0) kl += p[b] * log(p[b] / q[b]);
    return kl;
}

static void divergence_is_that_of_the_definition(void **state)
{
    (void)state;
    enum { K = 16, ROWS = 100 };
    float *x = fl_test_normal(K * ROWS, 1, "x"), ones[K], top = 0;
    double d[2][2];
    x[77] = 12; /* an outlier: fewer levels for the rest */
    for (int c = 0; c < K; c++) ones[c] = 1;
    for (int i = 0; i < K * ROWS; i++) top = fmaxf(top, fabsf(x[i]));
    fl_site_stats s = stats_of(x, ROWS, K);
    for (int u = 0; u < 2; u++)
        for (int wide = 0; wide < 2; wide++) {
            const int bits = wide ? 8 : 4, qmax = fl__flatten_qmax(bits, u);
            d[u][wide] = fl__flatten_divergence(&s, ones, bits, u);
            assert_true(near(d[u][wide], plain_divergence(x, K * ROWS, top, qmax)));
        }
    assert_true(d[0][0] > d[0][1] && d[0][1] > 0); /* 4 bits lose more than 8 */
    assert_true(d[0][0] > d[1][0]);                /* 15 levels are better than 7 */
    fl__site_stats_fini(&s);
    fl__free(&x);
}

static void divergence_is_finite_and_zero_where_nothing_is_lost(void **state)
{
    (void)state;
    float zeros[12] = {0}, levels[12], ones[3] = {1, 1, 1}, smooth[3] = {0.5f, 2, 4};
    fl_site_stats s = stats_of(zeros, 4, 3);
    assert_true(fl__flatten_divergence(&s, ones, 4, false) == 0);
    fl__site_stats_fini(&s);
    /* values that are levels already: each level has one bin */
    for (int i = 0; i < 12; i++) levels[i] = (float)(i % 8) * (i % 2 ? 1 : -1);
    s = stats_of(levels, 4, 3);
    assert_true(fl__flatten_divergence(&s, ones, 4, false) == 0);
    const double d = fl__flatten_divergence(&s, smooth, 4, false);
    assert_true(isfinite(d) && d >= 0);
    fl__site_stats_fini(&s);
}

/* ---- selection --------------------------------------------------------------------------- */

static int total_of(const uint8_t *chosen, const int *linears, int n, double *cost_sum,
                    const double *cost)
{
    int total = 0;
    *cost_sum = 0;
    for (int i = 0; i < n; i++) {
        assert_true(chosen[i] <= 1);
        total += chosen[i] * linears[i];
        *cost_sum += chosen[i] * cost[i];
    }
    return total;
}

static void greedy_selection_takes_the_cheapest(void **state)
{
    (void)state;
    static const double cost[] = {5, 1, 3, 2, 4};
    static const int linears[] = {1, 3, 1, 2, 1};
    uint8_t chosen[5];
    /* by cost: #1 (3 linears), #3 (2) would overshoot 4, #2 (1) fits */
    assert_int_equal(fl__flatten_select(chosen, cost, linears, 5, 4, true, NULL), FL_OK);
    static const uint8_t want[] = {0, 1, 1, 0, 0};
    assert_memory_equal(chosen, want, sizeof want);
}

static void least_cost_selection_is_optimal(void **state)
{
    (void)state;
    enum { n = 10 };
    fl_rng rng = fl__rng_init(1, 0, "selection");
    for (int trial = 0; trial < 30; trial++) {
        double cost[n], sum;
        int linears[n], total = 0;
        uint8_t chosen[n];
        for (int i = 0; i < n; i++) {
            cost[i] = fl__rng_unit(&rng);
            linears[i] = 1 + (int)fl__rng_below(&rng, 3);
            total += linears[i];
        }
        const int target = (int)fl__rng_below(&rng, (uint64_t)total + 1);
        assert_int_equal(fl__flatten_select(chosen, cost, linears, n, target, false, NULL),
                         FL_OK);
        assert_int_equal(total_of(chosen, linears, n, &sum, cost), target);
        for (int set = 0; set < 1 << n; set++) {
            double other = 0;
            int count = 0;
            for (int i = 0; i < n; i++)
                if (set >> i & 1) {
                    other += cost[i];
                    count += linears[i];
                }
            if (count == target) assert_true(sum <= other + 1e-12);
        }
    }
}

/* q,k,v and gate,up go together, so that greedy by cost may end two linears short, never
 * above. */
static void greedy_selection_comes_close_to_the_target(void **state)
{
    (void)state;
    enum { LAYERS = 8, n = 4 * LAYERS };
    static const int of_site[] = {3, 1, 2, 1};
    fl_rng rng = fl__rng_init(2, 0, "selection");
    double cost[n], sum;
    int linears[n];
    uint8_t chosen[n];
    for (int i = 0; i < n; i++) {
        cost[i] = fl__rng_unit(&rng);
        linears[i] = of_site[i % 4];
    }
    for (int target = 0; target <= 7 * LAYERS; target++) {
        assert_int_equal(fl__flatten_select(chosen, cost, linears, n, target, true, NULL),
                         FL_OK);
        const int total = total_of(chosen, linears, n, &sum, cost);
        assert_in_range(total, target > 2 ? target - 2 : 0, target);
    }
}

static void targets_out_of_reach_give_what_fits(void **state)
{
    (void)state;
    static const double cost[] = {1, 2};
    static const int linears[] = {3, 3};
    double sum;
    uint8_t chosen[2];
    for (int greedy = 0; greedy < 2; greedy++) {
        assert_int_equal(fl__flatten_select(chosen, cost, linears, 2, 5, greedy, NULL), FL_OK);
        assert_int_equal(total_of(chosen, linears, 2, &sum, cost), 3);
        assert_true(chosen[0] == 1);
        assert_int_equal(fl__flatten_select(chosen, cost, linears, 2, 6, greedy, NULL), FL_OK);
        assert_int_equal(total_of(chosen, linears, 2, &sum, cost), 6);
        assert_int_equal(fl__flatten_select(chosen, cost, linears, 2, 0, greedy, NULL), FL_OK);
        assert_int_equal(total_of(chosen, linears, 2, &sum, cost), 0);
    }
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(smoothing_follows_its_formula),
    cmocka_unit_test(groups_share_their_factor),
    cmocka_unit_test(quartiles_are_interpolated),
    cmocka_unit_test(threshold_is_beta_times_the_mean_of_the_rest),
    cmocka_unit_test(threshold_rises_until_the_cap_holds),
    cmocka_unit_test(smaller_beta_makes_more_channels),
    cmocka_unit_test(cap_holds_for_any_maxima),
    cmocka_unit_test(silent_sites_have_a_threshold),
    cmocka_unit_test(divergence_is_that_of_the_definition),
    cmocka_unit_test(divergence_is_finite_and_zero_where_nothing_is_lost),
    cmocka_unit_test(greedy_selection_takes_the_cheapest),
    cmocka_unit_test(least_cost_selection_is_optimal),
    cmocka_unit_test(greedy_selection_comes_close_to_the_target),
    cmocka_unit_test(targets_out_of_reach_give_what_fits),
};
FL_TEST_MAIN(tests)
