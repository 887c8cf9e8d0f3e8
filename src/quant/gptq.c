/* gptq.c - factorisation in double with LAPACK, the sweep in float32 over chunks of rows.
 *
 * Rows of W are independent of each other, so threads take chunks of 32 rows through all
 * columns; inside a chunk the lazy update of the columns behind a block is one small GEMM.
 * SPDX-License-Identifier: MIT */
#include "quant/gptq.h"

#include "base/mem.h"
#include "quant/round.h"
#include "quant/weight_scale.h"

#include <cblas.h>
#include <lapacke.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { CHUNK = 32 };

size_t fl__gptq_held_bytes(int K, const fl_gptq_options *o)
{
    const size_t n = (size_t)K * (size_t)K;
    const size_t vectors = (size_t)K * (3 * sizeof(float) + sizeof(int)); /* diag, means,
                                                                             perm */
    return n * sizeof(float) + (o->compensate ? n * (sizeof(double) + sizeof(float)) : 0) +
           vectors;
}

size_t fl__gptq_init_bytes(int K, const fl_gptq_options *o)
{
    const size_t n = (size_t)K * (size_t)K;
    return fl__gptq_held_bytes(K, o) + n * sizeof(double) * (o->compensate ? 1 : 2);
}

size_t fl__gptq_round_bytes(int K, int N, int n_threads, const fl_gptq_options *o)
{
    const size_t rows = (size_t)n_threads * CHUNK, wide = o->compensate ? (size_t)K : 0;
    return rows * (((size_t)K + (size_t)o->block) * sizeof(float) + wide * sizeof(double)) +
           (size_t)N * (sizeof(float) + sizeof(double));
}

void fl__gptq_fini(fl_gptq *q)
{
    fl__free(&q->a);
    fl__free(&q->r);
    fl__free(&q->u);
    fl__free(&q->diag);
    fl__free(&q->perm);
    fl__free(&q->mean_q);
    fl__free(&q->mean_f);
}

/* ---- moments ----------------------------------------------------------------------------- */

static void fill_means(fl_gptq *q, const fl_gram *g)
{
    for (int i = 0; i < q->K; i++) {
        const double n = (double)g->n_rows;
        q->mean_q[i] = q->o.centred ? (float)(g->pivot_q[i] + g->sum_q[i] / n) : 0.0f;
        q->mean_f[i] = q->o.centred ? (float)(g->pivot_f[i] + g->sum_f[i] / n) : 0.0f;
    }
}

/* Moment of two channels from the sums about their pivots p, r: about the means, or about 0. */
static double moment(const fl_gptq *q, float sum, double sum_x, double sum_y, float p, float r,
                     double n)
{
    const double dx = sum_x / n, dy = sum_y / n;
    if (q->o.centred) return (double)sum / n - dx * dy;
    return (double)sum / n + (double)p * dy + (double)r * dx + (double)p * r;
}

/* a = E x^ x^^T, centred or not, in natural order; returns the mean of its diagonal. */
static double fill_moments(double *a, const fl_gptq *q, const fl_gram *g)
{
    const size_t K = (size_t)q->K;
    const double n = (double)g->n_rows;
    double trace = 0;
    for (size_t i = 0; i < K; i++) {
        for (size_t j = 0; j < K; j++)
            a[i * K + j] = moment(q, g->h[i * K + j], g->sum_q[i], g->sum_q[j], g->pivot_q[i],
                                  g->pivot_q[j], n);
        trace += a[i * K + i];
    }
    return trace / (double)K;
}

static void fill_cross(fl_gptq *q, const fl_gram *g, double lambda)
{
    const size_t K = (size_t)q->K;
    const double n = (double)g->n_rows;
    for (size_t i = 0; i < K; i++)
        for (size_t j = 0; j < K; j++)
            q->r[i * K + j] = (float)(moment(q, g->c[i * K + j], g->sum_q[i], g->sum_f[j],
                                             g->pivot_q[i], g->pivot_f[j], n) +
                                      (i == j ? lambda : 0));
}

/* LAPACK's Cholesky may take a NaN for a positive pivot, so it is not asked. */
static bool is_finite(const fl_gram *g)
{
    const size_t n = (size_t)g->K * (size_t)g->K;
    float sum = 0; /* of zeros, or NaN */
    for (size_t i = 0; i < n; i++) sum += g->h[i] * 0 + (g->c ? g->c[i] * 0 : 0);
    return sum == 0;
}

/* ---- order ------------------------------------------------------------------------------- */

typedef struct ranked {
    float diag;
    int index;
} ranked;

static int by_falling_diag(const void *a, const void *b)
{
    const ranked *x = a, *y = b;
    if (x->diag != y->diag) return x->diag < y->diag ? 1 : -1;
    return x->index - y->index;
}

static fl_status fill_order(fl_gptq *q, fl_err *err)
{
    for (int i = 0; i < q->K; i++) q->perm[i] = i;
    if (!q->o.act_order) return FL_OK;
    ranked *r = fl__alloc((size_t)q->K, sizeof *r);
    if (!r) return fl__fail_nomem(err, "column order", (size_t)q->K * sizeof *r);
    for (int i = 0; i < q->K; i++) r[i] = (ranked){q->diag[i], i};
    qsort(r, (size_t)q->K, sizeof *r, by_falling_diag);
    for (int i = 0; i < q->K; i++) q->perm[i] = r[i].index;
    fl__free(&r);
    return FL_OK;
}

/* ---- factorisation ----------------------------------------------------------------------- */

/* work <- A (natural moments a + lambda I) in the order of perm, then its inverse's factor U
 * with A^-1 = U^T U, upper, row-major. LAPACK is column-major: its lower triangle is our upper
 * one. 0 on success. */
static int inverse_factor(double *work, const double *a, const int *perm, int K, double lambda)
{
    const size_t n = (size_t)K;
    for (size_t i = 0; i < n; i++)
        for (size_t j = 0; j < n; j++)
            work[i * n + j] = a[(size_t)perm[i] * n + (size_t)perm[j]] + (i == j ? lambda : 0);
    if (LAPACKE_dpotrf_work(LAPACK_COL_MAJOR, 'L', K, work, K)) return -1;
    if (LAPACKE_dpotri_work(LAPACK_COL_MAJOR, 'L', K, work, K)) return -1;
    return LAPACKE_dpotrf_work(LAPACK_COL_MAJOR, 'L', K, work, K) ? -1 : 0;
}

static fl_status factorise(fl_gptq *q, double *a, double *work, double mean_diag, fl_err *err)
{
    const size_t K = (size_t)q->K;
    /* a channel that is always zero must not make A singular when the others are tiny */
    const double unit = mean_diag > 0 ? mean_diag : 1.0;
    for (q->damping_used = q->o.damping; q->damping_used <= 1.0; q->damping_used *= 10) {
        const double lambda = q->damping_used * unit;
        if (inverse_factor(work, a, q->perm, q->K, lambda)) continue;
        for (size_t i = 0; i < K; i++) {
            for (size_t j = 0; j < K; j++)
                q->u[i * K + j] = j < i ? 0.0f : (float)work[i * K + j];
            a[i * K + i] += lambda;
            q->diag[i] = (float)a[i * K + i];
        }
        return FL_OK;
    }
    return fl__fail(
        err, FL_E_FAIL,
        "GPTQ: Hessian of %d channels: not positive definite even with damping %g; start "
        "from a larger --damping",
        q->K, q->damping_used / 10);
}

/* Everything between the buffers and the result, as one item: LAPACK runs on its thread. */
typedef struct setup {
    fl_gptq *q;
    const fl_gram *g;
    double *work; /* [K, K] */
    fl_status st;
    fl_err *err;
} setup;

static void set_up(void *arg, int64_t item, int thread)
{
    setup *s = arg;
    fl_gptq *q = s->q;
    (void)item;
    (void)thread;
    fill_means(q, s->g);
    const double mean_diag = fill_moments(q->a, q, s->g);
    for (size_t i = 0; i < (size_t)q->K; i++)
        q->diag[i] = (float)q->a[i * (size_t)q->K + i];
    if ((s->st = fill_order(q, s->err))) return;
    if ((s->st = factorise(q, q->a, s->work, mean_diag, s->err))) return;
    if (!q->o.compensate) {
        fl__free(&q->a); /* only needed to solve for W~ */
        return;
    }
    fill_cross(q, s->g, q->damping_used * (mean_diag > 0 ? mean_diag : 1.0));
    if (LAPACKE_dpotrf_work(LAPACK_COL_MAJOR, 'L', q->K, q->a, q->K))
        s->st = fl__fail(s->err, FL_E_FAIL,
                         "GPTQ: Hessian of %d channels: factorisation failed; use "
                         "--no-compensate",
                         q->K);
}

fl_status fl__gptq_init(fl_gptq *q, const fl_gram *g, const fl_gptq_options *o,
                        const fl_exec *ex, fl_err *err)
{
    const size_t K = (size_t)g->K;
    setup s = {.q = q, .g = g, .err = err};

    *q = (fl_gptq){.o = *o, .K = g->K};
    if (!is_finite(g))
        return fl__fail(err, FL_E_FAIL,
                        "GPTQ: Hessian of %d channels: the activations behind it are not all "
                        "finite; check the model with flatiron verify", g->K);
    q->a = fl__alloc(K * K, sizeof *q->a);
    q->u = fl__alloc(K * K, sizeof *q->u);
    q->diag = fl__alloc(K, sizeof *q->diag);
    q->perm = fl__alloc(K, sizeof *q->perm);
    q->mean_q = fl__alloc(K, sizeof *q->mean_q);
    q->mean_f = fl__alloc(K, sizeof *q->mean_f);
    q->r = o->compensate ? fl__alloc(K * K, sizeof *q->r) : NULL;
    s.work = fl__alloc(K * K, sizeof *s.work);
    if (!q->a || !q->u || !q->diag || !q->perm || !q->mean_q || !q->mean_f || !s.work ||
        (o->compensate && !q->r))
        s.st = fl__fail_nomem(err, "GPTQ", fl__gptq_init_bytes(g->K, o));
    else
        fl__parallel_for(ex, 1, set_up, &s);
    fl__free(&s.work);
    if (s.st) fl__gptq_fini(q);
    return s.st;
}

/* ---- rounding ---------------------------------------------------------------------------- */

typedef struct sweep {
    const fl_gptq *q;
    int8_t *codes;
    const float *scale;
    float *w;      /* [N, K] natural order */
    double *wide;  /* [threads, CHUNK, K] */
    float *rows;   /* [threads, CHUNK, K + block] */
    double *error; /* [N] tr(E A E^T) per row */
    int N, scale_stride, bits;
} sweep;

/* w[n] <- A^-1 R^T... rows of W~ = W R^T A^-1: with R[i, j] = E x^_i x_j, the normal equations
 * of min |x W^T - x^ W~^T|^2 read A W~^T = R W^T. */
static void compensate_chunk(void *arg, int64_t item, int thread)
{
    const sweep *s = arg;
    const int K = s->q->K, n0 = (int)item * CHUNK, n = FL_MIN(CHUNK, s->N - n0);
    float *w = s->w + (size_t)n0 * (size_t)K, *t = s->rows + (size_t)thread * CHUNK * (size_t)K;
    double *b = s->wide + (size_t)thread * CHUNK * (size_t)K;
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, n, K, K, 1.0f, w, K, s->q->r, K, 0.0f,
                t, K);
    for (size_t i = 0; i < (size_t)n * (size_t)K; i++) b[i] = t[i];
    /* column-major [K, n] right-hand sides are our rows */
    (void)LAPACKE_dpotrs_work(LAPACK_COL_MAJOR, 'L', K, n, s->q->a, K, b, K);
    for (size_t i = 0; i < (size_t)n * (size_t)K; i++) w[i] = (float)b[i];
}

/* One chunk of rows through all columns. x: the rows in perm order, being consumed; e: errors
 * of a block. */
static void sweep_chunk(void *arg, int64_t item, int thread)
{
    const sweep *s = arg;
    const int K = s->q->K, block = s->q->o.block;
    const int n0 = (int)item * CHUNK, n = FL_MIN(CHUNK, s->N - n0);
    float *x = s->rows + (size_t)thread * CHUNK * (size_t)(K + block),
          *e = x + (size_t)CHUNK * (size_t)K;
    const fl_weight_split *split = s->q->split;
    const float qmin = (float)fl__weight_qmin(s->bits), qmax = (float)fl__weight_qmax(s->bits);
    const size_t ld = (size_t)(split ? split->ld : K);

    for (int r = 0; r < n; r++) {
        const float *w = s->w + (size_t)(n0 + r) * (size_t)K;
        for (int k = 0; k < K; k++) x[(size_t)r * (size_t)K + (size_t)k] = w[s->q->perm[k]];
        s->error[n0 + r] = 0;
    }
    for (int b0 = 0; b0 < K; b0 += block) {
        const int b1 = FL_MIN(b0 + block, K), nb = b1 - b0;
        for (int r = 0; r < n; r++) {
            const float scale = s->scale[(n0 + r) * s->scale_stride], inv = 1.0f / scale;
            float *row = x + (size_t)r * (size_t)K;
            for (int j = b0; j < b1; j++) {
                const float *u = s->q->u + (size_t)j * (size_t)K;
                const int column = s->q->perm[j];
                const float lo = split ? split->lo[column] : qmin;
                const float hi = split ? split->hi[column] : qmax;
                float code = fl__round(row[j] * inv);
                code = code < lo ? lo : code > hi ? hi : code;
                const float d = (row[j] - scale * code) / u[j];
                for (int k = j + 1; k < b1; k++) row[k] -= d * u[k];
                e[r * nb + j - b0] = d;
                s->error[n0 + r] += (double)d * d;
                fl__weight_split_put(s->codes + (size_t)(n0 + r) * ld, split, column,
                                     (int)code);
            }
        }
        if (b1 < K)
            cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, n, K - b1, nb, -1.0f, e, nb,
                        s->q->u + (size_t)b0 * (size_t)K + b1, K, 1.0f, x + b1, K);
    }
}

/* bias_shift = W mean_f - (scale codes) mean_q, with W the original weight: what the means of
 * input and output ask. */
static void shift_from_codes(const sweep *s, float *bias_shift, const float *target)
{
    const fl_weight_split *split = s->q->split;
    for (int n = 0; n < s->N; n++) {
        const int8_t *codes = s->codes + (size_t)n * (size_t)(split ? split->ld : s->q->K);
        double sum = 0;
        for (int k = 0; k < s->q->K; k++)
            sum += (double)fl__weight_split_get(codes, split, k) * s->q->mean_q[k];
        bias_shift[n] = (float)((double)target[n] - sum * s->scale[n * s->scale_stride]);
    }
}

static void target_means(const sweep *s, float *target)
{
    const size_t K = (size_t)s->q->K;
    for (int n = 0; n < s->N; n++) {
        double sum = 0;
        for (size_t k = 0; k < K; k++) sum += (double)s->w[(size_t)n * K + k] * s->q->mean_f[k];
        target[n] = (float)sum;
    }
}

fl_status fl__gptq_round(const fl_gptq *q, const fl_exec *ex, int8_t *codes, float *scale,
                         float *bias_shift, float *w, int N, int bits, bool per_tensor,
                         double *relative_error, fl_err *err)
{
    const size_t K = (size_t)q->K, threads = (size_t)ex->n_threads;
    const int chunks = (N + CHUNK - 1) / CHUNK;
    float *target = fl__alloc((size_t)N, sizeof *target);
    sweep s = {.q = q, .codes = codes, .scale = scale, .w = w, .N = N, .bits = bits,
               .scale_stride = per_tensor ? 0 : 1};
    s.rows = fl__alloc(threads * CHUNK * (K + (size_t)q->o.block), sizeof(float));
    s.wide = fl__alloc(q->r ? threads * CHUNK * K : 0, sizeof(double));
    s.error = fl__alloc((size_t)N, sizeof(double));
    fl_status st = FL_OK;
    if (!target || !s.rows || !s.wide || !s.error) {
        st = fl__fail_nomem(err, "GPTQ rows", threads * CHUNK * K * sizeof(double));
        goto out;
    }
    target_means(&s, target);
    if (q->r) fl__parallel_for(ex, chunks, compensate_chunk, &s);
    fl__weight_scale_find_split(ex, scale, w, q->split, N, q->K, bits, per_tensor, true,
                                q->diag);
    fl__parallel_for(ex, chunks, sweep_chunk, &s);
    shift_from_codes(&s, bias_shift, target);
    double lost = 0, whole = 0;
    for (int n = 0; n < N; n++) {
        lost += s.error[n];
        for (size_t k = 0; k < K; k++)
            whole += (double)w[(size_t)n * K + k] * w[(size_t)n * K + k] * q->diag[k];
    }
    *relative_error = whole > 0 ? lost / whole : 0;
out:
    fl__free(&target);
    fl__free(&s.rows);
    fl__free(&s.wide);
    fl__free(&s.error);
    return st;
}
