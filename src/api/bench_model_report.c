/* bench_model_report.c - the document of `bench model`.
 *
 * Floors: of a step of decoding, the weights and the cache read once at the rate of a read of
 * the model's own weights in the same run; of a prefill, the products of the linears and the
 * head (not the attention's) at the register peak of 8-bit products in the same run. The longer
 * of the two counts. A 16-bit model has no such peak: its floor is the bytes alone.
 * SPDX-License-Identifier: MIT */
#include "api/bench_model.h"

#include "api/bench_race.h"
#include "api/bench_synth.h"
#include "api/engine.h"
#include "base/isa.h"
#include "base/machine.h"
#include "kernels/gemm_f32.h"
#include "kernels/onednn.h"
#include "model/family.h"

#include <stdio.h>
#include <string.h>

static double median_of(fl_bench_run *b, const fl_bench_lane *l, int phase, int time)
{
    const int n = b->o->n_repeats;
    return fl__bench_median(l->ms[phase] + time * n, n);
}

/* Operations of a pass over n_rows rows with logits behind n_last of them. */
static double operations(const fl_bench_run *b, double n_rows, double n_last)
{
    double n = n_last * b->cfg.vocab_size * b->cfg.embed_size;
    for (int k = 0; k < FL_N_LINEARS; k++) {
        int n_out, n_in;
        fl__linear_shape(&n_out, &n_in, &b->cfg, k);
        n += n_rows * n_out * n_in * b->cfg.n_layers;
    }
    return 2 * n;
}

typedef struct floor_ms {
    double ms;
    const char *of; /* NULL: there is none */
} floor_ms;

static double cache_bytes(const fl_bench_run *b, const fl_bench_lane *l)
{
    const double context = b->o->n_prompt + 0.5 * b->o->n_predict;
    return (double)fl__kv_token_bytes(fl__kv_options_of(l->kv)) * b->o->n_sequences * context;
}

static floor_ms floor_of(fl_bench_run *b, const fl_bench_lane *l, int phase)
{
    const int n = b->o->n_repeats, n_seq = b->o->n_sequences;
    const bool is_decode = phase == FL_BENCH_DECODE;
    const double bytes_per_ms = (double)b->n_read_bytes / fl__bench_median(b->read_ms, n);
    const double ops_per_ms = fl__bench_peak_ops(&b->ex) / fl__bench_median(b->peak_ms, n);
    const double bytes =
        (double)l->model->weight_bytes + (is_decode ? cache_bytes(b, l) : 0);
    const double rows = (double)n_seq * (is_decode ? 1 : b->o->n_prompt);
    const double read = bytes / bytes_per_ms, compute = operations(b, rows, n_seq) / ops_per_ms;
    if (l->model->w_bits == 16) return (floor_ms){read, is_decode ? "bytes" : NULL};
    return compute > read ? (floor_ms){compute, "operations"} : (floor_ms){read, "bytes"};
}

static json_t *parts(fl_bench_run *b, const fl_bench_lane *l, int phase)
{
    static const char *const names[FL_BENCH_TOTAL] = {
        [FL_BENCH_PREPARE] = "norm_transform_quantize", [FL_BENCH_QKV] = "gemm_qkv",
        [FL_BENCH_O] = "gemm_o",       [FL_BENCH_UP] = "gemm_up",
        [FL_BENCH_DOWN] = "gemm_down", [FL_BENCH_ATTENTION] = "attention",
        [FL_BENCH_OTHER] = "other",    [FL_BENCH_HEAD] = "head"};
    json_t *o = json_object();
    for (int t = 0; t < FL_BENCH_TOTAL; t++)
        (void)json_object_set_new(o, names[t], json_real(median_of(b, l, phase, t)));
    return o;
}

static json_t *row(fl_bench_run *b, const fl_bench_lane *l, int phase)
{
    const double tokens =
        (double)b->o->n_sequences * (phase == FL_BENCH_DECODE ? 1 : b->o->n_prompt);
    const double ms = median_of(b, l, phase, FL_BENCH_TOTAL);
    const double head = median_of(b, l, phase, FL_BENCH_HEAD);
    const double layer = (ms - head) / b->cfg.n_layers;
    const double all = layer * b->n_shape_layers + head;
    const floor_ms floor = floor_of(b, l, phase);
    const fl_kv_options *kv = fl__kv_options_of(l->kv);
    const size_t workspace = fl__workspace_bytes(l->model, &b->ex, l->ws->max_rows);
    const bool races = b->n_lanes == 2 && l == &b->lane[0];
    json_t *o = json_pack(
        "{s:s, s:s, s:f, s:f, s:f, s:f, s:f, s:f, s:I, s:I, s:I, s:o}", "model", l->name,
        "phase", phase == FL_BENCH_DECODE ? "decode" : "prefill", "tokens", tokens, "ms", ms,
        "tokens_per_s", tokens / ms * 1e3, "ms_per_layer", layer, "ms_all_layers", all,
        "tokens_per_s_all_layers", tokens / all * 1e3, "weight_bytes",
        (json_int_t)l->model->weight_bytes, "kv_bytes", (json_int_t)fl__kv_bytes(kv),
        "workspace_bytes", (json_int_t)workspace, "parts_ms", parts(b, l, phase));
    if (!o) return NULL;
    (void)json_object_set_new(o, "floor", floor.of ? json_string(floor.of) : json_null());
    (void)json_object_set_new(o, "floor_ms", floor.of ? json_real(floor.ms) : json_null());
    (void)json_object_set_new(o, "fraction_of_floor",
                              floor.of ? json_real(floor.ms / ms) : json_null());
    (void)json_object_set_new(
        o, "ratio_bf16",
        races ? json_real(median_of(b, &b->lane[1], phase, FL_BENCH_TOTAL) / ms) : json_null());
    return o;
}

static json_t *machine(fl_bench_run *b)
{
    char cpu[128], onednn[32];
    const int n = b->o->n_repeats;
    const double peak = fl__bench_peak_ops(&b->ex) / fl__bench_median(b->peak_ms, n) * 1e-9;
    const double read = (double)b->n_read_bytes / fl__bench_median(b->read_ms, n) * 1e-6;
    const char *impl = fl__bench_bf16_impl(b->bf16);
    fl__cpu_name(cpu, sizeof cpu);
    fl__onednn_version(onednn, sizeof onednn);
    return json_pack(
        "{s:s, s:s, s:i, s:f, s:s, s:f, s:I, s:s, s:s, s:s, s:s, s:s, s:i}", "cpu", cpu,
        "isa", fl__isa_name(b->ex.isa), "threads", b->ex.n_threads, "peak_tops", peak,
        "peak_of", fl__bench_peak_name(&b->ex), "bandwidth_gb_s", read, "bandwidth_bytes",
        (json_int_t)b->n_read_bytes, "onednn", onednn, "bf16_many_rows",
        b->n_lanes < 2 ? "none"
        : impl         ? impl
                       : fl__gemm_f32_select(b->ex.isa)->name,
        "bf16_few_rows", b->n_lanes < 2 ? "none" : fl__gemm_f32_select(b->ex.isa)->name,
        "compiler", __VERSION__, "commit", fl__bench_commit(), "repeats", n);
}

static json_t *shape(const fl_bench_run *b)
{
    char note[160];
    if (b->cfg.n_layers == b->n_shape_layers)
        (void)snprintf(note, sizeof note, "all %d layers ran", b->n_shape_layers);
    else
        (void)snprintf(note, sizeof note,
                       "%d of %d layers ran; figures of all layers are %d x the time per "
                       "layer plus the head",
                       b->cfg.n_layers, b->n_shape_layers, b->n_shape_layers);
    return json_pack("{s:o, s:i, s:i, s:i, s:i, s:i, s:i, s:f, s:s}", "shape",
                     fl__json_text(b->o->shape), "layers", b->cfg.n_layers, "layers_of_shape",
                     b->n_shape_layers, "prompt", b->o->n_prompt, "predict", b->o->n_predict,
                     "sequences", b->o->n_sequences, "head_bits", b->o->head_bits,
                     "flatten_ratio",
                     strcmp(b->o->method, "flattenquant") == 0 ? FL_SYNTH_FLATTEN_RATIO : 0.0,
                     "note", note);
}

json_t *fl__bench_model_report(fl_bench_run *b)
{
    json_t *rows = json_array();
    int failed = rows == NULL;
    for (int phase = 0; phase < FL_BENCH_N_PHASES; phase++)
        for (int i = 0; i < b->n_lanes; i++)
            failed |= json_array_append_new(rows, row(b, &b->lane[i], phase));
    json_t *report =
        json_pack("{s:o, s:o, s:O}", "machine", machine(b), "shape", shape(b), "rows", rows);
    json_decref(rows);
    if (!failed) return report;
    json_decref(report);
    return NULL;
}
