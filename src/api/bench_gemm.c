/* bench_gemm.c - integer GEMM kernels against oneDNN and against the machine.
 *
 * Few rows of x (M < 16) are a matter of reading the weights: several copies of them are used
 * in turn, together a gigabyte where there is room, the rate is GB/s of packed weights, and the
 * floor is the longer of a plain read of the same copies and the products at register peak.
 * From M = 16 on weights stay where they fall, the rate is TOPS (2 operations per product) and
 * the floor is the register peak.
 * SPDX-License-Identifier: MIT */
#include "api/bench_gemm.h"

#include "api/bench_race.h"
#include "base/isa.h"
#include "base/log.h"
#include "base/machine.h"
#include "base/mem.h"
#include "base/rng.h"
#include "kernels/gemm.h"
#include "kernels/onednn.h"

#include <string.h>

#define FEW_ROWS         16
#define MAX_COPIES       128
#define MAX_COPIES_BYTES ((size_t)1 << 30) /* no last level of cache holds them */
#define MAX_USERS        5 /* of a set of weights: the plain read, kernels of one width */
#define MAX_CONTENDERS   32

/* Weights of one width, n_copies times in memory. */
typedef struct {
    fl_weight copies[MAX_COPIES]; /* the first owns col_sum, all own data */
    const void *blocks[MAX_COPIES];
    int n_copies, n_users;
    fl_bench_read read;
    int read_at; /* its contender, or -1 */
} weight_set;

typedef struct {
    fl_exec ex; /* isa masked so that this row is chosen */
    const fl_gemm_kernel *kernel;
    weight_set *weights;
    int first_copy;
    fl_gemm g;
    void *scratch;
} gemm_entry;

typedef struct {
    fl_onednn_matmul *matmul; /* NULL: oneDNN has none */
    int at;                   /* its contender */
} opponent;

typedef struct {
    const fl_bench_context *bench;
    int M, N, K;
    int8_t *x;
    int32_t *x_sum;
    float *x_scale, *w_scale;
    uint16_t *y;
    void *scratch;
    weight_set weights[2]; /* 4 bits, 8 bits */
    opponent s8, bf16;
    fl_bench_peak peak;
    gemm_entry entries[MAX_CONTENDERS];
    int entry_at[MAX_CONTENDERS], n_entries;
    fl_bench_contender contenders[MAX_CONTENDERS];
    int n_contenders;
} gemm_bench;

static int add_contender(gemm_bench *b, void (*run)(void *, int), void *arg)
{
    b->contenders[b->n_contenders] = (fl_bench_contender){.run = run, .arg = arg};
    return b->n_contenders++;
}

static void run_entry(void *arg, int call)
{
    gemm_entry *e = arg;
    e->g.w = &e->weights->copies[(e->first_copy + call) % e->weights->n_copies];
    fl__gemm_run(&e->ex, &e->g, 1, e->scratch);
}

static void run_opponent(void *arg, int call)
{
    /* A failure would show as an impossible time; the first call of the set-up was checked. */
    (void)fl__onednn_matmul_run(arg, call, NULL);
}

/* For few rows as many as all together take a gigabyte, or an eighth of what memory is free:
 * there are up to four such sets. Else one. */
static int copies_for(const gemm_bench *b, size_t n_bytes)
{
    const int64_t there = fl__memory_available_bytes();
    const size_t want =
        there > 0 ? FL_MIN((size_t)there / 8, MAX_COPIES_BYTES) : MAX_COPIES_BYTES;
    if (b->M >= FEW_ROWS) return 1;
    return (int)FL_MAX(1, FL_MIN((want + n_bytes - 1) / n_bytes, (size_t)MAX_COPIES));
}

static fl_status weights_new(gemm_bench *b, weight_set *s, int bits, fl_err *err)
{
    const fl_status st =
        fl__weight_random(&s->copies[0], &b->bench->ex, b->N, b->K, bits, (uint64_t)bits, err);
    if (st) return st;

    const size_t n_bytes = s->copies[0].n_bytes;
    const int n_copies = copies_for(b, n_bytes);
    for (s->n_copies = 1; s->n_copies < n_copies; s->n_copies++) {
        fl_weight *w = &s->copies[s->n_copies];
        *w = s->copies[0];
        w->data = fl__alloc_huge(n_bytes, 1);
        if (!w->data) return fl__fail_nomem(err, "bench weights", n_bytes);
        memcpy(w->data, s->copies[0].data, n_bytes);
    }
    for (int i = 0; i < s->n_copies; i++) s->blocks[i] = s->copies[i].data;
    s->read = (fl_bench_read){.ex = &b->bench->ex,
                              .blocks = s->blocks,
                              .n_blocks = s->n_copies,
                              .n_bytes = n_bytes};
    s->read_at = b->M < FEW_ROWS ? add_contender(b, fl__bench_read_run, &s->read) : -1;
    return FL_OK;
}

static fl_status activations_new(gemm_bench *b, fl_err *err)
{
    fl_rng rng = fl__rng_init(0, b->M, "bench-x");
    const size_t M = (size_t)b->M, ldx = (size_t)fl__gemm_ldx(b->K);
    b->x = fl__calloc(M * ldx, 1);
    b->x_sum = fl__calloc(M, sizeof *b->x_sum);
    b->x_scale = fl__alloc(M, sizeof *b->x_scale);
    b->w_scale = fl__alloc((size_t)b->N, sizeof *b->w_scale);
    b->y = fl__alloc(M * (size_t)b->N, sizeof *b->y);
    b->scratch = fl__alloc(fl__gemm_scratch_bytes(&b->bench->ex), 1);
    if (!b->x || !b->x_sum || !b->x_scale || !b->w_scale || !b->y || !b->scratch)
        return fl__fail_nomem(err, "bench activations", M * (ldx + (size_t)b->N * 2));
    for (size_t m = 0; m < M; m++) {
        b->x_scale[m] = 0.01f;
        for (int k = 0; k < b->K; k++) {
            int8_t *x = &b->x[m * ldx + (size_t)k];
            *x = (int8_t)((int)(fl__rng_u64(&rng) >> 56) - 128);
            b->x_sum[m] += *x;
        }
    }
    for (int n = 0; n < b->N; n++) b->w_scale[n] = 0.001f + 0.00001f * (float)(n % 64);
    return FL_OK;
}

static bool wanted(const gemm_bench *b, const fl_gemm_kernel *k)
{
    const fl_bench_context *bench = b->bench;
    const bool only_ref = (bench->ex.isa & FL_ISA_AVX2) == 0;
    if (k->isa & ~bench->ex.isa || b->M < k->min_M || b->M > k->max_M) return false;
    if (k->isa == 0 && !only_ref) return false; /* the reference is no contender */
    return !bench->filter || strstr(k->name, bench->filter);
}

/* Contenders take the copies of a set in the same order, but far from one another: none finds
 * in the cache what the one before has just read. The plain read begins with copy 0. */
static int first_copy(weight_set *s)
{
    return ++s->n_users * s->n_copies / MAX_USERS;
}

static void entries_new(gemm_bench *b)
{
    for (int i = 0; i < fl__n_gemm_kernels; i++) {
        const fl_gemm_kernel *k = &fl__gemm_kernels[i];
        if (!wanted(b, k)) continue;
        weight_set *weights = &b->weights[k->bits == 8];
        gemm_entry *e = &b->entries[b->n_entries];
        *e = (gemm_entry){.ex = {k->isa, b->bench->ex.n_threads},
                          .kernel = k,
                          .weights = weights,
                          .first_copy = first_copy(weights),
                          .scratch = b->scratch};
        e->g = (fl_gemm){.x = b->x,
                         .ldx = fl__gemm_ldx(b->K),
                         .x_sum = b->x_sum,
                         .x_scale = b->x_scale,
                         .x_scale_stride = 1,
                         .w_scale = b->w_scale,
                         .w_scale_stride = 1,
                         .y = b->y,
                         .ldy = b->N,
                         .y_bf16 = true,
                         .M = b->M};
        b->entry_at[b->n_entries++] = add_contender(b, run_entry, e);
    }
}

/* A machine or library without a fast product of this type leaves the opponent out. */
static fl_status opponent_new(gemm_bench *b, opponent *o, fl_onednn_type type, fl_err *err)
{
    const size_t n_bytes = (size_t)b->N * (size_t)b->K * (type == FL_ONEDNN_S8 ? 1 : 2);
    fl_status st = fl__onednn_matmul_new(&o->matmul, type, b->M, b->N, b->K,
                                         copies_for(b, n_bytes), b->bench->ex.n_threads, err);
    if (st == FL_E_UNSUPPORTED) return FL_OK;
    if (st == FL_OK) st = fl__onednn_matmul_run(o->matmul, 0, err);
    if (st == FL_OK) o->at = add_contender(b, run_opponent, o->matmul);
    return st;
}

static void bench_fini(gemm_bench *b)
{
    for (int i = 0; i < 2; i++) {
        for (int c = 1; c < b->weights[i].n_copies; c++)
            fl__free(&b->weights[i].copies[c].data);
        fl__weight_fini(&b->weights[i].copies[0]);
    }
    fl__onednn_matmul_free(&b->s8.matmul);
    fl__onednn_matmul_free(&b->bf16.matmul);
    fl__free(&b->x);
    fl__free(&b->x_sum);
    fl__free(&b->x_scale);
    fl__free(&b->w_scale);
    fl__free(&b->y);
    fl__free(&b->scratch);
}

static json_t *ratio(const gemm_bench *b, const opponent *o, double ms)
{
    return o->matmul ? json_real(b->contenders[o->at].ms / ms) : json_null();
}

static json_t *impl(const opponent *o)
{
    return o->matmul ? json_string(fl__onednn_matmul_impl(o->matmul)) : json_null();
}

static json_t *row(const gemm_bench *b, const gemm_entry *e, double ms, int peak_at)
{
    const bool few = b->M < FEW_ROWS;
    const double ops = 2.0 * b->M * b->N * b->K;
    const double peak_ms =
        ops * b->contenders[peak_at].ms / fl__bench_peak_ops(&b->bench->ex);
    const double read_ms = few ? b->contenders[e->weights->read_at].ms : 0;
    const double n_bytes = (double)e->weights->copies[0].n_bytes;
    return json_pack(
        "{s:s, s:s, s:i, s:i, s:i, s:i, s:f, s:f, s:s, s:f, s:s, s:f, s:o, s:o, s:i, s:o, s:o}",
        "kernel",
        e->kernel->name, "op", "gemm", "M", b->M, "N", b->N, "K", b->K, "threads",
        b->bench->ex.n_threads, "ms", ms, "rate", few ? n_bytes / ms * 1e-6 : ops / ms * 1e-9,
        "unit", few ? "GB/s" : "TOPS", "fraction_of_floor", FL_MAX(peak_ms, read_ms) / ms,
        "floor", read_ms > peak_ms ? "bytes" : "operations", "floor_ms",
        FL_MAX(peak_ms, read_ms),
        "ratio_onednn_s8", ratio(b, &b->s8, ms), "ratio_onednn_bf16", ratio(b, &b->bf16, ms),
        "weight_copies", e->weights->n_copies, "onednn_s8", impl(&b->s8), "onednn_bf16",
        impl(&b->bf16));
}

fl_status fl__bench_gemm(json_t *rows, const fl_bench_context *bench, int M, int N, int K,
                         fl_err *err)
{
    fl_status st = FL_OK;
    gemm_bench *b = fl__calloc(1, sizeof *b);
    if (!b) return fl__fail_nomem(err, "bench", sizeof *b);
    *b = (gemm_bench){.bench = bench, .M = M, .N = N, .K = K, .peak = {&bench->ex}};
    fl__log(bench->log, FL_LOG_INFO, "gemm M %d N %d K %d", M, N, K);

    const int peak_at = add_contender(b, fl__bench_peak_run, &b->peak);
    if ((st = activations_new(b, err)) != FL_OK) goto out;
    if ((st = weights_new(b, &b->weights[0], 4, err)) != FL_OK) goto out;
    if ((st = weights_new(b, &b->weights[1], 8, err)) != FL_OK) goto out;
    entries_new(b);
    if (b->n_entries == 0) goto out;
    if ((st = opponent_new(b, &b->s8, FL_ONEDNN_S8, err)) != FL_OK) goto out;
    if ((st = opponent_new(b, &b->bf16, FL_ONEDNN_BF16, err)) != FL_OK) goto out;
    st = fl__bench_race(b->contenders, b->n_contenders, bench->n_repeats, err);
    for (int i = 0; i < b->n_entries && st == FL_OK; i++) {
        json_t *r = row(b, &b->entries[i], b->contenders[b->entry_at[i]].ms, peak_at);
        if (!r || json_array_append_new(rows, r) != 0)
            st = fl__fail_nomem(err, "bench report", 0);
    }
out:
    bench_fini(b);
    fl__free(&b);
    return st;
}
