/* factor.c - parameters to P and P^-T and back, in double with LAPACK.
 *
 * With M = I - A/2 the Cayley map is U = M^-1 (I + A/2) = 2 M^-1 - I, so M^-1 is all that is
 * kept; dU = M^-1 (dA/2) (I + U) = M^-1 dA M^-1 gives dA = M^-T dU M^-T.
 * Matrices are row-major; LAPACK takes them for their transposes, whose inverse is the
 * transpose of the inverse: no copy is needed.
 * SPDX-License-Identifier: MIT */
#include "train/factor.h"

#include "base/mem.h"

#include <cblas.h>
#include <lapacke.h>
#include <math.h>
#include <string.h>

#define LEAST_CONDITION 1e-7 /* reciprocal; below it P^-T is noise in float32 */

/* Slots of work, n^2 doubles each, then 5 n more. */
enum { M_U, M_V, U, V, T0, T1, T2, N_SLOTS };
enum { EXTRA = 5 };

static double *slot(const fl_factor *f, int which)
{
    return f->work + (size_t)which * (size_t)f->n * (size_t)f->n;
}

static size_t area(const fl_factor *f)
{
    return (size_t)f->n * (size_t)f->n;
}

/* c = op(a) op(b), all [n, n] */
static void multiply(double *c, CBLAS_TRANSPOSE ta, const double *a, CBLAS_TRANSPOSE tb,
                     const double *b, int n)
{
    cblas_dgemm(CblasRowMajor, ta, tb, n, n, n, 1.0, a, n, b, n, 0.0, c, n);
}

/* ---- inverses ---------------------------------------------------------------------------- */

/* Row-major, so LAPACK's 1-norm is our largest row sum. */
static double norm_of(const double *a, int n)
{
    double most = 0;
    for (int i = 0; i < n; i++) {
        double sum = 0;
        for (int j = 0; j < n; j++) sum += fabs(a[(size_t)i * (size_t)n + (size_t)j]);
        most = sum > most || isnan(sum) ? sum : most;
    }
    return most;
}

/* a <- a^-1; scratch: slot T2 and what is behind the slots. False where a is singular. */
static bool invert(fl_factor *f, double *a)
{
    const int n = f->n;
    const double norm = norm_of(a, n);
    double condition = 0, *scratch = slot(f, N_SLOTS);
    if (!isfinite(norm)) return false;
    if (LAPACKE_dgetrf_work(LAPACK_COL_MAJOR, n, n, a, n, f->pivot)) return false;
    int *whole = (int *)(scratch + 4 * (size_t)n); /* [n] */
    if (LAPACKE_dgecon_work(LAPACK_COL_MAJOR, '1', n, a, n, norm, &condition, scratch, whole))
        return false;
    if (!(condition >= LEAST_CONDITION)) return false;
    return LAPACKE_dgetri_work(LAPACK_COL_MAJOR, n, a, n, f->pivot, slot(f, T2), n * n) == 0;
}

/* m <- (I - A/2)^-1, u <- its Cayley map; only the strict lower triangle of l is read. */
static bool cayley(fl_factor *f, double *m, double *u, const float *l)
{
    const size_t n = (size_t)f->n;
    for (size_t i = 0; i < n; i++) {
        m[i * n + i] = 1;
        for (size_t j = 0; j < i; j++) {
            m[i * n + j] = -0.5 * (double)l[i * n + j];
            m[j * n + i] = 0.5 * (double)l[i * n + j];
        }
    }
    if (!invert(f, m)) return false;
    for (size_t i = 0; i < n * n; i++) u[i] = 2 * m[i] - (i % (n + 1) == 0);
    return true;
}

/* ---- parameters to P and Q --------------------------------------------------------------- */

static bool update_free(fl_factor *f)
{
    const size_t n = (size_t)f->n;
    double *inverse = slot(f, T0);
    if (f->kind == FL_FACTOR_FREE) memcpy(f->p, f->param, area(f) * sizeof(float));
    for (size_t i = 0; i < n * n; i++) inverse[i] = (double)f->p[i];
    if (!invert(f, inverse)) return false;
    for (size_t i = 0; i < n; i++)
        for (size_t j = 0; j < n; j++) f->q_wide[i * n + j] = inverse[j * n + i];
    return true;
}

static bool is_usable_diagonal(const float *s, int n)
{
    double least = INFINITY, most = 0;
    for (int i = 0; i < n; i++) {
        const double at = fabs((double)s[i]);
        if (!isfinite(at)) return false;
        least = FL_MIN(least, at);
        most = FL_MAX(most, at);
    }
    return most > 0 && least / most >= LEAST_CONDITION;
}

/* c = u diag(s^power) v^T, power 1 or -1; t: scratch */
static void compose(double *c, double *t, const double *u, const float *s, int power,
                    const double *v, int n)
{
    for (size_t i = 0; i < (size_t)n * (size_t)n; i++) {
        const double d = (double)s[i % (size_t)n];
        t[i] = u[i] * (power > 0 ? d : 1 / d);
    }
    multiply(c, CblasNoTrans, t, CblasTrans, v, n);
}

static bool update_svd(fl_factor *f)
{
    const float *l_u = f->param, *l_v = l_u + area(f), *s = l_v + area(f);
    if (!is_usable_diagonal(s, f->n)) return false;
    if (!cayley(f, slot(f, M_U), slot(f, U), l_u)) return false;
    if (!cayley(f, slot(f, M_V), slot(f, V), l_v)) return false;
    compose(slot(f, T0), slot(f, T1), slot(f, U), s, 1, slot(f, V), f->n);
    compose(f->q_wide, slot(f, T1), slot(f, U), s, -1, slot(f, V), f->n);
    for (size_t i = 0; i < area(f); i++) f->p[i] = (float)slot(f, T0)[i];
    return true;
}

static void update_one(fl_factor *f)
{
    f->singular = !(f->kind == FL_FACTOR_SVD ? update_svd(f) : update_free(f));
    for (size_t i = 0; !f->singular && i < area(f); i++) f->q[i] = (float)f->q_wide[i];
}

static void update_item(void *arg, int64_t item, int thread)
{
    fl_factor *f = ((fl_factor *const *)arg)[item];
    (void)thread;
    if (f && f->kind != FL_FACTOR_FIXED) update_one(f);
}

fl_status fl__factors_update(const fl_exec *ex, fl_factor *const *factors, int n_factors,
                             fl_err *err)
{
    fl__parallel_for(ex, n_factors, update_item, (void *)(uintptr_t)factors);
    for (int i = 0; i < n_factors; i++)
        if (factors[i] && factors[i]->singular)
            return fl__fail(err, FL_E_FAIL,
                            "transform: factor %d of order %d: singular or not finite; use a "
                            "smaller learning rate", i, factors[i]->n);
    return FL_OK;
}

/* ---- gradients --------------------------------------------------------------------------- */

static void widen(double *to, const float *from, size_t n)
{
    for (size_t i = 0; i < n; i++) to[i] = (double)from[i];
}

/* dP - Q dQ^T Q */
static void grad_free(fl_factor *f)
{
    double *a = slot(f, T0), *b = slot(f, T1);
    widen(a, f->dq, area(f));
    multiply(b, CblasNoTrans, f->q_wide, CblasTrans, a, f->n);
    multiply(a, CblasNoTrans, b, CblasNoTrans, f->q_wide, f->n);
    for (size_t i = 0; i < area(f); i++) f->grad[i] = (float)((double)f->dp[i] - a[i]);
}

/* Gradient of the lower triangle behind an orthogonal matrix, 0 above and on the diagonal, from
 * du (overwritten); t: scratch. */
static void grad_cayley(float *grad, double *du, double *t, const double *m, int order)
{
    const size_t n = (size_t)order;
    multiply(t, CblasTrans, m, CblasNoTrans, du, order);
    multiply(du, CblasNoTrans, t, CblasTrans, m, order);
    for (size_t i = 0; i < n; i++)
        for (size_t j = 0; j < n; j++)
            grad[i * n + j] = j < i ? (float)(du[i * n + j] - du[j * n + i]) : 0.0f;
}

/* dx = op(dP) y diag(s) + op(dQ) y diag(1/s) for x, y = U, V or, transposed, V, U. Where ds is
 * wanted it comes from x: d s_i = x_i . dP y_i - x_i . dQ y_i / s_i^2. Leaves dx in T1. */
static void grad_side(const fl_factor *f, CBLAS_TRANSPOSE op, const double *x, const double *y,
                      const float *s, double *ds)
{
    const size_t n = (size_t)f->n;
    double *g = slot(f, T0), *dx = slot(f, T1), *t = slot(f, T2);
    widen(g, f->dp, area(f));
    multiply(dx, op, g, CblasNoTrans, y, f->n);
    widen(g, f->dq, area(f));
    multiply(t, op, g, CblasNoTrans, y, f->n);
    for (size_t i = 0; i < n * n; i++) {
        const double d = (double)s[i % n];
        if (ds) ds[i % n] += x[i] * (dx[i] - t[i] / (d * d));
        dx[i] = dx[i] * d + t[i] / d;
    }
}

static void grad_svd(fl_factor *f)
{
    const size_t n = (size_t)f->n;
    const float *s = f->param + 2 * area(f);
    double *ds = slot(f, N_SLOTS); /* [n] */
    memset(ds, 0, n * sizeof *ds);
    grad_side(f, CblasNoTrans, slot(f, U), slot(f, V), s, ds);
    grad_cayley(f->grad, slot(f, T1), slot(f, T2), slot(f, M_U), f->n);
    grad_side(f, CblasTrans, slot(f, V), slot(f, U), s, NULL);
    grad_cayley(f->grad + area(f), slot(f, T1), slot(f, T2), slot(f, M_V), f->n);
    for (size_t i = 0; i < n; i++) f->grad[2 * area(f) + i] = (float)ds[i];
}

static void grad_item(void *arg, int64_t item, int thread)
{
    fl_factor *f = ((fl_factor *const *)arg)[item];
    (void)thread;
    if (!f || f->kind == FL_FACTOR_FIXED) return;
    if (f->kind == FL_FACTOR_SVD)
        grad_svd(f);
    else
        grad_free(f);
}

void fl__factors_grad(const fl_exec *ex, fl_factor *const *factors, int n_factors)
{
    fl__parallel_for(ex, n_factors, grad_item, (void *)(uintptr_t)factors);
}

/* ---- starts ------------------------------------------------------------------------------ */

/* a [n, n] <- uniformly random orthogonal: the Q of a Gaussian matrix, its columns' signs such
 * that R's diagonal is positive. The transpose has the same law. scratch: n^2 + 2 n. */
static void random_orthogonal(double *a, int order, double *scratch, fl_rng *rng)
{
    const size_t n = (size_t)order;
    double *tau = scratch, *sign = tau + n, *work = sign + n;
    for (size_t i = 0; i < n * n; i++) a[i] = fl__rng_normal(rng);
    (void)LAPACKE_dgeqrf_work(LAPACK_COL_MAJOR, order, order, a, order, tau, work,
                              order * order);
    for (size_t i = 0; i < n; i++) sign[i] = a[i * n + i] < 0 ? -1 : 1;
    (void)LAPACKE_dorgqr_work(LAPACK_COL_MAJOR, order, order, order, a, order, tau, work,
                              order * order);
    for (size_t i = 0; i < n * n; i++) a[i] *= sign[i / n];
}

/* a = D (H (x) O): signs, Hadamard of the largest power of two in n, random orthogonal rest. */
static void random_hadamard(const fl_factor *f, double *a, fl_rng *rng)
{
    const size_t n = (size_t)f->n, power = n & (~n + 1), rest = n / power;
    double *o = slot(f, T1), *sign = slot(f, U);
    for (size_t i = 0; i < n; i++) sign[i] = fl__rng_u64(rng) >> 63 ? -1 : 1;
    random_orthogonal(o, (int)rest, slot(f, T2), rng);
    if (rest == 1) o[0] = 1;
    for (size_t i = 0; i < n; i++)
        for (size_t j = 0; j < n; j++) {
            const int odd = __builtin_parityll((i / rest) & (j / rest));
            a[i * n + j] = (odd ? -1 : 1) * sign[i] * o[i % rest * rest + j % rest] /
                           sqrt((double)power);
        }
}

/* l <- strict lower triangle of a random orthogonal matrix; through slots T0 to T2. */
static void random_triangle(const fl_factor *f, float *l, fl_rng *rng)
{
    const size_t n = (size_t)f->n;
    double *a = slot(f, T0);
    random_orthogonal(a, f->n, slot(f, T1), rng);
    for (size_t i = 0; i < n * n; i++) l[i] = i % n < i / n ? (float)a[i] : 0.0f;
}

static void start_svd(fl_factor *f, fl_factor_start start, fl_rng *rng)
{
    float *s = f->param + 2 * area(f);
    memset(f->param, 0, f->n_params * sizeof(float));
    for (int i = 0; i < f->n; i++) s[i] = 1;
    if (start != FL_START_CAYLEY) return;
    random_triangle(f, f->param, rng);
    random_triangle(f, f->param + area(f), rng);
}

/* P = U V^T; p and q lend room for the triangles. */
static void start_cayley(fl_factor *f, double *p, fl_rng *rng)
{
    random_triangle(f, f->p, rng);
    random_triangle(f, f->q, rng);
    (void)cayley(f, slot(f, M_U), slot(f, U), f->p); /* I - A/2 is never singular */
    (void)cayley(f, slot(f, M_V), slot(f, V), f->q);
    multiply(p, CblasNoTrans, slot(f, U), CblasTrans, slot(f, V), f->n);
}

static void start_matrix(fl_factor *f, fl_factor_start start, fl_rng *rng)
{
    const size_t n = (size_t)f->n;
    double *p = slot(f, T0);
    for (size_t i = 0; i < n * n; i++) p[i] = i % (n + 1) == 0;
    if (start == FL_START_ORTHOGONAL) random_orthogonal(p, f->n, slot(f, T1), rng);
    if (start == FL_START_CAYLEY) start_cayley(f, p, rng);
    if (start == FL_START_HADAMARD) random_hadamard(f, p, rng);
    for (size_t i = 0; i < n * n; i++) f->p[i] = (float)p[i];
    if (f->kind == FL_FACTOR_FREE) memcpy(f->param, f->p, area(f) * sizeof(float));
}

typedef struct start_job {
    fl_factor *f;
    fl_factor_start start;
    fl_rng rng;
} start_job;

static void start_item(void *arg, int64_t item, int thread)
{
    start_job *j = arg;
    (void)item;
    (void)thread;
    if (j->f->kind == FL_FACTOR_SVD)
        start_svd(j->f, j->start, &j->rng);
    else
        start_matrix(j->f, j->start, &j->rng);
    update_one(j->f);
}

static bool allocate(fl_factor *f)
{
    f->p = fl__alloc(area(f), sizeof *f->p);
    f->q = fl__alloc(area(f), sizeof *f->q);
    f->q_wide = fl__alloc(area(f), sizeof *f->q_wide);
    f->dp = fl__calloc(area(f), sizeof *f->dp);
    f->dq = fl__calloc(area(f), sizeof *f->dq);
    f->param = fl__alloc(f->n_params, sizeof *f->param);
    f->grad = fl__calloc(f->n_params, sizeof *f->grad);
    f->work = fl__alloc(N_SLOTS * area(f) + EXTRA * (size_t)f->n, sizeof *f->work);
    f->pivot = fl__alloc((size_t)f->n, sizeof *f->pivot);
    return f->p && f->q && f->q_wide && f->dp && f->dq && f->param && f->grad && f->work &&
           f->pivot;
}

fl_status fl__factor_init(fl_factor *f, const fl_exec *ex, fl_factor_kind kind, int n,
                          fl_factor_start start, fl_rng rng, fl_err *err)
{
    *f = (fl_factor){.kind = kind, .n = n};
    if (kind == FL_FACTOR_SVD && start != FL_START_IDENTITY && start != FL_START_CAYLEY)
        return fl__fail(err, FL_E_USAGE,
                        "transform: factor of order %d: the svd form cannot start there; start "
                        "from its own random matrix or the identity", n);
    if (kind == FL_FACTOR_FREE) f->n_params = area(f);
    if (kind == FL_FACTOR_SVD) f->n_params = 2 * area(f) + (size_t)n;
    if (!allocate(f)) {
        fl__factor_fini(f);
        return fl__fail_nomem(err, "transform factor",
                              (size_t)n * (size_t)n * (N_SLOTS + 3) * sizeof(double));
    }
    start_job job = {.f = f, .start = start, .rng = rng};
    fl__parallel_for(ex, 1, start_item, &job);
    if (!f->singular) return FL_OK;
    fl__factor_fini(f);
    return fl__fail(err, FL_E_FAIL,
                    "transform: factor of order %d: the random start is singular; use another "
                    "seed", n);
}

void fl__factor_fini(fl_factor *f)
{
    fl__free(&f->p);
    fl__free(&f->q);
    fl__free(&f->q_wide);
    fl__free(&f->dp);
    fl__free(&f->dq);
    fl__free(&f->param);
    fl__free(&f->grad);
    fl__free(&f->work);
    fl__free(&f->pivot);
    f->n_params = 0;
}

void fl__factor_pair(int n, int *n1, int *n2)
{
    int best = 1;
    for (int i = 2; (int64_t)i * i <= n; i++)
        if (n % i == 0) best = i;
    *n1 = best;
    *n2 = n / best;
}
