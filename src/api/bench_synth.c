/* bench_synth.c - models of random weights. SPDX-License-Identifier: MIT */
#include "api/bench_synth.h"

#include "base/mem.h"
#include "base/rng.h"
#include "model/family.h"
#include "train/factor.h"

#include <math.h>
#include <string.h>

#define CLIP          0.98f
#define STATIC_SIGMAS 3.0f /* of an activation of unit variance, at the end of the codes */

enum { FLATTEN_EVERY = 20 }; /* 1 / FL_SYNTH_FLATTEN_RATIO */

typedef struct synth {
    fl_model *model;
    const fl_synth *o;
    const fl_exec *ex;
    uint64_t n_made; /* weights so far: each is a random stream of its own */
} synth;

static bool is(const synth *s, const char *method)
{
    return strcmp(s->o->method, method) == 0;
}

/* ---- float weights ----------------------------------------------------------------------- */

enum { PIECE = 1 << 20 }; /* elements */

typedef struct bf16_job {
    uint16_t *to;
    size_t n;
    uint64_t seed, exponent; /* the same 16 bits four times */
} bf16_job;

static void bf16_piece(void *arg, int64_t item, int thread)
{
    const bf16_job *j = arg;
    const size_t first = (size_t)item * PIECE, last = FL_MIN(first + PIECE, j->n);
    uint64_t state = (j->seed + (uint64_t)item + 1) * 0x9e3779b97f4a7c15u | 1;
    (void)thread;
    for (size_t i = first; i < last; i += 4) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        const uint64_t four = (state & 0x807f807f807f807fu) | j->exponent;
        memcpy(j->to + i, &four, FL_MIN(last - i, (size_t)4) * sizeof *j->to);
    }
}

/* Random signs and mantissas: sizes from `least` (rounded down to a power of 2) to twice it. */
static void random_bf16(const fl_exec *ex, uint16_t *to, size_t n, double least, uint64_t seed)
{
    int e;
    (void)frexp(least, &e);
    const bf16_job job = {to, n, seed,
                          (uint64_t)(uint16_t)((e - 1 + 127) << 7) * 0x0001000100010001u};
    fl__parallel_for(ex, (int64_t)((n + PIECE - 1) / PIECE), bf16_piece, (void *)&job);
}

/* Outputs of about the size of the inputs. */
static fl_status float_linear(fl_linear *lin, synth *s, int n_out, int n_in, fl_err *err)
{
    const size_t n = s->o->no_weights ? 0 : (size_t)n_out * (size_t)n_in;
    if (n > 0) lin->own_w = fl__alloc(n, sizeof(uint16_t));
    if (n > 0 && !lin->own_w) return fl__fail_nomem(err, "bench weights", n * sizeof(uint16_t));
    if (n > 0)
        random_bf16(s->ex, (uint16_t *)(void *)lin->own_w, n, 1 / sqrt((double)n_in),
                    s->n_made++ << 32);
    lin->n_out = n_out;
    lin->n_in = n_in;
    lin->w = lin->own_w;
    lin->w_type = FL_DTYPE_BF16;
    lin->w_bits = 16;
    return FL_OK;
}

/* ---- integer weights --------------------------------------------------------------------- */

/* columns: n_in and those of flattening. */
static fl_status int_linear(fl_linear *lin, synth *s, int n_out, int n_in, int columns,
                            int bits, fl_err *err)
{
    const double rms = bits == 4 ? 4.6 : 73; /* of the codes */
    fl_rng rng = fl__rng_init(s->n_made, 0, "bench-scales");
    const fl_status st = s->o->no_weights
                             ? FL_OK
                             : fl__weight_random(&lin->packed, s->ex, n_out, columns, bits,
                                                 s->n_made++ << 32, err);
    if (st) return st;
    lin->n_out = n_out;
    lin->n_in = n_in;
    lin->w_bits = bits;
    lin->w_scale_stride = 1;
    lin->w_scale = fl__alloc((size_t)n_out, sizeof *lin->w_scale);
    if (!lin->w_scale) return fl__fail_nomem(err, "bench scales", (size_t)n_out * 4);
    for (int n = 0; n < n_out; n++)
        lin->w_scale[n] = (float)((0.5 + fl__rng_unit(&rng)) / (rms * sqrt((double)columns)));
    return FL_OK;
}

/* ---- what belongs to the sites ----------------------------------------------------------- */

/* n x n of variance 1 / n: about as large behind it as before. NULL: memory. */
static float *random_factor(synth *s, int n)
{
    fl_rng rng = fl__rng_init(s->n_made++, 0, "bench-factors");
    float *f = fl__alloc((size_t)n * (size_t)n, sizeof *f);
    for (int i = 0; f && i < n * n; i++) f[i] = (float)(fl__rng_normal(&rng) / sqrt((double)n));
    return f;
}

/* Factors of n1 and n2; a size of 0 stands for the identity of id_1 or id_2. */
static fl_status transform_init(fl_transform *t, synth *s, int n1, int n2, int id_1, int id_2,
                                fl_err *err)
{
    float *left = n1 ? random_factor(s, n1) : NULL, *right = n2 ? random_factor(s, n2) : NULL;
    const bool ok = (left || !n1) && (right || !n2);
    const fl_status st =
        ok ? fl__transform_init(t, n1 ? n1 : id_1, n2 ? n2 : id_2, left, right, err)
           : fl__fail_nomem(err, "bench transforms", 0);
    fl__free(&left);
    fl__free(&right);
    return st;
}

/* Of o only the heads' factor is online, the one within a head is folded into v. */
static fl_status site_transform(fl_site *site, synth *s, int which, fl_err *err)
{
    const fl_model_config *cfg = &s->model->cfg;
    int n1, n2;
    if (which == FL_SITE_O)
        return transform_init(&site->transform, s, cfg->n_heads, 0, 0, cfg->head_dim, err);
    fl__factor_pair(site->n_in, &n1, &n2);
    return transform_init(&site->transform, s, n1, n2, 0, 0, err);
}

static fl_status static_site(fl_site *site, const synth *s, int which, fl_err *err)
{
    site->is_unsigned = s->model->cfg.family == FL_FAMILY_OPT && which == FL_SITE_DOWN;
    site->scale = STATIC_SIGMAS / (float)((1 << (site->a_bits - !site->is_unsigned)) - 1);
    site->copies = fl__alloc((size_t)site->n_in, sizeof *site->copies);
    if (!site->copies) return fl__fail_nomem(err, "bench copies", (size_t)site->n_in * 2);
    for (int c = 0; c < site->n_in; c++)
        site->copies[c] = c % FLATTEN_EVERY == FLATTEN_EVERY - 1 ? 2 : 1;
    return FL_OK;
}

static fl_status site_init(fl_site *site, synth *s, int which, fl_err *err)
{
    fl_status st = FL_OK;
    site->act = is(s, "none")           ? FL_ACT_FLOAT
                : is(s, "flattenquant") ? FL_ACT_STATIC
                                        : FL_ACT_TOKEN;
    site->a_bits = site->act == FL_ACT_FLOAT ? 16 : s->o->a_bits;
    if (is(s, "flatquant")) {
        site->asymmetric = true;
        for (int i = 0; i < FL_SITE_MAX_LINEARS; i++)
            site->clip_max[i] = site->clip_min[i] = CLIP;
        st = site_transform(site, s, which, err);
    }
    if (!st && site->act == FL_ACT_STATIC) st = static_site(site, s, which, err);
    return st ? st : fl__site_prepare(site, err);
}

/* ---- blocks ------------------------------------------------------------------------------ */

static fl_status block_site(fl_block *b, synth *s, int which, fl_err *err)
{
    const fl_model_config *cfg = &s->model->cfg;
    fl_site *site = &b->site[which];
    int linears[FL_SITE_MAX_LINEARS], n_out;
    site->n_linears = fl__site_linears(linears, cfg, which);
    fl__linear_shape(&n_out, &site->n_in, cfg, linears[0]);
    fl_status st = site_init(site, s, which, err);
    for (int i = 0; i < site->n_linears && !st; i++) {
        fl_linear *lin = site->linears[i] = &b->linear[linears[i]];
        fl__linear_shape(&n_out, &site->n_in, cfg, linears[i]);
        st = site->act == FL_ACT_FLOAT
                 ? float_linear(lin, s, n_out, site->n_in, err)
                 : int_linear(lin, s, n_out, site->n_in, site->n_in + fl__site_n_extra(site),
                              s->o->w_bits, err);
        if (st || !fl__family(cfg)->has_bias(cfg, linears[i])) continue;
        lin->bias = fl__calloc((size_t)n_out, sizeof *lin->bias);
        if (!lin->bias) st = fl__fail_nomem(err, "bench bias", (size_t)n_out * 4);
    }
    return st;
}

static fl_status norm_init(fl_norm *norm, const fl_model_config *cfg, fl_err *err)
{
    const size_t n = (size_t)cfg->hidden_size;
    norm->gain = fl__alloc(n, sizeof *norm->gain);
    if (cfg->family == FL_FAMILY_OPT) norm->bias = fl__calloc(n, sizeof *norm->bias);
    if (!norm->gain || (cfg->family == FL_FAMILY_OPT && !norm->bias))
        return fl__fail_nomem(err, "bench norms", n * sizeof *norm->gain);
    for (size_t i = 0; i < n; i++) norm->gain[i] = 1;
    return FL_OK;
}

/* Queries and keys are transformed head by head where keys are quantised. */
static fl_status block_heads(fl_block *b, synth *s, fl_err *err)
{
    const fl_model_config *cfg = &s->model->cfg;
    for (int i = 0; i < 4; i++) b->kv_clip[i] = is(s, "flatquant") ? CLIP : 1;
    if (!is(s, "flatquant") || s->o->kv_bits == 16) return FL_OK;
    const fl_status st =
        transform_init(&b->head_transform_q, s, 0, cfg->head_dim, cfg->n_heads, 0, err);
    if (st) return st;
    return transform_init(&b->head_transform_k, s, 0, cfg->head_dim, cfg->n_kv_heads, 0, err);
}

static fl_status blocks_init(synth *s, fl_err *err)
{
    fl_model *m = s->model;
    const size_t n = (size_t)m->cfg.n_layers;
    fl_status st = FL_OK;
    m->blocks = fl__calloc(n, sizeof *m->blocks);
    if (!m->blocks) return fl__fail_nomem(err, "bench blocks", n * sizeof *m->blocks);
    for (size_t i = 0; i < n && !st; i++) {
        fl_block *b = &m->blocks[i];
        for (int k = 0; k < 2 && !st; k++) st = norm_init(&b->norm[k], &m->cfg, err);
        for (int k = 0; k < FL_N_SITES && !st; k++) st = block_site(b, s, k, err);
        if (!st) st = block_heads(b, s, err);
    }
    return st;
}

/* ---- around the blocks ------------------------------------------------------------------- */

static fl_status embedding_init(synth *s, fl_err *err)
{
    fl_model *m = s->model;
    const fl_model_config *cfg = &m->cfg;
    fl_status st = FL_OK;
    if (s->o->share) {
        m->embed = s->o->share->embed;
        m->embed.own_w = NULL;
    } else {
        st = float_linear(&m->embed, s, cfg->vocab_size, cfg->embed_size, err);
    }
    if (!st && fl__family(cfg)->positions)
        st = float_linear(&m->positions, s, cfg->n_positions + fl__family(cfg)->position_offset,
                          cfg->hidden_size, err);
    if (st || cfg->embed_size == cfg->hidden_size) return st;
    st = float_linear(&m->project_in, s, cfg->hidden_size, cfg->embed_size, err);
    return st ? st : float_linear(&m->project_out, s, cfg->embed_size, cfg->hidden_size, err);
}

static fl_status head_init(synth *s, fl_err *err)
{
    fl_model *m = s->model;
    const fl_model_config *cfg = &m->cfg;
    const fl_model *share = s->o->share;
    m->head_bits = s->o->head_bits;
    m->head_site = (fl_site){.act = m->head_bits == 8 ? FL_ACT_TOKEN : FL_ACT_FLOAT,
                             .a_bits = m->head_bits,
                             .n_in = cfg->embed_size,
                             .n_linears = 1,
                             .linears = {&m->head}};
    fl_status st = fl__site_prepare(&m->head_site, err);
    if (st) return st;
    if (m->head_bits == 8)
        return int_linear(&m->head, s, cfg->vocab_size, cfg->embed_size, cfg->embed_size, 8,
                          err);
    if (!cfg->tied_head && !(share && share->head_bits == 16))
        return float_linear(&m->head, s, cfg->vocab_size, cfg->embed_size, err);
    m->head = cfg->tied_head ? m->embed : share->head;
    m->head.own_w = NULL;
    m->head.rival = NULL;
    return FL_OK;
}

fl_status fl__synth_model(fl_model **out, const fl_model_config *cfg, const fl_synth *o,
                          const fl_exec *ex, fl_err *err)
{
    synth s = {.o = o, .ex = ex, .model = fl__calloc(1, sizeof *s.model)};
    fl_model *m = s.model;
    *out = NULL;
    if (!m) return fl__fail_nomem(err, "bench model", sizeof *m);
    m->cfg = *cfg;
    m->cfg.quant = NULL;
    m->quant_method = o->method;
    m->w_bits = o->w_bits;
    m->a_bits = o->a_bits;
    (void)fl__kv_format_of_bits(&m->k_format, o->kv_bits);
    m->v_format = m->k_format;
    fl__family(cfg)->build(&m->program, cfg);
    fl_status st = embedding_init(&s, err);
    if (!st && cfg->final_norm) st = norm_init(&m->final_norm, cfg, err);
    if (!st) st = head_init(&s, err);
    if (!st) st = blocks_init(&s, err);
    if (!st) st = fl__model_complete(m, err);
    if (st) fl__model_close(&m);
    *out = m;
    return st;
}

size_t fl__synth_block_bytes(const fl_model_config *cfg, int w_bits)
{
    double n = 0;
    for (int i = 0; i < FL_N_LINEARS; i++) {
        int n_out, n_in;
        fl__linear_shape(&n_out, &n_in, cfg, i);
        n += (double)n_out * n_in * cfg->n_layers * w_bits / 8;
    }
    return (size_t)n;
}
