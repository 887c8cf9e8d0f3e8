/* bench_device.c - `bench model` on a GPU: the model and its 16-bit opponent, both there with
 * random weights of their own, take turns.
 *
 * One round: a prefill of each, a decode of each behind it; the clock is the host's, with a
 * wait for the device behind each prefill and each step of decoding, whose logits stay on the
 * device. Steps of decoding are graphs, as in generation. The first round does not count. Times
 * per part come from one more prefill and a few more steps, queued op by op with marks between:
 * together they take longer than the step they belong to.
 * SPDX-License-Identifier: MIT */
#include "api/bench_device.h"

#include "api/bench_race.h"
#include "api/bench_synth.h"
#include "api/open_device.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/machine.h"
#include "base/mem.h"
#include "base/rng.h"

#include <stdio.h>
#include <string.h>

enum { CHUNK_ROWS = 4096, WARM_UP_STEPS = 4, PART_STEPS = 4 };
enum { PREFILL, DECODE, N_PHASES };

typedef struct device_lane {
    char name[64];
    fl_model *model;
    fl_device_model *dm;
    fl_device_run *run;
    double load_s;
    double *ms[N_PHASES];                    /* [rounds] owned */
    double laps[N_PHASES][FL_DEVICE_N_LAPS]; /* ms of a prefill, of a step */
} device_lane;

typedef struct device_bench {
    const fl_bench_model_options *o;
    const fl_model_config *cfg;
    int n_shape_layers, chunk; /* tokens of a sequence per pass of a prefill */
    fl_exec ex;
    fl_device device;
    device_lane lane[2];
    int n_lanes;
    int32_t *ids; /* [sequences * chunk] */
    int *pos;     /* [sequences] */
    fl_span *spans;
    double copy_rate; /* bytes/s */
} device_bench;

/* ---- models ------------------------------------------------------------------------------ */

static fl_status lane_init(device_bench *b, device_lane *l, const fl_synth *o, fl_err *err)
{
    const fl_bench_model_options *bo = b->o;
    const size_t n = (size_t)bo->n_repeats;
    if (o->w_bits == 16)
        (void)snprintf(l->name, sizeof l->name, "bf16 KV%d head %d", o->kv_bits, o->head_bits);
    else
        (void)snprintf(l->name, sizeof l->name, "W%dA%dKV%d head %d %s", o->w_bits, o->a_bits,
                       o->kv_bits, o->head_bits, o->method);
    fl__log(&bo->log, FL_LOG_INFO, "making %s, %d layers", l->name, b->cfg->n_layers);
    const double start = fl__now_s();
    fl_status st = fl__synth_model(&l->model, b->cfg, o, &b->ex, err);
    if (!st) st = fl__device_model_new(&l->dm, l->model, b->device.backend, err);
    l->load_s = fl__now_s() - start;
    if (!st)
        st = fl__device_run_new(&l->run, l->dm, bo->n_sequences, b->cfg->n_positions,
                                b->chunk * bo->n_sequences, err);
    for (int p = 0; p < N_PHASES && !st; p++)
        if (!(l->ms[p] = fl__calloc(n, sizeof(double))))
            st = fl__fail_nomem(err, "bench model", n * sizeof(double));
    return st;
}

static void lane_fini(device_lane *l)
{
    for (int p = 0; p < N_PHASES; p++) fl__free(&l->ms[p]);
    fl__device_run_free(&l->run);
    fl__device_model_free(&l->dm);
    fl__model_close(&l->model);
}

static fl_status bench_init(device_bench *b, fl_err *err)
{
    enum { COPY_BYTES = 1 << 30 };
    const fl_bench_model_options *o = b->o;
    const size_t n_seq = (size_t)o->n_sequences, rows = n_seq * (size_t)b->chunk;
    const fl_synth model = {.method = o->w_bits == 16 ? "none" : o->method,
                            .w_bits = o->w_bits,
                            .a_bits = o->w_bits == 16 ? 16 : o->a_bits,
                            .kv_bits = o->kv_bits,
                            .head_bits = o->head_bits,
                            .no_weights = true};
    const fl_synth opponent = {.method = "none",
                               .w_bits = 16,
                               .a_bits = 16,
                               .kv_bits = 16,
                               .head_bits = 16,
                               .no_weights = true};
    fl_rng rng = fl__rng_init(0, 0, "bench-tokens");
    b->ids = fl__alloc(rows, sizeof *b->ids);
    b->pos = fl__alloc(n_seq, sizeof *b->pos);
    b->spans = fl__alloc(n_seq, sizeof *b->spans);
    if (!b->ids || !b->pos || !b->spans) return fl__fail_nomem(err, "bench model", rows * 4);
    for (size_t i = 0; i < rows; i++)
        b->ids[i] = (int32_t)fl__rng_below(&rng, (uint64_t)b->cfg->vocab_size);
    fl_status st = fl__device_open(&b->device, o->device, err);
    if (!st)
        st = b->device.backend->ops->copy_rate(b->device.backend, &b->copy_rate, COPY_BYTES,
                                               err);
    b->n_lanes = 1;
    if (!st) st = lane_init(b, &b->lane[0], &model, err);
    if (st || o->alone) return st;
    b->n_lanes = 2;
    return lane_init(b, &b->lane[1], &opponent, err);
}

static void bench_fini(device_bench *b)
{
    for (int i = 0; i < b->n_lanes; i++) lane_fini(&b->lane[i]);
    fl__device_close(&b->device);
    fl__free(&b->ids);
    fl__free(&b->pos);
    fl__free(&b->spans);
}

/* ---- passes ------------------------------------------------------------------------------ */

/* The whole prompt of every sequence, logits behind it, waited for. */
static fl_status prefill(device_bench *b, device_lane *l, fl_err *err)
{
    const int n_seq = b->o->n_sequences, n_prompt = b->o->n_prompt;
    fl_status st = FL_OK;
    for (int i = 0; i < n_seq; i++) fl__device_run_resize(l->run, i, 0);
    for (int pos = 0; pos < n_prompt && !st; pos += b->chunk) {
        const int n = FL_MIN(b->chunk, n_prompt - pos);
        for (int i = 0; i < n_seq; i++)
            b->spans[i] = (fl_span){.seq = i, .pos = pos, .n_rows = n};
        st = fl__device_run_forward(l->run, b->ids, b->spans, n_seq, err);
    }
    if (!st) st = fl__device_run_last(l->run, err);
    return st ? st : fl__device_run_wait(l->run, err);
}

static fl_status decode(device_bench *b, device_lane *l, int n_steps, fl_err *err)
{
    fl_status st = FL_OK;
    for (int k = 0; k < n_steps && !st; k++) {
        for (int i = 0; i < b->o->n_sequences; i++) b->pos[i] = b->o->n_prompt + k;
        st = fl__device_run_decode(l->run, b->ids, b->pos, b->o->n_sequences, NULL, err);
        if (!st) st = fl__device_run_wait(l->run, err);
    }
    return st;
}

static fl_status run_phase(device_bench *b, device_lane *l, int phase, int round, fl_err *err)
{
    const int n_predict = b->o->n_predict;
    const int n_steps = round < 0 ? FL_MIN(WARM_UP_STEPS, n_predict) : n_predict;
    const double start = fl__now_s();
    const fl_status st = phase == PREFILL ? prefill(b, l, err) : decode(b, l, n_steps, err);
    const double ms = (fl__now_s() - start) * 1e3;
    if (round >= 0) l->ms[phase][round] = phase == PREFILL ? ms : ms / n_steps;
    return st;
}

static fl_status run_round(device_bench *b, int round, fl_err *err)
{
    fl_status st = FL_OK;
    for (int phase = 0; phase < N_PHASES; phase++)
        for (int i = 0; i < b->n_lanes && !st; i++)
            st = run_phase(b, &b->lane[i], phase, round, err);
    fl__log(&b->o->log, FL_LOG_INFO, "round %d of %d", round + 1, b->o->n_repeats);
    return st;
}

static fl_status run_parts(device_bench *b, device_lane *l, fl_err *err)
{
    const int n_steps = FL_MIN(PART_STEPS, b->o->n_predict);
    fl__device_run_time(l->run, l->laps[PREFILL]);
    fl_status st = prefill(b, l, err);
    fl__device_run_time(l->run, l->laps[DECODE]);
    if (!st) st = decode(b, l, n_steps, err);
    fl__device_run_time(l->run, NULL);
    for (int i = 0; i < FL_DEVICE_N_LAPS; i++) l->laps[DECODE][i] /= n_steps;
    return st;
}

/* ---- report ------------------------------------------------------------------------------ */

static json_t *parts(const device_bench *b, const device_lane *l, int phase)
{
    static const char *const of_site[FL_N_SITES] = {"gemm_qkv", "gemm_o", "gemm_up",
                                                    "gemm_down"};
    const fl_program *p = &l->model->program;
    const double *laps = l->laps[phase];
    double other = laps[FL_DEVICE_LAP_OTHER], attention = 0,
           encode = laps[FL_DEVICE_LAP_ENCODE];
    json_t *o = json_object();
    (void)b;
    for (int i = 0; i < p->n_ops; i++) {
        const fl_op *op = &p->ops[i];
        if (op->kind == FL_OP_SITE)
            (void)json_object_set_new(o, of_site[op->which], json_real(laps[i]));
        else if (op->kind == FL_OP_ATTENTION) attention += laps[i];
        else if (op->kind == FL_OP_NORM) encode += laps[i];
        else other += laps[i];
    }
    (void)json_object_set_new(o, "norm_transform_quantize", json_real(encode));
    (void)json_object_set_new(o, "attention", json_real(attention));
    (void)json_object_set_new(o, "other", json_real(other));
    (void)json_object_set_new(o, "head", json_real(laps[FL_DEVICE_LAP_HEAD]));
    return o;
}

/* Weights and cache read once, at the rate of a copy. */
static double floor_ms(const device_bench *b, const device_lane *l)
{
    const double context = b->o->n_prompt + 0.5 * b->o->n_predict;
    const double room = (double)b->cfg->n_positions;
    const double cache = (double)fl__device_run_kv_bytes(l->run) * context / room;
    return ((double)l->model->weight_bytes + cache) / b->copy_rate * 1e3;
}

static json_t *row(device_bench *b, device_lane *l, int phase)
{
    const int n = b->o->n_repeats;
    const double tokens = (double)b->o->n_sequences * (phase == DECODE ? 1 : b->o->n_prompt);
    const double ms = fl__bench_median(l->ms[phase], n);
    const double head = l->laps[phase][FL_DEVICE_LAP_HEAD];
    const double layer = (ms - head) / b->cfg->n_layers;
    const double all = layer * b->n_shape_layers + head;
    const bool races = b->n_lanes == 2 && l == &b->lane[0];
    const double least = floor_ms(b, l);
    const bool is_decode = phase == DECODE;
    json_t *o =
        json_pack("{s:s, s:s, s:f, s:f, s:f, s:f, s:f, s:f, s:I, s:I, s:I, s:I, s:f, s:o}",
                  "model", l->name, "phase", is_decode ? "decode" : "prefill", "tokens", tokens,
                  "ms", ms, "tokens_per_s", tokens / ms * 1e3, "ms_per_layer", layer,
                  "ms_all_layers", all, "tokens_per_s_all_layers", tokens / all * 1e3,
                  "weight_bytes", (json_int_t)l->model->weight_bytes, "device_weight_bytes",
                  (json_int_t)fl__device_model_bytes(l->dm), "kv_bytes",
                  (json_int_t)fl__device_run_kv_bytes(l->run), "workspace_bytes",
                  (json_int_t)fl__device_run_workspace_bytes(l->run), "load_s", l->load_s,
                  "parts_ms", parts(b, l, phase));
    if (!o) return NULL;
    (void)json_object_set_new(o, "floor", is_decode ? json_string("bytes") : json_null());
    (void)json_object_set_new(o, "floor_ms", is_decode ? json_real(least) : json_null());
    (void)json_object_set_new(o, "fraction_of_floor",
                              is_decode ? json_real(least / ms) : json_null());
    (void)json_object_set_new(o, "ratio_bf16",
                              races ? json_real(fl__bench_median(b->lane[1].ms[phase], n) / ms)
                                    : json_null());
    return o;
}

static json_t *report_of(device_bench *b)
{
    const fl_backend *be = b->device.backend;
    json_t *rows = json_array();
    int failed = rows == NULL;
    for (int phase = 0; phase < N_PHASES; phase++)
        for (int i = 0; i < b->n_lanes; i++)
            failed |= json_array_append_new(rows, row(b, &b->lane[i], phase));
    json_t *machine = json_pack("{s:s, s:s, s:i, s:f, s:s, s:s, s:i}", "device", be->name,
                                "detail", be->detail, "multiprocessors", be->n_units,
                                "bandwidth_gb_s", b->copy_rate * 1e-9, "compiler", __VERSION__,
                                "commit", fl__bench_commit(), "repeats", b->o->n_repeats);
    json_t *shape =
        json_pack("{s:o, s:i, s:i, s:i, s:i, s:i, s:i}", "shape", fl__json_text(b->o->shape),
                  "layers", b->cfg->n_layers, "layers_of_shape", b->n_shape_layers, "prompt",
                  b->o->n_prompt, "predict", b->o->n_predict, "sequences", b->o->n_sequences,
                  "head_bits", b->o->head_bits);
    json_t *report =
        json_pack("{s:o, s:o, s:O}", "machine", machine, "shape", shape, "rows", rows);
    json_decref(rows);
    if (!failed) return report;
    json_decref(report);
    return NULL;
}

fl_status fl__bench_device_run(char **report_json, const fl_bench_model_options *o,
                               const fl_model_config *cfg, int n_shape_layers,
                               const fl_exec *ex, fl_err *err)
{
    device_bench b = {.o = o, .cfg = cfg, .n_shape_layers = n_shape_layers, .ex = *ex};
    json_t *report = NULL;
    b.chunk = FL_MIN(o->n_prompt, FL_MAX(CHUNK_ROWS / o->n_sequences, 1));
    fl_status st = bench_init(&b, err);
    for (int round = -1; round < o->n_repeats && !st; round++) st = run_round(&b, round, err);
    for (int i = 0; i < b.n_lanes && !st; i++) st = run_parts(&b, &b.lane[i], err);
    if (!st) {
        report = report_of(&b);
        if (report) *report_json = fl__json_dump(report, 2);
        if (!*report_json) st = fl__fail_nomem(err, "bench report", 0);
        json_decref(report);
    }
    bench_fini(&b);
    return st;
}
