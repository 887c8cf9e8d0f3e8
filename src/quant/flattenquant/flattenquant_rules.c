/* flattenquant_rules.c - the published rules: smoothing, box plot, threshold, divergence,
 * selection.
 *
 * Nothing is searched here; flattenquant_search.c builds on it.
 * SPDX-License-Identifier: MIT */
#include "quant/flattenquant/flattenquant.h"

#include "base/mem.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Largest value of each group. */
static void group_maxima(float *maxima, const float *values, int K, fl_flatten_groups groups)
{
    for (int g = 0; g < groups.n; g++) maxima[g] = 0;
    for (int c = 0; c < K; c++)
        maxima[groups.map[c]] = fmaxf(maxima[groups.map[c]], values[c]);
}

void fl__flatten_smooth(float *smooth, const float *absmax, const float *w_max, int K,
                        fl_flatten_groups groups, double alpha, float *group_absmax,
                        float *group_w_max)
{
    if (groups.map) {
        group_maxima(group_absmax, absmax, K, groups);
        group_maxima(group_w_max, w_max, K, groups);
        absmax = group_absmax;
        w_max = group_w_max;
    }
    for (int c = 0; c < K; c++) {
        const int g = groups.map ? groups.map[c] : c;
        const double a = absmax[g], w = w_max[g];
        const double s = a > 0 && w > 0 ? pow(a, alpha) / pow(w, 1 - alpha) : 1.0;
        smooth[c] = isfinite(s) && s > 1e-6 && s < 1e6 ? (float)s : 1.0f;
    }
}

static int by_value(const void *a, const void *b)
{
    const float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

static double quantile(const float *sorted, int n, double p)
{
    const double at = p * (n - 1);
    const int i = (int)at;
    return i + 1 < n ? sorted[i] + (at - i) * ((double)sorted[i + 1] - sorted[i]) : sorted[i];
}

double fl__flatten_fence(const float *m, int K, double *q3, double *iqr, float *sorted)
{
    memcpy(sorted, m, (size_t)K * sizeof *m);
    qsort(sorted, (size_t)K, sizeof *sorted, by_value);
    *q3 = quantile(sorted, K, 0.75);
    *iqr = *q3 - quantile(sorted, K, 0.25);
    return *q3 + 1.5 * *iqr;
}

static int copies_for(float m, double T)
{
    const double k = ceil((double)m / T);
    return k < 1 ? 1 : k > 4096 ? 4096 : (int)k;
}

static int64_t sum_copies(const float *m, int K, double T)
{
    int64_t sum = 0;
    for (int c = 0; c < K; c++) sum += copies_for(m[c], T);
    return sum;
}

/* Least T >= from with sum of copies <= limit, by bisection between from and the largest m (all
 * copies 1). */
static double raise_threshold(const float *m, int K, double from, double top, int64_t limit)
{
    if (sum_copies(m, K, from) <= limit) return from;
    double lo = from, hi = top;
    for (int i = 0; i < 60; i++) {
        const double mid = 0.5 * (lo + hi);
        if (sum_copies(m, K, mid) <= limit)
            hi = mid;
        else
            lo = mid;
    }
    return hi;
}

float fl__flatten_rule(uint16_t *copies, const float *m, int K, const fl_flatten_options *o,
                       int64_t *n_outliers, float *sorted)
{
    double q3, iqr, sum = 0, top = 0;
    const double fence = fl__flatten_fence(m, K, &q3, &iqr, sorted);
    int64_t n = 0;
    *n_outliers = 0;
    for (int c = 0; c < K; c++) {
        top = fmax(top, m[c]);
        *n_outliers += m[c] > fence;
        if (o->suppress && m[c] > fence) continue;
        sum += m[c];
        n++;
    }
    double T = o->iqr_rule ? q3 + o->beta * iqr : o->beta * sum / (double)n;
    if (!(T > 0)) T = top; /* more than half of the channels are silent */
    if (!(T > 0)) T = 1;
    if (!o->flatten) T = top > 0 ? top : 1;
    T = fmin(T, top > 0 ? top : 1);
    T = raise_threshold(m, K, T, top > 0 ? top : 1, K + (int64_t)(o->max_ratio * K));
    /* what float32 keeps of T must not need one copy more */
    const float t = nextafterf((float)T, INFINITY);
    for (int c = 0; c < K; c++) copies[c] = (uint16_t)(o->flatten ? copies_for(m[c], t) : 1);
    return t;
}

/* ---- bit selection ----------------------------------------------------------------------- */

enum { BINS = 2048 };

double fl__flatten_divergence(const fl_site_stats *stats, const float *smooth, int bits,
                              bool is_unsigned)
{
    static const double middle = 0.5;
    double p[BINS] = {0}, top = 0, total = 0, kl = 0;
    for (int c = 0; c < stats->K; c++) top = fmax(top, (double)stats->absmax[c] / smooth[c]);
    if (!(top > 0)) return 0;
    for (int r = 0; r < stats->n_sample; r++)
        for (int c = 0; c < stats->K; c++) {
            const double x =
                fabs((double)stats->sample[(size_t)r * (size_t)stats->K + (size_t)c]) /
                smooth[c];
            int bin = (int)(x / top * BINS);
            p[bin < BINS ? bin : BINS - 1] += 1;
            total += 1;
        }
    /* Bins in rising order fall to levels in rising order: walk the runs. */
    const int qmax = fl__flatten_qmax(bits, is_unsigned);
    for (int b = 0; b < BINS;) {
        const double level = rint((b + middle) / BINS * qmax);
        double mass = 0;
        int e = b, filled = 0;
        for (; e < BINS && rint((e + middle) / BINS * qmax) == level; e++) {
            mass += p[e];
            filled += p[e] > 0;
        }
        for (; b < e; b++)
            if (p[b] > 0) kl += p[b] / total * log(p[b] * filled / mass);
    }
    return kl;
}

typedef struct ranked {
    double cost;
    int index;
} ranked;

static int by_cost(const void *a, const void *b)
{
    const ranked *x = a, *y = b;
    if (x->cost != y->cost) return x->cost < y->cost ? -1 : 1;
    return x->index - y->index;
}

static fl_status select_greedy(uint8_t *chosen, const double *cost, const int *n_linears, int n,
                               int target, fl_err *err)
{
    ranked *r = fl__alloc((size_t)n, sizeof *r);
    if (!r) return fl__fail_nomem(err, "layer ranking", (size_t)n * sizeof *r);
    for (int i = 0; i < n; i++) r[i] = (ranked){cost[i], i};
    qsort(r, (size_t)n, sizeof *r, by_cost);
    for (int i = 0, left = target; i < n; i++) {
        const int lin = n_linears[r[i].index];
        if (lin > left) continue;
        chosen[r[i].index] = 1;
        left -= lin;
    }
    fl__free(&r);
    return FL_OK;
}

/* best[i][t]: least cost of linears adding up to exactly t among the first i sites. */
static fl_status select_least(uint8_t *chosen, const double *cost, const int *n_linears, int n,
                              int target, fl_err *err)
{
    const size_t width = (size_t)target + 1;
    double *best = fl__alloc((size_t)(n + 1) * width, sizeof *best);
    if (!best)
        return fl__fail_nomem(err, "layer selection", (size_t)(n + 1) * width * sizeof *best);
    for (size_t t = 0; t < width; t++) best[t] = t ? INFINITY : 0;
    for (int i = 0; i < n; i++)
        for (size_t t = 0; t < width; t++) {
            const double without = best[(size_t)i * width + t];
            const double with =
                t >= (size_t)n_linears[i]
                    ? best[(size_t)i * width + t - (size_t)n_linears[i]] + cost[i]
                    : INFINITY;
            best[(size_t)(i + 1) * width + t] = fmin(with, without);
        }
    size_t t = (size_t)target;
    while (t > 0 && !isfinite(best[(size_t)n * width + t])) t--; /* no subset adds up to it */
    for (int i = n; i-- > 0;) {
        if (best[(size_t)(i + 1) * width + t] == best[(size_t)i * width + t]) continue;
        chosen[i] = 1;
        t -= (size_t)n_linears[i];
    }
    fl__free(&best);
    return FL_OK;
}

fl_status fl__flatten_select(uint8_t *chosen, const double *cost, const int *n_linears, int n,
                             int target, bool greedy, fl_err *err)
{
    memset(chosen, 0, (size_t)n);
    return greedy ? select_greedy(chosen, cost, n_linears, n, target, err)
                  : select_least(chosen, cost, n_linears, n, target, err);
}
