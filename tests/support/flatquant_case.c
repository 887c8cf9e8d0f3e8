/* flatquant_case.c - see flatquant_case.h. SPDX-License-Identifier: MIT */
#include "support/flatquant_case.h"

#include "base/isa.h"
#include "base/mem.h"
#include "base/rng.h"
#include "quant/block.h"
#include "support/fl_test.h"
#include "support/opt_model.h"
#include "support/random_data.h"
#include "support/small_model.h"

#include <math.h>
#include <string.h>

enum { MAX_SEEDS = 64 };

/* ---- models ------------------------------------------------------------------------------ */

/* Factor pairs 4 x 6 and 5 x 6; three query heads to a KV head. */
const char *fl_test_case_llama(void)
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
const char *fl_test_case_wide_llama(void)
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

const char *fl_test_case_opt(void)
{
    fl_opt_model m = fl_test_opt_model_defaults();
    m.n_layers = 1;
    m.hidden_size = m.embed_size = 24;
    m.n_heads = 3;
    m.ffn_size = 30;
    return fl_test_opt_model("opt", &m);
}

const char *fl_test_case_post_norm(void)
{
    fl_opt_model m = fl_test_opt_model_defaults();
    m.n_layers = 1;
    m.hidden_size = 24;
    m.embed_size = 10;
    m.n_heads = 3;
    m.ffn_size = 30;
    m.pre_norm = false;
    m.outlier = 3;
    return fl_test_opt_model("post", &m);
}

fl_flatquant_options fl_test_case_options(int w_bits, int a_bits, int kv_bits)
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
    fl_flatquant_case *c = user;
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

static float *run(fl_flatquant_case *c, const fl_block *block, int k_bits, int v_bits,
                  fl_site_hook *hook, void *user)
{
    const fl_span spans[FL_CASE_WINDOWS] = {{.seq = 0, .n_rows = FL_CASE_TOKENS},
                                            {.seq = 1, .n_rows = FL_CASE_TOKENS}};
    fl_kv_options o = fl__model_kv_options(c->model, FL_CASE_WINDOWS, FL_CASE_TOKENS);
    fl_kv_cache *kv;
    fl_workspace *ws;
    float *y = fl__alloc(c->n, sizeof *y);
    o.n_layers = 1;
    o.k_format = kv_format(k_bits);
    o.v_format = kv_format(v_bits);
    c->model->stream_transform_bytes = 1 << 20; /* more than enough */
    c->model->stream_own_clips = true;
    assert_int_equal(fl__kv_new(&kv, &o, NULL), FL_OK);
    assert_int_equal(fl__workspace_new(&ws, c->model, &c->ex, FL_CASE_ROWS, NULL), FL_OK);
    for (int i = 0; i < FL_CASE_WINDOWS; i++) fl__kv_resize(kv, i, FL_CASE_TOKENS);
    memcpy(ws->buf[FL_BUF_X], c->x, c->n * sizeof *y);
    fl__block_run(c->model, block, 0, FL_HALF_BOTH, &c->ex, ws, kv, spans, FL_CASE_WINDOWS,
                  hook, user);
    memcpy(y, ws->buf[FL_BUF_X], c->n * sizeof *y);
    fl__kv_free(&kv);
    fl__workspace_free(&ws);
    return y;
}

float *fl_test_case_run(fl_flatquant_case *c, const fl_block *block, int k_bits, int v_bits)
{
    return run(c, block, k_bits, v_bits, NULL, NULL);
}

float *fl_test_case_plain(fl_flatquant_case *c)
{
    return run(c, &c->block, 16, 16, NULL, NULL);
}

static void fill_plan(fl_site_plan plan[FL_N_SITES], const fl_flatquant_case *c)
{
    const fl_flatquant_options *o = &c->p.o;
    for (int i = 0; i < FL_N_SITES; i++)
        plan[i] = (fl_site_plan){.act = o->a_bits < 16 ? FL_ACT_TOKEN : FL_ACT_FLOAT,
                                 .w_bits = o->w_bits,
                                 .a_bits = o->a_bits,
                                 .asymmetric = o->asymmetric,
                                 .n_in = c->block.site[i].n_in};
}

float *fl_test_case_run_folded(fl_flatquant_case *c, const fl_flatquant_result *trained)
{
    const fl_flatquant_options *o = &c->p.o;
    const fl_block_options nearest = {0};
    fl_site_plan plan[FL_N_SITES];
    fl_block folded;
    fl_block_job job;
    fl_err err = {""};
    fill_plan(plan, c);
    fl_test_must(fl__flatquant_fold(&folded, &c->p, c->model, 0, true, &c->ex, &err), &err);
    fl__flatquant_correct_mean(&folded, trained);
    fl_test_must(fl__block_job_init(&job, c->model, &c->ex, 0, plan, &nearest, &folded, &err),
                 &err);
    for (int i = 0; i < FL_N_SITES; i++)
        fl_test_must(fl__block_job_site(&job, NULL, i, &err), &err);
    float *y = fl_test_case_run(c, &job.quant, o->k_bits, o->v_bits);
    fl__block_job_fini(&job);
    return y;
}

float *fl_test_case_watch(fl_flatquant_case *c, fl_site_hook *hook, void *user)
{
    return run(c, &c->block, 16, 16, hook, user);
}

/* ---- the case ---------------------------------------------------------------------------- */

void fl_test_must(fl_status st, const fl_err *err)
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
static void disturb_all(fl_flatquant_case *c, fl_rng rng)
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

/* Means that are moved: any will do. */
static void centre(fl_flatquant_case *c)
{
    double *mean[FL_N_SITES];
    for (int i = 0; i < FL_N_SITES; i++) {
        const size_t n = (size_t)c->block.site[i].n_in;
        float *normal = fl_test_normal(n, 0.5, "mean");
        mean[i] = fl__alloc(n, sizeof(double));
        assert_non_null(mean[i]);
        for (size_t k = 0; k < n; k++) mean[i][k] = (double)normal[k];
        fl__free(&normal);
    }
    fl__flatquant_centre(&c->block, c->model, mean);
    for (int i = 0; i < FL_N_SITES; i++) fl__free(&mean[i]);
}

void fl_test_case_load(fl_flatquant_case *c, const char *dir, const fl_flatquant_options *o)
{
    fl_err err = {""};
    *c = (fl_flatquant_case){.ex = {fl__isa_detect(), 1}};
    fl_test_must(fl__model_open(&c->model, dir, &c->ex, true, &err), &err);
    c->model->stream_k_format = kv_format(o->k_bits);
    fl_test_must(fl__block_fold(&c->block, c->model, 0, NULL, &err), &err);
    c->n = (size_t)(FL_CASE_ROWS * c->model->cfg.hidden_size);
    c->x = fl_test_normal(c->n, 1, "x");
    for (size_t i = 3; i < c->n; i += (size_t)c->model->cfg.hidden_size) c->x[i] *= 3;
    for (int i = 0; i < FL_N_SITES; i++)
        c->x_max[i] = fl__calloc((size_t)c->block.site[i].n_in, sizeof(float));
    if (o->centre && fl__flatquant_can_centre(&c->model->cfg)) centre(c);
    float *y = run(c, &c->block, 16, 16, note_maxima, c);
    fl__free(&y);
}

void fl_test_case_start(fl_flatquant_case *c, const fl_flatquant_options *o)
{
    fl_err err = {""};
    fl_test_must(
        fl__flatquant_params_init(&c->p, c->model, &c->block, 0, c->x_max, o, &c->ex, &err),
        &err);
}

void fl_test_case_open(fl_flatquant_case *c, const char *dir, const fl_flatquant_options *o,
                       bool online_bf16)
{
    fl_err err = {""};
    fl_test_case_load(c, dir, o);
    fl_flatquant_options seeded = *o;
    for (int seed = 1; seed < MAX_SEEDS; seed++) {
        seeded.seed = (uint64_t)seed;
        fl_test_case_start(c, &seeded);
        disturb_all(c, fl__rng_init((uint64_t)seed, 0, "disturb"));
        fl_test_must(fl__flatquant_params_update(&c->p, &c->ex, &err), &err);
        c->reference = fl_test_reference_new(c->model, &c->block, &c->p, c->x, FL_CASE_WINDOWS,
                                             FL_CASE_TOKENS, online_bf16);
        c->want = fl_test_reference_record(c->reference);
        if (fl_test_reference_nearest_tie(c->reference) > 1) return;
        fl_test_reference_free(&c->reference);
        fl__flatquant_params_fini(&c->p);
    }
    fail_msg("no seed without a near tie");
}

void fl_test_case_close(fl_flatquant_case *c)
{
    fl_test_reference_free(&c->reference);
    fl__flatquant_params_fini(&c->p);
    for (int i = 0; i < FL_N_SITES; i++) fl__free(&c->x_max[i]);
    fl__free(&c->x);
    fl__block_fini(&c->block);
    fl__model_close(&c->model);
}

/* ---- pass, comparing --------------------------------------------------------------------- */

fl_flatquant_pass *fl_test_case_pass(fl_flatquant_case *c)
{
    fl_flatquant_pass *pass;
    fl_err err = {""};
    fl_test_must(fl__flatquant_pass_new(&pass, c->model, &c->block, &c->p, &c->ex,
                                        FL_CASE_WINDOWS, FL_CASE_TOKENS, &err),
                 &err);
    fl_test_must(fl__flatquant_pass_weights(pass, &err), &err);
    return pass;
}

double fl_test_relative_distance(const float *a, const double *b, size_t n)
{
    double most = 0, size = 0;
    for (size_t i = 0; i < n; i++) {
        if (!isfinite(a[i])) return INFINITY;
        most = fmax(most, fabs((double)a[i] - b[i]));
        size = fmax(size, fabs(b[i]));
    }
    return most / size;
}
