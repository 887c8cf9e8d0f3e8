/* test_quantize.c - quantising through the public API: every method ends in a model that opens
 * and speaks; the bytes depend on neither threads nor interruptions; the dry run tells the
 * truth; nothing is left behind where there is nothing to keep.
 * SPDX-License-Identifier: MIT */
#include "support/fl_test.h"
#include "support/opt_model.h"
#include "support/quantize_once.h"
#include "support/small_model.h"

#include "base/file.h"

#include <jansson.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static bool exists(const char *path)
{
    return access(path, F_OK) == 0;
}

static json_t *parse(char *text)
{
    json_error_t why;
    json_t *v = json_loads(text, 0, &why);
    if (!v) fail_msg("report: %s", why.text);
    fl_string_free(&text);
    return v;
}

static double number_at(const json_t *o, const char *key, const char *inner)
{
    const json_t *v = json_object_get(o, key);
    if (inner) v = json_object_get(v, inner);
    if (!json_is_number(v)) fail_msg("no number at %s %s", key, inner ? inner : "");
    return json_number_value(v);
}

/* The finished directory passes verify, and its greedy continuation's logits are numbers near
 * those of the float model. Returns the cosine between the two. */
static double agreement(const char *float_dir, const char *out_dir)
{
    const char *dirs[2] = {float_dir, out_dir};
    static float logits[2][8192];
    int n_vocab = 0;
    for (int i = 0; i < 2; i++) {
        fl_engine *engine;
        fl_session *session;
        fl_engine_options o;
        fl_engine_info info;
        const float *last;
        char *report;
        int32_t ids[24];
        fl_err err = {""};
        for (int k = 0; k < 24; k++) ids[k] = (k * 37 + 5) % 250;
        if (fl_verify_run(&report, dirs[i], &err)) fail_msg("verify: %s", err.text);
        fl_string_free(&report);
        fl_engine_options_defaults(&o);
        o.n_threads = 1;
        if (fl_engine_open(&engine, dirs[i], &o, &err)) fail_msg("%s", err.text);
        fl_engine_get_info(engine, &info);
        n_vocab = info.vocab_size;
        assert_int_equal(fl_session_new(&session, engine, NULL, &err), FL_OK);
        assert_int_equal(fl_session_feed(session, ids, 24, &last, &err), FL_OK);
        memcpy(logits[i], last, sizeof(float) * (size_t)n_vocab);
        fl_session_free(&session);
        fl_engine_close(&engine);
    }
    double ab = 0, aa = 0, bb = 0;
    for (int v = 0; v < n_vocab; v++) {
        ab += (double)logits[0][v] * logits[1][v];
        aa += (double)logits[0][v] * logits[0][v];
        bb += (double)logits[1][v] * logits[1][v];
    }
    return ab / sqrt(aa * bb);
}

static const char *short_text(void)
{
    const char *path = fl_test_path("short.txt");
    fl_test_write_text(
        path,
        "The harbour was quiet in the morning, and the boats lay still. Nobody spoke of the "
        "storm that had come over the hills in the night, but everyone looked at the roof of "
        "the old school, where the slates were gone and the beams showed. At nine the baker "
        "opened her door, and the smell of bread went down the street to the water.");
    return path;
}

/* Four layers, as the embedded model has, and a hundredth of its work. */
static const char *quick_model(void)
{
    const fl_small_model m = {.n_layers = 4,
                              .hidden_size = 64,
                              .n_heads = 4,
                              .n_kv_heads = 2,
                              .ffn_size = 96,
                              .n_positions = 96,
                              .vocab_size = 264};
    return fl_test_small_model("quick", &m);
}

/* ---- methods ----------------------------------------------------------------------------- */

typedef struct method_case {
    const char *method;
    int w_bits, a_bits;
    const char *a_granularity, *weights, *preset, *w_granularity;
    const char *activation; /* in the report */
    double least_agreement;
} method_case;

static const method_case method_cases[] = {
    {"flattenquant", 0, 0, NULL, NULL, NULL, "channel", "static", 0.97},
    {"flattenquant", 8, 8, NULL, NULL, NULL, "channel", "static", 0.997},
    {"flattenquant", 4, 4, NULL, NULL, NULL, "channel", "static", 0.80},
    {"flattenquant", 4, 8, NULL, NULL, NULL, "channel", "static", 0.96},
    {"flattenquant", 4, 4, "token", NULL, NULL, "channel", "token", 0.85},
    {"flattenquant", 0, 0, NULL, NULL, "paper", "channel", "static", 0.94},
    {"flattenquant", 8, 8, NULL, "rtn", NULL, "tensor", "static", 0.99},
    {"smoothquant", 8, 8, NULL, NULL, NULL, "channel", "token", 0.998},
    {"smoothquant", 8, 8, "tensor", "gptq", NULL, "channel", "static", 0.985},
    {"rtn", 8, 8, NULL, NULL, NULL, "channel", "token", 0.998},
    {"rtn", 8, 8, "tensor", NULL, NULL, "tensor", "static", 0.97},
    {"rtn", 4, 4, NULL, NULL, NULL, "channel", "token", 0.75},
    {"rtn", 4, 8, NULL, NULL, NULL, "channel", "token", 0.95},
    {"rtn", 4, 16, NULL, NULL, NULL, "channel", "float", 0.95},
    {"rtn", 4, 16, NULL, "gptq", NULL, "channel", "float", 0.98},
    {"rtn", 8, 16, NULL, NULL, NULL, "channel", "float", 0.999},
};

enum { N_METHODS = sizeof method_cases / sizeof *method_cases };

static fl_quantize_options options_of(const method_case *m, const char *model, const char *out)
{
    fl_quantize_options o = fl_test_quantize_options(model, out, m->method);
    o.w_bits = m->w_bits;
    o.a_bits = m->a_bits;
    o.a_granularity = m->a_granularity;
    o.w_granularity = m->w_granularity;
    o.weights = m->weights;
    o.preset = m->preset;
    if (m->w_bits) { /* the search takes its time; the mix has it */
        o.alpha = 0.5;
        o.beta = 1.3;
    }
    return o;
}

static double bytes_on_disk(const char *dir)
{
    char command[600];
    double n = 0;
    (void)snprintf(command, sizeof command, "cat %s/* | wc -c", dir);
    FILE *p = popen(command, "r");
    if (!p || fscanf(p, "%lf", &n) != 1) fail_msg("%s", command);
    (void)pclose(p);
    return n;
}

/* Runs o dry and then in earnest; the estimate must be within 10 % of what came. The report. */
static json_t *run_as_foreseen(fl_quantize_options *o)
{
    char partial[512], *text;
    o->dry_run = true;
    (void)fl_test_quantize(o, &text);
    (void)snprintf(partial, sizeof partial, "%s.partial", o->out_dir);
    assert_false(exists(o->out_dir) || exists(partial));
    json_t *estimate = parse(text);
    o->dry_run = false;
    (void)fl_test_quantize(o, &text);
    json_t *report = parse(text);
    const double peak = number_at(report, "memory", "peak_bytes");
    const double said = number_at(estimate, "peak_bytes", NULL) / peak;
    const double disk = number_at(estimate, "disk_bytes", NULL) / bytes_on_disk(o->out_dir);
    assert_true(number_at(estimate, "peak_bytes", NULL) ==
                number_at(report, "memory", "estimated_peak_bytes"));
    assert_true(number_at(estimate, "seconds", NULL) > 0);
    assert_true(number_at(report, "memory", "process_peak_bytes") > peak);
    assert_true(number_at(report, "seconds", NULL) > 0);
    if (!(said > 0.9 && said < 1.1) || !(disk > 0.9 && disk < 1.1))
        fail_msg("%s w%d a%d of %s: estimate over peak memory (%.0f) %f, over disk %f",
                 o->method, o->w_bits, o->a_bits, o->model_dir, peak, said, disk);
    json_decref(estimate);
    return report;
}

static void check_method(const method_case *m, int i)
{
    char out[16];
    (void)snprintf(out, sizeof out, "out%d", i);
    fl_quantize_options o = options_of(m, NULL, out);
    json_t *report = run_as_foreseen(&o), *options = json_object_get(report, "options");
    assert_string_equal(json_string_value(json_object_get(options, "activation")),
                        m->activation);
    assert_int_equal(json_array_size(json_object_get(report, "sites")), 16);
    const double got = agreement(FL_TEST_TINY_LLAMA, o.out_dir);
    if (!(got >= m->least_agreement))
        fail_msg("case %d: agreement %f, wanted %f", i, got, m->least_agreement);
    json_decref(report);
}

static void flattenquant_makes_models(void **state)
{
    (void)state;
    for (int i = 0; i < N_METHODS; i++)
        if (strcmp(method_cases[i].method, "flattenquant") == 0)
            check_method(&method_cases[i], i);
}

static void baselines_make_models(void **state)
{
    (void)state;
    for (int i = 0; i < N_METHODS; i++)
        if (strcmp(method_cases[i].method, "flattenquant") != 0)
            check_method(&method_cases[i], i);
}

static void other_families_work_too(void **state)
{
    (void)state;
    fl_opt_model opt = fl_test_opt_model_defaults();
    const fl_small_model grouped = fl_test_small_model_defaults();
    opt.outlier = 4;
    const char *models[4] = {fl_test_opt_model("pre", &opt)};
    opt.pre_norm = false;
    models[1] = fl_test_opt_model("post", &opt);
    opt.embed_size = 32;
    opt.no_bias = opt.untied = true;
    models[2] = fl_test_opt_model("narrow", &opt);
    models[3] = fl_test_small_model("grouped", &grouped);
    static const method_case cases[] = {
        {"flattenquant", 8, 8, NULL, NULL, NULL, "channel", NULL, 0.99},
        {"flattenquant", 0, 0, NULL, NULL, NULL, "channel", NULL, 0.95},
        {"smoothquant", 8, 8, NULL, NULL, NULL, "channel", NULL, 0.99},
        {"rtn", 8, 16, NULL, NULL, NULL, "channel", NULL, 0.999}};
    for (int m = 0; m < 4; m++)
        for (int k = 0; k < 4; k++) {
            char out[16];
            (void)snprintf(out, sizeof out, "out%d%d", m, k);
            fl_quantize_options o = options_of(&cases[k], models[m], out);
            o.calib_path = short_text(); /* or reading it would be the peak */
            json_decref(run_as_foreseen(&o));
            const double got = agreement(models[m], o.out_dir);
            if (!(got >= cases[k].least_agreement))
                fail_msg("model %d, case %d: agreement %f", m, k, got);
        }
}

/* The cap of flattening holds at every site that counts as INT4, and the share of INT4 is
 * right. */
static void mix_keeps_its_promises(void **state)
{
    (void)state;
    static const double ratios[] = {0, 0.25, 0.4829, 1};
    const char *model = quick_model();
    for (size_t i = 0; i < sizeof ratios / sizeof *ratios; i++) {
        char out[16], *text;
        (void)snprintf(out, sizeof out, "out%zu", i);
        fl_quantize_options o = fl_test_quantize_options(model, out, "flattenquant");
        o.int4_ratio = ratios[i];
        (void)fl_test_quantize(&o, &text);
        json_t *report = parse(text), *site;
        int n4 = 0;
        size_t k;
        json_array_foreach(json_object_get(report, "sites"), k, site)
        {
            const int n = (int)json_array_size(json_object_get(site, "linears"));
            const int w_bits = (int)number_at(site, "w_bits", NULL);
            assert_true(number_at(site, "a_bits", NULL) == w_bits);
            assert_true(number_at(site, "flatten_ratio", NULL) <= 0.3);
            n4 += w_bits == 4 ? n : 0;
        }
        assert_int_equal(n4, (int)ceil(ratios[i] * 28 - 1e-9)); /* of 4 x 7 linears */
        assert_true(number_at(report, "summary", "int4_share_linears") == n4 / 28.0);
        json_decref(report);
    }
}

/* ---- the same bytes ---------------------------------------------------------------------- */

static void threads_do_not_change_a_byte(void **state)
{
    (void)state;
    static const char *const methods[] = {"flattenquant", "flattenquant", "smoothquant"};
    const char *quick = quick_model(), *const models[] = {FL_TEST_TINY_LLAMA, quick, quick};
    for (int m = 0; m < 3; m++) {
        char one[16], two[16];
        (void)snprintf(one, sizeof one, "one%d", m);
        (void)snprintf(two, sizeof two, "two%d", m);
        fl_quantize_options a = fl_test_quantize_options(models[m], one, methods[m]),
                            b = fl_test_quantize_options(models[m], two, methods[m]);
        b.n_threads = 2;
        if (m == 0) a.alpha = b.alpha = 0.5; /* the quick model is searched */
        if (m == 0) a.beta = b.beta = 1.3;
        (void)fl_test_quantize(&a, NULL);
        (void)fl_test_quantize(&b, NULL);
        fl_test_same_dirs(a.out_dir, b.out_dir);
    }
}

static void seeds_change_the_windows(void **state)
{
    (void)state;
    const char *model = quick_model();
    fl_quantize_options a = fl_test_quantize_options(model, "a", "flattenquant"),
                        b = fl_test_quantize_options(model, "b", "flattenquant");
    b.seed = 1;
    a.calib_path = b.calib_path = "self";
    a.n_samples = b.n_samples = 2;
    char *text_a, *text_b;
    (void)fl_test_quantize(&a, &text_a);
    (void)fl_test_quantize(&b, &text_b);
    json_t *x = parse(text_a), *y = parse(text_b);
    assert_false(json_equal(json_object_get(x, "sites"), json_object_get(y, "sites")));
    json_decref(x);
    json_decref(y);
}

/* Until path is there, or the child that should make it is gone. */
static void wait_for(const char *path, const char *out_dir)
{
    const struct timespec pause = {0, 100000};
    while (!exists(path) && !exists(out_dir)) (void)nanosleep(&pause, NULL);
}

/* Runs o in a process of its own and kills it when `name` appears in OUT.partial. */
static void kill_when(const fl_quantize_options *o, const char *name)
{
    int status;
    char path[512];
    (void)snprintf(path, sizeof path, "%s.partial/%s", o->out_dir, name);
    (void)fflush(NULL);
    const pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        char *report;
        (void)fl_quantize_run(&report, o, NULL);
        _exit(0);
    }
    wait_for(path, o->out_dir);
    (void)kill(child, SIGKILL);
    assert_int_equal(waitpid(child, &status, 0), child);
}

static void check_killed(const char *model, const char *method, const char *moment)
{
    fl_quantize_options whole = fl_test_quantize_options(model, "whole", method);
    fl_quantize_options cut = fl_test_quantize_options(model, moment, method);
    whole.alpha = cut.alpha = 0.5; /* no search, which is not what this is about */
    whole.beta = cut.beta = 1.3;
    if (!exists(whole.out_dir)) (void)fl_test_quantize(&whole, NULL);
    kill_when(&cut, moment);
    cut.resume = true;
    if (!exists(cut.out_dir)) (void)fl_test_quantize(&cut, NULL); /* else it was too fast */
    fl_test_same_dirs(whole.out_dir, cut.out_dir);
}

static void killed_runs_continue_to_the_same_bytes(void **state)
{
    (void)state;
    check_killed(NULL, "flattenquant", "block-00001.json");
}

static void any_moment_will_do_for_a_kill(void **state)
{
    (void)state;
    static const char *const moments[] = {
        "state.json",       "plan.json",
        "block-00000.json", "model-00002-of-00005.safetensors",
        "config.json",      "model-00001-of-00005.safetensors.tmp"};
    const char *model = quick_model();
    for (size_t i = 0; i < sizeof moments / sizeof *moments; i++)
        check_killed(model, "smoothquant", moments[i]);
}

typedef struct stopper {
    int asked, limit;
} stopper;

static bool stop_after(void *user)
{
    stopper *s = user;
    return s->asked++ >= s->limit;
}

/* Stopped at every question in turn, until it was asked often enough to finish. */
static void stopped_runs_continue_to_the_same_bytes(void **state)
{
    (void)state;
    const fl_small_model small = fl_test_small_model_defaults();
    const char *model = fl_test_small_model("model", &small);
    fl_quantize_options whole = fl_test_quantize_options(model, "whole", "flattenquant");
    whole.flatten_weights = FL_ON; /* what is replayed has every kind of tensor */
    (void)fl_test_quantize(&whole, NULL);
    fl_quantize_options cut = fl_test_quantize_options(model, "cut", "flattenquant");
    cut.flatten_weights = FL_ON;
    for (int limit = 0;; limit++) {
        stopper s = {0, limit};
        char *report;
        fl_err err = {""};
        cut.should_stop = stop_after;
        cut.user = &s;
        const fl_status st = fl_quantize_run(&report, &cut, &err);
        cut.resume = true;
        fl_string_free(&report);
        if (st == FL_OK) break;
        assert_int_equal(st, FL_E_INTERRUPTED);
        assert_non_null(strstr(err.text, "--resume"));
        assert_false(exists(cut.out_dir));
        assert_true(limit < 100);
    }
    fl_test_same_dirs(whole.out_dir, cut.out_dir);
}

static void stop_at_second_block(void *user, const fl_quantize_progress *p)
{
    int *blocks = user;
    if (strcmp(p->stage, "quantize") == 0) ++*blocks;
}

static bool two_blocks_done(void *user)
{
    return *(int *)user >= 2;
}

/* Leaves OUT.partial with two blocks done. */
static void start_and_stop(fl_quantize_options *o)
{
    int blocks = 0;
    char *report;
    o->on_progress = stop_at_second_block;
    o->should_stop = two_blocks_done;
    o->user = &blocks;
    assert_int_equal(fl_quantize_run(&report, o, NULL), FL_E_INTERRUPTED);
    assert_null(report);
    assert_int_equal(blocks, 2);
    o->on_progress = NULL;
    o->should_stop = NULL;
}

static void blocks_can_be_done_again(void **state)
{
    (void)state;
    const char *model = quick_model();
    const fl_quantize_options whole = fl_test_quantize_options(model, "whole", "flattenquant");
    (void)fl_test_quantize(&whole, NULL);
    fl_quantize_options again = fl_test_quantize_options(model, "again", "flattenquant");
    start_and_stop(&again);
    /* a shard that went bad is made anew, and so is what comes after it */
    assert_int_equal(
        truncate(fl_test_path("again.partial/model-00003-of-00005.safetensors"), 100), 0);
    again.redo_from = 1;
    (void)fl_test_quantize(&again, NULL);
    fl_test_same_dirs(whole.out_dir, again.out_dir);
}

/* ---- refusals ---------------------------------------------------------------------------- */

static void check_refused(const fl_quantize_options *o, fl_status want, const char *part)
{
    char *report;
    fl_err err = {""};
    const fl_status st = fl_quantize_run(&report, o, &err);
    assert_null(report);
    if (st != want || !strstr(err.text, part) || !strchr(err.text, ';'))
        fail_msg("status %d: %s; wanted %d, %s", st, err.text, want, part);
}

static void other_runs_are_not_continued(void **state)
{
    (void)state;
    const fl_small_model small = fl_test_small_model_defaults();
    fl_quantize_options first = fl_test_quantize_options(quick_model(), "out", "flattenquant"),
                        o;
    start_and_stop(&first);
    first.resume = true;
    o = first;
    o.seed = 1;
    check_refused(&o, FL_E_USAGE, "another calibration data");
    o = first;
    o.calib_path = "self";
    o.n_samples = 1;
    check_refused(&o, FL_E_USAGE, "another calibration data");
    o = first;
    o.damping = 0.02;
    check_refused(&o, FL_E_USAGE, "another option set");
    o = first;
    o.model_dir = fl_test_small_model("other", &small);
    check_refused(&o, FL_E_USAGE, "another");
    o = first;
    o.isa = "ref";
    check_refused(&o, FL_E_USAGE, "another instruction set");
    o = first;
    o.resume = false;
    check_refused(&o, FL_E_USAGE, "--resume");
    assert_true(exists(fl_test_path("out.partial/block-00001.json")));
    (void)fl_test_quantize(&first, NULL); /* still fine */
    check_refused(&first, FL_E_USAGE, "exists already");
    o = first;
    o.model_dir = first.out_dir;
    o.out_dir = fl_test_path("twice");
    check_refused(&o, FL_E_UNSUPPORTED, "quantised already");
}

static void damaged_checkpoints_are_refused(void **state)
{
    (void)state;
    fl_quantize_options o = fl_test_quantize_options(quick_model(), "out", "flattenquant");
    start_and_stop(&o);
    o.resume = true;
    fl_test_write_text(fl_test_path("out.partial/block-00001.json"), "{");
    check_refused(&o, FL_E_INPUT, "block-00001.json");
    assert_int_equal(
        truncate(fl_test_path("out.partial/model-00002-of-00005.safetensors"), 100), 0);
    check_refused(&o, FL_E_INPUT, "model-00002-of-00005.safetensors");
    fl_test_write_text(fl_test_path("out.partial/plan.json"), "{\"sites\": []}");
    check_refused(&o, FL_E_INPUT, "plan.json");
    fl_test_write_text(fl_test_path("out.partial/state.json"), "{}");
    check_refused(&o, FL_E_USAGE, "out.partial");
    assert_true(exists(fl_test_path("out.partial/block-00000.json")));
}

static void gates_keep_the_model_and_say_by_how_much(void **state)
{
    (void)state;
    fl_quantize_options o = fl_test_quantize_options(NULL, "bad", "rtn");
    char *text;
    fl_err err = {""};
    o.gate_path = short_text();
    o.seq_len = 32;
    o.max_ppl_increase = 0.001;
    assert_int_equal(fl_quantize_run(&text, &o, &err), FL_E_GATE);
    assert_non_null(strstr(err.text, "quality gate"));
    json_t *report = parse(text);
    assert_true(number_at(report, "gate", "ppl_increase") > 0.001);
    json_decref(report);
    assert_true(exists(o.out_dir));
    o = fl_test_quantize_options(NULL, "good", "rtn");
    o.w_bits = o.a_bits = 8;
    o.seq_len = 32;
    o.gate_path = short_text();
    o.max_ppl_increase = 0.5;
    o.max_kld = 0.5;
    (void)fl_test_quantize(&o, &text);
    report = parse(text);
    assert_true(number_at(report, "gate", "kld_mean") > 0);
    json_decref(report);
    o.out_dir = fl_test_path("self");
    o.calib_path = "self";
    o.gate_path = NULL;
    check_refused(&o, FL_E_USAGE, "--gate-data");
}

/* ---- stopping before the first block ----------------------------------------------------- */

static void nothing_is_left_of_a_stopped_sampling(void **state)
{
    (void)state;
    const fl_small_model small = fl_test_small_model_defaults();
    fl_quantize_options o =
        fl_test_quantize_options(fl_test_small_model("model", &small), "out", "flattenquant");
    stopper s = {0, 5}; /* in the middle of the first window */
    char *report;
    fl_err err = {""};
    o.calib_path = "self";
    o.should_stop = stop_after;
    o.user = &s;
    assert_int_equal(fl_quantize_run(&report, &o, &err), FL_E_INTERRUPTED);
    assert_non_null(strstr(err.text, "calibration text"));
    assert_int_equal(s.asked, 6);
    assert_null(report);
    assert_false(exists(o.out_dir));
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(flattenquant_makes_models),
    cmocka_unit_test(baselines_make_models),
    cmocka_unit_test(other_families_work_too),
    cmocka_unit_test(mix_keeps_its_promises),
    cmocka_unit_test(threads_do_not_change_a_byte),
    cmocka_unit_test(seeds_change_the_windows),
    cmocka_unit_test(killed_runs_continue_to_the_same_bytes),
    cmocka_unit_test(any_moment_will_do_for_a_kill),
    cmocka_unit_test(stopped_runs_continue_to_the_same_bytes),
    cmocka_unit_test(blocks_can_be_done_again),
    cmocka_unit_test(other_runs_are_not_continued),
    cmocka_unit_test(damaged_checkpoints_are_refused),
    cmocka_unit_test(gates_keep_the_model_and_say_by_how_much),
    cmocka_unit_test(nothing_is_left_of_a_stopped_sampling),
};
FL_TEST_MAIN(tests)
