/* sampling.c - penalty, top-k by heap, top-p, min-p, temperature, draw.
 *
 * Top-k keeps the k best candidates in a heap whose root is the worst of them, then sorts that
 * heap: O(n_vocab log k) without memory beyond the candidates. Without top-k the same code
 * sorts everything. Probabilities are float64 and summed in rank order.
 * SPDX-License-Identifier: MIT */
#include "text/sampling.h"

#include "base/mem.h"
#include "base/rng.h"

#include <math.h>

static fl_status check_options(const fl_sample_options *o, fl_err *err)
{
    const struct {
        const char *name;
        double value;
        bool ok; /* false for NaN too */
        const char *range;
    } checks[] = {
        {"temperature", o->temperature, o->temperature >= 0.0f && o->temperature <= 100.0f,
         "0 (greedy) to 100"},
        {"top-k", o->top_k, o->top_k >= 0, "0 (off) or more"},
        {"top-p", o->top_p, o->top_p > 0.0f && o->top_p <= 1.0f, "above 0, at most 1 (off)"},
        {"min-p", o->min_p, o->min_p >= 0.0f && o->min_p <= 1.0f, "0 (off) to 1"},
        {"repeat penalty", o->repeat_penalty,
         o->repeat_penalty > 0.0f && o->repeat_penalty <= 100.0f, "above 0 (1: off) to 100"},
    };
    for (size_t i = 0; i < FL_COUNT(checks); i++)
        if (!checks[i].ok)
            return fl__fail(err, FL_E_USAGE,
                            "bad sampling option: %s: %g is out of range; use %s",
                            checks[i].name, checks[i].value, checks[i].range);
    return FL_OK;
}

fl_status fl__sampler_init(fl_sampler *s, const fl_sample_options *options, int n_vocab,
                           fl_err *err)
{
    *s = (fl_sampler){.options = *options, .n_vocab = n_vocab};
    const fl_status st = check_options(options, err);
    if (st != FL_OK) return st;
    s->candidates = fl__alloc((size_t)n_vocab, sizeof *s->candidates);
    if (!s->candidates)
        return fl__fail_nomem(err, "sampling candidates",
                              (size_t)n_vocab * sizeof *s->candidates);
    return FL_OK;
}

void fl__sampler_fini(fl_sampler *s)
{
    fl__free(&s->candidates);
}

/* Ranking: higher logit first, lower id among equals. */
static bool ranks_before(const fl_candidate *a, const fl_candidate *b)
{
    return a->logit != b->logit ? a->logit > b->logit : a->id < b->id;
}

static void swap(fl_candidate *a, fl_candidate *b)
{
    const fl_candidate t = *a;
    *a = *b;
    *b = t;
}

/* Restores the heap below node i: no child may rank behind its parent, the root ranks last. */
static void sift_down(fl_candidate *heap, int n, int i)
{
    for (;;) {
        int last = i;
        for (int child = 2 * i + 1; child <= 2 * i + 2 && child < n; child++)
            if (ranks_before(&heap[last], &heap[child])) last = child;
        if (last == i) return;
        swap(&heap[i], &heap[last]);
        i = last;
    }
}

/* Moves the k first-ranked of n candidates to the front, in rank order. */
static void select_top(fl_candidate *c, int n, int k)
{
    for (int i = k / 2 - 1; i >= 0; i--) sift_down(c, k, i);
    for (int i = k; i < n; i++) {
        if (!ranks_before(&c[i], &c[0])) continue;
        swap(&c[i], &c[0]);
        sift_down(c, k, 0);
    }
    for (int end = k - 1; end > 0; end--) {
        swap(&c[0], &c[end]);
        sift_down(c, end, 0);
    }
}

/* Penalises each token seen recently once: a positive logit shrinks, a negative one grows. */
static void penalise(fl_candidate *c, int n_vocab, float penalty, const int32_t *recent,
                     size_t n_recent)
{
    for (size_t i = 0; i < n_recent; i++) {
        bool seen = recent[i] < 0 || recent[i] >= n_vocab;
        for (size_t j = 0; j < i && !seen; j++) seen = recent[j] == recent[i];
        if (seen) continue;
        float *logit = &c[recent[i]].logit;
        *logit = *logit > 0.0f ? *logit / penalty : *logit * penalty;
    }
}

/* Smallest front whose probability reaches top_p, then those with at least min_p of the
 * first's. */
static int cut_tail(fl_candidate *c, int n, float top_p, float min_p)
{
    if (top_p < 1.0f) {
        double total = 0, sum = 0;
        for (int i = 0; i < n; i++) {
            c[i].weight = exp((double)c[i].logit - c[0].logit);
            total += c[i].weight;
        }
        int kept = 0;
        while (kept < n && sum < top_p * total) sum += c[kept++].weight;
        n = kept;
    }
    if (min_p > 0.0f) {
        const double least = c[0].logit + log(min_p);
        while (n > 1 && c[n - 1].logit < least) n--;
    }
    return n;
}

static int32_t draw(fl_candidate *c, int n, double temperature, double unit)
{
    double total = 0, sum = 0;
    for (int i = 0; i < n; i++) {
        c[i].weight = exp(((double)c[i].logit - c[0].logit) / temperature);
        total += c[i].weight;
    }
    for (int i = 0; i < n; i++) {
        sum += c[i].weight;
        if (unit * total < sum) return c[i].id;
    }
    return c[0].id; /* unit < 1, so only reached if rounding ate the whole tail */
}

int32_t fl__sampler_pick(fl_sampler *s, const float *logits, const int32_t *recent,
                         size_t n_recent, int position)
{
    const fl_sample_options *o = &s->options;
    fl_candidate *c = s->candidates;
    bool any = false;
    for (int i = 0; i < s->n_vocab; i++) {
        if (isnan(logits[i]) || logits[i] == INFINITY) return -1;
        any |= logits[i] != -INFINITY;
        c[i] = (fl_candidate){.logit = logits[i], .id = i};
    }
    if (!any) return -1;
    if (o->repeat_penalty != 1.0f) {
        const size_t n = FL_MIN(n_recent, (size_t)FL_REPEAT_WINDOW);
        penalise(c, s->n_vocab, o->repeat_penalty, recent + (n_recent - n), n);
    }
    if (o->temperature == 0.0f) {
        select_top(c, s->n_vocab, 1);
        return c[0].id;
    }
    int n = o->top_k > 0 ? FL_MIN(o->top_k, s->n_vocab) : s->n_vocab;
    select_top(c, s->n_vocab, n);
    n = cut_tail(c, n, o->top_p, o->min_p);
    fl_rng rng = fl__rng_init(o->seed, position, "sample");
    return draw(c, n, o->temperature, fl__rng_unit(&rng));
}
