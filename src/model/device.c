/* device.c - putting a model on a device.
 *
 * A block of the model holds small things in memory (norms, scales, clips, factors) and borrows
 * its weights from the checkpoint's map as they lie in the file; they go from there to the
 * device, where the backend brings them into its order. Nothing is held twice on the host.
 * SPDX-License-Identifier: MIT */
#include "base/mem.h"
#include "model/device_parts.h"
#include "model/family.h"

#include <math.h>
#include <string.h>

/* ---- memory ------------------------------------------------------------------------------ */

static fl_status device_alloc(fl_device_model *dm, void **out, size_t n_bytes, fl_err *err)
{
    const size_t n = (size_t)dm->n_memory + 1;
    *out = NULL;
    if (fl__grow(&dm->memory, n, sizeof *dm->memory) != 0)
        return fl__fail_nomem(err, "list of device memory", n * sizeof *dm->memory);
    const fl_status st = dm->be->ops->alloc(dm->be, out, n_bytes, err);
    if (st) return st;
    dm->memory[dm->n_memory++] = *out;
    return FL_OK;
}

static fl_status put(fl_device_model *dm, void **out, const void *src, size_t n_bytes,
                     fl_err *err)
{
    const fl_status st = device_alloc(dm, out, n_bytes, err);
    return st ? st : dm->be->ops->upload(dm->be, *out, src, n_bytes, err);
}

static fl_status put_floats(fl_device_model *dm, float **out, const float *src, size_t n,
                            fl_err *err)
{
    void *p = NULL;
    const fl_status st = src ? put(dm, &p, src, n * sizeof *src, err) : FL_OK;
    *out = p;
    return st;
}

static fl_status put_norm(fl_device_model *dm, fl_device_norm *to, const fl_norm *from,
                          fl_err *err)
{
    const size_t n = (size_t)dm->model->cfg.hidden_size;
    const fl_status st = put_floats(dm, &to->gain, from->gain, n, err);
    return st ? st : put_floats(dm, &to->bias, from->bias, n, err);
}

/* ---- sites ------------------------------------------------------------------------------- */

static fl_status refuse(fl_err *err, const char *what, int layer, const char *site)
{
    return fl__fail(err, FL_E_UNSUPPORTED,
                    "model not for this device: layer %d, %s: %s; use --device cpu", layer,
                    site, what);
}

static fl_float_type float_type(fl_dtype type)
{
    return type == FL_DTYPE_F32   ? FL_FLOAT_F32
           : type == FL_DTYPE_F16 ? FL_FLOAT_F16
                                  : FL_FLOAT_BF16;
}

/* Channels n0, n0 + step, .. of the weight are this linear's. */
static fl_status fill_weight(fl_device_model *dm, fl_device_weight *w, int n0, int step,
                             const fl_linear *lin, const fl_site *site, uint64_t seed,
                             fl_err *err)
{
    const bool is_static = site->act == FL_ACT_STATIC;
    const fl_weight_rows rows = {
        .n0 = n0,
        .step = step,
        .N = lin->n_out,
        .codes = lin->w_bits == 16 ? NULL : lin->w,
        .n_columns = fl__site_weight_columns(site),
        .n_in = site->n_in,
        .extra = is_static ? site->extra_weight : NULL,
        .scale = lin->w_scale,
        .scale_stride = lin->w_scale_stride,
        .values = lin->w_bits == 16 ? lin->w : NULL,
        .type = float_type(lin->w_type),
        .least = 1.0f / sqrtf((float)FL_MAX(lin->n_in, 1)), /* outputs as large as inputs */
        .bias = lin->bias,
        .seed = seed,
    };
    return dm->be->ops->weight_fill(dm->be, w, &rows, err);
}

static fl_status new_encoder(fl_device_model *dm, fl_device_encoder **out, const fl_site *site,
                             int linear, fl_err *err)
{
    const fl_transform *t = site->transform.n1 ? &site->transform : NULL;
    const fl_quantize_static *by_tensor = site->act == FL_ACT_STATIC ? &site->spec : NULL;
    const fl_quantize_token *by_token = site->act == FL_ACT_TOKEN ? &site->token[linear] : NULL;
    return dm->be->ops->encoder_new(dm->be, out, site->n_in, t, by_tensor, site->scale,
                                    by_token, site->premul, err);
}

/* Weight number `part` of the site, from its linears [first, first + n). */
static fl_status new_weight(fl_device_model *dm, fl_device_site *ds, int part,
                            const fl_site *site, int first, int n, uint64_t seed, fl_err *err)
{
    const int K = site->n_in + (site->act == FL_ACT_STATIC ? site->spec.n_extra : 0);
    int n0 = 0;
    for (int i = 0; i < n; i++) ds->part_out[part] += site->linears[first + i]->n_out;
    fl_status st = dm->be->ops->weight_new(dm->be, &ds->weight[part], ds->part_out[part], K,
                                           site->linears[first]->w_bits, ds->is_gated, err);
    for (int i = 0; i < n && !st; i++) {
        const fl_linear *lin = site->linears[first + i];
        st = fill_weight(dm, ds->weight[part], n0, ds->is_gated ? n : 1, lin, site,
                         seed * FL_SITE_MAX_LINEARS + (uint64_t)(first + i), err);
        n0 += ds->is_gated ? 1 : lin->n_out;
    }
    return st;
}

static fl_status check_site(const fl_site *site, int layer, const char *name, fl_err *err)
{
    for (int i = 0; i < site->n_linears; i++) {
        const fl_linear *lin = site->linears[i];
        if (site->act == FL_ACT_FLOAT && lin->w_bits != 16)
            return refuse(err,
                          "weights of 4 or 8 bits under float activations run on the CPU "
                          "only",
                          layer, name);
        if (lin->n_out % 16 != 0)
            return refuse(err, "its output channels are no multiple of 16", layer, name);
        if (lin->w_bits != site->linears[0]->w_bits)
            return refuse(err, "its weights have different bits", layer, name);
    }
    if (site->n_in % 8 != 0)
        return refuse(err, "its input channels are no multiple of 8", layer, name);
    return FL_OK;
}

static fl_status put_site(fl_device_model *dm, fl_device_site *ds, const fl_site *site,
                          int layer, const char *name, bool is_gate, fl_err *err)
{
    const uint64_t seed = ((uint64_t)layer + 2) << 8 | (uint64_t)(unsigned char)name[0];
    fl_status st = check_site(site, layer, name, err);
    ds->n_in = site->n_in;
    ds->a_bits = site->act == FL_ACT_FLOAT ? 16 : site->a_bits;
    ds->is_plain = ds->a_bits == 16 && !site->premul && !site->transform.n1;
    ds->code_ld = ds->a_bits == 16 ? (site->n_in + 63) / 64 * 64 : site->code_ld;
    ds->n_parts = site->own_clips ? site->n_linears : 1;
    ds->is_gated = is_gate && dm->be->gates && ds->n_parts == 1 && site->n_linears == 2 &&
                   site->linears[0]->w_bits != 16;
    for (int i = 0; i < site->n_linears; i++) ds->n_out += site->linears[i]->n_out;
    for (int p = 0; p < ds->n_parts && !st; p++) {
        st = new_encoder(dm, &ds->encoder[p], site, p, err);
        if (!st)
            st = new_weight(dm, ds, p, site, p, site->own_clips ? 1 : site->n_linears, seed,
                            err);
    }
    return st;
}

static void free_site(fl_device_model *dm, fl_device_site *ds)
{
    for (int p = 0; p < ds->n_parts; p++) {
        dm->be->ops->encoder_free(dm->be, &ds->encoder[p]);
        dm->be->ops->weight_free(dm->be, &ds->weight[p]);
    }
}

/* ---- blocks ------------------------------------------------------------------------------ */

static fl_status put_heads(fl_device_model *dm, fl_device_block *db, const fl_block *b,
                           fl_err *err)
{
    const int D = dm->model->cfg.head_dim;
    if (!b->head_transform_q.n1) return FL_OK;
    const fl_status st =
        dm->be->ops->factor_new(dm->be, &db->q_factor, D, b->head_transform_q.right, err);
    if (st) return st;
    return dm->be->ops->factor_new(dm->be, &db->k_factor, D, b->head_transform_k.right, err);
}

static fl_status put_block(fl_device_model *dm, fl_device_block *db, const fl_block *b,
                           int layer, fl_err *err)
{
    fl_status st = FL_OK;
    memcpy(db->kv_clip, b->kv_clip, sizeof db->kv_clip);
    for (int i = 0; i < 2 && !st; i++) st = put_norm(dm, &db->norm[i], &b->norm[i], err);
    for (int s = 0; s < FL_N_SITES && !st; s++)
        st = put_site(dm, &db->site[s], &b->site[s], layer, fl__site_names[s], s == FL_SITE_UP,
                      err);
    return st ? st : put_heads(dm, db, b, err);
}

/* ---- around the blocks ------------------------------------------------------------------- */

/* A table of rows in the checkpoint's type; random where there is none. */
static fl_status put_table(fl_device_model *dm, void **out, fl_float_type *type,
                           const fl_linear *lin, fl_err *err)
{
    const size_t n_bytes =
        (size_t)lin->n_out * (size_t)lin->n_in * fl__dtype_bytes(lin->w_type);
    *type = float_type(lin->w_type);
    if (lin->w) return put(dm, out, lin->w, n_bytes, err);
    const fl_status st = device_alloc(dm, out, n_bytes, err);
    return st ? st : dm->be->ops->fill_random(dm->be, *out, (int64_t)n_bytes / 2, 1.0f, 1, err);
}

static fl_status put_surroundings(fl_device_model *dm, fl_err *err)
{
    const fl_model *m = dm->model;
    const size_t n_angles = (size_t)m->cfg.n_positions * (size_t)(m->cfg.head_dim / 2);
    fl_status st = put_table(dm, &dm->embed, &dm->embed_type, &m->embed, err);
    if (!st && m->positions.n_out)
        st = put_table(dm, &dm->positions, &dm->positions_type, &m->positions, err);
    if (!st) st = put_norm(dm, &dm->final_norm, &m->final_norm, err);
    if (!st) st = put_floats(dm, &dm->rope_cos, m->rope_cos, n_angles, err);
    if (!st) st = put_floats(dm, &dm->rope_sin, m->rope_sin, n_angles, err);
    return st ? st : put_site(dm, &dm->head, &m->head_site, -1, "head", false, err);
}

fl_device_kv fl__device_kv_of(const fl_model *model)
{
    const fl_model_config *cfg = &model->cfg;
    const int k = fl__kv_code_bits(model->k_format), v = fl__kv_code_bits(model->v_format);
    return (fl_device_kv){.k_bits = k ? k : 16,
                          .v_bits = v ? v : 16,
                          .head_dim = cfg->head_dim,
                          .n_kv_heads = cfg->n_kv_heads,
                          .n_heads = cfg->n_heads};
}

static fl_status check_model(const fl_device_model *dm, fl_err *err)
{
    const fl_model *m = dm->model;
    const fl_device_kv kv = fl__device_kv_of(m);
    if (m->project_in.n_out)
        return fl__fail(err, FL_E_UNSUPPORTED,
                        "model not for this device: %s: its embedding is narrower than its "
                        "blocks; use --device cpu",
                        m->dir ? m->dir : "model");
    if (dm->be->ops->kv_page_bytes(dm->be, &kv) == 0)
        return fl__fail(err, FL_E_UNSUPPORTED,
                        "model not for this device: a cache of K%dV%d for %d query and %d KV "
                        "heads of %d has no kernel; use --device cpu",
                        kv.k_bits, kv.v_bits, kv.n_heads, kv.n_kv_heads, kv.head_dim);
    return FL_OK;
}

fl_status fl__device_model_new(fl_device_model **out, const fl_model *model, fl_backend *be,
                               fl_err *err)
{
    const size_t before = be->allocated_bytes;
    *out = NULL;
    fl_device_model *dm = fl__calloc(1, sizeof *dm);
    if (!dm) return fl__fail_nomem(err, "device model", sizeof *dm);
    dm->model = model;
    dm->be = be;
    dm->blocks = fl__calloc((size_t)model->cfg.n_layers, sizeof *dm->blocks);
    fl_status st = dm->blocks ? FL_OK : fl__fail_nomem(err, "device model", sizeof *dm);
    if (!st) st = check_model(dm, err);
    for (int i = 0; i < model->cfg.n_layers && !st; i++)
        st = put_block(dm, &dm->blocks[i], &model->blocks[i], i, err);
    if (!st) st = put_surroundings(dm, err);
    if (st) {
        fl__device_model_free(&dm);
        return st;
    }
    dm->n_bytes = be->allocated_bytes - before;
    *out = dm;
    return FL_OK;
}

void fl__device_model_free(fl_device_model **out)
{
    fl_device_model *dm = *out;
    if (!dm) return;
    for (int i = 0; dm->blocks && i < dm->model->cfg.n_layers; i++) {
        fl_device_block *db = &dm->blocks[i];
        for (int s = 0; s < FL_N_SITES; s++) free_site(dm, &db->site[s]);
        dm->be->ops->factor_free(dm->be, &db->q_factor);
        dm->be->ops->factor_free(dm->be, &db->k_factor);
    }
    free_site(dm, &dm->head);
    for (int i = 0; i < dm->n_memory; i++) dm->be->ops->release(dm->be, dm->memory[i]);
    fl__free(&dm->memory);
    fl__free(&dm->blocks);
    fl__free(out);
}

size_t fl__device_model_bytes(const fl_device_model *dm)
{
    return dm->n_bytes;
}
