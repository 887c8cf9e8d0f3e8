/* fake_quant.c - scales of rows, and where their gradients go.
 *
 * A row's loops (fake_quant_rows.h) need its scale and give back sums; what a scale is made of
 * is here. The backward pass finds the scale again instead of keeping it: it needs the row's
 * extremes in any case.
 * SPDX-License-Identifier: MIT */
#include "train/fake_quant.h"

#include "base/float16.h"
#include "base/status.h"
#include "train/fake_quant_rows.h"

#include <float.h>
#include <math.h>
#include <string.h>

enum {
    ROWS = 16,   /* weight rows per item */
    TILES = 256, /* at most, of rows whose clip gradients are summed apart */
};
#define WEIGHT_FLOOR 1e-5f /* least clipped maximum of a weight row that is not zero */

static const fl_fake_quant_kernel *const kernels[] = {
    &fl__fake_quant_avx512, &fl__fake_quant_avx2, &fl__fake_quant_ref};

static const fl_fake_quant_kernel *choose(uint32_t isa)
{
    int i = 0;
    while ((kernels[i]->isa & ~isa) != 0) i++; /* stops at ref at the latest */
    return kernels[i];
}

/* A row's quantiser and what is needed to differentiate it. */
typedef struct row {
    fl_row_quant quant;
    float most, least; /* max(x, 0), min(x, 0) */
    float hi, lo;      /* the same times the clip factors */
    float zero, top;   /* top: largest code above qmin */
    bool moves;        /* the scale is a function of hi and lo, not a replacement */
    bool zero_moves;   /* so is the zero point */
} row;

static bool is_normal(float s)
{
    return s >= FLT_MIN && s <= FLT_MAX;
}

/* x to the nearest float16 and back, x >= 0; 0 and infinity included. */
static float through_f16(float x)
{
    if (x >= 65520.0f) return INFINITY;
    if (x < 0x1p-14f) return rintf(x * 0x1p24f) * 0x1p-24f; /* subnormal: multiples of 2^-24 */
    const uint32_t bits = fl__f32_to_bits(x);
    return fl__f32_from_bits((bits + 0xfffu + (bits >> 13 & 1u)) & ~0x1fffu);
}

static row row_of_tokens(const fl_fake_quant_kernel *k, const fl_fake_quant *q, const float *x,
                         int n)
{
    row r = {.quant = {.clip_lo = -INFINITY, .clip_hi = INFINITY}};
    k->extremes(&r.most, &r.least, x, n);
    r.hi = q->clip_max * r.most;
    r.lo = q->clip_min * r.least;
    r.top = (float)((1 << (q->asymmetric ? q->bits : q->bits - 1)) - 1);
    float s = (q->asymmetric ? r.hi - r.lo : FL_MAX(r.hi, -r.lo)) / r.top;
    if (q->f16_scale) s = through_f16(s);
    r.moves = is_normal(s);
    r.quant.scale = r.moves ? s : 1.0f;
    r.quant.inv = 1.0f / r.quant.scale;
    if (q->asymmetric) {
        const float zero = rintf(-r.lo * r.quant.inv);
        r.zero_moves = zero <= r.top;
        r.zero = r.zero_moves ? zero : r.top;
        r.quant.offset = r.zero - (q->bits == 8 ? 128.0f : 0.0f);
    }
    r.quant.lo = q->asymmetric ? -r.zero : -r.top - 1;
    r.quant.hi = r.top - r.zero;
    return r;
}

/* ---- rows -------------------------------------------------------------------------------- */

typedef struct rows_job {
    const fl_fake_quant_kernel *kernel;
    const fl_fake_quant *q;
    float *out; /* x_hat or dx */
    int8_t *codes;
    float *scale, *zero;
    const float *x, *g;
    double (*dclip)[2]; /* [tiles] */
    int64_t R, rows_per_tile;
    int n;
} rows_job;

static int64_t rows_per_tile(int64_t R)
{
    const int64_t rows = (R + TILES - 1) / TILES;
    return FL_MAX(rows, 1);
}

static void quantise_tile(void *arg, int64_t item, int thread)
{
    const rows_job *j = arg;
    const int64_t first = item * j->rows_per_tile, end = FL_MIN(first + j->rows_per_tile, j->R);
    (void)thread;
    for (int64_t i = first; i < end; i++) {
        const float *x = j->x + i * j->n;
        const row r = row_of_tokens(j->kernel, j->q, x, j->n);
        j->kernel->quantise(j->out ? j->out + i * j->n : NULL,
                            j->codes ? j->codes + i * j->n : NULL, x, j->n, &r.quant);
        if (j->scale) j->scale[i] = r.quant.scale;
        if (j->zero) j->zero[i] = r.zero;
    }
}

static void copy_tile(void *arg, int64_t item, int thread)
{
    const rows_job *j = arg;
    const int64_t first = item * j->rows_per_tile, end = FL_MIN(first + j->rows_per_tile, j->R);
    (void)thread;
    if (j->out && j->out != j->x)
        memcpy(j->out + first * j->n, j->x + first * j->n,
               (size_t)(end - first) * (size_t)j->n * sizeof(float));
    for (int64_t i = first; i < end; i++) {
        if (j->scale) j->scale[i] = 1;
        if (j->zero) j->zero[i] = 0;
    }
}

static int64_t n_tiles(const rows_job *j)
{
    return (j->R + j->rows_per_tile - 1) / j->rows_per_tile;
}

void fl__fake_quant_rows(const fl_exec *ex, const fl_fake_quant *q, float *x_hat, int8_t *codes,
                         float *scale, float *zero, const float *x, int64_t R, int n)
{
    rows_job j = {.kernel = choose(ex->isa),
                  .q = q,
                  .out = x_hat,
                  .codes = codes,
                  .scale = scale,
                  .zero = zero,
                  .x = x,
                  .R = R,
                  .rows_per_tile = rows_per_tile(R),
                  .n = n};
    fl__parallel_for(ex, n_tiles(&j), q->bits >= 16 ? copy_tile : quantise_tile, &j);
}

/* s = max(hi, -lo) / top */
static void move_symmetric(const rows_job *j, const row *r, double ds, const float *x,
                           float *dx, double dclip[2])
{
    const double d = ds / (double)r->top;
    if (r->hi >= -r->lo) {
        dclip[0] += d * (double)r->most;
        dx[j->kernel->find(x, j->n, r->most)] += (float)(d * (double)j->q->clip_max);
    } else {
        dclip[1] -= d * (double)r->least;
        dx[j->kernel->find(x, j->n, r->least)] -= (float)(d * (double)j->q->clip_min);
    }
}

/* s = (hi - lo) / top, zero = -lo / s; x^ = (code - zero) s moves with zero where it is
 * clamped, by -s. */
static void move_asymmetric(const rows_job *j, const row *r, const fl_row_sums *sums,
                            const float *x, float *dx, double dclip[2])
{
    const double out = r->zero_moves ? sums->outside : 0;
    const double ds = sums->scale - out * (double)r->lo / (double)r->quant.scale;
    const double dhi = ds / (double)r->top, dlo = out - dhi;
    dclip[0] += dhi * (double)r->most;
    dclip[1] += dlo * (double)r->least;
    if (r->most > 0)
        dx[j->kernel->find(x, j->n, r->most)] += (float)(dhi * (double)j->q->clip_max);
    if (r->least < 0)
        dx[j->kernel->find(x, j->n, r->least)] += (float)(dlo * (double)j->q->clip_min);
}

static void grad_tile(void *arg, int64_t item, int thread)
{
    const rows_job *j = arg;
    const int64_t first = item * j->rows_per_tile, end = FL_MIN(first + j->rows_per_tile, j->R);
    double sum[2] = {0, 0};
    (void)thread;
    for (int64_t i = first; i < end; i++) {
        const float *x = j->x + i * j->n;
        float *dx = j->out + i * j->n;
        const row r = row_of_tokens(j->kernel, j->q, x, j->n);
        const fl_row_sums s = j->kernel->grad(dx, j->g + i * j->n, x, j->n, &r.quant);
        if (!r.moves) continue;
        if (j->q->asymmetric)
            move_asymmetric(j, &r, &s, x, dx, sum);
        else
            move_symmetric(j, &r, s.scale, x, dx, sum);
    }
    j->dclip[item][0] = sum[0];
    j->dclip[item][1] = sum[1];
}

void fl__fake_quant_rows_grad(const fl_exec *ex, const fl_fake_quant *q, float *dx,
                              double dclip[2], const float *dx_hat, const float *x, int64_t R,
                              int n)
{
    double parts[TILES][2];
    rows_job j = {.kernel = choose(ex->isa),
                  .q = q,
                  .out = dx,
                  .x = q->bits >= 16 ? dx_hat : x,
                  .g = dx_hat,
                  .dclip = parts,
                  .R = R,
                  .rows_per_tile = rows_per_tile(R),
                  .n = n};
    dclip[0] = dclip[1] = 0;
    if (q->bits >= 16) {
        fl__parallel_for(ex, n_tiles(&j), copy_tile, &j);
        return;
    }
    fl__parallel_for(ex, n_tiles(&j), grad_tile, &j);
    for (int64_t i = 0; i < n_tiles(&j); i++) {
        dclip[0] += parts[i][0];
        dclip[1] += parts[i][1];
    }
}

/* ---- weights ----------------------------------------------------------------------------- */

typedef struct weight_job {
    const fl_fake_quant_kernel *kernel;
    float *out; /* w_hat or dw */
    int8_t *codes;
    float *scale, *dclip_max, *dclip_min;
    const float *w, *g, *clip_max, *clip_min;
    int N, K, bits;
} weight_job;

static row row_of_weight(const weight_job *j, int n)
{
    row r = {.top = (float)((1 << (j->bits - 1)) - 1)};
    j->kernel->extremes(&r.most, &r.least, j->w + (size_t)n * (size_t)j->K, j->K);
    r.hi = j->clip_max ? j->clip_max[n] * r.most : r.most;
    r.lo = j->clip_min ? j->clip_min[n] * r.least : r.least;
    const float largest = FL_MAX(r.hi, -r.lo);
    const float s = FL_MAX(largest, WEIGHT_FLOOR) / r.top;
    const bool usable = largest > 0 && is_normal(s);
    r.moves = usable && largest >= WEIGHT_FLOOR;
    r.quant = (fl_row_quant){.clip_lo = r.lo,
                             .clip_hi = r.hi,
                             .scale = usable ? s : 1.0f,
                             .inv = 1.0f / (usable ? s : 1.0f),
                             .lo = -r.top - 1,
                             .hi = r.top};
    return r;
}

static void quantise_weight(void *arg, int64_t item, int thread)
{
    const weight_job *j = arg;
    (void)thread;
    for (int n = (int)item * ROWS; n < j->N && n < ((int)item + 1) * ROWS; n++) {
        const size_t at = (size_t)n * (size_t)j->K;
        const row r = row_of_weight(j, n);
        if (j->scale) j->scale[n] = r.quant.scale;
        j->kernel->quantise(j->out ? j->out + at : NULL, j->codes ? j->codes + at : NULL,
                            j->w + at, j->K, &r.quant);
    }
}

/* The scale moves with the larger of hi and -lo, a clamped weight with its bound. */
static void grad_weight(void *arg, int64_t item, int thread)
{
    const weight_job *j = arg;
    (void)thread;
    for (int n = (int)item * ROWS; n < j->N && n < ((int)item + 1) * ROWS; n++) {
        const size_t at = (size_t)n * (size_t)j->K;
        const float *w = j->w + at;
        float *dw = j->out + at;
        const row r = row_of_weight(j, n);
        const fl_row_sums s = j->kernel->grad(dw, j->g + at, w, j->K, &r.quant);
        double dhi = s.above, dlo = s.below;
        const double ds = r.moves ? s.scale / (double)r.top : 0;
        *(r.hi >= -r.lo ? &dhi : &dlo) += r.hi >= -r.lo ? ds : -ds;
        if (j->dclip_max) j->dclip_max[n] = (float)(dhi * (double)r.most);
        if (j->dclip_min) j->dclip_min[n] = (float)(dlo * (double)r.least);
        if (r.most > 0)
            dw[j->kernel->find(w, j->K, r.most)] +=
                (float)(dhi * (j->clip_max ? (double)j->clip_max[n] : 1));
        if (r.least < 0)
            dw[j->kernel->find(w, j->K, r.least)] +=
                (float)(dlo * (j->clip_min ? (double)j->clip_min[n] : 1));
    }
}

static void copy_weight(void *arg, int64_t item, int thread)
{
    const weight_job *j = arg;
    (void)thread;
    for (int n = (int)item * ROWS; n < j->N && n < ((int)item + 1) * ROWS; n++) {
        const size_t at = (size_t)n * (size_t)j->K;
        if (j->out && j->out != j->w)
            memcpy(j->out + at, j->w + at, (size_t)j->K * sizeof(float));
        if (j->scale) j->scale[n] = 1;
        if (j->dclip_max) j->dclip_max[n] = 0;
        if (j->dclip_min) j->dclip_min[n] = 0;
    }
}

void fl__fake_quant_weight(const fl_exec *ex, int bits, float *w_hat, int8_t *codes,
                           float *scale, const float *w, const float *clip_max,
                           const float *clip_min, int N, int K)
{
    weight_job j = {.kernel = choose(ex->isa),
                    .out = w_hat,
                    .codes = codes,
                    .scale = scale,
                    .w = w,
                    .clip_max = clip_max,
                    .clip_min = clip_min,
                    .N = N,
                    .K = K,
                    .bits = bits};
    fl__parallel_for(ex, (N + ROWS - 1) / ROWS, bits >= 16 ? copy_weight : quantise_weight, &j);
}

void fl__fake_quant_weight_grad(const fl_exec *ex, int bits, float *dw, float *dclip_max,
                                float *dclip_min, const float *dw_hat, const float *w,
                                const float *clip_max, const float *clip_min, int N, int K)
{
    weight_job j = {.kernel = choose(ex->isa),
                    .out = dw,
                    .dclip_max = dclip_max,
                    .dclip_min = dclip_min,
                    .w = bits >= 16 ? dw_hat : w,
                    .g = dw_hat,
                    .clip_max = clip_max,
                    .clip_min = clip_min,
                    .N = N,
                    .K = K,
                    .bits = bits};
    fl__parallel_for(ex, (N + ROWS - 1) / ROWS, bits >= 16 ? copy_weight : grad_weight, &j);
}

/* ---- clip factors ------------------------------------------------------------------------ */

void fl__clip_from_raw(float *clip, const float *raw, size_t n)
{
    for (size_t i = 0; i < n; i++) clip[i] = (float)(1 / (1 + exp(-(double)raw[i])));
}

void fl__clip_grad(float *draw, const float *dclip, const float *clip, size_t n)
{
    for (size_t i = 0; i < n; i++) draw[i] = dclip[i] * clip[i] * (1 - clip[i]);
}
