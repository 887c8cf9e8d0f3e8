/* model.c - opening a model directory and loading its blocks.
 *
 * Float weights are borrowed from the mapped checkpoint; norms and biases (small, and read by
 * code that wants float32) are copied. Integer weights are repacked into the layout of the
 * kernels.
 * SPDX-License-Identifier: MIT */
#include "model/model.h"

#include "base/mem.h"
#include "model/family.h"
#include "model/quantized.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

/* A vector of n floats of any float type, copied to float32. */
fl_status fl__model_vector(float **out, const fl_model *model, const char *name, int n,
                           fl_err *err)
{
    const int64_t dims[1] = {n};
    const fl_tensor_view *view;
    *out = NULL;
    fl_status st =
        fl__tensors_require(&view, model->tensors, name, FL_DTYPES_FLOAT, 1, dims, err);
    if (st) return st;
    float *x = fl__alloc((size_t)n, sizeof *x);
    if (!x) return fl__fail_nomem(err, name, (size_t)n * sizeof *x);
    fl__dtype_to_f32(x, view->dtype, view->data, (size_t)n);
    *out = x;
    return FL_OK;
}

/* A float matrix, borrowed. */
static fl_status load_matrix(fl_linear *lin, const fl_model *model, const char *name, int n_out,
                             int n_in, fl_err *err)
{
    const int64_t dims[2] = {n_out, n_in};
    const fl_tensor_view *view;
    const fl_status st =
        fl__tensors_require(&view, model->tensors, name, FL_DTYPES_FLOAT, 2, dims, err);
    if (st) return st;
    *lin = (fl_linear){.n_out = n_out, .n_in = n_in, .w_type = view->dtype, .w = view->data,
                       .w_bits = 16};
    return FL_OK;
}

static fl_status load_norm(fl_norm *norm, const fl_model *model, const char *name,
                           bool has_bias, fl_err *err)
{
    char full[FL_MAX_TENSOR_NAME + 8];
    (void)snprintf(full, sizeof full, "%s.weight", name);
    fl_status st = fl__model_vector(&norm->gain, model, full, model->cfg.hidden_size, err);
    if (!st && has_bias) {
        (void)snprintf(full, sizeof full, "%s.bias", name);
        st = fl__model_vector(&norm->bias, model, full, model->cfg.hidden_size, err);
    }
    return st;
}

/* ---- blocks ------------------------------------------------------------------------------ */

void fl__block_fini(fl_block *block)
{
    for (int i = 0; i < 2; i++) {
        fl__free(&block->norm[i].gain);
        fl__free(&block->norm[i].bias);
    }
    for (int i = 0; i < FL_N_SITES; i++) fl__site_fini(&block->site[i]);
    for (int i = 0; i < FL_N_LINEARS; i++) fl__linear_fini(&block->linear[i]);
    fl__transform_fini(&block->head_transform_q);
    fl__transform_fini(&block->head_transform_k);
}

static fl_status load_float_linear(fl_linear *lin, const fl_model *model, int layer, int which,
                                   fl_err *err)
{
    char name[FL_MAX_TENSOR_NAME];
    int n_out, n_in;
    fl__linear_shape(&n_out, &n_in, &model->cfg, which);
    fl__linear_tensor_name(name, model, layer, which, ".weight");
    fl_status st = load_matrix(lin, model, name, n_out, n_in, err);
    if (st) return st;
    fl__linear_tensor_name(name, model, layer, which, ".bias");
    /* A quantised model may have gained a bias (bias correction) that the family does not ask
     * for. */
    const bool extra = model->sites && fl__tensors_find(model->tensors, name);
    if (fl__family(&model->cfg)->has_bias(&model->cfg, which) || extra)
        st = fl__model_vector(&lin->bias, model, name, n_out, err);
    return st;
}

static fl_status load_site(fl_block *block, const fl_model *model, int layer, int which,
                           fl_err *err)
{
    fl_site *site = &block->site[which];
    int linears[FL_SITE_MAX_LINEARS], n_out;
    site->n_linears = fl__site_linears(linears, &model->cfg, which);
    for (int i = 0; i < site->n_linears; i++) site->linears[i] = &block->linear[linears[i]];
    fl__linear_shape(&n_out, &site->n_in, &model->cfg, linears[0]);
    site->act = FL_ACT_FLOAT;
    site->a_bits = 16;
    if (model->sites) return fl__quantized_site_load(block, model, layer, which, err);
    fl_status st = FL_OK;
    for (int i = 0; i < site->n_linears && !st; i++)
        st = load_float_linear(site->linears[i], model, layer, linears[i], err);
    return st ? st : fl__site_prepare(site, err);
}

fl_status fl__block_load(fl_block *block, const fl_model *model, int layer, fl_err *err)
{
    char name[FL_MAX_TENSOR_NAME];
    const bool layer_norm = model->cfg.family == FL_FAMILY_OPT;
    fl_status st = FL_OK;
    memset(block, 0, sizeof *block);
    for (int i = 0; i < 4; i++) block->kv_clip[i] = 1;
    for (int i = 0; i < 2 && !st; i++) {
        fl__norm_tensor_name(name, model, layer, i, "");
        st = load_norm(&block->norm[i], model, name, layer_norm, err);
    }
    for (int i = 0; i < FL_N_SITES && !st; i++) st = load_site(block, model, layer, i, err);
    if (!st && model->sites) st = fl__quantized_attention_load(block, model, layer, err);
    if (st) fl__block_fini(block);
    return st;
}

/* ---- what surrounds the blocks ----------------------------------------------------------- */

static fl_status find_prefix(fl_model *model, fl_err *err)
{
    const fl_family_def *family = fl__family(&model->cfg);
    char name[FL_MAX_TENSOR_NAME];
    for (int i = 0; family->prefixes[i]; i++) {
        model->prefix = family->prefixes[i];
        (void)snprintf(name, sizeof name, "%s%s", model->prefix, family->embed);
        if (fl__tensors_find(model->tensors, name)) return FL_OK;
    }
    return fl__fail(
        err, FL_E_INPUT,
        "checkpoint: %s: no tensor %s%s; the checkpoint is incomplete or its config.json "
        "belongs to another model",
        model->dir, family->prefixes[0], family->embed);
}

static fl_status load_embeddings(fl_model *model, fl_err *err)
{
    const fl_model_config *cfg = &model->cfg;
    const fl_family_def *family = fl__family(cfg);
    char name[FL_MAX_TENSOR_NAME];
    (void)snprintf(name, sizeof name, "%s%s", model->prefix, family->embed);
    fl_status st =
        load_matrix(&model->embed, model, name, cfg->vocab_size, cfg->embed_size, err);
    if (!st && family->positions) {
        (void)snprintf(name, sizeof name, "%s%s", model->prefix, family->positions);
        st = load_matrix(&model->positions, model, name,
                         cfg->n_positions + family->position_offset, cfg->hidden_size, err);
    }
    if (!st && cfg->embed_size != cfg->hidden_size) {
        (void)snprintf(name, sizeof name, "%s%s", model->prefix, family->project_in);
        st = load_matrix(&model->project_in, model, name, cfg->hidden_size, cfg->embed_size,
                         err);
        if (st) return st;
        (void)snprintf(name, sizeof name, "%s%s", model->prefix, family->project_out);
        st = load_matrix(&model->project_out, model, name, cfg->embed_size, cfg->hidden_size,
                         err);
    }
    return st;
}

static fl_status load_head(fl_model *model, bool streaming, fl_err *err)
{
    const fl_model_config *cfg = &model->cfg;
    char name[FL_MAX_TENSOR_NAME];
    if (cfg->final_norm) {
        (void)snprintf(name, sizeof name, "%s%s", model->prefix, fl__family(cfg)->final_norm);
        const fl_status st =
            load_norm(&model->final_norm, model, name, cfg->family == FL_FAMILY_OPT, err);
        if (st) return st;
    }
    model->head_site = (fl_site){.act = FL_ACT_FLOAT,
                                 .a_bits = 16,
                                 .n_in = cfg->embed_size,
                                 .n_linears = 1,
                                 .linears = {&model->head}};
    if (model->head_bits == 8)
        return fl__quantized_head_load(model, !streaming && !model->keeps_codes, err);
    if (cfg->tied_head) {
        model->head = model->embed;
        return FL_OK;
    }
    return load_matrix(&model->head, model, fl__family(cfg)->head, cfg->vocab_size,
                       cfg->embed_size, err);
}

/* Inverse frequency i of D/2, with the scaling of long-context variants (LLaMA 3's as published
 * with it: wavelengths above low/high thresholds divided, in between interpolated). */
static float inverse_frequency(const fl_model_config *cfg, int i)
{
    const double base = 1.0 / pow(cfg->rope.theta, 2.0 * i / cfg->head_dim);
    const double two_pi = 6.283185307179586476925;
    if (cfg->rope.kind == FL_ROPE_LINEAR) return (float)(base / cfg->rope.factor);
    if (cfg->rope.kind != FL_ROPE_LLAMA3) return (float)base;
    const double original = cfg->rope.original_positions, wave = two_pi / base;
    if (wave < original / cfg->rope.high_freq_factor) return (float)base;
    if (wave > original / cfg->rope.low_freq_factor) return (float)(base / cfg->rope.factor);
    const double smooth = (original / wave - cfg->rope.low_freq_factor) /
                          (cfg->rope.high_freq_factor - cfg->rope.low_freq_factor);
    return (float)((1 - smooth) * base / cfg->rope.factor + smooth * base);
}

static fl_status build_rope(fl_model *model, fl_err *err)
{
    const fl_model_config *cfg = &model->cfg;
    const int half = cfg->head_dim / 2;
    const size_t n = (size_t)cfg->n_positions * (size_t)half;
    if (cfg->rope.kind == FL_ROPE_NONE) return FL_OK;
    model->rope_cos = fl__alloc(n, sizeof(float));
    model->rope_sin = fl__alloc(n, sizeof(float));
    if (!model->rope_cos || !model->rope_sin)
        return fl__fail_nomem(err, "rotary table", 2 * n * 4);
    for (int i = 0; i < half; i++) {
        const float f = inverse_frequency(cfg, i);
        for (int p = 0; p < cfg->n_positions; p++) {
            const float angle = (float)p * f; /* float32, as the models were trained */
            model->rope_cos[(size_t)p * (size_t)half + (size_t)i] = (float)cos((double)angle);
            model->rope_sin[(size_t)p * (size_t)half + (size_t)i] = (float)sin((double)angle);
        }
    }
    return FL_OK;
}

static fl_status load_blocks(fl_model *model, fl_err *err)
{
    const size_t n = (size_t)model->cfg.n_layers;
    model->blocks = fl__calloc(n, sizeof *model->blocks);
    if (!model->blocks) return fl__fail_nomem(err, "blocks", n * sizeof *model->blocks);
    fl_status st = FL_OK;
    for (int i = 0; i < model->cfg.n_layers && !st; i++)
        st = fl__block_load(&model->blocks[i], model, i, err);
    return st;
}

static size_t linear_bytes(const fl_linear *lin)
{
    const size_t n = (size_t)lin->n_out * (size_t)lin->n_in;
    if (lin->packed.data) return lin->packed.n_bytes;
    return lin->w_bits == 16 ? n * fl__dtype_bytes(lin->w_type) : n * (size_t)lin->w_bits / 8;
}

/* Sums that people ask for: parameters of the architecture, bytes of weights per forward
 * pass. */
static void count(fl_model *model)
{
    const fl_model_config *cfg = &model->cfg;
    const int64_t rows =
        cfg->vocab_size + (model->positions.n_out ? model->positions.n_out : 0);
    const int norm_vectors = cfg->family == FL_FAMILY_OPT ? 2 : 1;
    int64_t n = (int64_t)cfg->vocab_size * cfg->embed_size +
                (rows - cfg->vocab_size) * cfg->hidden_size;
    if (!cfg->tied_head) n += (int64_t)cfg->vocab_size * cfg->embed_size;
    if (model->project_in.n_out) n += 2 * (int64_t)cfg->hidden_size * cfg->embed_size;
    if (cfg->final_norm) n += (int64_t)norm_vectors * cfg->hidden_size;
    for (int lin = 0; lin < FL_N_LINEARS; lin++) {
        int n_out, n_in;
        fl__linear_shape(&n_out, &n_in, cfg, lin);
        const bool bias = n_out && fl__family(cfg)->has_bias(cfg, lin);
        n += ((int64_t)n_out * n_in + (bias ? n_out : 0)) * cfg->n_layers;
    }
    model->n_params = n + 2 * (int64_t)norm_vectors * cfg->hidden_size * cfg->n_layers;
    model->weight_bytes = linear_bytes(&model->head);
    for (int i = 0; model->blocks && i < cfg->n_layers; i++)
        for (int lin = 0; lin < FL_N_LINEARS; lin++)
            model->weight_bytes += linear_bytes(&model->blocks[i].linear[lin]);
}

fl_status fl__model_open_config(fl_model **out, const char *dir, fl_err *err)
{
    fl_status st;
    fl_model *model;

    *out = NULL;
    model = fl__calloc(1, sizeof *model);
    if (!model) return fl__fail_nomem(err, "model", sizeof *model);
    model->dir = fl__strdup(dir);
    if (!model->dir) {
        st = fl__fail_nomem(err, "model", strlen(dir));
        goto out;
    }
    model->quant_method = "none";
    model->w_bits = model->a_bits = model->head_bits = 16;
    model->k_format = model->v_format = FL_KV_F32;
    model->stream_k_format = model->stream_v_format = FL_KV_BF16;
    if ((st = fl__model_config_load(&model->cfg, dir, err))) goto out;
    if ((st = fl__tensors_open(&model->tensors, dir, err))) goto out;
    if ((st = find_prefix(model, err))) goto out;
    if (model->cfg.quant && (st = fl__quantized_config_load(model, err))) goto out;
    fl__family(&model->cfg)->build(&model->program, &model->cfg);
    *out = model;
    model = NULL;
out:
    fl__model_close(&model);
    return st;
}

static fl_status open_model(fl_model **out, const char *dir, bool streaming, bool keeps_codes,
                            fl_err *err)
{
    fl_model *model;
    *out = NULL;
    fl_status st = fl__model_open_config(&model, dir, err);
    if (!st) model->keeps_codes = keeps_codes;
    if (!st) st = load_embeddings(model, err);
    if (!st) st = load_head(model, streaming, err);
    if (!st && !streaming) st = load_blocks(model, err);
    if (!st) st = fl__model_complete(model, err);
    if (st) {
        fl__model_close(&model);
        return st;
    }
    *out = model;
    return FL_OK;
}

fl_status fl__model_open(fl_model **out, const char *dir, const fl_exec *ex, bool streaming,
                         fl_err *err)
{
    (void)ex;
    return open_model(out, dir, streaming, false, err);
}

fl_status fl__model_open_codes(fl_model **out, const char *dir, fl_err *err)
{
    return open_model(out, dir, false, true, err);
}

fl_status fl__model_complete(fl_model *model, fl_err *err)
{
    count(model);
    return build_rope(model, err);
}

size_t fl__model_table_bytes(const fl_model *model)
{
    const fl_model_config *cfg = &model->cfg;
    const size_t n_tensors = fl__tensors_count(model->tensors);
    size_t n =
        sizeof *model + (cfg->final_norm ? 2 * (size_t)cfg->hidden_size * sizeof(float) : 0);
    if (model->rope_cos)
        n += 2 * (size_t)cfg->n_positions * (size_t)(cfg->head_dim / 2) * sizeof(float);
    for (size_t i = 0; i < n_tensors; i++)
        n += sizeof(fl_tensor_view) + sizeof(void *) +
             strlen(fl__tensors_at(model->tensors, i)->name) + 1;
    return n;
}

void fl__model_close(fl_model **model)
{
    fl_model *m = *model;
    if (!m) return;
    for (int i = 0; m->blocks && i < m->cfg.n_layers; i++) fl__block_fini(&m->blocks[i]);
    fl__free(&m->blocks);
    fl__site_fini(&m->head_site);
    fl__linear_fini(&m->head);
    fl__linear_fini(&m->embed);
    fl__linear_fini(&m->positions);
    fl__linear_fini(&m->project_in);
    fl__linear_fini(&m->project_out);
    fl__free(&m->final_norm.gain);
    fl__free(&m->final_norm.bias);
    fl__free(&m->rope_cos);
    fl__free(&m->rope_sin);
    fl__free(&m->sites);
    fl__free(&m->dir);
    fl__model_config_fini(&m->cfg);
    fl__tensors_close(&m->tensors);
    fl__free(model);
}

fl_kv_options fl__model_kv_options(const fl_model *model, int n_sequences, int n_positions)
{
    return (fl_kv_options){.n_layers = model->cfg.n_layers,
                           .n_kv_heads = model->cfg.n_kv_heads,
                           .head_dim = model->cfg.head_dim,
                           .n_sequences = n_sequences,
                           .n_positions = n_positions,
                           .k_format = model->k_format,
                           .v_format = model->v_format};
}
