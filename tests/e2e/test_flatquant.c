/* test_flatquant.c - FlatQuant and quarot through the public API: every setting ends in a model
 * that verifies, evaluates and decodes as it evaluates; training's losses fall; the bytes
 * depend on neither threads nor interruptions; a broken option is one line and nothing left.
 * SPDX-License-Identifier: MIT */
#include "support/decode_once.h"
#include "support/fl_test.h"
#include "support/opt_model.h"
#include "support/quantize_once.h"
#include "support/run_program.h"
#include "support/small_model.h"

#include "base/file.h"
#include "base/mem.h"

#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static fl_err err;

static json_t *parse(char *text)
{
    json_error_t why;
    json_t *v = json_loads(text, 0, &why);
    if (!v) fail_msg("report: %s", why.text);
    fl_string_free(&text);
    return v;
}

/* Two windows of 64 tokens, two epochs of two steps. */
static fl_quantize_options options_of(const char *model, const char *out, const char *method)
{
    fl_quantize_options o = fl_test_quantize_options(model, out, method);
    o.n_samples = 2;
    o.epochs = 2;
    o.batch_windows = 1;
    o.w_bits = o.a_bits = o.kv_bits = 4;
    return o;
}

static json_t *run(const fl_quantize_options *o)
{
    char *text;
    (void)fl_test_quantize(o, &text);
    return parse(text);
}

static json_t *inspect(const char *dir)
{
    char *text;
    if (fl_inspect_run(&text, dir, &err)) fail_msg("%s", err.text);
    return parse(text);
}

static const char *evaluated_text(void)
{
    const char *path = fl_test_path("text.txt");
    fl_test_write_text(
        path,
        "The ferry came in late that evening, and the people on the quay had long gone home. "
        "Two men tied it up without a word. One of them had worked on this river for forty "
        "years and knew every bank of sand in it; the other had come in spring and was still "
        "asked his name. They drank their tea on the steps, and when the lamps went out they "
        "walked up to the village together, where a window was lit and someone sang.");
    return path;
}

/* Divergence from the float model over a text; the directory verifies. */
static double divergence(const char *model, const char *dir)
{
    fl_eval_options e;
    fl_eval_result r;
    char *report;
    if (fl_verify_run(&report, dir, &err)) fail_msg("verify: %s", err.text);
    fl_string_free(&report);
    fl_eval_options_defaults(&e);
    e.model_dir = dir;
    e.baseline_dir = model;
    e.ppl_path = evaluated_text();
    e.seq_len = 64;
    e.n_threads = 1;
    if (fl_eval_run(&r, &e, &err)) fail_msg("%s", err.text);
    assert_true(isfinite(r.ppl) && r.ppl > 1);
    assert_true(isfinite(r.kld_mean) && r.kld_mean > 0);
    return r.kld_mean;
}

/* A model of two layers and little work. */
static const char *quick_model(void)
{
    const fl_small_model m = fl_test_small_model_defaults();
    return fl_test_small_model("quick", &m);
}

static const char *opt_model(void)
{
    const fl_opt_model m = fl_test_opt_model_defaults();
    return fl_test_opt_model("opt", &m);
}

/* As OPT-350M: norms behind, a narrow embedding. */
static const char *post_norm_model(void)
{
    fl_opt_model m = fl_test_opt_model_defaults();
    m.pre_norm = false;
    m.embed_size = 20;
    m.outlier = 4;
    return fl_test_opt_model("post", &m);
}

/* ---- models ------------------------------------------------------------------------------ */

typedef struct setting {
    const char *method;
    int w_bits, a_bits, kv_bits;
    const char *transform, *recipe, *weights;
    fl_switch asymmetric, clip_per_linear;
    const char *kv_format;
    double most_divergence; /* of the embedded model */
    const char *granularity;
} setting;

static const setting settings[] = {
    {"flatquant", 4, 4, 4, NULL, NULL, NULL, FL_AUTO, FL_AUTO, "int4", 0.42, NULL},
    {"flatquant", 4, 4, 4, NULL, NULL, "gptq", FL_AUTO, FL_AUTO, "int4", 0.35, NULL},
    {"flatquant", 4, 4, 4, NULL, NULL, NULL, FL_OFF, FL_AUTO, "int4", 0.56, NULL},
    {"flatquant", 4, 4, 4, NULL, "official", NULL, FL_AUTO, FL_AUTO, "int4", 0.53, NULL},
    {"flatquant", 4, 4, 4, NULL, "official", NULL, FL_AUTO, FL_OFF, "int4", 0.53, NULL},
    {"flatquant", 4, 4, 4, NULL, NULL, NULL, FL_AUTO, FL_ON, "int4", 0.42, NULL},
    {"flatquant", 4, 4, 4, NULL, NULL, "gptq", FL_AUTO, FL_ON, "int4", 0.35, NULL},
    {"flatquant", 4, 4, 16, "svd", NULL, NULL, FL_AUTO, FL_AUTO, "bf16", 0.51, NULL},
    {"flatquant", 4, 4, 4, "random-kron", NULL, NULL, FL_AUTO, FL_AUTO, "int4", 0.57, NULL},
    {"flatquant", 4, 4, 4, "hadamard", NULL, NULL, FL_AUTO, FL_AUTO, "int4", 0.46, NULL},
    {"flatquant", 4, 4, 4, "none", NULL, NULL, FL_AUTO, FL_AUTO, "int4", 0.82, NULL},
    {"flatquant", 4, 8, 8, NULL, NULL, NULL, FL_AUTO, FL_AUTO, "int8", 0.24, NULL},
    {"flatquant", 3, 3, 3, NULL, NULL, NULL, FL_AUTO, FL_AUTO, "int3", 2.2, NULL},
    {"flatquant", 4, 16, 16, NULL, NULL, NULL, FL_AUTO, FL_AUTO, "bf16", 0.25, NULL},
    {"flatquant", 3, 16, 16, NULL, NULL, "gptq", FL_AUTO, FL_AUTO, "bf16", 0.37, NULL},
    {"quarot", 4, 4, 4, NULL, NULL, "rtn", FL_AUTO, FL_AUTO, "int4", 0.6, NULL},
    {"quarot", 4, 4, 4, NULL, NULL, "gptq", FL_AUTO, FL_AUTO, "int4", 0.4, NULL},
    {"flatquant", 4, 4, 4, NULL, NULL, NULL, FL_AUTO, FL_AUTO, "int4", 0.5, "tensor"},
    {"flatquant", 4, 4, 4, NULL, NULL, "gptq", FL_AUTO, FL_AUTO, "int4", 0.4, "tensor"},
    {"flatquant", 4, 4, 4, NULL, "official", "gptq", FL_AUTO, FL_ON, "int4", 0.5, "tensor"},
    {"flatquant", 4, 4, 4, "none", NULL, NULL, FL_AUTO, FL_AUTO, "int4", 0.82, "tensor"},
    {"flatquant", 4, 8, 16, "svd", NULL, NULL, FL_AUTO, FL_AUTO, "bf16", 0.25, "tensor"},
    {"quarot", 4, 4, 16, NULL, NULL, NULL, FL_AUTO, FL_AUTO, "bf16", 0.55, "tensor"},
};

enum { N_SETTINGS = sizeof settings / sizeof *settings };

static fl_quantize_options options_of_setting(const setting *s, const char *model,
                                              const char *out)
{
    fl_quantize_options o = options_of(model, out, s->method);
    o.w_bits = s->w_bits;
    o.a_bits = s->a_bits;
    o.kv_bits = s->kv_bits;
    o.transform = s->transform;
    o.recipe = s->recipe;
    o.weights = s->weights;
    o.asymmetric = s->asymmetric;
    o.clip_per_linear = s->clip_per_linear;
    o.a_granularity = s->granularity;
    return o;
}

static bool learns(const setting *s)
{
    const char *t = s->transform ? s->transform : "";
    return strcmp(s->method, "flatquant") == 0 && strcmp(t, "random-kron") != 0 &&
           strcmp(t, "hadamard") != 0;
}

/* One object per block whose losses are numbers; falling where there was time to. */
static void check_training(json_t *sites, int n_layers, int n_epochs, bool falling)
{
    json_t *site;
    size_t i;
    int n = 0;
    json_array_foreach(sites, i, site)
    {
        const json_t *t = json_object_get(site, "training");
        const json_t *losses = json_object_get(t, "epoch_loss");
        if (!t) continue;
        n++;
        assert_int_equal(json_array_size(losses), n_epochs);
        const double first = json_real_value(json_array_get(losses, 0)),
                     last = json_real_value(json_array_get(losses, (size_t)n_epochs - 1));
        if (!(last > 0 && first > 0) || (falling && last > 0.95 * first))
            fail_msg("block %d: losses %g, %g", n - 1, first, last);
        assert_int_equal(json_integer_value(json_object_get(t, "restarts")), 0);
        assert_non_null(json_string_value(json_object_get(t, "gemm")));
    }
    assert_int_equal(n, n_epochs ? n_layers : 0);
}

/* Sizes of the factors multiply to the inputs' width; heads where keys are quantised. */
static void check_transforms(const char *dir, bool transformed, bool heads)
{
    json_t *doc = inspect(dir), *site;
    const json_t *t = json_object_get(doc, "transforms");
    const int n_layers = (int)json_integer_value(json_object_get(doc, "n_layers"));
    const json_int_t hidden = json_integer_value(json_object_get(doc, "hidden_size")),
                     ffn = json_integer_value(json_object_get(doc, "ffn_size"));
    size_t i;
    assert_int_equal(json_array_size(json_object_get(t, "sites")),
                     transformed ? 4 * n_layers : 0);
    assert_int_equal(json_array_size(json_object_get(t, "heads")),
                     transformed && heads ? n_layers : 0);
    json_array_foreach(json_object_get(t, "sites"), i, site)
    {
        const char *name = json_string_value(json_object_get(site, "site"));
        const json_int_t n1 = json_integer_value(json_object_get(site, "n1")),
                         n2 = json_integer_value(json_object_get(site, "n2"));
        assert_true(n1 >= 1 && n2 >= 1);
        assert_int_equal(n1 * n2, strcmp(name, "down") == 0 ? ffn : hidden);
    }
    json_decref(doc);
}

static double check_setting(const setting *s, const char *model, const char *out, int n_layers)
{
    const fl_quantize_options o = options_of_setting(s, model, out);
    json_t *report = run(&o);
    check_training(json_object_get(report, "sites"), n_layers, learns(s) ? 2 : 0, false);
    json_decref(report);
    check_transforms(o.out_dir, !s->transform || strcmp(s->transform, "none") != 0,
                     s->kv_bits < 16);
    if (s->a_bits < 16) fl_test_decodes_as_it_evaluates(o.out_dir, s->kv_format);
    return divergence(o.model_dir, o.out_dir);
}

static void every_setting_makes_a_model(void **state)
{
    (void)state;
    for (int i = 0; i < N_SETTINGS; i++) {
        char out[16];
        (void)snprintf(out, sizeof out, "out%d", i);
        const double got = check_setting(&settings[i], NULL, out, 4);
        if (!(got <= settings[i].most_divergence))
            fail_msg("setting %d: divergence %f, at most %f", i, got,
                     settings[i].most_divergence);
    }
}

static void other_models_work_too(void **state)
{
    (void)state;
    fl_opt_model opt = fl_test_opt_model_defaults();
    fl_small_model odd = fl_test_small_model_defaults();
    odd.ffn_size = 97; /* a prime: one dense factor */
    opt.outlier = 4;
    char models[3][512]; /* what fl_test_path returns does not last for so many */
    (void)snprintf(models[0], sizeof *models, "%s", fl_test_opt_model("pre", &opt));
    (void)snprintf(models[1], sizeof *models, "%s", fl_test_small_model("odd", &odd));
    (void)snprintf(models[2], sizeof *models, "%s", post_norm_model());
    for (int m = 0; m < 3; m++)
        for (int i = 0; i < N_SETTINGS; i++) {
            char out[16];
            (void)snprintf(out, sizeof out, "out%d_%d", m, i);
            const double got = check_setting(&settings[i], models[m], out, 2),
                         most = settings[i].kv_bits == 3 ? 0.8 : 0.3;
            if (!(got <= most)) fail_msg("model %d, setting %d: divergence %f", m, i, got);
        }
}

static json_t *site_of(json_t *report, size_t i)
{
    return json_array_get(json_object_get(report, "sites"), i);
}

/* One scale per tensor: every site has its threshold and copies within the cap, and no site has
 * more than without flattening. */
static void one_scale_per_tensor_is_planned(void **state)
{
    (void)state;
    fl_quantize_options o = options_of(NULL, "flattened", "flatquant");
    o.a_granularity = "tensor";
    json_t *flattened = run(&o);
    o.out_dir = fl_test_path("plain");
    o.flatten = FL_OFF;
    json_t *plain = run(&o);
    double ratio = 0;
    for (size_t i = 0; i < 16; i++) {
        const json_t *f = site_of(flattened, i), *p = site_of(plain, i);
        const double copies = json_number_value(json_object_get(f, "flatten_ratio"));
        assert_string_equal(json_string_value(json_object_get(f, "activation")), "static");
        assert_true(json_number_value(json_object_get(f, "scale")) > 0);
        assert_true(copies >= 0 && copies <= 0.3 + 1e-9);
        assert_true(json_number_value(json_object_get(f, "threshold")) <=
                    json_number_value(json_object_get(p, "threshold")));
        assert_true(json_number_value(json_object_get(p, "flatten_ratio")) == 0);
        ratio += copies;
    }
    assert_true(ratio > 0);
    const json_t *summary = json_object_get(flattened, "summary");
    assert_true(json_number_value(json_object_get(summary, "flatten_ratio")) > 0);
    assert_true(json_number_value(json_object_get(summary, "effective_activation_bits")) > 3.9);
    json_decref(flattened);
    json_decref(plain);
}

/* Behind it columns of weights can become digits, as behind FlattenQuant's scales. */
static void weights_are_flattened_behind_it(void **state)
{
    (void)state;
    const char *model = quick_model();
    fl_quantize_options o = options_of(model, "out", "flatquant");
    o.a_granularity = "tensor";
    o.flatten_weights = FL_ON;
    o.weight_beta = 1.05;
    json_t *report = run(&o);
    assert_true(json_number_value(json_object_get(json_object_get(report, "summary"),
                                                  "weight_flatten_ratio")) > 0);
    json_decref(report);
    fl_test_decodes_as_it_evaluates(o.out_dir, "int4");
    assert_true(divergence(model, o.out_dir) < 0.3);
}

/* ---- training ---------------------------------------------------------------------------- */

static void losses_fall(void **state)
{
    (void)state;
    static const char *const transforms[] = {"inverse", "svd", "none"};
    for (int i = 0; i < 3; i++) {
        fl_quantize_options o = options_of(NULL, transforms[i], "flatquant");
        o.transform = transforms[i];
        o.n_samples = 8;
        o.epochs = 6;
        json_t *report = run(&o);
        check_training(json_object_get(report, "sites"), 4, 6, true);
        json_decref(report);
    }
}

/* The transform as it starts, scales and clips too: a model, and not the trained one. */
static void no_epochs_leave_the_start(void **state)
{
    (void)state;
    const char *model = quick_model();
    fl_quantize_options o = options_of(model, "start", "flatquant");
    o.epochs = 0;
    json_t *report = run(&o);
    check_training(json_object_get(report, "sites"), 2, 0, false);
    json_decref(report);
    check_transforms(o.out_dir, true, true);
    fl_test_decodes_as_it_evaluates(o.out_dir, "int4");
    assert_true(isfinite(divergence(model, o.out_dir)));
}

/* OPT's inputs lose their means unless told otherwise; nobody else's do. */
static void means_go_into_biases(void **state)
{
    static const struct {
        const char *out, *method, *recipe;
        bool opt;
        fl_switch centre;
        int expected;
    } runs[] = {{"auto", "flatquant", NULL, true, FL_AUTO, 1},
                {"off", "flatquant", NULL, true, FL_OFF, 0},
                {"official", "flatquant", "official", true, FL_AUTO, 0},
                {"quarot", "quarot", NULL, true, FL_AUTO, 0},
                {"llama", "flatquant", NULL, false, FL_ON, 0}};
    (void)state;
    double kl[FL_COUNT(runs)];
    for (size_t i = 0; i < FL_COUNT(runs); i++) {
        const char *model = runs[i].opt ? opt_model() : quick_model();
        fl_quantize_options o = options_of(model, runs[i].out, runs[i].method);
        o.recipe = runs[i].recipe;
        o.centre = runs[i].centre;
        o.n_samples = 8;
        json_t *report = run(&o);
        const json_t *flatquant =
            json_object_get(json_object_get(report, "options"), "flatquant");
        assert_int_equal(json_is_true(json_object_get(flatquant, "centre")), runs[i].expected);
        kl[i] = divergence(model, o.out_dir);
        json_decref(report);
    }
    assert_true(kl[0] < kl[1]);
}

static void seeds_change_the_start(void **state)
{
    (void)state;
    const char *model = quick_model();
    fl_quantize_options o = options_of(model, "zero", "flatquant");
    const double zero = divergence(model, fl_test_quantize(&o, NULL));
    o.seed = 1;
    o.out_dir = fl_test_path("one");
    assert_true(divergence(model, fl_test_quantize(&o, NULL)) != zero);
}

/* ---- the same bytes ---------------------------------------------------------------------- */

typedef struct run_kind {
    const char *method, *recipe, *weights, *granularity;
} run_kind;

static const run_kind kinds[] = {{"flatquant", NULL, NULL, NULL},
                                 {"flatquant", NULL, "gptq", NULL},
                                 {"flatquant", "official", NULL, NULL},
                                 {"quarot", NULL, "gptq", NULL},
                                 {"flatquant", NULL, NULL, "tensor"}};

enum { N_KINDS = sizeof kinds / sizeof *kinds };

static fl_quantize_options options_of_kind(const run_kind *k, const char *model,
                                           const char *out)
{
    fl_quantize_options o = options_of(model, out, k->method);
    o.recipe = k->recipe;
    o.weights = k->weights;
    o.a_granularity = k->granularity;
    return o;
}

static void threads_do_not_change_a_byte(void **state)
{
    (void)state;
    const char *const models[] = {quick_model(), opt_model(), post_norm_model(),
                                  FL_TEST_TINY_LLAMA};
    for (int m = 0; m < 4; m++)
        for (int k = 0; k < (m == 3 ? 1 : N_KINDS); k++) {
            char one[16], two[16];
            (void)snprintf(one, sizeof one, "one%d%d", m, k);
            (void)snprintf(two, sizeof two, "two%d%d", m, k);
            fl_quantize_options o = options_of_kind(&kinds[k], models[m], one);
            const char *a = fl_test_quantize(&o, NULL);
            o.out_dir = fl_test_path(two);
            o.n_threads = 2;
            fl_test_same_dirs(a, fl_test_quantize(&o, NULL));
        }
}

typedef struct stopper {
    int asked, limit;
} stopper;

static bool stop_after(void *user)
{
    stopper *s = user;
    return s->asked++ >= s->limit;
}

/* Stopped after more and more questions, within training too, until it was asked often enough
 * to finish. */
static void check_stopped(const run_kind *k, const char *model, const char *name)
{
    char whole[32], cut[32];
    (void)snprintf(whole, sizeof whole, "whole-%s", name);
    (void)snprintf(cut, sizeof cut, "cut-%s", name);
    fl_quantize_options o = options_of_kind(k, model, whole);
    const char *want = fl_test_quantize(&o, NULL);
    const size_t before = fl__mem_get().now_bytes;
    int stops = 0;
    o.out_dir = fl_test_path(cut);
    o.should_stop = stop_after;
    for (int limit = 0;; limit += 3) {
        stopper s = {0, limit};
        char *report;
        o.user = &s;
        const fl_status st = fl_quantize_run(&report, &o, &err);
        o.resume = true;
        fl_string_free(&report);
        if (fl__mem_get().now_bytes != before) fail_msg("%s: a stop leaks", name);
        if (st == FL_OK) break;
        if (st != FL_E_INTERRUPTED) fail_msg("%s: %s", name, err.text);
        assert_non_null(strstr(err.text, "--resume"));
        assert_int_not_equal(access(o.out_dir, F_OK), 0);
        assert_true(++stops < 100);
    }
    assert_true(stops > 3);
    fl_test_same_dirs(want, o.out_dir);
}

static void stopped_runs_continue_to_the_same_bytes(void **state)
{
    (void)state;
    char name[16];
    for (int k = 0; k < N_KINDS; k++) {
        (void)snprintf(name, sizeof name, "llama%d", k);
        check_stopped(&kinds[k], quick_model(), name);
        (void)snprintf(name, sizeof name, "opt%d", k);
        check_stopped(&kinds[k], opt_model(), name);
    }
    check_stopped(&kinds[1], post_norm_model(), "post");
}

static void count_blocks(void *user, const fl_quantize_progress *p)
{
    int *blocks = user;
    if (strcmp(p->stage, "quantize") == 0) ++*blocks;
}

static bool two_blocks_done(void *user)
{
    return *(int *)user >= 2;
}

/* A shard that went bad is made anew, and so is what comes after it. */
static void blocks_can_be_done_again(void **state)
{
    (void)state;
    fl_small_model m = fl_test_small_model_defaults();
    m.n_layers = 4;
    const char *model = fl_test_small_model("four", &m);
    fl_quantize_options o = options_of(model, "whole", "flatquant");
    const char *whole = fl_test_quantize(&o, NULL);
    int blocks = 0;
    char *report;
    o.out_dir = fl_test_path("again");
    o.on_progress = count_blocks;
    o.should_stop = two_blocks_done;
    o.user = &blocks;
    assert_int_equal(fl_quantize_run(&report, &o, NULL), FL_E_INTERRUPTED);
    assert_int_equal(blocks, 2);
    o.on_progress = NULL;
    o.should_stop = NULL;
    o.redo_from = 1;
    const char *shard = fl_test_path("again.partial/model-00003-of-00005.safetensors");
    assert_int_equal(truncate(shard, 100), 0);
    fl_test_same_dirs(whole, fl_test_quantize(&o, NULL));
}

/* ---- estimate ---------------------------------------------------------------------------- */

static double number_at(const json_t *o, const char *key, const char *inner)
{
    const json_t *v = json_object_get(o, key);
    if (inner) v = json_object_get(v, inner);
    if (!json_is_number(v)) fail_msg("no number at %s %s", key, inner ? inner : "");
    return json_number_value(v);
}

/* The dry run's peak is what training comes to, within 10 %, and it writes nothing. */
static void the_dry_run_foresees_training(void **state)
{
    (void)state;
    for (int k = 0; k < N_KINDS; k++) {
        char out[16];
        (void)snprintf(out, sizeof out, "out%d", k);
        fl_quantize_options o = options_of_kind(&kinds[k], NULL, out);
        o.dry_run = true;
        json_t *estimate = run(&o);
        assert_int_not_equal(access(o.out_dir, F_OK), 0);
        o.dry_run = false;
        json_t *report = run(&o);
        const double said = number_at(estimate, "peak_bytes", NULL),
                     peak = number_at(report, "memory", "peak_bytes");
        assert_true(number_at(estimate, "seconds", NULL) > 0);
        if (!(said > 0.9 * peak && said < 1.1 * peak))
            fail_msg("kind %d: estimate %.0f, peak %.0f", k, said, peak);
        json_decref(estimate);
        json_decref(report);
    }
}

/* Time grows with what is trained: a lot of epochs are more than the rest of the run. */
static void the_dry_run_counts_epochs(void **state)
{
    (void)state;
    double seconds[2];
    for (int i = 0; i < 2; i++) {
        fl_quantize_options o = options_of(NULL, "out", "flatquant");
        o.dry_run = true;
        o.epochs = i ? 1000 : 0;
        json_t *estimate = run(&o);
        seconds[i] = number_at(estimate, "seconds", NULL);
        json_decref(estimate);
    }
    assert_true(seconds[1] > 4 * seconds[0]);
}

/* ---- memory ------------------------------------------------------------------------------ */

/* Every allocation of a run fails once (later ones in growing steps): the run ends as out of
 * memory, holds nothing, and what it leaves can be gone on from to the same bytes. */
static void check_memory(const run_kind *kind, const char *name)
{
    fl_small_model small = fl_test_small_model_defaults();
    small.n_layers = 1;
    const char *model = fl_test_small_model("small", &small);
    fl_quantize_options o = options_of_kind(kind, model, name);
    o.calib_path = evaluated_text();
    o.seq_len = 16;
    o.epochs = 1;
    const char *whole = fl_test_quantize(&o, NULL);
    const size_t before = fl__mem_get().now_bytes;
    o.out_dir = fl_test_path("out");
    o.resume = true;
    bool done = false;
    for (uint64_t n = 1; !done; n += 1 + n / 25) {
        char *report;
        const uint64_t n_allocs = fl__mem_get().n_allocs;
        fl__mem_fail_after(n);
        const fl_status st = fl_quantize_run(&report, &o, &err);
        fl__mem_fail_after(0);
        fl_string_free(&report);
        if (fl__mem_get().now_bytes != before) fail_msg("allocation %d leaks", (int)n);
        done = !st && fl__mem_get().n_allocs - n_allocs < n;
        if (st == FL_E_NOMEM) continue;
        if (st) fail_msg("allocation %d: %d: %s", (int)n, st, err.text);
        fl_test_same_dirs(whole, o.out_dir);
        assert_int_equal(fl__dir_remove(o.out_dir, NULL), FL_OK);
    }
}

static void running_out_of_memory_is_survived(void **state)
{
    (void)state;
    check_memory(&kinds[1], "whole");
    check_memory(&kinds[4], "static");
}

/* ---- the command line -------------------------------------------------------------------- */

static fl_test_run_result r;

static void inspect_shows_the_transforms(void **state)
{
    (void)state;
    const fl_quantize_options o = options_of(quick_model(), "out", "flatquant");
    (void)fl_test_quantize(&o, NULL);
    fl_test_run_program(&r, "inspect out", NULL);
    assert_int_equal(r.exit_code, 0);
    assert_non_null(strstr(r.out, "quantised   flatquant\n"));
    assert_non_null(strstr(r.out, "transforms  8 inputs: qkv 8 x 8 o 4 x 16 up 8 x 8 "
                                  "down 8 x 12; heads of queries and keys in 2 layers\n"));
}

typedef struct broken {
    int exit_code;
    const char *model, *options, *part; /* part of the error */
} broken;

/* One line "flatiron: <what>: <where>: <why>; <what to do>", nothing else, nothing left. */
static void check_broken(const broken *b)
{
    char args[512];
    (void)snprintf(args, sizeof args, "quantize %s out --calib text.txt --seq-len 64 %s",
                   b->model, b->options);
    fl_test_run_program(&r, args, NULL);
    const char *newline = strchr(r.err, '\n');
    if (r.exit_code != b->exit_code || !newline || newline[1] || r.n_out_bytes != 0 ||
        strncmp(r.err, "flatiron: ", 10) != 0 || !strstr(r.err, b->part) || !strchr(r.err, ';'))
        fail_msg("flatiron %s: exit code %d, stdout of %zu bytes, stderr: %s", args,
                 r.exit_code, r.n_out_bytes, r.err);
    if (access(fl_test_path("out"), F_OK) == 0 ||
        access(fl_test_path("out.partial"), F_OK) == 0)
        fail_msg("flatiron %s left output behind", args);
}

#define FLATQUANT "--method flatquant "
static void broken_options_are_one_line(void **state)
{
    (void)state;
    static const broken rows[] = {
        {2, "m", FLATQUANT "--transform best",
         "use inverse, svd, random-kron, hadamard or none"},
        {2, "m", FLATQUANT "--recipe x", "'x' is not one of the choices; use official"},
        {2, "m", FLATQUANT "--train-dtype half", "use auto, float32 or bf16"},
        {2, "m", FLATQUANT "--granularity tensor --a-bits 3", "3 bits are per token only"},
        {2, "m", FLATQUANT "--smooth", "transforms and scales take its place"},
        {2, "m", FLATQUANT "--flatten-weights", "use --a-granularity tensor"},
        {2, "m", FLATQUANT "--epochs 10001", "'10001' is out of range"},
        {2, "m", FLATQUANT "--epochs -1", "'-1' is out of range"},
        {2, "m", FLATQUANT "--epochs few", "'few' is no whole number"},
        {2, "m", FLATQUANT "--cali-bsz 0", "'0' is out of range"},
        {2, "m", FLATQUANT "--diag-alpha 1.5", "'1.5' is out of range"},
        {2, "m", FLATQUANT "--flat-lr nan", "'nan' is no number"},
        {2, "m", FLATQUANT "--w-bits 16", "float weights with integer activations"},
        {2, "m", FLATQUANT "--kv-bits 5", "'5' is not one of the choices"},
    };
    const fl_small_model m = fl_test_small_model_defaults();
    (void)fl_test_small_model("m", &m);
    (void)evaluated_text();
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) check_broken(&rows[i]);
}

/* What the program's table of options would not let through. */
static void the_library_checks_too(void **state)
{
    (void)state;
    const fl_quantize_options good = options_of(quick_model(), "out", "flatquant");
    fl_quantize_options bad[9];
    for (int i = 0; i < 9; i++) bad[i] = good;
    bad[0].transform = "best";
    bad[1].recipe = "x";
    bad[2].train_dtype = "half";
    bad[3].batch_windows = 0;
    bad[4].epochs = 10001;
    bad[5].lr = NAN;
    bad[6].diag_alpha = 1.5;
    bad[7].smooth = FL_ON;
    bad[8].transform = "";
    for (int i = 0; i < 9; i++) {
        char *report;
        const fl_status st = fl_quantize_run(&report, &bad[i], &err);
        assert_null(report);
        if (st != FL_E_USAGE || !strchr(err.text, ';'))
            fail_msg("case %d: status %d: %s", i, st, st ? err.text : "");
    }
    assert_int_not_equal(access(fl_test_path("out.partial"), F_OK), 0);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(every_setting_makes_a_model),
    cmocka_unit_test(other_models_work_too),
    cmocka_unit_test(one_scale_per_tensor_is_planned),
    cmocka_unit_test(weights_are_flattened_behind_it),
    cmocka_unit_test(losses_fall),
    cmocka_unit_test(no_epochs_leave_the_start),
    cmocka_unit_test(means_go_into_biases),
    cmocka_unit_test(seeds_change_the_start),
    cmocka_unit_test(threads_do_not_change_a_byte),
    cmocka_unit_test(stopped_runs_continue_to_the_same_bytes),
    cmocka_unit_test(blocks_can_be_done_again),
    cmocka_unit_test(the_dry_run_foresees_training),
    cmocka_unit_test(the_dry_run_counts_epochs),
    cmocka_unit_test(running_out_of_memory_is_survived),
    cmocka_unit_test(inspect_shows_the_transforms),
    cmocka_unit_test(broken_options_are_one_line),
    cmocka_unit_test(the_library_checks_too),
};
FL_TEST_MAIN(tests)
