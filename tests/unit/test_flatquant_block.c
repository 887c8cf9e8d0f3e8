/* test_flatquant_block.c - a block's training pass against the block in double
 * (support/flatquant_reference.h): its output, and every gradient against central differences;
 * what folding it gives at run time; training on a small problem.
 * SPDX-License-Identifier: MIT */
#include "quant/flatquant/flatquant.h"

#include "base/isa.h"
#include "base/mem.h"
#include "base/rng.h"
#include "quant/block.h"
#include "support/flatquant_reference.h"
#include "support/fl_test.h"
#include "support/opt_model.h"
#include "support/random_data.h"
#include "support/small_model.h"

#include <math.h>
#include <string.h>

enum { WINDOWS = 2, T = 6, ROWS = WINDOWS * T, MAX_SEEDS = 64 };

typedef struct context {
    fl_exec ex;
    fl_model *model;
    fl_block block;
    fl_flatquant_params p;
    fl_reference *reference;
    float *x, *x_max[FL_N_SITES];
    const double *want; /* [n] the reference's output, borrowed */
    size_t n;           /* floats of x, y */
} context;

/* ---- models ------------------------------------------------------------------------------ */

/* Factor pairs 4 x 6 and 5 x 6; three query heads to a KV head. */
static const char *llama(void)
{
    fl_small_model m = fl_test_small_model_defaults();
    m.n_layers = 1;
    m.hidden_size = 24;
    m.n_heads = 6;
    m.n_kv_heads = 2;
    m.ffn_size = 30;
    return fl_test_small_model("llama", &m);
}

/* Heads wider than hidden / heads, and a width that is prime: 1 x 29. */
static const char *wide_llama(void)
{
    fl_small_model m = fl_test_small_model_defaults();
    m.n_layers = 1;
    m.hidden_size = 21;
    m.n_heads = 4;
    m.n_kv_heads = 2;
    m.head_dim = 8;
    m.ffn_size = 29;
    return fl_test_small_model("wide", &m);
}

static const char *opt(void)
{
    fl_opt_model m = fl_test_opt_model_defaults();
    m.n_layers = 1;
    m.hidden_size = m.embed_size = 24;
    m.n_heads = 3;
    m.ffn_size = 30;
    return fl_test_opt_model("opt", &m);
}

static fl_flatquant_options options(int w_bits, int a_bits, int kv_bits)
{
    return (fl_flatquant_options){.transform = FL_TRANSFORM_INVERSE,
                                  .scale = true,
                                  .clip = true,
                                  .w_bits = w_bits,
                                  .a_bits = a_bits,
                                  .k_bits = kv_bits,
                                  .v_bits = kv_bits,
                                  .epochs = 12,
                                  .batch_windows = 2,
                                  .lr = 5e-3,
                                  .min_lr = 5e-6,
                                  .clip_lr = 10,
                                  .weight_decay = 0.01,
                                  .clip_start = 4,
                                  .diag_alpha = 0.3,
                                  .seed = 1};
}

/* ---- a block on the run-time path -------------------------------------------------------- */

static bool note_maxima(void *user, int site, const float *x, int n_rows)
{
    context *c = user;
    const int n = c->block.site[site].n_in;
    for (int i = 0; i < n_rows * n; i++)
        c->x_max[site][i % n] = fmaxf(c->x_max[site][i % n], fabsf(x[i]));
    return true;
}

static fl_kv_format kv_format(int bits)
{
    fl_kv_format format = FL_KV_F32;
    if (bits < 16) assert_true(fl__kv_format_of_bits(&format, bits));
    return format;
}

/* y [n] = block(x); free with fl__free. */
static float *run_block(context *c, const fl_block *block, int k_bits, int v_bits,
                        fl_site_hook *hook)
{
    const fl_span spans[WINDOWS] = {{.seq = 0, .n_rows = T}, {.seq = 1, .n_rows = T}};
    fl_kv_options o = fl__model_kv_options(c->model, WINDOWS, T);
    fl_kv_cache *kv;
    fl_workspace *ws;
    float *y = fl__alloc(c->n, sizeof *y);
    o.n_layers = 1;
    o.k_format = kv_format(k_bits);
    o.v_format = kv_format(v_bits);
    c->model->stream_transform_bytes = 1 << 20; /* more than enough */
    assert_int_equal(fl__kv_new(&kv, &o, NULL), FL_OK);
    assert_int_equal(fl__workspace_new(&ws, c->model, &c->ex, ROWS, NULL), FL_OK);
    for (int i = 0; i < WINDOWS; i++) fl__kv_resize(kv, i, T);
    memcpy(ws->buf[FL_BUF_X], c->x, c->n * sizeof *y);
    fl__block_run(c->model, block, 0, FL_HALF_BOTH, &c->ex, ws, kv, spans, WINDOWS, hook, c);
    memcpy(y, ws->buf[FL_BUF_X], c->n * sizeof *y);
    fl__kv_free(&kv);
    fl__workspace_free(&ws);
    return y;
}

static float *run_plain(context *c, fl_site_hook *hook)
{
    return run_block(c, &c->block, 16, 16, hook);
}

/* ---- context ----------------------------------------------------------------------------- */

static void must(fl_status st, const fl_err *err)
{
    if (st) fail_msg("%s", err->text);
}

static void disturb(float *x, size_t n, double deviation, fl_rng *rng)
{
    for (size_t i = 0; i < n; i++) x[i] += (float)(deviation * fl__rng_normal(rng));
}

static void disturb_clip(const fl_flatquant_clip *c, fl_rng *rng)
{
    for (int i = 0; i < 2 * c->n; i++) c->raw[i] = (float)(0.5 + 2.5 * fl__rng_unit(rng));
}

/* Away from the start, where factors are orthogonal and clips alike; scales of both signs. */
static void disturb_all(context *c, fl_rng rng)
{
    fl_flatquant_params *p = &c->p;
    for (int i = 0; i < FL_N_SITES; i++) {
        fl_flatquant_site *s = &p->site[i];
        disturb(s->left.param, s->left.n_params, 0.1, &rng);
        disturb(s->right.param, s->right.n_params, 0.1, &rng);
        disturb_clip(&s->clip, &rng);
        for (int k = 0; s->c && p->o.scale && k < s->n_in; k++) {
            s->raw_c[k] *= (float)(1 + 0.5 * fl__rng_unit(&rng));
            if (!s->log_scale && k % 7 == 2) s->raw_c[k] = -s->raw_c[k];
        }
    }
    disturb(p->head.param, p->head.n_params, 0.1, &rng);
    disturb_clip(&p->k_clip, &rng);
    disturb_clip(&p->v_clip, &rng);
    for (int i = 0; i < FL_N_LINEARS; i++) {
        const size_t n = (size_t)p->linear[i].N * (size_t)p->linear[i].K;
        disturb_clip(&p->linear[i].clip, &rng);
        if (p->linear[i].dw) disturb(p->linear[i].w, n, 0.02, &rng);
    }
}

static void open_model(context *c, const char *dir, const fl_flatquant_options *o)
{
    fl_err err = {""};
    *c = (context){.ex = {fl__isa_detect(), 1}};
    must(fl__model_open(&c->model, dir, &c->ex, true, &err), &err);
    c->model->stream_k_format = kv_format(o->k_bits);
    must(fl__block_fold(&c->block, c->model, 0, NULL, &err), &err);
    c->n = (size_t)(ROWS * c->model->cfg.hidden_size);
    c->x = fl_test_normal(c->n, 1, "x");
    for (size_t i = 3; i < c->n; i += (size_t)c->model->cfg.hidden_size) c->x[i] *= 3;
    for (int i = 0; i < FL_N_SITES; i++)
        c->x_max[i] = fl__calloc((size_t)c->block.site[i].n_in, sizeof(float));
    float *y = run_plain(c, note_maxima);
    fl__free(&y);
}

static void start(context *c, const fl_flatquant_options *o)
{
    fl_err err = {""};
    must(fl__flatquant_params_init(&c->p, c->model, &c->block, 0, c->x_max, o, &c->ex, &err),
         &err);
}

/* Parameters off their start, and the reference's record; the first seed for which no rounding
 * is so near a tie that float32 might go the other way. */
static void open_context(context *c, const char *dir, const fl_flatquant_options *o,
                         bool online_bf16)
{
    fl_err err = {""};
    open_model(c, dir, o);
    fl_flatquant_options seeded = *o;
    for (int seed = 1; seed < MAX_SEEDS; seed++) {
        seeded.seed = (uint64_t)seed;
        start(c, &seeded);
        disturb_all(c, fl__rng_init((uint64_t)seed, 0, "disturb"));
        must(fl__flatquant_params_update(&c->p, &c->ex, &err), &err);
        c->reference = fl_test_reference_new(c->model, &c->block, &c->p, c->x, WINDOWS, T,
                                             online_bf16);
        c->want = fl_test_reference_record(c->reference);
        if (fl_test_reference_nearest_tie(c->reference) > 1) return;
        fl_test_reference_free(&c->reference);
        fl__flatquant_params_fini(&c->p);
    }
    fail_msg("no seed without a near tie");
}

static void close_context(context *c)
{
    fl_test_reference_free(&c->reference);
    fl__flatquant_params_fini(&c->p);
    for (int i = 0; i < FL_N_SITES; i++) fl__free(&c->x_max[i]);
    fl__free(&c->x);
    fl__block_fini(&c->block);
    fl__model_close(&c->model);
}

/* ---- comparing --------------------------------------------------------------------------- */

/* Largest |a - b| over the largest |b|. */
static double distance(const float *a, const double *b, size_t n)
{
    double most = 0, size = 0;
    for (size_t i = 0; i < n; i++) {
        if (!isfinite(a[i])) return INFINITY;
        most = fmax(most, fabs((double)a[i] - b[i]));
        size = fmax(size, fabs(b[i]));
    }
    return most / size;
}

static double rms(const float *a, const float *b, size_t n)
{
    double sum = 0;
    for (size_t i = 0; i < n; i++) sum += pow((double)a[i] - (double)b[i], 2);
    return sqrt(sum / (double)n);
}

static double *widened(const float *x, size_t n)
{
    double *y = fl__alloc(n, sizeof *y);
    for (size_t i = 0; i < n; i++) y[i] = (double)x[i];
    return y;
}

static double loss(context *c, const float *direction)
{
    const double *y = fl_test_reference_replay(c->reference);
    double sum = 0;
    for (size_t i = 0; i < c->n; i++) sum += y[i] * (double)direction[i];
    return sum;
}

/* Entries of a group that are checked: all of small ones, every so many of weights. */
static size_t stride(size_t n)
{
    return n > 64 ? n / 25 | 1 : 1;
}

/* least: what a gradient of the group is measured against where all of them are smaller. */
static void check_group(context *c, const fl_reference_group *g, const float *direction,
                        double least)
{
    const double step = 1e-5;
    double most = 0, size = least;
    for (size_t i = 0; i < g->n; i += stride(g->n)) {
        const double at = g->value[i];
        g->value[i] = at + step;
        const double up = loss(c, direction);
        g->value[i] = at - step;
        const double slope = (up - loss(c, direction)) / (2 * step);
        g->value[i] = at;
        most = fmax(most, isfinite(g->grad[i]) ? fabs(slope - (double)g->grad[i]) : INFINITY);
        size = fmax(size, fabs(slope));
    }
    if (!(most <= 1e-4 * size)) fail_msg("%s: off by %g of %g", g->name, most, size);
}

/* ---- forward and backward ---------------------------------------------------------------- */

static fl_flatquant_pass *new_pass(context *c)
{
    fl_flatquant_pass *pass;
    fl_err err = {""};
    must(fl__flatquant_pass_new(&pass, c->model, &c->block, &c->p, &c->ex, WINDOWS, T, &err),
         &err);
    must(fl__flatquant_pass_weights(pass, &err), &err);
    return pass;
}

/* What a gradient is measured against at least. Without any rounding the transforms cancel, and
 * so do their gradients: what is left of them is nothing beside the weights'. */
static double least_gradient(const fl_reference_group *groups, int n, const context *c)
{
    const bool cancels = c->p.o.w_bits == 16 && c->p.o.a_bits == 16;
    double most = 0;
    for (int i = 0; i < n; i++)
        for (size_t k = 0; k < groups[i].n; k++)
            most = fmax(most, fabs((double)groups[i].grad[k]));
    return cancels ? most : 1e-2 * most;
}

/* Windows are independent of each other: fewer of them give the same. */
static void check_one_window(context *c, fl_flatquant_pass *pass)
{
    const float *y;
    fl_err err = {""};
    must(fl__flatquant_pass_forward(&y, pass, c->x + c->n / 2, WINDOWS - 1, &err), &err);
    assert_true(distance(y, c->want + c->n / 2, c->n / 2) < 1e-5);
}

static void check_pass(const char *dir, const fl_flatquant_options *o)
{
    context c;
    open_context(&c, dir, o, false);
    fl_reference_group groups[FL_REFERENCE_MAX_GROUPS];
    fl_flatquant_pass *pass = new_pass(&c);
    float *direction = fl_test_normal(c.n, 1, "direction"), *dy = fl__alloc(c.n, sizeof *dy);
    const float *y;
    fl_err err = {""};
    for (int again = 0; again < 2; again++) { /* a second time leaves the same */
        must(fl__flatquant_pass_forward(&y, pass, c.x, WINDOWS, &err), &err);
        assert_true(distance(y, c.want, c.n) < 1e-5);
        memcpy(dy, direction, c.n * sizeof *dy);
        must(fl__flatquant_pass_backward(pass, dy, WINDOWS, &err), &err);
    }
    const int n = fl_test_reference_groups(c.reference, groups);
    const double least = least_gradient(groups, n, &c);
    check_one_window(&c, pass);
    for (int i = 0; i < n; i++) check_group(&c, &groups[i], direction, least);
    fl__free(&direction);
    fl__free(&dy);
    fl__flatquant_pass_free(&pass);
    close_context(&c);
}

static void check_pass_of_all(const fl_flatquant_options *o)
{
    check_pass(llama(), o);
    check_pass(wide_llama(), o);
    check_pass(opt(), o);
}

static void gradients_of_w4a4kv4(void **state)
{
    fl_flatquant_options o = options(4, 4, 4);
    (void)state;
    o.weight_lr = 0.1;
    check_pass_of_all(&o);
}

static void gradients_of_asymmetric_activations(void **state)
{
    fl_flatquant_options o = options(4, 4, 4);
    (void)state;
    o.asymmetric = true;
    check_pass_of_all(&o);
    o.a_bits = 8;
    o.k_bits = 3;
    o.v_bits = 2;
    check_pass(llama(), &o);
}

static void gradients_of_weights_alone(void **state)
{
    fl_flatquant_options o = options(4, 16, 16);
    (void)state;
    o.weight_lr = 0.1;
    check_pass_of_all(&o);
}

static void gradients_without_rounding(void **state)
{
    fl_flatquant_options o = options(16, 16, 16);
    (void)state;
    o.weight_lr = 0.1;
    check_pass_of_all(&o);
}

static void gradients_of_svd_factors(void **state)
{
    fl_flatquant_options o = options(4, 4, 4);
    (void)state;
    o.transform = FL_TRANSFORM_SVD;
    check_pass_of_all(&o);
}

static void gradients_without_transforms(void **state)
{
    fl_flatquant_options o = options(4, 4, 4);
    (void)state;
    o.transform = FL_TRANSFORM_NONE;
    o.weight_lr = 0.1;
    check_pass_of_all(&o);
    o.scale = false;
    check_pass(opt(), &o);
}

static void gradients_of_fixed_transforms(void **state)
{
    fl_flatquant_options o = options(4, 4, 4);
    (void)state;
    o.transform = FL_TRANSFORM_HADAMARD;
    check_pass(wide_llama(), &o);
    o.transform = FL_TRANSFORM_RANDOM;
    o.scale = o.clip = false;
    o.fold_gain = true;
    o.weight_lr = 0.1;
    check_pass(llama(), &o);
    check_pass(opt(), &o);
}

static void keys_and_values_alone(void **state)
{
    fl_flatquant_options o = options(16, 16, 4);
    (void)state;
    check_pass_of_all(&o);
    o.k_bits = 16;
    check_pass(llama(), &o);
}

static void check_cancelling(const char *dir, fl_transform_kind kind)
{
    fl_flatquant_options o = options(16, 16, 16);
    fl_err err = {""};
    const float *y;
    o.transform = kind;
    context c;
    open_context(&c, dir, &o, false);
    fl_flatquant_pass *pass = new_pass(&c);
    float *plain = run_plain(&c, NULL);
    double *want = widened(plain, c.n);
    must(fl__flatquant_pass_forward(&y, pass, c.x, WINDOWS, &err), &err);
    assert_true(distance(y, want, c.n) < 1e-5);
    fl__free(&want);
    fl__free(&plain);
    fl__flatquant_pass_free(&pass);
    close_context(&c);
}

static void transforms_cancel(void **state)
{
    (void)state;
    for (int kind = FL_TRANSFORM_NONE; kind <= FL_TRANSFORM_HADAMARD; kind++) {
        check_cancelling(llama(), (fl_transform_kind)kind);
        check_cancelling(wide_llama(), (fl_transform_kind)kind);
        check_cancelling(opt(), (fl_transform_kind)kind);
    }
}

/* ---- folding ----------------------------------------------------------------------------- */

static void fill_plan(fl_site_plan plan[FL_N_SITES], const context *c)
{
    const fl_flatquant_options *o = &c->p.o;
    for (int i = 0; i < FL_N_SITES; i++)
        plan[i] = (fl_site_plan){.act = o->a_bits < 16 ? FL_ACT_TOKEN : FL_ACT_FLOAT,
                                 .w_bits = o->w_bits,
                                 .a_bits = o->a_bits,
                                 .asymmetric = o->asymmetric,
                                 .n_in = c->block.site[i].n_in};
}

/* The folded block, its weights rounded, on the run-time path. */
static float *run_folded(context *c)
{
    const fl_flatquant_options *o = &c->p.o;
    const fl_block_options nearest = {0};
    fl_site_plan plan[FL_N_SITES];
    fl_block folded;
    fl_block_job job;
    fl_err err = {""};
    fill_plan(plan, c);
    must(fl__flatquant_fold(&folded, &c->p, c->model, 0, true, &c->ex, &err), &err);
    must(fl__block_job_init(&job, c->model, &c->ex, 0, plan, &nearest, &folded, &err), &err);
    for (int i = 0; i < FL_N_SITES; i++)
        must(fl__block_job_site(&job, NULL, i, &err), &err);
    float *y = run_block(c, &job.quant, o->k_bits, o->v_bits, NULL);
    fl__block_job_fini(&job);
    return y;
}

/* At run time transforms are in bfloat16. The reference does the same roundings, so that the
 * two agree as float32 allows. The training pass does not: what bfloat16 adds, seen behind the
 * quantisers, must stay below half of what quantising itself does (or, without any, below what
 * four sites with two roundings of 2^-9 each come to). */
static void check_fold(const char *dir, const fl_flatquant_options *o)
{
    const bool is_float = o->w_bits == 16 && o->a_bits == 16 && o->k_bits == 16;
    context c;
    open_context(&c, dir, o, true);
    fl_flatquant_pass *pass = new_pass(&c);
    const float *trained;
    fl_err err = {""};
    must(fl__flatquant_pass_forward(&trained, pass, c.x, WINDOWS, &err), &err);
    float *y = run_folded(&c), *plain = run_plain(&c, NULL);
    const double exact = distance(y, c.want, c.n), narrow = rms(y, trained, c.n);
    const double quantised = rms(trained, plain, c.n), change = rms(plain, c.x, c.n);
    assert_true(exact < 1e-4);
    assert_true(narrow <= (is_float ? 8 * 0x1p-9 * change : 0.5 * quantised));
    fl__free(&y);
    fl__free(&plain);
    fl__flatquant_pass_free(&pass);
    close_context(&c);
}

static void check_fold_of_all(const fl_flatquant_options *o)
{
    check_fold(llama(), o);
    check_fold(wide_llama(), o);
    check_fold(opt(), o);
}

static void folded_in_float(void **state)
{
    fl_flatquant_options o = options(16, 16, 16);
    (void)state;
    check_fold_of_all(&o);
}

static void folded_in_integers(void **state)
{
    fl_flatquant_options o = options(4, 4, 4);
    (void)state;
    check_fold_of_all(&o);
    o.weight_lr = 0.1; /* the learned weights are folded */
    check_fold(llama(), &o);
    o.asymmetric = true;
    check_fold_of_all(&o);
    o.asymmetric = false;
    o.w_bits = o.a_bits = 8;
    check_fold(llama(), &o);
    o.transform = FL_TRANSFORM_SVD;
    check_fold_of_all(&o);
    o.transform = FL_TRANSFORM_NONE;
    check_fold_of_all(&o);
    o.transform = FL_TRANSFORM_HADAMARD;
    o.scale = false;
    o.fold_gain = true;
    check_fold_of_all(&o);
}

static void folded_weights_alone(void **state)
{
    fl_flatquant_options o = options(4, 16, 16);
    (void)state;
    check_fold_of_all(&o);
    o.k_bits = o.v_bits = 4;
    o.w_bits = 8;
    check_fold_of_all(&o);
}

/* ---- training ---------------------------------------------------------------------------- */

static bool stop_after(void *user)
{
    int *left = user;
    return (*left)-- == 0;
}

/* Parameters after training on the block's own output with this many threads. */
static fl_status train(fl_flatquant_result *result, context *c, const float *y, int n_threads,
                       int *stop, fl_err *err)
{
    const fl_exec ex = {c->ex.isa, n_threads};
    const fl_flatquant_data data = {.x = c->x, .y = y, .n_windows = WINDOWS, .seq_len = T,
                                    .should_stop = stop ? stop_after : NULL, .user = stop};
    return fl__flatquant_train(result, &c->p, c->model, &c->block, &data, &ex, err);
}

static void check_training(const char *dir, const fl_flatquant_options *o)
{
    fl_adamw_group groups[2][FL_FLATQUANT_MAX_GROUPS];
    context c;
    fl_err err = {""};
    open_model(&c, dir, o);
    float *y = run_plain(&c, NULL);
    fl_flatquant_params first;
    fl_flatquant_result result[2];
    start(&c, o);
    must(train(&result[0], &c, y, 1, NULL, &err), &err);
    first = c.p;
    start(&c, o);
    must(train(&result[1], &c, y, 2, NULL, &err), &err);

    const int n = fl__flatquant_params_groups(&first, groups[0]);
    assert_int_equal(fl__flatquant_params_groups(&c.p, groups[1]), n);
    assert_true(n > 10);
    for (int i = 0; i < n; i++)
        assert_memory_equal(groups[0][i].p, groups[1][i].p, groups[0][i].n * sizeof(float));
    assert_int_equal(result[0].n_epochs, o->epochs);
    assert_int_equal(result[0].n_restarts, 0);
    assert_true(result[0].best_loss < 0.8 * result[0].first_loss);
    assert_memory_equal(result[0].epoch_loss, result[1].epoch_loss,
                        (size_t)o->epochs * sizeof(double));
    for (int i = 0; i < 2; i++) fl__flatquant_result_fini(&result[i]);
    fl__flatquant_params_fini(&first);
    fl__free(&y);
    close_context(&c);
}

static void training_lowers_the_loss(void **state)
{
    fl_flatquant_options o = options(4, 4, 4);
    (void)state;
    o.batch_windows = 1;
    check_training(llama(), &o);
    o.transform = FL_TRANSFORM_SVD;
    o.asymmetric = o.bf16 = true;
    check_training(wide_llama(), &o);
    o.transform = FL_TRANSFORM_NONE;
    o.weight_lr = 0.1;
    o.batch_windows = 5;
    check_training(opt(), &o);
}

static void training_stops_when_told(void **state)
{
    const fl_flatquant_options o = options(4, 4, 4);
    fl_flatquant_result result;
    fl_err err = {""};
    context c;
    (void)state;
    open_model(&c, llama(), &o);
    float *y = run_plain(&c, NULL);
    start(&c, &o);
    const size_t before = fl__mem_get().now_bytes;
    for (int left = 0; left < 3; left++) {
        int n = left;
        assert_int_equal(train(&result, &c, y, 1, &n, &err), FL_E_INTERRUPTED);
        assert_int_equal(n, -1);
        assert_int_equal(fl__mem_get().now_bytes, before);
    }
    fl__free(&y);
    close_context(&c);
}

/* Trains in vain; the parameters end as they started. */
static void check_giving_up(const fl_flatquant_options *o, float wanted)
{
    fl_flatquant_result result;
    fl_err err = {""};
    context c;
    open_model(&c, llama(), o);
    float *y = run_plain(&c, NULL);
    start(&c, o);
    const fl_factor *f = &c.p.site[FL_SITE_UP].right;
    const size_t n = f->n_params;
    float *first = fl__alloc(n, sizeof *first);
    memcpy(first, f->param, n * sizeof *first);
    y[7] = wanted;
    assert_int_equal(train(&result, &c, y, 1, NULL, &err), FL_E_FAIL);
    assert_memory_equal(f->param, first, n * sizeof *first);
    assert_memory_equal(f->p, first, n * sizeof *first);
    fl__free(&first);
    fl__free(&y);
    close_context(&c);
}

static void training_gives_up(void **state)
{
    fl_flatquant_options o = options(4, 4, 4);
    (void)state;
    o.batch_windows = 1;
    check_giving_up(&o, NAN);
    o.lr = 1e38; /* factors leave the range of float32 with the first step */
    check_giving_up(&o, 0);
}

/* Of rates that double, the first one at which training breaks down: half of it works. */
static void training_starts_again(void **state)
{
    fl_flatquant_options o = options(4, 4, 4);
    fl_flatquant_result result;
    fl_err err = {""};
    context c;
    (void)state;
    o.clip = o.scale = false;
    o.epochs = 1;
    o.batch_windows = 1;
    open_model(&c, llama(), &o);
    float *y = run_plain(&c, NULL);
    int n_restarts = 0;
    for (o.lr = 1e17; n_restarts == 0 && o.lr < 1e38; o.lr *= 2) {
        start(&c, &o);
        must(train(&result, &c, y, 1, NULL, &err), &err);
        n_restarts = result.n_restarts;
        fl__flatquant_result_fini(&result);
        fl__flatquant_params_fini(&c.p);
    }
    assert_int_equal(n_restarts, 1);
    fl__free(&y);
    close_context(&c);
}

static void scales_start_as_documented(void **state)
{
    const fl_flatquant_options o = options(4, 4, 4);
    context c;
    (void)state;
    open_model(&c, opt(), &o);
    c.x_max[FL_SITE_DOWN][4] = 0; /* a channel that ReLU never lets through */
    start(&c, &o);
    for (int s = 0; s < FL_N_SITES; s++) {
        const fl_flatquant_site *site = &c.p.site[s];
        assert_int_equal(site->c != NULL, s != FL_SITE_O);
        for (int k = 0; site->c && k < site->n_in; k++) {
            double w_max = 0;
            for (int i = 0; i < c.block.site[s].n_linears; i++) {
                const fl_linear *l = c.block.site[s].linears[i];
                for (int n = 0; n < l->n_out; n++)
                    w_max = fmax(w_max, fabs((double)l->own_w[n * l->n_in + k]));
            }
            const bool idle = s == FL_SITE_DOWN && k == 4;
            const double want = pow(w_max, 0.7) / pow((double)c.x_max[s][k], 0.3);
            assert_true(fabs((double)site->c[k] - (idle ? 1 : want)) < 1e-5 * want);
        }
    }
    close_context(&c);
}

/* ---- memory ------------------------------------------------------------------------------ */

/* All of it once; *stage: how far it came. */
static fl_status once(context *c, const fl_flatquant_options *o, const float *y)
{
    fl_flatquant_result result;
    fl_block folded;
    fl_err err = {""};
    fl_status st = fl__flatquant_params_init(&c->p, c->model, &c->block, 0, c->x_max, o, &c->ex,
                                             &err);
    if (st) return st;
    if (!(st = train(&result, c, y, 1, NULL, &err))) {
        fl__flatquant_result_fini(&result);
        if (!(st = fl__flatquant_fold(&folded, &c->p, c->model, 0, true, &c->ex, &err)))
            fl__block_fini(&folded);
    }
    fl__flatquant_params_fini(&c->p);
    return st;
}

static void running_out_of_memory_leaves_nothing(void **state)
{
    fl_flatquant_options o = options(4, 4, 4);
    context c;
    (void)state;
    o.epochs = 1;
    o.weight_lr = 0.1;
    open_model(&c, opt(), &o);
    float *y = run_plain(&c, NULL);
    fl_status st = FL_E_NOMEM;
    assert_int_equal(once(&c, &o, y), FL_OK); /* libraries have what they keep */
    const size_t before = fl__mem_get().now_bytes;
    for (unsigned n = 1; st; n++) {
        fl__mem_fail_after(n);
        st = once(&c, &o, y);
        if (st) assert_int_equal(st, FL_E_NOMEM);
        assert_int_equal(fl__mem_get().now_bytes, before);
    }
    fl__mem_fail_after(0);
    fl__free(&y);
    close_context(&c);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(gradients_of_w4a4kv4),
    cmocka_unit_test(gradients_of_asymmetric_activations),
    cmocka_unit_test(gradients_of_weights_alone),
    cmocka_unit_test(gradients_without_rounding),
    cmocka_unit_test(gradients_of_svd_factors),
    cmocka_unit_test(gradients_without_transforms),
    cmocka_unit_test(gradients_of_fixed_transforms),
    cmocka_unit_test(keys_and_values_alone),
    cmocka_unit_test(transforms_cancel),
    cmocka_unit_test(folded_in_float),
    cmocka_unit_test(folded_in_integers),
    cmocka_unit_test(folded_weights_alone),
    cmocka_unit_test(training_lowers_the_loss),
    cmocka_unit_test(training_stops_when_told),
    cmocka_unit_test(training_gives_up),
    cmocka_unit_test(training_starts_again),
    cmocka_unit_test(scales_start_as_documented),
    cmocka_unit_test(running_out_of_memory_leaves_nothing),
};
FL_TEST_MAIN(tests)
