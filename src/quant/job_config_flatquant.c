/* job_config_flatquant.c - FlatQuant's options made definite: the default recipe and the
 * published one.
 *
 * Where the default departs from the official code is a measured choice (docs/flatquant.md):
 * asymmetric activations, training on the inputs that the quantised blocks before produce,
 * free matrices with a direct inverse. Training is the same where the model will run with one
 * static scale per tensor. quarot is the same path with a randomised Hadamard
 * transform, nothing learned and the norms' gains in the weights.
 * SPDX-License-Identifier: MIT */
#include "quant/job.h"

#include "base/isa.h"
#include "quant/job_options.h"

#include <math.h>

static double choose(double given, double automatic)
{
    return given < 0 ? automatic : given;
}

static const char *const transforms[] = {"none", "inverse", "svd", "random-kron", "hadamard"};

static fl_status find_transform(fl_transform_kind *kind, const char *name, fl_err *err)
{
    for (int i = 0; i < (int)(sizeof transforms / sizeof *transforms); i++)
        if (is(name, transforms[i])) {
            *kind = (fl_transform_kind)i;
            return FL_OK;
        }
    return usage(err, "--transform", "unknown",
                 "inverse, svd, random-kron, hadamard or none");
}

static fl_status check(const fl_quantize_options *o, fl_err *err)
{
    if (o->recipe && !is(o->recipe, "official"))
        return usage(err, "--recipe", "unknown recipe", "official is there");
    if (!is(o->train_dtype, "auto") && !is(o->train_dtype, "float32") &&
        !is(o->train_dtype, "bf16"))
        return usage(err, "--train-dtype", "unknown", "auto, float32 or bf16");
    if (o->epochs > 10000) return usage(err, "--epochs", "above 10000", "15 is usual");
    if (o->batch_windows == 0) return usage(err, "--cali-bsz", "0", "4 is usual");
    if (isnan(o->lr) || isnan(o->min_lr) || isnan(o->clip_lr) || isnan(o->weight_lr) ||
        isnan(o->weight_decay) || isnan(o->diag_alpha))
        return usage(err, "--flat-lr", "a rate is not a number", "give a number");
    if (o->diag_alpha > 1) return usage(err, "--diag-alpha", "above 1", "0.3 is usual");
    if (o->smooth == FL_ON)
        return usage(err, "--smooth", "transforms and scales take its place", "leave it out");
    return FL_OK;
}

bool fl__quant_trains_in_bf16(const fl_quantize_options *o, uint32_t isa)
{
    return is(o->train_dtype, "bf16") ||
           (is(o->train_dtype, "auto") && (isa & FL_ISA_AMXBF16));
}

/* Options that hold for both recipes and for both methods. */
static fl_flatquant_options common(const fl_quantize_options *o, const fl_quant_config *c,
                                   uint32_t isa)
{
    return (fl_flatquant_options){
        .w_bits = c->w_bits,
        .a_bits = c->act == FL_ACT_FLOAT ? 16 : c->a_bits,
        .k_bits = c->k_bits,
        .v_bits = c->v_bits,
        .scale = pick(o->learn_scale, true),
        .clip = pick(o->learn_clip, true),
        .asymmetric = c->act != FL_ACT_FLOAT && fl__quant_per_token_asymmetric(o),
        .epochs = o->epochs < 0 ? 15 : o->epochs,
        .batch_windows = o->batch_windows < 0 ? 4 : o->batch_windows,
        .warmup_steps = o->warmup_steps < 0 ? 0 : o->warmup_steps,
        .lr = choose(o->lr, 5e-3),
        .min_lr = choose(o->min_lr, 5e-6),
        .clip_lr = choose(o->clip_lr, 10),
        .weight_lr = choose(o->weight_lr, 0),
        .weight_decay = choose(o->weight_decay, 0.01),
        .clip_start = 4.0,
        .diag_alpha = choose(o->diag_alpha, 0.3),
        .bf16 = fl__quant_trains_in_bf16(o, isa),
        .seed = o->seed,
    };
}

fl_status fl__flatquant_config_resolve(fl_quant_config *c, const fl_quantize_options *o,
                                       const fl_model_config *model, uint32_t isa, fl_err *err)
{
    const bool official = is(o->recipe, "official"), quarot = is(o->method, "quarot");
    const char *automatic = quarot ? "hadamard" : official ? "svd" : "inverse";
    fl_status st = check(o, err);
    if (st) return st;
    fl_flatquant_options *f = &c->flatquant;
    *f = common(o, c, isa);
    f->clip_per_linear = pick(o->clip_per_linear, official);
    f->clip_v_first = official;
    f->centre = fl__flatquant_can_centre(model) && pick(o->centre, !official && !quarot);
    f->quantized_inputs = pick(o->quantized_inputs, !official && !quarot);
    if ((st = find_transform(&f->transform, o->transform ? o->transform : automatic, err)))
        return st;
    const bool fixed =
        f->transform == FL_TRANSFORM_RANDOM || f->transform == FL_TRANSFORM_HADAMARD;
    if (fixed) { /* nothing is learned unless asked for */
        f->scale = pick(o->learn_scale, false);
        f->clip = pick(o->learn_clip, false);
        f->fold_gain = quarot && !f->scale && model->pre_norm; /* else the residual has it */
    }
    f->clip_per_linear &= f->clip && c->act == FL_ACT_TOKEN; /* else codes are shared */
    if (fixed && !f->scale && !f->clip) f->epochs = 0;
    c->unsigned_codes = false; /* a transform gives either sign */
    return FL_OK;
}

size_t fl__quant_transform_bytes(const fl_quant_config *c, const fl_model_config *model,
                                 const fl_exec *ex)
{
    const int widths[] = {model->hidden_size, model->ffn_size};
    if (!c->transforms || c->flatquant.transform == FL_TRANSFORM_NONE) return 0;
    size_t most = fl__transform_scratch_bytes(ex, model->n_heads, model->head_dim);
    for (int i = 0; i < 2; i++) {
        int n1, n2;
        fl__factor_pair(widths[i], &n1, &n2);
        most = FL_MAX(most, fl__transform_scratch_bytes(ex, n1, n2));
    }
    return most;
}

json_t *fl__flatquant_config_json(const fl_flatquant_options *o)
{
    return json_pack("{s:s,s:b,s:b,s:b,s:b,s:b,s:b,s:b,s:i,s:i,s:i,s:f,s:f,s:f,s:f,s:f,s:f,"
                     "s:s}",
                     "transform", transforms[o->transform], "scale", o->scale, "clip", o->clip,
                     "clip_per_linear", o->clip_per_linear, "clip_v_first", o->clip_v_first,
                     "centre", o->centre, "asymmetric", o->asymmetric,
                     "quantized_inputs", o->quantized_inputs, "epochs", o->epochs,
                     "batch_windows", o->batch_windows, "warmup_steps", o->warmup_steps, "lr",
                     o->lr, "min_lr", o->min_lr, "clip_lr", o->clip_lr, "weight_lr",
                     o->weight_lr, "weight_decay", o->weight_decay, "diag_alpha",
                     o->diag_alpha, "gemm", o->bf16 ? "bf16" : "float32");
}
