/* test_base_numa.c - lists of nodes, placement of a block. SPDX-License-Identifier: MIT */
#include "base/mem.h"
#include "base/numa.h"
#include "support/fl_test.h"

#include <string.h>

static void lists_become_bits(void **state)
{
    (void)state;
    assert_int_equal(fl__numa_parse("0"), 1);
    assert_int_equal(fl__numa_parse("0-1\n"), 3);
    assert_int_equal(fl__numa_parse("1,3-5,63"), 1ull << 1 | 7ull << 3 | 1ull << 63);
    assert_int_equal(fl__numa_parse("0,64-70"), 1);
    assert_int_equal(fl__numa_parse(""), 0);
    assert_int_equal(fl__numa_parse("?"), 0);
}

static void some_node_is_there(void **state)
{
    (void)state;
    assert_true(fl__numa_nodes() != 0);
}

static void blocks_can_be_placed_and_written(void **state)
{
    enum { BYTES = 5 << 20 };
    (void)state;
    unsigned char *p = fl__alloc_huge(BYTES, 1);
    assert_non_null(p);
    assert_true(fl__numa_interleave(p + 1, 100));
    memset(p, 1, BYTES);
    assert_int_equal(p[BYTES - 1], 1);
    fl__free(&p);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(lists_become_bits),
    cmocka_unit_test(some_node_is_there),
    cmocka_unit_test(blocks_can_be_placed_and_written),
};
FL_TEST_MAIN(tests)
