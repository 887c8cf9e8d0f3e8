/* decode_once.c - the same tokens as a window and one by one. SPDX-License-Identifier: MIT */
#include "support/decode_once.h"

#include "support/fl_test.h"

#include "base/mem.h"

#include <flatiron/flatiron.h>

#include <string.h>

enum { N_IDS = 100, MAX_VOCAB = 8192 };

static fl_err err;

static fl_engine *open_engine(const char *dir)
{
    fl_engine_options o;
    fl_engine *engine;
    fl_engine_options_defaults(&o);
    o.n_threads = 1;
    if (fl_engine_open(&engine, dir, &o, &err)) fail_msg("%s", err.text);
    return engine;
}

static const float *feed(fl_session *s, const int32_t *ids, size_t n)
{
    const float *logits;
    if (fl_session_feed(s, ids, n, &logits, &err)) fail_msg("%s", err.text);
    return logits;
}

void fl_test_decodes_as_it_evaluates(const char *dir, const char *kv_format)
{
    static float whole[MAX_VOCAB];
    fl_engine *engine = open_engine(dir);
    fl_engine_info info;
    fl_session *a, *b;
    int32_t ids[N_IDS];
    fl_engine_get_info(engine, &info);
    assert_string_equal(info.kv_format, kv_format);
    assert_true(info.vocab_size <= MAX_VOCAB);
    const size_t row_bytes = sizeof(float) * (size_t)info.vocab_size;
    for (int i = 0; i < N_IDS; i++) ids[i] = (i * i * 7 + i * 31) % 250;
    assert_int_equal(fl_session_new(&a, engine, NULL, &err), FL_OK);
    assert_int_equal(fl_session_new(&b, engine, NULL, &err), FL_OK);
    const size_t n = (size_t)(info.n_positions < N_IDS ? info.n_positions : N_IDS);
    const uint64_t allocs = fl__mem_get().n_allocs;
    for (size_t i = 0; i < n; i++) {
        const float *one = feed(a, ids + i, 1);
        if (i % 11 != 10 && i + 1 != n) continue;
        fl_session_truncate(b, i % 2 ? 0 : 5);
        const size_t kept = fl_session_length(b);
        memcpy(whole, feed(b, ids + kept, i + 1 - kept), row_bytes);
        if (memcmp(one, whole, row_bytes) != 0)
            fail_msg("%s: logits behind token %zu differ", dir, i);
    }
    assert_int_equal(fl__mem_get().n_allocs, allocs);
    fl_session_free(&a);
    fl_session_free(&b);
    fl_engine_close(&engine);
}
