/* engine.c - a model and its tokenizer, opened together. SPDX-License-Identifier: MIT */
#include "api/engine.h"

#include "api/exec_options.h"
#include "base/isa.h"
#include "base/mem.h"

const char *fl__kv_format_name(const fl_model *model)
{
#define BESIDE(K)                                                                              \
    {                                                                                          \
        K "/f32", K "/bf16", K "/int8", K "/int4", K "/int3", K "/int2"                        \
    }
    static const char *const same[FL_N_KV_FORMATS] = {"f32",  "bf16", "int8",
                                                      "int4", "int3", "int2"};
    static const char *const apart[FL_N_KV_FORMATS][FL_N_KV_FORMATS] = {
        BESIDE("f32"),  BESIDE("bf16"), BESIDE("int8"),
        BESIDE("int4"), BESIDE("int3"), BESIDE("int2")};
#undef BESIDE
    const fl_kv_format k = model->k_format, v = model->v_format;
    return k == v ? same[k] : apart[k][v];
}

fl_status fl_engine_open(fl_engine **out, const char *model_dir,
                         const fl_engine_options *options, fl_err *err)
{
    fl_engine_options o;
    fl_status st;

    *out = NULL;
    fl_engine_options_defaults(&o);
    if (options) o = *options;
    fl_engine *e = fl__calloc(1, sizeof *e);
    if (!e) return fl__fail_nomem(err, "engine", sizeof *e);
    if ((st = fl__exec_resolve(&e->exec, o.isa, o.n_threads, &o.log, err))) goto out;
    if ((st = fl__device_open(&e->device, o.device, err))) goto out;
    if ((st = fl__device_load(&e->model, &e->device_model, model_dir, &e->device, &e->exec,
                              err)))
        goto out;
    if ((st = fl__tokenizer_open(&e->tokenizer, model_dir, err))) goto out;
    *out = e;
    e = NULL;
out:
    fl_engine_close(&e);
    return st;
}

void fl_engine_close(fl_engine **engine)
{
    fl_engine *e = *engine;
    if (!e) return;
    fl__tokenizer_close(&e->tokenizer);
    fl__device_model_free(&e->device_model);
    fl__model_close(&e->model);
    fl__device_close(&e->device);
    fl__free(engine);
}

void fl_engine_get_info(const fl_engine *engine, fl_engine_info *info)
{
    const fl_model *m = engine->model;
    *info = (fl_engine_info){
        .family = m->cfg.family == FL_FAMILY_OPT ? "opt" : "llama",
        .quant_method = m->quant_method,
        .isa = fl__isa_name(engine->exec.isa),
        .device = engine->device.name,
        .n_threads = engine->exec.n_threads,
        .n_layers = m->cfg.n_layers,
        .hidden_size = m->cfg.hidden_size,
        .vocab_size = m->cfg.vocab_size,
        .n_positions = m->cfg.n_positions,
        .n_params = m->n_params,
        .w_bits = m->w_bits,
        .a_bits = m->a_bits,
        .kv_format = fl__kv_format_name(m),
        .head_bits = m->head.w_bits,
        .weight_bytes = m->weight_bytes,
    };
}

fl_status fl__engine_check_ids(const fl_model *model, const int32_t *ids, size_t n_ids,
                               fl_err *err)
{
    for (size_t i = 0; i < n_ids; i++)
        if (ids[i] < 0 || ids[i] >= model->cfg.vocab_size)
            return fl__fail(
                err, FL_E_INPUT,
                "tokenizer and model do not fit: %s: token %d at position %zu, but the "
                "embedding has %d rows; use the tokenizer that belongs to the model",
                model->dir, (int)ids[i], i, model->cfg.vocab_size);
    return FL_OK;
}

fl_status fl_engine_encode(int32_t **ids, size_t *n_ids, const fl_engine *engine,
                           const char *text, size_t n_bytes, bool add_special, fl_err *err)
{
    *ids = NULL;
    *n_ids = 0;
    fl_status st =
        fl__tokenizer_encode(ids, n_ids, engine->tokenizer, text, n_bytes, add_special, err);
    if (st == FL_OK) st = fl__engine_check_ids(engine->model, *ids, *n_ids, err);
    if (st != FL_OK) {
        fl__free(ids);
        *n_ids = 0;
    }
    return st;
}
