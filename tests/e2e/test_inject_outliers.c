/* test_inject_outliers.c - the checkpoints with planted outliers are what the tool says.
 * SPDX-License-Identifier: MIT */
#include "support/fl_test.h"
#include "support/run_program.h"

#include "base/file.h"
#include "base/isa.h"
#include "base/mem.h"
#include "model/family.h"
#include "text/tokenizer.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>

#define TINY FL_SOURCE_DIR "/models/tiny-llama"
#define PROSE FL_SOURCE_DIR "/data/prose.txt"

enum { N_TOKENS = 96 };

/* Exit code of the tool; arguments as a shell reads them. */
static int inject(const char *arguments)
{
    char command[2048];
    (void)snprintf(command, sizeof command, "%s/inject_outliers %s >%s 2>&1", FL_BINARY_DIR,
                   arguments, fl_test_path("tool.log"));
    const int status = system(command);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static int inject_into(const char *model, const char *out, const char *options)
{
    char arguments[1536];
    (void)snprintf(arguments, sizeof arguments, "%s %s %s", model, out, options);
    return inject(arguments);
}

static void check(fl_status st, const fl_err *err)
{
    if (st != FL_OK) fail_msg("%s", err->text);
}

/* ---- what a model computes and what its sites see ---------------------------------------- */

typedef struct seen {
    fl_model *model;
    float *logits; /* [N_TOKENS, vocab] */
    float *absmax; /* [n_layers, FL_N_SITES, hidden], norm-fed sites only */
    int layer;
} seen;

static bool observe_site(void *user, int site, const float *x, int n_rows)
{
    seen *s = user;
    const int n = s->model->cfg.hidden_size;
    if (site != FL_SITE_QKV && site != FL_SITE_UP) return true;
    float *top = s->absmax + (size_t)(s->layer * FL_N_SITES + site) * (size_t)n;
    for (int r = 0; r < n_rows; r++)
        for (int c = 0; c < n; c++) top[c] = fmaxf(top[c], fabsf(x[r * n + c]));
    return true;
}

static void look(seen *s, const char *dir, const int32_t *ids)
{
    const fl_exec ex = {fl__isa_detect(), 1};
    const fl_span span = {.seq = 0, .pos = 0, .n_rows = N_TOKENS};
    fl_workspace *ws = NULL;
    fl_kv_cache *kv = NULL;
    fl_err err = {""};

    *s = (seen){0};
    check(fl__model_open(&s->model, dir, &ex, false, &err), &err);
    const fl_model_config *cfg = &s->model->cfg;
    const fl_kv_options room = fl__model_kv_options(s->model, 1, N_TOKENS);
    check(fl__workspace_new(&ws, s->model, &ex, N_TOKENS, &err), &err);
    check(fl__kv_new(&kv, &room, &err), &err);
    s->logits = fl__alloc((size_t)N_TOKENS * (size_t)cfg->vocab_size, sizeof(float));
    s->absmax = fl__calloc((size_t)cfg->n_layers * FL_N_SITES * (size_t)cfg->hidden_size,
                           sizeof(float));
    assert_true(s->logits && s->absmax);
    fl__kv_resize(kv, 0, N_TOKENS);
    fl__model_embed(s->model, &ex, ws, ids, &span, 1);
    for (s->layer = 0; s->layer < cfg->n_layers; s->layer++)
        fl__block_run(s->model, &s->model->blocks[s->layer], s->layer, FL_HALF_BOTH, &ex, ws,
                      kv, &span, 1, observe_site, s);
    fl__model_logits(s->model, &ex, ws, fl__model_finish(s->model, &ex, ws, N_TOKENS), N_TOKENS,
                     s->logits);
    fl__workspace_free(&ws);
    fl__kv_free(&kv);
}

static void forget(seen *s)
{
    fl__model_close(&s->model);
    fl__free(&s->logits);
    fl__free(&s->absmax);
}

/* The first N_TOKENS ids of some prose. */
static void prose_ids(int32_t *to, const char *model)
{
    static const char text[] =
        "Harrowmere is a market town on the eastern bank of the River Tessel, about eleven "
        "miles inland from the coast at Dunmouth. It grew up around a ford that was in use "
        "long before any written record of the place, and the low gravel ridge on which the "
        "oldest streets stand is thought to be one of the few dry crossings in what was once "
        "several thousand acres of marsh. The first mention of the settlement appears in a "
        "list of rents drawn up for the monks of Saint Orrin, who collected forty eels and a "
        "measure of salt from it each spring.";
    fl_tokenizer *t = NULL;
    int32_t *ids = NULL;
    size_t n = 0;
    fl_err err = {""};
    check(fl__tokenizer_open(&t, model, &err), &err);
    check(fl__tokenizer_encode(&ids, &n, t, text, sizeof text - 1, false, &err), &err);
    assert_true(n >= N_TOKENS);
    memcpy(to, ids, N_TOKENS * sizeof *to);
    fl__free(&ids);
    fl__tokenizer_close(&t);
}

static int by_value(const void *a, const void *b)
{
    const float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

static float median(const float *x, int n)
{
    float *sorted = fl__alloc((size_t)n, sizeof *sorted);
    assert_non_null(sorted);
    memcpy(sorted, x, (size_t)n * sizeof *x);
    qsort(sorted, (size_t)n, sizeof *sorted, by_value);
    const float m = sorted[n / 2];
    fl__free(&sorted);
    return m;
}

/* One site: `planted` channels are 20 to 60 times what they were, all others as before; they
 * stand out from the median channel. */
static void check_site(const float *before, const float *after, int n, int planted)
{
    const float middle = median(after, n);
    float top = 0;
    int larger = 0;
    for (int c = 0; c < n; c++) {
        const float ratio = after[c] / before[c];
        top = fmaxf(top, after[c]);
        if (ratio > 1.01f) {
            assert_true(ratio > 19.9f && ratio < 60.1f);
            larger++;
        } else {
            assert_true(ratio > 0.99f);
        }
    }
    assert_int_equal(larger, planted);
    assert_true(top > 8 * middle);
}

static void check_channels(const char *from, const char *to)
{
    int32_t ids[N_TOKENS];
    seen before, after;
    double worst = 0;
    prose_ids(ids, from);
    look(&before, from, ids);
    look(&after, to, ids);
    const fl_model_config *cfg = &before.model->cfg;
    const int n = cfg->hidden_size, planted = (int)lround(0.01 * n);
    for (int i = 0; i < cfg->n_layers * FL_N_SITES; i++)
        if (i % FL_N_SITES == FL_SITE_QKV || i % FL_N_SITES == FL_SITE_UP)
            check_site(before.absmax + (size_t)(i * n), after.absmax + (size_t)(i * n), n,
                       planted);
    for (size_t i = 0; i < (size_t)N_TOKENS * (size_t)cfg->vocab_size; i++)
        worst = fmax(worst, fabs((double)after.logits[i] - (double)before.logits[i]));
    assert_true(worst < 1e-3);
    forget(&before);
    forget(&after);
}

/* ---- tests ------------------------------------------------------------------------------- */

static void llama_keeps_its_function(void **state)
{
    (void)state;
    assert_int_equal(inject_into(TINY, fl_test_path("out"), ""), 0);
    check_channels(TINY, fl_test_path("out"));
}

static void opt_keeps_its_function(void **state)
{
    (void)state;
    const char *model = fl_test_shared("models/opt-2m");
    assert_int_equal(inject_into(model, fl_test_path("out"), ""), 0);
    check_channels(model, fl_test_path("out"));
}

static void shards_become_one_file(void **state)
{
    fl_test_run_result r;
    char args[1024];
    (void)state;
    const char *model = fl_test_shared("models/llama-28m");
    assert_int_equal(inject_into(model, fl_test_path("out"), ""), 0);
    (void)snprintf(args, sizeof args, "verify %s", fl_test_path("out"));
    fl_test_run_program(&r, args, NULL);
    assert_int_equal(r.exit_code, 0);
    assert_true(fl__file_exists(fl_test_path("out/model.safetensors")));
    assert_false(fl__file_exists(fl_test_path("out/model.safetensors.index.json")));
    check_channels(model, fl_test_path("out"));
}

static void seed_decides(void **state)
{
    char command[2048];
    (void)state;
    assert_int_equal(inject_into(TINY, fl_test_path("a"), "--seed 7"), 0);
    assert_int_equal(inject_into(TINY, fl_test_path("b"), "--seed 7"), 0);
    assert_int_equal(inject_into(TINY, fl_test_path("c"), "--seed 8"), 0);
    (void)snprintf(command, sizeof command, "diff -r %s %s", fl_test_path("a"),
                   fl_test_path("b"));
    assert_int_equal(system(command), 0);
    (void)snprintf(command, sizeof command, "diff -rq %s %s >/dev/null", fl_test_path("a"),
                   fl_test_path("c"));
    assert_int_not_equal(system(command), 0);
}

/* Rows of the embedding that were scaled: few, in two channels each, and the head untouched. */
static void tokens_are_scaled_in_the_embedding_only(void **state)
{
    const fl_exec ex = {0, 1};
    fl_model *before = NULL, *after = NULL;
    fl_err err = {""};
    int rows = 0;
    (void)state;
    assert_int_equal(
        inject_into(TINY, fl_test_path("out"), "--tokens 0.001 --text " PROSE), 0);
    check(fl__model_open(&before, TINY, &ex, true, &err), &err);
    check(fl__model_open(&after, fl_test_path("out"), &ex, true, &err), &err);
    assert_true(before->cfg.tied_head && !after->cfg.tied_head);
    const size_t n = (size_t)before->cfg.embed_size, vocab = (size_t)before->cfg.vocab_size;
    const float *embed = after->embed.w, *head = after->head.w;
    float *old = fl__alloc(n * vocab, sizeof *old);
    assert_non_null(old);
    fl__dtype_to_f32(old, before->embed.w_type, before->embed.w, n * vocab);
    assert_memory_equal(head, old, n * vocab * sizeof *old);
    for (size_t row = 0; row < vocab; row++) {
        int scaled = 0;
        for (size_t c = 0; c < n; c++) scaled += embed[row * n + c] != old[row * n + c];
        assert_true(scaled == 0 || scaled == 2);
        rows += scaled > 0;
    }
    assert_true(rows >= 8 && rows <= 64);
    fl__free(&old);
    fl__model_close(&before);
    fl__model_close(&after);
}

static void wrong_use_leaves_nothing(void **state)
{
    (void)state;
    assert_int_equal(inject("--help"), 0);
    assert_int_equal(inject(TINY), 2);
    assert_int_equal(inject_into(TINY, fl_test_path("out"), "--share 2"), 2);
    assert_int_equal(inject_into(TINY, fl_test_path("out"), "--tokens 0.001"), 2);
    assert_int_equal(inject_into(TINY, fl_test_dir(), ""), 2);
    assert_int_equal(inject_into(fl_test_path("missing"), fl_test_path("out"), ""), 3);
    assert_int_equal(
        inject_into(TINY, fl_test_path("out"), "--tokens 0.001 --text missing.txt"), 3);
    assert_false(fl__file_exists(fl_test_path("out")));
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(llama_keeps_its_function),
    cmocka_unit_test(opt_keeps_its_function),
    cmocka_unit_test(shards_become_one_file),
    cmocka_unit_test(seed_decides),
    cmocka_unit_test(tokens_are_scaled_in_the_embedding_only),
    cmocka_unit_test(wrong_use_leaves_nothing),
};
FL_TEST_MAIN(tests)
