/* tune_block.c - forward and backward of a rounded block; every buffer is there from _new on.
 * SPDX-License-Identifier: MIT */
#include "quant/tune/tune_block.h"

#include "base/buffers.h"
#include "base/mem.h"
#include "quant/flatquant/flatquant_site.h"
#include "quant/tune/tune_static.h"
#include "train/fake_quant.h"
#include "train/train_activation.h"
#include "train/train_attention.h"
#include "train/train_gemm.h"
#include "train/train_norm.h"
#include "train/train_rope.h"
#include "train/train_rows.h"

#include <string.h>

struct fl_tune_pass {
    const fl_model *model;
    const fl_exec *ex;
    const fl_block *block;
    fl_tune_factors *f;
    int max_rows, T, D, H, G, hd, F;
    bool opt;
    fl_fake_quant key, value;
    fl_train_gemm *gemm;
    fl_train_attention *attention;
    fl_kron *kron;
    float *gain[2];            /* [D] */
    float *w[FL_N_LINEARS];    /* [N, K] codes times scales and factors */
    float *xt[FL_N_SITES];     /* [rows, K] transformed input */
    float *x_hat;              /* [rows, widest] of the site at hand */
    float *norm[2], *mean[2], *inv[2];
    float *q, *k, *v, *q_h, *k_h, *k_hat, *v_hat, *att, *lse;
    float *o, *h, *gate, *up, *t, *down;
    float *d[4];               /* [rows, widest] gradients on their way */
    float *ones;               /* [rows] */
    const fl_train_rows *rows;
};

/* ---- factors ----------------------------------------------------------------------------- */

fl_status fl__tune_factors_init(fl_tune_factors *f, const fl_model *model,
                                const fl_block *block, fl_err *err)
{
    const size_t D = (size_t)model->cfg.hidden_size;
    *f = (fl_tune_factors){.n = 2 * D};
    for (int i = 0; i < FL_N_LINEARS; i++) {
        const fl_linear *lin = &block->linear[i];
        if (lin->n_out && lin->w_bits != 16)
            f->n += lin->w_scale_stride ? (size_t)lin->n_out : 1;
    }
    f->p = fl__alloc(f->n, sizeof *f->p);
    f->g = fl__calloc(f->n, sizeof *f->g);
    if (!f->p || !f->g) {
        fl__tune_factors_fini(f);
        return fl__fail_nomem(err, "tuning", f->n * 2 * sizeof *f->p);
    }
    for (size_t i = 0; i < f->n; i++) f->p[i] = 1;
    float *at = f->p;
    for (int i = 0; i < 2; i++, at += D) f->norm[i] = at;
    for (int i = 0; i < FL_N_LINEARS; i++) {
        const fl_linear *lin = &block->linear[i];
        if (!lin->n_out || lin->w_bits == 16) continue;
        f->scale[i] = at;
        at += lin->w_scale_stride ? lin->n_out : 1;
    }
    return FL_OK;
}

void fl__tune_factors_fini(fl_tune_factors *f)
{
    fl__free(&f->p);
    fl__free(&f->g);
    *f = (fl_tune_factors){0};
}

/* ---- memory ------------------------------------------------------------------------------ */

enum { MAX_BUFFERS = 48 };
static int list_buffers(fl_float_buffer list[MAX_BUFFERS], fl_tune_pass *s)
{
    const size_t R = (size_t)s->max_rows, D = (size_t)s->D, F = (size_t)s->F;
    const size_t HD = (size_t)s->H * (size_t)s->hd, GD = (size_t)s->G * (size_t)s->hd;
    const size_t wide = FL_MAX(F, FL_MAX(HD, D));
    int n = 0;
    for (int i = 0; i < FL_N_LINEARS; i++) {
        int N, K;
        fl__linear_shape(&N, &K, &s->model->cfg, i);
        if (N) list[n++] = (fl_float_buffer){&s->w[i], (size_t)N * (size_t)K};
    }
    const fl_float_buffer all[] = {
        {&s->gain[0], D}, {&s->gain[1], D}, {&s->xt[FL_SITE_QKV], R * D},
        {&s->xt[FL_SITE_O], R * HD}, {&s->xt[FL_SITE_UP], R * D}, {&s->xt[FL_SITE_DOWN], R * F},
        {&s->x_hat, R * wide}, {&s->norm[0], R * D}, {&s->norm[1], R * D}, {&s->mean[0], R},
        {&s->mean[1], R}, {&s->inv[0], R}, {&s->inv[1], R}, {&s->q, R * HD}, {&s->k, R * GD},
        {&s->v, R * GD}, {&s->q_h, R * HD}, {&s->k_h, R * GD}, {&s->k_hat, R * GD},
        {&s->v_hat, R * GD}, {&s->att, R * HD}, {&s->lse, R * (size_t)s->H}, {&s->o, R * D},
        {&s->h, R * D}, {&s->gate, s->opt ? 0 : R * F}, {&s->up, R * F}, {&s->t, R * F},
        {&s->down, R * D}, {&s->d[0], R * wide}, {&s->d[1], R * wide}, {&s->d[2], R * wide},
        {&s->d[3], R * wide}, {&s->ones, R},
    };
    for (size_t i = 0; i < FL_COUNT(all); i++)
        if (all[i].n) list[n++] = all[i];
    return n;
}

static void set_shape(fl_tune_pass *s, const fl_model *model, int max_rows, int T)
{
    const fl_model_config *cfg = &model->cfg;
    s->model = model;
    s->max_rows = max_rows;
    s->T = T;
    s->D = cfg->hidden_size;
    s->H = cfg->n_heads;
    s->G = cfg->n_kv_heads;
    s->hd = cfg->head_dim;
    s->F = cfg->ffn_size;
    s->opt = cfg->family == FL_FAMILY_OPT;
}

static fl_fake_quant cache_quantiser(fl_kv_format format)
{
    const int bits = fl__kv_code_bits(format);
    return (fl_fake_quant){.bits = bits ? bits : 16, .asymmetric = true, .f16_scale = true};
}

fl_status fl__tune_pass_new(fl_tune_pass **out, const fl_model *model, const fl_exec *ex,
                            int n_windows, int seq_len, bool bf16, fl_err *err)
{
    fl_float_buffer list[MAX_BUFFERS];
    *out = NULL;
    fl_tune_pass *s = fl__calloc(1, sizeof *s);
    if (!s) return fl__fail_nomem(err, "tuning", sizeof *s);
    set_shape(s, model, n_windows * seq_len, seq_len);
    s->ex = ex;
    s->rows = fl__train_rows_select(ex->isa);
    s->key = cache_quantiser(model->stream_k_format);
    s->value = cache_quantiser(model->stream_v_format);
    const int n = list_buffers(list, s);
    fl_status st = fl__buffers_alloc(list, n, "tuning", err);
    for (int r = 0; r < s->max_rows && !st; r++) s->ones[r] = 1;
    if (!st) st = fl__train_gemm_new(&s->gemm, ex, bf16, err);
    if (!st) st = fl__train_attention_new(
            &s->attention, ex,
            &(fl_train_attention_shape){n_windows, seq_len, s->H, s->G, s->hd}, bf16, err);
    if (!st) st = fl__kron_new(&s->kron, ex, err);
    if (st)
        fl__tune_pass_free(&s);
    else
        *out = s;
    return st;
}

void fl__tune_pass_free(fl_tune_pass **pass)
{
    fl_float_buffer list[MAX_BUFFERS];
    fl_tune_pass *s = *pass;
    if (!s) return;
    const int n = list_buffers(list, s);
    fl__buffers_free(list, n);
    fl__train_gemm_free(&s->gemm);
    fl__train_attention_free(&s->attention);
    fl__kron_free(&s->kron);
    fl__free(pass);
}

size_t fl__tune_pass_bytes(const fl_model *model, int n_rows)
{
    fl_tune_pass s = {0};
    fl_float_buffer list[MAX_BUFFERS];
    set_shape(&s, model, n_rows, n_rows);
    const int count = list_buffers(list, &s);
    return fl__buffers_count(list, count) * sizeof(float);
}

/* ---- weights ----------------------------------------------------------------------------- */

enum { WEIGHT_ROWS = 16 };
typedef struct weight_job {
    float *to;
    const fl_linear *lin;
    const float *factor; /* NULL: 1 */
    size_t columns;      /* of the codes: n_in and digits that repeat */
} weight_job;

static void weight_item(void *arg, int64_t item, int thread)
{
    const weight_job *j = arg;
    const fl_linear *lin = j->lin;
    const size_t K = (size_t)lin->n_in, stride = j->columns;
    (void)thread;
    for (int n = (int)item * WEIGHT_ROWS; n < FL_MIN((int)(item + 1) * WEIGHT_ROWS, lin->n_out);
         n++) {
        float *to = j->to + (size_t)n * K;
        if (lin->w_bits == 16) {
            const size_t bytes = fl__dtype_bytes(lin->w_type);
            fl__dtype_to_f32(to, lin->w_type, (const char *)lin->w + (size_t)n * K * bytes, K);
            continue;
        }
        const float scale = lin->w_scale[n * lin->w_scale_stride] *
                            (j->factor ? j->factor[n * lin->w_scale_stride] : 1.0f);
        if (lin->w_bits == 8) {
            const int8_t *q = (const int8_t *)lin->w + (size_t)n * stride;
            for (size_t k = 0; k < K; k++) to[k] = (float)q[k] * scale;
            continue;
        }
        const uint8_t *q = (const uint8_t *)lin->w + (size_t)n * ((stride + 1) / 2);
        for (size_t k = 0; k < K; k++) {
            const int nibble = k % 2 ? q[k / 2] >> 4 : q[k / 2] & 15;
            to[k] = (float)((nibble ^ 8) - 8) * scale;
        }
    }
}

void fl__tune_pass_load(fl_tune_pass *s, const fl_block *block, fl_tune_factors *factors)
{
    s->block = block;
    s->f = factors;
    s->key.clip_max = block->kv_clip[0];
    s->key.clip_min = block->kv_clip[1];
    s->value.clip_max = block->kv_clip[2];
    s->value.clip_min = block->kv_clip[3];
    for (int i = 0; i < 2; i++)
        for (int c = 0; c < s->D; c++)
            s->gain[i][c] = block->norm[i].gain[c] * factors->norm[i][c];
    for (int i = 0; i < FL_N_SITES; i++) {
        const fl_site *site = &block->site[i];
        for (int k = 0; k < site->n_linears; k++) {
            const int which = (int)(site->linears[k] - block->linear);
            weight_job j = {s->w[which], site->linears[k], factors->scale[which],
                            (size_t)fl__site_weight_columns(site)};
            fl__parallel_for(s->ex, (j.lin->n_out + WEIGHT_ROWS - 1) / WEIGHT_ROWS, weight_item,
                             &j);
        }
    }
}

/* ---- sites ------------------------------------------------------------------------------- */

static fl_fake_quant quantiser(const fl_site *site, int linear)
{
    const float top = site->clip_max[linear], bottom = site->clip_min[linear];
    return (fl_fake_quant){.bits = site->act == FL_ACT_FLOAT ? 16 : site->a_bits,
                           .asymmetric = site->asymmetric,
                           .clip_max = top > 0 ? top : 1.0f,
                           .clip_min = bottom > 0 ? bottom : 1.0f};
}

static bool is_new_range(const fl_site *site, int linear)
{
    return linear == 0 || site->clip_max[linear] != site->clip_max[linear - 1] ||
           site->clip_min[linear] != site->clip_min[linear - 1];
}

/* x_hat = x as a linear of the site meets it. */
static void quantise(fl_tune_pass *s, const fl_site *site, int linear, const float *x, int R)
{
    const fl_fake_quant q = quantiser(site, linear);
    if (site->act == FL_ACT_STATIC)
        fl__tune_static_rows(s->ex, site, s->x_hat, x, R);
    else
        fl__fake_quant_rows(s->ex, &q, s->x_hat, NULL, NULL, NULL, x, R, site->n_in);
}

static void quantise_grad(fl_tune_pass *s, const fl_site *site, int linear, float *d,
                          const float *x, int R)
{
    const fl_fake_quant q = quantiser(site, linear);
    double ignored[2];
    if (site->act == FL_ACT_STATIC)
        fl__tune_static_grad(s->ex, site, d, d, x, R);
    else
        fl__fake_quant_rows_grad(s->ex, &q, d, ignored, d, x, R, site->n_in);
}

typedef struct multiply_job {
    float *y;
    const float *x, *by;
    size_t n_rows, n;
} multiply_job;

enum { MULTIPLY_ROWS = 64 };
static void multiply_item(void *arg, int64_t item, int thread)
{
    const multiply_job *j = arg;
    const size_t from = (size_t)item * MULTIPLY_ROWS,
                 to = FL_MIN(from + MULTIPLY_ROWS, j->n_rows);
    (void)thread;
    for (size_t r = from; r < to; r++)
        for (size_t c = 0; c < j->n; c++) j->y[r * j->n + c] = j->x[r * j->n + c] * j->by[c];
}

static void multiply(const fl_exec *ex, float *y, const float *x, const float *by, int R, int n)
{
    multiply_job j = {y, x, by, (size_t)R, (size_t)n};
    fl__parallel_for(ex, (R + MULTIPLY_ROWS - 1) / MULTIPLY_ROWS, multiply_item, &j);
}

/* y[i] [R, N_i] = the site's linears on x [R, n_in]. */
static fl_status site_forward(fl_tune_pass *s, int which, float *const *y,
                              const float *x, int R, fl_err *err)
{
    const fl_site *site = &s->block->site[which];
    const fl_transform *t = &site->transform;
    float *xt = s->xt[which];
    fl_status st = FL_OK;
    if (site->premul) {
        multiply(s->ex, xt, x, site->premul, R, site->n_in);
        x = xt;
    }
    if (t->n1)
        st = fl__kron_rows(s->kron, xt, x, R, t->n1, t->n2, t->left, t->right, err);
    else if (x != xt)
        memcpy(xt, x, (size_t)R * (size_t)site->n_in * sizeof *xt);
    for (int i = 0; i < site->n_linears && !st; i++) {
        const fl_linear *lin = site->linears[i];
        if (is_new_range(site, i)) quantise(s, site, i, xt, R);
        st = fl__train_gemm_nt(s->gemm, R, lin->n_out, lin->n_in, s->x_hat,
                               s->w[lin - s->block->linear], 0, y[i], err);
        if (!st && lin->bias) fl__flatquant_add_bias(s->ex, y[i], lin->bias, R, lin->n_out);
    }
    return st;
}

/* ---- factors of the weight scales -------------------------------------------------------- */

enum { COLUMNS = 64 };
typedef struct column_job {
    fl_tune_pass *s;
    float *products, *sums; /* [n] */
    const float *dy, *y;
    int n_rows, n;
} column_job;

static void column_item(void *arg, int64_t item, int thread)
{
    const column_job *j = arg;
    const int at = (int)item * COLUMNS;
    (void)thread;
    j->s->rows->norm_gain_grad(j->products + at, j->sums + at, j->dy + at, j->y + at, NULL,
                               j->s->ones, j->n_rows, j->n, FL_MIN(COLUMNS, j->n - at));
}

/* Gradient of a linear's factors: sum over rows of dy (y - bias) / factor, added up in double
 * where one factor serves all outputs. */
static void factor_gradient(fl_tune_pass *s, int which, const float *dy, const float *y, int R)
{
    const fl_linear *lin = &s->block->linear[which];
    float *factor = s->f->scale[which], *to;
    if (!factor) return;
    float *sum = s->d[3], *dy_sum = sum + lin->n_out; /* free here, a few rows of it used */
    column_job j = {s, sum, dy_sum, dy, y, R, lin->n_out};
    fl__parallel_for(s->ex, (lin->n_out + COLUMNS - 1) / COLUMNS, column_item, &j);
    for (int n = 0; lin->bias && n < lin->n_out; n++) sum[n] -= dy_sum[n] * lin->bias[n];
    to = fl__tune_gradient(s->f, factor);
    if (lin->w_scale_stride) {
        for (int n = 0; n < lin->n_out; n++) to[n] = sum[n] / factor[n];
        return;
    }
    double all = 0;
    for (int n = 0; n < lin->n_out; n++) all += (double)sum[n];
    to[0] = (float)(all / (double)factor[0]);
}

/* dx [R, n_in] (must not be one of dy) from dy of the linears and what they gave, y. */
static fl_status site_backward(fl_tune_pass *s, int which, float *dx,
                               float *const *dy,
                               float *const *y, int R, fl_err *err)
{
    const fl_site *site = &s->block->site[which];
    const fl_transform *t = &site->transform;
    const int64_t n = (int64_t)R * site->n_in;
    fl_status st = FL_OK;
    float *part = dx; /* of the linears that share a range; the first one's place is dx */
    for (int i = 0; i < site->n_linears && !st; i++) {
        const fl_linear *lin = site->linears[i];
        const int number = (int)(lin - s->block->linear);
        const bool first = is_new_range(site, i);
        const bool last = i + 1 == site->n_linears || is_new_range(site, i + 1);
        if (y[i]) factor_gradient(s, number, dy[i], y[i], R);
        if (first && i > 0) part = s->x_hat;
        st = fl__train_gemm_nn(s->gemm, R, lin->n_in, lin->n_out, dy[i], s->w[number],
                               first ? 0 : 1, part, err);
        if (st || !last) continue;
        quantise_grad(s, site, i, part, s->xt[which], R);
        if (part != dx) fl__add_forward(s->ex, dx, dx, part, n);
    }
    if (!st && t->n1)
        st = fl__kron_rows_grad(s->kron, dx, NULL, NULL, dx, s->xt[which], R, t->n1, t->n2,
                                t->left, t->right, err);
    if (!st && site->premul) multiply(s->ex, dx, dx, site->premul, R, site->n_in);
    return st;
}

/* ---- norms, heads ------------------------------------------------------------------------ */

static void norm_forward(fl_tune_pass *s, int which, const float *x, int R)
{
    const double eps = s->model->cfg.norm_eps;
    if (s->opt)
        fl__layer_norm_rows(s->ex, s->norm[which], s->mean[which], s->inv[which], x,
                            s->gain[which], s->block->norm[which].bias, R, s->D, eps);
    else
        fl__rms_norm_rows(s->ex, s->norm[which], s->inv[which], x, s->gain[which], R, s->D,
                          eps);
}

/* dx = gradient of the norm's input for d of its output; the factors' gradient on the way. */
static void norm_backward(fl_tune_pass *s, int which, float *dx, const float *d, const float *x,
                          int R)
{
    float *to = fl__tune_gradient(s->f, s->f->norm[which]);
    if (s->opt)
        fl__layer_norm_grad(s->ex, dx, to, NULL, d, x, s->gain[which], s->mean[which],
                            s->inv[which], R, s->D);
    else
        fl__rms_norm_grad(s->ex, dx, to, d, x, s->gain[which], s->inv[which], R, s->D);
    for (int c = 0; c < s->D; c++) to[c] *= s->block->norm[which].gain[c];
}

static fl_status heads_forward(fl_tune_pass *s, int R, fl_err *err)
{
    const fl_transform *tq = &s->block->head_transform_q, *tk = &s->block->head_transform_k;
    const float *c = s->model->rope_cos, *sn = s->model->rope_sin;
    const size_t nq = (size_t)R * (size_t)(s->H * s->hd),
                 nk = (size_t)R * (size_t)(s->G * s->hd);
    fl_status st = FL_OK;
    memcpy(s->q_h, s->q, nq * sizeof(float));
    memcpy(s->k_h, s->k, nk * sizeof(float));
    if (c) {
        fl__rope_rows(s->ex, s->q_h, c, sn, R, s->T, s->H, s->hd);
        fl__rope_rows(s->ex, s->k_h, c, sn, R, s->T, s->G, s->hd);
    }
    if (tq->n1)
        st = fl__kron_rows(s->kron, s->q_h, s->q_h, (int64_t)R * s->H, 1, s->hd, NULL,
                           tq->right, err);
    if (!st && tk->n1)
        st = fl__kron_rows(s->kron, s->k_h, s->k_h, (int64_t)R * s->G, 1, s->hd, NULL,
                           tk->right, err);
    fl__fake_quant_rows(s->ex, &s->key, s->k_hat, NULL, NULL, NULL, s->k_h, (int64_t)R * s->G,
                        s->hd);
    fl__fake_quant_rows(s->ex, &s->value, s->v_hat, NULL, NULL, NULL, s->v, (int64_t)R * s->G,
                        s->hd);
    return st;
}

/* d[0..2]: gradients of queries, keys, values as the attention sees them, become those of q, k,
 * v. */
static fl_status heads_backward(fl_tune_pass *s, int R, fl_err *err)
{
    const fl_transform *tq = &s->block->head_transform_q, *tk = &s->block->head_transform_k;
    const float *c = s->model->rope_cos, *sn = s->model->rope_sin;
    float *dq = s->d[0], *dk = s->d[1], *dv = s->d[2];
    double ignored[2];
    fl_status st = FL_OK;
    fl__fake_quant_rows_grad(s->ex, &s->value, dv, ignored, dv, s->v, (int64_t)R * s->G, s->hd);
    fl__fake_quant_rows_grad(s->ex, &s->key, dk, ignored, dk, s->k_h, (int64_t)R * s->G, s->hd);
    if (tk->n1)
        st = fl__kron_rows_grad(s->kron, dk, NULL, NULL, dk, s->k, (int64_t)R * s->G, 1, s->hd,
                                NULL, tk->right, err);
    if (!st && tq->n1)
        st = fl__kron_rows_grad(s->kron, dq, NULL, NULL, dq, s->q, (int64_t)R * s->H, 1, s->hd,
                                NULL, tq->right, err);
    if (st || !c) return st;
    fl__rope_grad_rows(s->ex, dq, c, sn, R, s->T, s->H, s->hd);
    fl__rope_grad_rows(s->ex, dk, c, sn, R, s->T, s->G, s->hd);
    return FL_OK;
}

/* ---- the block --------------------------------------------------------------------------- */

fl_status fl__tune_pass_forward(fl_tune_pass *s, float *y, const float *x, int n_windows,
                                fl_err *err)
{
    const int R = n_windows * s->T;
    const int64_t n = (int64_t)R * s->D, nf = (int64_t)R * s->F;
    float *const qkv[] = {s->q, s->k, s->v}, *const o[] = {s->o}, *const down[] = {s->down};
    float *const fc[] = {s->up}, *const gate_up[] = {s->gate, s->up};
    fl_status st;
    norm_forward(s, 0, x, R);
    if ((st = site_forward(s, FL_SITE_QKV, qkv, s->norm[0], R, err)) ||
        (st = heads_forward(s, R, err)) ||
        (st = fl__train_attention_forward(s->attention, s->att, s->lse, s->q_h, s->k_hat,
                                          s->v_hat, n_windows, err)) ||
        (st = site_forward(s, FL_SITE_O, o, s->att, R, err)))
        return st;
    fl__add_forward(s->ex, s->h, s->o, x, n);
    norm_forward(s, 1, s->h, R);
    if ((st = site_forward(s, FL_SITE_UP, s->opt ? fc : gate_up, s->norm[1], R, err)))
        return st;
    if (s->opt)
        fl__relu_forward(s->ex, s->t, s->up, nf);
    else
        fl__silu_mul_forward(s->ex, s->t, s->gate, s->up, nf);
    if ((st = site_forward(s, FL_SITE_DOWN, down, s->t, R, err))) return st;
    fl__add_forward(s->ex, y, s->down, s->h, n);
    return FL_OK;
}

static fl_status mlp_backward(fl_tune_pass *s, float *dy, int R, fl_err *err)
{
    const int64_t nf = (int64_t)R * s->F;
    float *const d_down[] = {dy}, *const down[] = {s->down};
    float *const fc[] = {s->up}, *const d_fc[] = {s->d[2]};
    float *const gate_up[] = {s->gate, s->up}, *const d_gate_up[] = {s->d[1], s->d[2]};
    fl_status st = site_backward(s, FL_SITE_DOWN, s->d[0], d_down, down, R, err);
    if (st) return st;
    if (s->opt)
        fl__relu_grad(s->ex, s->d[2], s->d[0], s->up, nf);
    else
        fl__silu_mul_grad(s->ex, s->d[1], s->d[2], s->d[0], s->gate, s->up, nf);
    st = site_backward(s, FL_SITE_UP, s->d[0], s->opt ? d_fc : d_gate_up,
                       s->opt ? fc : gate_up, R, err);
    if (st) return st;
    norm_backward(s, 1, s->d[1], s->d[0], s->h, R);
    fl__add_forward(s->ex, dy, dy, s->d[1], (int64_t)R * s->D);
    return FL_OK;
}

fl_status fl__tune_pass_backward(fl_tune_pass *s, float *dy, const float *x, int n_windows,
                                 fl_err *err)
{
    const int R = n_windows * s->T;
    float *const d_o[] = {dy}, *const o[] = {s->o};
    float *const d_qkv[] = {s->d[0], s->d[1], s->d[2]}, *const qkv[] = {s->q, s->k, s->v};
    float *const d_att = s->d[3];
    fl_status st = mlp_backward(s, dy, R, err);
    if (st) return st;
    if ((st = site_backward(s, FL_SITE_O, d_att, d_o, o, R, err)) ||
        (st = fl__train_attention_grad(s->attention, s->d[0], s->d[1], s->d[2], d_att, s->att,
                                       s->lse, s->q_h, s->k_hat, s->v_hat, n_windows, err)) ||
        (st = heads_backward(s, R, err)) ||
        (st = site_backward(s, FL_SITE_QKV, s->down, d_qkv, qkv, R, err)))
        return st;
    norm_backward(s, 0, s->o, s->down, x, R);
    fl__add_forward(s->ex, dy, dy, s->o, (int64_t)R * s->D);
    return FL_OK;
}
