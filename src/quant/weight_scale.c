/* weight_scale.c - search of weight scales on a grid. SPDX-License-Identifier: MIT */
#include "quant/weight_scale.h"

#include "quant/round.h"
#include "quant/weight_split.h"

#include <float.h>
#include <math.h>

#define GRID_STEPS 32
#define GRID_LOWEST 0.36f /* of max|w|; deeper clipping never won on the models tried */

static float row_max(const float *w, int K, const fl_weight_split *split)
{
    float top = 0;
    for (int k = 0; k < K; k++) {
        const float a = split ? fabsf(w[k]) / split->copies[k] : fabsf(w[k]);
        top = a > top ? a : top;
    }
    return top;
}

static inline float code_of(float w, float inv, float qmin, float qmax)
{
    const float q = fl__round(w * inv);
    return q < qmin ? qmin : q > qmax ? qmax : q;
}

static double row_error(const float *w, int K, float scale, int bits, const float *h)
{
    const float inv = 1.0f / scale, lo = (float)fl__weight_qmin(bits),
                hi = (float)fl__weight_qmax(bits);
    float lane[FL_LANES] = {0}, tail = 0;
    int k = 0;
    for (; k + FL_LANES <= K; k += FL_LANES)
        for (int i = 0; i < FL_LANES; i++) {
            const float e = w[k + i] - scale * code_of(w[k + i], inv, lo, hi);
            lane[i] += h ? e * e * h[k + i] : e * e;
        }
    for (; k < K; k++) {
        const float e = w[k] - scale * code_of(w[k], inv, lo, hi);
        tail += h ? e * e * h[k] : e * e;
    }
    return fl__lanes_sum(lane) + (double)tail;
}

/* The same with a range of codes per column. */
static double split_row_error(const float *w, int K, float scale, const fl_weight_split *s,
                              const float *h)
{
    const float inv = 1.0f / scale;
    float lane[FL_LANES] = {0}, tail = 0;
    int k = 0;
    for (; k + FL_LANES <= K; k += FL_LANES)
        for (int i = 0; i < FL_LANES; i++) {
            const float e =
                w[k + i] - scale * code_of(w[k + i], inv, s->lo[k + i], s->hi[k + i]);
            lane[i] += h ? e * e * h[k + i] : e * e;
        }
    for (; k < K; k++) {
        const float e = w[k] - scale * code_of(w[k], inv, s->lo[k], s->hi[k]);
        tail += h ? e * e * h[k] : e * e;
    }
    return fl__lanes_sum(lane) + (double)tail;
}

/* 1 where the scale would be no normal number (its inverse would be infinite). */
static float grid_scale(float top, int step, int bits)
{
    const float shrink = 1.0f - (1.0f - GRID_LOWEST) * (float)step / GRID_STEPS;
    const float scale = top * shrink / (float)fl__weight_qmax(bits);
    return scale >= FLT_MIN ? scale : 1.0f;
}

typedef struct job {
    float *scale;
    int8_t *codes;
    const float *w, *h, *fixed;
    const fl_weight_split *split;
    double *error;
    int N, K, bits, scale_stride, n_steps;
} job;

enum { ROWS = 16 };

static double error_of_row(const job *j, const float *w, float scale)
{
    return j->split ? split_row_error(w, j->K, scale, j->split, j->h)
                    : row_error(w, j->K, scale, j->bits, j->h);
}

static void search_rows(void *arg, int64_t item, int thread)
{
    const job *j = arg;
    (void)thread;
    for (int n = (int)item * ROWS; n < j->N && n < ((int)item + 1) * ROWS; n++) {
        const float *w = j->w + (size_t)n * (size_t)j->K;
        const float top = row_max(w, j->K, j->split);
        double best = INFINITY;
        for (int s = 0; s < j->n_steps; s++) {
            const float scale = grid_scale(top, s, j->bits);
            const double e = j->n_steps > 1 ? error_of_row(j, w, scale) : 0;
            if (e < best) {
                best = e;
                j->scale[n] = scale;
            }
        }
    }
}

static float tensor_scale(const job *j)
{
    const size_t K = (size_t)j->K;
    float top = 0, found = 1;
    double best = INFINITY;
    for (int n = 0; n < j->N; n++)
        top = FL_MAX(top, row_max(j->w + (size_t)n * K, j->K, j->split));
    for (int s = 0; s < j->n_steps; s++) {
        const float scale = grid_scale(top, s, j->bits);
        double e = 0;
        for (int n = 0; j->n_steps > 1 && n < j->N; n++)
            e += error_of_row(j, j->w + (size_t)n * K, scale);
        if (e < best) {
            best = e;
            found = scale;
        }
    }
    return found;
}

void fl__weight_scale_find(const fl_exec *ex, float *scale, const float *w, int N, int K,
                           int bits, bool per_tensor, bool search, const float *h)
{
    fl__weight_scale_find_split(ex, scale, w, NULL, N, K, bits, per_tensor, search, h);
}

void fl__weight_scale_find_split(const fl_exec *ex, float *scale, const float *w,
                                 const fl_weight_split *split, int N, int K, int bits,
                                 bool per_tensor, bool search, const float *h)
{
    job j = {.scale = scale, .w = w, .h = h, .split = split, .N = N, .K = K, .bits = bits,
             .n_steps = search ? GRID_STEPS : 1};
    if (per_tensor)
        scale[0] = tensor_scale(&j);
    else
        fl__parallel_for(ex, (N + ROWS - 1) / ROWS, search_rows, &j);
}

static void round_rows(void *arg, int64_t item, int thread)
{
    const job *j = arg;
    const float lo = (float)fl__weight_qmin(j->bits), hi = (float)fl__weight_qmax(j->bits);
    (void)thread;
    for (int n = (int)item * ROWS; n < j->N && n < ((int)item + 1) * ROWS; n++) {
        const fl_weight_split *s = j->split;
        const float *w = j->w + (size_t)n * (size_t)j->K;
        int8_t *codes = j->codes + (size_t)n * (size_t)(s ? s->ld : j->K);
        const float inv = 1.0f / j->fixed[n * j->scale_stride];
        for (int k = 0; k < j->K; k++)
            fl__weight_split_put(codes, s, k,
                                 (int)code_of(w[k], inv, s ? s->lo[k] : lo, s ? s->hi[k] : hi));
    }
}

double fl__weight_round(const fl_exec *ex, int8_t *codes, const float *w, const float *scale,
                        int scale_stride, int N, int K, int bits, const float *h)
{
    return fl__weight_round_split(ex, codes, w, NULL, scale, scale_stride, N, K, bits, h);
}

double fl__weight_round_split(const fl_exec *ex, int8_t *codes, const float *w,
                              const fl_weight_split *split, const float *scale,
                              int scale_stride, int N, int K, int bits, const float *h)
{
    job j = {.codes = codes, .w = w, .h = h, .fixed = scale, .split = split, .N = N, .K = K,
             .bits = bits, .scale_stride = scale_stride};
    double sum = 0;
    fl__parallel_for(ex, (N + ROWS - 1) / ROWS, round_rows, &j);
    for (int n = 0; n < N; n++)
        sum += error_of_row(&j, w + (size_t)n * (size_t)K, scale[n * scale_stride]);
    return sum;
}
