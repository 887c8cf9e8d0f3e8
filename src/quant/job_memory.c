/* job_memory.c - memory and disk of a run before it starts; time is in job_time.c.
 *
 * Each item is computed by the module that will allocate it, so that the estimate and the run
 * cannot drift apart. Sampling, planning and rounding are not in memory together: the peak is
 * the largest.
 * SPDX-License-Identifier: MIT */
#include "quant/job.h"


#include <math.h>

/* ---- while planning ---------------------------------------------------------------------- */

static int site_shape(int linears[FL_SITE_MAX_LINEARS], int *n_in, const fl_model *model,
                      int site)
{
    int n_out;
    const int n = fl__site_linears(linears, &model->cfg, site);
    fl__linear_shape(&n_out, n_in, &model->cfg, linears[0]);
    return n;
}

/* Smoothing factors (none with transforms) and copies of all sites; for the mix at both widths
 * until it is settled. */
static size_t plan_bytes(const fl_quant_config *c, const fl_model *model)
{
    size_t n = 0;
    for (int s = 0; s < FL_N_SITES; s++) {
        int linears[FL_SITE_MAX_LINEARS], n_in;
        (void)site_shape(linears, &n_in, model, s);
        n += (size_t)n_in * ((c->transforms ? 0 : sizeof(float)) + sizeof(uint16_t));
    }
    return n * (size_t)model->cfg.n_layers * (c->mixed ? 2 : 1);
}

/* Observers of a block's sites, and the search of one of them. */
static size_t statistics_bytes(const fl_quant_config *c, const fl_model *model,
                               const fl_exec *ex)
{
    const int64_t tokens = (int64_t)c->n_samples * c->seq_len;
    const int sample = (int)FL_MIN(tokens, (int64_t)FL_QUANT_SAMPLE_ROWS);
    size_t n = 0, search = 0;
    for (int s = 0; s < FL_N_SITES; s++) {
        int linears[FL_SITE_MAX_LINEARS], n_in;
        (void)site_shape(linears, &n_in, model, s);
        n += fl__site_stats_bytes(n_in, sample);
        search = FL_MAX(search,
                        fl__flatten_choose_bytes(n_in, sample, ex->n_threads, &c->flatten));
    }
    return n + search;
}

/* A site at 4 bits beside the float block: its packed weights, and one of them while it is
 * rounded. */
static size_t probe_bytes(const fl_quant_config *c, const fl_model *model)
{
    size_t most = 0;
    for (int s = 0; s < FL_N_SITES && c->mixed; s++) {
        int linears[FL_SITE_MAX_LINEARS], n_in;
        size_t packed = 0, rounding = 0;
        const int n = site_shape(linears, &n_in, model, s);
        for (int i = 0; i < n; i++) {
            int n_out, K;
            fl__linear_shape(&n_out, &K, &model->cfg, linears[i]);
            const size_t elements = (size_t)n_out * (size_t)K;
            packed += fl__block_linear_bytes(model, linears[i], 4, FL_ACT_STATIC, 0, 0, false) -
                      elements;
            rounding = FL_MAX(rounding, elements * (sizeof(float) + 1));
        }
        most = FL_MAX(most, packed + rounding + (size_t)n_in * 14); /* copies, multiplier,
                                                                       limits */
    }
    return most;
}

/* ---- while rounding ---------------------------------------------------------------------- */

/* Bits of weights; of the mix, what they come to on average. */
static double weight_bits(const fl_quant_config *c)
{
    return c->mixed ? 8 - 4 * c->int4_ratio : fl__stored_bits(c->w_bits);
}

/* Columns that digits add to the weights, per channel. How many are above a threshold is not
 * known before; of thresholds not far above the mean the cap decides, of higher ones about a
 * third of it was seen. */
static double weight_digits(const fl_quant_config *c)
{
    if (!c->block.flatten_weights) return 0;
    return c->block.weight_beta < 1.15 ? c->block.weight_max_ratio
                                       : c->block.weight_max_ratio / 3;
}

/* What stays of a rounded linear. */
static size_t rounded_bytes(const fl_quant_config *c, const fl_model *model, int linear)
{
    const bool flattened = c->act == FL_ACT_STATIC && c->flatten.flatten;
    const double extra = flattened ? c->flatten.max_ratio : 0; /* 4-bit codes need none */
    const bool per_tensor = c->block.w_per_tensor;
    const double digits = weight_digits(c);
    const double share4 = c->mixed ? c->int4_ratio : fl__stored_bits(c->w_bits) == 4;
    const double at4 =
        (double)fl__block_linear_bytes(model, linear, 4, c->act, 0, digits, per_tensor);
    const double at8 =
        (double)fl__block_linear_bytes(model, linear, 8, c->act, extra, digits, per_tensor);
    return c->w_bits == 16 && !c->mixed ? 0 : (size_t)(share4 * at4 + (1 - share4) * at8);
}

/* The most that rounding a site takes beside what stays: the Hessian being factorised, or one
 * linear being rounded with it. */
static size_t hessian_bytes(const fl_quant_config *c, const fl_model *model, const fl_exec *ex,
                            int site)
{
    const fl_gptq_options *o = &c->block.gptq;
    int linears[FL_SITE_MAX_LINEARS], n_in;
    const int n = site_shape(linears, &n_in, model, site);
    if (!c->block.use_gptq) return 0;
    const size_t start = fl__gram_bytes(n_in, true) + fl__gptq_init_bytes(n_in, o);
    size_t most = start, done = 0;
    for (int i = 0; i < n; i++) {
        int n_out, K;
        fl__linear_shape(&n_out, &K, &model->cfg, linears[i]);
        const size_t copy = /* of w, and codes */
            (size_t)((double)n_out * K * (sizeof(float) + 1 + weight_digits(c)));
        if (c->transforms && c->flatquant.clip_per_linear) most = FL_MAX(most, start + done);
        most = FL_MAX(most, fl__gptq_held_bytes(n_in, o) + done + copy +
                                fl__gptq_round_bytes(n_in, n_out, ex->n_threads, o));
        done += rounded_bytes(c, model, linears[i]);
    }
    return most;
}

typedef struct rounding_memory {
    size_t rounded, hessians, most; /* of a block; of its largest site; together with float32 */
} rounding_memory;

static rounding_memory rounding_bytes(const fl_quant_config *c, const fl_model *model,
                                      const fl_exec *ex)
{
    rounding_memory m = {0};
    for (int s = 0; s < FL_N_SITES; s++) {
        int linears[FL_SITE_MAX_LINEARS], n_in;
        const int n = site_shape(linears, &n_in, model, s);
        const size_t hessian = hessian_bytes(c, model, ex, s);
        m.hessians = FL_MAX(m.hessians, hessian);
        m.most = FL_MAX(m.most, m.rounded + hessian);
        for (int i = 0; i < n; i++) m.rounded += rounded_bytes(c, model, linears[i]);
    }
    const double share4 = c->mixed ? c->int4_ratio : 1;
    const size_t writing =
        (size_t)(share4 * (1 + weight_digits(c)) *
                 (double)fl__block_write_bytes(model, c->mixed ? 4 : c->w_bits));
    m.rounded += writing;
    m.most = FL_MAX(m.most, m.rounded) + fl__block_float_bytes(model);
    return m;
}

/* ---- disk -------------------------------------------------------------------------------- */

/* Files of the model; texts (headers, index, config, report) by what a tensor and a site take
 * there. */
static double disk_bytes(const fl_quant_config *c, const fl_model *model)
{
    enum { TENSOR_TEXT_BYTES = 180, SITE_TEXT_BYTES = 1560 };
    const fl_model_config *cfg = &model->cfg;
    const bool corrected = c->block.use_gptq && c->block.gptq.centred;
    double block = 0, n_tensors = 0;
    for (int i = 0; i < FL_N_LINEARS; i++) {
        int n_out, n_in;
        fl__linear_shape(&n_out, &n_in, cfg, i);
        if (!n_out) continue;
        const bool bias = fl__family(cfg)->has_bias(cfg, i) || corrected;
        block += (double)n_out * n_in * (1 + weight_digits(c)) * weight_bits(c) / 8 +
                 (c->block.w_per_tensor ? 4 : 4.0 * n_out) + (bias ? 4.0 * n_out : 0);
        n_tensors += 2 + bias;
    }
    for (int s = 0; s < FL_N_SITES; s++) {
        int linears[FL_SITE_MAX_LINEARS], n_in;
        (void)site_shape(linears, &n_in, model, s);
        const bool fixed = c->act == FL_ACT_STATIC, copies = fixed && c->flatten.flatten;
        const bool split = c->block.flatten_weights;
        block += (fixed ? 4 : 0) + 2.0 * n_in * (copies + split);
        n_tensors += fixed + copies + split;
    }
    const int vectors = cfg->family == FL_FAMILY_OPT ? 4 : 2; /* of the norms */
    const bool scaled = c->transforms ? c->flatquant.scale : c->flatten.smooth;
    const int multipliers = scaled && !cfg->pre_norm ? 2 : 0;
    block += 4.0 * (vectors + multipliers) * cfg->hidden_size;
    n_tensors += vectors + multipliers;
    return (double)fl__quant_outside_bytes(c, model) +
           cfg->n_layers *
               (block + n_tensors * TENSOR_TEXT_BYTES + FL_N_SITES * SITE_TEXT_BYTES);
}

/* ---- all --------------------------------------------------------------------------------- */

/* Bytes that making the calibration windows takes beside them. Of a text: itself, its ids while
 * their array grows, and the tokenizer's tables. */
static size_t calibration_bytes(const fl_quant_config *c, const fl_model *model,
                                const fl_exec *ex, int64_t text_bytes)
{
    enum { PER_TEXT_BYTE = 4, PER_TOKEN = 256 };
    if (text_bytes < 0) return fl__calib_sample_bytes(model, ex, c->n_samples, c->seq_len);
    return PER_TEXT_BYTE * (size_t)text_bytes + PER_TOKEN * (size_t)model->cfg.vocab_size;
}

/* The rounded model, mapped and packed, and what tuning it takes. */
static size_t tuning_bytes(const fl_quant_config *c, const fl_model *model)
{
    double weights = 0;
    if (!c->tune.epochs || fl__quant_tune_obstacle(c, &model->cfg)) return 0;
    for (int i = 0; i < FL_N_LINEARS; i++) {
        int n_out, n_in;
        fl__linear_shape(&n_out, &n_in, &model->cfg, i);
        weights += (double)n_out * n_in * weight_bits(c) / 8;
    }
    return (size_t)(2 * weights * model->cfg.n_layers) +
           fl__tune_bytes(model, FL_MIN(c->tune.batch_windows, c->n_samples), c->seq_len);
}

json_t *fl__quant_estimate(const fl_quant_config *c, const fl_model *model, const fl_exec *ex,
                           int64_t text_bytes, bool with_time)
{
    const bool pass = fl__quant_needs_plan_pass(c);
    const bool observed = fl__quant_needs_statistics(c);
    const fl_stream_bytes stream =
        pass ? fl__stream_bytes(model, ex, c->n_samples, c->seq_len, fl__quant_needs_lanes(c))
             : (fl_stream_bytes){0, 0};
    const size_t windows =
        pass ? (size_t)c->n_samples * (size_t)c->seq_len * sizeof(int32_t) : 0;
    const size_t tables = fl__model_table_bytes(model) + windows;
    const size_t floats = fl__block_float_bytes(model);
    const size_t plan = observed ? plan_bytes(c, model) : 0;
    const size_t statistics =
        observed ? FL_MAX(statistics_bytes(c, model, ex), probe_bytes(c, model)) : 0;
    const rounding_memory rounding = rounding_bytes(c, model, ex);
    const size_t plain = c->transforms ? floats : 0; /* the block as it was, for its lane */
    const size_t planning = observed ? floats + plain + statistics + plan : 0;
    const size_t calibration = pass ? calibration_bytes(c, model, ex, text_bytes) : 0;
    const size_t target = c->transforms ? (size_t)c->n_samples * (size_t)c->seq_len *
                                              (size_t)model->cfg.hidden_size * sizeof(float)
                                        : 0;
    const size_t training =
        c->transforms && c->flatquant.epochs
            ? floats + plan +
                  fl__flatquant_bytes(model, ex, &c->flatquant,
                                      FL_MIN(c->flatquant.batch_windows, c->n_samples),
                                      c->seq_len)
            : 0;
    const size_t tuning = tuning_bytes(c, model);
    const size_t rounding_all = rounding.most + plan / (c->mixed ? 2 : 1) + plain;
    const size_t working = stream.activations + target + stream.workspace +
                           FL_MAX(FL_MAX(planning, training), FL_MAX(rounding_all, tuning));
    const size_t head = c->head_bits == 8 ? fl__quant_head_bytes(model) : 0;
    const double seconds = with_time ? fl__quant_seconds(c, model, ex, text_bytes) : NAN;
    return json_pack("{s:{s:I,s:I,s:I,s:I,s:I,s:I,s:I,s:I,s:I,s:I,s:I},s:I,s:I,s:o}", "items",
                     "block_float32", (json_int_t)floats, "block_integer",
                     (json_int_t)rounding.rounded, "hessians", (json_int_t)rounding.hessians,
                     "activations", (json_int_t)(stream.activations + target), "training",
                     (json_int_t)training, "tuning", (json_int_t)tuning, "workspace",
                     (json_int_t)stream.workspace, "plan", (json_int_t)plan, "plan_statistics",
                     (json_int_t)statistics, "model_tables", (json_int_t)tables, "calibration",
                     (json_int_t)calibration, "peak_bytes",
                     (json_int_t)(tables + FL_MAX(FL_MAX(calibration, head), working)),
                     "disk_bytes", (json_int_t)disk_bytes(c, model), "seconds",
                     isfinite(seconds) ? json_real(seconds) : json_null());
}
