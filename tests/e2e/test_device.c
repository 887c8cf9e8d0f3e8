/* test_device.c - the device's executor on a backend of the CPU's kernels gives the CPU's bits:
 * what it puts on a device, in which order it runs it, its page tables and positions.
 * SPDX-License-Identifier: MIT */
#include "support/fl_test.h"
#include "support/host_backend.h"
#include "support/opt_model.h"
#include "support/quantize_once.h"
#include "support/small_model.h"

#include "base/isa.h"
#include "base/mem.h"
#include "model/runner.h"

#include <string.h>

enum { TOKENS = 90, SEQUENCES = 3, STEPS = 4 };

/* Both ways to run a model: [0] the CPU, [1] the device. */
typedef struct pair {
    fl_model *model[2];
    fl_device_model *dm;
    fl_backend *be;
    fl_runner *runner[2];
    float *logits[2];
} pair;

static void must(fl_status st, const fl_err *err)
{
    if (st != FL_OK) fail_msg("%s", err->text);
}

static void pair_open(pair *p, const char *dir, const fl_exec *ex, bool gates)
{
    fl_err err;
    must(fl__model_open(&p->model[0], dir, ex, false, &err), &err);
    must(fl__model_open_codes(&p->model[1], dir, &err), &err);
    /* what an unquantised side of the cache is on a device */
    if (p->model[0]->k_format == FL_KV_F32) p->model[0]->k_format = FL_KV_BF16;
    if (p->model[0]->v_format == FL_KV_F32) p->model[0]->v_format = FL_KV_BF16;
    p->be = fl_test_host_backend(ex, gates);
    must(fl__device_model_new(&p->dm, p->model[1], p->be, &err), &err);
    const size_t n_vocab = (size_t)p->model[0]->cfg.vocab_size;
    for (int i = 0; i < 2; i++) {
        must(fl__runner_new(&p->runner[i], p->model[i], ex, i ? p->dm : NULL, SEQUENCES, TOKENS,
                            SEQUENCES * TOKENS, &err),
             &err);
        p->logits[i] = fl__alloc(SEQUENCES * TOKENS * n_vocab, sizeof(float));
        assert_non_null(p->logits[i]);
    }
}

static void pair_close(pair *p)
{
    for (int i = 0; i < 2; i++) {
        fl__runner_free(&p->runner[i]);
        fl__free(&p->logits[i]);
    }
    fl__device_model_free(&p->dm);
    p->be->ops->close(&p->be);
    for (int i = 0; i < 2; i++) fl__model_close(&p->model[i]);
}

static void same_logits(const pair *p, int n_rows, const char *what)
{
    const size_t n = (size_t)n_rows * (size_t)p->model[0]->cfg.vocab_size;
    if (memcmp(p->logits[0], p->logits[1], n * sizeof(float)) == 0) return;
    size_t i = 0;
    while (memcmp(&p->logits[0][i], &p->logits[1][i], sizeof(float)) == 0) i++;
    fail_msg("%s: %s: logit %zu of %zu is %g on the CPU, %g on the device", p->model[0]->dir,
             what, i, n, (double)p->logits[0][i], (double)p->logits[1][i]);
}

/* The spans through both, all logits compared. */
static void forward(pair *p, const int32_t *ids, const fl_span *spans, int n, const char *what)
{
    fl_err err;
    int n_rows = 0;
    for (int i = 0; i < n; i++) n_rows += spans[i].n_rows;
    for (int i = 0; i < 2; i++) {
        must(fl__runner_forward(p->runner[i], ids, spans, n, &err), &err);
        must(fl__runner_logits(p->runner[i], 0, n_rows, p->logits[i], &err), &err);
    }
    same_logits(p, n_rows, what);
    for (int i = 0; i < 2; i++)
        must(fl__runner_logits(p->runner[i], n_rows - 1, 1, p->logits[i], &err), &err);
    same_logits(p, 1, what);
}

static void compare(const char *dir, bool gates)
{
    const fl_exec ex = {fl__isa_detect(), 2};
    int32_t ids[SEQUENCES * TOKENS];
    pair p;
    fl_err err;
    pair_open(&p, dir, &ex, gates);
    for (int i = 0; i < SEQUENCES * TOKENS; i++)
        ids[i] = (i * 37 + i / 11) % p.model[0]->cfg.vocab_size;
    const fl_span first[2] = {{.seq = 1, .pos = 0, .n_rows = 70},
                              {.seq = 0, .pos = 0, .n_rows = 7}};
    forward(&p, ids, first, 2, "two sequences");
    const fl_span more[3] = {{.seq = 2, .pos = 0, .n_rows = 65},
                             {.seq = 0, .pos = 7, .n_rows = 60},
                             {.seq = 1, .pos = 70, .n_rows = 1}};
    forward(&p, ids + 5, more, 3, "three sequences, two of them going on");
    for (int i = 0; i < 2; i++) fl__runner_resize(p.runner[i], 1, 3); /* pages go back */
    const fl_span again = {.seq = 1, .pos = 3, .n_rows = 80};
    forward(&p, ids + 11, &again, 1, "a truncated sequence");
    for (int i = 0; i < 2; i++) fl__runner_resize(p.runner[i], 0, 0);
    const fl_span anew = {.seq = 0, .pos = 0, .n_rows = 62};
    forward(&p, ids + 17, &anew, 1, "pages used again");
    for (int step = 0; step < STEPS; step++) { /* from one page into the next */
        for (int i = 0; i < 2; i++)
            must(fl__runner_decode(p.runner[i], ids[step], 62 + step, p.logits[i], &err), &err);
        same_logits(&p, 1, "decoding");
    }
    const fl_span after = {.seq = 1, .pos = 83, .n_rows = 1};
    forward(&p, ids + 23, &after, 1, "another sequence, no page more");
    pair_close(&p);
}

static const char *quantised(const char *model, const char *out, const char *method, int bits,
                             int kv_bits, int head_bits)
{
    fl_quantize_options o = fl_test_quantize_options(model, out, method);
    o.n_samples = 2;
    o.kv_bits = kv_bits;
    o.head_bits = head_bits;
    if (bits) o.w_bits = o.a_bits = bits;
    return fl_test_quantize(&o, NULL);
}

static void llama_gives_the_same_bits(void **state)
{
    (void)state;
    fl_small_model m = fl_test_small_model_defaults();
    m.vocab_size = 272; /* a multiple of 16, like all channels */
    const char *dir = fl_test_small_model("model", &m);
    const char *token = quantised(dir, "token", "rtn", 8, 8, 8);
    compare(dir, false);
    compare(token, false);
    compare(token, true);
    compare(quantised(dir, "static", "flattenquant", 0, 16, 16), true);
    compare(quantised(dir, "static 8", "flattenquant", 8, 16, 16), true);
    compare(quantised(dir, "transform", "quarot", 4, 4, 16), true);
    fl_quantize_options o = fl_test_quantize_options(dir, "digits", "flattenquant");
    o.n_samples = 2;
    o.flatten_weights = FL_ON;
    o.weight_beta = 0.7;
    compare(fl_test_quantize(&o, NULL), true);
}

static void flatquant_gives_the_same_bits(void **state)
{
    (void)state;
    fl_small_model m = fl_test_small_model_defaults();
    m.vocab_size = 272;
    fl_quantize_options o =
        fl_test_quantize_options(fl_test_small_model("model", &m), "flatquant", "flatquant");
    o.n_samples = 2;
    o.epochs = 1;
    o.kv_bits = 4;
    compare(fl_test_quantize(&o, NULL), true);
    o.out_dir = fl_test_path("own clips");
    o.clip_per_linear = FL_ON;
    compare(fl_test_quantize(&o, NULL), true);
}

static void opt_gives_the_same_bits(void **state)
{
    (void)state;
    fl_opt_model m = fl_test_opt_model_defaults();
    m.vocab_size = 272;
    m.outlier = 20;
    const char *dir = fl_test_opt_model("model", &m);
    compare(dir, false);
    compare(quantised(dir, "static", "flattenquant", 0, 16, 16), false);
    compare(quantised(dir, "token", "rtn", 4, 8, 16), false);
}

static void what_it_does_not_run_is_said(void **state)
{
    (void)state;
    const fl_exec ex = {fl__isa_detect(), 1};
    fl_opt_model narrow = fl_test_opt_model_defaults();
    narrow.vocab_size = 272;
    narrow.embed_size = 32;
    narrow.pre_norm = false;
    fl_backend *be = fl_test_host_backend(&ex, false);
    fl_device_model *dm;
    fl_model *m;
    fl_err err;
    must(fl__model_open_codes(&m, fl_test_opt_model("narrow", &narrow), &err), &err);
    assert_int_equal(fl__device_model_new(&dm, m, be, &err), FL_E_UNSUPPORTED);
    assert_non_null(strstr(err.text, "use --device cpu"));
    assert_null(dm);
    fl__model_close(&m);
    be->ops->close(&be);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(llama_gives_the_same_bits),
    cmocka_unit_test(flatquant_gives_the_same_bits),
    cmocka_unit_test(opt_gives_the_same_bits),
    cmocka_unit_test(what_it_does_not_run_is_said),
};
FL_TEST_MAIN(tests)
