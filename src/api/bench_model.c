/* bench_model.c - fl_bench_model_run: prefill and decode of a synthetic model, in turn with its
 * 16-bit opponent and with the machine's yardsticks.
 *
 * One round: a prefill of each model, a decode of each behind it, one read of the model's
 * weights, one run of the register peak. The first round does not count.
 * SPDX-License-Identifier: MIT */
#include "api/bench_model.h"

#include "api/bench_device.h"
#include "api/bench_race.h"
#include "api/bench_synth.h"
#include "api/engine.h"
#include "api/exec_options.h"
#include "base/clock.h"
#include "base/isa.h"
#include "base/log.h"
#include "base/machine.h"
#include "base/mem.h"
#include "base/rng.h"

#include <stdio.h>
#include <string.h>

enum { WARM_UP_STEPS = 2, MAX_SEQUENCES = 256, MAX_REPEATS = 1000 };

/* ---- options ----------------------------------------------------------------------------- */

static fl_status usage(fl_err *err, const char *option, const char *why)
{
    return fl__fail(err, FL_E_USAGE, "bad option: bench model: %s is not %s; change it", option,
                    why);
}

static bool one_of(int value, int a, int b, int c)
{
    return value == a || value == b || value == c;
}

static fl_status check_options(const fl_bench_model_options *o, fl_err *err)
{
    static const char *const methods[] = {"flatquant", "flattenquant", "rtn"};
    bool known = false;
    for (size_t i = 0; i < FL_COUNT(methods); i++)
        known = known || (o->method && strcmp(o->method, methods[i]) == 0);
    if (!known) return usage(err, "method", "flatquant, flattenquant or rtn");
    if (!o->shape) return usage(err, "shape", "set");
    if (!one_of(o->w_bits, 4, 8, 16)) return usage(err, "w_bits", "4, 8 or 16");
    if (!one_of(o->a_bits, 4, 8, 8)) return usage(err, "a_bits", "4 or 8");
    if (!one_of(o->kv_bits, 4, 8, 16)) return usage(err, "kv_bits", "4, 8 or 16");
    if (!one_of(o->head_bits, 8, 16, 16)) return usage(err, "head_bits", "8 or 16");
    if (o->n_prompt < 1 || o->n_prompt > FL_MAX_SIZE) return usage(err, "prompt", "1 or more");
    if (o->n_predict < 1 || o->n_predict > FL_MAX_SIZE)
        return usage(err, "predict", "1 or more");
    if (o->n_sequences < 1 || o->n_sequences > MAX_SEQUENCES)
        return usage(err, "sequences", "1 to 256");
    if (o->n_repeats < 1 || o->n_repeats > MAX_REPEATS)
        return usage(err, "repeats", "1 to 1000");
    return FL_OK;
}

static fl_status shape_init(fl_bench_run *b, fl_err *err)
{
    const fl_bench_model_options *o = b->o;
    const fl_status st = fl__bench_shape(&b->cfg, o->shape, err);
    if (st) return st;
    b->n_shape_layers = b->cfg.n_layers;
    if (o->n_layers < 0 || o->n_layers > b->cfg.n_layers)
        return fl__fail(err, FL_E_USAGE,
                        "bad option: bench model: %d layers: %s has %d; give 1 to %d",
                        o->n_layers, o->shape, b->cfg.n_layers, b->cfg.n_layers);
    if ((int64_t)o->n_prompt + o->n_predict > b->cfg.n_positions)
        return fl__fail(err, FL_E_USAGE,
                        "bad option: bench model: %d and %d tokens: the context of %s is %d; "
                        "give fewer",
                        o->n_prompt, o->n_predict, o->shape, b->cfg.n_positions);
    if (o->n_layers > 0) b->cfg.n_layers = o->n_layers;
    b->cfg.n_positions = o->n_prompt + o->n_predict; /* the tables need no more */
    b->chunk = FL_MIN(o->n_prompt, FL_MAX(FL_PROMPT_CHUNK_ROWS / o->n_sequences, 1));
    return FL_OK;
}

/* ---- models ------------------------------------------------------------------------------ */

static fl_synth model_of(const fl_bench_run *b)
{
    const fl_bench_model_options *o = b->o;
    return (fl_synth){.method = o->w_bits == 16 ? "none" : o->method,
                      .w_bits = o->w_bits,
                      .a_bits = o->w_bits == 16 ? 16 : o->a_bits,
                      .kv_bits = o->kv_bits,
                      .head_bits = o->head_bits};
}

static fl_synth opponent_of(const fl_model *share)
{
    return (fl_synth){.method = "none", .w_bits = 16, .a_bits = 16, .kv_bits = 16,
                      .head_bits = 16, .share = share};
}

/* Before gigabytes are filled. Where oneDNN has fast products of bfloat16, it has a copy of the
 * opponent's weights; embedding and head are there once or twice. */
static fl_status check_memory(const fl_bench_run *b, fl_err *err)
{
    const int64_t there = fl__memory_available_bytes();
    const size_t table = (size_t)b->cfg.vocab_size * (size_t)b->cfg.embed_size * 2;
    size_t n = fl__synth_block_bytes(&b->cfg, b->o->w_bits) + 2 * table;
    if (!b->o->alone)
        n += fl__synth_block_bytes(&b->cfg, 16) * (b->ex.isa & FL_ISA_AVX512 ? 2 : 1) +
             (b->o->head_bits == 8 ? table : 0);
    if (there <= 0 || n < (size_t)there) return FL_OK;
    return fl__fail(err, FL_E_NOMEM,
                    "out of memory: bench model: %.1f GB are needed and %.1f GB there; give "
                    "fewer layers, or run the model alone",
                    (double)n * 1e-9, (double)there * 1e-9);
}

static fl_status lane_init(fl_bench_lane *l, const fl_bench_run *b, const fl_synth *o,
                           fl_err *err)
{
    const fl_bench_model_options *bo = b->o;
    const size_t n_seq = (size_t)bo->n_sequences;
    const size_t n_times = (size_t)bo->n_repeats * FL_BENCH_N_TIMES;
    if (o->w_bits == 16)
        (void)snprintf(l->name, sizeof l->name, "16-bit KV%d head %d", o->kv_bits,
                       o->head_bits);
    else
        (void)snprintf(l->name, sizeof l->name, "W%dA%dKV%d head %d %s", o->w_bits, o->a_bits,
                       o->kv_bits, o->head_bits, o->method);
    fl__log(&bo->log, FL_LOG_INFO, "making %s, %d layers", l->name, b->cfg.n_layers);
    fl_status st = fl__synth_model(&l->model, &b->cfg, o, &b->ex, err);
    if (st) return st;
    const fl_kv_options kv =
        fl__model_kv_options(l->model, bo->n_sequences, b->cfg.n_positions);
    if ((st = fl__kv_new(&l->kv, &kv, err)) ||
        (st = fl__workspace_new(&l->ws, l->model, &b->ex, b->chunk * bo->n_sequences, err)))
        return st;
    l->last = fl__alloc(n_seq * (size_t)b->cfg.embed_size, sizeof *l->last);
    l->logits = fl__alloc(n_seq * (size_t)b->cfg.vocab_size, sizeof *l->logits);
    for (int p = 0; p < FL_BENCH_N_PHASES; p++) l->ms[p] = fl__calloc(n_times, sizeof(double));
    if (!l->last || !l->logits || !l->ms[0] || !l->ms[1])
        return fl__fail_nomem(err, "bench model", n_seq * (size_t)b->cfg.vocab_size * 4);
    l->ws->op_s = l->op_s;
    for (int i = 0; i < b->cfg.n_layers; i++)
        for (int s = 0; s < FL_N_SITES; s++)
            l->model->blocks[i].site[s].quantize_s = &l->quantize_s[s];
    return FL_OK;
}

static void lane_fini(fl_bench_lane *l)
{
    for (int p = 0; p < FL_BENCH_N_PHASES; p++) fl__free(&l->ms[p]);
    fl__free(&l->logits);
    fl__free(&l->last);
    fl__workspace_free(&l->ws);
    fl__kv_free(&l->kv);
    fl__model_close(&l->model);
}

/* Tokens per pass: full chunks of the prompt, its last one, a step of decoding. */
static fl_status opponent_init(fl_bench_run *b, fl_err *err)
{
    const fl_synth o = opponent_of(b->lane[0].model);
    const int n_seq = b->o->n_sequences;
    int counts[3], n = 0;
    b->n_lanes = 2;
    fl_status st = lane_init(&b->lane[1], b, &o, err);
    if (st) return st;
    counts[n++] = b->chunk * n_seq;
    if (b->o->n_prompt % b->chunk) counts[n++] = b->o->n_prompt % b->chunk * n_seq;
    if (n_seq != counts[0]) counts[n++] = n_seq;
    fl__log(&b->o->log, FL_LOG_INFO, "packing its weights for oneDNN");
    st = fl__bench_bf16_attach(&b->bf16, b->lane[1].model, counts, n, &b->ex, err);
    (void)snprintf(b->lane[1].name, sizeof b->lane[1].name, "bf16, %s",
                   b->bf16 ? "oneDNN" : "own float path");
    return st;
}

static fl_status run_init(fl_bench_run *b, fl_err *err)
{
    const size_t n = (size_t)b->o->n_repeats, rows = (size_t)(b->chunk * b->o->n_sequences);
    fl_rng rng = fl__rng_init(0, 0, "bench-tokens");
    const fl_synth model = model_of(b);
    b->peak_ms = fl__calloc(n, sizeof *b->peak_ms);
    b->read_ms = fl__calloc(n, sizeof *b->read_ms);
    b->ids = fl__alloc(rows, sizeof *b->ids);
    if (!b->peak_ms || !b->read_ms || !b->ids) return fl__fail_nomem(err, "bench model", rows);
    for (size_t i = 0; i < rows; i++)
        b->ids[i] = (int32_t)fl__rng_below(&rng, (uint64_t)b->cfg.vocab_size);
    b->n_lanes = 1;
    const fl_status st = lane_init(&b->lane[0], b, &model, err);
    return st || b->o->alone ? st : opponent_init(b, err);
}

static void run_fini(fl_bench_run *b)
{
    for (int i = b->n_lanes; i-- > 0;) lane_fini(&b->lane[i]); /* the second one borrows */
    fl__bench_bf16_free(&b->bf16);
    fl__free(&b->ids);
    fl__free(&b->peak_ms);
    fl__free(&b->read_ms);
}

/* ---- passes ------------------------------------------------------------------------------ */

/* Adds the pass's times to s. */
static void add_times(double s[FL_BENCH_N_TIMES], const fl_bench_lane *l, double head,
                      double total)
{
    const fl_program *p = &l->model->program;
    double known = head;
    for (int i = 0; i < p->n_ops; i++) {
        const fl_op *op = &p->ops[i];
        const double prepare = op->kind == FL_OP_SITE   ? l->quantize_s[op->which]
                               : op->kind == FL_OP_NORM ? l->op_s[i]
                                                        : 0;
        if (op->kind != FL_OP_SITE && op->kind != FL_OP_NORM && op->kind != FL_OP_ATTENTION)
            continue;
        s[FL_BENCH_PREPARE] += prepare;
        if (op->kind == FL_OP_SITE) s[FL_BENCH_QKV + op->which] += l->op_s[i] - prepare;
        if (op->kind == FL_OP_ATTENTION) s[FL_BENCH_ATTENTION] += l->op_s[i];
        known += l->op_s[i];
    }
    s[FL_BENCH_HEAD] += head;
    s[FL_BENCH_OTHER] += total - known;
    s[FL_BENCH_TOTAL] += total;
}

/* n tokens of every sequence at pos; logits behind the last ones. */
static void pass(fl_bench_run *b, fl_bench_lane *l, int pos, int n, bool logits,
                 double s[FL_BENCH_N_TIMES])
{
    const int n_seq = b->o->n_sequences;
    const size_t width = (size_t)b->cfg.embed_size;
    fl_span spans[MAX_SEQUENCES];
    double head = 0;
    for (int i = 0; i < n_seq; i++) spans[i] = (fl_span){.seq = i, .pos = pos, .n_rows = n};
    memset(l->op_s, 0, sizeof l->op_s);
    memset(l->quantize_s, 0, sizeof l->quantize_s);
    const double start = fl__now_s();
    const float *hidden =
        fl__model_forward(l->model, &b->ex, l->ws, l->kv, b->ids, spans, n_seq);
    if (logits) {
        for (int i = 0; i < n_seq; i++)
            memcpy(l->last + (size_t)i * width,
                   hidden + (size_t)((i + 1) * n - 1) * width, width * sizeof *hidden);
        const double head_start = fl__now_s();
        fl__model_logits(l->model, &b->ex, l->ws, l->last, n_seq, l->logits);
        head = fl__now_s() - head_start;
    }
    add_times(s, l, head, fl__now_s() - start);
}

static void prefill(fl_bench_run *b, fl_bench_lane *l, double s[FL_BENCH_N_TIMES])
{
    const int n_prompt = b->o->n_prompt;
    for (int i = 0; i < b->o->n_sequences; i++) fl__kv_resize(l->kv, i, 0);
    for (int pos = 0; pos < n_prompt; pos += b->chunk) {
        const int n = FL_MIN(b->chunk, n_prompt - pos);
        pass(b, l, pos, n, pos + n == n_prompt, s);
    }
}

static void decode(fl_bench_run *b, fl_bench_lane *l, int n_steps, double s[FL_BENCH_N_TIMES])
{
    for (int i = 0; i < n_steps; i++) pass(b, l, b->o->n_prompt + i, 1, true, s);
}

static void keep(fl_bench_lane *l, int phase, int round, int n_rounds,
                 const double s[FL_BENCH_N_TIMES], int n_steps)
{
    for (int t = 0; t < FL_BENCH_N_TIMES; t++)
        l->ms[phase][t * n_rounds + round] = s[t] * 1e3 / n_steps;
}

/* One read of the model's weights, all threads; returns its bytes. */
static size_t read_weights(fl_bench_run *b)
{
    const fl_model *m = b->lane[0].model;
    size_t n_bytes = 0;
    for (int i = 0; i < b->cfg.n_layers; i++)
        for (int k = 0; k < FL_N_LINEARS; k++) {
            const fl_linear *lin = &m->blocks[i].linear[k];
            const void *block = lin->packed.data ? (const void *)lin->packed.data : lin->w;
            const size_t n = lin->packed.data
                                 ? lin->packed.n_bytes
                                 : (size_t)lin->n_out * (size_t)lin->n_in * sizeof(uint16_t);
            fl_bench_read r = {&b->ex, &block, 1, n / 64 * 64, 0};
            if (r.n_bytes == 0) continue;
            fl__bench_read_run(&r, 0);
            b->sink ^= r.sink;
            n_bytes += r.n_bytes;
        }
    return n_bytes;
}

static void yardsticks(fl_bench_run *b, int round)
{
    fl_bench_peak peak = {&b->ex};
    double start = fl__now_s();
    b->n_read_bytes = read_weights(b);
    b->read_ms[round] = (fl__now_s() - start) * 1e3;
    start = fl__now_s();
    fl__bench_peak_run(&peak, round);
    b->peak_ms[round] = (fl__now_s() - start) * 1e3;
}

static void run_round(fl_bench_run *b, int round)
{
    const int n_rounds = b->o->n_repeats, n_predict = b->o->n_predict;
    const int n_steps = round < 0 ? FL_MIN(WARM_UP_STEPS, n_predict) : n_predict;
    for (int i = 0; i < b->n_lanes; i++) {
        double s[FL_BENCH_N_TIMES] = {0};
        prefill(b, &b->lane[i], s);
        if (round >= 0) keep(&b->lane[i], FL_BENCH_PREFILL, round, n_rounds, s, 1);
    }
    for (int i = 0; i < b->n_lanes; i++) {
        double s[FL_BENCH_N_TIMES] = {0};
        decode(b, &b->lane[i], n_steps, s);
        if (round >= 0) keep(&b->lane[i], FL_BENCH_DECODE, round, n_rounds, s, n_steps);
    }
    if (round >= 0) yardsticks(b, round);
    fl__log(&b->o->log, FL_LOG_INFO, "round %d of %d", round + 1, n_rounds);
}

fl_status fl_bench_model_run(char **report_json, const fl_bench_model_options *options,
                             fl_err *err)
{
    fl_bench_run b = {.o = options};
    json_t *report = NULL;
    fl_status st;

    *report_json = NULL;
    if ((st = check_options(options, err)) ||
        (st = fl__exec_resolve(&b.ex, options->isa, options->n_threads, &options->log, err)) ||
        (st = shape_init(&b, err)))
        return st;
    if (options->device && strcmp(options->device, "cpu") != 0)
        return fl__bench_device_run(report_json, options, &b.cfg, b.n_shape_layers, &b.ex, err);
    if ((st = check_memory(&b, err))) return st;
    if ((st = run_init(&b, err))) goto out;
    for (int round = -1; round < options->n_repeats; round++) run_round(&b, round);
    report = fl__bench_model_report(&b);
    if (report) *report_json = fl__json_dump(report, 2);
    if (!*report_json) st = fl__fail_nomem(err, "bench report", 0);
    json_decref(report);
out:
    run_fini(&b);
    return st;
}
