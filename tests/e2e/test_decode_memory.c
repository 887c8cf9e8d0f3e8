/* test_decode_memory.c - a decode step takes no memory: not from the library's allocator, and
 * not from the C library behind its back (OpenMP, oneDNN, jansson, ...).
 *
 * The C library's allocation functions are replaced by counting ones for the whole process,
 * shared libraries included, which glibc allows to any program; they hand on to glibc's own.
 * SPDX-License-Identifier: MIT */
#include "support/fl_test.h"
#include "support/quantize_once.h"
#include "support/small_model.h"

#include "base/mem.h"

#include <errno.h>
#include <malloc.h>
#include <stdatomic.h>
#include <stdlib.h>

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define COUNTED 0 /* the sanitizer has replaced them */
#else
#define COUNTED 1
#endif

static atomic_int n_calls; /* that asked the C library for memory */

#if COUNTED
#define EXPORTED __attribute__((visibility("default")))

void *__libc_malloc(size_t n_bytes);
void *__libc_calloc(size_t n, size_t elem_bytes);
void *__libc_realloc(void *p, size_t n_bytes);
void *__libc_memalign(size_t align, size_t n_bytes);

EXPORTED void *malloc(size_t n_bytes)
{
    atomic_fetch_add(&n_calls, 1);
    return __libc_malloc(n_bytes);
}

EXPORTED void *calloc(size_t n, size_t elem_bytes)
{
    atomic_fetch_add(&n_calls, 1);
    return __libc_calloc(n, elem_bytes);
}

EXPORTED void *realloc(void *p, size_t n_bytes)
{
    atomic_fetch_add(&n_calls, 1);
    return __libc_realloc(p, n_bytes);
}

EXPORTED void *memalign(size_t align, size_t n_bytes)
{
    atomic_fetch_add(&n_calls, 1);
    return __libc_memalign(align, n_bytes);
}

EXPORTED void *aligned_alloc(size_t align, size_t n_bytes)
{
    return memalign(align, n_bytes);
}

EXPORTED int posix_memalign(void **out, size_t align, size_t n_bytes)
{
    *out = memalign(align, n_bytes);
    return *out ? 0 : ENOMEM;
}
#endif

enum { FIRST = 30, N_IDS = 90 };

/* Steps of a model on n_threads. The first ones are not counted: threads start there. */
static void decode(const char *dir, int n_threads)
{
    fl_err err;
    fl_engine_options o;
    fl_engine *engine;
    fl_session *session;
    const float *logits;
    fl_engine_options_defaults(&o);
    o.n_threads = n_threads;
    if (fl_engine_open(&engine, dir, &o, &err)) fail_msg("%s", err.text);
    if (fl_session_new(&session, engine, NULL, &err)) fail_msg("%s", err.text);
    uint64_t ours = 0;
    int all = 0;
    for (int32_t i = 0; i < N_IDS; i++) {
        if (i == FIRST) {
            ours = fl__mem_get().n_allocs;
            all = atomic_load(&n_calls);
        }
        assert_int_equal(fl_session_feed(session, &i, 1, &logits, &err), FL_OK);
    }
    assert_int_equal(fl__mem_get().n_allocs, ours);
    assert_int_equal(atomic_load(&n_calls), all);
    fl_session_free(&session);
    fl_engine_close(&engine);
}

/* Wide enough that loops have more than one item, and that they have different numbers. */
static const char *float_model(void)
{
    fl_small_model m = fl_test_small_model_defaults();
    m.hidden_size = 256;
    m.n_heads = 8;
    m.n_kv_heads = 2;
    m.ffn_size = 640;
    return fl_test_small_model("model", &m);
}

static void the_count_counts(void **state)
{
    (void)state;
    const int before = atomic_load(&n_calls);
    char *p = fl__alloc(100, 1);
    assert_int_equal(atomic_load(&n_calls), before + COUNTED);
    fl__free(&p);
}

static void float_models_take_none(void **state)
{
    (void)state;
    const char *dir = float_model();
    for (int n_threads = 1; n_threads <= 3; n_threads++) decode(dir, n_threads);
}

static void quantised(const char *method, int head_bits, int kv_bits)
{
    fl_quantize_options o = fl_test_quantize_options(float_model(), "out", method);
    o.n_samples = 2;
    o.head_bits = head_bits;
    o.kv_bits = kv_bits;
    const char *dir = fl_test_quantize(&o, NULL);
    for (int n_threads = 1; n_threads <= 3; n_threads++) decode(dir, n_threads);
}

static void transformed_models_take_none(void **state)
{
    (void)state;
    quantised("quarot", 8, 4);
}

static void flattened_models_take_none(void **state)
{
    (void)state;
    quantised("flattenquant", 16, 16);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(the_count_counts),
    cmocka_unit_test(float_models_take_none),
    cmocka_unit_test(transformed_models_take_none),
    cmocka_unit_test(flattened_models_take_none),
};
FL_TEST_MAIN(tests)
