/* inspect.c - what a model is, from config.json and the headers of its tensors.
 * SPDX-License-Identifier: MIT */
#include "api/engine.h"
#include "base/json.h"
#include "base/mem.h"
#include "model/family.h"
#include "model/quantized.h"

/* {"BF16": {"tensors": N, "bytes": N}, ...} and the totals. */
static int add_tensors(json_t *report, const fl_tensors *set)
{
    json_t *types = json_object();
    json_int_t total = 0;
    int failed = json_object_set_new(report, "dtypes", types); /* consumes types */
    const size_t n = fl__tensors_count(set);
    for (size_t i = 0; i < n && !failed; i++) {
        const fl_tensor_view *t = fl__tensors_at(set, i);
        const char *type = fl__dtype_name(t->dtype);
        if (!json_object_get(types, type))
            failed |= json_object_set_new(types, type,
                                          json_pack("{s:i, s:i}", "tensors", 0, "bytes", 0));
        json_t *row = json_object_get(types, type);
        json_t *tensors = json_object_get(row, "tensors"),
               *bytes = json_object_get(row, "bytes");
        failed |= json_integer_set(tensors, json_integer_value(tensors) + 1);
        failed |= json_integer_set(bytes, json_integer_value(bytes) + (json_int_t)t->n_bytes);
        total += (json_int_t)t->n_bytes;
    }
    failed |= json_object_set_new(report, "tensors", json_integer((json_int_t)n));
    failed |= json_object_set_new(report, "tensor_bytes", json_integer(total));
    return failed;
}

/* Factors of the inputs' transforms and which blocks transform their heads:
 * {"sites": [{"layer": 0, "site": "qkv", "n1": 64, "n2": 64}, ..], "heads": [0, ..]} */
static int add_transforms(json_t *report, const fl_model *m)
{
    json_t *sites = json_array(), *heads = json_array();
    char name[FL_MAX_TENSOR_NAME];
    json_t *all = json_pack("{s:o, s:o}", "sites", sites, "heads", heads);
    int failed = json_object_set_new(report, "transforms", all);
    for (int i = 0; m->sites && i < m->cfg.n_layers * FL_N_SITES && !failed; i++) {
        const int layer = i / FL_N_SITES, site = i % FL_N_SITES;
        int n1, n2;
        if (fl__quantized_transform_sizes(&n1, &n2, m, layer, site, NULL) || n1 == 0) continue;
        failed |= json_array_append_new(
            sites, json_pack("{s:i, s:s, s:i, s:i}", "layer", layer, "site",
                             fl__site_names[site], "n1", n1, "n2", n2));
    }
    for (int i = 0; m->sites && i < m->cfg.n_layers && !failed; i++) {
        fl__attention_tensor_name(name, m, i, ".key_transform");
        if (fl__tensors_find(m->tensors, name))
            failed |= json_array_append_new(heads, json_integer(i));
    }
    return failed;
}

static json_t *build_report(const fl_model *m)
{
    const fl_model_config *c = &m->cfg;
    const fl_kv_options kv = fl__model_kv_options(m, 1, 1);
    json_t *report = json_pack(
        "{s:s, s:s, s:s, s:I, s:i, s:i, s:i, s:i, s:i, s:i, s:i, s:i, s:b, s:i, s:I}", "family",
        c->family == FL_FAMILY_OPT ? "opt" : "llama", "quant_method", m->quant_method,
        "kv_format", fl__kv_format_name(m), "kv_bytes_per_token",
        (json_int_t)fl__kv_token_bytes(&kv), "n_layers", c->n_layers, "hidden_size",
        c->hidden_size, "n_heads", c->n_heads, "n_kv_heads", c->n_kv_heads, "head_dim",
        c->head_dim, "ffn_size", c->ffn_size, "vocab_size", c->vocab_size, "n_positions",
        c->n_positions, "tied_head", c->tied_head ? 1 : 0, "head_bits",
        m->head_bits, "n_params", (json_int_t)m->n_params);
    int failed = add_tensors(report, m->tensors);
    failed |= add_transforms(report, m);
    failed |= json_object_set_new(report, "quantization",
                                  c->quant ? json_incref(c->quant) : json_null());
    if (!failed) return report;
    json_decref(report);
    return NULL;
}

fl_status fl_inspect_run(char **report_json, const char *model_dir, fl_err *err)
{
    const fl_exec ex = {.isa = 0, .n_threads = 1};
    fl_model *model = NULL;
    json_t *report = NULL;
    *report_json = NULL;
    fl_status st = fl__model_open(&model, model_dir, &ex, true, err);
    if (st != FL_OK) return st;
    report = build_report(model);
    if (report) *report_json = fl__json_dump(report, 2);
    if (!*report_json) st = fl__fail_nomem(err, "report", 0);
    json_decref(report);
    fl__model_close(&model);
    return st;
}
