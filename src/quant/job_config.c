/* job_config.c - from options with automatic values to a definite configuration.
 *
 * Defaults of a method are here and nowhere else; those that were chosen by measurement say so,
 * with the table in docs/flattenquant.md.
 * SPDX-License-Identifier: MIT */
#include "quant/job.h"

#include "model/quantized.h"
#include "quant/job_options.h"

#include <math.h>

static int key_bits(const fl_quantize_options *o)
{
    return o->k_bits ? o->k_bits : o->kv_bits;
}

static int value_bits(const fl_quantize_options *o)
{
    return o->v_bits ? o->v_bits : o->kv_bits;
}

static fl_status check_bits(const fl_quantize_options *o, bool flattenquant, fl_err *err)
{
    const int w = o->w_bits, a = o->a_bits;
    fl_kv_format unused;
    if (!fl__kv_format_of_bits(&unused, key_bits(o)))
        return usage(err, "--k-bits", "not 16, 8, 4, 3 or 2", "give one of them");
    if (!fl__kv_format_of_bits(&unused, value_bits(o)))
        return usage(err, "--v-bits", "not 16, 8, 4, 3 or 2", "give one of them");
    if (w && w != 3 && w != 4 && w != 8 && w != 16)
        return usage(err, "--w-bits", "not 3, 4, 8 or 16", "give one of them");
    if (a && a != 3 && a != 4 && a != 8 && a != 16)
        return usage(err, "--a-bits", "not 3, 4, 8 or 16", "give one of them");
    if (flattenquant && (w == 3 || a == 3))
        return usage(err, "--w-bits", "flattenquant has 4 and 8 bits", "give one of them");
    if (flattenquant && !w != !a)
        return usage(err, w ? "--w-bits" : "--a-bits",
                     "only one of weight and activation bits is given",
                     "give both, or neither for the mix of 4 and 8 bits");
    if (w == 16 && a != 16)
        return usage(err, "--w-bits",
                     "float weights with integer activations cannot be multiplied",
                     "give --w-bits 8 or 4");
    if (o->head_bits != 16 && o->head_bits != 8)
        return usage(err, "--head-bits", "not 16 or 8", "give one of them");
    if (w == 16 && a == 16 && key_bits(o) == 16 && value_bits(o) == 16 && o->head_bits == 16)
        return usage(err, "--w-bits", "16-bit weights and activations leave nothing to do",
                     "give fewer bits");
    return FL_OK;
}

static fl_status check_ranges(const fl_quantize_options *o, const fl_model_config *model,
                              fl_err *err)
{
    if (o->n_samples < 1 || o->n_samples > 1 << 20)
        return usage(err, "--samples", "not in 1..1048576", "128 is usual");
    if (o->seq_len && (o->seq_len < 8 || o->seq_len > model->n_positions))
        return fl__fail(
            err, FL_E_USAGE,
            "option: --seq-len: %d is not in 8..%d, the model's context; give a value in it",
            o->seq_len, model->n_positions);
    if (!(o->int4_ratio >= 0 && o->int4_ratio <= 1))
        return usage(err, "--int4-ratio", "not in 0..1", "0.4829 is the paper's");
    if (!(o->flatten_max_ratio >= 0 && o->flatten_max_ratio <= 16))
        return usage(err, "--flatten-max-ratio", "not in 0..16", "0.30 is the paper's");
    if (!(o->damping > 0 && o->damping <= 1))
        return usage(err, "--damping", "not in (0, 1]", "0.01 is usual");
    if (o->gptq_block < 1 || o->gptq_block > 65536)
        return usage(err, "--gptq-block", "not in 1..65536", "128 is usual");
    if (o->head_bits == 8 && model->embed_size > FL_MAX_CODE_COLUMNS)
        return usage(err, "--head-bits", "the head has more input channels than a kernel takes",
                     "give 16");
    if (o->redo_from >= model->n_layers)
        return fl__fail(err, FL_E_USAGE,
                        "option: --redo-from: the model has no block %d; give one of 0 to %d",
                        o->redo_from, model->n_layers - 1);
    if (o->alpha > 1) return usage(err, "--alpha", "above 1", "0.5 is usual, auto searches");
    if (isnan(o->alpha) || isnan(o->beta) || isnan(o->gamma))
        return usage(err, "--alpha", "not a number", "give a number");
    if (o->beta == 0)
        return usage(err, "--beta", "0 makes the threshold 0", "1.3 is usual, auto searches");
    if (!(o->weight_beta > 0))
        return usage(err, "--weight-beta", "not above 0", "1.3 is usual");
    return FL_OK;
}

static bool is_one_of(const char *name, const char *const *list)
{
    for (; *list; list++)
        if (is(name, *list)) return true;
    return false;
}

static fl_status check_choices(const fl_quantize_options *o, fl_err *err)
{
    static const char *const methods[] = {"flattenquant", "flatquant", "smoothquant", "quarot",
                                          "rtn", NULL};
    if (!is_one_of(o->method, methods))
        return fl__fail(err, o->method ? FL_E_UNSUPPORTED : FL_E_USAGE,
                        "option: --method: %s; flattenquant, flatquant, smoothquant, quarot "
                        "and rtn are there",
                        o->method ? o->method : "missing");
    if (o->preset && !is(o->preset, "paper"))
        return usage(err, "--preset", "unknown preset", "paper is there");
    if (!is(o->w_granularity, "channel") && !is(o->w_granularity, "tensor"))
        return usage(err, "--w-granularity", "unknown", "channel or tensor");
    if (o->a_granularity && !is(o->a_granularity, "tensor") && !is(o->a_granularity, "token"))
        return usage(err, "--a-granularity", "unknown", "tensor or token");
    if (o->weights && !is(o->weights, "gptq") && !is(o->weights, "rtn"))
        return usage(err, "--weights", "unknown", "gptq or rtn");
    if (!is(o->threshold, "mean") && !is(o->threshold, "iqr"))
        return usage(err, "--threshold", "unknown", "mean or iqr");
    if (o->select && !is(o->select, "kl") && !is(o->select, "output") &&
        !is(o->select, "random"))
        return usage(err, "--select", "unknown", "kl, output or random");
    return FL_OK;
}

static fl_select select_of(const char *name, fl_select automatic)
{
    return is(name, "kl")       ? FL_SELECT_KL
           : is(name, "output") ? FL_SELECT_OUTPUT
           : is(name, "random") ? FL_SELECT_RANDOM
                                : automatic;
}

bool fl__quant_per_token_asymmetric(const fl_quantize_options *o)
{
    return pick(o->asymmetric, is(o->method, "flatquant") && !is(o->recipe, "official"));
}

fl_status fl__quant_config_resolve(fl_quant_config *c, const fl_quantize_options *o,
                                   const fl_model_config *model, uint32_t isa, fl_err *err)
{
    const bool flattenquant = is(o->method, "flattenquant"), paper = is(o->preset, "paper");
    fl_status st;
    if ((st = check_choices(o, err)) || (st = check_bits(o, flattenquant, err)) ||
        (st = check_ranges(o, model, err)))
        return st;
    const char *granularity = o->a_granularity ? o->a_granularity
                              : flattenquant   ? "tensor"
                                               : "token";
    const bool gptq = o->weights ? is(o->weights, "gptq") : flattenquant;
    const bool transforms = is(o->method, "flatquant") || is(o->method, "quarot");
    const bool flattens = flattenquant || (transforms && is(granularity, "tensor"));
    *c = (fl_quant_config){
        .method = o->method,
        .mixed = flattenquant && !o->w_bits && !o->a_bits,
        .w_bits = o->w_bits ? o->w_bits : 4,
        .a_bits = o->a_bits ? o->a_bits : 4,
        .k_bits = key_bits(o),
        .v_bits = value_bits(o),
        .head_bits = o->head_bits,
        .smooth_all = flattenquant,
        .unsigned_codes = pick(o->unsigned_codes, flattenquant && !paper),
        .flatten = {.smooth = pick(o->smooth, flattenquant || is(o->method, "smoothquant")),
                    .suppress = pick(o->suppress, flattens),
                    .flatten = pick(o->flatten, flattens),
                    .alpha = o->alpha,
                    .beta = o->beta,
                    .iqr_rule = is(o->threshold, "iqr"),
                    .max_ratio = o->flatten_max_ratio},
        .int4_ratio = o->int4_ratio,
        .gamma = o->gamma,
        .select = select_of(o->select, paper ? FL_SELECT_KL : FL_SELECT_OUTPUT),
        .block = {.use_gptq = gptq,
                  .gptq = {.damping = o->damping,
                           .block = o->gptq_block,
                           .act_order = pick(o->act_order, !paper),
                           .centred = pick(o->bias_correction, flattenquant && !paper),
                           .compensate = pick(o->compensate, flattenquant && !paper)},
                  .w_per_tensor = paper || is(o->w_granularity, "tensor"),
                  .search_scale = flattenquant && !paper,
                  .flatten_weights = pick(o->flatten_weights, false),
                  .weight_beta = o->weight_beta,
                  .weight_max_ratio = o->flatten_max_ratio},
        .transforms = transforms,
        .seed = o->seed,
        .n_samples = o->n_samples,
        .seq_len = o->seq_len ? o->seq_len : FL_MIN(2048, model->n_positions),
    };
    c->act = c->a_bits == 16             ? FL_ACT_FLOAT
             : is(granularity, "tensor") ? FL_ACT_STATIC
                                         : FL_ACT_TOKEN;
    if (c->block.flatten_weights && c->act != FL_ACT_STATIC)
        return usage(err, "--flatten-weights",
                     "only activations with one fixed scale per tensor are repeated for it",
                     "use --a-granularity tensor with 8 or 4 bits, or leave it out");
    if ((paper || !flattenquant) && c->flatten.alpha < 0) c->flatten.alpha = 0.5;
    if ((paper || !flattens) && c->flatten.beta < 0) c->flatten.beta = 1.3;
    if (c->act == FL_ACT_FLOAT) c->flatten.smooth = false; /* nothing to take from the
                                                              activations */
    if (c->act != FL_ACT_STATIC) {
        c->flatten.flatten = c->flatten.suppress = c->unsigned_codes = false;
        if (c->flatten.alpha < 0) c->flatten.alpha = 0.5;
        c->flatten.beta = 1.3; /* unused */
    }
    if (c->act == FL_ACT_STATIC && c->a_bits == 3)
        return usage(err, "--a-bits", "3 bits are per token only", "give 4 or 8");
    c->asymmetric = c->act == FL_ACT_TOKEN && fl__quant_per_token_asymmetric(o);
    c->tune = (fl_tune_options){
        .epochs = o->tune_epochs >= 0                          ? o->tune_epochs
                  : is(o->method, "flatquant") && !is(o->recipe, "official") ? 4
                                                               : 0,
        .batch_windows = o->batch_windows < 0 ? 4 : o->batch_windows,
        .lr = o->tune_lr >= 0 ? o->tune_lr : 5e-3,
        .bf16 = fl__quant_trains_in_bf16(o, isa)};
    if (c->transforms && (st = fl__flatquant_config_resolve(c, o, model, isa, err))) return st;
    if (c->mixed && c->act != FL_ACT_STATIC && !o->a_granularity)
        return usage(err, "--a-granularity",
                     "the mix of 4 and 8 bits needs integer activations", "use tensor");
    return FL_OK;
}

json_t *fl__quant_config_json(const fl_quant_config *c)
{
    static const char *const selects[] = {"kl", "output", "random"};
    json_t *o = json_pack(
        "{s:s,s:s,s:b,s:b,s:i,s:i,s:i,s:i,s:i,s:b,s:b,s:b,s:b,s:b,s:f,s:f,s:s,s:f,s:f,s:f,s:s,"
        "s:s,s:f,s:i,s:b,s:b,s:b,s:s,s:b,s:b,s:f,s:I,s:i,s:i}",
        "method", c->method, "activation",
        c->act == FL_ACT_FLOAT    ? "float"
        : c->act == FL_ACT_STATIC ? "static"
                                  : "token",
        "asymmetric", c->asymmetric, "mixed", c->mixed, "w_bits", c->mixed ? 0 : c->w_bits,
        "a_bits", c->mixed ? 0 : c->a_bits, "k_bits", c->k_bits, "v_bits", c->v_bits,
        "head_bits", c->head_bits, "smooth", c->flatten.smooth, "smooth_all", c->smooth_all,
        "suppress", c->flatten.suppress, "flatten", c->flatten.flatten, "unsigned_codes",
        c->unsigned_codes, "alpha",
        c->flatten.alpha, "beta", c->flatten.beta, "threshold",
        c->flatten.iqr_rule ? "iqr" : "mean", "flatten_max_ratio", c->flatten.max_ratio,
        "int4_ratio", c->int4_ratio, "gamma", c->gamma, "select", selects[c->select], "weights",
        c->block.use_gptq ? "gptq" : "rtn", "damping", c->block.gptq.damping, "gptq_block",
        c->block.gptq.block, "act_order", c->block.gptq.act_order, "bias_correction",
        c->block.gptq.centred, "compensate", c->block.gptq.compensate, "w_granularity",
        c->block.w_per_tensor ? "tensor" : "channel", "search_scale", c->block.search_scale,
        "flatten_weights", c->block.flatten_weights, "weight_beta", c->block.weight_beta,
        "seed", (json_int_t)c->seed, "samples", c->n_samples, "seq_len", c->seq_len);
    if (o && c->transforms)
        (void)json_object_set_new(o, "flatquant", fl__flatquant_config_json(&c->flatquant));
    if (o && c->tune.epochs)
        (void)json_object_set_new(o, "tune",
                                  json_pack("{s:i,s:i,s:f,s:s}", "epochs", c->tune.epochs,
                                            "batch_windows", c->tune.batch_windows, "lr",
                                            c->tune.lr, "gemm",
                                            c->tune.bf16 ? "bf16" : "float32"));
    return o;
}

bool fl__quant_needs_plan_pass(const fl_quant_config *c)
{
    return c->act == FL_ACT_STATIC || c->flatten.smooth || c->mixed || fl__quant_needs_lanes(c);
}

bool fl__quant_needs_statistics(const fl_quant_config *c)
{
    return c->act == FL_ACT_STATIC || (c->act == FL_ACT_TOKEN && c->flatten.smooth);
}

bool fl__quant_needs_lanes(const fl_quant_config *c)
{
    return c->block.use_gptq || c->transforms || c->tune.epochs > 0;
}
