/* test_plan.c - a plan survives the way through plan.json bit for bit, and broken plans are
 * refused.
 * SPDX-License-Identifier: MIT */
#include "quant/plan.h"

#include "base/mem.h"
#include "base/rng.h"
#include "support/fl_test.h"

#include <math.h>
#include <string.h>

static const fl_model_config cfg = {.family = FL_FAMILY_LLAMA,
                                    .n_layers = 2,
                                    .hidden_size = 8,
                                    .n_heads = 2,
                                    .n_kv_heads = 1,
                                    .head_dim = 4,
                                    .ffn_size = 12,
                                    .vocab_size = 16,
                                    .n_positions = 16,
                                    .embed_size = 8};
enum { N_SITES = 2 * FL_N_SITES };
static const int widths[FL_N_SITES] = {8, 8, 8, 12};

static double any_number(fl_rng *rng)
{
    return ldexp(fl__rng_normal(rng), (int)fl__rng_below(rng, 200) - 100);
}

/* Numbers with all their bits, some not computed, vectors there or not. */
static fl_plan *make_plan(void)
{
    fl_plan *plan;
    fl_rng rng = fl__rng_init(1, 0, "plan");
    assert_int_equal(fl__plan_new(&plan, 2, NULL), FL_OK);
    for (int i = 0; i < N_SITES; i++) {
        fl_site_plan *p = &plan->sites[i];
        const int n = widths[i % FL_N_SITES];
        *p = (fl_site_plan){.act = (fl_act_kind)(i % 3),
                            .w_bits = i % 2 ? 8 : 4,
                            .a_bits = i % 3 ? 8 : 16,
                            .is_unsigned = i == 4,
                            .n_in = n,
                            .n_outliers = i * 1000003};
        p->scale = i % 3 == FL_ACT_STATIC ? 0.1f / 3 : NAN;
        p->alpha = any_number(&rng);
        p->threshold = 1.0 / 3;
        p->ratio = 0.1;
        p->effective_bits = 4.0000000000000009;
        p->error = any_number(&rng);
        p->clipped = 0;
        p->d4 = i % 2 ? NAN : any_number(&rng);
        p->d8 = 5e-324;
        p->cost4 = 1.7976931348623157e308;
        p->smooth = i % 4 == 1 ? NULL : fl__alloc((size_t)n, sizeof *p->smooth);
        p->copies = i % 4 == 2 ? NULL : fl__alloc((size_t)n, sizeof *p->copies);
        for (int c = 0; c < n; c++) {
            if (p->smooth) p->smooth[c] = (float)fabs(any_number(&rng)) + 1e-30f;
            if (p->copies) p->copies[c] = (uint16_t)(1 + fl__rng_below(&rng, 4096));
        }
    }
    return plan;
}

static void check_number(double a, double b)
{
    assert_true(isnan(a) ? isnan(b) : a == b);
}

static void check_same(const fl_site_plan *a, const fl_site_plan *b)
{
    assert_true(a->act == b->act && a->w_bits == b->w_bits && a->a_bits == b->a_bits);
    assert_true(a->is_unsigned == b->is_unsigned && a->n_in == b->n_in);
    assert_true(a->n_outliers == b->n_outliers);
    check_number((double)a->scale, (double)b->scale);
    check_number(a->alpha, b->alpha);
    check_number(a->threshold, b->threshold);
    check_number(a->ratio, b->ratio);
    check_number(a->effective_bits, b->effective_bits);
    check_number(a->error, b->error);
    check_number(a->clipped, b->clipped);
    check_number(a->d4, b->d4);
    check_number(a->d8, b->d8);
    check_number(a->cost4, b->cost4);
    assert_true(!a->smooth == !b->smooth && !a->copies == !b->copies);
    if (a->smooth) assert_memory_equal(a->smooth, b->smooth, sizeof(float) * (size_t)a->n_in);
    if (a->copies)
        assert_memory_equal(a->copies, b->copies, sizeof(uint16_t) * (size_t)a->n_in);
}

static void json_keeps_every_bit(void **state)
{
    (void)state;
    fl_plan *plan = make_plan(), *again;
    json_t *root = fl__plan_to_json(plan), *parsed;
    char *text = fl__json_dump(root, 1);
    assert_int_equal(fl__json_parse(&parsed, text, strlen(text), "plan.json", NULL), FL_OK);
    fl_err err = {""};
    if (fl__plan_from_json(&again, parsed, &cfg, "plan.json", &err)) fail_msg("%s", err.text);
    assert_int_equal(again->n_layers, 2);
    for (int i = 0; i < N_SITES; i++) check_same(&plan->sites[i], &again->sites[i]);
    fl__plan_free(&plan);
    fl__plan_free(&again);
    json_decref(root);
    json_decref(parsed);
    fl__free(&text);
}

static void report_leaves_out_the_vectors(void **state)
{
    (void)state;
    fl_plan *plan = make_plan();
    json_t *o = fl__site_plan_report(&plan->sites[1], 0, FL_SITE_O);
    assert_null(json_object_get(o, "smooth"));
    assert_string_equal(json_string_value(json_object_get(o, "site")), "o");
    assert_string_equal(json_string_value(json_object_get(o, "activation")), "static");
    assert_true(json_is_null(json_object_get(o, "d4"))); /* not computed */
    json_decref(o);
    fl__plan_free(&plan);
}

/* ---- broken plans ------------------------------------------------------------------------ */

typedef void damage_fn(json_t *site, json_t *sites);

static void short_vector(json_t *site, json_t *sites)
{
    (void)sites;
    (void)json_array_remove(json_object_get(site, "smooth"), 0);
}

static void short_copies(json_t *site, json_t *sites)
{
    (void)sites;
    (void)json_array_remove(json_object_get(site, "copies"), 0);
}

static void no_copies(json_t *site, json_t *sites)
{
    (void)sites;
    (void)json_array_set_new(json_object_get(site, "copies"), 3, json_integer(0));
}

static void too_many_copies(json_t *site, json_t *sites)
{
    (void)sites;
    (void)json_array_set_new(json_object_get(site, "copies"), 3, json_integer(4097));
}

static void text_for_a_factor(json_t *site, json_t *sites)
{
    (void)sites;
    (void)json_array_set_new(json_object_get(site, "smooth"), 3, json_string("1"));
}

static void zero_factor(json_t *site, json_t *sites)
{
    (void)sites;
    (void)json_array_set_new(json_object_get(site, "smooth"), 3, json_integer(0));
}

static void unknown_activation(json_t *site, json_t *sites)
{
    (void)sites;
    (void)json_object_set_new(site, "activation", json_string("sideways"));
}

static void odd_bits(json_t *site, json_t *sites)
{
    (void)sites;
    (void)json_object_set_new(site, "w_bits", json_integer(5));
}

static void odd_activation_bits(json_t *site, json_t *sites)
{
    (void)sites;
    (void)json_object_set_new(site, "a_bits", json_integer(7));
}

static void static_without_scale(json_t *site, json_t *sites)
{
    (void)json_object_set_new(json_array_get(sites, FL_SITE_O), "scale", json_null());
    (void)site;
}

static void no_bits(json_t *site, json_t *sites)
{
    (void)sites;
    (void)json_object_del(site, "w_bits");
}

static void missing_site(json_t *site, json_t *sites)
{
    (void)site;
    (void)json_array_remove(sites, 7);
}

static void site_that_is_no_object(json_t *site, json_t *sites)
{
    (void)site;
    (void)json_array_set_new(sites, 2, json_integer(1));
}

static void swapped_sites(json_t *site, json_t *sites)
{
    json_t *first = json_incref(site);
    (void)json_array_remove(sites, 0);
    (void)json_array_append_new(sites, first);
}

static void broken_plans_are_refused(void **state)
{
    (void)state;
    static damage_fn *const damages[] = {short_vector,
                                         short_copies,
                                         no_copies,
                                         too_many_copies,
                                         text_for_a_factor,
                                         zero_factor,
                                         no_bits,
                                         odd_bits,
                                         odd_activation_bits,
                                         unknown_activation,
                                         static_without_scale,
                                         missing_site,
                                         swapped_sites,
                                         site_that_is_no_object};
    for (size_t i = 0; i < FL_COUNT(damages); i++) {
        fl_plan *plan = make_plan(), *again;
        fl_err err = {""};
        json_t *root = fl__plan_to_json(plan), *sites = json_object_get(root, "sites");
        damages[i](json_array_get(sites, 0), sites);
        const size_t before = fl__mem_get().now_bytes;
        if (fl__plan_from_json(&again, root, &cfg, "plan.json", &err) != FL_E_INPUT)
            fail_msg("damage %zu was not seen", i);
        assert_null(again);
        assert_non_null(strstr(err.text, "plan.json"));
        assert_int_equal(fl__mem_get().now_bytes, before);
        json_decref(root);
        fl__plan_free(&plan);
    }
    fl_plan *again;
    assert_int_equal(fl__plan_from_json(&again, NULL, &cfg, "plan.json", NULL), FL_E_INPUT);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(json_keeps_every_bit),
    cmocka_unit_test(report_leaves_out_the_vectors),
    cmocka_unit_test(broken_plans_are_refused),
};
FL_TEST_MAIN(tests)
