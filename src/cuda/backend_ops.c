/* backend_ops.c - the ops of kernels/backend.h by the GPU's kernels.
 *
 * An encoder's front is part of its kernel, the sum behind a site and SiLU times up of a gated
 * pair are part of its product.
 * SPDX-License-Identifier: MIT */
#include "cuda/backend_cuda.h"

#include "cuda/attention_cuda.h"
#include "cuda/engine_kernels.h"

static fl_cuda_matrix matrix(const fl_device_matrix *m)
{
    return (fl_cuda_matrix){m->data, m->ld, m->f32};
}

/* ---- rows -------------------------------------------------------------------------------- */

fl_status fl__cuda_op_embed(fl_backend *be, const fl_device_embed *e,
                            const fl_device_step *step, fl_err *err)
{
    const fl_cuda_embedding c = {.y = e->y.data,
                                 .ldy = e->y.ld,
                                 .table = e->table,
                                 .positions = e->positions,
                                 .type = e->type,
                                 .positions_type = e->positions_type,
                                 .ids = step->ids,
                                 .row_position = step->row_position,
                                 .n = e->n,
                                 .n_ids = e->n_ids,
                                 .offset = e->offset};
    return fl__cuda_embed_rows(&c, step->n_rows, fl__cuda_state(be)->stream, err);
}

/* A row as the kernels make it: the front, then premul (NULL: none). */
static fl_cuda_row row_of(const fl_device_rows *r, const float *premul)
{
    fl_cuda_row row = {.x = r->x.data, .ldx = r->x.ld, .x_f32 = r->x.f32, .premul = premul};
    switch (r->front) {
    case FL_FRONT_SILU_MUL:
        row.up = r->up;
        break;
    case FL_FRONT_RELU:
        row.relu = true;
        break;
    case FL_FRONT_LAYER_NORM:
        row.layer_norm = true; /* fall through */
    case FL_FRONT_RMS_NORM:
        row.gain = r->gain;
        row.bias = r->bias;
        row.eps = (float)r->eps;
        break;
    case FL_FRONT_NONE:
        break;
    }
    return row;
}

fl_status fl__cuda_op_norm(fl_backend *be, const fl_device_matrix *y,
                           const fl_device_rows *rows, int M, int n, fl_err *err)
{
    const fl_cuda_matrix to = matrix(y);
    const fl_cuda_row row = row_of(rows, NULL);
    return fl__cuda_row_values(&to, &row, M, n, fl__cuda_state(be)->stream, err);
}

fl_status fl__cuda_op_gather(fl_backend *be, const fl_device_matrix *y,
                             const fl_device_matrix *x, const int32_t *rows, int M, int n,
                             fl_err *err)
{
    const fl_cuda_matrix to = matrix(y), from = matrix(x);
    return fl__cuda_gather_rows(&to, &from, rows, M, n, fl__cuda_state(be)->stream, err);
}

/* ---- encoding ---------------------------------------------------------------------------- */

fl_status fl__cuda_op_encode(fl_backend *be, const fl_device_encode *e, fl_err *err)
{
    fl_cuda_backend_state *s = fl__cuda_state(be);
    const fl_device_encoder *c = e->encoder;
    const fl_cuda_codes y = {.codes = e->out.data,
                             .ld = e->out.ld,
                             .x_sum = NULL,
                             .x_scale = e->out.scales,
                             .x_zero = e->out.zeros};
    fl_cuda_row x = row_of(&e->rows, c->premul);
    if (c->bits == 16) {
        const fl_cuda_matrix to = {e->out.data, e->out.ld, false};
        return fl__cuda_row_values(&to, &x, e->M, c->n, s->stream, err);
    }
    if (c->by_tensor) {
        x.relu = x.relu && c->keeps_negative; /* else the limits do it, at more speed */
        return fl__cuda_quantize_static(&y, &x, e->M, &c->spec, s->n_sm, s->stream, err);
    }
    if (c->mix && e->rows.front == FL_FRONT_NONE && !e->rows.x.f32) {
        const fl_cuda_mix mix = {.x = e->rows.x.data,
                                 .ldx = e->rows.x.ld,
                                 .y = y,
                                 .grid = c->grid,
                                 .factor = c->mix,
                                 .n1 = c->transform.n1,
                                 .n2 = c->transform.n2};
        return fl__cuda_mix_heads(&mix, e->M, s->n_sm, s->stream, err);
    }
    if (c->transform.n1)
        return fl__cuda_transform_quantize(&y, &x, e->M, &c->transform, &c->grid, s->n_sm,
                                           s->stream, err);
    return fl__cuda_quantize_token(&y, &x, e->M, c->n, &c->grid, s->stream, err);
}

/* ---- products ---------------------------------------------------------------------------- */

static fl_status run_bf16(fl_backend *be, const fl_device_linear *l, fl_err *err)
{
    fl_cuda_backend_state *s = fl__cuda_state(be);
    const fl_device_weight *w = l->w;
    const fl_cuda_gemm_bf16 g = {.x = l->x.data,
                                 .w = w->values,
                                 .ldx = l->x.ld,
                                 .bias = l->y.f32 ? (const void *)w->bias : w->bias_bf16,
                                 .y = l->y.data,
                                 .ldy = l->y.ld,
                                 .y_f32 = l->y.f32,
                                 .accumulate = l->accumulate,
                                 .M = l->M,
                                 .N = w->N,
                                 .K = w->K};
    return fl__cuda_bf16_run(s->bf16, &g, s->stream, err);
}

fl_status fl__cuda_op_linear(fl_backend *be, const fl_device_linear *l, fl_err *err)
{
    fl_cuda_backend_state *s = fl__cuda_state(be);
    const fl_device_encoder *e = l->encoder;
    const fl_device_weight *w = l->w;
    if (w->bits == 16) return run_bf16(be, l, err);
    const bool zeros = e->by_tensor ? e->has_zero : e->grid.asymmetric;
    const fl_cuda_gemm g = {.x = l->x.data,
                            .ldx = l->x.ld,
                            .x_scale = e->by_tensor ? e->scale : l->x.scales,
                            .x_scale_stride = !e->by_tensor,
                            .x_zero = !zeros         ? NULL
                                      : e->by_tensor ? e->zero
                                                     : l->x.zeros,
                            .x_zero_stride = !e->by_tensor,
                            .w = &w->w,
                            .w_scale = w->scale,
                            .w_scale_stride = 1,
                            .bias = w->bias,
                            .residual = l->accumulate ? l->y.data : NULL,
                            .ldr = l->y.ld,
                            .y = l->y.data,
                            .ldy = l->y.ld,
                            .y_bf16 = !l->y.f32,
                            .gated = w->gated,
                            .M = l->M,
                            .workspace = s->gemm_workspace};
    /* no other one has passed the backend's opening */
    const fl_cuda_gpu gpu = {.n_sm = s->n_sm, .capability = 90};
    return l->M == 0 ? FL_OK : fl__cuda_gemm(&g, &gpu, s->stream, err);
}

/* ---- attention --------------------------------------------------------------------------- */

static fl_cuda_kv cache(const fl_device_kv *kv)
{
    return (fl_cuda_kv){.bits = kv->k_bits,
                        .D = kv->head_dim,
                        .n_kv_heads = kv->n_kv_heads,
                        .pages = kv->pages,
                        .table = kv->table,
                        .table_stride = kv->table_stride};
}

size_t fl__cuda_op_page_bytes(fl_backend *be, const fl_device_kv *kv)
{
    const fl_cuda_kv c = cache(kv);
    (void)be;
    if (kv->k_bits != kv->v_bits) return 0;
    if (kv->k_bits != 4 && kv->k_bits != 8 && kv->k_bits != 16) return 0;
    if (kv->head_dim != 32 && kv->head_dim != 64 && kv->head_dim != 80 && kv->head_dim != 128)
        return 0;
    return fl__cuda_kv_page_bytes(&c);
}

/* The fast kernels' sizes; others go one row at a time. */
static bool is_fast(const fl_device_kv *kv)
{
    return kv->head_dim != 32 && kv->n_heads / kv->n_kv_heads <= 8;
}

static size_t decode_bytes(const fl_cuda_backend_state *s, const fl_device_kv *kv, int max_seqs)
{
    const size_t n =
        fl__cuda_attention_workspace_bytes(kv->head_dim, kv->n_kv_heads, max_seqs, s->n_sm);
    return (n + 255) / 256 * 256;
}

/* Counters and pieces of decoding, then the prefill's. */
size_t fl__cuda_op_attend_bytes(fl_backend *be, const fl_device_kv *kv, int max_seqs,
                                int max_tokens)
{
    if (!is_fast(kv)) return 0;
    return decode_bytes(fl__cuda_state(be), kv, max_seqs) +
           fl__cuda_attention_prefill_workspace_bytes(kv->head_dim, kv->n_kv_heads, max_seqs,
                                                      max_tokens);
}

/* Rotation and factor go before the append where there are factors. */
static fl_status run_heads(fl_backend *be, const fl_device_append *a, const fl_device_step *st,
                           fl_cuda_kv_append *to, fl_err *err)
{
    const fl_device_kv *kv = a->kv;
    const int64_t q_width = (int64_t)kv->n_heads * kv->head_dim;
    const int64_t k_width = (int64_t)kv->n_kv_heads * kv->head_dim;
    uint16_t *q = a->scratch, *k = q + st->n_rows * q_width;
    const fl_cuda_heads h = {.q = matrix(&a->q),
                             .k = matrix(&a->k),
                             .q_out = q,
                             .k_out = k,
                             .q_factor = a->q_factor->values,
                             .k_factor = a->k_factor->values,
                             .cos = a->cos,
                             .sin = a->sin,
                             .row_position = st->row_position,
                             .n_heads = kv->n_heads,
                             .n_kv_heads = kv->n_kv_heads,
                             .D = kv->head_dim};
    to->q = q;
    to->k = k;
    to->ldq = q_width;
    to->ldk = k_width;
    to->cos = to->sin = NULL;
    return fl__cuda_heads(&h, st->n_rows, fl__cuda_state(be)->stream, err);
}

fl_status fl__cuda_op_append(fl_backend *be, const fl_device_append *a,
                             const fl_device_step *step, fl_err *err)
{
    const fl_cuda_kv kv = cache(a->kv);
    fl_cuda_kv_append c = {.kv = &kv,
                           .q = a->q.data,
                           .k = a->k.data,
                           .v = a->v.data,
                           .ldq = a->q.ld,
                           .ldk = a->k.ld,
                           .ldv = a->v.ld,
                           .x_bf16 = !a->q.f32,
                           .n_heads = a->kv->n_heads,
                           .q_out = a->q_out,
                           .cos = a->cos,
                           .sin = a->sin,
                           .first_row = step->first_row,
                           .position = step->position,
                           .n_seqs = step->n_seqs,
                           .max_rows = step->max_rows};
    for (int i = 0; i < 4; i++) c.clip[i] = a->clip[i];
    const fl_status st = a->q_factor ? run_heads(be, a, step, &c, err) : FL_OK;
    return st ? st : fl__cuda_kv_append(&c, fl__cuda_state(be)->stream, err);
}

fl_status fl__cuda_op_attend(fl_backend *be, const fl_device_attend *a,
                             const fl_device_step *step, fl_err *err)
{
    fl_cuda_backend_state *s = fl__cuda_state(be);
    const fl_cuda_kv kv = cache(a->kv);
    if (!is_fast(a->kv)) {
        const fl_cuda_attention_simple c = {.kv = &kv,
                                            .q = a->q,
                                            .y = a->y.data,
                                            .y_bf16 = !a->y.f32,
                                            .n_heads = a->kv->n_heads,
                                            .n_seqs = step->n_seqs,
                                            .first_row = step->first_row,
                                            .position = step->position,
                                            .max_rows = step->max_rows,
                                            .scale = a->scale};
        return fl__cuda_attention_simple(&c, s->stream, err);
    }
    if (step->max_rows == 1) {
        const fl_cuda_attention c = {.kv = &kv,
                                     .q = a->q,
                                     .y = a->y.data,
                                     .q_bf16 = true,
                                     .y_bf16 = !a->y.f32,
                                     .n_heads = a->kv->n_heads,
                                     .n_seqs = step->n_seqs,
                                     .n_tokens = step->n_tokens,
                                     .scale = a->scale,
                                     .workspace = a->workspace};
        return fl__cuda_attention_decode(&c, s->n_sm, s->stream, err);
    }
    const fl_cuda_attention_prefill c = {.kv = &kv,
                                         .q = a->q,
                                         .y = a->y.data,
                                         .y_bf16 = !a->y.f32,
                                         .n_heads = a->kv->n_heads,
                                         .n_seqs = step->n_seqs,
                                         .first_row = step->first_row,
                                         .position = step->position,
                                         .max_rows = step->max_rows,
                                         .max_tokens = step->max_tokens,
                                         .scale = a->scale,
                                         .workspace = (char *)a->workspace +
                                                      decode_bytes(s, a->kv, a->max_seqs)};
    return fl__cuda_attention_prefill(&c, s->stream, err);
}
