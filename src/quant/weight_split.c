/* weight_split.c - which columns of a site's weights are split, and into how many digits.
 * SPDX-License-Identifier: MIT */
#include "quant/weight_split.h"

#include "base/mem.h"
#include "quant/weight_scale.h"

#include <math.h>
#include <string.h>

enum { MAX_DIGITS = 4096 }; /* of one column: FL_MAX_COPIES of model/quantized.h */

size_t fl__weight_split_bytes(int K)
{
    return (size_t)K * (sizeof(uint16_t) + sizeof(int32_t) + 2 * sizeof(float));
}

void fl__weight_split_fini(fl_weight_split *split)
{
    fl__free(&split->copies);
    fl__free(&split->second);
    fl__free(&split->lo);
    fl__free(&split->hi);
    memset(split, 0, sizeof *split);
}

fl_status fl__weight_split_init(fl_weight_split *split, const uint16_t *copies, int K, int bits,
                                fl_err *err)
{
    const size_t n = (size_t)K;
    *split = (fl_weight_split){.K = K, .qmax = fl__weight_qmax(bits), .ld = K};
    split->copies = fl__alloc(n, sizeof *split->copies);
    split->second = fl__alloc(n, sizeof *split->second);
    split->lo = fl__alloc(n, sizeof *split->lo);
    split->hi = fl__alloc(n, sizeof *split->hi);
    if (!split->copies || !split->second || !split->lo || !split->hi) {
        fl__weight_split_fini(split);
        return fl__fail_nomem(err, "digits of weights", fl__weight_split_bytes(K));
    }
    for (int k = 0; k < K; k++) {
        split->copies[k] = copies[k];
        split->second[k] = split->ld;
        split->ld += copies[k] - 1;
        split->hi[k] = (float)(copies[k] * split->qmax);
        /* digits are symmetric; a whole column may use what two's complement has below */
        split->lo[k] = copies[k] > 1 ? -split->hi[k] : (float)fl__weight_qmin(bits);
    }
    split->ratio = (double)(split->ld - K) / K;
    return FL_OK;
}

/* ---- choice ------------------------------------------------------------------------------ */

static float inverse_rms(const float *w, size_t n)
{
    double sum = 0;
    for (size_t i = 0; i < n; i++) sum += (double)w[i] * w[i];
    return sum > 0 ? (float)(1 / sqrt(sum / (double)n)) : 0;
}

/* m[K]: what each column has in units of the rows' scales. */
static void column_maxima(float *m, const fl_flatten_weight *weights, int n_weights, int K,
                          bool per_tensor)
{
    memset(m, 0, (size_t)K * sizeof *m);
    for (int i = 0; i < n_weights; i++) {
        const size_t n = (size_t)weights[i].N * (size_t)K;
        float unit = per_tensor ? inverse_rms(weights[i].w, n) : 0;
        for (int r = 0; r < weights[i].N; r++) {
            const float *w = weights[i].w + (size_t)r * (size_t)K;
            if (!per_tensor) unit = inverse_rms(w, (size_t)K);
            for (int k = 0; k < K; k++) m[k] = FL_MAX(m[k], fabsf(w[k]) * unit);
        }
    }
}

static int digits_for(float m, double T)
{
    return (int)fmin(fmax(ceil((double)m / T), 1), MAX_DIGITS);
}

static int64_t columns_added(const float *m, const int *columns, int K, double T)
{
    int64_t n = 0;
    for (int k = 0; k < K; k++) n += (int64_t)columns[k] * (digits_for(m[k], T) - 1);
    return n;
}

/* beta * mean of the inliers, raised to the least T that adds no more than `limit`. */
static double threshold_for(const float *m, const int *columns, int K, double beta,
                            int64_t limit, float *sorted)
{
    double q3, iqr, sum = 0, top = 0;
    const double fence = fl__flatten_fence(m, K, &q3, &iqr, sorted);
    int n = 0;
    for (int k = 0; k < K; k++) {
        top = fmax(top, m[k]);
        if (m[k] > fence) continue;
        sum += m[k];
        n++;
    }
    if (!(top > 0)) return 1;
    double lo = fmin(beta * sum / n, top), hi = top;
    if (!(lo > 0)) lo = top; /* more than half of the columns are zero */
    if (columns_added(m, columns, K, lo) <= limit) return lo;
    for (int i = 0; i < 60; i++) {
        const double mid = 0.5 * (lo + hi);
        if (columns_added(m, columns, K, mid) <= limit)
            hi = mid;
        else
            lo = mid;
    }
    return hi;
}

fl_status fl__weight_split_choose(fl_weight_split *split, const fl_flatten_weight *weights,
                                  int n_weights, int K, int bits, bool per_tensor,
                                  const int *columns, double beta, double max_ratio,
                                  fl_err *err)
{
    float *m = fl__alloc((size_t)K, sizeof *m), *sorted = fl__alloc((size_t)K, sizeof *sorted);
    uint16_t *copies = fl__alloc((size_t)K, sizeof *copies);
    fl_status st = FL_OK;

    *split = (fl_weight_split){0};
    if (!m || !sorted || !copies) {
        st = fl__fail_nomem(err, "digits of weights", (size_t)K * 10);
        goto out;
    }
    column_maxima(m, weights, n_weights, K, per_tensor);
    const double T =
        threshold_for(m, columns, K, beta, (int64_t)(max_ratio * K), sorted);
    for (int k = 0; k < K; k++) copies[k] = (uint16_t)digits_for(m[k], T);
    st = fl__weight_split_init(split, copies, K, bits, err);
    split->threshold = (float)T;
out:
    fl__free(&m);
    fl__free(&sorted);
    fl__free(&copies);
    return st;
}
