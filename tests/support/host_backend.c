/* host_backend.c - see host_backend.h.
 *
 * Encoders borrow the model's specs and transforms, which outlive them. The cache is one
 * fl_kv_cache; a layer is known by its `pages`, in the order of their first use, and a sequence
 * by the first page of its table. The other pages of tables are checked: whoever writes to a
 * page owns it, and who reads must be its owner.
 * SPDX-License-Identifier: MIT */
#include "support/host_backend.h"

#include "support/fl_test.h"

#include "base/float16.h"
#include "base/mem.h"
#include "kernels/rowops.h"
#include "model/kv_attention.h"
#include "model/linear.h"

#include <string.h>

enum { MAX_LAYERS = 8, MAX_SEQUENCES = 64, POSITIONS = 512 };

typedef struct host_backend {
    fl_backend base; /* first */
    fl_exec ex;
    fl_kv_cache *kv;
    const void *layers[MAX_LAYERS];
    int n_layers;
    int owner[MAX_SEQUENCES]; /* of each page: sequence * POSITIONS + its place there */
} host_backend;

struct fl_device_weight {
    int N, K, bits;
    bool gated;
    int8_t *codes; /* [N, K] */
    fl_weight packed;
    float *scale, *values, *bias; /* [N], [N, K], [N] */
    bool has_bias;
};

struct fl_device_encoder {
    int n;
    const fl_transform *t;
    const fl_quantize_static *by_tensor;
    const fl_quantize_token *by_token;
    const float *premul;
    float scale;
};

struct fl_device_factor {
    fl_transform t; /* of one head */
};

static host_backend *host(fl_backend *be)
{
    return (host_backend *)be;
}

/* n zeroed floats. */
static void *zeros(size_t n, size_t elem_bytes)
{
    void *p = fl__calloc(n, elem_bytes);
    assert_non_null(p);
    return p;
}

/* ---- memory ------------------------------------------------------------------------------ */

static fl_status alloc(fl_backend *be, void **device, size_t n_bytes, fl_err *err)
{
    (void)err;
    *device = zeros(n_bytes, 1);
    memset(*device, 0xa5, n_bytes); /* whoever reads before writing will notice */
    be->allocated_bytes += n_bytes;
    return FL_OK;
}

static void release(fl_backend *be, void *device)
{
    (void)be;
    fl__free(&device);
}

static fl_status copy_in(fl_backend *be, void *device, const void *src, size_t n_bytes,
                         fl_err *err)
{
    (void)be;
    (void)err;
    memcpy(device, src, n_bytes);
    return FL_OK;
}

static fl_status clear(fl_backend *be, void *device, size_t n_bytes, fl_err *err)
{
    (void)be;
    (void)err;
    memset(device, 0, n_bytes);
    return FL_OK;
}

static fl_status wait_for(fl_backend *be, fl_err *err)
{
    (void)be;
    (void)err;
    return FL_OK;
}

/* ---- objects ----------------------------------------------------------------------------- */

static fl_status weight_new(fl_backend *be, fl_device_weight **out, int N, int K, int bits,
                            bool gated, fl_err *err)
{
    const size_t n = (size_t)N * (size_t)K;
    (void)be;
    (void)err;
    fl_device_weight *w = zeros(1, sizeof *w);
    w->N = N;
    w->K = K;
    w->bits = bits;
    w->gated = gated;
    w->codes = zeros(n, 1);
    w->values = zeros(bits == 16 ? n : 1, sizeof(float));
    w->scale = zeros((size_t)N, sizeof(float));
    w->bias = zeros((size_t)N, sizeof(float));
    *out = w;
    return FL_OK;
}

static float float_at(const void *values, fl_float_type type, size_t i)
{
    if (type == FL_FLOAT_F32) return ((const float *)values)[i];
    const uint16_t u = ((const uint16_t *)values)[i];
    return type == FL_FLOAT_BF16 ? fl__bf16_to_f32(u) : fl__f16_to_f32(u);
}

static int code_at(const fl_weight_rows *r, int bits, int n, int column)
{
    if (bits == 8)
        return ((const int8_t *)r->codes)[(size_t)n * (size_t)r->n_columns + (size_t)column];
    const uint8_t two =
        ((const uint8_t *)
             r->codes)[(size_t)n * (size_t)((r->n_columns + 1) / 2) + (size_t)column / 2];
    const int nibble = column % 2 ? two >> 4 : two & 15;
    return nibble >= 8 ? nibble - 16 : nibble;
}

/* Packed again after each call: the last one leaves the whole weight. */
static fl_status weight_fill(fl_backend *be, fl_device_weight *w, const fl_weight_rows *r,
                             fl_err *err)
{
    (void)be;
    for (int i = 0; i < r->N; i++) {
        const int n = r->n0 + i * r->step;
        const size_t row = (size_t)n * (size_t)w->K;
        if (r->bias) w->bias[n] = r->bias[i];
        w->has_bias = w->has_bias || r->bias;
        for (int k = 0; k < w->K && w->bits == 16; k++)
            w->values[row + (size_t)k] =
                float_at(r->values, r->type, (size_t)i * (size_t)w->K + (size_t)k);
        if (w->bits == 16) continue;
        w->scale[n] = r->scale[i * r->scale_stride];
        for (int k = 0; k < w->K; k++)
            w->codes[row + (size_t)k] =
                (int8_t)code_at(r, w->bits, i, k < r->n_in ? k : r->extra[k - r->n_in]);
    }
    if (w->bits == 16) return FL_OK;
    fl__weight_fini(&w->packed);
    return fl__weight_pack(&w->packed, w->codes, w->N, w->K, w->bits, err);
}

static void weight_free(fl_backend *be, fl_device_weight **w)
{
    (void)be;
    if (!*w) return;
    fl__weight_fini(&(*w)->packed);
    fl__free(&(*w)->codes);
    fl__free(&(*w)->values);
    fl__free(&(*w)->scale);
    fl__free(&(*w)->bias);
    fl__free(w);
}

static fl_status encoder_new(fl_backend *be, fl_device_encoder **out, int n,
                             const fl_transform *t, const fl_quantize_static *by_tensor,
                             float scale, const fl_quantize_token *by_token,
                             const float *premul, fl_err *err)
{
    (void)be;
    (void)err;
    *out = zeros(1, sizeof **out);
    **out = (fl_device_encoder){n, t, by_tensor, by_token, premul, scale};
    return FL_OK;
}

static void encoder_free(fl_backend *be, fl_device_encoder **e)
{
    (void)be;
    fl__free(e);
}

static fl_status factor_new(fl_backend *be, fl_device_factor **out, int D, const float *right,
                            fl_err *err)
{
    (void)be;
    *out = zeros(1, sizeof **out);
    return fl__transform_init(&(*out)->t, 1, D, NULL, right, err);
}

static void factor_free(fl_backend *be, fl_device_factor **f)
{
    (void)be;
    if (*f) fl__transform_fini(&(*f)->t);
    fl__free(f);
}

/* ---- rows -------------------------------------------------------------------------------- */

static float *row_at(const fl_device_matrix *m, int row)
{
    assert_true(m->f32);
    return (float *)m->data + row * m->ld;
}

static void make_row(const host_backend *h, float *y, const fl_device_rows *r, int m, int n)
{
    const float *x = row_at(&r->x, m), *up = (const float *)r->up + m * r->x.ld;
    switch (r->front) {
    case FL_FRONT_RMS_NORM:
        fl__rms_norm(y, x, r->gain, n, r->eps);
        break;
    case FL_FRONT_LAYER_NORM:
        fl__layer_norm(y, x, r->gain, r->bias, n, r->eps);
        break;
    case FL_FRONT_SILU_MUL:
        fl__silu_mul_select(h->ex.isa)->run(y, x, up, n);
        break;
    case FL_FRONT_RELU:
        for (int i = 0; i < n; i++) y[i] = x[i] < 0 ? 0 : x[i];
        break;
    case FL_FRONT_NONE:
        memmove(y, x, (size_t)n * sizeof *y);
        break;
    }
}

static fl_status embed(fl_backend *be, const fl_device_embed *e, const fl_device_step *step,
                       fl_err *err)
{
    (void)be;
    (void)err;
    for (int m = 0; m < step->n_rows; m++)
        for (int i = 0; i < e->n; i++) {
            const size_t id = (size_t)step->ids[m], n = (size_t)e->n;
            const size_t pos = (size_t)(step->row_position[m] + e->offset);
            float v = float_at(e->table, e->type, id * n + (size_t)i);
            if (e->positions)
                v += float_at(e->positions, e->positions_type, pos * n + (size_t)i);
            row_at(&e->y, m)[i] = v;
        }
    return FL_OK;
}

static fl_status norm(fl_backend *be, const fl_device_matrix *y, const fl_device_rows *rows,
                      int M, int n, fl_err *err)
{
    (void)err;
    for (int m = 0; m < M; m++) make_row(host(be), row_at(y, m), rows, m, n);
    return FL_OK;
}

static fl_status gather(fl_backend *be, const fl_device_matrix *y, const fl_device_matrix *x,
                        const int32_t *rows, int M, int n, fl_err *err)
{
    (void)be;
    (void)err;
    for (int m = 0; m < M; m++)
        memcpy(row_at(y, m), row_at(x, rows[m]), (size_t)n * sizeof(float));
    return FL_OK;
}

/* ---- sites ------------------------------------------------------------------------------- */

static fl_status encode(fl_backend *be, const fl_device_encode *e, fl_err *err)
{
    const host_backend *h = host(be);
    const fl_device_encoder *c = e->encoder;
    const fl_device_codes *y = &e->out;
    const size_t t_bytes = c->t ? fl__transform_scratch_bytes(&h->ex, c->t->n1, c->t->n2) : 0;
    float *x = zeros((size_t)e->M * (size_t)c->n + 1, sizeof *x);
    void *scratch = zeros(t_bytes + fl__quantize_scratch_bytes(&h->ex, c->n) + 64, 1);
    const fl_rows rows = fl__rows_at(x, c->n);
    (void)err;
    for (int m = 0; m < e->M; m++) make_row(h, x + m * c->n, &e->rows, m, c->n);
    if (c->by_tensor && c->t)
        fl__transform_quantize_static_run(&h->ex, y->data, y->sums, rows, e->M, c->t,
                                          c->by_tensor, scratch);
    else if (c->by_tensor)
        fl__quantize_static_run(&h->ex, y->data, y->sums, rows, e->M, c->by_tensor, scratch);
    else if (c->by_token && c->t)
        fl__transform_quantize_run(&h->ex, y->data, y->sums, y->scales, y->zeros, rows, e->M,
                                   c->t, c->by_token, scratch);
    else if (c->by_token)
        fl__quantize_token_run(&h->ex, y->data, y->sums, y->scales, y->zeros, rows, e->M,
                               c->by_token, scratch);
    else {
        assert_null(c->t);
        assert_null(c->premul);
        for (int m = 0; m < e->M; m++)
            memcpy((float *)y->data + m * y->ld, x + m * c->n, (size_t)c->n * sizeof *x);
    }
    fl__free(&x);
    fl__free(&scratch);
    return FL_OK;
}

/* y [M, N] dense; for float weights. */
static void multiply_floats(const host_backend *h, float *y, const fl_device_linear *l)
{
    const fl_device_weight *w = l->w;
    const fl_linear lin = {.n_out = w->N,
                           .n_in = w->K,
                           .w_type = FL_DTYPE_F32,
                           .w = w->values,
                           .w_bits = 16,
                           .bias = w->has_bias ? w->bias : NULL};
    void *scratch = zeros(fl__linear_float_scratch_bytes(&h->ex), 1);
    fl__linear_float_run(&h->ex, &lin, l->x.data, l->x.ld, l->M, y, w->N, scratch);
    fl__free(&scratch);
}

static void multiply_codes(const host_backend *h, float *y, const fl_device_linear *l)
{
    const fl_device_encoder *e = l->encoder;
    const fl_device_weight *w = l->w;
    const bool token = e->by_token != NULL;
    const int32_t zero = token ? 0 : e->by_tensor->zero;
    const bool has_zeros = token ? e->by_token->asymmetric : zero != 0;
    const fl_gemm g = {.x = l->x.data,
                       .ldx = l->x.ld,
                       .x_sum = l->x.sums,
                       .x_scale = token ? l->x.scales : &e->scale,
                       .x_scale_stride = token,
                       .x_zero = !has_zeros ? NULL
                                 : token    ? l->x.zeros
                                            : &zero,
                       .x_zero_stride = token,
                       .w = &w->packed,
                       .w_scale = w->scale,
                       .w_scale_stride = 1,
                       .bias = w->has_bias ? w->bias : NULL,
                       .y = y,
                       .ldy = w->N,
                       .M = l->M};
    void *scratch = zeros(fl__gemm_scratch_bytes(&h->ex), 1);
    fl__gemm_run(&h->ex, &g, 1, scratch);
    fl__free(&scratch);
}

static void gate_row(const host_backend *h, float *y, const float *pairs, int n)
{
    float *gate = zeros((size_t)n, sizeof *gate), *up = zeros((size_t)n, sizeof *up);
    for (int i = 0; i < n; i++) {
        gate[i] = pairs[2 * i];
        up[i] = pairs[2 * i + 1];
    }
    fl__silu_mul_select(h->ex.isa)->run(y, gate, up, n);
    fl__free(&gate);
    fl__free(&up);
}

static fl_status linear(fl_backend *be, const fl_device_linear *l, fl_err *err)
{
    const host_backend *h = host(be);
    const fl_device_weight *w = l->w;
    float *y = zeros((size_t)l->M * (size_t)w->N + 1, sizeof *y);
    (void)err;
    if (w->bits == 16) multiply_floats(h, y, l);
    else multiply_codes(h, y, l);
    for (int m = 0; m < l->M; m++) {
        float *to = row_at(&l->y, m);
        const float *from = y + m * w->N;
        if (w->gated) gate_row(h, to, from, w->N / 2);
        for (int n = 0; n < w->N && !w->gated; n++)
            to[n] = l->accumulate ? from[n] + to[n] : from[n];
    }
    fl__free(&y);
    return FL_OK;
}

/* ---- attention --------------------------------------------------------------------------- */

static fl_kv_format format_of(int bits)
{
    fl_kv_format f;
    assert_true(fl__kv_format_of_bits(&f, bits));
    return f;
}

static size_t page_bytes(fl_backend *be, const fl_device_kv *kv)
{
    (void)be;
    (void)kv;
    return 64; /* the pages are names only */
}

static size_t attend_bytes(fl_backend *be, const fl_device_kv *kv, int max_seqs, int max_tokens)
{
    (void)be;
    (void)kv;
    (void)max_seqs;
    (void)max_tokens;
    return 0;
}

/* Number of the layer; makes the cache at the first call. */
static int layer_of(host_backend *h, const fl_device_kv *kv)
{
    const fl_kv_options o = {.n_layers = MAX_LAYERS,
                             .n_kv_heads = kv->n_kv_heads,
                             .head_dim = kv->head_dim,
                             .n_sequences = MAX_SEQUENCES,
                             .n_positions = POSITIONS,
                             .k_format = format_of(kv->k_bits),
                             .v_format = format_of(kv->v_bits)};
    if (!h->kv) assert_int_equal(fl__kv_new(&h->kv, &o, NULL), FL_OK);
    for (int i = 0; i < h->n_layers; i++)
        if (h->layers[i] == kv->pages) return i;
    assert_true(h->n_layers < MAX_LAYERS);
    h->layers[h->n_layers] = kv->pages;
    return h->n_layers++;
}

static int sequence_of(const fl_device_kv *kv, int b)
{
    const int seq = kv->table[b * kv->table_stride];
    assert_in_range(seq, 0, MAX_SEQUENCES - 1);
    return seq;
}

/* n heads of a row, rotated, and times the factor. */
static void turn_heads(const host_backend *h, float *y, const float *x, int n, int position,
                       const fl_device_append *a, const fl_device_factor *f)
{
    const int D = a->kv->head_dim;
    const size_t at = (size_t)position * (size_t)(D / 2);
    memcpy(y, x, (size_t)(n * D) * sizeof *y);
    for (int i = 0; i < n && a->cos; i++) fl__rope_head(y + i * D, a->cos + at, a->sin + at, D);
    if (!f) return;
    void *scratch = zeros(fl__transform_scratch_bytes(&h->ex, 1, D), 1);
    fl__transform_run(&h->ex, y, D, y, D, n, &f->t, NULL, scratch);
    fl__free(&scratch);
}

static fl_status append(fl_backend *be, const fl_device_append *a, const fl_device_step *step,
                        fl_err *err)
{
    host_backend *h = host(be);
    const fl_device_kv *kv = a->kv;
    const int layer = layer_of(h, kv), D = kv->head_dim;
    float *k = zeros((size_t)(kv->n_kv_heads * D), sizeof *k);
    (void)err;
    for (int b = 0; b < step->n_seqs; b++) {
        const int seq = sequence_of(kv, b), first = step->first_row[b];
        const int n = step->first_row[b + 1] - first, pos = step->position[b];
        assert_int_equal(step->n_tokens[b], pos + n);
        if (layer == 0) fl__kv_resize(h->kv, seq, pos + n);
        for (int i = 0; i < n; i++) {
            const int m = first + i, place = (pos + i) / FL_BACKEND_PAGE;
            const int page = kv->table[b * kv->table_stride + place];
            assert_in_range(page, 0, MAX_SEQUENCES - 1);
            h->owner[page] = seq * POSITIONS + place;
            assert_int_equal(step->row_position[m], pos + i);
            turn_heads(h, (float *)a->q_out + (size_t)(m * kv->n_heads * D), row_at(&a->q, m),
                       kv->n_heads, pos + i, a, a->q_factor);
            turn_heads(h, k, row_at(&a->k, m), kv->n_kv_heads, pos + i, a, a->k_factor);
            const fl_kv_rows rows = {.k = k, .v = row_at(&a->v, m), .n = 1, .clip = a->clip};
            fl__kv_append(h->kv, h->ex.isa, layer, seq, pos + i, &rows);
        }
    }
    fl__free(&k);
    return FL_OK;
}

static fl_status attend(fl_backend *be, const fl_device_attend *a, const fl_device_step *step,
                        fl_err *err)
{
    host_backend *h = host(be);
    const fl_device_kv *kv = a->kv;
    const size_t n_bytes =
        fl__attention_scratch_bytes(&h->ex, fl__kv_options_of(h->kv), kv->n_heads);
    fl_span spans[MAX_SEQUENCES];
    void *scratch = zeros(n_bytes, 1);
    (void)err;
    for (int b = 0; b < step->n_seqs; b++) {
        for (int i = 0; i * FL_BACKEND_PAGE < step->n_tokens[b]; i++)
            assert_int_equal(h->owner[kv->table[b * kv->table_stride + i]],
                             sequence_of(kv, b) * POSITIONS + i);
        spans[b] = (fl_span){.seq = sequence_of(kv, b),
                             .pos = step->position[b],
                             .n_rows = step->first_row[b + 1] - step->first_row[b]};
    }
    const fl_attention c = {.kv = h->kv,
                            .layer = layer_of(h, kv),
                            .spans = spans,
                            .n_spans = step->n_seqs,
                            .n_heads = kv->n_heads,
                            .q = a->q,
                            .out = a->y.data,
                            .q_stride = kv->n_heads * kv->head_dim,
                            .out_stride = a->y.ld,
                            .scratch = scratch,
                            .scratch_bytes = n_bytes};
    fl__attention_run(&h->ex, &c);
    fl__free(&scratch);
    return FL_OK;
}

/* ---- the table --------------------------------------------------------------------------- */

static void close_backend(fl_backend **be)
{
    fl__kv_free(&host(*be)->kv);
    fl__free(be);
}

static fl_status download(fl_backend *be, void *dst, const void *device, size_t n_bytes,
                          fl_err *err)
{
    return copy_in(be, dst, device, n_bytes, err);
}

static const fl_backend_ops ops = {
    .close = close_backend,
    .alloc = alloc,
    .release = release,
    .upload = copy_in,
    .download = download,
    .clear = clear,
    .send = copy_in,
    .wait = wait_for,
    .weight_new = weight_new,
    .weight_fill = weight_fill,
    .weight_free = weight_free,
    .encoder_new = encoder_new,
    .encoder_free = encoder_free,
    .factor_new = factor_new,
    .factor_free = factor_free,
    .kv_page_bytes = page_bytes,
    .attend_bytes = attend_bytes,
    .embed = embed,
    .norm = norm,
    .encode = encode,
    .linear = linear,
    .append = append,
    .attend = attend,
    .gather = gather,
};

fl_backend *fl_test_host_backend(const fl_exec *ex, bool gates)
{
    host_backend *h = zeros(1, sizeof *h);
    h->ex = *ex;
    h->base.ops = &ops;
    h->base.gates = gates;
    h->base.f32_activations = true;
    return &h->base;
}
