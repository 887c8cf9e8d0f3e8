/* flattenquant_search.c - one site's choice: by the published rules, or searched by estimated
 * output error.
 *
 * Estimate, on the sample of rows, with rounding errors of different channels taken as
 * uncorrelated:
 *   activation part  sum_c |s W_c|^2 * E (x'_c - Q(x'_c))^2       x' = x / s
 *   weight part      sum_n,c (s W - Q(s W))_nc^2 * E x'_c^2       on 64 rows spread over W
 * both over the output energy sum_c |W_c|^2 E x_c^2.
 *
 * Copies for a given T: a channel's clipping error is convex in its copies, so handing out the
 * extra copies one by one, always where the error falls most, is optimal under the cap. What
 * the cap leaves over goes to channels whose maximum over all tokens (not only the sample) is
 * still clipped.
 * SPDX-License-Identifier: MIT */
#include "quant/flattenquant/flattenquant.h"

#include "base/mem.h"
#include "quant/round.h"
#include "quant/weight_scale.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { N_ALPHAS = 7, N_THRESHOLDS = 16, WEIGHT_ROWS = 64, MAX_COPIES_SEARCHED = 16,
       GAINS_PER_CHANNEL = 16 };

/* Per candidate alpha: everything that evaluating it needs. */
typedef struct candidate {
    double alpha, error, clipped;
    float *smooth, *m, *energy, *square, *sorted; /* [K]: s, max|x'|, |sW_c|^2, E x'^2 */
    uint16_t *copies;                             /* [K] */
    float threshold;
    int64_t n_outliers;
} candidate;

typedef struct search {
    const fl_site_stats *stats;
    const fl_flatten_weight *weights;
    int n_weights, bits, w_bits;
    bool is_unsigned;
    const fl_flatten_options *o;
    fl_flatten_groups groups;
    const float *w_max, *w_energy; /* [K] over all weights of the site */
    double output_energy;
    candidate *candidates;
    float *columns;      /* [K, n_rows] |sample| by channel, rows padded with zeros to whole
                            lanes */
    int n_rows;
    int weight_step;     /* every how many-th row of W is looked at */
    float *w_scratch;    /* [threads, K] */
    int8_t *codes;       /* [threads, K] */
    struct gain *gains;  /* [threads, n_gains] */
    int n_gains;
} search;

typedef struct gain {
    float gain;
    int channel;
} gain;

static int by_falling_gain(const void *a, const void *b)
{
    const gain *x = a, *y = b;
    if (x->gain != y->gain) return x->gain < y->gain ? 1 : -1;
    return x->channel - y->channel;
}

/* Mean of max(x * unit - limit, 0)^2: what clipping at `limit` codes loses, in squared
 * codes. */
static double clip_error(const float *x, int n, float unit, float limit)
{
    float lane[FL_LANES] = {0};
    for (int r = 0; r < n; r += FL_LANES)
        for (int i = 0; i < FL_LANES; i++) {
            const float over = x[r + i] * unit - limit, lost = over > 0 ? over : 0;
            lane[i] += lost * lost;
        }
    return fl__lanes_sum(lane) / n;
}

/* Mean of (x * unit - code)^2 with codes clamped to `limit`. */
static double code_error(const float *x, int n, float unit, float limit)
{
    float lane[FL_LANES] = {0};
    for (int r = 0; r < n; r += FL_LANES)
        for (int i = 0; i < FL_LANES; i++) {
            const float u = x[r + i] * unit, q = fl__round(u), e = u - (q > limit ? limit : q);
            lane[i] += e * e;
        }
    return fl__lanes_sum(lane) / n;
}

/* Codes per unit of x for channel c at threshold T. */
static float codes_per_unit(const search *s, const candidate *c, int channel, float T)
{
    return (float)fl__flatten_qmax(s->bits, s->is_unsigned) / (T * c->smooth[channel]);
}

/* Copies that minimise the clipping error for threshold T under the cap; candidate's copies. */
static void allocate_copies(const search *s, candidate *c, float T, gain *gains)
{
    const int K = s->stats->K;
    const float qmax = (float)fl__flatten_qmax(s->bits, s->is_unsigned);
    int64_t budget = s->o->flatten ? (int64_t)(s->o->max_ratio * K) : 0;
    int n = 0;
    for (int ch = 0; ch < K; ch++) {
        c->copies[ch] = 1;
        if (budget == 0 || c->m[ch] <= T) continue;
        const float *x = s->columns + (size_t)ch * (size_t)s->n_rows;
        const float unit = codes_per_unit(s, c, ch, T);
        const int most = (int)fmin(ceil((double)c->m[ch] / T), MAX_COPIES_SEARCHED);
        double before = clip_error(x, s->n_rows, unit, qmax);
        for (int k = 2; k <= most && n < s->n_gains && before > 0; k++) {
            const double after = clip_error(x, s->n_rows, unit, (float)k * qmax);
            gains[n++] = (gain){(float)((before - after) * c->energy[ch]), ch};
            before = after;
        }
    }
    qsort(gains, (size_t)n, sizeof *gains, by_falling_gain);
    for (int i = 0; i < n && budget > 0 && gains[i].gain > 0; i++, budget--)
        c->copies[gains[i].channel]++;
    for (int ch = 0; ch < K && budget > 0; ch++) {
        const int64_t want = (int64_t)fmin(ceil((double)c->m[ch] / T), 4096) - c->copies[ch];
        const int64_t take = FL_MIN(FL_MAX(want, 0), budget);
        c->copies[ch] = (uint16_t)(c->copies[ch] + take);
        budget -= take;
    }
}

/* Activation part of the estimate for the candidate's threshold and copies. */
static double activation_error(const search *s, const candidate *c, float T)
{
    const int qmax = fl__flatten_qmax(s->bits, s->is_unsigned);
    const double scale = (double)T / qmax;
    double error = 0;
    for (int ch = 0; ch < s->stats->K; ch++)
        error += code_error(s->columns + (size_t)ch * (size_t)s->n_rows, s->n_rows,
                            codes_per_unit(s, c, ch, T), (float)(c->copies[ch] * qmax)) *
                 c->energy[ch];
    return error * scale * scale;
}

/* Share of the sampled values that the choice clips. */
static double clipped_share(const search *s, const candidate *c)
{
    const int qmax = fl__flatten_qmax(s->bits, s->is_unsigned);
    int64_t n = 0;
    for (int ch = 0; ch < s->stats->K; ch++) {
        const float *x = s->columns + (size_t)ch * (size_t)s->n_rows;
        const float unit = codes_per_unit(s, c, ch, c->threshold);
        for (int r = 0; r < s->n_rows; r++)
            n += fl__round(x[r] * unit) > (float)(c->copies[ch] * qmax);
    }
    return (double)n / ((double)s->n_rows * s->stats->K);
}

static double weight_error(const search *s, const candidate *c, float *row, int8_t *codes)
{
    const int K = s->stats->K;
    const fl_exec inline_exec = {0, 1};
    double sum = 0;
    if (s->w_bits == 16) return 0;
    for (int i = 0; i < s->n_weights; i++)
        for (int n = 0; n < s->weights[i].N; n += s->weight_step) {
            const float *w = s->weights[i].w + (size_t)n * (size_t)K;
            float scale;
            for (int k = 0; k < K; k++) row[k] = w[k] * c->smooth[k];
            fl__weight_scale_find(&inline_exec, &scale, row, 1, K, s->w_bits, false, true,
                                  c->square);
            sum += fl__weight_round(&inline_exec, codes, row, &scale, 0, 1, K, s->w_bits,
                                    c->square);
        }
    return sum * s->weight_step;
}

static void search_threshold(const search *s, candidate *c, gain *gains, double *best)
{
    const size_t K = (size_t)s->stats->K;
    double top = 0, mean = 0;
    float best_T = 0;
    for (size_t ch = 0; ch < K; ch++) {
        top = fmax(top, c->m[ch]);
        mean += c->m[ch] / (double)K;
    }
    if (!(top > 0)) top = mean = 1;
    const double lowest = fmin(0.25 * mean, top);
    *best = INFINITY;
    for (int i = 0; i <= N_THRESHOLDS; i++) {
        const float T = i < N_THRESHOLDS
                            ? (float)(lowest * pow(top / lowest, i / (N_THRESHOLDS - 1.0)))
                            : best_T;
        allocate_copies(s, c, T, gains);
        if (i == N_THRESHOLDS) {
            c->threshold = T; /* the winner again, to leave its copies */
            *best = activation_error(s, c, T);
            return;
        }
        const double e = activation_error(s, c, T);
        if (e < *best) {
            *best = e;
            best_T = T;
        }
    }
}

static void evaluate(void *arg, int64_t item, int thread)
{
    const search *s = arg;
    candidate *c = &s->candidates[item];
    const size_t K = (size_t)s->stats->K;
    double act;
    if (s->o->smooth) /* m and energy are free until below */
        fl__flatten_smooth(c->smooth, s->stats->absmax, s->w_max, (int)K, s->groups, c->alpha,
                           c->m, c->energy);
    else
        for (size_t ch = 0; ch < K; ch++) c->smooth[ch] = 1;
    for (size_t ch = 0; ch < K; ch++) {
        c->m[ch] = s->stats->absmax[ch] / c->smooth[ch];
        c->energy[ch] = s->w_energy[ch] * c->smooth[ch] * c->smooth[ch];
        c->square[ch] = s->stats->mean_square[ch] / (c->smooth[ch] * c->smooth[ch]);
    }
    c->threshold = fl__flatten_rule(c->copies, c->m, (int)K, s->o, &c->n_outliers, c->sorted);
    if (s->o->beta >= 0)
        act = activation_error(s, c, c->threshold);
    else
        search_threshold(s, c, s->gains + (size_t)thread * (size_t)s->n_gains, &act);
    const double weight =
        weight_error(s, c, s->w_scratch + (size_t)thread * K, s->codes + (size_t)thread * K);
    c->clipped = clipped_share(s, c);
    c->error = (act + weight) / s->output_energy;
}

/* ---- set-up ------------------------------------------------------------------------------ */

static void weight_columns(float *w_max, float *energy, const fl_flatten_weight *weights, int n,
                           int K)
{
    memset(w_max, 0, (size_t)K * sizeof *w_max);
    memset(energy, 0, (size_t)K * sizeof *energy);
    for (int i = 0; i < n; i++)
        for (int r = 0; r < weights[i].N; r++) {
            const float *w = weights[i].w + (size_t)r * (size_t)K;
            for (int c = 0; c < K; c++) {
                w_max[c] = FL_MAX(w_max[c], fabsf(w[c]));
                energy[c] += w[c] * w[c];
            }
        }
}

/* |sample| with a channel's values next to each other. */
static bool transpose_sample(search *s)
{
    const size_t K = (size_t)s->stats->K, S = (size_t)s->stats->n_sample;
    s->n_rows = (s->stats->n_sample + FL_LANES - 1) / FL_LANES * FL_LANES;
    s->columns = fl__calloc(K * (size_t)s->n_rows, sizeof(float));
    for (size_t r = 0; s->columns && r < S; r++)
        for (size_t c = 0; c < K; c++)
            s->columns[c * (size_t)s->n_rows + r] = fabsf(s->stats->sample[r * K + c]);
    return s->columns != NULL;
}

static int weight_step(const fl_flatten_weight *weights, int n)
{
    int rows = 0;
    for (int i = 0; i < n; i++) rows += weights[i].N;
    return FL_MAX(rows / WEIGHT_ROWS, 1);
}

static bool candidate_init(candidate *c, int K)
{
    const size_t n = (size_t)K;
    return (c->smooth = fl__alloc(n, sizeof(float))) && (c->m = fl__alloc(n, sizeof(float))) &&
           (c->energy = fl__alloc(n, sizeof(float))) &&
           (c->square = fl__alloc(n, sizeof(float))) &&
           (c->sorted = fl__alloc(n, sizeof(float))) &&
           (c->copies = fl__alloc(n, sizeof(uint16_t)));
}

static void candidate_fini(candidate *c)
{
    fl__free(&c->smooth);
    fl__free(&c->m);
    fl__free(&c->energy);
    fl__free(&c->square);
    fl__free(&c->sorted);
    fl__free(&c->copies);
}

static double effective_bits(const candidate *c, int K, int bits, bool is_unsigned)
{
    const int qmax = fl__flatten_qmax(bits, is_unsigned);
    double sum = 0;
    for (int ch = 0; ch < K; ch++)
        sum += log2((is_unsigned ? 1.0 : 2.0) * qmax * c->copies[ch] + 1);
    return sum / K;
}

static void take(fl_flatten_choice *choice, candidate *c, const search *s)
{
    const int K = s->stats->K;
    int64_t copies = 0;
    for (int ch = 0; ch < K; ch++) copies += c->copies[ch];
    *choice = (fl_flatten_choice){
        .bits = s->bits,
        .is_unsigned = s->is_unsigned,
        .alpha = s->o->smooth ? c->alpha : 0,
        .smooth = c->smooth,
        .copies = c->copies,
        .threshold = c->threshold,
        .scale = c->threshold / (float)fl__flatten_qmax(s->bits, s->is_unsigned),
        .ratio = (double)(copies - K) / K,
        .effective_bits = effective_bits(c, K, s->bits, s->is_unsigned),
        .error = c->error,
        .clipped = c->clipped,
        .n_outliers = c->n_outliers,
    };
    c->smooth = NULL; /* ownership moved */
    c->copies = NULL;
}

void fl__flatten_choice_fini(fl_flatten_choice *choice)
{
    fl__free(&choice->smooth);
    fl__free(&choice->copies);
}

static int n_candidates(const fl_flatten_options *o)
{
    return o->smooth && o->alpha < 0 ? N_ALPHAS : 1;
}

size_t fl__flatten_choose_bytes(int K, int n_sample, int n_threads, const fl_flatten_options *o)
{
    const size_t per_candidate = 5 * sizeof(float) + sizeof(uint16_t);
    const size_t per_thread = sizeof(float) + 1 + GAINS_PER_CHANNEL * sizeof(gain);
    const size_t rows = ((size_t)n_sample + FL_LANES - 1) / FL_LANES * FL_LANES;
    return (size_t)K *
           (2 * sizeof(float) + rows * sizeof(float) + per_candidate * (size_t)n_candidates(o) +
            per_thread * (size_t)n_threads);
}

double fl__flatten_choose_work(int K, int N, int n_sample, const fl_flatten_options *o)
{
    const double thresholds = o->beta < 0 ? N_THRESHOLDS + 1 : 1;
    const double weight_rows = FL_MIN(N, WEIGHT_ROWS), scales = 33; /* grid of weight_scale.c,
                                                                       rounding */
    return (double)K * n_candidates(o) * (1.5 * thresholds * n_sample + weight_rows * scales);
}

fl_status fl__flatten_choose(fl_flatten_choice *choice, const fl_exec *ex,
                             const fl_site_stats *stats, const fl_flatten_weight *weights,
                             int n_weights, fl_flatten_groups groups, int bits, int w_bits,
                             bool is_unsigned, const fl_flatten_options *o, fl_err *err)
{
    const size_t K = (size_t)stats->K, threads = (size_t)ex->n_threads;
    const int n = n_candidates(o);
    candidate candidates[N_ALPHAS] = {0};
    float *w_max = fl__alloc(K, sizeof *w_max), *w_energy = fl__alloc(K, sizeof *w_energy);
    search s = {.stats = stats,
                .weights = weights,
                .n_weights = n_weights,
                .bits = bits,
                .w_bits = w_bits,
                .is_unsigned = is_unsigned,
                .o = o,
                .groups = groups,
                .w_max = w_max,
                .w_energy = w_energy,
                .candidates = candidates,
                .n_gains = GAINS_PER_CHANNEL * stats->K};
    fl_status st = FL_OK;

    *choice = (fl_flatten_choice){0};
    s.weight_step = weight_step(weights, n_weights);
    s.w_scratch = fl__alloc(threads * K, sizeof(float));
    s.codes = fl__alloc(threads * K, 1);
    s.gains = fl__alloc(threads * (size_t)s.n_gains, sizeof *s.gains);
    bool ok = transpose_sample(&s) && w_max && w_energy && s.w_scratch && s.codes && s.gains;
    for (int i = 0; i < n; i++) {
        ok = ok && candidate_init(&candidates[i], stats->K);
        candidates[i].alpha = n > 1 ? 0.25 + 0.1 * i : o->alpha < 0 ? 0.5 : o->alpha;
    }
    if (!ok) {
        st = fl__fail_nomem(err, "search of smoothing and threshold", K * 64);
        goto out;
    }
    weight_columns(w_max, w_energy, weights, n_weights, stats->K);
    for (size_t c = 0; c < K; c++)
        s.output_energy += (double)w_energy[c] * stats->mean_square[c];
    if (!(s.output_energy > 0)) s.output_energy = 1;
    fl__parallel_for(ex, n, evaluate, &s);
    int best = 0;
    for (int i = 1; i < n; i++)
        if (candidates[i].error < candidates[best].error) best = i;
    take(choice, &candidates[best], &s);
out:
    for (int i = 0; i < n; i++) candidate_fini(&candidates[i]);
    fl__free(&w_max);
    fl__free(&w_energy);
    fl__free(&s.columns);
    fl__free(&s.w_scratch);
    fl__free(&s.codes);
    fl__free(&s.gains);
    return st;
}
