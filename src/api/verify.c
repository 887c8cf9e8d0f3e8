/* verify.c - fl_verify_run: every tensor of a model directory against its config.
 *
 * Three passes, each adding to one list of problems: the tensors that the config asks for
 * (there, type, shape, then every number of their contents), the tensors that nothing asks for
 * (listed, no problem: old checkpoints carry rotary tables and copies of a tied head), and,
 * when nothing was wrong so far, the loaders themselves block by block, so that a model that
 * passes also opens.
 * SPDX-License-Identifier: MIT */
#include "base/json.h"
#include "base/mem.h"
#include "model/tensor_specs.h"

#include <string.h>

typedef struct check {
    const fl_model *model; /* NULL: did not open */
    json_t *problems;      /* [text] */
    json_t *asked;         /* {name: true} tensors that the config asks for */
    fl_err first;
    fl_status status; /* of the first problem; FL_E_NOMEM when the report itself failed */
} check;

static void add_problem(check *c, fl_status st, const fl_err *problem)
{
    if (json_array_append_new(c->problems, fl__json_text(problem->text)) != 0) {
        c->status = fl__fail_nomem(&c->first, "report", sizeof problem->text);
        return;
    }
    if (c->status) return;
    c->status = st;
    c->first = *problem;
}

/* ---- tensors ----------------------------------------------------------------------------- */

static void check_tensor(void *user, const fl_tensor_spec *spec)
{
    check *c = user;
    fl_err problem;
    if (fl__tensors_find(c->model->tensors, spec->name) &&
        json_object_set_new(c->asked, spec->name, json_true()) != 0) {
        c->status = fl__fail_nomem(&c->first, "report", strlen(spec->name));
        return;
    }
    const fl_status st = fl__tensor_check(c->model->tensors, spec, &problem);
    if (st) add_problem(c, st, &problem);
}

/* What the loaders know beyond single tensors: limits of the kernels, columns of flattening. */
static void check_loading(check *c, const char *model_dir)
{
    const fl_exec ex = {.isa = 0, .n_threads = 1};
    fl_model *model = NULL;
    fl_err problem;
    fl_status st = fl__model_open(&model, model_dir, &ex, true, &problem);
    if (st) add_problem(c, st, &problem);
    for (int layer = 0; model && layer < model->cfg.n_layers; layer++) {
        fl_block block;
        st = fl__block_load(&block, model, layer, &problem);
        if (st) add_problem(c, st, &problem);
        else fl__block_fini(&block);
    }
    fl__model_close(&model);
}

/* ---- report ------------------------------------------------------------------------------ */

static json_t *list_unexpected(const check *c)
{
    json_t *list = json_array();
    const size_t n = c->model ? fl__tensors_count(c->model->tensors) : 0;
    int failed = 0;
    for (size_t i = 0; i < n; i++) {
        const char *name = fl__tensors_at(c->model->tensors, i)->name;
        if (!json_object_get(c->asked, name))
            failed |= json_array_append_new(list, json_string(name));
    }
    if (!failed) return list;
    json_decref(list);
    return NULL;
}

/* NULL: out of memory. */
static char *build_report(const check *c, const char *model_dir)
{
    json_int_t bytes = 0;
    const fl_tensors *set = c->model ? c->model->tensors : NULL;
    const size_t n = set ? fl__tensors_count(set) : 0;
    for (size_t i = 0; i < n; i++) bytes += (json_int_t)fl__tensors_at(set, i)->n_bytes;
    json_t *report = json_pack(
        "{s:o, s:s?, s:I, s:I, s:O, s:o}", "model", fl__json_text(model_dir), "quant_method",
        c->model ? c->model->quant_method : NULL, "tensors", (json_int_t)n, "bytes", bytes,
        "problems", c->problems, "unexpected", list_unexpected(c));
    char *text = report ? fl__json_dump(report, 2) : NULL;
    json_decref(report);
    return text;
}

/* The one line of the error: the first problem, and how many there are. */
static fl_status fail_with_first(const check *c, const char *model_dir, fl_err *err)
{
    const size_t n = json_array_size(c->problems);
    if (n < 2) return fl__fail(err, c->status, "%s", c->first.text);
    return fl__fail(err, c->status, "%s (first of %zu problems of %s)", c->first.text, n,
                    model_dir);
}

FL_API fl_status fl_verify_run(char **report_json, const char *model_dir, fl_err *err)
{
    check c = {.problems = json_array(), .asked = json_object()};
    fl_model *model = NULL;
    fl_err problem;
    fl_status st = FL_OK;

    *report_json = NULL;
    if (!c.problems || !c.asked) {
        st = fl__fail_nomem(err, "report", 0);
        goto out;
    }
    st = fl__model_open_config(&model, model_dir, &problem);
    c.model = model;
    if (st) add_problem(&c, st, &problem);
    else fl__model_tensor_specs(model, check_tensor, &c);
    if (!c.status) check_loading(&c, model_dir);
    st = c.status ? fail_with_first(&c, model_dir, err) : FL_OK;
    *report_json = build_report(&c, model_dir);
    if (!*report_json) st = fl__fail_nomem(err, "report", 0);
out:
    fl__model_close(&model);
    json_decref(c.problems);
    json_decref(c.asked);
    return st;
}
