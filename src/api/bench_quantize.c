/* bench_quantize.c - quantise kernels against a plain read of their input.
 *
 * Floor: bytes read (float32) and written (codes) at the rate at which the input can be read.
 * SPDX-License-Identifier: MIT */
#include "api/bench_gemm.h"
#include "api/bench_race.h"
#include "base/log.h"
#include "base/mem.h"
#include "base/rng.h"
#include "kernels/quantize.h"

#include <string.h>

#define QMAX          7
#define FLATTEN_RATIO 0.3 /* extra positions over channels */
#define N_OPS         3   /* static, per token, flattened */
#define MAX_ROWS      8   /* of the table */

typedef struct {
    const fl_bench_context *bench;
    int M, K, ld;
    float *x, *lo, *hi, *scale;
    int32_t *src, *off, *x_sum, *zero;
    int8_t *codes;
    fl_quantize_static plain, flattened;
} quantize_bench;

typedef struct {
    quantize_bench *b;
    fl_exec ex; /* isa masked so that this row is chosen */
    const char *kernel, *op;
    int n_codes; /* per row of x */
} quantize_entry;

static void run_static(void *arg, int call)
{
    const quantize_entry *e = arg;
    quantize_bench *b = e->b;
    (void)call;
    fl__quantize_static_run(&e->ex, b->codes, b->x_sum, fl__rows_at(b->x, b->K), b->M,
                            &b->plain, NULL);
}

static void run_flattened(void *arg, int call)
{
    const quantize_entry *e = arg;
    quantize_bench *b = e->b;
    (void)call;
    fl__quantize_static_run(&e->ex, b->codes, b->x_sum, fl__rows_at(b->x, b->K), b->M,
                            &b->flattened, NULL);
}

static void run_token(void *arg, int call)
{
    const quantize_entry *e = arg;
    quantize_bench *b = e->b;
    (void)call;
    const fl_quantize_token spec = {.n_channels = b->K, .ld = b->plain.ld, .bits = 8,
                                    .clip_max = 1, .clip_min = 1};
    fl__quantize_token_run(&e->ex, b->codes, b->x_sum, b->scale, b->zero,
                           fl__rows_at(b->x, b->K), b->M, &spec, NULL);
}

static fl_status bench_init(quantize_bench *b, fl_err *err)
{
    fl_rng rng = fl__rng_init(0, b->K, "bench-quantize");
    const int n_extra = (int)(b->K * FLATTEN_RATIO);
    const size_t M = (size_t)b->M, K = (size_t)b->K;
    b->ld = (b->K + n_extra + 63) / 64 * 64;
    b->x = fl__alloc(M * K, sizeof *b->x);
    b->lo = fl__alloc(K, sizeof *b->lo);
    b->hi = fl__alloc(K, sizeof *b->hi);
    b->scale = fl__alloc(M, sizeof *b->scale);
    b->src = fl__alloc((size_t)n_extra, sizeof *b->src);
    b->off = fl__alloc((size_t)n_extra, sizeof *b->off);
    b->x_sum = fl__alloc(M, sizeof *b->x_sum);
    b->zero = fl__alloc(M, sizeof *b->zero);
    b->codes = fl__alloc(M * (size_t)b->ld, 1);
    if (!b->x || !b->lo || !b->hi || !b->scale || !b->src || !b->off || !b->x_sum || !b->zero ||
        !b->codes)
        return fl__fail_nomem(err, "bench activations", M * K * sizeof *b->x);
    for (size_t i = 0; i < M * K; i++) b->x[i] = (float)fl__rng_unit(&rng) * 16 - 8;
    for (size_t c = 0; c < K; c++) {
        b->hi[c] = (float)(c % 3 ? QMAX : 2 * QMAX);
        b->lo[c] = -b->hi[c];
    }
    for (int e = 0; e < n_extra; e++) {
        b->src[e] = (int32_t)(e / FLATTEN_RATIO);
        b->off[e] = QMAX;
    }
    b->plain = (fl_quantize_static){.n_channels = b->K,
                                    .ld = (b->K + 63) / 64 * 64,
                                    .inv_scale = 1,
                                    .first_lo = -QMAX,
                                    .first_hi = QMAX,
                                    .cap = QMAX,
                                    .lo = b->lo,
                                    .hi = b->hi,
                                    .extra_src = b->src,
                                    .extra_off = b->off};
    b->flattened = b->plain;
    b->flattened.n_extra = n_extra;
    b->flattened.ld = b->ld;
    return FL_OK;
}

static void bench_fini(quantize_bench *b)
{
    fl__free(&b->x);
    fl__free(&b->lo);
    fl__free(&b->hi);
    fl__free(&b->scale);
    fl__free(&b->src);
    fl__free(&b->off);
    fl__free(&b->x_sum);
    fl__free(&b->zero);
    fl__free(&b->codes);
}

/* The three operations of each row that the machine has. */
static int entries_init(quantize_entry *entries, fl_bench_contender *contenders,
                        quantize_bench *b)
{
    const fl_bench_context *bench = b->bench;
    const bool only_ref = fl__quantize_select(bench->ex.isa)->isa == 0;
    const struct {
        const char *op;
        void (*run)(void *, int);
        int n_codes;
    } ops[N_OPS] = {{"quantize_static", run_static, b->plain.ld},
                    {"quantize_token", run_token, b->plain.ld},
                    {"flatten_expand", run_flattened, b->flattened.ld}};
    int n = 0;
    for (int r = 0; r < FL_MIN(fl__n_quantize_kernels, MAX_ROWS); r++) {
        const fl_quantize_kernel *k = &fl__quantize_kernels[r];
        if (k->isa & ~bench->ex.isa || (k->isa == 0 && !only_ref)) continue;
        if (bench->filter && !strstr(k->name, bench->filter)) continue;
        for (int i = 0; i < N_OPS; i++, n++) {
            entries[n] = (quantize_entry){.b = b,
                                          .ex = {k->isa, bench->ex.n_threads},
                                          .kernel = k->name,
                                          .op = ops[i].op,
                                          .n_codes = ops[i].n_codes};
            contenders[n] = (fl_bench_contender){.run = ops[i].run, .arg = &entries[n]};
        }
    }
    return n;
}

static json_t *row(const quantize_entry *e, double ms, double read_ms)
{
    const quantize_bench *b = e->b;
    const double read_bytes = (double)b->M * b->K * (double)sizeof *b->x;
    const double n_bytes = read_bytes + (double)b->M * e->n_codes;
    return json_pack("{s:s, s:s, s:i, s:i, s:i, s:i, s:f, s:f, s:s, s:f, s:n, s:n}", "kernel",
                     e->kernel, "op", e->op, "M", b->M, "N", e->n_codes, "K", b->K, "threads",
                     e->ex.n_threads, "ms", ms, "rate", n_bytes / ms * 1e-6, "unit", "GB/s",
                     "fraction_of_floor", read_ms * n_bytes / read_bytes / ms,
                     "ratio_onednn_s8", "ratio_onednn_bf16");
}

fl_status fl__bench_quantize(json_t *rows, const fl_bench_context *bench, int M, int K,
                             fl_err *err)
{
    quantize_bench b = {.bench = bench, .M = M, .K = K};
    quantize_entry entries[MAX_ROWS * N_OPS];
    fl_bench_contender contenders[MAX_ROWS * N_OPS + 1];
    fl__log(bench->log, FL_LOG_INFO, "quantize M %d K %d", M, K);
    fl_status st = bench_init(&b, err);
    if (st == FL_OK) {
        const void *block = b.x;
        const size_t n_bytes = (size_t)M * (size_t)K * sizeof *b.x;
        fl_bench_read read = {&bench->ex, &block, 1, n_bytes / 64 * 64, 0};
        const int n = entries_init(entries, contenders, &b);
        contenders[n] = (fl_bench_contender){.run = fl__bench_read_run, .arg = &read};
        if (n > 0) st = fl__bench_race(contenders, n + 1, bench->n_repeats, err);
        for (int i = 0; i < n && st == FL_OK; i++) {
            json_t *r = row(&entries[i], contenders[i].ms, contenders[n].ms);
            if (!r || json_array_append_new(rows, r) != 0)
                st = fl__fail_nomem(err, "bench report", 0);
        }
    }
    bench_fini(&b);
    return st;
}
