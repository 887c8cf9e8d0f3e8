/* block.c - rounding a block site by site.
 *
 * The quantised block starts as a view of the folded float block. Each site that is rounded
 * replaces its linears there, so that the next site's Hessian sees inputs that come from
 * already quantised predecessors (methods, section 1.6), on the same integer kernels that will
 * run the model.
 * SPDX-License-Identifier: MIT */
#include "quant/block.h"

#include "base/mem.h"
#include "quant/checkpoint.h"
#include "quant/weight_scale.h"

#include <math.h>
#include <string.h>

size_t fl__block_float_bytes(const fl_model *model)
{
    const fl_model_config *cfg = &model->cfg;
    const size_t norms = cfg->family == FL_FAMILY_OPT ? 4 : 2;
    size_t n = norms * (size_t)cfg->hidden_size;
    for (int i = 0; i < FL_N_LINEARS; i++) {
        int n_out, n_in;
        fl__linear_shape(&n_out, &n_in, cfg, i);
        const bool bias = n_out && fl__family(cfg)->has_bias(cfg, i);
        n += (size_t)n_out * (size_t)(n_in + bias);
    }
    return n * sizeof(float);
}

size_t fl__block_linear_bytes(const fl_model *model, int linear, int w_bits, fl_act_kind act,
                              double extra, double digits, bool w_per_tensor)
{
    int n_out, n_in;
    fl__linear_shape(&n_out, &n_in, &model->cfg, linear);
    if (w_bits == 16) return 0;
    w_bits = fl__stored_bits(w_bits);
    const size_t N = (size_t)n_out, K = (size_t)n_in, scales = w_per_tensor ? 1 : N;
    const size_t codes = N * (K + (size_t)(digits * (double)K)) + scales * sizeof(float);
    if (act == FL_ACT_FLOAT) return codes + (w_bits == 4 ? N * ((K + 1) / 2) : 0);
    const size_t N_pad = (N + 15) / 16 * 16, K_all = K + (size_t)((extra + digits) * (double)K);
    return codes + N_pad * ((K_all + 63) / 64 * 64) * (size_t)w_bits / 8 +
           N_pad * sizeof(int32_t);
}

void fl__block_move(fl_block *to, fl_block *from)
{
    *to = *from;
    for (int s = 0; s < FL_N_SITES; s++)
        for (int i = 0; i < to->site[s].n_linears; i++)
            to->site[s].linears[i] = &to->linear[from->site[s].linears[i] - from->linear];
    memset(from, 0, sizeof *from);
}

fl_status fl__block_job_init(fl_block_job *j, const fl_model *model, const fl_exec *ex,
                             int layer, const fl_site_plan *plan, const fl_block_options *o,
                             fl_block *folded, fl_err *err)
{
    *j = (fl_block_job){.model = model, .ex = ex, .plan = plan, .o = o, .layer = layer};
    if (folded) {
        fl__block_move(&j->folded, folded);
    } else {
        const fl_status st = fl__block_fold(&j->folded, model, layer, plan, err);
        if (st) return st;
    }
    j->quant = j->folded;
    for (int s = 0; s < FL_N_SITES; s++) {
        fl_site *site = &j->quant.site[s];
        for (int i = 0; i < site->n_linears; i++)
            site->linears[i] = &j->quant.linear[site->linears[i] - j->folded.linear];
        for (int i = 0; i < FL_SITE_MAX_LINEARS; i++) j->outcome[s].gptq_error[i] = NAN;
        j->outcome[s].damping = j->outcome[s].weight_threshold = NAN;
    }
    return FL_OK;
}

/* Empties t where it is the folded block's. */
static void release_shared(fl_transform *t, const fl_transform *folded)
{
    if (t->left == folded->left && t->right == folded->right) *t = (fl_transform){0};
}

void fl__block_job_fini(fl_block_job *j)
{
    for (int i = 0; i < FL_N_LINEARS; i++) {
        fl_linear *lin = &j->quant.linear[i];
        lin->own_w = NULL; /* the folded block's */
        if (lin->bias == j->folded.linear[i].bias) lin->bias = NULL;
        fl__linear_fini(lin);
        fl__free(&j->codes[i]);
        fl__free(&j->packed_w[i]);
    }
    for (int s = 0; s < FL_N_SITES; s++) {
        fl_site *site = &j->quant.site[s];
        if (site->premul == j->folded.site[s].premul) site->premul = NULL;
        if (site->spec_lo == j->folded.site[s].spec_lo) site->spec_lo = site->spec_hi = NULL;
        release_shared(&site->transform, &j->folded.site[s].transform);
        fl__site_fini(site);
    }
    fl__weight_split_fini(&j->split);
    release_shared(&j->quant.head_transform_q, &j->folded.head_transform_q);
    release_shared(&j->quant.head_transform_k, &j->folded.head_transform_k);
    fl__transform_fini(&j->quant.head_transform_q);
    fl__transform_fini(&j->quant.head_transform_k);
    fl__block_fini(&j->folded);
}

/* Which columns of the site's weights become digits; on the folded weights, as they are what is
 * rounded. */
static fl_status split_weights(fl_block_job *j, int which, fl_err *err)
{
    fl_site *site = &j->quant.site[which];
    fl_flatten_weight weights[FL_SITE_MAX_LINEARS];
    fl_weight_split *split = &j->split;
    const size_t K = (size_t)site->n_in;
    int *columns = fl__alloc(K, sizeof *columns);
    if (!columns) return fl__fail_nomem(err, "digits of weights", K * sizeof *columns);
    for (int c = 0; c < site->n_in; c++) columns[c] = fl__site_channel_columns(site, c);
    for (int i = 0; i < site->n_linears; i++)
        weights[i] = (fl_flatten_weight){j->folded.site[which].linears[i]->own_w,
                                         site->linears[i]->n_out};
    fl_status st = fl__weight_split_choose(split, weights, site->n_linears, site->n_in,
                                           j->plan[which].w_bits, j->o->w_per_tensor, columns,
                                           j->o->weight_beta, j->o->weight_max_ratio, err);
    fl__free(&columns);
    if (st) return st;
    j->outcome[which].weight_ratio = split->ratio;
    j->outcome[which].weight_threshold = split->threshold;
    if (split->ld == site->n_in) {
        fl__weight_split_fini(split);
        return FL_OK;
    }
    site->weight_copies = fl__alloc(K, sizeof *site->weight_copies);
    if (!site->weight_copies) return fl__fail_nomem(err, "digits of weights", K * 2);
    memcpy(site->weight_copies, split->copies, K * sizeof *site->weight_copies);
    return FL_OK;
}

/* The site's quantiser as planned. */
static fl_status prepare_site(fl_block_job *j, int which, fl_err *err)
{
    const fl_site_plan *p = &j->plan[which];
    fl_site *site = &j->quant.site[which];
    site->act = p->act;
    site->a_bits = p->a_bits;
    site->is_unsigned = p->is_unsigned;
    site->asymmetric = p->asymmetric;
    site->scale = p->scale;
    if (p->copies) {
        site->copies = fl__alloc((size_t)site->n_in, sizeof *site->copies);
        if (!site->copies) return fl__fail_nomem(err, "copies", (size_t)site->n_in * 2);
        memcpy(site->copies, p->copies, (size_t)site->n_in * sizeof *site->copies);
    }
    fl__weight_split_fini(&j->split);
    if (j->o->flatten_weights && p->act == FL_ACT_STATIC) {
        const fl_status st = split_weights(j, which, err);
        if (st) return st;
    }
    return fl__site_prepare(site, err);
}

/* Puts codes of one linear into the quantised block: packed for the integer kernels, or
 * row-major for weight-only. */
static fl_status install(fl_block_job *j, fl_linear *lin, const fl_site *site, int which,
                         int bits, fl_err *err)
{
    lin->own_w = NULL;
    lin->w = NULL;
    if (site->act != FL_ACT_FLOAT)
        return fl__linear_pack(lin, site, j->codes[which], bits, err);
    lin->w_bits = bits;
    lin->w = j->codes[which];
    if (bits == 8) return FL_OK;
    const size_t n = (size_t)lin->n_out * (size_t)((lin->n_in + 1) / 2);
    j->packed_w[which] = fl__alloc(n, 1);
    if (!j->packed_w[which]) return fl__fail_nomem(err, "nibbles", n);
    fl__nibbles_pack(j->packed_w[which], j->codes[which], lin->n_out, lin->n_in);
    lin->w = j->packed_w[which];
    return FL_OK;
}

static fl_status add_to_bias(fl_linear *lin, const float *old, const float *shift, fl_err *err)
{
    bool any = false;
    for (int n = 0; n < lin->n_out; n++) any |= shift[n] != 0;
    if (!any) return FL_OK;
    float *bias = fl__alloc((size_t)lin->n_out, sizeof *bias);
    if (!bias) return fl__fail_nomem(err, "bias", (size_t)lin->n_out * sizeof *bias);
    for (int n = 0; n < lin->n_out; n++) bias[n] = (old ? old[n] : 0.0f) + shift[n];
    lin->bias = bias; /* the folded block keeps its own */
    return FL_OK;
}

/* Rounds linear number i of the site. gptq NULL: to nearest. */
static fl_status round_linear(fl_block_job *j, int which, int i, const fl_gptq *gptq,
                              fl_err *err)
{
    fl_site *site = &j->quant.site[which];
    fl_linear *lin = site->linears[i];
    const int id = (int)(lin - j->quant.linear), bits = j->plan[which].w_bits;
    const fl_linear *from = &j->folded.linear[id];
    const fl_weight_split *split = j->split.copies ? &j->split : NULL;
    const size_t N = (size_t)lin->n_out, n = N * (size_t)lin->n_in;
    const size_t n_codes = N * (size_t)fl__site_weight_columns(site);
    float *w = gptq ? fl__alloc(n, sizeof *w) : NULL, *shift = fl__alloc(N, sizeof *shift);
    fl_status st = FL_OK;

    j->codes[id] = fl__alloc(n_codes, 1);
    lin->w_scale = fl__alloc(j->o->w_per_tensor ? 1 : N, sizeof(float));
    lin->w_scale_stride = j->o->w_per_tensor ? 0 : 1;
    if ((gptq && !w) || !shift || !j->codes[id] || !lin->w_scale) {
        st = fl__fail_nomem(err, "rounding", n * sizeof *w);
        goto out;
    }
    if (gptq) {
        memcpy(w, from->own_w, n * sizeof *w);
        st = fl__gptq_round(gptq, j->ex, j->codes[id], lin->w_scale, shift, w, lin->n_out, bits,
                            j->o->w_per_tensor, &j->outcome[which].gptq_error[i], err);
        const bool drop_bias = id == FL_LIN_K && fl__key_bias_is_dropped(j->model);
        if (!st && !drop_bias) st = add_to_bias(lin, from->bias, shift, err);
    } else {
        fl__weight_scale_find_split(j->ex, lin->w_scale, from->own_w, split, lin->n_out,
                                    lin->n_in, bits, j->o->w_per_tensor, j->o->search_scale,
                                    NULL);
        (void)fl__weight_round_split(j->ex, j->codes[id], from->own_w, split, lin->w_scale,
                                     lin->w_scale_stride, lin->n_out, lin->n_in, bits, NULL);
    }
    if (!st) st = install(j, lin, site, id, fl__stored_bits(bits), err);
out:
    fl__free(&w);
    fl__free(&shift);
    return st;
}

/* Of the input as linear number `linear` of the site gets it. */
static fl_status factorise_site(fl_gptq *gptq, fl_block_job *j, fl_stream *stream, int which,
                                int linear, fl_err *err)
{
    fl_gram gram;
    fl_status st = fl__gram_init(&gram, j->quant.site[which].n_in, true, err);
    if (st) return st;
    if (!fl__stream_gram(&gram, stream, &j->folded, &j->quant, which, &j->quant.site[which],
                         linear))
        st = fl__checkpoint_interrupted(err);
    else
        st = fl__gptq_init(gptq, &gram, &j->o->gptq, j->ex, err);
    fl__gram_fini(&gram);
    return st;
}

fl_status fl__block_job_site(fl_block_job *j, fl_stream *stream, int which, fl_err *err)
{
    const fl_site *site = &j->quant.site[which];
    fl_site_outcome *outcome = &j->outcome[which];
    fl_gptq gptq = {0};
    fl_status st = prepare_site(j, which, err);
    if (st || j->plan[which].w_bits == 16) return st;
    for (int i = 0; i < site->n_linears && !st; i++) {
        if (j->o->use_gptq && (i == 0 || site->own_clips)) {
            fl__gptq_fini(&gptq);
            if ((st = factorise_site(&gptq, j, stream, which, i, err))) break;
            outcome->damping = fmax(outcome->damping, gptq.damping_used); /* NAN at first */
            gptq.split = j->split.copies ? &j->split : NULL;
        }
        st = round_linear(j, which, i, j->o->use_gptq ? &gptq : NULL, err);
    }
    fl__gptq_fini(&gptq);
    return st;
}
