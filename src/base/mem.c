/* mem.c - counted, aligned allocation.
 *
 * Each block carries a 64-byte header with its size, so that live bytes are exact without help
 * from the C library. The counters are atomics: they are statistics and a test hook, no program
 * decision depends on them. Callers' pointers of any type are read and written with memcpy: a
 * float * may not be accessed as a void *.
 * SPDX-License-Identifier: MIT */
#include "base/mem.h"

#include "base/numa.h"

#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum { ALIGN = 64, HUGE_PAGE = 2 << 20 };

static atomic_size_t live, peak;
static atomic_uint_fast64_t n_allocs, fail_at;

/* Counts down to the injected fault: of several threads exactly one meets it. */
static bool injected_fault(void)
{
    uint_fast64_t left = atomic_load(&fail_at);
    do {
        if (left == 0) return false;
    } while (!atomic_compare_exchange_weak(&fail_at, &left, left - 1));
    return left == 1;
}

static void *alloc_aligned(size_t n, size_t elem_bytes, size_t align)
{
    size_t bytes;
    if (__builtin_mul_overflow(n, elem_bytes, &bytes)) return NULL;
    if (bytes > SIZE_MAX - 2 * HUGE_PAGE || injected_fault()) return NULL;
    if (bytes < HUGE_PAGE) align = ALIGN;
    const size_t total = (bytes + ALIGN + align - 1) / align * align;
    unsigned char *block = aligned_alloc(align, total);
    if (!block) return NULL;
    /* Where it is refused, small pages will do. The last page is left out: a huge one would be
     * more than was asked for. */
    if (align == HUGE_PAGE)
        (void)madvise(block, (bytes + ALIGN) / HUGE_PAGE * HUGE_PAGE, MADV_HUGEPAGE);
    if (align == HUGE_PAGE) (void)fl__numa_interleave(block, total); /* no better place else */
    memcpy(block, &bytes, sizeof bytes);
    const size_t now = atomic_fetch_add(&live, bytes) + bytes;
    size_t seen = atomic_load(&peak);
    while (now > seen && !atomic_compare_exchange_weak(&peak, &seen, now)) {}
    atomic_fetch_add(&n_allocs, 1);
    return block + ALIGN;
}

void *fl__alloc(size_t n, size_t elem_bytes)
{
    return alloc_aligned(n, elem_bytes, ALIGN);
}

void *fl__alloc_huge(size_t n, size_t elem_bytes)
{
    return alloc_aligned(n, elem_bytes, HUGE_PAGE);
}

void *fl__calloc(size_t n, size_t elem_bytes)
{
    void *p = fl__alloc(n, elem_bytes);
    if (p) memset(p, 0, n * elem_bytes);
    return p;
}

static size_t block_bytes(const void *p)
{
    size_t bytes;
    memcpy(&bytes, (const unsigned char *)p - ALIGN, sizeof bytes);
    return bytes;
}

int fl__grow(void *pp, size_t n, size_t elem_bytes)
{
    void *old, *bigger = fl__alloc(n, elem_bytes);
    if (!bigger) return -1;
    memcpy(&old, pp, sizeof old);
    if (old) {
        const size_t have = block_bytes(old), want = n * elem_bytes;
        memcpy(bigger, old, have < want ? have : want);
        fl__free(&old);
    }
    memcpy(pp, &bigger, sizeof bigger);
    return 0;
}

char *fl__strndup(const char *s, size_t n)
{
    char *copy = fl__alloc(n < SIZE_MAX ? n + 1 : n, 1); /* SIZE_MAX itself always fails */
    if (copy) {
        memcpy(copy, s, n);
        copy[n] = '\0';
    }
    return copy;
}

char *fl__strdup(const char *s)
{
    return fl__strndup(s, strlen(s));
}

void fl__free_at(void *pp)
{
    void *p;
    memcpy(&p, pp, sizeof p);
    if (!p) return;
    atomic_fetch_sub(&live, block_bytes(p));
    free((unsigned char *)p - ALIGN);
    p = NULL;
    memcpy(pp, &p, sizeof p);
}

fl__mem_stats fl__mem_get(void)
{
    return (fl__mem_stats){.now_bytes = atomic_load(&live),
                           .peak_bytes = atomic_load(&peak),
                           .n_allocs = atomic_load(&n_allocs)};
}

void fl__mem_peak_reset(void)
{
    atomic_store(&peak, atomic_load(&live));
}

void fl__mem_fail_after(uint64_t n)
{
    atomic_store(&fail_at, n);
}
