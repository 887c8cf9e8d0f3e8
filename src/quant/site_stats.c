/* site_stats.c - observers of site inputs. SPDX-License-Identifier: MIT */
#include "quant/site_stats.h"

#include "base/mem.h"

#include <math.h>
#include <string.h>

size_t fl__site_stats_bytes(int K, int max_sample)
{
    return (size_t)K * (2 * sizeof(float) + sizeof(double)) +
           (size_t)max_sample * (size_t)K * sizeof(float);
}

fl_status fl__site_stats_init(fl_site_stats *s, int K, int64_t n_total, int max_sample,
                              fl_err *err)
{
    const size_t n = (size_t)K;
    *s = (fl_site_stats){.K = K, .n_total = n_total, .lowest = INFINITY};
    s->max_sample = n_total < max_sample ? (int)n_total : max_sample;
    s->absmax = fl__calloc(n, sizeof(float));
    s->mean_square = fl__calloc(n, sizeof(float));
    s->sum_square = fl__calloc(n, sizeof(double));
    s->sample = fl__alloc((size_t)s->max_sample * n, sizeof(float));
    if (!s->absmax || !s->mean_square || !s->sum_square || !s->sample) {
        fl__site_stats_fini(s);
        return fl__fail_nomem(err, "activation statistics",
                              fl__site_stats_bytes(K, max_sample));
    }
    return FL_OK;
}

void fl__site_stats_fini(fl_site_stats *s)
{
    fl__free(&s->absmax);
    fl__free(&s->mean_square);
    fl__free(&s->sum_square);
    fl__free(&s->sample);
}

void fl__site_stats_add(fl_site_stats *s, const float *x, int n_rows)
{
    const size_t K = (size_t)s->K;
    for (int r = 0; r < n_rows; r++, s->n_rows++) {
        const float *row = x + (size_t)r * K;
        for (size_t k = 0; k < K; k++) {
            const float a = fabsf(row[k]);
            s->absmax[k] = a > s->absmax[k] ? a : s->absmax[k];
            s->lowest = row[k] < s->lowest ? row[k] : s->lowest;
            s->sum_square[k] += (double)row[k] * row[k];
        }
        if (s->n_sample < s->max_sample &&
            s->n_rows >= s->n_sample * s->n_total / s->max_sample)
            memcpy(s->sample + (size_t)s->n_sample++ * K, row, K * sizeof *row);
    }
}

void fl__site_stats_finish(fl_site_stats *s)
{
    for (int k = 0; k < s->K; k++)
        s->mean_square[k] = (float)(s->sum_square[k] / (double)s->n_rows);
}
