/* quantized.c - reading our quantised checkpoints. Untrusted input like any checkpoint: shapes,
 * code ranges and
 * scales are checked before a kernel sees them. SPDX-License-Identifier: MIT */
#include "model/quantized.h"

#include "base/json.h"
#include "base/mem.h"
#include "model/family.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

const char *const fl__act_names[3] = {[FL_ACT_FLOAT] = "float",
                                      [FL_ACT_STATIC] = "static",
                                      [FL_ACT_TOKEN] = "token"};

static int index_of(const char *name, const char *const *names, int n)
{
    for (int i = 0; i < n; i++)
        if (strcmp(name, names[i]) == 0) return i;
    return -1;
}

static fl_status bad_bits(const char *where, const char *what, int64_t bits, fl_err *err)
{
    return fl__fail(err, FL_E_INPUT,
                    "quantization_config: %s: %s is %lld; write the model again with flatiron "
                    "quantize",
                    where, what, (long long)bits);
}

/* One element of "sites". */
static fl_status parse_site(fl_model *model, const json_t *o, size_t i, fl_err *err)
{
    char where[64];
    int64_t layer = -1, w_bits = 0, a_bits = 0;
    const char *site = NULL, *act = NULL;
    bool is_unsigned = false, asymmetric = false;
    fl_status st;

    (void)snprintf(where, sizeof where, "quantization_config: sites[%zu]", i);
    if ((st = fl__json_get_int(o, "layer", true, 0, model->cfg.n_layers - 1, &layer, where,
                               err)) ||
        (st = fl__json_get_string(o, "site", true, &site, where, err)) ||
        (st = fl__json_get_string(o, "activation", true, &act, where, err)) ||
        (st = fl__json_get_int(o, "w_bits", true, 3, 16, &w_bits, where, err)) ||
        (st = fl__json_get_int(o, "a_bits", true, 3, 16, &a_bits, where, err)) ||
        (st = fl__json_get_bool(o, "unsigned", false, &is_unsigned, where, err)) ||
        (st = fl__json_get_bool(o, "asymmetric", false, &asymmetric, where, err)))
        return st;
    const int s = index_of(site, fl__site_names, FL_N_SITES),
              a = index_of(act, fl__act_names, 3);
    if (s < 0 || a < 0)
        return fl__fail(err, FL_E_INPUT,
                        "%s: %s \"%s\": unknown name; the file is damaged or of a newer "
                        "version",
                        where, s < 0 ? "site" : "activation", s < 0 ? site : act);
    if (w_bits != 3 && w_bits != 4 && w_bits != 8 && w_bits != 16)
        return bad_bits(where, "w_bits", w_bits, err);
    const bool float_act = a == FL_ACT_FLOAT;
    const bool three = a == FL_ACT_TOKEN && a_bits == 3;
    if (float_act ? a_bits != 16 : (a_bits != 4 && a_bits != 8 && !three))
        return bad_bits(where, "a_bits", a_bits, err);
    if (!float_act && w_bits == 16) return bad_bits(where, "w_bits", w_bits, err);
    if (asymmetric && a != FL_ACT_TOKEN)
        return fl__fail(err, FL_E_INPUT,
                        "%s: asymmetric with activation \"%s\"; only \"token\" can be; the "
                        "file is damaged or of a newer version",
                        where, act);
    model->sites[layer * FL_N_SITES + s] =
        (fl_site_info){(fl_act_kind)a, (int)w_bits, (int)a_bits, is_unsigned, asymmetric};
    return FL_OK;
}

/* "k_bits" or "v_bits". */
static fl_status parse_kv_format(fl_kv_format *format, const json_t *q, const char *field,
                                 fl_err *err)
{
    int64_t bits = 16;
    const fl_status st =
        fl__json_get_int(q, field, false, 2, 16, &bits, "quantization_config", err);
    if (st || fl__kv_format_of_bits(format, (int)bits)) return st;
    return fl__fail(err, FL_E_INPUT,
                    "quantization_config: %s: %lld is none of 16, 8, 4, 3 and 2; write the "
                    "model again with flatiron quantize",
                    field, (long long)bits);
}

/* Bits of the whole model: what all sites agree on, else 0 (mixed). */
static void summarize_bits(fl_model *model)
{
    const size_t n = (size_t)model->cfg.n_layers * FL_N_SITES;
    model->w_bits = model->sites[0].w_bits;
    model->a_bits = model->sites[0].a_bits;
    for (size_t i = 1; i < n; i++) {
        if (model->sites[i].w_bits != model->w_bits) model->w_bits = 0;
        if (model->sites[i].a_bits != model->a_bits) model->a_bits = 0;
    }
}

fl_status fl__quantized_config_load(fl_model *model, fl_err *err)
{
    const json_t *q = model->cfg.quant, *sites = json_object_get(q, "sites");
    const size_t n = (size_t)model->cfg.n_layers * FL_N_SITES;
    int64_t kv_bits = 16, head_bits = 16;
    fl_status st;

    if ((st = fl__json_get_string(q, "method", true, &model->quant_method,
                                  "quantization_config", err)) ||
        (st = fl__json_get_int(q, "kv_bits", false, 16, 16, &kv_bits, "quantization_config",
                               err)) ||
        (st = fl__json_get_int(q, "head_bits", false, 8, 16, &head_bits, "quantization_config",
                               err)) ||
        (st = parse_kv_format(&model->k_format, q, "k_bits", err)) ||
        (st = parse_kv_format(&model->v_format, q, "v_bits", err)))
        return st;
    if (head_bits != 16 && head_bits != 8)
        return bad_bits("head", "head_bits", head_bits, err);
    model->head_bits = (int)head_bits;
    if (!json_is_array(sites) || json_array_size(sites) != n)
        return fl__fail(
            err, FL_E_INPUT,
            "quantization_config: sites: an array of %zu entries is needed, found %zu; the "
            "file is damaged",
            n, json_array_size(sites));
    model->sites = fl__calloc(n, sizeof *model->sites);
    if (!model->sites) return fl__fail_nomem(err, "site table", n * sizeof *model->sites);
    for (size_t i = 0; i < n; i++)
        if ((st = parse_site(model, json_array_get(sites, i), i, err))) return st;
    for (size_t i = 0; i < n; i++)
        if (model->sites[i].w_bits == 0)
            return fl__fail(err, FL_E_INPUT,
                            "quantization_config: sites: no entry for layer %zu, site %s; "
                            "the file is damaged",
                            i / FL_N_SITES, fl__site_names[i % FL_N_SITES]);
    summarize_bits(model);
    return FL_OK;
}

/* Scales must be finite and not negative (a row of zero weights has scale 0 or 1). */
static fl_status check_scales(const float *s, int n, const char *name, bool positive,
                              fl_err *err)
{
    for (int i = 0; i < n; i++)
        if (!isfinite(s[i]) || s[i] < 0 || (positive && s[i] == 0))
            return fl__fail(err, FL_E_INPUT,
                            "quantised model: tensor %s: element %d is %g, no valid scale; the "
                            "file is damaged",
                            name, i, (double)s[i]);
    return FL_OK;
}

static fl_status load_weight_scale(fl_linear *lin, const fl_model *model, int layer, int which,
                                   fl_err *err)
{
    char name[FL_MAX_TENSOR_NAME];
    const fl_tensor_view *view;
    fl__linear_tensor_name(name, model, layer, which, ".weight_scale");
    fl_status st = fl__tensors_require(&view, model->tensors, name, FL_DTYPE_BIT(FL_DTYPE_F32),
                                       -1, NULL, err);
    if (st) return st;
    const bool one = view->n_elements == 1 && lin->n_out != 1;
    if ((st = fl__model_vector(&lin->w_scale, model, name, one ? 1 : lin->n_out, err)))
        return st;
    lin->w_scale_stride = one ? 0 : 1;
    return check_scales(lin->w_scale, one ? 1 : lin->n_out, name, false, err);
}

/* The weight: borrowed for float activations, packed for the integer kernels otherwise. */
static fl_status load_weight(fl_linear *lin, const fl_model *model, int layer, int which,
                             const fl_site *site, int bits, fl_err *err)
{
    char name[FL_MAX_TENSOR_NAME];
    const fl_tensor_view *view;
    const int columns = fl__site_weight_columns(site);
    const int64_t dims[2] = {lin->n_out, bits == 4 ? (columns + 1) / 2 : columns};
    const uint32_t types = bits == 16  ? FL_DTYPES_FLOAT
                           : bits == 8 ? FL_DTYPE_BIT(FL_DTYPE_I8)
                                       : FL_DTYPE_BIT(FL_DTYPE_U8);
    fl__linear_tensor_name(name, model, layer, which, ".weight");
    fl_status st = fl__tensors_require(&view, model->tensors, name, types, 2, dims, err);
    if (st) return st;
    lin->w_bits = bits;
    lin->w_type = view->dtype;
    lin->w = view->data;
    if (bits == 16) return FL_OK;
    if ((st = load_weight_scale(lin, model, layer, which, err))) return st;
    if (site->act == FL_ACT_FLOAT || model->keeps_codes) return FL_OK;
    if (bits == 8) return fl__linear_pack(lin, site, view->data, 8, err);
    int8_t *codes = fl__alloc((size_t)lin->n_out * (size_t)columns, 1);
    if (!codes) return fl__fail_nomem(err, name, (size_t)lin->n_out * (size_t)columns);
    fl__nibbles_unpack(codes, view->data, lin->n_out, columns);
    st = fl__linear_pack(lin, site, codes, 4, err);
    fl__free(&codes);
    return st;
}

static fl_status load_linear(fl_linear *lin, const fl_model *model, int layer, int which,
                             const fl_site *site, int bits, fl_err *err)
{
    char name[FL_MAX_TENSOR_NAME];
    fl__linear_shape(&lin->n_out, &lin->n_in, &model->cfg, which);
    fl_status st = load_weight(lin, model, layer, which, site, bits, err);
    if (st) return st;
    fl__linear_tensor_name(name, model, layer, which, ".bias");
    if (fl__family(&model->cfg)->has_bias(&model->cfg, which) ||
        fl__tensors_find(model->tensors, name))
        st = fl__model_vector(&lin->bias, model, name, lin->n_out, err);
    return st;
}

/* *out [n]: NULL where the tensor is absent. */
static fl_status load_copies(uint16_t **out, int n, const fl_model *model, const char *name,
                             fl_err *err)
{
    const int64_t dims[1] = {n};
    const fl_tensor_view *view;
    if (!fl__tensors_find(model->tensors, name)) return FL_OK;
    fl_status st = fl__tensors_require(&view, model->tensors, name, FL_DTYPE_BIT(FL_DTYPE_U16),
                                       1, dims, err);
    if (st) return st;
    uint16_t *copies = fl__alloc((size_t)n, sizeof *copies);
    *out = copies;
    if (!copies) return fl__fail_nomem(err, name, (size_t)n * sizeof *copies);
    memcpy(copies, view->data, (size_t)n * sizeof *copies);
    for (int c = 0; c < n; c++)
        if (copies[c] < 1 || copies[c] > FL_MAX_COPIES)
            return fl__fail(err, FL_E_INPUT,
                            "quantised model: tensor %s: channel %d has %u copies, 1 to %d are "
                            "possible; the file is damaged",
                            name, c, copies[c], FL_MAX_COPIES);
    return FL_OK;
}

/* Clips of a quantiser's range, as many as dims say; left alone when the tensor is absent. */
static fl_status load_clips(float *clips, int n_dims, const int64_t dims[2],
                            const fl_model *model, const char *name, fl_err *err)
{
    const fl_tensor_view *view;
    if (!fl__tensors_find(model->tensors, name)) return FL_OK;
    const fl_status st = fl__tensors_require(&view, model->tensors, name, FL_DTYPES_FLOAT,
                                             n_dims, dims, err);
    if (st) return st;
    const int n = (int)view->n_elements;
    fl__dtype_to_f32(clips, view->dtype, view->data, (size_t)n);
    for (int i = 0; i < n; i++)
        if (!(clips[i] > 0 && clips[i] <= 1))
            return fl__fail(
                err, FL_E_INPUT,
                "quantised model: tensor %s: element %d is %g, wanted a number above 0 "
                "and at most 1; the file is damaged",
                name, i, (double)clips[i]);
    return FL_OK;
}

/* One pair for the whole site, or one for each of its linears. */
static fl_status load_input_clips(fl_site *site, const fl_model *model, int layer,
                                  int first_linear, fl_err *err)
{
    char name[FL_MAX_TENSOR_NAME];
    float clips[FL_SITE_MAX_LINEARS][2] = {{1, 1}, {1, 1}, {1, 1}};
    fl__linear_tensor_name(name, model, layer, first_linear, ".input_clip");
    const fl_tensor_view *view = fl__tensors_find(model->tensors, name);
    const bool own = view && view->n_dims == 2;
    const int64_t dims[2] = {own ? site->n_linears : 2, 2};
    const fl_status st = load_clips(&clips[0][0], own ? 2 : 1, dims, model, name, err);
    for (int i = 0; i < FL_SITE_MAX_LINEARS; i++) {
        site->clip_max[i] = clips[own ? i : 0][0];
        site->clip_min[i] = clips[own ? i : 0][1];
    }
    site->own_clips = own && site->n_linears > 1;
    return st;
}

/* The transform, and the range of a per-token quantiser. */
static fl_status load_transform(fl_site *site, const fl_model *model, int layer, int which,
                                int first_linear, fl_err *err)
{
    char name[FL_MAX_TENSOR_NAME];
    const fl_status st =
        fl__quantized_transform_load(&site->transform, model, layer, which, err);
    if (st) return st;
    if (site->is_unsigned && site->transform.n1)
        return fl__fail(err, FL_E_INPUT,
                        "quantised model: layer %d, site %s: a transform in front of unsigned "
                        "codes, which have none for its negative values; the file is damaged "
                        "or of a newer version",
                        layer, fl__site_names[which]);
    if (site->act == FL_ACT_TOKEN)
        return load_input_clips(site, model, layer, first_linear, err);
    fl__linear_tensor_name(name, model, layer, first_linear, ".input_clip");
    if (site->act == FL_ACT_STATIC && fl__tensors_find(model->tensors, name))
        return fl__fail(err, FL_E_INPUT,
                        "quantised model: tensor %s: clips of a scale per token, but the site "
                        "has static activations; the file is damaged or of a newer version",
                        name);
    return FL_OK;
}

/* What a static or per-token quantiser needs beside the weights. */
static fl_status load_input(fl_site *site, const fl_model *model, int layer, int first_linear,
                            fl_err *err)
{
    char name[FL_MAX_TENSOR_NAME];
    float *scale = NULL;
    fl_status st = FL_OK;
    if (site->act == FL_ACT_STATIC) {
        fl__linear_tensor_name(name, model, layer, first_linear, ".input_scale");
        if ((st = fl__model_vector(&scale, model, name, 1, err))) return st;
        site->scale = scale[0];
        fl__free(&scale);
        if ((st = check_scales(&site->scale, 1, name, true, err))) return st;
        fl__linear_tensor_name(name, model, layer, first_linear, ".input_copies");
        if ((st = load_copies(&site->copies, site->n_in, model, name, err))) return st;
        fl__linear_tensor_name(name, model, layer, first_linear, ".weight_copies");
        if ((st = load_copies(&site->weight_copies, site->n_in, model, name, err))) return st;
    }
    fl__linear_tensor_name(name, model, layer, first_linear, ".input_multiplier");
    if (fl__tensors_find(model->tensors, name))
        st = fl__model_vector(&site->premul, model, name, site->n_in, err);
    return st;
}

int64_t fl__quantized_weight_extra(const fl_model *model, int layer, int first_linear)
{
    char name[FL_MAX_TENSOR_NAME];
    int n_out, n_in;
    int64_t n = 0;
    fl__linear_shape(&n_out, &n_in, &model->cfg, first_linear);
    fl__linear_tensor_name(name, model, layer, first_linear, ".weight_copies");
    const fl_tensor_view *view = fl__tensors_find(model->tensors, name);
    if (!view) return 0;
    if (view->dtype != FL_DTYPE_U16 || view->n_elements != n_in) return -1;
    const uint16_t *copies = view->data;
    for (int c = 0; c < n_in; c++) {
        if (copies[c] < 1 || copies[c] > FL_MAX_COPIES) return -1;
        n += copies[c] - 1;
    }
    return n;
}

fl_status fl__quantized_site_load(fl_block *block, const fl_model *model, int layer, int which,
                                  fl_err *err)
{
    const fl_site_info *info = &model->sites[layer * FL_N_SITES + which];
    fl_site *site = &block->site[which];
    int linears[FL_SITE_MAX_LINEARS];
    fl_status st;

    (void)fl__site_linears(linears, &model->cfg, which);
    site->act = info->act;
    site->a_bits = info->a_bits;
    site->is_unsigned = info->is_unsigned;
    site->asymmetric = info->asymmetric;
    if ((st = load_transform(site, model, layer, which, linears[0], err)) ||
        (st = load_input(site, model, layer, linears[0], err)))
        return st;
    if (site->n_in + fl__site_n_extra(site) > FL_MAX_CODE_COLUMNS)
        return fl__fail(err, FL_E_INPUT,
                        "quantised model: layer %d, site %s: %d extra columns are more than a "
                        "kernel takes; the file is damaged",
                        layer, fl__site_names[which], fl__site_n_extra(site));
    if ((st = fl__site_prepare(site, err))) return st;
    for (int i = 0; i < site->n_linears && !st; i++)
        st = load_linear(site->linears[i], model, layer, linears[i], site,
                         fl__stored_bits(info->w_bits), err);
    return st;
}

fl_status fl__quantized_attention_load(fl_block *block, const fl_model *model, int layer,
                                       fl_err *err)
{
    char name[FL_MAX_TENSOR_NAME];
    fl__attention_tensor_name(name, model, layer, ".kv_clip");
    const fl_status st =
        load_clips(block->kv_clip, 1, (const int64_t[2]){4}, model, name, err);
    return st ? st : fl__quantized_heads_load(block, model, layer, err);
}

/* ---- head -------------------------------------------------------------------------------- */

void fl__head_scale_name(char name[FL_HEAD_NAME_BYTES], const fl_model *model)
{
    (void)snprintf(name, FL_HEAD_NAME_BYTES, "%s_scale", fl__family(&model->cfg)->head);
}

fl_status fl__quantized_head_load(fl_model *model, bool pack, fl_err *err)
{
    const int N = model->cfg.vocab_size, K = model->cfg.embed_size;
    const char *name = fl__family(&model->cfg)->head;
    const int64_t dims[2] = {N, K};
    fl_linear *head = &model->head;
    fl_site *site = &model->head_site;
    char scale[FL_HEAD_NAME_BYTES];
    const fl_tensor_view *view;
    fl_status st;

    fl__head_scale_name(scale, model);
    if ((st = fl__tensors_require(&view, model->tensors, name, FL_DTYPE_BIT(FL_DTYPE_I8), 2,
                                  dims, err)))
        return st;
    *head = (fl_linear){.n_out = N, .n_in = K, .w_bits = 8, .w_type = view->dtype,
                        .w = view->data, .w_scale_stride = 1};
    site->act = FL_ACT_TOKEN;
    site->a_bits = 8;
    if ((st = fl__model_vector(&head->w_scale, model, scale, N, err)) ||
        (st = check_scales(head->w_scale, N, scale, false, err)) ||
        (st = fl__site_prepare(site, err)))
        return st;
    return pack ? fl__linear_pack(head, site, view->data, 8, err) : FL_OK;
}
