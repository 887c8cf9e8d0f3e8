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
#include "model/quantized.h"
#include "model/tensor_specs.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

enum { CHUNK = 4096 };

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

/* ---- contents ---------------------------------------------------------------------------- */

/* "-128", "nan": the first number of a tensor that cannot be, and where it stands. */
typedef struct bad_number {
    int64_t at;
    double value;
} bad_number;

static bool float_is_good(fl_tensor_role role, float x)
{
    if (!isfinite(x)) return false;
    if (role == FL_ROLE_WEIGHT_SCALE) return x >= 0;
    return role != FL_ROLE_INPUT_SCALE || x > 0;
}

static bool scan_floats(bad_number *bad, const fl_tensor_view *t, fl_tensor_role role)
{
    float chunk[CHUNK];
    const size_t elem_bytes = fl__dtype_bytes(t->dtype), n = (size_t)t->n_elements;
    for (size_t at = 0; at < n; at += CHUNK) {
        const size_t m = FL_MIN(n - at, (size_t)CHUNK);
        fl__dtype_to_f32(chunk, t->dtype, (const char *)t->data + at * elem_bytes, m);
        for (size_t i = 0; i < m; i++) {
            if (float_is_good(role, chunk[i])) continue;
            *bad = (bad_number){(int64_t)(at + i), (double)chunk[i]};
            return true;
        }
    }
    return false;
}

static bool scan_codes8(bad_number *bad, const fl_tensor_view *t)
{
    const int8_t *codes = t->data;
    for (int64_t i = 0; i < t->n_elements; i++) {
        if (codes[i] != -128) continue;
        *bad = (bad_number){i, -128};
        return true;
    }
    return false;
}

/* All 16 nibbles are codes; only the one that fills up an odd row must be 0. */
static bool scan_codes4(bad_number *bad, const fl_tensor_view *t, int n_codes)
{
    const uint8_t *bytes = t->data;
    if (n_codes % 2 == 0) return false;
    for (int64_t row = 0; row < t->dims[0]; row++) {
        const int64_t last = (row + 1) * t->dims[1] - 1;
        if (bytes[last] >> 4 == 0) continue;
        *bad = (bad_number){last, bytes[last]};
        return true;
    }
    return false;
}

static bool scan_copies(bad_number *bad, const fl_tensor_view *t)
{
    const uint16_t *copies = t->data;
    for (int64_t i = 0; i < t->n_elements; i++) {
        if (copies[i] >= 1 && copies[i] <= FL_MAX_COPIES) continue;
        *bad = (bad_number){i, copies[i]};
        return true;
    }
    return false;
}

static const char *scan(bad_number *bad, const fl_tensor_view *t, const fl_tensor_spec *spec)
{
    switch (spec->role) {
    case FL_ROLE_FLOAT:
        return scan_floats(bad, t, spec->role) ? "finite numbers" : NULL;
    case FL_ROLE_WEIGHT_SCALE:
        return scan_floats(bad, t, spec->role) ? "finite numbers of at least 0" : NULL;
    case FL_ROLE_INPUT_SCALE:
        return scan_floats(bad, t, spec->role) ? "a finite number above 0" : NULL;
    case FL_ROLE_CODES8:
        return scan_codes8(bad, t) ? "codes from -127 to 127" : NULL;
    case FL_ROLE_CODES4:
        return scan_codes4(bad, t, spec->n_codes) ? "0 behind an odd row" : NULL;
    case FL_ROLE_COPIES:
        return scan_copies(bad, t) ? "1 to 4096 copies" : NULL;
    }
    return NULL;
}

/* ---- tensors ----------------------------------------------------------------------------- */

static void check_tensor(void *user, const fl_tensor_spec *spec)
{
    check *c = user;
    const fl_tensor_view *t = fl__tensors_find(c->model->tensors, spec->name);
    fl_err problem;
    bad_number bad;

    if (!t && spec->optional) return;
    if (t && json_object_set_new(c->asked, spec->name, json_true()) != 0) {
        c->status = fl__fail_nomem(&c->first, "report", strlen(spec->name));
        return;
    }
    const bool one_for_all = t && spec->role == FL_ROLE_WEIGHT_SCALE && t->n_elements == 1;
    const fl_status st =
        fl__tensors_require(&t, c->model->tensors, spec->name, spec->dtypes,
                            one_for_all ? -1 : spec->n_dims, spec->dims, &problem);
    if (st) {
        add_problem(c, st, &problem);
        return;
    }
    const char *wanted = scan(&bad, t, spec);
    if (!wanted) return;
    (void)fl__fail(&problem, FL_E_INPUT,
                   "bad tensor: %s: %s: element %lld is %g, wanted %s; get the file again or "
                   "quantise again",
                   t->file, t->name, (long long)bad.at, bad.value, wanted);
    add_problem(c, FL_E_INPUT, &problem);
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
