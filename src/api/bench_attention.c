/* bench_attention.c - one token against 8,192 quantised keys and values in the shape of Llama 3
 * 8B, beside a plain read of the same bytes.
 *
 * Layers of one cache are used in turn, a gigabyte of them; contenders begin far from one
 * another, so that none finds in the last level of cache what another has just read. The rate
 * is GB/s of codes, scales and zeros, the floor the read. SPDX-License-Identifier: MIT */
#include "api/bench_gemm.h"
#include "api/bench_race.h"
#include "base/log.h"
#include "base/machine.h"
#include "base/mem.h"
#include "base/rng.h"
#include "kernels/attention_codes.h"
#include "model/kv_attention.h"

#include <string.h>

enum { HEADS = 32, KV_HEADS = 8, D = 128, TOKENS = 8192, MAX_ROWS = 8, MAX_LAYERS = 128 };
#define MAX_BYTES ((size_t)1 << 30)

typedef struct {
    const fl_bench_context *bench;
    fl_kv_options o;
    fl_kv_cache *kv;
    float *q, *out; /* [HEADS * D] */
    void *scratch;
    size_t scratch_bytes;
    const void *layers[MAX_LAYERS];
    size_t layer_bytes;
} attention_bench;

typedef struct {
    const attention_bench *b;
    const char *kernel;
    fl_exec ex; /* isa masked so that this row is chosen */
    int first_layer;
} attention_entry;

static void run_entry(void *arg, int call)
{
    static const fl_span last = {.seq = 0, .pos = TOKENS - 1, .n_rows = 1};
    const attention_entry *e = arg;
    const attention_bench *b = e->b;
    const fl_attention a = {.kv = b->kv, .layer = (e->first_layer + call) % b->o.n_layers,
                            .spans = &last, .n_spans = 1, .n_heads = HEADS, .q = b->q,
                            .out = b->out,
                            .q_stride = HEADS * D, .out_stride = HEADS * D,
                            .scratch = b->scratch, .scratch_bytes = b->scratch_bytes};
    fl__attention_run(&e->ex, &a);
}

typedef struct {
    const attention_bench *b;
    const fl_kv_rows *rows;
} fill_job;

static void fill_layer(void *arg, int64_t layer, int thread)
{
    const fill_job *j = arg;
    (void)thread;
    for (int pos = 0; pos < TOKENS; pos += FL_KV_PAGE)
        fl__kv_append(j->b->kv, j->b->bench->ex.isa, (int)layer, 0, pos, j->rows);
}

/* The same page of random keys and values all over the cache. */
static fl_status fill(attention_bench *b, fl_err *err)
{
    fl_rng rng = fl__rng_init(0, 0, "bench-attention");
    const size_t n = (size_t)FL_KV_PAGE * KV_HEADS * D;
    float *x = fl__alloc(n, sizeof *x);
    if (!x) return fl__fail_nomem(err, "bench keys", n * sizeof *x);
    for (size_t i = 0; i < n; i++) x[i] = (float)fl__rng_normal(&rng);
    for (int i = 0; i < HEADS * D; i++) b->q[i] = (float)fl__rng_normal(&rng);
    const fl_kv_rows rows = {.k = x, .v = x, .k_stride = KV_HEADS * D,
                             .v_stride = KV_HEADS * D, .n = FL_KV_PAGE};
    fill_job job = {b, &rows};
    fl__kv_resize(b->kv, 0, TOKENS);
    fl__parallel_for(&b->bench->ex, b->o.n_layers, fill_layer, &job);
    fl__free(&x);
    return FL_OK;
}

static fl_status bench_init(attention_bench *b, fl_kv_format format, fl_err *err)
{
    const int64_t there = fl__memory_available_bytes();
    const size_t want = there > 0 ? FL_MIN((size_t)there / 8, MAX_BYTES) : MAX_BYTES;
    b->o = (fl_kv_options){.n_layers = 1, .n_kv_heads = KV_HEADS, .head_dim = D,
                           .n_sequences = 1, .n_positions = TOKENS, .k_format = format,
                           .v_format = format};
    const size_t layer_bytes = fl__kv_token_bytes(&b->o) * TOKENS;
    b->o.n_layers = (int)FL_MIN(want / layer_bytes + 1, (size_t)MAX_LAYERS);
    b->scratch_bytes = fl__attention_scratch_bytes(&b->bench->ex, &b->o, HEADS);
    b->q = fl__alloc(HEADS * D, sizeof *b->q);
    b->out = fl__alloc(HEADS * D, sizeof *b->out);
    b->scratch = fl__alloc(b->scratch_bytes, 1);
    if (!b->q || !b->out || !b->scratch)
        return fl__fail_nomem(err, "bench attention", b->scratch_bytes);
    fl_status st = fl__kv_new(&b->kv, &b->o, err);
    if (st == FL_OK) st = fill(b, err);
    for (int i = 0; st == FL_OK && i < b->o.n_layers; i++)
        b->layers[i] = fl__kv_layer(b->kv, i, &b->layer_bytes);
    return st;
}

static void bench_fini(attention_bench *b)
{
    fl__kv_free(&b->kv);
    fl__free(&b->q);
    fl__free(&b->out);
    fl__free(&b->scratch);
}

static int entries_init(attention_entry *entries, fl_bench_contender *contenders,
                        const attention_bench *b)
{
    const fl_bench_context *bench = b->bench;
    const bool only_ref = fl__attention_codes_select(bench->ex.isa)->isa == 0;
    int n = 0;
    for (int i = 0; i < FL_MIN(fl__n_attention_codes_kernels, MAX_ROWS); i++) {
        const fl_attention_codes_kernel *k = &fl__attention_codes_kernels[i];
        if (k->isa & ~bench->ex.isa || (k->isa == 0 && !only_ref)) continue;
        if (bench->filter && !strstr(k->name, bench->filter)) continue;
        entries[n] = (attention_entry){b, k->name, {k->isa, bench->ex.n_threads}, 0};
        contenders[n] = (fl_bench_contender){.run = run_entry, .arg = &entries[n]};
        n++;
    }
    return n;
}

static fl_status bench_format(json_t *rows, const fl_bench_context *bench, fl_kv_format format,
                              const char *op, fl_err *err)
{
    attention_bench b = {.bench = bench};
    attention_entry entries[MAX_ROWS];
    fl_bench_contender c[MAX_ROWS + 1];
    fl_status st = FL_OK;
    const int n = entries_init(entries, c, &b);
    if (n == 0) return FL_OK;
    fl__log(bench->log, FL_LOG_INFO, "%s %d tokens", op, TOKENS);
    st = bench_init(&b, format, err);
    for (int i = 0; i < n; i++) entries[i].first_layer = (i + 1) * b.o.n_layers / (n + 1);
    fl_bench_read read = {&bench->ex, b.layers, b.o.n_layers, b.layer_bytes, 0};
    c[n] = (fl_bench_contender){.run = fl__bench_read_run, .arg = &read};
    if (st == FL_OK) st = fl__bench_race(c, n + 1, bench->n_repeats, err);
    for (int i = 0; i < n && st == FL_OK; i++) {
        json_t *r = json_pack(
            "{s:s, s:s, s:i, s:i, s:i, s:i, s:f, s:f, s:s, s:f, s:s, s:f, s:n, s:n}", "kernel",
            entries[i].kernel, "op", op, "M", 1, "N", TOKENS, "K", D, "threads",
            bench->ex.n_threads, "ms", c[i].ms, "rate", (double)b.layer_bytes / c[i].ms * 1e-6,
            "unit", "GB/s", "fraction_of_floor", c[n].ms / c[i].ms, "floor",
            "bytes", "floor_ms", c[n].ms, "ratio_onednn_s8", "ratio_onednn_bf16");
        if (!r || json_array_append_new(rows, r) != 0)
            st = fl__fail_nomem(err, "bench report", 0);
    }
    bench_fini(&b);
    return st;
}

fl_status fl__bench_attention(json_t *rows, const fl_bench_context *bench, fl_err *err)
{
    const fl_status st = bench_format(rows, bench, FL_KV_INT4, "attention_kv4", err);
    return st ? st : bench_format(rows, bench, FL_KV_INT8, "attention_kv8", err);
}
