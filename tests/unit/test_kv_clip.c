/* test_kv_clip.c - clips of K and V: written with a block, read back, used by its attention,
 * and refused where they are no clips.
 * SPDX-License-Identifier: MIT */
#include "quant/block.h"

#include "base/isa.h"
#include "base/mem.h"
#include "model/tensor_specs.h"
#include "support/broken_model.h"
#include "support/fl_test.h"
#include "support/quantize_once.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

enum { ROWS = 30 };

static const char *const tensor = "model.layers.0.self_attn.kv_clip";

static fl_model *open_model(const char *dir)
{
    const fl_exec ex = {fl__isa_detect(), 1};
    fl_model *m;
    fl_err err = {""};
    if (fl__model_open(&m, dir, &ex, true, &err)) fail_msg("%s", err.text);
    return m;
}

/* A W8A8KV4 model whose first block has these clips (shard 2 of 5). Returns its directory. */
static const char *clipped_model(const float clip[4])
{
    const fl_exec ex = {fl__isa_detect(), 1};
    const fl_site_plan plan = {.act = FL_ACT_TOKEN, .w_bits = 8, .a_bits = 8};
    const fl_site_plan plans[FL_N_SITES] = {plan, plan, plan, plan};
    const fl_block_options options = {.use_gptq = false};
    fl_quantize_options o = fl_test_quantize_options(NULL, "out", "rtn");
    fl_block_job job;
    fl_err err = {""};
    int64_t n_bytes;
    o.w_bits = o.a_bits = 8;
    o.kv_bits = 4;
    const char *dir = fl_test_quantize(&o, NULL);
    fl_model *from = open_model(FL_TEST_TINY_LLAMA);
    assert_int_equal(fl__block_job_init(&job, from, &ex, 0, plans, &options, NULL, &err),
                     FL_OK);
    for (int s = 0; s < FL_N_SITES; s++)
        assert_int_equal(fl__block_job_site(&job, NULL, s, &err), FL_OK);
    memcpy(job.quant.kv_clip, clip, sizeof job.quant.kv_clip);
    char path[512], index[256];
    (void)snprintf(path, sizeof path, "%s/model-00002-of-00005.safetensors", dir);
    if (fl__block_job_write(&job, path, NULL, &n_bytes, &err)) fail_msg("%s", err.text);
    fl__block_job_fini(&job);
    fl__model_close(&from);
    (void)snprintf(index, sizeof index,
                   "{\"weight_map\": {\"%s\": \"model-00002-of-00005.safetensors\"}}", tensor);
    fl_test_patch_json(dir, "model.safetensors.index.json", index);
    return dir;
}

static float *run_block(const fl_model *m, const fl_block *block)
{
    const fl_exec ex = {fl__isa_detect(), 1};
    const size_t n = (size_t)(ROWS * m->cfg.hidden_size);
    const fl_kv_options o = fl__model_kv_options(m, 1, ROWS);
    const fl_span span = {.seq = 0, .pos = 0, .n_rows = ROWS};
    fl_workspace *ws;
    fl_kv_cache *kv;
    float *y = fl__alloc(n, sizeof *y);
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

static void clips_are_written_read_and_used(void **state)
{
    (void)state;
    static const float clip[4] = {0.5f, 0.75f, 0.875f, 1};
    fl_model *m = open_model(clipped_model(clip));
    const size_t n_bytes = sizeof(float) * (size_t)(ROWS * m->cfg.hidden_size);
    fl_block block, other;
    assert_int_equal(m->k_format, FL_KV_INT4);
    assert_int_equal(fl__model_check_tensors(m, NULL), FL_OK);
    assert_int_equal(fl__block_load(&block, m, 0, NULL), FL_OK);
    assert_int_equal(fl__block_load(&other, m, 1, NULL), FL_OK);
    assert_memory_equal(block.kv_clip, clip, sizeof clip);
    for (int i = 0; i < 4; i++) assert_true(other.kv_clip[i] == 1); /* no tensor: no clip */
    float *with = run_block(m, &block);
    for (int i = 0; i < 4; i++) { /* every one of them counts, but the last, which is 1 */
        const float saved = block.kv_clip[i];
        block.kv_clip[i] = 1;
        float *without = run_block(m, &block);
        assert_int_equal(memcmp(with, without, n_bytes) == 0, i == 3);
        block.kv_clip[i] = saved;
        fl__free(&without);
    }
    fl__free(&with);
    fl__block_fini(&block);
    fl__block_fini(&other);
    fl__model_close(&m);
}

static void clips_of_one_are_not_written(void **state)
{
    (void)state;
    static const float ones[4] = {1, 1, 1, 1};
    fl_tensors *shard;
    char path[512];
    (void)snprintf(path, sizeof path, "%s/model-00002-of-00005.safetensors",
                   clipped_model(ones));
    assert_int_equal(fl__tensors_open_file(&shard, path, NULL), FL_OK);
    assert_null(fl__tensors_find(shard, tensor));
    fl__tensors_close(&shard);
}

static void what_is_no_clip_is_refused(void **state)
{
    (void)state;
    static const float good[4] = {0.5f, 0.75f, 0.875f, 1};
    static const float bad[] = {0, -0.5f, 1.5f, NAN, INFINITY};
    const char *dir = clipped_model(good);
    for (size_t i = 0; i < FL_COUNT(bad); i++) {
        fl_err err = {""};
        fl_block block;
        fl_test_poke(dir, tensor, 8, &bad[i], sizeof bad[i]);
        fl_model *m = open_model(dir);
        assert_int_equal(fl__block_load(&block, m, 0, &err), FL_E_INPUT);
        assert_non_null(strstr(err.text, tensor));
        assert_int_equal(fl__model_check_tensors(m, &err), FL_E_INPUT);
        assert_non_null(strstr(err.text, tensor));
        fl__model_close(&m);
    }
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(clips_are_written_read_and_used),
    cmocka_unit_test(clips_of_one_are_not_written),
    cmocka_unit_test(what_is_no_clip_is_refused),
};
FL_TEST_MAIN(tests)
