/* adamw.c - AdamW; parameters are few, so it runs on the calling thread.
 * SPDX-License-Identifier: MIT */
#include "train/adamw.h"

#include "base/mem.h"

#include <math.h>
#include <string.h>

struct fl_adamw {
    fl_adamw_options o;
    fl_adamw_group *groups; /* [n_groups] */
    int n_groups;
    size_t n; /* parameters of all groups */
    int64_t n_done;
    float *m, *v, *best; /* [n] moments, best parameters, groups one after the other */
    double best_value;
    bool has_best;
};

fl_adamw_options fl__adamw_defaults(int64_t n_steps)
{
    return (fl_adamw_options){.rate = 5e-3,
                              .rate_floor = 5e-6,
                              .beta1 = 0.9,
                              .beta2 = 0.999,
                              .eps = 1e-8,
                              .weight_decay = 0.01,
                              .n_steps = n_steps};
}

fl_status fl__adamw_new(fl_adamw **out, const fl_adamw_group *groups, int n_groups,
                        const fl_adamw_options *o, fl_err *err)
{
    fl_adamw *a = fl__calloc(1, sizeof *a);
    *out = NULL;
    if (!a) return fl__fail_nomem(err, "AdamW", sizeof *a);
    a->o = *o;
    a->n_groups = n_groups;
    for (int i = 0; i < n_groups; i++) a->n += groups[i].n;
    a->groups = fl__alloc((size_t)n_groups, sizeof *a->groups);
    a->m = fl__calloc(a->n, sizeof *a->m);
    a->v = fl__calloc(a->n, sizeof *a->v);
    a->best = fl__alloc(a->n, sizeof *a->best);
    if (!a->groups || !a->m || !a->v || !a->best) {
        const size_t n_bytes = 3 * a->n * sizeof(float);
        fl__adamw_free(&a);
        return fl__fail_nomem(err, "AdamW's moments", n_bytes);
    }
    if (n_groups) memcpy(a->groups, groups, (size_t)n_groups * sizeof *groups);
    *out = a;
    return FL_OK;
}

void fl__adamw_free(fl_adamw **adamw)
{
    fl_adamw *a = *adamw;
    if (!a) return;
    fl__free(&a->groups);
    fl__free(&a->m);
    fl__free(&a->v);
    fl__free(&a->best);
    fl__free(adamw);
}

double fl__adamw_rate(const fl_adamw_options *o, double multiplier, int64_t t)
{
    const double top = o->rate * multiplier;
    if (t < o->n_warmup) return top * (double)(t + 1) / (double)(o->n_warmup + 1);
    const double span = (double)FL_MAX(o->n_steps - o->n_warmup, 1);
    const double at = FL_MIN((double)(t - o->n_warmup) / span, 1.0);
    return o->rate_floor + (top - o->rate_floor) * 0.5 * (1 + cos(3.14159265358979323846 * at));
}

int64_t fl__adamw_n_done(const fl_adamw *adamw)
{
    return adamw->n_done;
}

static bool is_finite(const float *g, size_t n)
{
    float sum = 0; /* of zeros, or NaN */
    for (size_t i = 0; i < n; i++) sum += g[i] * 0;
    return sum == 0;
}

static fl_status check(const fl_adamw *a, double loss, fl_err *err)
{
    const long long step = (long long)a->n_done;
    if (!isfinite(loss))
        return fl__fail(err, FL_E_FAIL,
                        "training: step %lld: loss not finite; use a smaller rate", step);
    for (int i = 0; i < a->n_groups; i++)
        if (!is_finite(a->groups[i].g, a->groups[i].n))
            return fl__fail(err, FL_E_FAIL,
                            "training: step %lld: gradient of %s not finite; use a smaller "
                            "rate", step, a->groups[i].name);
    return FL_OK;
}

static void update(const fl_adamw *a, const fl_adamw_group *group, float *m, float *v)
{
    const fl_adamw_options *o = &a->o;
    const double t = (double)(a->n_done + 1);
    const double rate = fl__adamw_rate(o, group->rate_multiplier, a->n_done);
    const float b1 = (float)o->beta1, b2 = (float)o->beta2;
    const float c1 = (float)(1 - o->beta1), c2 = (float)(1 - o->beta2);
    const float keep = (float)(1 - rate * o->weight_decay), eps = (float)o->eps;
    const float step = (float)(rate / (1 - pow(o->beta1, t)));
    const float root = (float)(1 / sqrt(1 - pow(o->beta2, t)));
    float *p = group->p;
    const float *g = group->g;
    for (size_t i = 0; i < group->n; i++) {
        m[i] = b1 * m[i] + c1 * g[i];
        v[i] = b2 * v[i] + c2 * (g[i] * g[i]);
        p[i] = p[i] * keep - step * m[i] / (sqrtf(v[i]) * root + eps);
    }
}

fl_status fl__adamw_step(fl_adamw *adamw, double loss, fl_err *err)
{
    const fl_status st = check(adamw, loss, err);
    if (st) return st;
    size_t at = 0;
    for (int i = 0; i < adamw->n_groups; i++) {
        update(adamw, &adamw->groups[i], adamw->m + at, adamw->v + at);
        at += adamw->groups[i].n;
    }
    adamw->n_done++;
    return FL_OK;
}

bool fl__adamw_keep_best(fl_adamw *adamw, double value)
{
    if (!(value < (adamw->has_best ? adamw->best_value : INFINITY))) return false;
    size_t at = 0;
    for (int i = 0; i < adamw->n_groups; i++) {
        const fl_adamw_group *group = &adamw->groups[i];
        if (group->n) memcpy(adamw->best + at, group->p, group->n * sizeof(float));
        at += group->n;
    }
    adamw->best_value = value;
    adamw->has_best = true;
    return true;
}

void fl__adamw_restore_best(fl_adamw *adamw)
{
    size_t at = 0;
    for (int i = 0; adamw->has_best && i < adamw->n_groups; i++) {
        const fl_adamw_group *group = &adamw->groups[i];
        if (group->n) memcpy(group->p, adamw->best + at, group->n * sizeof(float));
        at += group->n;
    }
}

/* ---- state ------------------------------------------------------------------------------- */

size_t fl__adamw_count(const fl_adamw *adamw)
{
    return adamw->n;
}

void fl__adamw_get(const fl_adamw *a, fl_adamw_state *to)
{
    const size_t bytes = a->n * sizeof(float);
    size_t at = 0;
    for (int i = 0; i < a->n_groups; i++) {
        if (a->groups[i].n) memcpy(to->p + at, a->groups[i].p, a->groups[i].n * sizeof(float));
        at += a->groups[i].n;
    }
    memcpy(to->m, a->m, bytes);
    memcpy(to->v, a->v, bytes);
    memcpy(to->best, a->has_best ? a->best : to->p, bytes);
    to->n_done = a->n_done;
    to->best_value = a->has_best ? a->best_value : 0;
    to->has_best = a->has_best;
}

void fl__adamw_set(fl_adamw *a, const fl_adamw_state *from)
{
    const size_t bytes = a->n * sizeof(float);
    size_t at = 0;
    for (int i = 0; i < a->n_groups; i++) {
        if (a->groups[i].n)
            memcpy(a->groups[i].p, from->p + at, a->groups[i].n * sizeof(float));
        at += a->groups[i].n;
    }
    memcpy(a->m, from->m, bytes);
    memcpy(a->v, from->v, bytes);
    memcpy(a->best, from->best, bytes);
    a->n_done = from->n_done;
    a->best_value = from->best_value;
    a->has_best = from->has_best;
}
