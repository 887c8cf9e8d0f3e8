/* flatquant_reference.c - see flatquant_reference.h. Plain loops in double; matrices row-major.
 * SPDX-License-Identifier: MIT */
#include "support/flatquant_reference.h"

#include "base/mem.h"
#include "support/fl_test.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

enum { ARENA = 1 << 21, TAPE = 1 << 18 };

/* What float32 may be off by: in units of a 4-bit code, of a float16, of a bfloat16. */
#define CODE_SLACK 1e-4
#define F16_SLACK  2e-3
#define BF16_SLACK 2e-4
#define WAY_SLACK  2e-6 /* of comparisons, of the larger side */

typedef struct factor {
    fl_factor_kind kind;
    int n;         /* 0: identity */
    double *param; /* FREE, FIXED: P; SVD: L of U, L of V, s */
    double *p, *q; /* P, P^-T */
} factor;

typedef struct site {
    int n1, n2; /* P1 [n1, n1], P2 [n2, n2] */
    factor left, right;
    double *raw_c, *c; /* NULL: no scale */
    bool log_scale;
    double *clip; /* [2 n_clips] raw, NULL: none */
    int n_clips;  /* 1, or one for each linear */
} site;

typedef struct linear {
    int N, K;
    double *w, *bias, *clip; /* bias, clip: NULL: none; clip [2 N] raw */
    double *w_hat, *b_hat;   /* under the transforms */
} linear;

struct fl_reference {
    const fl_flatquant_params *params;
    fl_flatquant_options o;
    bool opt, post, bf16;
    int R, T, D, H, G, hd, F;
    double eps, theta;
    double *x, *gain[2], *bias[2];
    site site[FL_N_SITES];
    linear linear[FL_N_LINEARS];
    factor head;
    double *k_clip, *v_clip;
    /* the record */
    bool recording;
    double *tape;
    size_t n_tape, at;
    double nearest;
    double *arena;
    size_t used;
};

static double *take(fl_reference *r, size_t n)
{
    double *at = r->arena + r->used;
    r->used += n;
    if (r->used > ARENA) fail_msg("reference: arena is full");
    memset(at, 0, n * sizeof *at);
    return at;
}

static double *widened(fl_reference *r, const float *x, size_t n)
{
    double *y = take(r, n);
    for (size_t i = 0; i < n; i++) y[i] = (double)x[i];
    return y;
}

/* ---- record ------------------------------------------------------------------------------ */

static double note(fl_reference *r, double fresh)
{
    if (r->at == TAPE) fail_msg("reference: record is full");
    if (r->recording) r->tape[r->at] = fresh;
    return r->tape[r->at++];
}

/* A way depends on whether a is above b; float32 knows them to within its precision of size.
 * Copies of one number (the first token's values, at all heads that share them) are no matter:
 * the first of equals counts. */
static void compared(fl_reference *r, double a, double b, double size)
{
    if (r->recording && a != b) r->nearest = fmin(r->nearest, fabs(a - b) / (WAY_SLACK * size));
}

static double rounded(fl_reference *r, double u, double slack)
{
    const double down = u - floor(u), nearest = rint(u);
    /* a tie in double comes from sums of bfloat16 products, which are exact in float32 too */
    if (r->recording && down != 0.5) r->nearest = fmin(r->nearest, fabs(down - 0.5) / slack);
    const double offset = note(r, nearest - u);
    return r->recording ? nearest : u + offset;
}

/* Nearest number with this many bits of mantissa. */
static double narrowed(fl_reference *r, double x, int bits, double slack)
{
    int e;
    (void)frexp(x, &e);
    const double unit = note(r, ldexp(1, e - bits));
    return rounded(r, x / unit, slack) * unit;
}

static double bf16(fl_reference *r, double x)
{
    return r->bf16 ? narrowed(r, x, 8, BF16_SLACK) : x;
}

static double clamped(fl_reference *r, double x, double lo, double hi)
{
    compared(r, x, lo, fabs(lo));
    compared(r, x, hi, fabs(hi));
    const double way = note(r, x < lo ? -1 : x > hi ? 1 : 0);
    return way < 0 ? lo : way > 0 ? hi : x;
}

static double relu(fl_reference *r, double x)
{
    compared(r, x, 0, 1);
    return note(r, x > 0) != 0 ? x : 0;
}

static double larger(fl_reference *r, double a, double b)
{
    compared(r, a, b, fmax(a, b));
    return note(r, a >= b) != 0 ? a : b;
}

/* sign 1: max(x, 0), -1: min(x, 0) */
static double extreme(fl_reference *r, const double *x, int n, int sign)
{
    double first = 0, second = -INFINITY, size = 0;
    int best = -1;
    for (int i = 0; i < n; i++) {
        const double v = sign * x[i];
        size = fmax(size, fabs(v));
        second = fmax(second, fmin(v, first));
        if (v > first) {
            first = v;
            best = i;
        }
    }
    compared(r, first, second, size);
    best = (int)note(r, best);
    return best < 0 ? 0 : x[best];
}

/* ---- quantisers -------------------------------------------------------------------------- */

static double sigmoid(double x)
{
    return 1 / (1 + exp(-x));
}

static void quantize_row(fl_reference *r, double *x, int n, int bits, bool asymmetric, bool f16,
                         const double *clip, int n_clips)
{
    if (bits >= 16) return;
    const double top = asymmetric ? exp2(bits) - 1 : exp2(bits - 1) - 1;
    const double bottom = asymmetric ? 0 : -top - 1;
    const double hi = (clip ? sigmoid(clip[0]) : 1) * extreme(r, x, n, 1);
    const double lo = (clip ? sigmoid(clip[n_clips]) : 1) * extreme(r, x, n, -1);
    double s = (asymmetric ? hi - lo : larger(r, hi, -lo)) / top;
    if (f16) s = narrowed(r, s, 11, F16_SLACK);
    if (s == 0) s = 1;
    const double zero = asymmetric ? rounded(r, -lo / s, CODE_SLACK) : 0;
    for (int i = 0; i < n; i++) {
        const double code = rounded(r, x[i] / s, CODE_SLACK) + zero;
        x[i] = (clamped(r, code, bottom, top) - zero) * s;
    }
}

static void quantize_weight(fl_reference *r, linear *l, bool clips)
{
    const double top = exp2(r->o.w_bits - 1) - 1;
    for (int n = 0; n < l->N && r->o.w_bits < 16; n++) {
        double *w = l->w_hat + (size_t)n * (size_t)l->K;
        const double top_clip = l->clip && clips ? sigmoid(l->clip[n]) : 1;
        const double bottom_clip = l->clip && clips ? sigmoid(l->clip[l->N + n]) : 1;
        const double hi = top_clip * extreme(r, w, l->K, 1);
        const double lo = bottom_clip * extreme(r, w, l->K, -1);
        const double s = larger(r, hi, -lo) / top;
        for (int k = 0; k < l->K; k++) {
            const double code = rounded(r, clamped(r, w[k], lo, hi) / s, CODE_SLACK);
            w[k] = clamped(r, code, -top - 1, top) * s;
        }
    }
}

/* ---- factors ----------------------------------------------------------------------------- */

/* b [n, n] <- a^-1 b; a is used up. */
static void solve(double *a, double *b, int n)
{
    for (int k = 0; k < n; k++) {
        int pivot = k;
        for (int i = k + 1; i < n; i++)
            if (fabs(a[i * n + k]) > fabs(a[pivot * n + k])) pivot = i;
        for (int j = 0; j < n; j++) {
            const double x = a[k * n + j], y = b[k * n + j];
            a[k * n + j] = a[pivot * n + j];
            a[pivot * n + j] = x;
            b[k * n + j] = b[pivot * n + j];
            b[pivot * n + j] = y;
        }
        for (int i = 0; i < n; i++) {
            const double f = i == k ? 0 : a[i * n + k] / a[k * n + k];
            for (int j = 0; j < n; j++) a[i * n + j] -= f * a[k * n + j];
            for (int j = 0; j < n; j++) b[i * n + j] -= f * b[k * n + j];
        }
    }
    for (int i = 0; i < n * n; i++) b[i] /= a[i / n * n + i / n];
}

/* (I - A/2)^-1 (I + A/2), A = L - L^T of the strict lower triangle L */
static void cayley(fl_reference *r, double *u, const double *l, int n)
{
    double *a = take(r, (size_t)(n * n));
    for (int i = 0; i < n; i++)
        for (int j = 0; j < n; j++) {
            const double skew = i > j ? l[i * n + j] : i < j ? -l[j * n + i] : 0;
            a[i * n + j] = (i == j) - skew / 2;
            u[i * n + j] = (i == j) + skew / 2;
        }
    solve(a, u, n);
}

static void update_factor(fl_reference *r, factor *f, bool online)
{
    const size_t used = r->used, n = (size_t)f->n;
    double *u = take(r, n * n), *v = take(r, n * n), *inverse = take(r, n * n);
    memcpy(f->p, f->param, n * n * sizeof *u);
    if (f->n && f->kind == FL_FACTOR_SVD) {
        const double *s = f->param + 2 * n * n;
        cayley(r, u, f->param, f->n);
        cayley(r, v, f->param + n * n, f->n);
        memset(f->p, 0, n * n * sizeof *u);
        for (size_t i = 0; i < n; i++)
            for (size_t j = 0; j < n; j++)
                for (size_t k = 0; k < n; k++)
                    f->p[i * n + j] += u[i * n + k] * s[k] * v[j * n + k];
    }
    for (size_t i = 0; i < n * n; i++) {
        if (online) f->p[i] = bf16(r, f->p[i]);
        u[i] = f->p[i];
        inverse[i] = i % (n + 1) == 0;
    }
    solve(u, inverse, f->n);
    for (size_t i = 0; i < n * n; i++) f->q[i] = inverse[i % n * n + i / n];
    r->used = used;
}

/* y [n1, n2] = left^T x right; NULL: identity. In place. */
static void kron(fl_reference *r, double *x, int n1, int n2, const double *left,
                 const double *right, bool online)
{
    const size_t used = r->used;
    double *t = take(r, (size_t)(n1 * n2));
    for (int i = 0; online && (left || right) && i < n1 * n2; i++) x[i] = bf16(r, x[i]);
    if (right) {
        memset(t, 0, (size_t)(n1 * n2) * sizeof *t);
        for (int i = 0; i < n1; i++)
            for (int k = 0; k < n2; k++)
                for (int j = 0; j < n2; j++) t[i * n2 + j] += x[i * n2 + k] * right[k * n2 + j];
        for (int i = 0; i < n1 * n2; i++) x[i] = online && left ? bf16(r, t[i]) : t[i];
    }
    if (left) {
        memset(t, 0, (size_t)(n1 * n2) * sizeof *t);
        for (int i = 0; i < n1; i++)
            for (int k = 0; k < n1; k++)
                for (int j = 0; j < n2; j++) t[i * n2 + j] += left[k * n1 + i] * x[k * n2 + j];
        memcpy(x, t, (size_t)(n1 * n2) * sizeof *t);
    }
    r->used = used;
}

static const double *matrix(const factor *f, const double *m)
{
    return f->n ? m : NULL;
}

/* ---- weights ----------------------------------------------------------------------------- */

/* Each row of w [N, K] held within its clipped extremes. */
static void clip_rows(fl_reference *r, const linear *l, double *w)
{
    for (int n = 0; n < l->N; n++, w += l->K) {
        const double hi = sigmoid(l->clip[n]) * extreme(r, w, l->K, 1);
        const double lo = sigmoid(l->clip[l->N + n]) * extreme(r, w, l->K, -1);
        for (int k = 0; k < l->K; k++) w[k] = clamped(r, w[k], lo, hi);
    }
}

/* Outputs of `from` mixed: v_proj by P_v within each head, up_proj (fc1) by down's scale. */
static void mix_outputs(fl_reference *r, linear *l, int which, const double *from)
{
    const factor *P = &r->site[FL_SITE_O].right;
    const double *down = r->site[FL_SITE_DOWN].c;
    for (int n = 0; n < l->N; n++) {
        double *w = l->w_hat + (size_t)n * (size_t)l->K;
        const int head = n / r->hd * r->hd, j = n % r->hd;
        const int first = which == FL_LIN_V && P->n ? head : n;
        const int end = which == FL_LIN_V && P->n ? head + r->hd : n + 1;
        memset(w, 0, (size_t)l->K * sizeof *w);
        if (l->bias) l->b_hat[n] = 0;
        for (int i = first; i < end; i++) {
            const double f = end - first > 1              ? P->p[(i - head) * r->hd + j]
                             : which == FL_LIN_UP && down ? down[n]
                                                          : 1;
            for (int k = 0; k < l->K; k++) w[k] += f * from[i * l->K + k];
            if (l->bias) l->b_hat[n] += f * l->bias[i];
        }
    }
}

static void update_weight(fl_reference *r, int which, const site *s)
{
    linear *l = &r->linear[which];
    if (!l->N) return;
    const size_t n = (size_t)l->N * (size_t)l->K, used = r->used;
    const bool clip_first =
        which == FL_LIN_V && r->o.clip_v_first && l->clip && r->site[FL_SITE_O].right.n;
    double *from = take(r, n), *w = clip_first ? from : l->w_hat;
    memcpy(from, l->w, n * sizeof *from);
    if (!clip_first) mix_outputs(r, l, which, from);
    for (size_t i = 0; i < n; i += (size_t)l->K) {
        for (int k = 0; s->c && k < l->K; k++) w[i + (size_t)k] /= s->c[k];
        kron(r, w + i, s->n1, s->n2, matrix(&s->left, s->left.q),
             matrix(&s->right, s->right.q), false);
    }
    if (clip_first) {
        clip_rows(r, l, w);
        mix_outputs(r, l, which, w);
    }
    quantize_weight(r, l, !clip_first);
    r->used = used;
}

static void update(fl_reference *r)
{
    static const int site_of[FL_N_LINEARS] = {
        [FL_LIN_Q] = FL_SITE_QKV,    [FL_LIN_K] = FL_SITE_QKV,   [FL_LIN_V] = FL_SITE_QKV,
        [FL_LIN_O] = FL_SITE_O,      [FL_LIN_GATE] = FL_SITE_UP, [FL_LIN_UP] = FL_SITE_UP,
        [FL_LIN_DOWN] = FL_SITE_DOWN};
    for (int i = 0; i < FL_N_SITES; i++) {
        site *s = &r->site[i];
        update_factor(r, &s->left, true);
        update_factor(r, &s->right, i != FL_SITE_O);
        for (int k = 0; s->c && k < s->n1 * s->n2; k++)
            s->c[k] = s->log_scale ? exp(s->raw_c[k]) : s->raw_c[k];
    }
    update_factor(r, &r->head, true);
    for (int i = 0; i < FL_N_LINEARS; i++) update_weight(r, i, &r->site[site_of[i]]);
}

/* ---- the block --------------------------------------------------------------------------- */

static double *norm(fl_reference *r, int which, const double *x)
{
    double *y = take(r, (size_t)(r->R * r->D));
    for (int t = 0; t < r->R; t++) {
        const double *row = x + t * r->D;
        double mean = 0, square = 0;
        for (int i = 0; r->opt && i < r->D; i++) mean += row[i] / r->D;
        for (int i = 0; i < r->D; i++) square += (row[i] - mean) * (row[i] - mean) / r->D;
        for (int i = 0; i < r->D; i++) {
            double v = (row[i] - mean) / sqrt(square + r->eps) * r->gain[which][i];
            if (r->opt) v += r->bias[which][i];
            y[t * r->D + i] = v;
        }
    }
    return y;
}

/* x [R, K] times the site's scale, anew. */
static double *scaled(fl_reference *r, int which, const double *x)
{
    const double *c = r->site[which].c;
    double *y = take(r, (size_t)(r->R * r->D));
    for (int i = 0; i < r->R * r->D; i++) y[i] = c ? x[i] * c[i % r->D] : x[i];
    return y;
}

/* x [R, K] under its site's transform, in place, P_v being in it already; and quantised, unless
 * every linear does that for itself. */
static void enter(fl_reference *r, int which, double *x)
{
    const site *s = &r->site[which];
    const int K = s->n1 * s->n2;
    for (int t = 0; t < r->R; t++) {
        kron(r, x + t * K, s->n1, s->n2, matrix(&s->left, s->left.p),
             which == FL_SITE_O ? NULL : matrix(&s->right, s->right.p), true);
        if (s->n_clips == 1)
            quantize_row(r, x + t * K, K, r->o.a_bits, r->o.asymmetric, false, s->clip, 1);
    }
}

/* x [R, K] as entered; linear number i of its site. */
static double *multiply_by(fl_reference *r, int which, const site *s, int i, const double *from)
{
    const linear *l = &r->linear[which];
    double *y = take(r, (size_t)(r->R * l->N)), *x = take(r, (size_t)(r->R * l->K));
    memcpy(x, from, (size_t)(r->R * l->K) * sizeof *x);
    for (int t = 0; s->n_clips > 1 && t < r->R; t++)
        quantize_row(r, x + t * l->K, l->K, r->o.a_bits, r->o.asymmetric, false, s->clip + i,
                     s->n_clips);
    for (int t = 0; t < r->R; t++)
        for (int n = 0; n < l->N; n++) {
            double sum = l->bias ? l->b_hat[n] : 0;
            for (int k = 0; k < l->K; k++) sum += x[t * l->K + k] * l->w_hat[n * l->K + k];
            y[t * l->N + n] = sum;
        }
    return y;
}

static double *multiply(fl_reference *r, int which, const double *x)
{
    static const struct {
        int site, place;
    } at[FL_N_LINEARS] = {
        [FL_LIN_Q] = {FL_SITE_QKV, 0}, [FL_LIN_K] = {FL_SITE_QKV, 1},
        [FL_LIN_V] = {FL_SITE_QKV, 2}, [FL_LIN_O] = {FL_SITE_O, 0},
        [FL_LIN_GATE] = {FL_SITE_UP, 0}, [FL_LIN_UP] = {FL_SITE_UP, 1},
        [FL_LIN_DOWN] = {FL_SITE_DOWN, 0}};
    return multiply_by(r, which, &r->site[at[which].site], at[which].place, x);
}

/* Rotates pairs (i, i + hd/2) of each head by position * theta^(-2i/hd). */
static void rotate(const fl_reference *r, double *x, int n_heads)
{
    const int half = r->hd / 2;
    for (int t = 0; t < r->R; t++)
        for (int h = 0; h < n_heads; h++) {
            double *head = x + (t * n_heads + h) * r->hd;
            for (int i = 0; i < half; i++) {
                const double angle = t % r->T * pow(r->theta, -2.0 * i / r->hd);
                const double a = head[i], b = head[i + half];
                head[i] = a * cos(angle) - b * sin(angle);
                head[i + half] = b * cos(angle) + a * sin(angle);
            }
        }
}

/* Each head of x times m (NULL: nothing). */
static void turn_heads(fl_reference *r, double *x, int n_heads, const double *m)
{
    for (int h = 0; m && h < r->R * n_heads; h++)
        kron(r, x + h * r->hd, 1, r->hd, NULL, m, true);
}

static double *attend(fl_reference *r, const double *q, const double *k, const double *v)
{
    double *out = take(r, (size_t)(r->R * r->H * r->hd)), *p = take(r, (size_t)r->T);
    for (int t = 0; t < r->R; t++)
        for (int h = 0; h < r->H; h++) {
            const int first = t / r->T * r->T, g = h / (r->H / r->G);
            double sum = 0;
            for (int s = first; s <= t; s++) {
                double dot = 0;
                for (int i = 0; i < r->hd; i++)
                    dot += q[(t * r->H + h) * r->hd + i] * k[(s * r->G + g) * r->hd + i];
                sum += p[s - first] = exp(dot / sqrt(r->hd));
            }
            for (int s = first; s <= t; s++)
                for (int i = 0; i < r->hd; i++)
                    out[(t * r->H + h) * r->hd + i] +=
                        p[s - first] / sum * v[(s * r->G + g) * r->hd + i];
        }
    return out;
}

static double *attention_half(fl_reference *r)
{
    double *in = scaled(r, FL_SITE_QKV, r->post ? r->x : norm(r, 0, r->x));
    double *query = take(r, (size_t)(r->hd * r->hd));
    enter(r, FL_SITE_QKV, in);
    double *q = multiply(r, FL_LIN_Q, in), *k = multiply(r, FL_LIN_K, in);
    double *v = multiply(r, FL_LIN_V, in);
    if (!r->opt) {
        rotate(r, q, r->H);
        rotate(r, k, r->G);
    }
    for (int i = 0; r->head.n && i < r->hd * r->hd; i++) query[i] = bf16(r, r->head.q[i]);
    turn_heads(r, q, r->H, matrix(&r->head, query));
    turn_heads(r, k, r->G, matrix(&r->head, r->head.p));
    for (int h = 0; h < r->R * r->G; h++) {
        quantize_row(r, k + h * r->hd, r->hd, r->o.k_bits, true, true, r->k_clip, 1);
        quantize_row(r, v + h * r->hd, r->hd, r->o.v_bits, true, true, r->v_clip, 1);
    }
    double *att = attend(r, q, k, v);
    enter(r, FL_SITE_O, att);
    double *h = multiply(r, FL_LIN_O, att);
    for (int i = 0; i < r->R * r->D; i++) h[i] += r->x[i];
    return r->post ? norm(r, 0, h) : h;
}

static const double *run(fl_reference *r)
{
    const size_t used = r->used;
    r->at = 0;
    update(r);
    const double *h = attention_half(r);
    double *in = scaled(r, FL_SITE_UP, r->post ? h : norm(r, 1, h));
    enter(r, FL_SITE_UP, in);
    double *t = multiply(r, FL_LIN_UP, in);
    if (r->opt) {
        for (int i = 0; i < r->R * r->F; i++) t[i] = relu(r, t[i]);
    } else {
        const double *gate = multiply(r, FL_LIN_GATE, in);
        for (int i = 0; i < r->R * r->F; i++) t[i] *= gate[i] * sigmoid(gate[i]);
    }
    enter(r, FL_SITE_DOWN, t);
    double *y = multiply(r, FL_LIN_DOWN, t);
    for (int i = 0; i < r->R * r->D; i++) y[i] += h[i];
    if (r->post) y = norm(r, 1, y);
    r->used = used;
    return y;
}

const double *fl_test_reference_record(fl_reference *r)
{
    r->recording = true;
    r->nearest = INFINITY;
    const double *y = run(r);
    r->n_tape = r->at;
    r->recording = false;
    return y;
}

const double *fl_test_reference_replay(fl_reference *r)
{
    const double *y = run(r);
    if (r->at != r->n_tape) fail_msg("reference: replay is not as recorded");
    return y;
}

double fl_test_reference_nearest_tie(const fl_reference *r)
{
    return r->nearest;
}

/* ---- values ------------------------------------------------------------------------------ */

static factor read_factor(fl_reference *r, const fl_factor *from)
{
    const size_t area = (size_t)from->n * (size_t)from->n;
    factor f = {.kind = from->kind, .n = from->n};
    f.p = take(r, area);
    f.q = take(r, area);
    f.param = from->kind == FL_FACTOR_FIXED ? widened(r, from->p, area)
                                            : widened(r, from->param, from->n_params);
    return f;
}

static double *read_clip(fl_reference *r, const fl_flatquant_clip *clip)
{
    return clip->n ? widened(r, clip->raw, 2 * (size_t)clip->n) : NULL;
}

static void read_site(fl_reference *r, int which)
{
    const fl_flatquant_site *from = &r->params->site[which];
    site *s = &r->site[which];
    *s = (site){.n1 = from->n_left, .n2 = from->n_right, .log_scale = from->log_scale};
    s->left = read_factor(r, &from->left);
    s->right = read_factor(r, &from->right);
    s->clip = read_clip(r, &from->clip);
    s->n_clips = from->clip.n > 1 ? from->clip.n : 1;
    if (!from->raw_c) return;
    s->raw_c = widened(r, from->raw_c, (size_t)from->n_in);
    s->c = take(r, (size_t)from->n_in);
}

static void read_linear(fl_reference *r, const fl_block *block, int which)
{
    const fl_linear *from = &block->linear[which];
    linear *l = &r->linear[which];
    if (!from->n_out) return;
    *l = (linear){.N = from->n_out, .K = from->n_in};
    l->w = widened(r, r->params->linear[which].w, (size_t)l->N * (size_t)l->K);
    l->w_hat = take(r, (size_t)l->N * (size_t)l->K);
    l->clip = read_clip(r, &r->params->linear[which].clip);
    if (!from->bias) return;
    l->bias = widened(r, from->bias, (size_t)l->N);
    l->b_hat = take(r, (size_t)l->N);
}

fl_reference *fl_test_reference_new(const fl_model *model, const fl_block *block,
                                    const fl_flatquant_params *params, const float *x,
                                    int n_windows, int seq_len, bool online_bf16)
{
    const fl_model_config *cfg = &model->cfg;
    fl_reference *r = fl__calloc(1, sizeof *r);
    if (r) {
        r->arena = fl__alloc(ARENA, sizeof(double));
        r->tape = fl__alloc(TAPE, sizeof(double));
    }
    if (!r || !r->arena || !r->tape) fail_msg("out of memory");
    r->params = params;
    r->o = params->o;
    r->post = !cfg->pre_norm;
    r->opt = cfg->family == FL_FAMILY_OPT;
    r->bf16 = online_bf16;
    r->R = n_windows * seq_len;
    r->T = seq_len;
    r->D = cfg->hidden_size;
    r->H = cfg->n_heads;
    r->G = cfg->n_kv_heads;
    r->hd = cfg->head_dim;
    r->F = cfg->ffn_size;
    r->eps = cfg->norm_eps;
    r->theta = cfg->rope.theta;
    r->x = widened(r, x, (size_t)r->R * (size_t)r->D);
    for (int i = 0; i < 2; i++) {
        r->gain[i] = widened(r, block->norm[i].gain, (size_t)r->D);
        if (r->opt) r->bias[i] = widened(r, block->norm[i].bias, (size_t)r->D);
    }
    for (int i = 0; i < FL_N_SITES; i++) read_site(r, i);
    for (int i = 0; i < FL_N_LINEARS; i++) read_linear(r, block, i);
    r->head = read_factor(r, &params->head);
    r->k_clip = read_clip(r, &params->k_clip);
    r->v_clip = read_clip(r, &params->v_clip);
    return r;
}

void fl_test_reference_free(fl_reference **r)
{
    if (!*r) return;
    fl__free(&(*r)->arena);
    fl__free(&(*r)->tape);
    fl__free(r);
}

/* ---- groups ------------------------------------------------------------------------------ */

static void add_group(fl_reference_group *groups, int *n, const char *name, const char *part,
                      double *value, const float *grad, size_t count)
{
    fl_reference_group *g = &groups[*n];
    if (!value || !grad || !count) return;
    *g = (fl_reference_group){.value = value, .grad = grad, .n = count};
    (void)snprintf(g->name, sizeof g->name, "%s %s", name, part);
    (*n)++;
}

int fl_test_reference_groups(const fl_reference *r,
                             fl_reference_group groups[FL_REFERENCE_MAX_GROUPS])
{
    static const char *const linears[] = {"q", "k", "v", "o", "gate", "up", "down"};
    const fl_flatquant_params *p = r->params;
    int n = 0;
    for (int i = 0; i < FL_N_SITES; i++) {
        const fl_flatquant_site *s = &p->site[i];
        const char *name = fl__site_names[i];
        add_group(groups, &n, name, "left", r->site[i].left.param, s->left.grad,
                  s->left.n_params);
        add_group(groups, &n, name, "right", r->site[i].right.param, s->right.grad,
                  s->right.n_params);
        add_group(groups, &n, name, "scale", r->site[i].raw_c, s->d_raw_c, (size_t)s->n_in);
        add_group(groups, &n, name, "clip", r->site[i].clip, s->clip.d_raw,
                  2 * (size_t)s->clip.n);
    }
    add_group(groups, &n, "head", "", r->head.param, p->head.grad, p->head.n_params);
    add_group(groups, &n, "k", "clip", r->k_clip, p->k_clip.d_raw, 2);
    add_group(groups, &n, "v", "clip", r->v_clip, p->v_clip.d_raw, 2);
    for (int i = 0; i < FL_N_LINEARS; i++) {
        const fl_flatquant_linear *l = &p->linear[i];
        add_group(groups, &n, linears[i], "weight", r->linear[i].w, l->dw,
                  (size_t)l->N * (size_t)l->K);
        add_group(groups, &n, linears[i], "weight clip", r->linear[i].clip, l->clip.d_raw,
                  2 * (size_t)l->clip.n);
    }
    return n;
}
