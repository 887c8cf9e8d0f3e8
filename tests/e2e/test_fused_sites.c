/* test_fused_sites.c - a block gives the same bits whether norms, activation functions and
 * residual sums run with the integer sites or, where a hook watches, as ops of their own.
 * SPDX-License-Identifier: MIT */
#include "support/fl_test.h"
#include "support/opt_model.h"
#include "support/quantize_once.h"
#include "support/small_model.h"

#include "base/isa.h"
#include "base/mem.h"
#include "model/model.h"

#include <math.h>
#include <string.h>

enum { MAX_ROWS = 40 };

static bool watch(void *user, int site, const float *x, int n_rows)
{
    int *seen = user;
    (void)x;
    (void)n_rows;
    seen[site]++;
    return true;
}

/* buf[FL_BUF_X] of n rows behind all blocks, owned. */
static float *run(const fl_model *m, int n_rows, int n_threads, int *seen)
{
    const fl_exec ex = {fl__isa_detect(), n_threads};
    const fl_kv_options o = fl__model_kv_options(m, 1, MAX_ROWS);
    const fl_span span = {.seq = 0, .pos = 0, .n_rows = n_rows};
    const size_t n = (size_t)(n_rows * m->cfg.hidden_size);
    fl_workspace *ws;
    fl_kv_cache *kv;
    float *y = fl__alloc(n, sizeof *y);
    assert_non_null(y);
    assert_int_equal(fl__workspace_new(&ws, m, &ex, n_rows, NULL), FL_OK);
    assert_int_equal(fl__kv_new(&kv, &o, NULL), FL_OK);
    fl__kv_resize(kv, 0, n_rows);
    for (size_t i = 0; i < n; i++) ws->buf[FL_BUF_X][i] = 3 * sinf((float)i * 0.37f);
    for (int layer = 0; layer < m->cfg.n_layers; layer++)
        fl__block_run(m, &m->blocks[layer], layer, FL_HALF_BOTH, &ex, ws, kv, &span, 1,
                      seen ? watch : NULL, seen);
    memcpy(y, ws->buf[FL_BUF_X], n * sizeof *y);
    fl__workspace_free(&ws);
    fl__kv_free(&kv);
    return y;
}

static void compare(const char *dir)
{
    static const int rows[] = {1, 5, MAX_ROWS};
    const fl_exec ex = {fl__isa_detect(), 1};
    fl_model *m;
    fl_err err;
    if (fl__model_open(&m, dir, &ex, false, &err)) fail_msg("%s", err.text);
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        for (int n_threads = 1; n_threads <= 3; n_threads += 2) {
            int seen[FL_N_SITES] = {0};
            float *want = run(m, rows[i], n_threads, seen);
            float *got = run(m, rows[i], n_threads, NULL);
            for (int s = 0; s < FL_N_SITES; s++) assert_int_equal(seen[s], m->cfg.n_layers);
            const size_t n = (size_t)(rows[i] * m->cfg.hidden_size);
            if (memcmp(got, want, n * sizeof *want) != 0)
                fail_msg("%s: %d rows on %d threads differ", dir, rows[i], n_threads);
            fl__free(&want);
            fl__free(&got);
        }
    fl__model_close(&m);
}

static const char *quantised(const char *model, const char *out, const char *method, int bits)
{
    fl_quantize_options o = fl_test_quantize_options(model, out, method);
    o.n_samples = 2;
    if (strcmp(method, "flattenquant") != 0) o.w_bits = o.a_bits = bits;
    return fl_test_quantize(&o, NULL);
}

static void llama_blocks_are_the_same(void **state)
{
    (void)state;
    const fl_small_model m = fl_test_small_model_defaults();
    const char *dir = fl_test_small_model("model", &m);
    compare(dir);
    compare(quantised(dir, "static", "flattenquant", 0));
    compare(quantised(dir, "token", "rtn", 8));
    compare(quantised(dir, "transform", "quarot", 4));
}

static void opt_blocks_are_the_same(void **state)
{
    (void)state;
    for (int pre_norm = 0; pre_norm < 2; pre_norm++) {
        fl_opt_model m = fl_test_opt_model_defaults();
        m.pre_norm = pre_norm;
        const char *dir = fl_test_opt_model(pre_norm ? "pre" : "post", &m);
        compare(quantised(dir, pre_norm ? "pre static" : "post static", "flattenquant", 0));
        compare(quantised(dir, pre_norm ? "pre token" : "post token", "rtn", 8));
    }
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(llama_blocks_are_the_same),
    cmocka_unit_test(opt_blocks_are_the_same),
};
FL_TEST_MAIN(tests)
