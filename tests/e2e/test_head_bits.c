/* test_head_bits.c - quantize --head-bits 8: the head's tensors are the checkpoint's, rounded
 * to nearest, the embedding stays, what is evaluated is what is generated, and everything
 * says which bits the head has.
 * SPDX-License-Identifier: MIT */
#include "support/decode_once.h"
#include "support/fl_test.h"
#include "support/opt_model.h"
#include "support/quantize_once.h"
#include "support/small_model.h"

#include "format/safetensors.h"
#include "model/model.h"

#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

enum { N_IDS = 40, MAX_VOCAB = 8192 };

static fl_err err;

static const fl_tensor_view *tensor(const fl_tensors *set, const char *name)
{
    const fl_tensor_view *t = fl__tensors_find(set, name);
    if (!t) fail_msg("no tensor %s", name);
    return t;
}

static const char *quantize(const char *model, const char *out, const char *method,
                            int head_bits)
{
    fl_quantize_options o = fl_test_quantize_options(model, out, method);
    o.w_bits = o.a_bits = 8;
    o.head_bits = head_bits;
    return fl_test_quantize(&o, NULL);
}

/* Each code is the nearest one: half a step off at most, and the row's largest is 127. */
static void check_head(const fl_tensors *out, const fl_tensor_view *w)
{
    const fl_tensor_view *codes = tensor(out, "lm_head.weight");
    const fl_tensor_view *scales = tensor(out, "lm_head.weight_scale");
    const int64_t N = w->dims[0], K = w->dims[1];
    assert_true(codes->dtype == FL_DTYPE_I8 && codes->dims[0] == N && codes->dims[1] == K);
    assert_true(scales->dtype == FL_DTYPE_F32 && scales->n_elements == N);
    for (int64_t n = 0; n < N; n++) {
        const double scale = (double)((const float *)scales->data)[n];
        int top = 0;
        for (int64_t k = 0; k < K; k++) {
            const int64_t at = n * K + k;
            const int code = ((const int8_t *)codes->data)[at];
            float x;
            fl__dtype_to_f32(&x, w->dtype,
                             (const char *)w->data + (size_t)at * fl__dtype_bytes(w->dtype), 1);
            assert_true(fabs((double)x - scale * code) <= scale * 0.5001);
            top = FL_MAX(top, abs(code));
        }
        assert_int_equal(top, 127);
    }
}

/* source: the tensor that the head is; the embedding's bytes are those of the checkpoint. */
static void check_files(const char *model, const char *dir, const char *embed,
                        const char *source)
{
    fl_tensors *in, *out;
    assert_int_equal(fl__tensors_open(&in, model, NULL), FL_OK);
    assert_int_equal(fl__tensors_open(&out, dir, NULL), FL_OK);
    check_head(out, tensor(in, source));
    const fl_tensor_view *a = tensor(in, embed), *b = tensor(out, embed);
    assert_true(a->dtype == b->dtype && a->n_bytes == b->n_bytes);
    assert_memory_equal(a->data, b->data, a->n_bytes);
    fl__tensors_close(&in);
    fl__tensors_close(&out);
}

static void check_verify(const char *dir)
{
    char *text;
    if (fl_verify_run(&text, dir, &err)) fail_msg("%s", err.text);
    json_t *doc = json_loads(text, 0, NULL);
    assert_int_equal(json_array_size(json_object_get(doc, "unexpected")), 0);
    json_decref(doc);
    fl_string_free(&text);
}

static void a_tied_head_gets_a_copy_of_its_own(void **state)
{
    (void)state;
    const fl_opt_model m = fl_test_opt_model_defaults();
    const char *model = fl_test_opt_model("opt", &m);
    const char *dir = quantize(model, "out", "rtn", 8);
    static const char embed[] = "model.decoder.embed_tokens.weight";
    check_files(model, dir, embed, embed);
    check_verify(dir);
    fl_test_decodes_as_it_evaluates(dir, "bf16");
}

static void an_untied_head_is_replaced(void **state)
{
    (void)state;
    fl_opt_model m = fl_test_opt_model_defaults();
    m.untied = true;
    m.embed_size = 24;
    m.pre_norm = false;
    const char *model = fl_test_opt_model("opt", &m);
    const char *dir = quantize(model, "out", "flattenquant", 8);
    check_files(model, dir, "model.decoder.embed_tokens.weight", "lm_head.weight");
    check_verify(dir);
    fl_test_decodes_as_it_evaluates(dir, "bf16");
}

static fl_engine *open_engine(const char *dir)
{
    fl_engine_options o;
    fl_engine *engine;
    fl_engine_options_defaults(&o);
    o.n_threads = 1;
    if (fl_engine_open(&engine, dir, &o, &err)) fail_msg("%s", err.text);
    return engine;
}

/* Logits behind N_IDS tokens. */
static int logits_of(float *to, const char *dir)
{
    fl_engine *engine = open_engine(dir);
    fl_engine_info info;
    fl_session *s;
    const float *logits;
    int32_t ids[N_IDS];
    fl_engine_get_info(engine, &info);
    assert_true(info.vocab_size <= MAX_VOCAB);
    for (int i = 0; i < N_IDS; i++) ids[i] = (i * i * 7 + i * 31) % 250;
    assert_int_equal(fl_session_new(&s, engine, NULL, &err), FL_OK);
    assert_int_equal(fl_session_feed(s, ids, N_IDS, &logits, &err), FL_OK);
    memcpy(to, logits, sizeof *to * (size_t)info.vocab_size);
    fl_session_free(&s);
    fl_engine_close(&engine);
    return info.vocab_size;
}

/* Two int8 roundings: each about 1 % of a row or a column in root mean square. */
static void logits_stay_close(void **state)
{
    (void)state;
    static float a[MAX_VOCAB], b[MAX_VOCAB];
    static const char *const methods[] = {"rtn", "flattenquant", "flatquant"};
    for (int i = 0; i < 3; i++) {
        char wide[16], narrow[16];
        double difference = 0, size = 0;
        (void)snprintf(wide, sizeof wide, "a%d", i);
        (void)snprintf(narrow, sizeof narrow, "b%d", i);
        const int n = logits_of(a, quantize(NULL, wide, methods[i], 16));
        assert_int_equal(logits_of(b, quantize(NULL, narrow, methods[i], 8)), n);
        for (int k = 0; k < n; k++) {
            difference += pow((double)a[k] - (double)b[k], 2);
            size += pow((double)a[k], 2);
        }
        assert_true(difference > 0 && sqrt(difference / size) < 0.02);
    }
}

static void everything_says_the_bits(void **state)
{
    (void)state;
    const char *dir = quantize(NULL, "out", "rtn", 8);
    fl_engine *engine = open_engine(dir);
    fl_engine_info info;
    fl_engine_get_info(engine, &info);
    assert_int_equal(info.head_bits, 8);
    fl_engine_close(&engine);
    char *text;
    assert_int_equal(fl_inspect_run(&text, dir, &err), FL_OK);
    json_t *doc = json_loads(text, 0, NULL);
    const json_t *q = json_object_get(doc, "quantization");
    assert_int_equal(json_integer_value(json_object_get(doc, "head_bits")), 8);
    assert_int_equal(json_integer_value(json_object_get(q, "head_bits")), 8);
    json_decref(doc);
    fl_string_free(&text);
}

/* Nothing but the head is quantised. */
static void the_head_alone(void **state)
{
    (void)state;
    const fl_small_model m = fl_test_small_model_defaults();
    fl_quantize_options o =
        fl_test_quantize_options(fl_test_small_model("m", &m), "out", "rtn");
    o.w_bits = o.a_bits = 16;
    o.head_bits = 8;
    fl_test_decodes_as_it_evaluates(fl_test_quantize(&o, NULL), "bf16");
}

static void other_bits_in_the_file_are_refused(void **state)
{
    (void)state;
    const char *dir = quantize(NULL, "out", "rtn", 8);
    char path[512];
    json_error_t why;
    fl_engine_options o;
    fl_engine *engine;
    (void)snprintf(path, sizeof path, "%s/config.json", dir);
    json_t *doc = json_load_file(path, 0, &why);
    json_t *q = json_object_get(doc, "quantization_config");
    fl_engine_options_defaults(&o);
    (void)json_object_set_new(q, "head_bits", json_integer(9));
    assert_int_equal(json_dump_file(doc, path, 0), 0);
    assert_int_equal(fl_engine_open(&engine, dir, &o, &err), FL_E_INPUT);
    assert_non_null(strstr(err.text, "head_bits"));
    /* a file that says 16 has a head of floats, not of codes */
    (void)json_object_set_new(q, "head_bits", json_integer(16));
    (void)json_object_set_new(doc, "tie_word_embeddings", json_false());
    assert_int_equal(json_dump_file(doc, path, 0), 0);
    assert_int_equal(fl_engine_open(&engine, dir, &o, &err), FL_E_INPUT);
    assert_non_null(strstr(err.text, "lm_head.weight"));
    json_decref(doc);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(a_tied_head_gets_a_copy_of_its_own),
    cmocka_unit_test(an_untied_head_is_replaced),
    cmocka_unit_test(logits_stay_close),
    cmocka_unit_test(everything_says_the_bits),
    cmocka_unit_test(the_head_alone),
    cmocka_unit_test(other_bits_in_the_file_are_refused),
};
FL_TEST_MAIN(tests)
