/* test_base_rng.c - streams are pure functions of their key, and draws have the right shape.
 *
 * The first values are pinned: a change of the generator changes every quantised model.
 * SPDX-License-Identifier: MIT */
#include "base/rng.h"
#include "support/fl_test.h"

#include <math.h>
#include <stdbool.h>
#include <string.h>

static void generator_is_splitmix64(void **state)
{
    (void)state;
    /* Vigna's published outputs for seed 1234567. */
    static const uint64_t want[] = {6457827717110365317u, 3203168211198807973u,
                                    9817491932198370423u, 4593380528125082431u,
                                    16408922859458223821u};
    fl_rng r = {1234567};
    for (size_t i = 0; i < sizeof want / sizeof *want; i++)
        assert_true(fl__rng_u64(&r) == want[i]);
}

static void streams_are_pinned(void **state)
{
    (void)state;
    fl_rng a = fl__rng_init(0, 0, "calib-windows"), b = fl__rng_init(42, -1, "sample");
    assert_true(fl__rng_u64(&a) == 10066277661431620691u);
    assert_true(fl__rng_u64(&b) == 10713898796020107820u);
}

static void each_part_of_the_key_counts(void **state)
{
    (void)state;
    static const struct {
        uint64_t seed;
        int block;
        const char *purpose;
    } keys[] = {{0, 0, "a"},          {1, 0, "a"},      {0, 1, "a"},  {0, -1, "a"},
                {0, 0, "b"},          {0, 0, ""},       {0, 0, "aa"}, {1, 1, "a"},
                {1ull << 32, 0, "a"}, {0, 1 << 30, "a"}};
    enum { N = sizeof keys / sizeof *keys };
    for (int i = 0; i < N; i++) {
        fl_rng again = fl__rng_init(keys[i].seed, keys[i].block, keys[i].purpose);
        for (int j = 0; j < N; j++) {
            fl_rng other = fl__rng_init(keys[j].seed, keys[j].block, keys[j].purpose);
            assert_true((again.state == other.state) == (i == j));
        }
    }
}

static void below_is_in_range_and_even(void **state)
{
    (void)state;
    fl_rng r = fl__rng_init(7, 0, "below");
    int seen[10] = {0};
    for (int i = 0; i < 100000; i++) {
        const uint64_t x = fl__rng_below(&r, 10);
        assert_true(x < 10);
        seen[x]++;
    }
    for (int i = 0; i < 10; i++) assert_in_range(seen[i], 9600, 10400); /* 4.2 sigma */
    for (int i = 0; i < 100; i++) {
        assert_true(fl__rng_below(&r, 1) == 0);
        assert_true(fl__rng_below(&r, UINT64_MAX) < UINT64_MAX);
    }
}

/* Of n = 3 * 2^62 a plain remainder would draw the lower third twice as often. */
static void below_rejects_the_biased_tail(void **state)
{
    (void)state;
    fl_rng r = fl__rng_init(7, 0, "tail");
    int n_low = 0;
    for (int i = 0; i < 9000; i++) n_low += fl__rng_below(&r, 3ull << 62) < 1ull << 62;
    assert_in_range(n_low, 2800, 3200);
}

static void unit_and_normal_have_their_moments(void **state)
{
    (void)state;
    enum { N = 200000 };
    fl_rng r = fl__rng_init(3, 5, "moments");
    double sum = 0, n1 = 0, n2 = 0, n4 = 0;
    for (int i = 0; i < N; i++) {
        const double u = fl__rng_unit(&r);
        assert_true(u >= 0.0 && u < 1.0);
        sum += u;
    }
    for (int i = 0; i < N; i++) {
        const double x = fl__rng_normal(&r);
        assert_true(isfinite(x));
        n1 += x, n2 += x * x, n4 += x * x * x * x;
    }
    assert_true(fabs(sum / N - 0.5) < 0.003);
    assert_true(fabs(n1 / N) < 0.01);
    assert_true(fabs(n2 / N - 1.0) < 0.015);
    assert_true(fabs(n4 / N - 3.0) < 0.12);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(generator_is_splitmix64),
    cmocka_unit_test(streams_are_pinned),
    cmocka_unit_test(each_part_of_the_key_counts),
    cmocka_unit_test(below_is_in_range_and_even),
    cmocka_unit_test(below_rejects_the_biased_tail),
    cmocka_unit_test(unit_and_normal_have_their_moments),
};
FL_TEST_MAIN(tests)
