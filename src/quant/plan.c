/* plan.c - plans in memory and as JSON. SPDX-License-Identifier: MIT */
#include "quant/plan.h"

#include "base/mem.h"
#include "model/quantized.h"

#include <limits.h>
#include <math.h>
#include <string.h>

fl_status fl__plan_new(fl_plan **out, int n_layers, fl_err *err)
{
    fl_plan *plan = fl__calloc(1, sizeof *plan);
    *out = NULL;
    if (plan) {
        plan->n_layers = n_layers;
        plan->sites = fl__calloc((size_t)n_layers * FL_N_SITES, sizeof *plan->sites);
    }
    if (!plan || !plan->sites) {
        fl__plan_free(&plan);
        return fl__fail_nomem(err, "plan",
                              (size_t)n_layers * FL_N_SITES * sizeof(fl_site_plan));
    }
    *out = plan;
    return FL_OK;
}

void fl__site_plan_fini(fl_site_plan *p)
{
    fl__free(&p->smooth);
    fl__free(&p->copies);
}

void fl__plan_free(fl_plan **plan)
{
    if (!*plan) return;
    for (int i = 0; (*plan)->sites && i < (*plan)->n_layers * FL_N_SITES; i++)
        fl__site_plan_fini(&(*plan)->sites[i]);
    fl__free(&(*plan)->sites);
    fl__free(plan);
}

/* ---- to JSON ----------------------------------------------------------------------------- */

/* JSON has no NaN: not computed is null. */
static json_t *number(double x)
{
    return isfinite(x) ? json_real(x) : json_null();
}

json_t *fl__site_plan_report(const fl_site_plan *p, int layer, int site)
{
    return json_pack(
        "{s:i,s:s,s:s,s:i,s:i,s:b,s:b,s:o,s:o,s:o,s:o,s:o,s:o,s:o,s:o,s:o,s:o,s:I}", "layer",
        layer, "site", fl__site_names[site], "activation", fl__act_names[p->act], "w_bits",
        p->w_bits, "a_bits", p->a_bits, "unsigned", p->is_unsigned, "asymmetric", p->asymmetric,
        "alpha", number(p->alpha), "threshold", number(p->threshold), "scale",
        number(p->act == FL_ACT_STATIC ? p->scale : NAN), "flatten_ratio", number(p->ratio),
        "effective_bits", number(p->effective_bits), "error_estimate", number(p->error),
        "clipped", number(p->clipped), "d4", number(p->d4), "d8", number(p->d8), "cost4",
        number(p->cost4), "outlier_channels", (json_int_t)p->n_outliers);
}

static int add_vectors(json_t *o, const fl_site_plan *p)
{
    json_t *smooth = json_array(), *copies = json_array();
    int bad = !smooth || !copies;
    for (int c = 0; !bad && p->smooth && c < p->n_in; c++)
        bad |= json_array_append_new(smooth, json_real((double)p->smooth[c]));
    for (int c = 0; !bad && p->copies && c < p->n_in; c++)
        bad |= json_array_append_new(copies, json_integer(p->copies[c]));
    bad |= json_object_set_new(o, "smooth", smooth);
    bad |= json_object_set_new(o, "copies", copies);
    return bad;
}

json_t *fl__plan_to_json(const fl_plan *plan)
{
    json_t *root = json_object(), *sites = json_array();
    int bad = !root || json_object_set_new(root, "sites", sites);
    for (int i = 0; !bad && i < plan->n_layers * FL_N_SITES; i++) {
        json_t *o = fl__site_plan_report(&plan->sites[i], i / FL_N_SITES, i % FL_N_SITES);
        bad = !o || add_vectors(o, &plan->sites[i]) || json_array_append_new(sites, o);
    }
    if (!bad) return root;
    json_decref(root);
    return NULL;
}

/* ---- from JSON --------------------------------------------------------------------------- */

static double real_or_nan(const json_t *o, const char *key)
{
    const json_t *v = json_object_get(o, key);
    return json_is_number(v) ? json_number_value(v) : NAN;
}

static fl_status damaged(const char *where, const char *what, double value, fl_err *err)
{
    return fl__fail(err, FL_E_INPUT, "checkpoint: %s: %s of %g; start again without --resume",
                    where, what, value);
}

static fl_status parse_vectors(fl_site_plan *p, const json_t *o, const char *where, fl_err *err)
{
    const json_t *smooth = json_object_get(o, "smooth"), *copies = json_object_get(o, "copies");
    const size_t n = (size_t)p->n_in;
    const size_t n_smooth = json_array_size(smooth), n_copies = json_array_size(copies);
    if ((n_smooth && n_smooth != n) || (n_copies && n_copies != n))
        return fl__fail(err, FL_E_INPUT,
                        "checkpoint: %s: vectors of the wrong length; start again without "
                        "--resume",
                        where);
    p->smooth = n_smooth ? fl__alloc(n, sizeof *p->smooth) : NULL;
    p->copies = n_copies ? fl__alloc(n, sizeof *p->copies) : NULL;
    if ((n_smooth && !p->smooth) || (n_copies && !p->copies))
        return fl__fail_nomem(err, "plan", n * sizeof *p->smooth);
    for (size_t c = 0; c < n_smooth; c++) {
        const double s = json_number_value(json_array_get(smooth, c)); /* 0 when it is none */
        if (!((float)s > 0) || !isfinite((float)s))
            return damaged(where, "a smoothing factor", s, err);
        p->smooth[c] = (float)s;
    }
    for (size_t c = 0; c < n_copies; c++) {
        const json_int_t k = json_integer_value(json_array_get(copies, c));
        if (k < 1 || k > FL_MAX_COPIES)
            return damaged(where, "copies of a channel", (double)k, err);
        p->copies[c] = (uint16_t)k;
    }
    return FL_OK;
}

static int act_of(const char *name)
{
    for (int i = 0; i < 3; i++)
        if (strcmp(name, fl__act_names[i]) == 0) return i;
    return -1;
}

/* Sites stand in the order in which they run. */
static fl_status check_place(const json_t *o, int i, const char *where, fl_err *err)
{
    const char *site;
    int64_t layer;
    fl_status st;
    if ((st = fl__json_get_int(o, "layer", true, 0, INT_MAX, &layer, where, err)) ||
        (st = fl__json_get_string(o, "site", true, &site, where, err)))
        return st;
    if (layer == i / FL_N_SITES && strcmp(site, fl__site_names[i % FL_N_SITES]) == 0)
        return FL_OK;
    return damaged(where, "another site in the place of number", i, err);
}

static fl_status check_bits(const fl_site_plan *p, const char *where, fl_err *err)
{
    const int w = p->w_bits, a = p->a_bits;
    if (w != 3 && w != 4 && w != 8 && w != 16) return damaged(where, "w_bits", w, err);
    if (a != 3 && a != 4 && a != 8 && a != 16) return damaged(where, "a_bits", a, err);
    if (p->act == FL_ACT_STATIC && !(p->scale > 0 && isfinite(p->scale)))
        return damaged(where, "a scale", (double)p->scale, err);
    return FL_OK;
}

static fl_status parse_site(fl_site_plan *p, const json_t *o, int i, const char *where,
                            fl_err *err)
{
    int64_t w_bits, a_bits;
    const char *act;
    fl_status st;
    if ((st = check_place(o, i, where, err)) ||
        (st = fl__json_get_int(o, "w_bits", true, 3, 16, &w_bits, where, err)) ||
        (st = fl__json_get_int(o, "a_bits", true, 3, 16, &a_bits, where, err)) ||
        (st = fl__json_get_bool(o, "unsigned", true, &p->is_unsigned, where, err)) ||
        (st = fl__json_get_bool(o, "asymmetric", true, &p->asymmetric, where, err)) ||
        (st = fl__json_get_int(o, "outlier_channels", true, 0, INT64_MAX, &p->n_outliers, where,
                               err)) ||
        (st = fl__json_get_string(o, "activation", true, &act, where, err)))
        return st;
    if (act_of(act) < 0)
        return fl__fail(err, FL_E_INPUT,
                        "checkpoint: %s: activation \"%s\"; start again without --resume",
                        where, act);
    p->act = (fl_act_kind)act_of(act);
    p->w_bits = (int)w_bits;
    p->a_bits = (int)a_bits;
    p->alpha = real_or_nan(o, "alpha");
    p->threshold = real_or_nan(o, "threshold");
    p->scale = (float)real_or_nan(o, "scale");
    p->ratio = real_or_nan(o, "flatten_ratio");
    p->effective_bits = real_or_nan(o, "effective_bits");
    p->error = real_or_nan(o, "error_estimate");
    p->clipped = real_or_nan(o, "clipped");
    p->d4 = real_or_nan(o, "d4");
    p->d8 = real_or_nan(o, "d8");
    p->cost4 = real_or_nan(o, "cost4");
    st = check_bits(p, where, err);
    return st ? st : parse_vectors(p, o, where, err);
}

fl_status fl__plan_from_json(fl_plan **out, const json_t *root, const fl_model_config *cfg,
                             const char *where, fl_err *err)
{
    const json_t *sites = json_object_get(root, "sites");
    const size_t n = (size_t)cfg->n_layers * FL_N_SITES;
    fl_plan *plan;
    *out = NULL;
    if (json_array_size(sites) != n)
        return fl__fail(err, FL_E_INPUT,
                        "checkpoint: %s: %zu sites, the model has %zu; start again without "
                        "--resume",
                        where, json_array_size(sites), n);
    fl_status st = fl__plan_new(&plan, cfg->n_layers, err);
    for (size_t i = 0; i < n && !st; i++) {
        int linears[FL_SITE_MAX_LINEARS], n_out;
        (void)fl__site_linears(linears, cfg, (int)(i % FL_N_SITES));
        fl__linear_shape(&n_out, &plan->sites[i].n_in, cfg, linears[0]);
        st = parse_site(&plan->sites[i], json_array_get(sites, i), (int)i, where, err);
    }
    if (st)
        fl__plan_free(&plan);
    else
        *out = plan;
    return st;
}
