/* job_plan.c - the plan: one pass of the float model over the calibration tokens.
 *
 * For each block: statistics of its four sites, FlattenQuant's choice for each at the widths
 * that may be used, and, for the mix of 4 and 8 bits, what each site costs at 4 bits: the
 * block's output error on one batch when only that site is quantised (weights to nearest), over
 * the energy of the output. The bits are chosen when all blocks are known.
 *
 * With transforms there is no such pass: the options decide, and static scales are chosen for a
 * block when it has been learned, from the same statistics of its transformed inputs.
 * SPDX-License-Identifier: MIT */
#include "quant/job.h"

#include "base/mem.h"
#include "base/rng.h"
#include "quant/weight_scale.h"

#include <math.h>
#include <string.h>

/* Both widths of one site until the bits are chosen; bits 0: not computed. */
typedef struct site_choices {
    fl_flatten_choice at4, at8;
    double d4, d8, cost4;
} site_choices;

static void choices_fini(site_choices *c)
{
    fl__flatten_choice_fini(&c->at4);
    fl__flatten_choice_fini(&c->at8);
}

typedef struct planner {
    fl_quant_job *job;
    site_choices *all; /* [n_layers, FL_N_SITES] */
    int *o_groups;     /* [n_heads * head_dim] smoothing group of o's channels, NULL: each its
                          own */
} planner;

/* After ReLU: the op that writes the site's input is FL_OP_RELU. */
static bool site_is_nonnegative(const fl_program *p, int site)
{
    for (int i = 0; i < p->n_ops; i++)
        if (p->ops[i].kind == FL_OP_SITE && p->ops[i].which == site)
            for (int k = i - 1; k >= 0; k--)
                if (p->ops[k].dst == p->ops[i].src) return p->ops[k].kind == FL_OP_RELU;
    return false;
}

static bool site_is_smoothed(const fl_quant_config *c, int site)
{
    return c->flatten.smooth && (c->smooth_all || site == FL_SITE_QKV || site == FL_SITE_UP);
}

/* Query heads of a group read the same v: their channels of o must be smoothed alike. */
static fl_status make_groups(planner *p, fl_err *err)
{
    const fl_model_config *cfg = &p->job->model->cfg;
    const int D = cfg->head_dim, group = cfg->n_heads / cfg->n_kv_heads;
    if (group == 1) return FL_OK;
    p->o_groups = fl__alloc((size_t)cfg->n_heads * (size_t)D, sizeof(int));
    if (!p->o_groups)
        return fl__fail_nomem(err, "head groups", (size_t)cfg->n_heads * (size_t)D * 4);
    for (int h = 0; h < cfg->n_heads; h++)
        for (int d = 0; d < D; d++) p->o_groups[h * D + d] = h / group * D + d;
    return FL_OK;
}

/* At 8 bits rounding is harmless and clipping is what hurts: the published rule, which clips
 * nothing, beats the search there (docs/flattenquant.md has the figures). */
static fl_flatten_options rule_where_automatic(fl_flatten_options o)
{
    if (o.alpha < 0) o.alpha = 0.5;
    if (o.beta < 0) o.beta = 1.3;
    return o;
}

static fl_status choose_site(planner *p, site_choices *to, const fl_block *block, int site,
                             const fl_site_stats *stats, fl_err *err)
{
    const fl_quant_config *c = &p->job->c;
    const fl_model_config *cfg = &p->job->model->cfg;
    const bool is_unsigned =
        c->unsigned_codes && site_is_nonnegative(&p->job->model->program, site);
    fl_flatten_options o = c->flatten;
    fl_flatten_weight weights[FL_SITE_MAX_LINEARS];
    fl_flatten_groups groups = {NULL, stats->K};
    fl_status st = FL_OK;

    o.smooth = site_is_smoothed(c, site);
    if (site == FL_SITE_O && p->o_groups)
        groups = (fl_flatten_groups){p->o_groups, cfg->n_kv_heads * cfg->head_dim};
    for (int i = 0; i < block->site[site].n_linears; i++)
        weights[i] = (fl_flatten_weight){block->site[site].linears[i]->own_w,
                                         block->site[site].linears[i]->n_out};
    const int n = block->site[site].n_linears;
    if (c->mixed || c->a_bits == 4)
        st = fl__flatten_choose(&to->at4, p->job->ex, stats, weights, n, groups, 4,
                                c->mixed ? 4 : c->w_bits, is_unsigned, &o, err);
    o = rule_where_automatic(o);
    if (!st && (c->mixed || c->a_bits == 8))
        st = fl__flatten_choose(&to->at8, p->job->ex, stats, weights, n, groups, 8,
                                c->mixed ? 8 : c->w_bits, is_unsigned, &o, err);
    if (st) return st;
    const float *smooth = to->at4.smooth ? to->at4.smooth : to->at8.smooth;
    to->d4 = fl__flatten_divergence(stats, smooth, 4, is_unsigned);
    to->d8 = fl__flatten_divergence(stats, smooth, 8, is_unsigned);
    return FL_OK;
}

/* ---- cost of a site at 4 bits ------------------------------------------------------------ */

/* A linear of `from` at 4 bits behind a site smoothed by s: codes of s W to nearest. */
static fl_status probe_linear(fl_linear *lin, const fl_linear *from, const fl_site *site,
                              const float *s, const fl_quant_job *job, fl_err *err)
{
    const size_t K = (size_t)from->n_in, n = (size_t)from->n_out * K;
    float *w = fl__alloc(n, sizeof *w);
    int8_t *codes = fl__alloc(n, 1);
    fl_status st = FL_OK;
    *lin = (fl_linear){.n_out = from->n_out, .n_in = from->n_in};
    lin->w_scale = fl__alloc((size_t)from->n_out, sizeof(float));
    lin->bias = from->bias ? fl__alloc((size_t)from->n_out, sizeof(float)) : NULL;
    lin->w_scale_stride = 1;
    if (!w || !codes || !lin->w_scale || (from->bias && !lin->bias)) {
        st = fl__fail_nomem(err, "probe of a site", n * sizeof *w);
        goto out;
    }
    if (from->bias) memcpy(lin->bias, from->bias, (size_t)from->n_out * sizeof(float));
    for (size_t i = 0; i < n; i++) w[i] = from->own_w[i] * s[i % K];
    fl__weight_scale_find(job->ex, lin->w_scale, w, from->n_out, from->n_in, 4, false, true,
                          NULL);
    (void)fl__weight_round(job->ex, codes, w, lin->w_scale, 1, from->n_out, from->n_in, 4,
                           NULL);
    st = fl__linear_pack(lin, site, codes, 4, err);
out:
    fl__free(&w);
    fl__free(&codes);
    if (st) fl__linear_fini(lin);
    return st;
}

/* The block with one site at 4 bits. Smoothing is applied by the site itself (premul), so that
 * nothing else changes. */
static fl_status probe_init(fl_block *probe, const fl_block *block, int which,
                            const fl_flatten_choice *c, const fl_quant_job *job, fl_err *err)
{
    *probe = *block;
    fl_site *site = &probe->site[which];
    const size_t K = (size_t)site->n_in;
    fl_status st;
    site->act = FL_ACT_STATIC;
    site->a_bits = 4;
    site->is_unsigned = c->is_unsigned;
    site->scale = c->scale;
    site->copies = fl__alloc(K, sizeof *site->copies);
    site->premul = fl__alloc(K, sizeof *site->premul);
    st = site->copies && site->premul ? FL_OK : fl__fail_nomem(err, "probe of a site", K * 6);
    for (size_t i = 0; i < K && !st; i++) {
        site->copies[i] = c->copies[i];
        site->premul[i] = 1.0f / c->smooth[i];
    }
    if (!st) st = fl__site_prepare(site, err);
    for (int i = 0; i < site->n_linears; i++) {
        fl_linear *lin = &probe->linear[block->site[which].linears[i] - block->linear];
        *lin = (fl_linear){0};
        if (!st)
            st = probe_linear(lin, block->site[which].linears[i], site, c->smooth, job, err);
        site->linears[i] = lin;
    }
    return st;
}

static void probe_fini(fl_block *probe, int which)
{
    for (int i = 0; i < probe->site[which].n_linears; i++)
        fl__linear_fini(probe->site[which].linears[i]);
    fl__site_fini(&probe->site[which]);
}

static fl_status measure_costs(planner *p, int layer, const fl_block *block, fl_err *err)
{
    fl_stream *s = p->job->stream;
    const size_t n = fl__stream_first_batch(s, block, s->site_float);
    for (int which = 0; which < FL_N_SITES; which++) {
        site_choices *c = &p->all[layer * FL_N_SITES + which];
        fl_block probe;
        double error = 0, energy = 0;
        const fl_status st = probe_init(&probe, block, which, &c->at4, p->job, err);
        if (!st) {
            (void)fl__stream_first_batch(s, &probe, s->site_quant);
            for (size_t i = 0; i < n; i++) {
                const double d = (double)s->site_quant[i] - s->site_float[i];
                error += d * d;
                energy += (double)s->site_float[i] * s->site_float[i];
            }
            c->cost4 = energy > 0 ? error / energy : 0;
        }
        probe_fini(&probe, which);
        if (st) return st;
    }
    return FL_OK;
}

/* ---- a block, all blocks ----------------------------------------------------------------- */

static fl_status plan_block(planner *p, int layer, fl_err *err)
{
    fl_stream *s = p->job->stream;
    fl_site_stats stats[FL_N_SITES];
    fl_block block;
    fl_status st = fl__block_fold(&block, p->job->model, layer, NULL, err);
    if (st) return st;
    st = fl__stream_stats(stats, s, &block, FL_QUANT_SAMPLE_ROWS, err);
    for (int i = 0; i < FL_N_SITES && !st; i++)
        st = choose_site(p, &p->all[layer * FL_N_SITES + i], &block, i, &stats[i], err);
    for (int i = 0; i < FL_N_SITES; i++) fl__site_stats_fini(&stats[i]);
    if (!st && p->job->c.mixed) st = measure_costs(p, layer, &block, err);
    fl__block_fini(&block);
    return st;
}

/* Ratio: greedy by D_4 as published, or the cheapest subset by measured cost; gamma: every site
 * for itself. */
static fl_status select_bits(planner *p, uint8_t *chosen, fl_err *err)
{
    const fl_quant_job *job = p->job;
    const int n = job->model->cfg.n_layers * FL_N_SITES;
    double *cost = fl__alloc((size_t)n, sizeof *cost);
    int *linears = fl__alloc((size_t)n, sizeof *linears), total = 0,
        unused[FL_SITE_MAX_LINEARS];
    fl_rng rng = fl__rng_init(job->c.seed, 0, "random-selection");
    fl_status st = FL_OK;
    if (!cost || !linears) {
        st = fl__fail_nomem(err, "selection of bits", (size_t)n * 12);
        goto out;
    }
    for (int i = 0; i < n; i++) {
        linears[i] = fl__site_linears(unused, &job->model->cfg, i % FL_N_SITES);
        total += linears[i];
        cost[i] = job->c.select == FL_SELECT_KL       ? p->all[i].d4
                  : job->c.select == FL_SELECT_OUTPUT ? p->all[i].cost4
                                                      : fl__rng_unit(&rng);
        chosen[i] = job->c.gamma >= 0 && p->all[i].d4 - p->all[i].d8 <= job->c.gamma;
    }
    if (job->c.gamma < 0)
        st = fl__flatten_select(chosen, cost, linears, n,
                                (int)ceil(job->c.int4_ratio * total - 1e-9),
                                job->c.select != FL_SELECT_OUTPUT, err);
out:
    fl__free(&cost);
    fl__free(&linears);
    return st;
}

static void settle(fl_quant_job *job, int i, site_choices *from, int a_bits)
{
    fl_site_plan *to = &job->plan->sites[i];
    fl_flatten_choice *c = a_bits == 4 ? &from->at4 : &from->at8;
    const fl_quant_config *cfg = &job->c;
    const bool fixed = cfg->act == FL_ACT_STATIC,
               smoothed = site_is_smoothed(cfg, i % FL_N_SITES);
    to->act = cfg->act;
    to->a_bits = a_bits;
    to->w_bits = cfg->mixed ? a_bits : cfg->w_bits;
    to->is_unsigned = fixed && c->is_unsigned;
    to->asymmetric = cfg->asymmetric;
    to->smooth = smoothed ? c->smooth : NULL;
    to->copies = fixed && cfg->flatten.flatten ? c->copies : NULL;
    if (to->smooth) c->smooth = NULL; /* ownership moved */
    if (to->copies) c->copies = NULL;
    to->scale = fixed ? c->scale : 0;
    to->alpha = smoothed ? c->alpha : NAN;
    to->threshold = fixed ? (double)c->threshold : NAN;
    to->ratio = fixed ? c->ratio : 0;
    to->effective_bits = fixed ? c->effective_bits : a_bits;
    to->error = fixed ? c->error : NAN;
    to->clipped = fixed ? c->clipped : NAN;
    to->n_outliers = c->n_outliers;
    to->d4 = from->d4;
    to->d8 = from->d8;
    to->cost4 = cfg->mixed ? from->cost4 : NAN;
}

/* No activation statistics needed, or not yet: the same for all sites. */
static void settle_plain(fl_quant_job *job)
{
    for (int i = 0; i < job->plan->n_layers * FL_N_SITES; i++) {
        fl_site_plan *to = &job->plan->sites[i];
        const bool is_float = job->c.act == FL_ACT_FLOAT;
        *to = (fl_site_plan){.act = job->c.act,
                             .w_bits = job->c.w_bits,
                             .a_bits = is_float ? 16 : job->c.a_bits,
                             .asymmetric = job->c.asymmetric,
                             .n_in = to->n_in,
                             .alpha = NAN,
                             .threshold = NAN,
                             .effective_bits = is_float ? 16 : job->c.a_bits,
                             .error = NAN,
                             .clipped = NAN,
                             .d4 = NAN,
                             .d8 = NAN,
                             .cost4 = NAN};
    }
}

fl_status fl__quant_plan_make(fl_quant_job *job, fl_err *err)
{
    const int n_layers = job->model->cfg.n_layers;
    const size_t n = (size_t)n_layers * FL_N_SITES;
    planner p = {.job = job};
    uint8_t *chosen = NULL;
    fl_status st = fl__plan_new(&job->plan, n_layers, err);
    if (st) return st;
    for (size_t i = 0; i < n; i++) {
        int linears[FL_SITE_MAX_LINEARS], n_out;
        (void)fl__site_linears(linears, &job->model->cfg, (int)(i % FL_N_SITES));
        fl__linear_shape(&n_out, &job->plan->sites[i].n_in, &job->model->cfg, linears[0]);
    }
    if (!fl__quant_needs_statistics(&job->c) || job->c.transforms) {
        settle_plain(job);
        return FL_OK;
    }
    p.all = fl__calloc(n, sizeof *p.all);
    chosen = fl__calloc(n, 1);
    if (!p.all || !chosen) {
        st = fl__fail_nomem(err, "plan", n * sizeof *p.all);
        goto out;
    }
    if ((st = make_groups(&p, err))) goto out;
    fl__stream_embed(job->stream);
    for (int layer = 0; layer < n_layers && !st; layer++) {
        st = plan_block(&p, layer, err);
        fl__quant_progress(job, "plan", layer, NAN, 0.3 * (layer + 1) / n_layers);
    }
    if (!st && job->c.mixed) st = select_bits(&p, chosen, err);
    for (size_t i = 0; i < n && !st; i++)
        settle(job, (int)i, &p.all[i],
               job->c.mixed ? (chosen[i] ? 4 : 8) : job->c.a_bits);
out:
    for (size_t i = 0; p.all && i < n; i++) choices_fini(&p.all[i]);
    fl__free(&p.all);
    fl__free(&p.o_groups);
    fl__free(&chosen);
    return st;
}

fl_status fl__quant_plan_learned(fl_quant_job *job, int layer, const fl_block *folded,
                                 fl_err *err)
{
    planner p = {.job = job};
    fl_site_stats stats[FL_N_SITES];
    fl_status st =
        fl__stream_learned_stats(stats, job->stream, folded, FL_QUANT_SAMPLE_ROWS, err);
    for (int s = 0; s < FL_N_SITES; s++) {
        site_choices choices = {0};
        if (!st) st = choose_site(&p, &choices, folded, s, &stats[s], err);
        if (!st) settle(job, layer * FL_N_SITES + s, &choices, job->c.a_bits);
        choices_fini(&choices);
        fl__site_stats_fini(&stats[s]);
    }
    return st;
}
