/* bench_transform.c - transform and quantise M = 512 rows, beside the product that reads the
 * codes.
 *
 * The shapes are those of Llama 3 8B: 4096 channels as 64 x 64 in front of a product with 6144
 * outputs, 14336 as 112 x 128 in front of one with 4096. The rate is TFLOP/s of the transform,
 * its floor the same operations at half the integer register peak, which is what bfloat16 tiles
 * give. N of a row is the product's; the product itself is the line below, its rate in TOPS.
 * SPDX-License-Identifier: MIT */
#include "api/bench_gemm.h"
#include "api/bench_race.h"
#include "base/log.h"
#include "base/mem.h"
#include "base/rng.h"
#include "kernels/gemm.h"
#include "kernels/transform.h"

#include <math.h>
#include <string.h>

enum { M = 512, MAX_ROWS = 8 };

typedef struct {
    const fl_bench_context *bench;
    int n1, n2, n, N, ld;
    fl_transform t;
    float *x, *scale, *y;
    int32_t *x_sum, *zero;
    int8_t *codes;
    void *scratch, *gemm_scratch;
    fl_weight w;
    fl_gemm g;
} transform_bench;

typedef struct {
    transform_bench *b;
    fl_exec ex; /* isa masked so that this row is chosen */
    const char *kernel;
} transform_entry;

static void run_entry(void *arg, int call)
{
    const transform_entry *e = arg;
    transform_bench *b = e->b;
    (void)call;
    const fl_quantize_token spec = {.n_channels = b->n, .ld = b->ld, .bits = 4,
                                    .clip_max = 0.9f, .clip_min = 0.9f};
    fl__transform_quantize_run(&e->ex, b->codes, b->x_sum, b->scale, b->zero,
                               fl__rows_at(b->x, b->n), M, &b->t, &spec, b->scratch);
}

static void run_product(void *arg, int call)
{
    transform_bench *b = arg;
    (void)call;
    fl__gemm_run(&b->bench->ex, &b->g, 1, b->gemm_scratch);
}

static fl_status factors_new(transform_bench *b, fl_err *err)
{
    fl_rng rng = fl__rng_init(0, b->n, "bench-factors");
    const int n = FL_MAX(b->n1, b->n2);
    float *left = fl__alloc((size_t)n * (size_t)n, sizeof *left);
    float *right = fl__alloc((size_t)n * (size_t)n, sizeof *right);
    fl_status st = FL_OK;
    if (!left || !right) {
        st = fl__fail_nomem(err, "bench factors", (size_t)n * (size_t)n * sizeof *left);
    } else {
        for (int i = 0; i < n * n; i++) {
            left[i] = (float)fl__rng_normal(&rng) / sqrtf((float)b->n1);
            right[i] = (float)fl__rng_normal(&rng) / sqrtf((float)b->n2);
        }
        st = fl__transform_init(&b->t, b->n1, b->n2, left, right, err);
    }
    fl__free(&left);
    fl__free(&right);
    return st;
}

static fl_status bench_init(transform_bench *b, fl_err *err)
{
    fl_rng rng = fl__rng_init(0, b->n, "bench-transform");
    const size_t n = (size_t)M * (size_t)b->n, N = (size_t)b->N;
    const fl_exec *ex = &b->bench->ex;
    b->ld = fl__gemm_ldx(b->n);
    b->x = fl__alloc_huge(n, sizeof *b->x);
    b->codes = fl__alloc_huge((size_t)M * (size_t)b->ld, 1);
    b->y = fl__alloc_huge((size_t)M * N, sizeof *b->y);
    b->scale = fl__alloc(FL_MAX((size_t)M, N), sizeof *b->scale);
    b->x_sum = fl__alloc(M, sizeof *b->x_sum);
    b->zero = fl__alloc(M, sizeof *b->zero);
    b->scratch = fl__alloc(fl__transform_scratch_bytes(ex, b->n1, b->n2), 1);
    b->gemm_scratch = fl__alloc(fl__gemm_scratch_bytes(ex), 1);
    if (!b->x || !b->codes || !b->y || !b->scale || !b->x_sum || !b->zero || !b->scratch ||
        !b->gemm_scratch)
        return fl__fail_nomem(err, "bench activations", n * sizeof *b->x);
    for (size_t i = 0; i < n; i++) b->x[i] = (float)fl__rng_unit(&rng) * 16 - 8;
    for (size_t i = 0; i < FL_MAX((size_t)M, N); i++) b->scale[i] = 0.01f;
    memset(b->codes, 0, (size_t)M * (size_t)b->ld);
    b->g = (fl_gemm){.x = b->codes, .ldx = b->ld, .x_sum = b->x_sum, .x_scale = b->scale,
                     .x_scale_stride = 1, .w = &b->w, .w_scale = b->scale,
                     .w_scale_stride = 1, .y = b->y, .ldy = b->N, .M = M};
    const fl_status st = factors_new(b, err);
    return st ? st : fl__weight_random(&b->w, ex, b->N, b->n, 4, 0, err);
}

static void bench_fini(transform_bench *b)
{
    fl__transform_fini(&b->t);
    fl__weight_fini(&b->w);
    fl__free(&b->x);
    fl__free(&b->codes);
    fl__free(&b->y);
    fl__free(&b->scale);
    fl__free(&b->x_sum);
    fl__free(&b->zero);
    fl__free(&b->scratch);
    fl__free(&b->gemm_scratch);
}

static int entries_init(transform_entry *entries, fl_bench_contender *contenders,
                        transform_bench *b)
{
    const fl_bench_context *bench = b->bench;
    const bool only_ref = fl__transform_select(bench->ex.isa)->isa == 0;
    int n = 0;
    for (int i = 0; i < FL_MIN(fl__n_transform_kernels, MAX_ROWS); i++) {
        const fl_transform_kernel *k = &fl__transform_kernels[i];
        if (k->isa & ~bench->ex.isa || (k->isa == 0 && !only_ref)) continue;
        if (bench->filter && !strstr(k->name, bench->filter)) continue;
        entries[n] = (transform_entry){b, {k->isa, bench->ex.n_threads}, k->name};
        contenders[n] = (fl_bench_contender){.run = run_entry, .arg = &entries[n]};
        n++;
    }
    return n;
}

static fl_status add_row(json_t *rows, const transform_bench *b, const char *kernel,
                         const char *op, double ops, double ms, double peak_ops_ms,
                         const char *unit, fl_err *err)
{
    json_t *r = json_pack(
        "{s:s, s:s, s:i, s:i, s:i, s:i, s:f, s:f, s:s, s:f, s:s, s:f, s:n, s:n}", "kernel",
        kernel, "op", op, "M", M, "N", b->N, "K", b->n, "threads", b->bench->ex.n_threads, "ms",
        ms, "rate", ops / ms * 1e-9, "unit", unit, "fraction_of_floor", ops / peak_ops_ms / ms,
        "floor", "operations", "floor_ms", ops / peak_ops_ms, "ratio_onednn_s8",
        "ratio_onednn_bf16");
    if (r && json_array_append_new(rows, r) == 0) return FL_OK;
    return fl__fail_nomem(err, "bench report", 0);
}

static fl_status bench_shape(json_t *rows, const fl_bench_context *bench, int n1, int n2, int N,
                             fl_err *err)
{
    transform_bench b = {.bench = bench, .n1 = n1, .n2 = n2, .n = n1 * n2, .N = N};
    transform_entry entries[MAX_ROWS];
    fl_bench_contender c[MAX_ROWS + 2];
    fl_bench_peak peak = {&bench->ex};
    const int n = entries_init(entries, c, &b);
    if (n == 0) return FL_OK;
    fl__log(bench->log, FL_LOG_INFO, "transform %d x %d", n1, n2);
    fl_status st = bench_init(&b, err);
    if (st == FL_OK) {
        c[n] = (fl_bench_contender){.run = run_product, .arg = &b};
        c[n + 1] = (fl_bench_contender){.run = fl__bench_peak_run, .arg = &peak};
        st = fl__bench_race(c, n + 2, bench->n_repeats, err);
    }
    const double per_ms = fl__bench_peak_ops(&bench->ex) / c[n + 1].ms;
    for (int i = 0; i < n && st == FL_OK; i++)
        st = add_row(rows, &b, entries[i].kernel, "transform_quantize",
                     2.0 * M * b.n * (n1 + n2), c[i].ms, per_ms / 2, "TFLOP/s", err);
    if (st == FL_OK)
        st = add_row(rows, &b, fl__gemm_select(bench->ex.isa, 4, M)->name, "its product",
                     2.0 * M * N * b.n, c[n].ms, per_ms, "TOPS", err);
    bench_fini(&b);
    return st;
}

fl_status fl__bench_transform(json_t *rows, const fl_bench_context *bench, fl_err *err)
{
    const fl_status st = bench_shape(rows, bench, 64, 64, 6144, err);
    return st ? st : bench_shape(rows, bench, 112, 128, 4096, err);
}
