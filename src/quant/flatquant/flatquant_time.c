/* flatquant_time.c - how long training a block will take, roughly.
 *
 * Five kinds of work are counted, forward and backward together, and divided by rates that the
 * training's own functions reach now, on all threads of ex, with this model's widths:
 *
 *   products    of linears: 3 of 2 N K flops per token
 *   transforms  of tokens and heads, and once a step of every weight: multiply-adds
 *   attention   pairs of a query and a key that it sees
 *   quantised   numbers of tokens, keys, values, weights
 *   elements    numbers of everything else, with the activation's rate: norms, sums, scales
 *
 * Rates are means of some calls, not the best of them: a busy machine is one during the run
 * too.
 * SPDX-License-Identifier: MIT */
#include "quant/flatquant/flatquant.h"

#include "base/clock.h"
#include "base/mem.h"
#include "train/kron.h"
#include "train/train_activation.h"
#include "train/train_attention.h"
#include "train/train_gemm.h"

#include <math.h>

/* Of what is measured: tokens, outputs of a linear, products' flops; length of a window. */
enum { LEAST_ROWS = 256, MOST_ROWS = 4096, MOST_OUTPUTS = 1024, MOST_T = 512, N_KINDS = 5 };
#define PRODUCT_FLOPS 4e9
#define MEASURED_S    0.05 /* of each kind, at least */

typedef struct bench {
    const fl_exec *ex;
    fl_train_gemm *gemm;
    fl_kron *kron;
    fl_train_attention *attention;
    int rows, D, N, n1, n2; /* a linear of [N, D] behind a transform of D = n1 n2 */
    int T, H, hd;           /* a window of the attention */
    float *arena;
    fl_train_operand x, dy; /* of the linear */
} bench;

typedef fl_status bench_fn(bench *b);

/* ---- the work's kinds -------------------------------------------------------------------- */

static fl_status products(bench *b)
{
    float *w = b->arena + (size_t)b->rows * (size_t)b->D;
    float *y = w + (size_t)b->N * (size_t)b->D, *dx = y + (size_t)b->rows * (size_t)b->N;
    fl_status st = fl__train_linear(b->gemm, y, &b->x, w, b->N, NULL);
    if (!st) st = fl__train_operand_dy(b->gemm, &b->dy, y, b->rows, b->N, NULL);
    if (!st) st = fl__train_linear_dx(b->gemm, dx, 0, &b->dy, w, b->D, NULL);
    if (!st) st = fl__train_linear_dw(b->gemm, dx, &b->dy, &b->x, NULL);
    return st;
}

/* The input as a site leaves it; here not while it is in a cache, so outside of what is
 * measured. */
static fl_status set_input(bench *b)
{
    const float *x = b->arena;
    const fl_status st = fl__train_operand_begin(b->gemm, &b->x, x, b->rows, b->D, NULL);
    for (int r = 0; !st && r < b->rows; r += FL_PACK_ITEM)
        fl__train_operand_rows(b->gemm, &b->x, x + (size_t)r * (size_t)b->D, r);
    return st;
}

static size_t products_floats(const bench *b)
{
    return (size_t)b->rows * (size_t)b->D + (size_t)b->N * (size_t)b->D +
           (size_t)b->rows * (size_t)b->N +
           (size_t)FL_MAX(b->rows, b->N) * (size_t)b->D;
}

static fl_status transforms(bench *b)
{
    const size_t left = (size_t)b->n1 * (size_t)b->n1, right = (size_t)b->n2 * (size_t)b->n2;
    float *P = b->arena, *dP = P + left + right, *x = dP + left + right;
    float *y = x + (size_t)b->rows * (size_t)b->D, *P1 = b->n1 > 1 ? P : NULL;
    fl_status st =
        fl__kron_rows(b->kron, y, x, b->rows, b->n1, b->n2, P1, P + left, NULL);
    if (!st)
        st = fl__kron_rows_grad(b->kron, y, dP, dP + left, y, x, b->rows, b->n1, b->n2, P1,
                                P + left, NULL);
    return st;
}

static size_t transforms_floats(const bench *b)
{
    const size_t left = (size_t)b->n1 * (size_t)b->n1, right = (size_t)b->n2 * (size_t)b->n2;
    return 2 * (left + right) + 2 * (size_t)b->rows * (size_t)b->D;
}

static fl_status attention(bench *b)
{
    const size_t n = (size_t)b->T * (size_t)b->H * (size_t)b->hd;
    float *q = b->arena, *k = q + n, *v = k + n, *out = v + n, *d_out = out + n;
    float *dq = d_out + n, *dk = dq + n, *dv = dk + n, *lse = dv + n;
    fl_status st = fl__train_attention_forward(b->attention, out, lse, q, k, v, 1, NULL);
    if (!st)
        st = fl__train_attention_grad(b->attention, dq, dk, dv, d_out, out, lse, q, k, v, 1,
                                      NULL);
    return st;
}

static size_t attention_floats(const bench *b)
{
    return (size_t)b->T * (size_t)b->H * (8 * (size_t)b->hd + 1);
}

static fl_status quantised(bench *b)
{
    const fl_fake_quant q = {.bits = 4, .asymmetric = true, .clip_max = 0.9f, .clip_min = 0.9f};
    float *x = b->arena, *y = x + (size_t)b->rows * (size_t)b->D;
    double d_clip[2];
    fl__fake_quant_rows(b->ex, &q, y, NULL, NULL, NULL, x, b->rows, b->D);
    fl__fake_quant_rows_grad(b->ex, &q, y, d_clip, y, x, b->rows, b->D);
    return FL_OK;
}

static fl_status elements(bench *b)
{
    const int64_t n = (int64_t)b->rows * b->D;
    float *gate = b->arena, *up = gate + n, *y = up + n;
    fl__silu_mul_forward(b->ex, y, gate, up, n);
    fl__silu_mul_grad(b->ex, y, y + n, y, gate, up, n);
    return FL_OK;
}

static size_t elements_floats(const bench *b)
{
    return 4 * (size_t)b->rows * (size_t)b->D;
}

/* ---- rates ------------------------------------------------------------------------------- */

/* Multiply-adds of a number on its way through factors n1, n2 and back, gradients of both. */
static double kron_work(double n1, double n2)
{
    const bool left = n1 > 1, right = n2 > 1;
    return (left ? 3 * n1 : 0) + (right ? (left ? 4 : 3) * n2 : 0);
}

static double pairs_of(double T)
{
    return T * (T + 1) / 2;
}

/* Seconds of a call, NaN: out of memory. The first one makes buffers. */
static double seconds_of(bench_fn *fn, bench *b)
{
    double s = 0;
    int n = 0;
    if (fn(b)) return NAN;
    const double start = fl__now_s();
    while (s < MEASURED_S || n < 2) {
        if (fn(b)) return NAN;
        n++;
        s = fl__now_s() - start;
    }
    return s / n;
}

static void set_sizes(bench *b, const fl_model_config *cfg, int n_rows, int seq_len)
{
    b->D = cfg->hidden_size;
    b->N = FL_MIN(cfg->ffn_size, MOST_OUTPUTS);
    const double rows = PRODUCT_FLOPS / (2.0 * b->N * b->D);
    b->rows = FL_MIN(n_rows, (int)fmin(fmax(rows, LEAST_ROWS), MOST_ROWS));
    fl__factor_pair(b->D, &b->n1, &b->n2);
    b->T = FL_MIN(seq_len, MOST_T);
    b->H = FL_MIN(cfg->n_heads, FL_MAX(b->ex->n_threads, 4));
    b->hd = cfg->head_dim;
}

/* Numbers that no quantiser would find easy, without a generator. */
static void fill(float *x, size_t n)
{
    for (size_t i = 0; i < n; i++) x[i] = (float)((int)(i * 7919 % 1009) - 504) * 0.002f;
}

static fl_status bench_init(bench *b, bool bf16)
{
    const fl_train_attention_shape shape = {1, b->T, b->H, b->H, b->hd};
    size_t n = FL_MAX(products_floats(b), transforms_floats(b));
    n = FL_MAX(n, FL_MAX(attention_floats(b), elements_floats(b)));
    b->arena = fl__alloc(n, sizeof(float));
    if (!b->arena) return FL_E_NOMEM;
    fill(b->arena, n);
    fl_status st = fl__train_gemm_new(&b->gemm, b->ex, bf16, NULL);
    if (!st) st = set_input(b);
    if (!st) st = fl__kron_new(&b->kron, b->ex, NULL);
    if (!st) st = fl__train_attention_new(&b->attention, b->ex, &shape, bf16, NULL);
    return st;
}

/* Seconds of a unit of each kind. */
static void measure(double unit_s[N_KINDS], bench *b)
{
    static bench_fn *const fns[N_KINDS] = {products, transforms, attention, quantised,
                                           elements};
    const double numbers = (double)b->rows * b->D;
    const double units[N_KINDS] = {6.0 * numbers * b->N, numbers * kron_work(b->n1, b->n2),
                                   pairs_of(b->T) * b->H, numbers, numbers};
    for (int i = 0; i < N_KINDS; i++) unit_s[i] = seconds_of(fns[i], b) / units[i];
}

/* ---- counts ------------------------------------------------------------------------------ */

/* A linear's products for the step's tokens, and its weight once. */
static void count_linear(double units[N_KINDS], double N, double K, double n_tokens,
                         const int pair[2], const fl_flatquant_options *o)
{
    const bool transformed = o->transform != FL_TRANSFORM_NONE;
    const double numbers = N * K;
    units[0] += 6 * numbers * n_tokens;
    units[1] += transformed ? numbers * kron_work(pair[0], pair[1]) : 0;
    units[3] += o->w_bits < 16 ? numbers : 0;
    units[4] += numbers * (o->weight_lr > 0 ? 4 : 2); /* scales; gradients, AdamW */
}

static void count_site(double units[N_KINDS], double K, double n_tokens, int n_linears,
                       const int pair[2], bool right_folded, const fl_flatquant_options *o)
{
    const bool transformed = o->transform != FL_TRANSFORM_NONE;
    const double numbers = K * n_tokens;
    units[1] += transformed ? numbers * kron_work(pair[0], right_folded ? 1 : pair[1]) : 0;
    units[3] += o->a_bits < 16 ? numbers * (o->clip_per_linear ? n_linears : 1) : 0;
    units[4] += numbers; /* gradient of the scale */
}

/* Heads, cache, attention, norms, residuals, activation, loss. */
static void count_rest(double units[N_KINDS], const fl_model_config *cfg, double n_windows,
                       double T, const fl_flatquant_options *o)
{
    const double tokens = n_windows * T, hd = cfg->head_dim;
    const double q = cfg->n_heads * hd, kv = cfg->n_kv_heads * hd;
    const bool heads = o->k_bits < 16 && o->transform != FL_TRANSFORM_NONE;
    units[1] += heads ? tokens * (q + kv) * kron_work(1, hd) : 0;
    units[2] += n_windows * pairs_of(T) * cfg->n_heads;
    units[3] += tokens * kv * ((o->k_bits < 16) + (o->v_bits < 16));
    units[4] += tokens * (5.0 * cfg->hidden_size + q + kv + cfg->ffn_size);
}

/* One step on n_windows windows. */
static void count_step(double units[N_KINDS], const fl_model_config *cfg, double n_windows,
                       double T, const fl_flatquant_options *o)
{
    for (int s = 0; s < FL_N_SITES; s++) {
        int linears[FL_SITE_MAX_LINEARS], n_out, n_in, pair[2];
        const int n = fl__site_linears(linears, cfg, s);
        fl__linear_shape(&n_out, &n_in, cfg, linears[0]);
        fl__factor_pair(n_in, &pair[0], &pair[1]);
        if (s == FL_SITE_O) {
            pair[0] = cfg->n_heads;
            pair[1] = cfg->head_dim;
        }
        count_site(units, n_in, n_windows * T, n, pair, s == FL_SITE_O, o);
        for (int i = 0; i < n; i++) {
            fl__linear_shape(&n_out, &n_in, cfg, linears[i]);
            count_linear(units, n_out, n_in, n_windows * T, pair, o);
        }
    }
    count_rest(units, cfg, n_windows, T, o);
}

double fl__flatquant_seconds(const fl_model *model, const fl_exec *ex,
                             const fl_flatquant_options *o, int n_windows, int seq_len)
{
    const int batch = FL_MIN(o->batch_windows, n_windows);
    const int n_steps = o->epochs * ((n_windows + batch - 1) / batch);
    const double windows = (double)o->epochs * n_windows / FL_MAX(n_steps, 1); /* of a step */
    double unit_s[N_KINDS], units[N_KINDS] = {0}, seconds = 0;
    bench b = {.ex = ex};
    if (n_steps == 0) return 0;
    set_sizes(&b, &model->cfg, batch * seq_len, seq_len);
    if (bench_init(&b, o->bf16)) {
        seconds = NAN;
    } else {
        measure(unit_s, &b);
        count_step(units, &model->cfg, windows, seq_len, o);
        for (int i = 0; i < N_KINDS; i++) seconds += n_steps * units[i] * unit_s[i];
    }
    fl__free(&b.arena);
    fl__train_operand_fini(&b.x);
    fl__train_operand_fini(&b.dy);
    fl__train_gemm_free(&b.gemm);
    fl__kron_free(&b.kron);
    fl__train_attention_free(&b.attention);
    return seconds;
}
