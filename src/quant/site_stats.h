/* site_stats.h - what calibration sees at a site's input: extremes of every channel and a
 * sample of rows.
 *
 * The extremes are over all tokens. The sample (rows spread evenly over them) is what searches
 * evaluate candidates on, and what the histogram of the bit selection is made of.
 * SPDX-License-Identifier: MIT */
#ifndef FL_QUANT_SITE_STATS_H
#define FL_QUANT_SITE_STATS_H

#include "base/status.h"

typedef struct fl_site_stats {
    int K;
    int64_t n_rows, n_total; /* seen, and expected in all */
    float *absmax;           /* [K] */
    float *mean_square;      /* [K] after fl__site_stats_finish */
    double *sum_square;      /* [K] */
    float lowest;            /* over all channels */
    int n_sample, max_sample;
    float *sample;           /* [n_sample, K] */
} fl_site_stats;

size_t fl__site_stats_bytes(int K, int max_sample);
fl_status fl__site_stats_init(fl_site_stats *s, int K, int64_t n_total, int max_sample,
                              fl_err *err);
void fl__site_stats_fini(fl_site_stats *s);
/* x f32 [n_rows, K] dense. */
void fl__site_stats_add(fl_site_stats *s, const float *x, int n_rows);
void fl__site_stats_finish(fl_site_stats *s);

#endif
