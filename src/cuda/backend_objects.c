/* backend_objects.c - weights, encoders and factors on the GPU. SPDX-License-Identifier: MIT */
#include "cuda/backend_cuda.h"

#include "base/mem.h"
#include "cuda/engine_kernels.h"

#include <string.h>

static int round_up(int n, int multiple)
{
    return (n + multiple - 1) / multiple * multiple;
}

/* Memory for, and a copy of, n_bytes at src; NULL src: memory only. */
static fl_status put(fl_backend *be, void *out, const void *src, size_t n_bytes, fl_err *err)
{
    void *p = NULL;
    const fl_status st = fl__cuda_alloc(be, &p, n_bytes, err);
    memcpy(out, &p, sizeof p);
    return st || !src ? st : fl__cuda_upload(be, p, src, n_bytes, err);
}

/* ---- weights ----------------------------------------------------------------------------- */

fl_status fl__cuda_weight_new(fl_backend *be, fl_device_weight **out, int N, int K, int bits,
                              bool gated, fl_err *err)
{
    fl_status st;
    *out = NULL;
    fl_device_weight *w = fl__calloc(1, sizeof *w);
    if (!w) return fl__fail_nomem(err, "weight", sizeof *w);
    w->N = N;
    w->K = K;
    w->bits = bits;
    w->gated = gated;
    if (bits == 16) {
        st = put(be, &w->values, NULL, (size_t)N * (size_t)K * 2, err);
    } else {
        w->w = (fl_cuda_weight){
            .bits = bits, .N = N, .K = K, .N_pad = round_up(N, 16), .K_pad = round_up(K, 64)};
        st = put(be, &w->codes, NULL, fl__cuda_weight_bytes(N, K, bits), err);
        if (!st) st = put(be, &w->col_sum, NULL, (size_t)w->w.N_pad * 4, err);
        if (!st) st = put(be, &w->scale, NULL, (size_t)N * 4, err);
        w->w.data = w->codes;
        w->w.col_sum = w->col_sum;
    }
    if (st) fl__cuda_weight_free(be, &w);
    *out = w;
    return st;
}

void fl__cuda_weight_free(fl_backend *be, fl_device_weight **w)
{
    if (!*w) return;
    fl__cuda_release(be, (*w)->codes);
    fl__cuda_release(be, (*w)->col_sum);
    fl__cuda_release(be, (*w)->scale);
    fl__cuda_release(be, (*w)->values);
    fl__cuda_release(be, (*w)->bias);
    fl__cuda_release(be, (*w)->bias_bf16);
    fl__free(w);
}

static fl_status fill_codes(fl_backend *be, fl_device_weight *w, const fl_weight_rows *r,
                            fl_err *err)
{
    fl_cuda_backend_state *s = fl__cuda_state(be);
    const size_t row = w->bits == 4 ? ((size_t)r->n_columns + 1) / 2 : (size_t)r->n_columns;
    const size_t n_bytes = ((size_t)r->N * row + 7) / 8 * 8;
    const size_t n_extra = (size_t)(w->K - r->n_in);
    void *codes = NULL;
    int32_t *extra = NULL;
    fl_status st = put(be, &codes, NULL, n_bytes, err);
    if (!st && r->codes) st = fl__cuda_upload(be, codes, r->codes, (size_t)r->N * row, err);
    else if (!st) st = fl__cuda_random_bytes(codes, (int64_t)n_bytes, r->seed, s->stream, err);
    if (!st && n_extra > 0) st = put(be, &extra, r->extra, n_extra * sizeof *extra, err);
    const fl_cuda_pack pack = {.dst = w->codes,
                               .col_sum = w->col_sum,
                               .codes = codes,
                               .extra = extra,
                               .bits = w->bits,
                               .n0 = r->n0,
                               .step = r->step,
                               .N = r->N,
                               .K = w->K,
                               .n_columns = r->n_columns,
                               .n_in = r->n_in};
    if (!st) st = fl__cuda_pack_codes(&pack, s->stream, err);
    if (!st) st = fl__cuda_check(cudaStreamSynchronize(s->stream), "packing of weights", err);
    fl__cuda_release(be, codes);
    fl__cuda_release(be, extra);
    return st;
}

/* Numbers of the rows into dst [N], [n0 + r * step] = src[r * stride]. */
static fl_status fill_numbers(fl_backend *be, float *dst, const float *src, int stride,
                              const fl_weight_rows *r, fl_err *err)
{
    float *dense = fl__alloc((size_t)r->N, sizeof *dense);
    if (!dense) return fl__fail_nomem(err, "scales", (size_t)r->N * sizeof *dense);
    for (int n = 0; n < r->N; n++) dense[n] = src[n * stride];
    fl_cuda_backend_state *s = fl__cuda_state(be);
    fl_status st = fl__cuda_check(
        cudaMemcpy2DAsync(dst + r->n0, (size_t)r->step * sizeof *dense, dense, sizeof *dense,
                          sizeof *dense, (size_t)r->N, cudaMemcpyHostToDevice, s->stream),
        "scales", err);
    if (!st) st = fl__cuda_check(cudaStreamSynchronize(s->stream), "scales", err);
    fl__free(&dense);
    return st;
}

static fl_status fill_values(fl_backend *be, fl_device_weight *w, const fl_weight_rows *r,
                             fl_err *err)
{
    fl_cuda_backend_state *s = fl__cuda_state(be);
    const size_t n = (size_t)r->N * (size_t)w->K, wide = r->type == FL_FLOAT_F32 ? 4 : 2;
    uint16_t *to = w->values + (size_t)r->n0 * (size_t)w->K;
    void *raw = NULL;
    if (!r->values)
        return fl__cuda_random_bf16(to, (int64_t)n, r->least, r->seed, s->stream, err);
    if (r->type == FL_FLOAT_BF16) return fl__cuda_upload(be, to, r->values, n * 2, err);
    fl_status st = put(be, &raw, r->values, n * wide, err);
    if (!st) st = fl__cuda_to_bf16(to, raw, r->type, (int64_t)n, s->stream, err);
    if (!st) st = fl__cuda_check(cudaStreamSynchronize(s->stream), "conversion", err);
    fl__cuda_release(be, raw);
    return st;
}

/* Memory of both biases, zero, at the first linear that has one. */
static fl_status fill_bias(fl_backend *be, fl_device_weight *w, const fl_weight_rows *r,
                           fl_err *err)
{
    fl_cuda_backend_state *s = fl__cuda_state(be);
    const size_t n = (size_t)w->N;
    fl_status st = FL_OK;
    if (!w->bias) {
        st = put(be, &w->bias, NULL, n * 4, err);
        if (!st) st = put(be, &w->bias_bf16, NULL, n * 2, err);
        if (!st)
            st = fl__cuda_check(cudaMemsetAsync(w->bias, 0, n * 4, s->stream), "bias", err);
    }
    if (!st) st = fill_numbers(be, w->bias, r->bias, 1, r, err);
    if (st) return st;
    return fl__cuda_to_bf16(w->bias_bf16, w->bias, FL_FLOAT_F32, (int64_t)n, s->stream, err);
}

fl_status fl__cuda_weight_fill(fl_backend *be, fl_device_weight *w, const fl_weight_rows *rows,
                               fl_err *err)
{
    fl_status st = w->bits == 16 ? fill_values(be, w, rows, err) : fill_codes(be, w, rows, err);
    if (!st && w->bits != 16)
        st = fill_numbers(be, w->scale, rows->scale, rows->scale_stride, rows, err);
    return st || !rows->bias ? st : fill_bias(be, w, rows, err);
}

/* ---- encoders ---------------------------------------------------------------------------- */

/* The factor, or the identity, owned. */
static float *factor_or_identity(const float *f, int n)
{
    float *out = fl__calloc((size_t)n * (size_t)n, sizeof *out);
    for (int i = 0; out && i < n; i++) out[i * n + i] = 1;
    if (out && f) memcpy(out, f, (size_t)n * (size_t)n * sizeof *out);
    return out;
}

static fl_status put_transform(fl_backend *be, fl_device_encoder *e, const fl_transform *t,
                               fl_err *err)
{
    enum { MAX_FACTOR = 256 };
    const size_t n_bytes = fl__cuda_transform_bytes(t->n1, t->n2);
    fl_status st = FL_OK;
    if (t->n1 > MAX_FACTOR || t->n2 > MAX_FACTOR)
        return fl__fail(err, FL_E_UNSUPPORTED,
                        "cuda: transform of %d x %d: factors up to %d have a kernel; use "
                        "--device cpu",
                        t->n1, t->n2, (int)MAX_FACTOR);
    float *left = factor_or_identity(t->left, t->n1);
    float *right = factor_or_identity(t->right, t->n2);
    void *packed = fl__calloc(n_bytes, 1);
    if (left && right && packed) {
        fl__cuda_transform_pack(packed, t->n1, t->n2, left, right);
        st = put(be, &e->factors, packed, n_bytes, err);
    } else {
        st = fl__fail_nomem(err, "factors", n_bytes);
    }
    e->transform = (fl_cuda_transform){t->n1, t->n2, e->factors};
    if (!st && !t->right && !e->premul && fl__cuda_mix_fits(t->n1, t->n2) &&
        fl__cuda_mix_bytes(t->n1) <= n_bytes) {
        fl__cuda_mix_pack(packed, t->n1, left);
        st = put(be, &e->mix, packed, fl__cuda_mix_bytes(t->n1), err);
    }
    fl__free(&left);
    fl__free(&right);
    fl__free(&packed);
    return st;
}

static fl_status put_static(fl_backend *be, fl_device_encoder *e, const fl_quantize_static *s,
                            float scale, fl_err *err)
{
    const size_t n = (size_t)s->n_channels, n_extra = (size_t)s->n_extra;
    const int32_t zero = s->zero;
    fl_status st = put(be, &e->limits, NULL, 2 * n * sizeof(float), err);
    if (!st) st = fl__cuda_upload(be, e->limits, s->lo, n * sizeof(float), err);
    if (!st) st = fl__cuda_upload(be, e->limits + n, s->hi, n * sizeof(float), err);
    if (!st && n_extra > 0) {
        st = put(be, &e->extras, NULL, 2 * n_extra * sizeof(int32_t), err);
        if (!st) st = fl__cuda_upload(be, e->extras, s->extra_src, n_extra * 4, err);
        if (!st) st = fl__cuda_upload(be, e->extras + n_extra, s->extra_off, n_extra * 4, err);
    }
    if (!st) st = put(be, &e->scale, &scale, sizeof scale, err);
    if (!st) st = put(be, &e->zero, &zero, sizeof zero, err);
    e->by_tensor = true;
    e->bits = 8;
    e->has_zero = zero != 0;
    e->keeps_negative = s->first_lo < 0;
    e->spec = (fl_cuda_quantize_static){.n_channels = s->n_channels,
                                        .n_extra = s->n_extra,
                                        .inv_scale = s->inv_scale,
                                        .zero = s->zero,
                                        .first_lo = s->first_lo,
                                        .first_hi = s->first_hi,
                                        .cap = s->cap,
                                        .lo = e->limits,
                                        .hi = e->limits + n,
                                        .extra_src = e->extras,
                                        .extra_off = e->extras + n_extra};
    return st;
}

static fl_status encoder_init(fl_backend *be, fl_device_encoder *e, const fl_transform *t,
                              const fl_quantize_static *by_tensor, float scale,
                              const fl_quantize_token *by_token, const float *premul,
                              fl_err *err)
{
    fl_status st = FL_OK;
    if (!by_token && (t || (!by_tensor && premul)))
        return fl__fail(err, FL_E_UNSUPPORTED,
                        "cuda: a transform or multiplier in front of %s activations has no "
                        "kernel; use --device cpu",
                        by_tensor ? "static" : "float");
    if (by_token)
        e->grid = (fl_cuda_grid){by_token->bits, by_token->asymmetric, by_token->clip_max,
                                 by_token->clip_min};
    if (by_token) e->bits = by_token->bits;
    if (premul) st = put(be, &e->premul, premul, (size_t)e->n * sizeof *premul, err);
    if (!st && t) st = put_transform(be, e, t, err);
    return st || !by_tensor ? st : put_static(be, e, by_tensor, scale, err);
}

fl_status fl__cuda_encoder_new(fl_backend *be, fl_device_encoder **out, int n,
                               const fl_transform *t, const fl_quantize_static *by_tensor,
                               float scale, const fl_quantize_token *by_token,
                               const float *premul, fl_err *err)
{
    *out = NULL;
    fl_device_encoder *e = fl__calloc(1, sizeof *e);
    if (!e) return fl__fail_nomem(err, "encoder", sizeof *e);
    e->n = n;
    e->bits = 16;
    const fl_status st = encoder_init(be, e, t, by_tensor, scale, by_token, premul, err);
    if (st) fl__cuda_encoder_free(be, &e);
    *out = e;
    return st;
}

void fl__cuda_encoder_free(fl_backend *be, fl_device_encoder **e)
{
    if (!*e) return;
    fl__cuda_release(be, (*e)->factors);
    fl__cuda_release(be, (*e)->mix);
    fl__cuda_release(be, (*e)->limits);
    fl__cuda_release(be, (*e)->extras);
    fl__cuda_release(be, (*e)->scale);
    fl__cuda_release(be, (*e)->zero);
    fl__cuda_release(be, (*e)->premul);
    fl__free(e);
}

/* ---- factors ----------------------------------------------------------------------------- */

fl_status fl__cuda_factor_new(fl_backend *be, fl_device_factor **out, int D, const float *right,
                              fl_err *err)
{
    const size_t n = (size_t)D * (size_t)D;
    *out = NULL;
    if (D != 32 && D != 64 && D != 128)
        return fl__fail(err, FL_E_UNSUPPORTED,
                        "cuda: head transforms of %d channels: 32, 64 and 128 have a kernel; "
                        "use --device cpu",
                        D);
    fl_device_factor *f = fl__calloc(1, sizeof *f);
    uint16_t *packed = fl__alloc(n, sizeof *packed);
    fl_status st = f && packed ? FL_OK : fl__fail_nomem(err, "factor", n * sizeof *packed);
    if (!st) {
        fl__cuda_heads_pack(packed, D, right);
        f->D = D;
        st = put(be, &f->values, packed, n * sizeof *packed, err);
    }
    fl__free(&packed);
    if (st && f) fl__cuda_factor_free(be, &f);
    *out = f;
    return st;
}

void fl__cuda_factor_free(fl_backend *be, fl_device_factor **f)
{
    if (!*f) return;
    fl__cuda_release(be, (*f)->values);
    fl__free(f);
}
