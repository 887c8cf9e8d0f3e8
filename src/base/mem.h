/* mem.h - the only allocator of the library.
 *
 * All heap memory of ours goes through here: 64-byte aligned (so that SIMD rows may use aligned
 * loads on any buffer), sizes as count x element with overflow checked, and counted, so that
 * the quantise job can print its true peak beside the dry run's figure and tests can assert
 * that a decode step allocates nothing. A fault can be injected to walk every out-of-memory
 * path.
 * SPDX-License-Identifier: MIT */
#ifndef FL_BASE_MEM_H
#define FL_BASE_MEM_H

#include <stddef.h>
#include <stdint.h>

/* n x elem_bytes bytes, 64-byte aligned, contents undefined; NULL when out of memory or when
 * the product overflows. n == 0 returns a valid pointer that must be freed. */
void *fl__alloc(size_t n, size_t elem_bytes);
/* The same, zeroed. */
void *fl__calloc(size_t n, size_t elem_bytes);
/* As fl__alloc, on huge pages where the system gives them and the block fills one: for weights,
 * which are read from end to end again and again. */
void *fl__alloc_huge(size_t n, size_t elem_bytes);
/* pp: address of a pointer from here or of NULL. Makes its block n x elem_bytes long, keeping
 * the contents up to there. 0, or -1 with the old block kept. */
int fl__grow(void *pp, size_t n, size_t elem_bytes);
char *fl__strdup(const char *s);
/* The n bytes at s, all of which must be readable, with a NUL behind them. */
char *fl__strndup(const char *s, size_t n);
/* Frees and NULLs: fl__free(&x->buffer). No-op on NULL. The comparison, which is never
 * evaluated, makes the compiler refuse fl__free(x->buffer). */
#define fl__free(pp) ((void)sizeof(*(pp) == (void *)0), fl__free_at(pp))
void fl__free_at(void *pp);

typedef struct {
    size_t now_bytes;  /* live now */
    size_t peak_bytes; /* largest now_bytes since fl__mem_peak_reset */
    uint64_t n_allocs; /* calls that allocated, ever */
} fl__mem_stats;
fl__mem_stats fl__mem_get(void);
void fl__mem_peak_reset(void);

/* Tests only: the n-th allocation from now on fails (once); 0 switches the fault off. */
void fl__mem_fail_after(uint64_t n);

#endif
