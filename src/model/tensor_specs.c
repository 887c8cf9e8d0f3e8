/* tensor_specs.c - the list of a model's tensors. SPDX-License-Identifier: MIT */
#include "model/tensor_specs.h"

#include "model/family.h"
#include "model/quantized.h"

#include <math.h>
#include <stdio.h>

enum { CHUNK = 4096 };

typedef struct walk {
    const fl_model *model;
    fl_tensor_spec_fn *fn;
    void *user;
} walk;

static void emit(const walk *w, const char *name, fl_tensor_spec spec)
{
    spec.name = name;
    w->fn(w->user, &spec);
}

static fl_tensor_spec float_vector(int n, bool optional)
{
    return (fl_tensor_spec){.role = FL_ROLE_FLOAT,
                            .optional = optional,
                            .dtypes = FL_DTYPES_FLOAT,
                            .n_dims = 1,
                            .dims = {n}};
}

static fl_tensor_spec float_matrix(int n_out, int n_in)
{
    return (fl_tensor_spec){
        .role = FL_ROLE_FLOAT, .dtypes = FL_DTYPES_FLOAT, .n_dims = 2, .dims = {n_out, n_in}};
}

/* name: without ".weight". */
static void emit_norm(const walk *w, const char *name)
{
    const fl_model_config *cfg = &w->model->cfg;
    char full[FL_MAX_TENSOR_NAME];
    (void)snprintf(full, sizeof full, "%s.weight", name);
    emit(w, full, float_vector(cfg->hidden_size, false));
    if (cfg->family != FL_FAMILY_OPT) return;
    (void)snprintf(full, sizeof full, "%s.bias", name);
    emit(w, full, float_vector(cfg->hidden_size, false));
}

/* part: after the prefix. */
static void emit_matrix(const walk *w, const char *part, int n_out, int n_in)
{
    char full[FL_MAX_TENSOR_NAME];
    (void)snprintf(full, sizeof full, "%s%s", w->model->prefix, part);
    emit(w, full, float_matrix(n_out, n_in));
}

static void emit_head(const walk *w)
{
    const fl_model_config *cfg = &w->model->cfg;
    const char *name = fl__family(cfg)->head;
    char scale_name[FL_HEAD_NAME_BYTES];
    fl_tensor_spec weight = float_matrix(cfg->vocab_size, cfg->embed_size);
    fl_tensor_spec scale = float_vector(cfg->vocab_size, false);
    if (w->model->head_bits == 16) {
        if (!cfg->tied_head) emit(w, name, weight);
        return;
    }
    weight.role = FL_ROLE_CODES8;
    weight.dtypes = FL_DTYPE_BIT(FL_DTYPE_I8);
    emit(w, name, weight);
    scale.role = FL_ROLE_WEIGHT_SCALE;
    scale.dtypes = FL_DTYPE_BIT(FL_DTYPE_F32);
    fl__head_scale_name(scale_name, w->model);
    emit(w, scale_name, scale);
}

static void emit_surroundings(const walk *w)
{
    const fl_model_config *cfg = &w->model->cfg;
    const fl_family_def *family = fl__family(cfg);
    char name[FL_MAX_TENSOR_NAME];
    emit_matrix(w, family->embed, cfg->vocab_size, cfg->embed_size);
    if (family->positions)
        emit_matrix(w, family->positions, cfg->n_positions + family->position_offset,
                    cfg->hidden_size);
    if (cfg->embed_size != cfg->hidden_size) {
        emit_matrix(w, family->project_in, cfg->hidden_size, cfg->embed_size);
        emit_matrix(w, family->project_out, cfg->embed_size, cfg->hidden_size);
    }
    if (cfg->final_norm) {
        (void)snprintf(name, sizeof name, "%s%s", w->model->prefix, family->final_norm);
        emit_norm(w, name);
    }
    emit_head(w);
}

/* n_extra: columns of digits beyond the first; < 0: not known, any number will do. */
static void emit_linear(const walk *w, int layer, int linear, int w_bits, int64_t n_extra)
{
    const fl_model *model = w->model;
    char name[FL_MAX_TENSOR_NAME];
    int n_out, n_in;
    fl__linear_shape(&n_out, &n_in, &model->cfg, linear);
    fl_tensor_spec weight = float_matrix(n_out, n_in);
    const int64_t columns = n_extra < 0 ? -1 : n_in + n_extra;
    if (w_bits == 8) {
        weight.role = FL_ROLE_CODES8;
        weight.dtypes = FL_DTYPE_BIT(FL_DTYPE_I8);
        weight.dims[1] = columns;
    } else if (w_bits == 4) {
        weight.role = FL_ROLE_CODES4;
        weight.dtypes = FL_DTYPE_BIT(FL_DTYPE_U8);
        weight.dims[1] = columns < 0 ? -1 : (columns + 1) / 2;
        weight.n_codes = columns;
    }
    fl__linear_tensor_name(name, model, layer, linear, ".weight");
    emit(w, name, weight);
    if (w_bits != 16) {
        fl_tensor_spec scale = float_vector(n_out, false);
        scale.role = FL_ROLE_WEIGHT_SCALE;
        scale.dtypes = FL_DTYPE_BIT(FL_DTYPE_F32);
        fl__linear_tensor_name(name, model, layer, linear, ".weight_scale");
        emit(w, name, scale);
    }
    /* bias correction may have given a quantised layer the bias that its family lacks */
    const bool has_bias = fl__family(&model->cfg)->has_bias(&model->cfg, linear);
    fl__linear_tensor_name(name, model, layer, linear, ".bias");
    if (has_bias || model->sites) emit(w, name, float_vector(n_out, !has_bias));
}

static void emit_input(const walk *w, int layer, int first_linear, const fl_site_info *info)
{
    char name[FL_MAX_TENSOR_NAME];
    int n_out, n_in;
    fl__linear_shape(&n_out, &n_in, &w->model->cfg, first_linear);
    if (info->act == FL_ACT_STATIC) {
        fl_tensor_spec scale = float_vector(1, false);
        scale.role = FL_ROLE_INPUT_SCALE;
        fl__linear_tensor_name(name, w->model, layer, first_linear, ".input_scale");
        emit(w, name, scale);
        fl_tensor_spec copies = float_vector(n_in, true);
        copies.role = FL_ROLE_COPIES;
        copies.dtypes = FL_DTYPE_BIT(FL_DTYPE_U16);
        fl__linear_tensor_name(name, w->model, layer, first_linear, ".input_copies");
        emit(w, name, copies);
        fl__linear_tensor_name(name, w->model, layer, first_linear, ".weight_copies");
        emit(w, name, copies);
    }
    fl__linear_tensor_name(name, w->model, layer, first_linear, ".input_multiplier");
    emit(w, name, float_vector(n_in, true));
}

static fl_tensor_spec clips(int n)
{
    fl_tensor_spec clip = float_vector(n, true);
    clip.role = FL_ROLE_CLIP;
    clip.dtypes = FL_DTYPE_BIT(FL_DTYPE_F32);
    return clip;
}

/* A pair for the site, or a row for each of its linears. */
static fl_tensor_spec input_clips(const walk *w, const char *name, int site)
{
    const fl_tensor_view *view = fl__tensors_find(w->model->tensors, name);
    fl_tensor_spec clip = clips(2);
    int linears[FL_SITE_MAX_LINEARS];
    if (!view || view->n_dims != 2) return clip;
    clip.n_dims = 2;
    clip.dims[0] = fl__site_linears(linears, &w->model->cfg, site);
    clip.dims[1] = 2;
    return clip;
}

static fl_tensor_spec square(int n)
{
    fl_tensor_spec factor = float_matrix(n, n);
    factor.optional = true;
    factor.dtypes = FL_DTYPE_BIT(FL_DTYPE_F32);
    return factor;
}

static void emit_attention(const walk *w, int layer)
{
    char name[FL_MAX_TENSOR_NAME];
    fl__attention_tensor_name(name, w->model, layer, ".kv_clip");
    emit(w, name, clips(4));
    fl__attention_tensor_name(name, w->model, layer, ".key_transform");
    emit(w, name, square(w->model->cfg.head_dim));
    fl__attention_tensor_name(name, w->model, layer, ".query_transform");
    emit(w, name, square(w->model->cfg.head_dim));
}

/* Sizes that do not fit together are the loader's to explain: any shape passes here. */
static void emit_transform(const walk *w, int layer, int site, int first_linear,
                           const fl_site_info *info)
{
    char name[FL_MAX_TENSOR_NAME];
    int n1 = 0, n2 = 0;
    const bool fits =
        fl__quantized_transform_sizes(&n1, &n2, w->model, layer, site, NULL) == FL_OK;
    fl_tensor_spec left = square(n1), right = square(n2);
    if (!fits) left.n_dims = right.n_dims = -1;
    fl__linear_tensor_name(name, w->model, layer, first_linear, ".transform_left");
    emit(w, name, left);
    fl__linear_tensor_name(name, w->model, layer, first_linear, ".transform_right");
    emit(w, name, right);
    if (info->act != FL_ACT_TOKEN) return;
    fl__linear_tensor_name(name, w->model, layer, first_linear, ".input_clip");
    emit(w, name, input_clips(w, name, site));
}

static void emit_block(const walk *w, int layer)
{
    const fl_model *model = w->model;
    char name[FL_MAX_TENSOR_NAME];
    for (int i = 0; i < 2; i++) {
        fl__norm_tensor_name(name, model, layer, i, "");
        emit_norm(w, name);
    }
    if (model->sites) emit_attention(w, layer);
    for (int site = 0; site < FL_N_SITES; site++) {
        const fl_site_info *info =
            model->sites ? &model->sites[layer * FL_N_SITES + site] : NULL;
        int linears[FL_SITE_MAX_LINEARS];
        const int n = fl__site_linears(linears, &model->cfg, site);
        const bool split = info && info->act == FL_ACT_STATIC;
        const int64_t n_extra =
            split ? fl__quantized_weight_extra(model, layer, linears[0]) : 0;
        const int w_bits = info ? fl__stored_bits(info->w_bits) : 16;
        if (info) {
            emit_input(w, layer, linears[0], info);
            emit_transform(w, layer, site, linears[0], info);
        }
        for (int i = 0; i < n; i++) emit_linear(w, layer, linears[i], w_bits, n_extra);
    }
}

void fl__model_tensor_specs(const fl_model *model, fl_tensor_spec_fn *fn, void *user)
{
    const walk w = {model, fn, user};
    emit_surroundings(&w);
    for (int layer = 0; layer < model->cfg.n_layers; layer++) emit_block(&w, layer);
}

/* ---- contents ---------------------------------------------------------------------------- */

/* "-128", "nan": the first number of a tensor that cannot be, and where it stands. */
typedef struct bad_number {
    int64_t at;
    double value;
} bad_number;

static bool float_is_good(fl_tensor_role role, float x)
{
    if (!isfinite(x)) return false;
    if (role == FL_ROLE_WEIGHT_SCALE) return x >= 0;
    if (role == FL_ROLE_CLIP) return x > 0 && x <= 1;
    return role != FL_ROLE_INPUT_SCALE || x > 0;
}

static bool scan_floats(bad_number *bad, const fl_tensor_view *t, fl_tensor_role role)
{
    float chunk[CHUNK];
    const size_t elem_bytes = fl__dtype_bytes(t->dtype), n = (size_t)t->n_elements;
    for (size_t at = 0; at < n; at += CHUNK) {
        const size_t m = FL_MIN(n - at, (size_t)CHUNK);
        fl__dtype_to_f32(chunk, t->dtype, (const char *)t->data + at * elem_bytes, m);
        for (size_t i = 0; i < m; i++) {
            if (float_is_good(role, chunk[i])) continue;
            *bad = (bad_number){(int64_t)(at + i), (double)chunk[i]};
            return true;
        }
    }
    return false;
}

static bool scan_codes8(bad_number *bad, const fl_tensor_view *t)
{
    const int8_t *codes = t->data;
    for (int64_t i = 0; i < t->n_elements; i++) {
        if (codes[i] != -128) continue;
        *bad = (bad_number){i, -128};
        return true;
    }
    return false;
}

/* All 16 nibbles are codes; only the one that fills up an odd row must be 0. */
static bool scan_codes4(bad_number *bad, const fl_tensor_view *t, int64_t n_codes)
{
    const uint8_t *bytes = t->data;
    if (n_codes < 0 || n_codes % 2 == 0) return false;
    for (int64_t row = 0; row < t->dims[0]; row++) {
        const int64_t last = (row + 1) * t->dims[1] - 1;
        if (bytes[last] >> 4 == 0) continue;
        *bad = (bad_number){last, bytes[last]};
        return true;
    }
    return false;
}

static bool scan_copies(bad_number *bad, const fl_tensor_view *t)
{
    const uint16_t *copies = t->data;
    for (int64_t i = 0; i < t->n_elements; i++) {
        if (copies[i] >= 1 && copies[i] <= FL_MAX_COPIES) continue;
        *bad = (bad_number){i, copies[i]};
        return true;
    }
    return false;
}

static const char *scan(bad_number *bad, const fl_tensor_view *t, const fl_tensor_spec *spec)
{
    switch (spec->role) {
    case FL_ROLE_FLOAT:
        return scan_floats(bad, t, spec->role) ? "finite numbers" : NULL;
    case FL_ROLE_WEIGHT_SCALE:
        return scan_floats(bad, t, spec->role) ? "finite numbers of at least 0" : NULL;
    case FL_ROLE_INPUT_SCALE:
        return scan_floats(bad, t, spec->role) ? "a finite number above 0" : NULL;
    case FL_ROLE_CLIP:
        return scan_floats(bad, t, spec->role) ? "numbers above 0 and at most 1" : NULL;
    case FL_ROLE_CODES8:
        return scan_codes8(bad, t) ? "codes from -127 to 127" : NULL;
    case FL_ROLE_CODES4:
        return scan_codes4(bad, t, spec->n_codes) ? "0 behind an odd row" : NULL;
    case FL_ROLE_COPIES:
        return scan_copies(bad, t) ? "1 to 4096 copies" : NULL;
    }
    return NULL;
}

fl_status fl__tensor_check(const fl_tensors *set, const fl_tensor_spec *spec, fl_err *err)
{
    const fl_tensor_view *t = fl__tensors_find(set, spec->name);
    bad_number bad;
    if (!t && spec->optional) return FL_OK;
    const bool one_for_all = t && spec->role == FL_ROLE_WEIGHT_SCALE && t->n_elements == 1;
    const fl_status st = fl__tensors_require(&t, set, spec->name, spec->dtypes,
                                             one_for_all ? -1 : spec->n_dims, spec->dims, err);
    if (st) return st;
    const char *wanted = scan(&bad, t, spec);
    if (!wanted) return FL_OK;
    return fl__fail(err, FL_E_INPUT,
                    "bad tensor: %s: %s: element %lld is %g, wanted %s; get the file again or "
                    "quantise again",
                    t->file, t->name, (long long)bad.at, bad.value, wanted);
}

typedef struct check {
    const fl_model *model;
    fl_status status;
    fl_err *err;
} check;

static void check_one(void *user, const fl_tensor_spec *spec)
{
    check *c = user;
    if (!c->status) c->status = fl__tensor_check(c->model->tensors, spec, c->err);
}

fl_status fl__model_check_tensors(const fl_model *model, fl_err *err)
{
    check c = {.model = model, .err = err};
    fl__model_tensor_specs(model, check_one, &c);
    return c.status;
}
