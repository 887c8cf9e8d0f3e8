/* runner.c - see runner.h. SPDX-License-Identifier: MIT */
#include "model/runner.h"

#include "base/mem.h"

struct fl_runner {
    const fl_model *model;
    const fl_exec *ex;
    fl_workspace *ws;
    fl_kv_cache *kv;
    const float *hidden;   /* of the last forward, borrowed from ws */
    fl_device_run *device; /* instead of the four above; NULL: CPU */
};

fl_status fl__runner_new(fl_runner **out, const fl_model *model, const fl_exec *ex,
                         fl_device_model *dm, int n_sequences, int n_positions, int max_rows,
                         fl_err *err)
{
    fl_status st;
    *out = NULL;
    fl_runner *r = fl__calloc(1, sizeof *r);
    if (!r) return fl__fail_nomem(err, "runner", sizeof *r);
    r->model = model;
    r->ex = ex;
    if (dm) {
        st = fl__device_run_new(&r->device, dm, n_sequences, n_positions, max_rows, err);
    } else {
        const fl_kv_options kv = fl__model_kv_options(model, n_sequences, n_positions);
        st = fl__kv_new(&r->kv, &kv, err);
        if (!st) st = fl__workspace_new(&r->ws, model, ex, max_rows, err);
    }
    if (st) fl__runner_free(&r);
    *out = r;
    return st;
}

void fl__runner_free(fl_runner **runner)
{
    fl_runner *r = *runner;
    if (!r) return;
    fl__device_run_free(&r->device);
    fl__workspace_free(&r->ws);
    fl__kv_free(&r->kv);
    fl__free(runner);
}

void fl__runner_resize(fl_runner *r, int seq, int n)
{
    if (r->device) fl__device_run_resize(r->device, seq, n);
    else fl__kv_resize(r->kv, seq, n);
}

fl_status fl__runner_forward(fl_runner *r, const int32_t *ids, const fl_span *spans,
                             int n_spans, fl_err *err)
{
    if (r->device) return fl__device_run_forward(r->device, ids, spans, n_spans, err);
    r->hidden = fl__model_forward(r->model, r->ex, r->ws, r->kv, ids, spans, n_spans);
    return FL_OK;
}

fl_status fl__runner_logits(fl_runner *r, int row, int n, float *logits, fl_err *err)
{
    if (r->device) return fl__device_run_logits(r->device, row, n, logits, err);
    const float *hidden = r->hidden + (int64_t)row * r->model->cfg.embed_size;
    fl__model_logits(r->model, r->ex, r->ws, hidden, n, logits);
    return FL_OK;
}

fl_status fl__runner_decode(fl_runner *r, int32_t id, int pos, float *logits, fl_err *err)
{
    if (r->device) return fl__device_run_decode(r->device, &id, &pos, 1, logits, err);
    const fl_span span = {.seq = 0, .pos = pos, .n_rows = 1};
    const fl_status st = fl__runner_forward(r, &id, &span, 1, err);
    return st ? st : fl__runner_logits(r, 0, 1, logits, err);
}
