/* test_stream.c - the calibration stream: what walks see, keep and sum up.
 * SPDX-License-Identifier: MIT */
#include "quant/stream.h"

#include "base/isa.h"
#include "base/mem.h"
#include "quant/block.h"
#include "support/fl_test.h"
#include "support/random_data.h"
#include "support/small_model.h"

#include <math.h>
#include <string.h>

enum { WINDOWS = 70, LEN = 32, HIDDEN = 64, TOKENS = WINDOWS * LEN }; /* a batch is 64
                                                                         windows */

typedef struct context {
    fl_exec ex;
    fl_model *model;
    fl_calib calib;
    fl_stream *s;
    fl_block block;
} context;

/* In place: a block's sites point into it. */
static void open_context(context *c)
{
    int32_t ids[3000];
    const fl_small_model small = fl_test_small_model_defaults();
    *c = (context){.ex = {fl__isa_detect(), 1}};
    for (int i = 0; i < 3000; i++) ids[i] = i * 37 % 251;
    assert_int_equal(
        fl__model_open(&c->model, fl_test_small_model("model", &small), &c->ex, true, NULL),
        FL_OK);
    assert_int_equal(
        fl__calib_from_ids(&c->calib, ids, 3000, WINDOWS, LEN, 0, 264, "ids", NULL), FL_OK);
    assert_int_equal(fl__block_fold(&c->block, c->model, 0, NULL, NULL), FL_OK);
}

static void start(context *c, bool follow_quant)
{
    assert_int_equal(fl__stream_new(&c->s, c->model, &c->ex, &c->calib, follow_quant, NULL),
                     FL_OK);
    fl__stream_embed(c->s);
}

static void close_context(context *c)
{
    fl__stream_free(&c->s);
    fl__block_fini(&c->block);
    fl__calib_fini(&c->calib);
    fl__model_close(&c->model);
}

/* ---- walks ------------------------------------------------------------------------------- */

static bool walk(context *c, fl_lane lane, fl_half half, bool store)
{
    return fl__stream_walk(c->s, lane, &c->block, half, store, NULL, NULL);
}

static void lanes_start_equal_and_keep_outputs(void **state)
{
    (void)state;
    context c;
    const size_t n = (size_t)TOKENS * HIDDEN, n_bytes = n * sizeof(float);
    open_context(&c);
    start(&c, true);
    assert_memory_equal(c.s->x_float, c.s->x_quant, n_bytes);
    assert_true(fl__stream_distance(c.s) == 0);
    assert_true(walk(&c, FL_LANE_FLOAT, FL_HALF_BOTH, false));
    assert_memory_equal(c.s->x_float, c.s->x_quant, n_bytes); /* nothing stored */
    assert_true(walk(&c, FL_LANE_FLOAT, FL_HALF_BOTH, true));
    double error = 0, energy = 0;
    for (size_t i = 0; i < n; i++) {
        error += pow((double)c.s->x_quant[i] - c.s->x_float[i], 2);
        energy += pow((double)c.s->x_float[i], 2);
    }
    assert_true(error > 0 && fabs(fl__stream_distance(c.s) / (error / energy) - 1) < 1e-9);
    /* the quantised lane through the same block: the KV cache is bf16 there, the rest equal */
    assert_true(walk(&c, FL_LANE_QUANT, FL_HALF_BOTH, true));
    const double bf16 = fl__stream_distance(c.s);
    assert_true(bf16 > 0 && bf16 < 1e-4);
    close_context(&c);
}

static void halves_make_a_whole(void **state)
{
    (void)state;
    context c;
    const size_t n_bytes = (size_t)TOKENS * HIDDEN * sizeof(float);
    open_context(&c);
    start(&c, false);
    float *first = fl__alloc(n_bytes, 1), *whole = fl__alloc(n_bytes, 1);
    memcpy(first, c.s->x_float, n_bytes);
    assert_true(walk(&c, FL_LANE_FLOAT, FL_HALF_BOTH, true));
    memcpy(whole, c.s->x_float, n_bytes);
    memcpy(c.s->x_float, first, n_bytes);
    assert_true(walk(&c, FL_LANE_FLOAT, FL_HALF_ATTENTION, true));
    assert_true(memcmp(whole, c.s->x_float, n_bytes) != 0);
    assert_true(walk(&c, FL_LANE_FLOAT, FL_HALF_MLP, true));
    assert_memory_equal(whole, c.s->x_float, n_bytes);
    fl__free(&first);
    fl__free(&whole);
    close_context(&c);
}

static bool count_rows(void *user, int site, const float *x, int n_rows)
{
    int64_t *seen = user;
    assert_true(isfinite(x[0]));
    seen[site] += n_rows;
    return true;
}

static void hooks_see_every_token_once(void **state)
{
    (void)state;
    context c;
    int64_t both[FL_N_SITES] = {0}, attention[FL_N_SITES] = {0};
    open_context(&c);
    start(&c, false);
    assert_true(isnan(fl__stream_distance(c.s))); /* no second lane */
    assert_true(
        fl__stream_walk(c.s, FL_LANE_FLOAT, &c.block, FL_HALF_BOTH, false, count_rows, both));
    assert_true(fl__stream_walk(c.s, FL_LANE_FLOAT, &c.block, FL_HALF_ATTENTION, false,
                                count_rows, attention));
    for (int i = 0; i < FL_N_SITES; i++) {
        assert_int_equal(both[i], TOKENS);
        assert_int_equal(attention[i], i <= FL_SITE_O ? TOKENS : 0);
    }
    close_context(&c);
}

static bool stop_at_second(void *user)
{
    return ++*(int *)user == 2;
}

static void stops_are_obeyed_between_batches(void **state)
{
    (void)state;
    context c;
    int asked = 0;
    int64_t seen[FL_N_SITES] = {0};
    fl_site_stats stats[FL_N_SITES];
    fl_gram g;
    open_context(&c);
    start(&c, true);
    c.s->should_stop = stop_at_second;
    c.s->stop_user = &asked;
    assert_false(
        fl__stream_walk(c.s, FL_LANE_FLOAT, &c.block, FL_HALF_BOTH, false, count_rows, seen));
    assert_int_equal(seen[0], 64 * LEN);
    asked = 0;
    fl_err err = {""};
    const size_t before = fl__mem_get().now_bytes;
    assert_int_equal(fl__stream_stats(stats, c.s, &c.block, 16, &err), FL_E_INTERRUPTED);
    assert_int_equal(fl__mem_get().now_bytes, before);
    asked = 0;
    assert_int_equal(fl__gram_init(&g, HIDDEN, true, NULL), FL_OK);
    assert_false(fl__stream_gram(&g, c.s, &c.block, &c.block, FL_SITE_QKV,
                                 &c.block.site[FL_SITE_QKV], 0));
    fl__gram_fini(&g);
    close_context(&c);
}

static void announced_bytes_are_taken(void **state)
{
    (void)state;
    for (int follow = 0; follow < 2; follow++) {
        context c;
    open_context(&c);
        const size_t before = fl__mem_get().now_bytes;
        start(&c, follow);
        const fl_stream_bytes b = fl__stream_bytes(c.model, &c.ex, WINDOWS, LEN, follow);
        const size_t taken = fl__mem_get().now_bytes - before,
                     said = b.activations + b.workspace;
        assert_true(taken >= said && taken - said < 4096); /* spans and the stream itself */
        close_context(&c);
    }
}

/* ---- statistics and moments -------------------------------------------------------------- */

typedef struct capture {
    float *x[FL_N_SITES]; /* [TOKENS, n_in] */
    int64_t n[FL_N_SITES];
    const fl_block *block;
} capture;

static bool keep(void *user, int site, const float *x, int n_rows)
{
    capture *c = user;
    const size_t n = (size_t)n_rows * (size_t)c->block->site[site].n_in;
    memcpy(c->x[site] + c->n[site], x, n * sizeof *x);
    c->n[site] += (int64_t)n;
    return true;
}

static capture capture_all(context *c, fl_lane lane)
{
    capture cap = {.block = &c->block};
    for (int s = 0; s < FL_N_SITES; s++)
        cap.x[s] = fl__alloc((size_t)TOKENS * (size_t)c->block.site[s].n_in, sizeof(float));
    assert_true(fl__stream_walk(c->s, lane, &c->block, FL_HALF_BOTH, false, keep, &cap));
    return cap;
}

static void capture_fini(capture *c)
{
    for (int s = 0; s < FL_N_SITES; s++) fl__free(&c->x[s]);
}

static void statistics_are_those_of_the_inputs(void **state)
{
    (void)state;
    context c;
    open_context(&c);
    fl_site_stats stats[FL_N_SITES];
    start(&c, false);
    capture cap = capture_all(&c, FL_LANE_FLOAT);
    const size_t n_first = 64 * LEN * HIDDEN;
    float *first = fl__alloc(n_first, sizeof *first);
    assert_int_equal(fl__stream_stats(stats, c.s, &c.block, 100, NULL), FL_OK);
    /* the lane went through the block; its first batch can be asked for again */
    assert_int_equal(fl__stream_first_batch(c.s, &c.block, first), n_first);
    assert_memory_equal(first, c.s->x_float, n_first * sizeof *first);
    fl__free(&first);
    for (int s = 0; s < FL_N_SITES; s++) {
        const int K = stats[s].K;
        float lowest = INFINITY;
        assert_int_equal(K, c.block.site[s].n_in);
        assert_int_equal(stats[s].n_sample, 100);
        for (int k = 0; k < K; k++) {
            float top = 0;
            double square = 0;
            for (int r = 0; r < TOKENS; r++) {
                const float x = cap.x[s][r * K + k];
                top = fmaxf(top, fabsf(x));
                lowest = fminf(lowest, x);
                square += (double)x * x;
            }
            assert_true(stats[s].absmax[k] == top);
            assert_true(stats[s].mean_square[k] == (float)(square / TOKENS));
        }
        assert_true(stats[s].lowest == lowest);
        int at = -1; /* the sample is rows of the input, in order, spread over it */
        for (int i = 0; i < 100; i++) {
            const int from = at;
            do at++;
            while (
                memcmp(cap.x[s] + at * K, stats[s].sample + i * K, sizeof(float) * (size_t)K));
            assert_in_range(at, from + 1, from + 3 * TOKENS / 100); /* equal rows exist */
        }
        fl__site_stats_fini(&stats[s]);
    }
    capture_fini(&cap);
    close_context(&c);
}

static void moments_are_those_of_both_lanes(void **state)
{
    (void)state;
    context c;
    open_context(&c);
    start(&c, true);
    float *noise = fl_test_normal((size_t)TOKENS * HIDDEN, 0.05, "noise");
    for (int i = 0; i < TOKENS * HIDDEN; i++) c.s->x_quant[i] += noise[i];
    capture f = capture_all(&c, FL_LANE_FLOAT), q = capture_all(&c, FL_LANE_QUANT);
    for (int site = 0; site < FL_N_SITES; site++) {
        fl_gram g;
        if (site == FL_SITE_UP) { /* the MLP's half starts from the attention's output */
            assert_true(walk(&c, FL_LANE_FLOAT, FL_HALF_ATTENTION, true));
            assert_true(walk(&c, FL_LANE_QUANT, FL_HALF_ATTENTION, true));
        }
        fl_site probe = c.block.site[site]; /* float: codes are the values themselves */
        const int K = probe.n_in;
        assert_int_equal(fl__gram_init(&g, K, true, NULL), FL_OK);
        assert_true(fl__stream_gram(&g, c.s, &c.block, &c.block, site, &probe, 0));
        assert_int_equal(g.n_rows, TOKENS);
        for (int i = 0; i < K; i += 5)
            for (int j = 0; j < K; j += 3) {
                double h = 0, cross = 0, size = 0;
                for (int r = 0; r < TOKENS; r++) {
                    const double x = (double)q.x[site][r * K + i] - g.pivot_q[i];
                    const double y = (double)q.x[site][r * K + j] - g.pivot_q[j];
                    const double z = (double)f.x[site][r * K + j] - g.pivot_f[j];
                    h += x * y;
                    cross += x * z;
                    size += fabs(x) * (fabs(y) + fabs(z));
                }
                assert_true(fabs(g.h[i * K + j] - h) < 1e-5 * size + 1e-5);
                assert_true(fabs(g.c[i * K + j] - cross) < 1e-5 * size + 1e-5);
            }
        fl__gram_fini(&g);
    }
    capture_fini(&f);
    capture_fini(&q);
    fl__free(&noise);
    close_context(&c);
}

/* ---- codes and back ---------------------------------------------------------------------- */

static void check_dequantised(fl_site *site, const float *x, int rows)
{
    const fl_exec ex = {fl__isa_detect(), 1};
    const int K = site->n_in;
    float *y = fl__alloc((size_t)(rows * K), sizeof *y);
    assert_int_equal(fl__site_prepare(site, NULL), FL_OK);
    void *scratch = fl__alloc(fl__site_scratch_bytes(&ex, rows, K, site->code_ld, 0, false), 1);
    fl__site_dequantized(&ex, site, 0, x, rows, y, scratch);
    const int qmax =
        site->is_unsigned ? (1 << site->a_bits) - 1 : (1 << (site->a_bits - 1)) - 1;
    for (int r = 0; r < rows; r++) {
        float scale = site->scale, top = 0;
        for (int k = 0; k < K; k++) top = fmaxf(top, fabsf(x[r * K + k]));
        if (site->act == FL_ACT_TOKEN) scale = top / (float)qmax;
        for (int k = 0; k < K; k++) {
            const float most = (float)(qmax * (site->copies ? site->copies[k] : 1));
            float q = rintf(x[r * K + k] * (1.0f / scale));
            q = fminf(fmaxf(q, site->is_unsigned ? 0 : -most), most);
            assert_true(fabsf(y[r * K + k] - q * scale) <= 1e-6f * fabsf(q * scale));
        }
    }
    fl__free(&y);
    fl__free(&scratch);
    site->copies = site->weight_copies = NULL;
    fl__site_fini(site);
}

static void codes_stand_for_their_values(void **state)
{
    (void)state;
    enum { K = 24, ROWS = 9 };
    static uint16_t copies[K], digits[K];
    float *x = fl_test_normal(K * ROWS, 3, "x");
    for (int k = 0; k < K; k++) {
        copies[k] = (uint16_t)(1 + k % 5 * 9);
        digits[k] = (uint16_t)(1 + k % 3);
    }
    for (int bits = 4; bits <= 8; bits += 4)
        for (int kind = 0; kind < 7; kind++) {
            fl_site site = {.act = kind == 4 ? FL_ACT_TOKEN : FL_ACT_STATIC, .a_bits = bits,
                            .is_unsigned = kind == 1 || kind == 3, .scale = 0.21f, .n_in = K,
                            .copies = kind == 2 || kind == 3 || kind == 6 ? copies : NULL};
            /* repeats for digits of a weight are not part of the value */
            site.weight_copies = kind >= 5 ? digits : NULL;
            check_dequantised(&site, x, ROWS);
        }
    fl__free(&x);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(lanes_start_equal_and_keep_outputs),
    cmocka_unit_test(halves_make_a_whole),
    cmocka_unit_test(hooks_see_every_token_once),
    cmocka_unit_test(stops_are_obeyed_between_batches),
    cmocka_unit_test(announced_bytes_are_taken),
    cmocka_unit_test(statistics_are_those_of_the_inputs),
    cmocka_unit_test(moments_are_those_of_both_lanes),
    cmocka_unit_test(codes_stand_for_their_values),
};
FL_TEST_MAIN(tests)
