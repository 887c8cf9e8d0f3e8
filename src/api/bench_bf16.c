/* bench_bf16.c - oneDNN behind the linears of a 16-bit model. SPDX-License-Identifier: MIT */
#include "api/bench_bf16.h"

#include "base/float16.h"
#include "base/mem.h"
#include "kernels/gemm_f32.h"
#include "kernels/onednn.h"

enum { CONVERT_ROWS = 8 };

/* A linear's rival; rival comes first, so that its address is this one's. */
typedef struct bf16_linear {
    fl_linear_rival rival;
    fl_bench_bf16 *all;
    fl_linear *lin;
    fl_onednn_linear *product;
    bool is_first; /* of its site: x is new */
} bf16_linear;

struct fl_bench_bf16 {
    const fl_exec *ex;
    bf16_linear *linears;
    int n_linears;
    uint16_t *x; /* [most rows, widest input] */
    size_t n_bytes;
};

typedef struct rows_job {
    uint16_t *to;
    const float *from;
    float *y;
    const float *bias;
    int n_rows, n;
} rows_job;

static void convert_rows(void *arg, int64_t item, int thread)
{
    const rows_job *j = arg;
    const size_t n = (size_t)j->n, r0 = (size_t)item * CONVERT_ROWS;
    const size_t rows = FL_MIN((size_t)CONVERT_ROWS, (size_t)j->n_rows - r0);
    (void)thread;
    fl__f32_to_bf16_array(j->to + r0 * n, j->from + r0 * n, rows * n);
}

static void add_bias(void *arg, int64_t row, int thread)
{
    const rows_job *j = arg;
    float *y = j->y + (size_t)row * (size_t)j->n;
    (void)thread;
    for (int i = 0; i < j->n; i++) y[i] += j->bias[i];
}

static bool run(const fl_linear *lin, const float *x, int n_rows, float *y)
{
    const bf16_linear *l = (const bf16_linear *)(const void *)lin->rival;
    const fl_exec *ex = l->all->ex;
    if (n_rows <= fl__gemm_f32_select(ex->isa)->few_rows) return false;
    rows_job job = {.to = l->all->x, .from = x, .y = y, .bias = lin->bias, .n_rows = n_rows,
                    .n = lin->n_in};
    if (l->is_first)
        fl__parallel_for(ex, (n_rows + CONVERT_ROWS - 1) / CONVERT_ROWS, convert_rows, &job);
    if (!fl__onednn_linear_run(l->product, l->all->x, n_rows, y)) return false;
    job.n = lin->n_out;
    if (lin->bias) fl__parallel_for(ex, n_rows, add_bias, &job);
    return true;
}

static fl_status attach_site(fl_bench_bf16 *b, fl_site *site, const int *counts, int n_counts,
                             fl_err *err)
{
    for (int i = 0; i < site->n_linears; i++) {
        fl_linear *lin = site->linears[i];
        bf16_linear *l = &b->linears[b->n_linears];
        *l = (bf16_linear){.rival = {run}, .all = b, .lin = lin, .is_first = i == 0};
        const fl_status st =
            fl__onednn_linear_new(&l->product, lin->w, lin->n_out, lin->n_in, counts, n_counts,
                                  b->ex->n_threads, err);
        if (st) return st;
        b->n_linears++;
        b->n_bytes += fl__onednn_linear_bytes(l->product);
        lin->rival = &l->rival;
    }
    return FL_OK;
}

static int widest_input(const fl_model *model)
{
    int n = 0;
    for (int s = 0; s < FL_N_SITES; s++) n = FL_MAX(n, model->blocks[0].site[s].n_in);
    return n;
}

fl_status fl__bench_bf16_attach(fl_bench_bf16 **out, fl_model *model, const int *counts,
                                int n_counts, const fl_exec *ex, fl_err *err)
{
    const size_t n = (size_t)model->cfg.n_layers * FL_N_LINEARS;
    const int few_rows = fl__gemm_f32_select(ex->isa)->few_rows;
    int many[FL_ONEDNN_MAX_COUNTS], n_many = 0, most = 0;
    fl_bench_bf16 *b = NULL;
    fl_status st = FL_OK;

    *out = NULL;
    for (int i = 0; i < n_counts && n_many < FL_ONEDNN_MAX_COUNTS; i++) {
        if (counts[i] > few_rows) many[n_many++] = counts[i];
        most = FL_MAX(most, counts[i]);
    }
    if (n_many == 0) return FL_OK;
    b = fl__calloc(1, sizeof *b);
    if (!b) return fl__fail_nomem(err, "bench opponent", sizeof *b);
    b->ex = ex;
    b->linears = fl__calloc(n, sizeof *b->linears);
    b->x = fl__alloc((size_t)most * (size_t)widest_input(model), sizeof *b->x);
    if (!b->linears || !b->x) st = fl__fail_nomem(err, "bench opponent", n * 64);
    for (int i = 0; i < model->cfg.n_layers && !st; i++)
        for (int s = 0; s < FL_N_SITES && !st; s++)
            st = attach_site(b, &model->blocks[i].site[s], many, n_many, err);
    if (!st) {
        *out = b;
        return FL_OK;
    }
    for (int i = 0; i < b->n_linears; i++) b->linears[i].lin->rival = NULL;
    fl__bench_bf16_free(&b);
    return st == FL_E_UNSUPPORTED ? FL_OK : st;
}

void fl__bench_bf16_free(fl_bench_bf16 **bf16)
{
    fl_bench_bf16 *b = *bf16;
    if (!b) return;
    for (int i = 0; i < b->n_linears; i++) fl__onednn_linear_free(&b->linears[i].product);
    fl__free(&b->linears);
    fl__free(&b->x);
    fl__free(bf16);
}

const char *fl__bench_bf16_impl(const fl_bench_bf16 *bf16)
{
    return bf16 ? fl__onednn_linear_impl(bf16->linears[0].product) : NULL;
}

size_t fl__bench_bf16_bytes(const fl_bench_bf16 *bf16)
{
    return bf16 ? bf16->n_bytes : 0;
}
