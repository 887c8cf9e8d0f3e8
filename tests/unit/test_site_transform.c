/* test_site_transform.c - sites and heads with transforms: what they compute, how they are
 * written and read back, and what is refused.
 * SPDX-License-Identifier: MIT */
#include "quant/block.h"

#include "base/isa.h"
#include "base/mem.h"
#include "base/rng.h"
#include "model/tensor_specs.h"
#include "support/broken_model.h"
#include "support/fl_test.h"
#include "support/quantize_once.h"
#include "support/random_data.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

enum { ROWS = 21, N = 37, N1 = 8, N2 = 13, K = N1 * N2 };

/* ---- one site ---------------------------------------------------------------------------- */

typedef struct variant {
    fl_act_kind act;
    int a_bits, w_bits;
    bool left, right, premul, asymmetric;
    float clip_max, clip_min; /* 0: none */
    float scale;              /* static */
    bool copies, is_unsigned; /* static: 1, 2 .. copies of channels */
} variant;

typedef struct problem {
    fl_site site;
    fl_linear linear;
    int8_t codes[N * K];
    uint8_t nibbles[N * K / 2];
    float *x, y[ROWS * N];
    void *scratch;
    fl_exec ex;
} problem;

static const variant variants[] = {
    {FL_ACT_TOKEN, 4, 4, true, true, false, false, 0, 0, 0, false, false},
    {FL_ACT_TOKEN, 4, 4, true, true, true, true, 0.9f, 0.8f, 0, false, false},
    {FL_ACT_TOKEN, 4, 8, true, false, false, false, 0.7f, 0.9f, 0, false, false},
    {FL_ACT_TOKEN, 8, 8, false, true, true, true, 0, 0, 0, false, false},
    {FL_ACT_TOKEN, 8, 4, true, true, false, true, 1, 0.5f, 0, false, false},
    {FL_ACT_TOKEN, 4, 4, false, false, true, true, 0, 0, 0, false, false},
    {FL_ACT_STATIC, 4, 4, true, true, false, false, 0, 0, 0.25f, false, false},
    {FL_ACT_STATIC, 4, 4, true, true, true, false, 0, 0, 0.125f, true, false},
    {FL_ACT_STATIC, 8, 8, false, true, true, false, 0, 0, 0.01f, true, false},
    {FL_ACT_STATIC, 8, 4, true, false, false, false, 0, 0, 0.02f, true, true},
    {FL_ACT_FLOAT, 16, 4, true, true, true, false, 0, 0, 0, false, false},
    {FL_ACT_FLOAT, 16, 8, false, true, false, false, 0, 0, 0, false, false},
};

static void random_transform(fl_transform *t, int n1, int n2, bool left, bool right)
{
    float *p1 = fl_test_normal((size_t)(n1 * n1), 1 / sqrt(n1), "left");
    float *p2 = fl_test_normal((size_t)(n2 * n2), 1 / sqrt(n2), "right");
    assert_int_equal(fl__transform_init(t, n1, n2, left ? p1 : NULL, right ? p2 : NULL, NULL),
                     FL_OK);
    fl__free(&p1);
    fl__free(&p2);
}

static problem *make(const variant *v, uint32_t isa, int n_threads)
{
    problem *p = fl__calloc(1, sizeof *p);
    fl_site *s = &p->site;
    fl_rng rng = fl__rng_init(1, 0, "codes");
    p->ex = (fl_exec){isa, n_threads};
    *s = (fl_site){.act = v->act, .a_bits = v->a_bits, .n_in = K, .asymmetric = v->asymmetric,
                   .clip_max = {v->clip_max}, .clip_min = {v->clip_min}, .n_linears = 1,
                   .linears = {&p->linear}};
    s->scale = v->scale;
    s->is_unsigned = v->is_unsigned;
    if (v->copies) {
        s->copies = fl__alloc(K, sizeof *s->copies);
        for (int k = 0; k < K; k++) s->copies[k] = (uint16_t)(1 + (k % 7 == 0) * k);
    }
    random_transform(&s->transform, N1, N2, v->left, v->right);
    if (v->premul) s->premul = fl_test_normal(K, 1, "premul");
    assert_int_equal(fl__site_prepare(s, NULL), FL_OK);
    p->linear = (fl_linear){.n_out = N, .n_in = K, .w_scale_stride = 1};
    p->linear.w_scale = fl_test_normal(N, 1, "w_scale");
    p->linear.bias = fl_test_normal(N, 1, "bias");
    for (int i = 0; i < N * K; i++)
        p->codes[i] = (int8_t)(v->w_bits == 4 ? (int)fl__rng_below(&rng, 16) - 8
                                              : (int)fl__rng_below(&rng, 255) - 127);
    if (v->act == FL_ACT_FLOAT) {
        fl__nibbles_pack(p->nibbles, p->codes, N, K);
        p->linear.w_bits = v->w_bits;
        p->linear.w = v->w_bits == 4 ? (void *)p->nibbles : (void *)p->codes;
    } else {
        assert_int_equal(fl__linear_pack(&p->linear, s, p->codes, v->w_bits, NULL), FL_OK);
    }
    p->x = fl_test_normal(ROWS * K, 1.5, "x");
    for (int i = 0; i < ROWS * K; i += 11) p->x[i] = 3 * p->x[i] + 2;
    p->scratch = fl__alloc(
        fl__site_scratch_bytes(&p->ex, ROWS, K, s->code_ld,
                               fl__transform_scratch_bytes(&p->ex, s->transform.n1,
                                                           s->transform.n2),
                               false),
        1);
    return p;
}

static void run(problem *p, const float *x, int n_rows, float *y)
{
    float *const all[FL_SITE_MAX_LINEARS] = {y, NULL, NULL};
    fl__site_run(&p->ex, &p->site, x, n_rows, all, p->scratch);
}

static void done(problem **pp)
{
    fl__linear_fini(&(*pp)->linear);
    fl__site_fini(&(*pp)->site);
    fl__free(&(*pp)->x);
    fl__free(&(*pp)->scratch);
    fl__free(pp);
}

/* y = x^ W^T in double, x^ what the codes stand for. */
static void check_products(const problem *p, const float *x_hat)
{
    for (int r = 0; r < ROWS; r++)
        for (int n = 0; n < N; n++) {
            double want = p->linear.bias[n], size = fabs(want);
            for (int k = 0; k < K; k++) {
                const double term =
                    (double)x_hat[r * K + k] * p->codes[n * K + k] * p->linear.w_scale[n];
                want += term;
                size += fabs(term);
            }
            assert_true(fabs(p->y[r * N + n] - want) <= 1e-6 * size);
        }
}

/* x^ is the transformed input to half a step, where no clip holds it back. */
static void check_codes(const problem *p, const float *x_hat, const float *input)
{
    const fl_site_codes c = fl__site_quantize(&p->ex, &p->site, 0, p->x, ROWS, p->scratch);
    const float hi = p->site.token[0].clip_max, lo = p->site.token[0].clip_min;
    for (int r = 0; r < ROWS; r++) {
        float top = 0, bottom = 0;
        for (int k = 0; k < K; k++) {
            top = fmaxf(top, input[r * K + k]);
            bottom = fmaxf(bottom, -input[r * K + k]);
        }
        for (int k = 0; k < K; k++) {
            const float x = input[r * K + k], step = c.scales[r];
            /* both ends of a shifted range may lie half a step inside it */
            const float slack = (p->site.asymmetric ? 1.01f : 0.501f) * step;
            const bool clipped = x > hi * top || -x > lo * bottom;
            assert_true(clipped || fabsf(x_hat[r * K + k] - x) <= slack);
            assert_true(!clipped || fabsf(x_hat[r * K + k]) <= fabsf(x) + slack);
        }
    }
}

/* The same with one scale: the values that a channel's copies reach, to half a step. */
static void check_static_codes(const problem *p, const float *x_hat, const float *input)
{
    const fl_site *s = &p->site;
    const float qmax = (float)((1 << (s->is_unsigned ? s->a_bits : s->a_bits - 1)) - 1);
    for (int i = 0; i < ROWS * K; i++) {
        const float reach = qmax * s->scale * (float)(s->copies ? s->copies[i % K] : 1);
        const float least = s->is_unsigned ? 0 : -reach;
        const float want = fminf(fmaxf(input[i], least), reach);
        assert_true(fabsf(x_hat[i] - want) <= 0.501f * s->scale);
    }
}

static void sites_compute_what_their_codes_mean(void **state)
{
    (void)state;
    for (size_t i = 0; i < FL_COUNT(variants); i++) {
        problem *p = make(&variants[i], fl__isa_detect(), 1);
        float *x_hat = fl__alloc(ROWS * K, sizeof *x_hat);
        float *input = fl__alloc(ROWS * K, sizeof *input);
        run(p, p->x, ROWS, p->y);
        fl__site_dequantized(&p->ex, &p->site, 0, p->x, ROWS, x_hat, p->scratch);
        fl__site_input(&p->ex, &p->site, input, p->x, ROWS, p->scratch);
        check_products(p, x_hat);
        if (variants[i].act == FL_ACT_TOKEN)
            check_codes(p, x_hat, input);
        else if (variants[i].act == FL_ACT_STATIC)
            check_static_codes(p, x_hat, input);
        else
            assert_memory_equal(x_hat, input, sizeof *x_hat * ROWS * K);
        fl__free(&x_hat);
        fl__free(&input);
        done(&p);
    }
}

/* Neither threads, nor company, nor (but for AMX) the instruction set. */
static void nothing_changes_a_bit(void **state)
{
    (void)state;
    const uint32_t isa = fl__isa_detect() & ~(uint32_t)FL_ISA_AMXBF16;
    for (size_t i = 0; i < FL_COUNT(variants); i++) {
        const bool integer = variants[i].act != FL_ACT_FLOAT;
        problem *a = make(&variants[i], isa, 1), *b = make(&variants[i], isa, 2);
        problem *ref = make(&variants[i], 0, 1);
        run(a, a->x, ROWS, a->y);
        run(b, b->x, ROWS, b->y);
        run(ref, ref->x, ROWS, ref->y);
        assert_memory_equal(a->y, b->y, sizeof a->y);
        if (integer) assert_memory_equal(a->y, ref->y, sizeof a->y);
        for (int r = 0; r < ROWS && integer; r++) {
            float y[N];
            run(a, a->x + r * K, 1, y);
            assert_memory_equal(y, a->y + r * N, sizeof y);
        }
        done(&a);
        done(&b);
        done(&ref);
    }
}

/* ---- a block in a file ------------------------------------------------------------------- */

#define L0       "model.layers.0."
#define SHARD    "model-00002-of-00005.safetensors"
#define HEAD_DIM 32

static uint16_t copies[5 * HEAD_DIM]; /* filled by init_job */
static const fl_site_plan plans[FL_N_SITES] = {
    {.act = FL_ACT_TOKEN, .w_bits = 4, .a_bits = 4, .asymmetric = true},
    {.act = FL_ACT_STATIC, .w_bits = 4, .a_bits = 4, .scale = 0.02f, .copies = copies},
    {.act = FL_ACT_TOKEN, .w_bits = 8, .a_bits = 8, .asymmetric = true},
    {.act = FL_ACT_FLOAT, .w_bits = 4, .a_bits = 16},
};
static const fl_block_options options = {.use_gptq = false};

static fl_model *open_model(const char *dir)
{
    const fl_exec ex = {fl__isa_detect(), 1};
    fl_model *m;
    fl_err err = {""};
    if (fl__model_open(&m, dir, &ex, true, &err)) fail_msg("%s", err.text);
    m->stream_transform_bytes = fl__transform_scratch_bytes(&ex, 16, 28);
    m->stream_own_clips = true;
    return m;
}

/* A permutation with signs: exact in any type, and its own inverse transposed. */
static void init_heads(fl_block *b, const fl_model_config *cfg)
{
    static float p[HEAD_DIM * HEAD_DIM];
    for (int i = 0; i < HEAD_DIM; i++)
        p[i * HEAD_DIM + i * 5 % HEAD_DIM] = i % 3 ? 1 : -1;
    assert_int_equal(fl__transform_init(&b->head_transform_q, cfg->n_heads, HEAD_DIM, NULL, p,
                                        NULL),
                     FL_OK);
    assert_int_equal(fl__transform_init(&b->head_transform_k, cfg->n_kv_heads, HEAD_DIM, NULL,
                                        p, NULL),
                     FL_OK);
}

static const float up_clips[2][2] = {{0.5f, 0.25f}, {0.75f, 1}};

static void init_job(fl_block_job *job, const fl_model *m, const fl_exec *ex)
{
    fl_err err = {""};
    for (size_t i = 0; i < FL_COUNT(copies); i++) copies[i] = (uint16_t)(1 + i % 3);
    assert_int_equal(fl__block_job_init(job, m, ex, 0, plans, &options, NULL, &err), FL_OK);
    fl_site *site = job->quant.site;
    random_transform(&site[FL_SITE_QKV].transform, 10, 16, true, true);
    random_transform(&site[FL_SITE_O].transform, 5, 32, true, false);
    random_transform(&site[FL_SITE_UP].transform, 10, 16, false, true);
    random_transform(&site[FL_SITE_DOWN].transform, 16, 28, true, true);
    site[FL_SITE_QKV].clip_max[0] = 0.875f;
    site[FL_SITE_QKV].clip_min[0] = 0.75f;
    site[FL_SITE_UP].own_clips = true; /* of gate, of up */
    for (int i = 0; i < 2; i++) {
        site[FL_SITE_UP].clip_max[i] = up_clips[i][0];
        site[FL_SITE_UP].clip_min[i] = up_clips[i][1];
    }
    init_heads(&job->quant, &m->cfg);
    for (int s = 0; s < FL_N_SITES; s++)
        assert_int_equal(fl__block_job_site(job, NULL, s, &err), FL_OK);
}

/* first: how the first site runs. */
static void patch_config(const char *dir, fl_act_kind first)
{
    static const char *const acts[] = {"float", "static", "token"};
    char text[4096], *at = text, *end = text + sizeof text;
    at += snprintf(at, (size_t)(end - at), "{\"quantization_config\": {\"sites\": [");
    for (int i = 0; i < 16; i++) {
        static const fl_site_plan rest = {.act = FL_ACT_TOKEN, .w_bits = 8, .a_bits = 8};
        const fl_site_plan *p = i < FL_N_SITES ? &plans[i] : &rest;
        at += snprintf(at, (size_t)(end - at),
                       "%s{\"layer\": %d, \"site\": \"%s\", \"activation\": \"%s\", "
                       "\"w_bits\": %d, \"a_bits\": %d, \"asymmetric\": %s}",
                       i ? ", " : "", i / FL_N_SITES, fl__site_names[i % FL_N_SITES],
                       acts[i ? p->act : first], p->w_bits, p->a_bits,
                       p->asymmetric ? "true" : "false");
    }
    (void)snprintf(at, (size_t)(end - at), "]}}");
    fl_test_patch_json(dir, "config.json", text);
}

/* A W8A8 model whose first block is that of init_job, with n2 for the size of the right factor
 * of q, k, v (16 fits). Returns its directory. */
static const char *transformed_model(int n2)
{
    const fl_exec ex = {fl__isa_detect(), 1};
    const char *name = n2 == 16 ? "out" : "wrong";
    fl_quantize_options o = fl_test_quantize_options(NULL, name, "rtn");
    fl_block_job job;
    fl_err err = {""};
    int64_t n_bytes;
    char path[512];
    o.w_bits = o.a_bits = 8;
    const char *dir = fl_test_quantize(&o, NULL);
    fl_model *from = open_model(FL_TEST_TINY_LLAMA);
    init_job(&job, from, &ex);
    (void)snprintf(path, sizeof path, "%s/" SHARD, dir);
    job.quant.site[FL_SITE_QKV].transform.n2 = n2;
    if (fl__block_job_write(&job, path, NULL, &n_bytes, &err)) fail_msg("%s", err.text);
    fl__block_job_fini(&job);
    fl__model_close(&from);
    patch_config(dir, FL_ACT_TOKEN);
    return dir;
}

static float *run_block(const fl_model *m, const fl_block *block)
{
    const fl_exec ex = {fl__isa_detect(), 1};
    const size_t n = (size_t)(ROWS * m->cfg.hidden_size);
    fl_kv_options o = fl__model_kv_options(m, 1, ROWS);
    const fl_span span = {.seq = 0, .pos = 0, .n_rows = ROWS};
    fl_workspace *ws;
    fl_kv_cache *kv;
    float *y = fl__alloc(n, sizeof *y);
    o.k_format = o.v_format = FL_KV_F32;
    assert_int_equal(fl__workspace_new(&ws, m, &ex, ROWS, NULL), FL_OK);
    assert_int_equal(fl__kv_new(&kv, &o, NULL), FL_OK);
    fl__kv_resize(kv, 0, ROWS);
    for (size_t i = 0; i < n; i++) ws->buf[FL_BUF_X][i] = sinf((float)i * 0.37f);
    fl__block_run(m, block, 0, FL_HALF_BOTH, &ex, ws, kv, &span, 1, NULL, NULL);
    memcpy(y, ws->buf[FL_BUF_X], n * sizeof *y);
    fl__kv_free(&kv);
    fl__workspace_free(&ws);
    return y;
}

static void same_transform(const fl_transform *a, const fl_transform *b)
{
    assert_int_equal(a->n1, b->n1);
    assert_int_equal(a->n2, b->n2);
    assert_int_equal(!a->left, !b->left);
    assert_int_equal(!a->right, !b->right);
    if (a->left)
        assert_memory_equal(a->left, b->left, sizeof(float) * (size_t)(a->n1 * a->n1));
    if (a->right)
        assert_memory_equal(a->right, b->right, sizeof(float) * (size_t)(a->n2 * a->n2));
}

static void blocks_are_written_read_and_run(void **state)
{
    (void)state;
    const fl_exec ex = {fl__isa_detect(), 1};
    fl_model *m = open_model(transformed_model(16)), *from = open_model(FL_TEST_TINY_LLAMA);
    const size_t n = (size_t)(ROWS * m->cfg.hidden_size);
    fl_err err = {""};
    fl_block block;
    fl_block_job job;
    init_job(&job, from, &ex);
    if (fl__model_check_tensors(m, &err)) fail_msg("%s", err.text);
    if (fl__block_load(&block, m, 0, &err)) fail_msg("%s", err.text);
    for (int s = 0; s < FL_N_SITES; s++) {
        const fl_site *a = &job.quant.site[s], *b = &block.site[s];
        same_transform(&a->transform, &b->transform);
        assert_int_equal(b->asymmetric, plans[s].asymmetric);
        assert_int_equal(b->own_clips, s == FL_SITE_UP);
        for (int i = 0; i < b->n_linears; i++) {
            assert_true(b->token[i].clip_max == (s == FL_SITE_QKV  ? 0.875f
                                                 : s == FL_SITE_UP ? up_clips[i][0]
                                                                   : 1));
            assert_true(b->token[i].clip_min == (s == FL_SITE_QKV  ? 0.75f
                                                 : s == FL_SITE_UP ? up_clips[i][1]
                                                                   : 1));
        }
        assert_true(b->act != FL_ACT_STATIC || b->scale == plans[s].scale);
    }
    assert_memory_equal(block.site[FL_SITE_O].copies, copies, sizeof copies);
    same_transform(&job.quant.head_transform_q, &block.head_transform_q);
    same_transform(&job.quant.head_transform_k, &block.head_transform_k);
    float *written = run_block(from, &job.quant), *read = run_block(m, &block);
    assert_memory_equal(written, read, n * sizeof *read);
    fl__free(&written);
    fl__free(&read);
    fl__block_fini(&block);
    fl__block_job_fini(&job);
    fl__model_close(&m);
    fl__model_close(&from);
}

static void inspect_shows_them(void **state)
{
    (void)state;
    char *report;
    fl_err err = {""};
    if (fl_inspect_run(&report, transformed_model(16), &err)) fail_msg("%s", err.text);
    json_t *doc = json_loads(report, 0, NULL);
    const json_t *t = json_object_get(doc, "transforms"), *sites = json_object_get(t, "sites");
    assert_int_equal(json_array_size(sites), 4);
    assert_int_equal(json_array_size(json_object_get(t, "heads")), 1);
    const json_t *o = json_array_get(sites, 1);
    assert_string_equal(json_string_value(json_object_get(o, "site")), "o");
    assert_int_equal(json_integer_value(json_object_get(o, "n1")), 5);
    assert_int_equal(json_integer_value(json_object_get(o, "n2")), 32);
    json_decref(doc);
    fl_string_free(&report);
}

/* The scores of q P^-T and k P are those of q and k, but for the rounding to bfloat16. */
static void head_transforms_leave_the_attention_alone(void **state)
{
    (void)state;
    fl_model *m = open_model(FL_TEST_TINY_LLAMA);
    const size_t n = (size_t)(ROWS * m->cfg.hidden_size);
    fl_block block;
    assert_int_equal(fl__block_load(&block, m, 0, NULL), FL_OK);
    float *plain = run_block(m, &block);
    init_heads(&block, &m->cfg);
    float *both = run_block(m, &block);
    fl__transform_fini(&block.head_transform_q);
    float *only_k = run_block(m, &block);
    const double size = fl_test_max_diff(plain, only_k, n);
    assert_true(size > 0.01);
    assert_true(fl_test_max_diff(plain, both, n) < 0.05 * size);
    assert_true(memcmp(plain, both, n * sizeof *both) != 0);
    fl__free(&plain);
    fl__free(&both);
    fl__free(&only_k);
    fl__block_fini(&block);
    fl__model_close(&m);
}

/* ---- what is refused --------------------------------------------------------------------- */

static void check_refused(const char *dir, const char *part)
{
    fl_err err = {""}, check = {""};
    fl_block block;
    fl_model *m = open_model(dir);
    if (fl__block_load(&block, m, 0, &err) != FL_E_INPUT)
        fail_msg("%s: not refused", part);
    if (!strstr(err.text, part) || strchr(err.text, '\n'))
        fail_msg("\"%s\" does not name %s", err.text, part);
    (void)fl__model_check_tensors(m, &check); /* must get through, whatever it finds */
    fl__model_close(&m);
}

static void shapes_that_do_not_fit_are_refused(void **state)
{
    (void)state;
    static const struct {
        const char *patch, *part;
    } bad[] = {
        {"{\"" L0 "self_attn.q_proj.transform_left\": {\"shape\": [4, 25]}}", "transform_left"},
        {"{\"" L0 "self_attn.q_proj.transform_left\": {\"shape\": [100]}}", "transform_left"},
        {"{\"" L0 "mlp.gate_proj.transform_right\": {\"shape\": [256, 1]}}", "transform_right"},
        {"{\"" L0 "self_attn.q_proj.transform_right\": {\"dtype\": \"I32\"}}",
         "transform_right"},
        {"{\"" L0 "self_attn.q_proj.input_clip\": {\"shape\": [2, 1]}}", "input_clip"},
        {"{\"" L0 "mlp.gate_proj.input_clip\": {\"shape\": [4]}}", "input_clip"},
        {"{\"" L0 "mlp.gate_proj.input_clip\": {\"shape\": [4, 1]}}", "input_clip"},
        {"{\"" L0 "self_attn.key_transform\": {\"shape\": [16, 64]}}", "key_transform"},
    };
    char good[512];
    (void)snprintf(good, sizeof good, "%s", transformed_model(16));
    for (size_t i = 0; i < FL_COUNT(bad); i++) {
        const char *dir = fl_test_path("broken");
        fl_test_link_model(dir, good);
        fl_test_patch_header(dir, SHARD, bad[i].patch);
        check_refused(dir, bad[i].part);
    }
    check_refused(transformed_model(8), "transform_right"); /* 10 * 8 of 160 channels */
}

static void numbers_that_are_none_are_refused(void **state)
{
    (void)state;
    static const struct {
        const char *tensor;
        float x;
    } bad[] = {
        {L0 "self_attn.q_proj.transform_left", NAN},
        {L0 "mlp.down_proj.transform_right", INFINITY},
        {L0 "self_attn.query_transform", NAN},
        {L0 "self_attn.q_proj.input_clip", 0},
        {L0 "self_attn.q_proj.input_clip", 1.5f},
        {L0 "mlp.gate_proj.input_clip", -0.5f},
    };
    char good[512];
    (void)snprintf(good, sizeof good, "%s", transformed_model(16));
    for (size_t i = 0; i < FL_COUNT(bad); i++) {
        const char *dir = fl_test_path("broken");
        fl_err err = {""};
        fl_test_link_model(dir, good);
        fl_test_poke(dir, bad[i].tensor, 4, &bad[i].x, sizeof bad[i].x);
        check_refused(dir, bad[i].tensor);
        fl_model *m = open_model(dir);
        assert_int_equal(fl__model_check_tensors(m, &err), FL_E_INPUT);
        assert_non_null(strstr(err.text, bad[i].tensor));
        fl__model_close(&m);
    }
}

/* Another set of sites than the shard was written for. */
static void sites_that_do_not_fit_are_refused(void **state)
{
    (void)state;
    const char *dir = transformed_model(16);
    fl_model *m = open_model(dir);
    fl_err err = {""};
    fl_block block;
    m->sites[FL_SITE_O].is_unsigned = true;
    assert_int_equal(fl__block_load(&block, m, 0, &err), FL_E_INPUT);
    assert_non_null(strstr(err.text, "layer 0, site o: a transform in front of unsigned"));
    m->sites[FL_SITE_O].is_unsigned = false;
    m->sites[FL_SITE_QKV].act = FL_ACT_STATIC;
    assert_int_equal(fl__block_load(&block, m, 0, &err), FL_E_INPUT);
    assert_non_null(strstr(err.text, "q_proj.input_clip: clips of a scale per token"));
    m->sites[FL_SITE_QKV].act = FL_ACT_TOKEN;
    m->sites[FL_SITE_UP].act = FL_ACT_STATIC;
    assert_int_equal(fl__block_load(&block, m, 0, &err), FL_E_INPUT);
    assert_non_null(strstr(err.text, "gate_proj.input_clip: clips of a scale per token"));
    m->sites[FL_SITE_UP].act = FL_ACT_TOKEN;
    m->sites[FL_SITE_DOWN].act = FL_ACT_STATIC; /* written in float: there is no scale */
    assert_int_equal(fl__block_load(&block, m, 0, &err), FL_E_INPUT);
    assert_non_null(strstr(err.text, "input_scale"));
    fl__model_close(&m);
    patch_config(dir, FL_ACT_STATIC);
    assert_int_equal(fl__model_open_config(&m, dir, &err), FL_E_INPUT);
    assert_non_null(strstr(err.text, "asymmetric"));
}

static void running_out_of_memory_leaves_nothing(void **state)
{
    (void)state;
    fl_model *m = open_model(transformed_model(16));
    const size_t before = fl__mem_get().now_bytes;
    for (unsigned i = 1;; i++) {
        fl_block block;
        fl__mem_fail_after(i);
        const fl_status st = fl__block_load(&block, m, 0, NULL);
        fl__mem_fail_after(0);
        if (!st) fl__block_fini(&block);
        assert_int_equal(fl__mem_get().now_bytes, before);
        if (!st) break;
        assert_int_equal(st, FL_E_NOMEM);
    }
    fl__model_close(&m);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(sites_compute_what_their_codes_mean),
    cmocka_unit_test(nothing_changes_a_bit),
    cmocka_unit_test(blocks_are_written_read_and_run),
    cmocka_unit_test(inspect_shows_them),
    cmocka_unit_test(head_transforms_leave_the_attention_alone),
    cmocka_unit_test(shapes_that_do_not_fit_are_refused),
    cmocka_unit_test(numbers_that_are_none_are_refused),
    cmocka_unit_test(sites_that_do_not_fit_are_refused),
    cmocka_unit_test(running_out_of_memory_leaves_nothing),
};
FL_TEST_MAIN(tests)
