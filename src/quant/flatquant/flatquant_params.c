/* flatquant_params.c - what is learned for a block: where it starts, how it becomes factors,
 * scales and clips, and how gradients find the way back.
 *
 * Scales start at c = w_max^(1-a) / x_max^a per channel (a = diag_alpha), 1 where a channel is
 * never above 1e-5. Behind ReLU a scale must stay positive to commute with it, so it is learned
 * as c = exp(raw) there.
 * SPDX-License-Identifier: MIT */
#include "quant/flatquant/flatquant.h"

#include "base/mem.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

/* ---- clips ------------------------------------------------------------------------------- */

static fl_status clip_init(fl_flatquant_clip *c, int n, double start, fl_err *err)
{
    const size_t count = 2 * (size_t)n;
    c->raw = fl__alloc(count, sizeof(float));
    c->value = fl__alloc(count, sizeof(float));
    c->d_value = fl__calloc(count, sizeof(float));
    c->d_raw = fl__calloc(count, sizeof(float));
    if (!c->raw || !c->value || !c->d_value || !c->d_raw)
        return fl__fail_nomem(err, "clips", count * 16);
    c->n = n;
    for (size_t i = 0; i < count; i++) c->raw[i] = (float)start;
    fl__clip_from_raw(c->value, c->raw, count);
    return FL_OK;
}

static void clip_fini(fl_flatquant_clip *c)
{
    fl__free(&c->raw);
    fl__free(&c->value);
    fl__free(&c->d_value);
    fl__free(&c->d_raw);
}

static void clip_update(fl_flatquant_clip *c)
{
    if (c->n) fl__clip_from_raw(c->value, c->raw, 2 * (size_t)c->n);
}

static void clip_grad(fl_flatquant_clip *c)
{
    if (c->n) fl__clip_grad(c->d_raw, c->d_value, c->value, 2 * (size_t)c->n);
}

/* ---- factors and scales ------------------------------------------------------------------ */

static bool is_trained(const fl_flatquant_options *o)
{
    return o->transform == FL_TRANSFORM_INVERSE || o->transform == FL_TRANSFORM_SVD;
}

static fl_status factor_start(fl_factor *f, int n, const fl_flatquant_options *o, int layer,
                              const char *purpose, const fl_exec *ex, fl_err *err)
{
    const fl_factor_kind kind = o->transform == FL_TRANSFORM_INVERSE ? FL_FACTOR_FREE
                                : o->transform == FL_TRANSFORM_SVD   ? FL_FACTOR_SVD
                                                                     : FL_FACTOR_FIXED;
    const fl_factor_start start = o->transform == FL_TRANSFORM_HADAMARD ? FL_START_HADAMARD
                                  : o->transform == FL_TRANSFORM_SVD    ? FL_START_CAYLEY
                                                                        : FL_START_ORTHOGONAL;
    if (o->transform == FL_TRANSFORM_NONE || n < 2) return FL_OK;
    return fl__factor_init(f, ex, kind, n, start, fl__rng_init(o->seed, layer, purpose), err);
}

static fl_status site_factors(fl_flatquant_params *p, int which, int layer, const fl_exec *ex,
                              fl_err *err)
{
    fl_flatquant_site *s = &p->site[which];
    char left[32], right[32];
    (void)snprintf(left, sizeof left, "flatquant-%s-left", fl__site_names[which]);
    (void)snprintf(right, sizeof right, "flatquant-%s-right", fl__site_names[which]);
    if (which == FL_SITE_O) {
        s->n_left = p->n_heads;
        s->n_right = p->head_dim;
    } else {
        fl__factor_pair(s->n_in, &s->n_left, &s->n_right);
    }
    const fl_status st = factor_start(&s->left, s->n_left, &p->o, layer, left, ex, err);
    return st ? st : factor_start(&s->right, s->n_right, &p->o, layer, right, ex, err);
}

/* w_max[k]: largest |w| of input channel k, at least 1e-5, over the site's linears. */
static void column_maxima(float *w_max, const fl_site *site)
{
    const size_t K = (size_t)site->n_in;
    for (size_t k = 0; k < K; k++) w_max[k] = 1e-5f;
    for (int i = 0; i < site->n_linears; i++) {
        const fl_linear *lin = site->linears[i];
        for (size_t n = 0; n < (size_t)lin->n_out; n++) {
            const float *w = lin->own_w + n * K;
            for (size_t k = 0; k < K; k++) w_max[k] = FL_MAX(w_max[k], fabsf(w[k]));
        }
    }
}

static fl_status site_scale(fl_flatquant_site *s, const fl_site *site, const float *x_max,
                            bool log_scale, double alpha, fl_err *err)
{
    const size_t n = (size_t)s->n_in;
    s->log_scale = log_scale;
    s->raw_c = fl__alloc(n, sizeof(float));
    s->c = fl__alloc(n, sizeof(float));
    s->d_c = fl__calloc(n, sizeof(float));
    s->d_raw_c = fl__calloc(n, sizeof(float));
    if (!s->raw_c || !s->c || !s->d_c || !s->d_raw_c)
        return fl__fail_nomem(err, "scales", n * 4 * sizeof(float));
    column_maxima(s->raw_c, site);
    for (size_t i = 0; i < n; i++) {
        const double w = (double)s->raw_c[i], x = (double)x_max[i];
        const double c = x <= 1e-5 ? 1 : pow(w, 1 - alpha) / pow(x, alpha);
        s->raw_c[i] = (float)(log_scale ? log(c) : c);
    }
    return FL_OK;
}

/* c = 1 / gain: the norm is left without one. */
static void take_gain(fl_flatquant_site *s, const fl_norm *norm)
{
    for (int i = 0; i < s->n_in; i++)
        s->raw_c[i] = norm->gain[i] != 0 ? 1.0f / norm->gain[i] : 1.0f;
}

static void scale_update(fl_flatquant_site *s)
{
    for (int i = 0; s->c && i < s->n_in; i++)
        s->c[i] = s->log_scale ? expf(s->raw_c[i]) : s->raw_c[i];
}

static void scale_grad(fl_flatquant_site *s)
{
    for (int i = 0; s->c && i < s->n_in; i++)
        s->d_raw_c[i] = s->log_scale ? s->d_c[i] * s->c[i] : s->d_c[i];
}

/* ---- the whole --------------------------------------------------------------------------- */

static fl_status linear_init(fl_flatquant_linear *l, const fl_linear *from,
                             const fl_flatquant_options *o, fl_err *err)
{
    const size_t n = (size_t)from->n_out * (size_t)from->n_in;
    l->N = from->n_out;
    l->K = from->n_in;
    l->bias = from->bias;
    l->w = fl__alloc(n, sizeof(float));
    if (!l->w) return fl__fail_nomem(err, "weights in training", n * sizeof(float));
    memcpy(l->w, from->own_w, n * sizeof(float));
    if (o->weight_lr > 0 && !(l->dw = fl__calloc(n, sizeof(float))))
        return fl__fail_nomem(err, "weight gradients", n * sizeof(float));
    return o->clip && o->w_bits < 16 ? clip_init(&l->clip, l->N, o->clip_start, err) : FL_OK;
}

static fl_status site_init(fl_flatquant_params *p, const fl_model *model, const fl_block *block,
                           int which, int layer, const float *x_max, const fl_exec *ex,
                           fl_err *err)
{
    fl_flatquant_site *s = &p->site[which];
    const bool relu = model->cfg.family == FL_FAMILY_OPT && which == FL_SITE_DOWN;
    s->n_in = block->site[which].n_in;
    fl_status st = site_factors(p, which, layer, ex, err);
    const bool behind_norm = which == FL_SITE_QKV || which == FL_SITE_UP;
    if (!st && (p->o.scale ? which != FL_SITE_O : p->o.fold_gain && behind_norm))
        st = site_scale(s, &block->site[which], x_max, relu, p->o.diag_alpha, err);
    if (!st && p->o.fold_gain && behind_norm) take_gain(s, &block->norm[which != FL_SITE_QKV]);
    if (!st && p->o.clip && p->o.a_bits < 16)
        st = clip_init(&s->clip, p->o.clip_per_linear ? block->site[which].n_linears : 1,
                       p->o.clip_start, err);
    return st;
}

fl_status fl__flatquant_params_init(fl_flatquant_params *p, const fl_model *model,
                                    const fl_block *block, int layer,
                                    float *const x_max[FL_N_SITES],
                                    const fl_flatquant_options *o, const fl_exec *ex,
                                    fl_err *err)
{
    const fl_model_config *cfg = &model->cfg;
    fl_status st = FL_OK;
    *p = (fl_flatquant_params){.o = *o,
                               .n_heads = cfg->n_heads,
                               .n_kv_heads = cfg->n_kv_heads,
                               .head_dim = cfg->head_dim};
    for (int i = 0; i < 2; i++) p->norm_bias[i] = block->norm[i].bias;
    for (int i = 0; i < FL_N_LINEARS && !st; i++)
        if (block->linear[i].n_out)
            st = linear_init(&p->linear[i], &block->linear[i], o, err);
    for (int i = 0; i < FL_N_SITES && !st; i++)
        st = site_init(p, model, block, i, layer, x_max[i], ex, err);
    if (!st && o->k_bits < 16)
        st = factor_start(&p->head, cfg->head_dim, o, layer, "flatquant-head", ex, err);
    if (!st && o->clip && o->k_bits < 16) st = clip_init(&p->k_clip, 1, o->clip_start, err);
    if (!st && o->clip && o->v_bits < 16) st = clip_init(&p->v_clip, 1, o->clip_start, err);
    if (!st) st = fl__flatquant_params_update(p, ex, err);
    if (st) fl__flatquant_params_fini(p);
    return st;
}

void fl__flatquant_params_fini(fl_flatquant_params *p)
{
    for (int i = 0; i < FL_N_SITES; i++) {
        fl_flatquant_site *s = &p->site[i];
        fl__factor_fini(&s->left);
        fl__factor_fini(&s->right);
        fl__free(&s->raw_c);
        fl__free(&s->c);
        fl__free(&s->d_c);
        fl__free(&s->d_raw_c);
        clip_fini(&s->clip);
    }
    for (int i = 0; i < FL_N_LINEARS; i++) {
        fl__free(&p->linear[i].w);
        fl__free(&p->linear[i].dw);
        clip_fini(&p->linear[i].clip);
    }
    fl__factor_fini(&p->head);
    clip_fini(&p->k_clip);
    clip_fini(&p->v_clip);
    memset(p, 0, sizeof *p);
}

enum { N_FACTORS = 2 * FL_N_SITES + 1, N_CLIPS = FL_N_SITES + FL_N_LINEARS + 2 };

static void list_factors(fl_factor *list[N_FACTORS], fl_flatquant_params *p)
{
    int n = 0;
    for (int i = 0; i < FL_N_SITES; i++) {
        list[n++] = p->site[i].left.n ? &p->site[i].left : NULL;
        list[n++] = p->site[i].right.n ? &p->site[i].right : NULL;
    }
    list[n] = p->head.n ? &p->head : NULL;
}

static void list_clips(fl_flatquant_clip *list[N_CLIPS], fl_flatquant_params *p)
{
    int n = 0;
    for (int i = 0; i < FL_N_SITES; i++) list[n++] = &p->site[i].clip;
    for (int i = 0; i < FL_N_LINEARS; i++) list[n++] = &p->linear[i].clip;
    list[n++] = &p->k_clip;
    list[n] = &p->v_clip;
}

fl_status fl__flatquant_params_update(fl_flatquant_params *p, const fl_exec *ex, fl_err *err)
{
    fl_factor *factors[N_FACTORS];
    fl_flatquant_clip *clips[N_CLIPS];
    list_factors(factors, p);
    list_clips(clips, p);
    for (int i = 0; i < N_CLIPS; i++) clip_update(clips[i]);
    for (int i = 0; i < FL_N_SITES; i++) scale_update(&p->site[i]);
    return fl__factors_update(ex, factors, N_FACTORS, err);
}

void fl__flatquant_params_grad(fl_flatquant_params *p, const fl_exec *ex)
{
    fl_factor *factors[N_FACTORS];
    fl_flatquant_clip *clips[N_CLIPS];
    list_factors(factors, p);
    list_clips(clips, p);
    for (int i = 0; i < N_CLIPS; i++) clip_grad(clips[i]);
    for (int i = 0; i < FL_N_SITES; i++) scale_grad(&p->site[i]);
    if (is_trained(&p->o)) fl__factors_grad(ex, factors, N_FACTORS);
}

int fl__flatquant_params_groups(fl_flatquant_params *p,
                                fl_adamw_group groups[FL_FLATQUANT_MAX_GROUPS])
{
    fl_factor *factors[N_FACTORS];
    fl_flatquant_clip *clips[N_CLIPS];
    int n = 0;
    list_factors(factors, p);
    list_clips(clips, p);
    for (int i = 0; i < N_FACTORS; i++)
        if (factors[i] && factors[i]->n_params)
            groups[n++] = (fl_adamw_group){"transform", factors[i]->param, factors[i]->grad,
                                           factors[i]->n_params, 1};
    for (int i = 0; i < FL_N_SITES; i++)
        if (p->site[i].c && p->o.scale)
            groups[n++] = (fl_adamw_group){"scale", p->site[i].raw_c, p->site[i].d_raw_c,
                                           (size_t)p->site[i].n_in, 1};
    for (int i = 0; i < N_CLIPS; i++)
        if (clips[i]->n)
            groups[n++] = (fl_adamw_group){"clip", clips[i]->raw, clips[i]->d_raw,
                                           2 * (size_t)clips[i]->n, p->o.clip_lr};
    for (int i = 0; i < FL_N_LINEARS; i++)
        if (p->linear[i].dw)
            groups[n++] = (fl_adamw_group){"weight", p->linear[i].w, p->linear[i].dw,
                                           (size_t)p->linear[i].N * (size_t)p->linear[i].K,
                                           p->o.weight_lr};
    return n;
}
