/* test_base_float16.c - all 65,536 half and bfloat16 values, and rounding to bfloat16.
 * SPDX-License-Identifier: MIT */
#include "base/float16.h"
#include "support/fl_test.h"

#include <math.h>

static void every_f16_is_its_value(void **state)
{
    (void)state;
    for (unsigned h = 0; h <= 0xffff; h++) {
        const int exponent = (int)(h >> 10 & 31), mantissa = (int)(h & 1023);
        const float x = fl__f16_to_f32((uint16_t)h);
        assert_int_equal(signbit(x) != 0, h >> 15);
        if (exponent == 31) {
            assert_int_equal(mantissa == 0 ? isinf(x) != 0 : isnan(x) != 0, 1);
            continue;
        }
        const double want =
            exponent == 0 ? ldexp(mantissa, -24) : ldexp(1024 + mantissa, exponent - 25);
        assert_true((double)fabsf(x) == want);
    }
}

static void every_bf16_survives_the_way_there_and_back(void **state)
{
    (void)state;
    for (unsigned h = 0; h <= 0xffff; h++) {
        const float x = fl__bf16_to_f32((uint16_t)h);
        const uint16_t back = fl__f32_to_bf16(x);
        if (isnan(x)) assert_true(isnan(fl__bf16_to_f32(back)));
        else assert_int_equal(back, h);
    }
}

static void bf16_rounds_to_nearest_even(void **state)
{
    (void)state;
    static const struct {
        uint32_t bits;
        uint16_t want;
    } cases[] = {
        {0x3f800000, 0x3f80}, {0x3f807fff, 0x3f80}, {0x3f808000, 0x3f80}, /* tie: even */
        {0x3f808001, 0x3f81}, {0x3f818000, 0x3f82},                       /* tie: odd goes up */
        {0xbf818000, 0xbf82}, {0x00000001, 0x0000}, {0x00008001, 0x0001},
        {0x7f7fffff, 0x7f80}, {0x7f7f7fff, 0x7f7f}, {0x7f800000, 0x7f80},
        {0xff800000, 0xff80}, {0x7f800001, 0x7fc0}, {0xffffffff, 0xffff},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
        assert_int_equal(fl__f32_to_bf16(fl__f32_from_bits(cases[i].bits)), cases[i].want);
}

/* The neighbours of every f16 in float32, and the middles between them. */
static void f16_rounds_to_nearest_even(void **state)
{
    (void)state;
    for (unsigned h = 0; h < 0x7c00; h++) {
        const float x = fl__f16_to_f32((uint16_t)h);
        const float next = h == 0x7bff ? 65536.0f : fl__f16_to_f32((uint16_t)(h + 1));
        const float middle = (x + next) / 2; /* exact */
        const unsigned even = h % 2 ? h + 1 : h;
        for (unsigned sign = 0; sign <= 0x8000; sign += 0x8000) {
            const float s = sign ? -1.0f : 1.0f;
            assert_int_equal(fl__f32_to_f16(s * x), h | sign);
            assert_int_equal(fl__f32_to_f16(s * middle), even | sign);
            assert_int_equal(fl__f32_to_f16(s * nextafterf(middle, 0)), h | sign);
            assert_int_equal(fl__f32_to_f16(s * nextafterf(middle, INFINITY)), (h + 1) | sign);
        }
    }
    assert_int_equal(fl__f32_to_f16(INFINITY), 0x7c00);
    assert_int_equal(fl__f32_to_f16(-1e30f), 0xfc00);
    assert_int_equal(fl__f32_to_f16(1e-40f), 0);
    assert_true(isnan(fl__f16_to_f32(fl__f32_to_f16(NAN))));
    assert_true(isnan(fl__f16_to_f32(fl__f32_to_f16(fl__f32_from_bits(0x7f800001)))));
}

static void arrays_take_unaligned_sources(void **state)
{
    (void)state;
    const uint16_t halves[3] = {0x3c00, 0xc000, 0x0001}, bf[3] = {0x3f80, 0xc000, 0x7f80};
    unsigned char shifted[7];
    float x[3];
    uint16_t back[3];
    memcpy(shifted + 1, halves, sizeof halves);
    fl__f16_to_f32_array(x, shifted + 1, 3);
    assert_true(x[0] == 1.0f && x[1] == -2.0f && x[2] == 0x1p-24f);
    memcpy(shifted + 1, bf, sizeof bf);
    fl__bf16_to_f32_array(x, shifted + 1, 3);
    assert_true(x[0] == 1.0f && x[1] == -2.0f && isinf(x[2]));
    fl__f32_to_bf16_array(back, x, 3);
    assert_memory_equal(back, bf, sizeof bf);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(every_f16_is_its_value),
    cmocka_unit_test(every_bf16_survives_the_way_there_and_back),
    cmocka_unit_test(bf16_rounds_to_nearest_even),
    cmocka_unit_test(f16_rounds_to_nearest_even),
    cmocka_unit_test(arrays_take_unaligned_sources),
};
FL_TEST_MAIN(tests)
