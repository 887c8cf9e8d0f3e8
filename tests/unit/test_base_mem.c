/* test_base_mem.c - alignment, counting, overflow, injected faults of the allocator.
 * SPDX-License-Identifier: MIT */
#include "base/exec.h"
#include "base/mem.h"
#include "support/fl_test.h"

#include <stdatomic.h>
#include <stdbool.h>
#include <string.h>

static void blocks_are_aligned_and_writable(void **state)
{
    (void)state;
    for (size_t n = 0; n < 300; n++) {
        unsigned char *p = fl__alloc(n, 1);
        assert_non_null(p);
        assert_int_equal((uintptr_t)p % 64, 0);
        if (n > 0) memset(p, 0xa5, n); /* the address sanitizer sees a byte too many */
        fl__free(&p);
        assert_null(p);
    }
}

static void live_bytes_are_exact(void **state)
{
    (void)state;
    const fl__mem_stats before = fl__mem_get();
    float *a = fl__alloc(100, sizeof *a);
    char *b = fl__strdup("seven!!");
    assert_int_equal(fl__mem_get().now_bytes, before.now_bytes + 408);
    assert_int_equal(fl__mem_get().n_allocs, before.n_allocs + 2);
    fl__free(&a);
    assert_int_equal(fl__mem_get().now_bytes, before.now_bytes + 8);
    fl__free(&b);
    assert_int_equal(fl__mem_get().now_bytes, before.now_bytes);
    fl__free(&b); /* no-op */
    assert_int_equal(fl__mem_get().now_bytes, before.now_bytes);
}

static void peak_is_the_largest_sum(void **state)
{
    (void)state;
    fl__mem_peak_reset();
    const size_t start = fl__mem_get().now_bytes;
    char *a = fl__alloc(1000, 1), *b = fl__alloc(500, 1);
    fl__free(&a);
    char *c = fl__alloc(200, 1);
    assert_int_equal(fl__mem_get().peak_bytes, start + 1500);
    fl__mem_peak_reset();
    assert_int_equal(fl__mem_get().peak_bytes, start + 700);
    fl__free(&b);
    fl__free(&c);
}

/* Leaves freed blocks of n_bytes that are not zero for the next allocations to find. */
static void dirty_the_heap(size_t n_bytes)
{
    unsigned char *dirty[64];
    for (int i = 0; i < 64; i++) {
        dirty[i] = fl__alloc(n_bytes, 1);
        memset(dirty[i], 0xff, n_bytes);
    }
    for (int i = 0; i < 64; i++) fl__free(&dirty[i]);
}

static void calloc_zeroes(void **state)
{
    (void)state;
    dirty_the_heap(5000);
    for (int round = 0; round < 10; round++) {
        unsigned char *p = fl__calloc(1250, 4);
        for (size_t i = 0; i < 5000; i++) assert_int_equal(p[i], 0);
        memset(p, 0xff, 5000);
        fl__free(&p);
    }
}

static void blocks_on_huge_pages_are_blocks(void **state)
{
    (void)state;
    static const size_t sizes[] = {0, 100, 2 << 20, (2 << 20) - 65, (5 << 20) + 1};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        const size_t before = fl__mem_get().now_bytes;
        char *p = fl__alloc_huge(sizes[i], 1);
        assert_non_null(p);
        assert_int_equal((uintptr_t)p % 64, 0);
        assert_int_equal(fl__mem_get().now_bytes, before + sizes[i]);
        memset(p, 1, sizes[i]);
        fl__free(&p);
        assert_int_equal(fl__mem_get().now_bytes, before);
    }
    assert_null(fl__alloc_huge(SIZE_MAX, 1));
    assert_null(fl__alloc_huge(SIZE_MAX - 100, 1));
}

static void sizes_that_overflow_fail(void **state)
{
    (void)state;
    const fl__mem_stats before = fl__mem_get();
    int *kept = fl__alloc(4, sizeof *kept);
    int *const same = kept;
    assert_null(fl__alloc(SIZE_MAX / 2 + 1, 2));
    assert_null(fl__calloc(SIZE_MAX, SIZE_MAX));
    assert_null(fl__alloc(SIZE_MAX, 1));
    assert_null(fl__alloc(SIZE_MAX - 127, 1));
    assert_null(fl__alloc(SIZE_MAX - 128, 1)); /* no overflow, but no such memory either */
    assert_null(fl__strndup("", SIZE_MAX));
    assert_int_equal(fl__grow(&kept, SIZE_MAX, sizeof *kept), -1);
    assert_ptr_equal(kept, same);
    fl__free(&kept);
    assert_int_equal(fl__mem_get().now_bytes, before.now_bytes);
}

static void grow_keeps_contents(void **state)
{
    (void)state;
    const size_t before = fl__mem_get().now_bytes;
    int *p = NULL;
    for (int n = 1; n <= 1000; n *= 10) {
        assert_int_equal(fl__grow(&p, (size_t)n, sizeof *p), 0);
        for (int i = n / 10; i < n; i++) p[i] = i;
    }
    for (int i = 0; i < 1000; i++) assert_int_equal(p[i], i);
    assert_int_equal(fl__mem_get().now_bytes, before + 1000 * sizeof *p);
    assert_int_equal(fl__grow(&p, 10, sizeof *p), 0); /* smaller is allowed */
    for (int i = 0; i < 10; i++) assert_int_equal(p[i], i);
    assert_int_equal(fl__mem_get().now_bytes, before + 10 * sizeof *p);
    fl__free(&p);
}

static void strndup_copies_bytes(void **state)
{
    (void)state;
    dirty_the_heap(5000);
    char *p = fl__strndup("a\0bc", 3);
    assert_memory_equal(p, "a\0b", 4);
    fl__free(&p);
    p = fl__strndup("", 0);
    assert_string_equal(p, "");
    fl__free(&p);
}

static void nth_allocation_fails_once(void **state)
{
    (void)state;
    const fl__mem_stats before = fl__mem_get();
    char *p[4];
    fl__mem_fail_after(3);
    for (int i = 0; i < 4; i++) p[i] = fl__alloc(8, 1);
    for (int i = 0; i < 4; i++) assert_true((p[i] == NULL) == (i == 2));
    for (int i = 0; i < 4; i++) fl__free(&p[i]);
    fl__mem_fail_after(1);
    fl__mem_fail_after(0);
    p[0] = fl__alloc(8, 1);
    assert_non_null(p[0]);
    fl__free(&p[0]);
    assert_int_equal(fl__mem_get().now_bytes, before.now_bytes);
    assert_int_equal(fl__mem_get().n_allocs, before.n_allocs + 4);
}

static void fault_of_grow_keeps_block(void **state)
{
    (void)state;
    char *p = fl__strdup("kept");
    fl__mem_fail_after(1);
    assert_int_equal(fl__grow(&p, 100, 1), -1);
    assert_string_equal(p, "kept");
    fl__free(&p);
}

static void alloc_and_count(void *arg, int64_t item, int thread)
{
    atomic_int *n_failed = arg;
    (void)thread;
    char *p = fl__alloc((size_t)item % 97 + 1, 1);
    if (!p)
        atomic_fetch_add(n_failed, 1);
    else
        *p = 'x';
    fl__free(&p);
}

static void threads_meet_one_fault_and_lose_no_byte(void **state)
{
    (void)state;
    const fl_exec ex = {.n_threads = 4};
    for (int round = 0; round < 50; round++) {
        const fl__mem_stats before = fl__mem_get();
        atomic_int n_failed = 0;
        fl__mem_fail_after(100);
        fl__parallel_for(&ex, 400, alloc_and_count, &n_failed);
        assert_int_equal(n_failed, 1);
        assert_int_equal(fl__mem_get().now_bytes, before.now_bytes);
        assert_int_equal(fl__mem_get().n_allocs, before.n_allocs + 399);
    }
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(blocks_are_aligned_and_writable),
    cmocka_unit_test(live_bytes_are_exact),
    cmocka_unit_test(peak_is_the_largest_sum),
    cmocka_unit_test(calloc_zeroes),
    cmocka_unit_test(blocks_on_huge_pages_are_blocks),
    cmocka_unit_test(sizes_that_overflow_fail),
    cmocka_unit_test(grow_keeps_contents),
    cmocka_unit_test(strndup_copies_bytes),
    cmocka_unit_test(nth_allocation_fails_once),
    cmocka_unit_test(fault_of_grow_keeps_block),
    cmocka_unit_test(threads_meet_one_fault_and_lose_no_byte),
};
FL_TEST_MAIN(tests)
