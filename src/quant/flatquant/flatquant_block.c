/* flatquant_block.c - the quantised block, forward and backward, as one list of steps.
 *
 *   attention half                                  MLP half
 *   norm0 * c -> site qkv -> q, k, v                norm1 * c -> site up -> gate, up
 *   RoPE; q P_h^-T, k P_h; k, v quantised           t = silu(gate) * up, or relu(up)
 *   attention -> site o -> h = x + o                site down -> y = h + down
 *
 * Post-norm blocks (OPT-350M) have the norms behind the sums; what norms put out is the
 * residual too, and the scales multiply the sites' inputs as they are:
 *
 *   x * c -> site qkv -> .. -> site o -> h = x + o     mid * c -> site up -> .. -> site down
 *   mid = norm0(h)                                     y = norm1(mid + down)
 *
 * Every buffer is there from _new on; a step allocates nothing. Each half's backward pass runs
 * its steps in reverse; gradients that several steps contribute to (factors, scales) are zeroed
 * first and added to.
 * SPDX-License-Identifier: MIT */
#include "quant/flatquant/flatquant.h"

#include "base/buffers.h"
#include "base/mem.h"
#include "quant/flatquant/flatquant_site.h"
#include "quant/flatquant/flatquant_weight.h"
#include "train/fake_quant.h"
#include "train/train_activation.h"
#include "train/train_attention.h"
#include "train/train_gemm.h"
#include "train/train_norm.h"
#include "train/train_rope.h"

#include <string.h>

/* Keys or values as the cache will hold them. */
typedef struct kv_part {
    fl_fake_quant q;
    fl_flatquant_clip *clip;
    float *x_hat; /* [rows, kv width] owned */
} kv_part;

struct fl_flatquant_pass {
    const fl_model *model;
    const fl_block *block;
    fl_flatquant_params *p;
    const fl_exec *ex;
    fl_exec one; /* ex on the calling thread: inside items */
    int max_rows, T;
    int D, H, G, hd, F; /* hidden, heads, KV heads, head width, MLP width */
    bool opt, post; /* post: norms behind the sums */
    fl_train_gemm *gemm;
    fl_train_attention *attention;
    fl_kron *kron;
    fl_flatquant_weight weight[FL_N_LINEARS];
    int place[FL_N_LINEARS];  /* of a linear among those of its site */
    fl_flatquant_act act[FL_N_SITES];
    kv_part key, value;
    const float *x;           /* [rows, D] the batch, borrowed */
    float *dy;                /* [rows, D] borrowed: gradient of y, then of h */
    float *gain[2], *bias[2]; /* [D] norms, with the scales folded in unless post; bias: OPT */
    float *mean[2], *inv[2];  /* [rows] of the norms */
    float *in[2];             /* [rows, D] inputs of the sites qkv, up */
    float *q, *k, *v;         /* [rows, H hd], [rows, G hd]: after RoPE */
    float *q_h, *k_h;         /* q P_h^-T, k P_h; copies of q, k without P_h */
    float *att, *lse;         /* [rows, H hd], [rows, H] */
    float *h, *y;             /* [rows, D] */
    float *mid, *sum;         /* [rows, D] post: norm0(h), what norm1 gets; else NULL */
    float *gate, *up, *t;     /* [rows, F] */
    float *d_wide[3];         /* [rows, widest] gradients on their way */
    float *d_hidden;          /* [rows, D] */
    float *d_part[FL_SITE_MAX_LINEARS - 1]; /* [rows, D] gradients of a site's second x_hat and
                                               third; NULL: no linear clips alone */
    float *d_w;               /* [widest weight] */
    float *work;              /* small matrices */
    fl_train_operand d_operand; /* the gradient of a linear's output */
    fl_flatquant_means means;
};

/* ---- memory ------------------------------------------------------------------------------ */

enum { MAX_BUFFERS = 40 };
static size_t most(size_t a, size_t b)
{
    return a > b ? a : b;
}

/* What the pass owns beside weights and sites; the same list allocates, counts and frees. */
static int list_buffers(fl_float_buffer list[MAX_BUFFERS], fl_flatquant_pass *s)
{
    const size_t R = (size_t)s->max_rows, D = (size_t)s->D, F = (size_t)s->F;
    const size_t HD = (size_t)s->H * (size_t)s->hd, GD = (size_t)s->G * (size_t)s->hd;
    const size_t wide = most(F, most(HD, D)), apart = s->p->o.clip_per_linear ? R * D : 0;
    size_t widest_w = 0, matrices = 0;
    int n = 0;
    for (int i = 0; i < FL_N_LINEARS; i++)
        widest_w = most(widest_w, (size_t)s->p->linear[i].N * (size_t)s->p->linear[i].K);
    for (int i = 0; i < FL_N_SITES; i++) {
        const size_t l = (size_t)s->p->site[i].n_left, r = (size_t)s->p->site[i].n_right;
        matrices = most(matrices, l * l + r * r);
    }
    const fl_float_buffer all[] = {
        {&s->gain[0], D}, {&s->gain[1], D}, {&s->bias[0], D}, {&s->bias[1], D},
        {&s->in[0], R * D}, {&s->in[1], R * D}, {&s->mean[0], R}, {&s->mean[1], R},
        {&s->mid, s->post ? R * D : 0}, {&s->sum, s->post ? R * D : 0},
        {&s->inv[0], R}, {&s->inv[1], R}, {&s->q, R * HD}, {&s->k, R * GD}, {&s->v, R * GD},
        {&s->q_h, R * HD}, {&s->k_h, R * GD}, {&s->att, R * HD},
        {&s->lse, R * (size_t)s->H}, {&s->h, R * D}, {&s->y, R * D},
        {&s->gate, s->opt ? 0 : R * F}, {&s->up, R * F}, {&s->t, R * F},
        {&s->d_wide[0], R * wide}, {&s->d_wide[1], R * wide}, {&s->d_wide[2], R * wide},
        {&s->d_hidden, R * most(HD, D)}, {&s->d_part[0], apart}, {&s->d_part[1], apart},
        {&s->d_w, widest_w},
        {&s->work, most(matrices, (size_t)(s->hd * s->hd))},
        {&s->key.x_hat, R * GD}, {&s->value.x_hat, R * GD},
    };
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        if (all[i].n) list[n++] = all[i];
    return n;
}

static void set_shape(fl_flatquant_pass *s, const fl_model *model, fl_flatquant_params *params,
                      int max_rows, int T)
{
    const fl_model_config *cfg = &model->cfg;
    s->model = model;
    s->p = params;
    s->max_rows = max_rows;
    s->T = T;
    s->D = cfg->hidden_size;
    s->H = cfg->n_heads;
    s->G = cfg->n_kv_heads;
    s->hd = cfg->head_dim;
    s->F = cfg->ffn_size;
    s->opt = cfg->family == FL_FAMILY_OPT;
    s->post = !cfg->pre_norm;
}

static fl_status init_parts(fl_flatquant_pass *s, fl_err *err)
{
    fl_flatquant_params *p = s->p;
    fl_status st = FL_OK;
    for (int i = 0; i < FL_N_SITES && !st; i++) {
        st = fl__flatquant_act_init(&s->act[i], &p->site[i], s->max_rows, s->ex, s->gemm, err);
        s->act[i].right_folded = i == FL_SITE_O;
        s->act[i].scaled_here = i == FL_SITE_QKV || i == FL_SITE_UP;
    }
    for (int i = 0; i < FL_N_SITES && !st; i++)
        for (int k = 0; k < s->block->site[i].n_linears && !st; k++) {
            const int lin = (int)(s->block->site[i].linears[k] - s->block->linear);
            fl_factor *head = &p->site[FL_SITE_O].right;
            s->place[lin] = k;
            st = fl__flatquant_weight_init(
                &s->weight[lin], &p->linear[lin], &p->site[i],
                lin == FL_LIN_V && head->n ? head : NULL,
                lin == FL_LIN_UP && p->site[FL_SITE_DOWN].c ? &p->site[FL_SITE_DOWN] : NULL,
                &p->o, err);
        }
    s->key = (kv_part){.q = {.bits = p->o.k_bits, .asymmetric = true, .f16_scale = true},
                       .clip = &p->k_clip};
    s->value = (kv_part){.q = {.bits = p->o.v_bits, .asymmetric = true, .f16_scale = true},
                         .clip = &p->v_clip};
    return st;
}

fl_status fl__flatquant_pass_new(fl_flatquant_pass **out, const fl_model *model,
                                 const fl_block *block, fl_flatquant_params *params,
                                 const fl_exec *ex, int n_windows, int seq_len, fl_err *err)
{
    fl_float_buffer list[MAX_BUFFERS];
    *out = NULL;
    fl_flatquant_pass *s = fl__calloc(1, sizeof *s);
    if (!s) return fl__fail_nomem(err, "training", sizeof *s);
    set_shape(s, model, params, n_windows * seq_len, seq_len);
    s->block = block;
    s->ex = ex;
    s->one = (fl_exec){ex->isa, 1};
    fl_status st = fl__train_gemm_new(&s->gemm, ex, params->o.bf16, err);
    if (!st) st = init_parts(s, err);
    const int n = list_buffers(list, s);
    if (!st) st = fl__buffers_alloc(list, n, "training", err);
    if (!st) st = fl__train_attention_new(
            &s->attention, ex,
            &(fl_train_attention_shape){n_windows, seq_len, s->H, s->G, s->hd},
            params->o.bf16, err);
    if (!st) st = fl__kron_new(&s->kron, ex, err);
    s->means = (fl_flatquant_means){ex, s->kron, s->gemm, &params->o, s->work};
    if (st)
        fl__flatquant_pass_free(&s);
    else
        *out = s;
    return st;
}

void fl__flatquant_pass_free(fl_flatquant_pass **pass)
{
    fl_float_buffer list[MAX_BUFFERS];
    fl_flatquant_pass *s = *pass;
    if (!s) return;
    const int n = list_buffers(list, s);
    fl__buffers_free(list, n);
    for (int i = 0; i < FL_N_SITES; i++) fl__flatquant_act_fini(&s->act[i]);
    for (int i = 0; i < FL_N_LINEARS; i++) fl__flatquant_weight_fini(&s->weight[i]);
    fl__train_operand_fini(&s->d_operand);
    fl__train_gemm_free(&s->gemm);
    fl__train_attention_free(&s->attention);
    fl__kron_free(&s->kron);
    fl__free(pass);
}

/* Parameters that know their sizes and nothing else. */
static void shape_params(fl_flatquant_params *p, const fl_model *model)
{
    for (int i = 0; i < FL_N_LINEARS; i++)
        fl__linear_shape(&p->linear[i].N, &p->linear[i].K, &model->cfg, i);
    for (int i = 0; i < FL_N_SITES; i++) {
        int linears[FL_SITE_MAX_LINEARS], n_out;
        fl_flatquant_site *s = &p->site[i];
        (void)fl__site_linears(linears, &model->cfg, i);
        fl__linear_shape(&n_out, &s->n_in, &model->cfg, linears[0]);
        fl__factor_pair(s->n_in, &s->n_left, &s->n_right);
    }
}

/* Quantised forms of a site's input. */
static size_t n_hats(const fl_flatquant_pass *s, int site)
{
    int linears[FL_SITE_MAX_LINEARS];
    const int n = fl__site_linears(linears, &s->model->cfg, site);
    return s->p->o.clip_per_linear ? (size_t)n : 1;
}

/* Operands that the products pack (two forms each, rounded up; a site's stay from forward to
 * backward) or copy, and a head's scores on every thread. */
static size_t product_bytes(const fl_flatquant_pass *s, const fl_exec *ex, bool bf16)
{
    const size_t R = (size_t)s->max_rows + 64;
    size_t columns = most((size_t)s->F, (size_t)s->H * (size_t)s->hd) + 64;
    for (int i = 0; bf16 && i < FL_N_SITES; i++)
        columns += n_hats(s, i) * ((size_t)s->p->site[i].n_in + 64);
    const size_t operands = 2 * R * columns * (bf16 ? 2 : sizeof(float));
    const size_t scores = 2 * 128 * ((size_t)s->T + 32) * sizeof(float);
    const size_t halves = bf16 ? 8 * 64 * 2 * (size_t)s->T * 2 : 0;
    const size_t per_head = s->G == s->H ? 0
                                         : 2 * (size_t)s->max_rows * (size_t)s->H *
                                               (size_t)s->hd * sizeof(float);
    return operands + (size_t)ex->n_threads * (scores + halves) + per_head;
}

size_t fl__flatquant_bytes(const fl_model *model, const fl_exec *ex,
                           const fl_flatquant_options *o, int n_windows, int seq_len)
{
    fl_flatquant_params p = {0};
    fl_flatquant_pass s = {0};
    fl_float_buffer list[MAX_BUFFERS];
    size_t n = 0;
    p.o = *o;
    shape_params(&p, model);
    set_shape(&s, model, &p, n_windows * seq_len, seq_len);
    const int n_buffers = list_buffers(list, &s);
    n += fl__buffers_count(list, n_buffers);
    for (int i = 0; i < FL_N_SITES; i++)
        n += ((1 + n_hats(&s, i)) * (size_t)s.max_rows + FL_KRON_TILES) *
             (size_t)p.site[i].n_in;
    for (int i = 0; i < FL_N_LINEARS; i++) {
        const size_t w = (size_t)p.linear[i].N * (size_t)p.linear[i].K;
        n += 4 * w + (o->weight_lr > 0 ? 4 * w : 0) + 14 * (size_t)p.linear[i].N;
        if (o->clip_v_first && i == FL_LIN_V) n += 2 * w;
    }
    n += (size_t)s.max_rows * (size_t)s.D; /* the loss's gradient */
    return n * sizeof(float) + product_bytes(&s, ex, o->bf16);
}

/* ---- weights ----------------------------------------------------------------------------- */

static void fold_norm(fl_flatquant_pass *s, int which)
{
    const fl_norm *norm = &s->block->norm[which];
    const float *c = s->post ? NULL : s->p->site[which ? FL_SITE_UP : FL_SITE_QKV].c;
    for (int i = 0; i < s->D; i++) {
        s->gain[which][i] = norm->gain[i] * (c ? c[i] : 1.0f);
        s->bias[which][i] = norm->bias ? norm->bias[i] * (c ? c[i] : 1.0f) : 0.0f;
    }
}

fl_status fl__flatquant_pass_weights(fl_flatquant_pass *s, fl_err *err)
{
    fl_status st = FL_OK;
    fold_norm(s, 0);
    fold_norm(s, 1);
    for (int i = 0; i < FL_N_LINEARS && !st; i++)
        if (s->weight[i].lin)
            st = fl__flatquant_weight_forward(&s->weight[i], s->ex, s->kron, &s->p->o, err);
    return st;
}

/* ---- steps of both directions ------------------------------------------------------------ */

/* y [R, N] = x_hat of the linear's site times its weight, plus bias. */
static fl_status linear(fl_flatquant_pass *s, int which, int site, float *y, int R, fl_err *err)
{
    const fl_flatquant_weight *w = &s->weight[which];
    const fl_train_operand *x_hat = fl__flatquant_act_operand(&s->act[site], s->place[which]);
    const fl_status st = fl__train_linear(s->gemm, y, x_hat, w->w_hat, w->lin->N, err);
    if (!st && w->bias) fl__flatquant_add_bias(s->ex, y, w->bias, R, w->lin->N);
    return st;
}

/* From dy: dx [R, K] (beta 1: added to), the gradient of the site's x_hat; of a linear's own
 * x_hat where it has one, and all but the first in d_part. And all that belongs to the
 * weight. */
static fl_status linear_grad(fl_flatquant_pass *s, int which, int site, float *dx, float beta,
                             const float *dy, int R, fl_err *err)
{
    fl_flatquant_weight *w = &s->weight[which];
    const fl_flatquant_act *act = &s->act[site];
    const int N = w->lin->N, K = w->lin->K, place = s->place[which];
    const bool own = act->n_hats > 1;
    float *d = own && place ? s->d_part[place - 1] : dx;
    fl_status st = fl__train_operand_dy(s->gemm, &s->d_operand, dy, R, N, err);
    if (!st)
        st = fl__train_linear_dx(s->gemm, d, own ? 0 : beta, &s->d_operand, w->w_hat, K, err);
    if (!st)
        st = fl__train_linear_dw(s->gemm, s->d_w, &s->d_operand,
                                 fl__flatquant_act_operand(act, place), err);
    if (st) return st;
    if (w->bias) fl__flatquant_column_sum(s->ex, w->d_bias, dy, R, N);
    return fl__flatquant_weight_backward(w, s->ex, s->kron, &s->p->o, s->d_w, s->work, err);
}

static fl_status site(fl_flatquant_pass *s, int which, const float *x, int R,
                      fl_flatquant_rows_fn *make, fl_err *err)
{
    return fl__flatquant_act_forward(&s->act[which], &s->means, x, R, make, s, err);
}

static fl_status site_grad(fl_flatquant_pass *s, int which, float *d, const float *x, int R,
                           fl_flatquant_rows_fn *take, fl_err *err)
{
    float *const all[FL_SITE_MAX_LINEARS] = {d, s->d_part[0], s->d_part[1]};
    return fl__flatquant_act_backward(&s->act[which], &s->means, all, x, R, take, s, err);
}

/* Rows first.. of y = norm(x). On the calling thread where ex is &s->one; so below. */
static void norm(const fl_exec *ex, fl_flatquant_pass *s, int which, float *y, const float *x,
                 int first, int n_rows)
{
    const double eps = s->model->cfg.norm_eps;
    const size_t at = (size_t)first * (size_t)s->D;
    float *inv = s->inv[which] + first;
    if (s->opt)
        fl__layer_norm_rows(ex, y + at, s->mean[which] + first, inv, x + at, s->gain[which],
                            s->bias[which], n_rows, s->D, eps);
    else
        fl__rms_norm_rows(ex, y + at, inv, x + at, s->gain[which], n_rows, s->D, eps);
}

/* d: gradient of the norm's output in, of its input x out. */
static void norm_grad(const fl_exec *ex, const fl_flatquant_pass *s, int which, float *d,
                      const float *x, int first, int n_rows)
{
    const size_t at = (size_t)first * (size_t)s->D;
    const float *gain = s->gain[which], *inv = s->inv[which] + first;
    if (s->opt)
        fl__layer_norm_grad(ex, d + at, NULL, NULL, d + at, x + at, gain,
                            s->mean[which] + first, inv, n_rows, s->D);
    else
        fl__rms_norm_grad(ex, d + at, NULL, d + at, x + at, gain, inv, n_rows, s->D);
}

/* Post-norm: rows times a site's scale. */
static void scale(const fl_flatquant_pass *s, int site, float *y, const float *x, int first,
                  int n_rows)
{
    const size_t at = (size_t)first * (size_t)s->D;
    fl__flatquant_scale_rows(&s->one, y + at, x + at, s->p->site[site].c, n_rows, s->D);
}

/* ---- keys and values --------------------------------------------------------------------- */

static void quantize_kv(const fl_exec *ex, const fl_flatquant_pass *s, const kv_part *part,
                        const float *x, int64_t first, int64_t n_rows)
{
    fl_fake_quant q = part->q;
    const int64_t at = first * s->G * s->hd;
    q.clip_max = part->clip->n ? part->clip->value[0] : 1.0f;
    q.clip_min = part->clip->n ? part->clip->value[1] : 1.0f;
    fl__fake_quant_rows(ex, &q, part->x_hat + at, NULL, NULL, NULL, x + at, n_rows * s->G,
                        s->hd);
}

static void quantize_kv_grad(const fl_exec *ex, const fl_flatquant_pass *s, const kv_part *part,
                             float *d, double d_clip[2], const float *x, int64_t first,
                             int64_t n_rows)
{
    fl_fake_quant q = part->q;
    const int64_t at = first * s->G * s->hd;
    q.clip_max = part->clip->n ? part->clip->value[0] : 1.0f;
    q.clip_min = part->clip->n ? part->clip->value[1] : 1.0f;
    fl__fake_quant_rows_grad(ex, &q, d + at, d_clip, d + at, x + at, n_rows * s->G, s->hd);
}

static void set_clip_grad(const kv_part *part, const double d_clip[2])
{
    for (int i = 0; part->clip->n && i < 2; i++) part->clip->d_value[i] = (float)d_clip[i];
}

/* Queries or keys, [rows, n_heads hd]: rotary embedding and P_h in one loop over tokens. */
typedef struct heads_job {
    fl_flatquant_pass *s;
    float *x;               /* forward: the linear's output; backward: its gradient */
    int n_heads;
    kv_part *part;          /* keys; NULL: queries */
    double (*d_clip)[2];    /* [FL_KRON_TILES] */
    int64_t tile_rows;
} heads_job;

typedef void rope_fn(const fl_exec *ex, float *x, const float *cos, const float *sin, int R,
                     int T, int n_heads, int D);

static void turn(const heads_job *j, rope_fn *rope, int64_t first, int64_t n_rows)
{
    const fl_flatquant_pass *s = j->s;
    const int64_t half = s->hd / 2, end = first + n_rows;
    if (s->opt) return;
    for (int64_t r = first; r < end; r += s->T - r % s->T) {
        const int64_t n = FL_MIN(end - r, s->T - r % s->T), at = r % s->T * half;
        rope(&s->one, j->x + r * j->n_heads * s->hd, s->model->rope_cos + at,
             s->model->rope_sin + at, (int)n, s->T, j->n_heads, s->hd);
    }
}

static void turn_heads(void *user, int64_t first, int64_t n_rows, int thread)
{
    (void)thread;
    turn(user, fl__rope_rows, first, n_rows);
}

static void turn_heads_back(void *user, int64_t first, int64_t n_rows, int thread)
{
    (void)thread;
    turn(user, fl__rope_grad_rows, first, n_rows);
}

static void quantize_keys(void *user, int64_t first, int64_t n_rows, int thread)
{
    const heads_job *j = user;
    (void)thread;
    if (j->part) quantize_kv(&j->s->one, j->s, j->part, j->s->k_h, first, n_rows);
}

static void quantize_keys_grad(void *user, int64_t first, int64_t n_rows, int thread)
{
    const heads_job *j = user;
    (void)thread;
    if (j->part)
        quantize_kv_grad(&j->s->one, j->s, j->part, j->x, j->d_clip[first / j->tile_rows],
                         j->s->k_h, first, n_rows);
}

static fl_status heads(fl_flatquant_pass *s, int R, fl_err *err)
{
    const fl_factor *P = &s->p->head;
    heads_job q = {.s = s, .x = s->q, .n_heads = s->H};
    heads_job k = {.s = s, .x = s->k, .n_heads = s->G, .part = &s->key};
    fl_status st = fl__kron_rows_hooked(
        s->kron, &(fl_kron_hooks){turn_heads, quantize_keys, &q}, s->q_h, s->q, R, s->H, s->hd,
        NULL, P->n ? P->q : NULL, err);
    if (!st)
        st = fl__kron_rows_hooked(s->kron, &(fl_kron_hooks){turn_heads, quantize_keys, &k},
                                  s->k_h, s->k, R, s->G, s->hd, NULL, P->n ? P->p : NULL, err);
    quantize_kv(s->ex, s, &s->value, s->v, 0, R);
    return st;
}

/* d_wide: 0 = dq, 1 = dk, 2 = dv, each overwritten from behind the attention to before RoPE. */
static fl_status heads_grad(fl_flatquant_pass *s, int R, fl_err *err)
{
    fl_factor *P = &s->p->head;
    float *dq = s->d_wide[0], *dk = s->d_wide[1];
    double parts[FL_KRON_TILES][2], d_clip[2];
    heads_job q = {.s = s, .x = dq, .n_heads = s->H};
    heads_job k = {.s = s, .x = dk, .n_heads = s->G, .part = &s->key, .d_clip = parts,
                   .tile_rows = fl__kron_tile_rows(R, s->G, s->hd)};
    const fl_kron_hooks q_hooks = {quantize_keys_grad, turn_heads_back, &q};
    const fl_kron_hooks k_hooks = {quantize_keys_grad, turn_heads_back, &k};
    quantize_kv_grad(s->ex, s, &s->value, s->d_wide[2], d_clip, s->v, 0, R);
    set_clip_grad(&s->value, d_clip);
    fl_status st = fl__kron_rows_grad_hooked(s->kron, &k_hooks, dk, NULL, P->dp, dk, s->k, R,
                                             s->G, s->hd, NULL, P->n ? P->p : NULL, err);
    if (st) return st;
    d_clip[0] = d_clip[1] = 0;
    for (int64_t t = 0; t * k.tile_rows < R; t++)
        for (int i = 0; i < 2; i++) d_clip[i] += parts[t][i];
    set_clip_grad(&s->key, d_clip);
    return fl__kron_rows_grad_hooked(s->kron, &q_hooks, dq, NULL, P->dq, dq, s->q, R, s->H,
                                     s->hd, NULL, P->n ? P->q : NULL, err);
}

/* ---- attention half ---------------------------------------------------------------------- */

/* What the half's site gets: x behind the norm or, post-norm, as it is, times the scale. */
static void enter_attention(void *user, int first, int n_rows)
{
    fl_flatquant_pass *s = user;
    if (s->post)
        scale(s, FL_SITE_QKV, s->in[0], s->x, first, n_rows);
    else
        norm(&s->one, s, 0, s->in[0], s->x, first, n_rows);
}

static fl_status attention_forward(fl_flatquant_pass *s, int n_windows, fl_err *err)
{
    const int R = n_windows * s->T;
    fl_status st;
    if ((st = site(s, FL_SITE_QKV, s->in[0], R, enter_attention, err)) ||
        (st = linear(s, FL_LIN_Q, FL_SITE_QKV, s->q, R, err)) ||
        (st = linear(s, FL_LIN_K, FL_SITE_QKV, s->k, R, err)) ||
        (st = linear(s, FL_LIN_V, FL_SITE_QKV, s->v, R, err)) || (st = heads(s, R, err)) ||
        (st = fl__train_attention_forward(s->attention, s->att, s->lse, s->q_h, s->key.x_hat,
                                          s->value.x_hat, n_windows, err)) ||
        (st = site(s, FL_SITE_O, s->att, R, NULL, err)))
        return st;
    return linear(s, FL_LIN_O, FL_SITE_O, s->h, R, err);
}

/* dh: gradient of h. What flows on into x is not needed: the block's input is data. */
static fl_status attention_backward(fl_flatquant_pass *s, const float *dh, int n_windows,
                                    fl_err *err)
{
    const int R = n_windows * s->T;
    float *d_att = s->d_hidden; /* [R, H hd] fits: see list_buffers */
    fl_status st;
    if ((st = linear_grad(s, FL_LIN_O, FL_SITE_O, d_att, 0, dh, R, err)) ||
        (st = site_grad(s, FL_SITE_O, d_att, s->att, R, NULL, err)) ||
        (st = fl__train_attention_grad(s->attention, s->d_wide[0], s->d_wide[1], s->d_wide[2],
                                       d_att, s->att, s->lse, s->q_h, s->key.x_hat,
                                       s->value.x_hat, n_windows, err)) ||
        (st = heads_grad(s, R, err)))
        return st;
    float *dx = s->d_hidden;
    if ((st = linear_grad(s, FL_LIN_Q, FL_SITE_QKV, dx, 0, s->d_wide[0], R, err)) ||
        (st = linear_grad(s, FL_LIN_K, FL_SITE_QKV, dx, 1, s->d_wide[1], R, err)) ||
        (st = linear_grad(s, FL_LIN_V, FL_SITE_QKV, dx, 1, s->d_wide[2], R, err)))
        return st;
    return site_grad(s, FL_SITE_QKV, dx, s->in[0], R, NULL, err);
}

/* ---- MLP half ---------------------------------------------------------------------------- */

/* h: the attention half's output gets its input added; then as enter_attention does, post-norm
 * behind the norm that ends that half. */
static void enter_mlp(void *user, int first, int n_rows)
{
    fl_flatquant_pass *s = user;
    const int64_t at = (int64_t)first * s->D, n = (int64_t)n_rows * s->D;
    fl__add_forward(&s->one, s->h + at, s->h + at, s->x + at, n);
    if (s->post) {
        norm(&s->one, s, 0, s->mid, s->h, first, n_rows);
        scale(s, FL_SITE_UP, s->in[1], s->mid, first, n_rows);
    } else {
        norm(&s->one, s, 1, s->in[1], s->h, first, n_rows);
    }
}

static void activate(void *user, int first, int n_rows)
{
    fl_flatquant_pass *s = user;
    const int64_t at = (int64_t)first * s->F, n = (int64_t)n_rows * s->F;
    if (s->opt)
        fl__relu_forward(&s->one, s->t + at, s->up + at, n);
    else
        fl__silu_mul_forward(&s->one, s->t + at, s->gate + at, s->up + at, n);
}

static fl_status mlp_forward(fl_flatquant_pass *s, int R, fl_err *err)
{
    const float *residual = s->post ? s->mid : s->h;
    float *sum = s->post ? s->sum : s->y;
    fl_status st;
    if ((st = site(s, FL_SITE_UP, s->in[1], R, enter_mlp, err)) ||
        (st = linear(s, FL_LIN_UP, FL_SITE_UP, s->up, R, err)) ||
        (!s->opt && (st = linear(s, FL_LIN_GATE, FL_SITE_UP, s->gate, R, err))) ||
        (st = site(s, FL_SITE_DOWN, s->t, R, activate, err)) ||
        (st = linear(s, FL_LIN_DOWN, FL_SITE_DOWN, sum, R, err)))
        return st;
    fl__add_forward(s->ex, sum, sum, residual, (int64_t)R * s->D);
    if (s->post) norm(s->ex, s, 1, s->y, sum, 0, R);
    return FL_OK;
}

/* d_wide: 0 = dt, 1 = d_gate, 2 = d_up. */
static void activate_grad(void *user, int first, int n_rows)
{
    fl_flatquant_pass *s = user;
    const int64_t at = (int64_t)first * s->F, n = (int64_t)n_rows * s->F;
    const float *dt = s->d_wide[0] + at;
    if (s->opt)
        fl__relu_grad(&s->one, s->d_wide[2] + at, dt, s->up + at, n);
    else
        fl__silu_mul_grad(&s->one, s->d_wide[1] + at, s->d_wide[2] + at, dt, s->gate + at,
                          s->up + at, n);
}

/* d_hidden: gradient of the site's input, then of the residual, added to that of the sum; post-
 * norm that is norm0's output, and dy goes on to h. */
static void enter_mlp_grad(void *user, int first, int n_rows)
{
    fl_flatquant_pass *s = user;
    const int64_t at = (int64_t)first * s->D;
    if (s->post)
        scale(s, FL_SITE_UP, s->d_hidden, s->d_hidden, first, n_rows);
    else
        norm_grad(&s->one, s, 1, s->d_hidden, s->h, first, n_rows);
    fl__add_forward(&s->one, s->dy + at, s->dy + at, s->d_hidden + at, (int64_t)n_rows * s->D);
    if (s->post) norm_grad(&s->one, s, 0, s->dy, s->h, first, n_rows);
}

/* dy: gradient of y, becomes that of h. */
static fl_status mlp_backward(fl_flatquant_pass *s, int R, fl_err *err)
{
    float *dt = s->d_wide[0], *d_gate = s->d_wide[1], *d_up = s->d_wide[2];
    float *d_in = s->d_hidden;
    fl_status st;
    if (s->post) norm_grad(s->ex, s, 1, s->dy, s->sum, 0, R);
    if ((st = linear_grad(s, FL_LIN_DOWN, FL_SITE_DOWN, dt, 0, s->dy, R, err)) ||
        (st = site_grad(s, FL_SITE_DOWN, dt, s->t, R, activate_grad, err)) ||
        (st = linear_grad(s, FL_LIN_UP, FL_SITE_UP, d_in, 0, d_up, R, err)))
        return st;
    if (!s->opt && (st = linear_grad(s, FL_LIN_GATE, FL_SITE_UP, d_in, 1, d_gate, R, err)))
        return st;
    return site_grad(s, FL_SITE_UP, d_in, s->in[1], R, enter_mlp_grad, err);
}

/* ---- the block --------------------------------------------------------------------------- */

fl_status fl__flatquant_pass_forward(const float **y, fl_flatquant_pass *s, const float *x,
                                     int n_windows, fl_err *err)
{
    s->x = x;
    fl_status st = attention_forward(s, n_windows, err);
    if (!st) st = mlp_forward(s, n_windows * s->T, err);
    *y = s->y;
    return st;
}

static void zero_factor(fl_factor *f)
{
    const size_t bytes = (size_t)f->n * (size_t)f->n * sizeof(float);
    if (!f->n) return;
    memset(f->dp, 0, bytes);
    memset(f->dq, 0, bytes);
}

static void zero_gradients(fl_flatquant_params *p)
{
    for (int i = 0; i < FL_N_SITES; i++) {
        zero_factor(&p->site[i].left);
        zero_factor(&p->site[i].right);
        if (p->site[i].c) memset(p->site[i].d_c, 0, (size_t)p->site[i].n_in * sizeof(float));
    }
    zero_factor(&p->head);
}

fl_status fl__flatquant_pass_backward(fl_flatquant_pass *s, float *dy, int n_windows,
                                      fl_err *err)
{
    zero_gradients(s->p);
    s->dy = dy;
    fl_status st = mlp_backward(s, n_windows * s->T, err);
    if (!st) st = attention_backward(s, dy, n_windows, err);
    if (!st) fl__flatquant_params_grad(s->p, s->ex);
    return st;
}
