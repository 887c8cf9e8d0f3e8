/* flattenquant.h - FlattenQuant's decisions for one site (arXiv 2402.17985; exact rules in
 * docs/flattenquant.md).
 *
 * From statistics of a site's input and the weights behind it: smoothing vector s, threshold T,
 * copies k_c per channel, and the divergences D_4, D_8 that select the bits. Pure functions of
 * their inputs; nothing here touches a model.
 * SPDX-License-Identifier: MIT */
#ifndef FL_QUANT_FLATTENQUANT_H
#define FL_QUANT_FLATTENQUANT_H

#include "base/exec.h"
#include "quant/site_stats.h"

typedef struct fl_flatten_options {
    bool smooth, suppress, flatten;
    double alpha;     /* < 0: searched */
    double beta;      /* < 0: threshold and copies searched */
    bool iqr_rule;    /* T = Q3 + beta * IQR instead of beta * mean */
    double max_ratio; /* cap of (sum k - C) / C */
} fl_flatten_options;

/* One weight matrix behind the site: float [N, K]. */
typedef struct fl_flatten_weight {
    const float *w;
    int N;
} fl_flatten_weight;

/* Channels that must share their smoothing factor: channel c belongs to group c if map is
 * NULL. */
typedef struct fl_flatten_groups {
    const int *map; /* [K] group of each channel, 0..n-1 */
    int n;
} fl_flatten_groups;

typedef struct fl_flatten_choice {
    int bits;
    bool is_unsigned;
    double alpha;
    float *smooth;    /* [K] owned: x <- x / s, W <- s W; all 1 without smoothing */
    uint16_t *copies; /* [K] owned */
    float threshold, scale;   /* scale = T / qmax */
    double ratio;             /* (sum k - C) / C */
    double effective_bits;    /* mean over channels of log2 of the number of levels */
    double error;             /* estimated output error over output energy: activation and
                                 weight rounding */
    double clipped;           /* share of sampled values beyond k T */
    int64_t n_outliers;       /* channels above the box plot's fence */
} fl_flatten_choice;

/* Bytes that fl__flatten_choose takes for a sample of n_sample rows, the choice among them. */
size_t fl__flatten_choose_bytes(int K, int n_sample, int n_threads,
                                const fl_flatten_options *o);
/* Roughly the numbers that it looks at, once per candidate and threshold; N: output channels of
 * all weights. For estimates of time. */
double fl__flatten_choose_work(int K, int N, int n_sample, const fl_flatten_options *o);
/* Chooses for activations of `bits` (4 or 8), weights of w_bits (16: not rounded).
 * FL_E_NOMEM. */
fl_status fl__flatten_choose(fl_flatten_choice *choice, const fl_exec *ex,
                             const fl_site_stats *stats, const fl_flatten_weight *weights,
                             int n_weights, fl_flatten_groups groups, int bits, int w_bits,
                             bool is_unsigned, const fl_flatten_options *o, fl_err *err);
void fl__flatten_choice_fini(fl_flatten_choice *choice);

/* s_c = a_c^alpha / w_c^(1-alpha) with a, w the channel maxima over groups; 1 where either is
 * 0. group_absmax, group_w_max: scratch [groups.n], not used without a map. */
void fl__flatten_smooth(float *smooth, const float *absmax, const float *w_max, int K,
                        fl_flatten_groups groups, double alpha, float *group_absmax,
                        float *group_w_max);
/* Box plot of m[K]: the upper fence U = Q3 + 1.5 IQR, with quartiles interpolated linearly. */
double fl__flatten_fence(const float *m, int K, double *q3, double *iqr, float *sorted);
/* Rule of methods: T from channel maxima m, then copies under the cap (T rises until it
 * holds). */
float fl__flatten_rule(uint16_t *copies, const float *m, int K, const fl_flatten_options *o,
                       int64_t *n_outliers, float *sorted);
/* KL(P || Q_b): P the 2,048-bin histogram of |x / s| over the sample, Q_b each level's mass
 * spread over the non-empty bins that round to it. */
double fl__flatten_divergence(const fl_site_stats *stats, const float *smooth, int bits,
                              bool is_unsigned);

/* Picks sites for INT4: n entries with a cost and a number of linears each, linears adding up
 * to target where possible. greedy: in rising cost, a site that would overshoot is passed over;
 * else the subset of least total cost (dynamic programming). chosen[n] receives 0 or 1.
 * FL_E_NOMEM. */
fl_status fl__flatten_select(uint8_t *chosen, const double *cost, const int *n_linears, int n,
                             int target, bool greedy, fl_err *err);

static inline int fl__flatten_qmax(int bits, bool is_unsigned)
{
    return is_unsigned ? (1 << bits) - 1 : (1 << (bits - 1)) - 1;
}

#endif
