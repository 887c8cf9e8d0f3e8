/* job_tune.c - end-to-end tuning behind the last block: loads what was rounded, tunes it,
 * writes the shards anew with the tuned floats.
 *
 * tuned.safetensors in the checkpoint holds the tuned tensors as they go into the shards; with
 * it a run that stopped while writing goes on without tuning again. tuning.safetensors is where
 * a run that stopped while tuning goes on.
 * SPDX-License-Identifier: MIT */
#include "quant/job.h"

#include "base/file.h"
#include "base/mem.h"
#include "format/safetensors_write.h"

#include <stdio.h>
#include <string.h>

/* ---- names and values of what is tuned --------------------------------------------------- */

typedef struct tuned {
    char name[FL_MAX_TENSOR_NAME];
    const float *was, *by; /* [n] */
    size_t n;
    float *value; /* [n] owned */
} tuned;

typedef struct tuned_list {
    tuned *at; /* owned */
    size_t n;
} tuned_list;

static void list_fini(tuned_list *list)
{
    for (size_t i = 0; list->at && i < list->n; i++) fl__free(&list->at[i].value);
    fl__free(&list->at);
    list->n = 0;
}

static fl_status add(tuned_list *list, const char *name, const float *was, const float *by,
                     size_t n, fl_err *err)
{
    tuned *t = &list->at[list->n];
    *t = (tuned){.was = was, .by = by, .n = n, .value = fl__alloc(n, sizeof(float))};
    if (!t->value) return fl__fail_nomem(err, name, n * sizeof(float));
    (void)snprintf(t->name, sizeof t->name, "%s", name);
    for (size_t i = 0; i < n; i++) t->value[i] = was[i] * by[i];
    list->n++;
    return FL_OK;
}

/* All tensors that differ now, under the names that the shards know them by. */
static fl_status list_tuned(tuned_list *list, const fl_model *model, const fl_block *blocks,
                            const fl_tune_result *r, fl_err *err)
{
    const size_t most = (size_t)model->cfg.n_layers * (2 + FL_N_LINEARS) + 1;
    const size_t D = (size_t)model->cfg.hidden_size;
    char name[FL_MAX_TENSOR_NAME];
    fl_status st = FL_OK;
    *list = (tuned_list){.at = fl__calloc(most, sizeof *list->at)};
    if (!list->at) return fl__fail_nomem(err, "tuned tensors", most * sizeof *list->at);
    for (int l = 0; l < model->cfg.n_layers && !st; l++) {
        const fl_tune_factors *f = &r->factors[l];
        for (int i = 0; i < 2 && !st; i++) {
            fl__norm_tensor_name(name, model, l, i, ".weight");
            st = add(list, name, blocks[l].norm[i].gain, f->norm[i], D, err);
        }
        for (int i = 0; i < FL_N_LINEARS && !st; i++) {
            const fl_linear *lin = &blocks[l].linear[i];
            if (!f->scale[i]) continue;
            fl__linear_tensor_name(name, model, l, i, ".weight_scale");
            st = add(list, name, lin->w_scale, f->scale[i],
                     lin->w_scale_stride ? (size_t)lin->n_out : 1, err);
        }
    }
    (void)snprintf(name, sizeof name, "%s%s.weight", model->prefix,
                   fl__family(&model->cfg)->final_norm);
    if (!st) st = add(list, name, model->final_norm.gain, r->final_norm, D, err);
    return st;
}

static fl_status save_tuned(const tuned_list *list, const char *path, fl_err *err)
{
    fl_safetensors_writer *w = NULL;
    fl_tensor_decl *decls = fl__calloc(list->n, sizeof *decls);
    if (!decls) return fl__fail_nomem(err, path, list->n * sizeof *decls);
    for (size_t i = 0; i < list->n; i++)
        decls[i] = (fl_tensor_decl){.name = list->at[i].name, .dtype = FL_DTYPE_F32,
                                    .n_dims = 1, .dims = {(int64_t)list->at[i].n}};
    fl_status st = fl__safetensors_writer_open(&w, path, decls, list->n, NULL, 0, err);
    for (size_t i = 0; i < list->n && !st; i++)
        st = fl__safetensors_writer_write(w, list->at[i].name, list->at[i].value,
                                          list->at[i].n * sizeof(float), err);
    if (!st) st = fl__safetensors_writer_commit(&w, err);
    fl__safetensors_writer_discard(&w);
    fl__free(&decls);
    return st;
}

/* ---- the shards anew --------------------------------------------------------------------- */

/* Writes the shard at path again with the tensors of `with` in the place of its own. */
static fl_status replace(const char *path, const fl_tensors *with, fl_err *err)
{
    fl_tensors *old = NULL;
    fl_safetensors_writer *w = NULL;
    fl_status st = fl__tensors_open_file(&old, path, err);
    if (st) return st;
    const size_t n = fl__tensors_count(old);
    const char *format = fl__tensors_metadata(old, "format");
    const fl_metadata_pair metadata = {"format", format ? format : ""};
    fl_tensor_decl *decls = fl__calloc(n, sizeof *decls);
    if (!decls) st = fl__fail_nomem(err, path, n * sizeof *decls);
    for (size_t i = 0; i < n && !st; i++) {
        const fl_tensor_view *t = fl__tensors_at(old, i);
        decls[i] = (fl_tensor_decl){.name = t->name, .dtype = t->dtype, .n_dims = t->n_dims};
        memcpy(decls[i].dims, t->dims, sizeof t->dims);
    }
    if (!st)
        st = fl__safetensors_writer_open(&w, path, decls, n, &metadata, format ? 1 : 0, err);
    for (size_t i = 0; i < n && !st; i++) {
        const fl_tensor_view *t = fl__tensors_at(old, i),
                             *by = fl__tensors_find(with, t->name);
        st = fl__safetensors_writer_write(w, t->name, by ? by->data : t->data, t->n_bytes, err);
    }
    if (!st) st = fl__safetensors_writer_commit(&w, err);
    fl__safetensors_writer_discard(&w);
    fl__free(&decls);
    fl__tensors_close(&old);
    return st;
}

/* Puts what tuned.safetensors holds where it belongs. */
static fl_status apply(fl_quant_job *job, const char *path, fl_err *err)
{
    const size_t D = (size_t)job->model->cfg.hidden_size;
    char name[FL_MAX_TENSOR_NAME];
    fl_tensors *with = NULL;
    fl_status st = fl__tensors_open_file(&with, path, err);
    for (int l = 0; l < job->model->cfg.n_layers && !st; l++) {
        char file[FL_SHARD_NAME_BYTES];
        fl__quant_shard_name(file, job->model, 1 + l);
        char *shard = fl__checkpoint_path(&job->checkpoint, file);
        st = shard ? replace(shard, with, err) : fl__fail_nomem(err, file, sizeof file);
        fl__free(&shard);
    }
    (void)snprintf(name, sizeof name, "%s%s.weight", job->model->prefix,
                   fl__family(&job->model->cfg)->final_norm);
    const fl_tensor_view *gain = st ? NULL : fl__tensors_find(with, name);
    if (gain && gain->n_bytes == D * sizeof(float)) {
        job->final_gain = fl__alloc(D, sizeof(float));
        if (job->final_gain)
            memcpy(job->final_gain, gain->data, gain->n_bytes);
        else
            st = fl__fail_nomem(err, "final norm", D * sizeof(float));
    }
    fl__tensors_close(&with);
    return st;
}

/* ---- tuning ------------------------------------------------------------------------------ */

typedef struct rounded {
    fl_block *blocks;   /* [n_layers] owned */
    fl_tensors **shards; /* [n_layers] owned */
    int n;
} rounded;

static void rounded_fini(rounded *m)
{
    for (int l = 0; l < m->n; l++) {
        fl__block_fini(&m->blocks[l]);
        fl__tensors_close(&m->shards[l]);
    }
    fl__free(&m->blocks);
    fl__free(&m->shards);
}

static fl_status rounded_load(rounded *m, fl_quant_job *job, fl_err *err)
{
    const int L = job->model->cfg.n_layers;
    *m = (rounded){.blocks = fl__calloc((size_t)L, sizeof *m->blocks),
                   .shards = fl__calloc((size_t)L, sizeof *m->shards)};
    fl_status st = m->blocks && m->shards
                       ? FL_OK
                       : fl__fail_nomem(err, "rounded model", (size_t)L * sizeof *m->blocks);
    for (; m->n < L && !st; m->n++)
        st = fl__quant_load_finished(&m->blocks[m->n], &m->shards[m->n], job, m->n, err);
    return st;
}

const char *fl__quant_tune_obstacle(const fl_quant_config *c, const fl_model_config *model)
{
    if (!model->pre_norm) return "norms behind the sums";
    if (!model->final_norm) return "a model without a final norm";
    if (model->embed_size != model->hidden_size) return "a projection in front of the head";
    if (c->block.flatten_weights) return "weights in digits (--flatten-weights)";
    return NULL;
}

/* ---- its own checkpoint ------------------------------------------------------------------ */

/* One file, so that it is whole or not there: numbers as JSON in the metadata, arrays beside
 * them. */
static fl_status save_state(const fl_tune_state *s, const char *path, fl_err *err)
{
    static const char *const names[] = {"p", "m", "v", "best"};
    const float *const arrays[] = {s->adamw.p, s->adamw.m, s->adamw.v, s->adamw.best};
    fl_tensor_decl decls[FL_COUNT(names)] = {0};
    fl_safetensors_writer *w = NULL;
    json_t *kl = json_array();
    for (int e = 0; e < s->n_epochs; e++) (void)json_array_append_new(kl, json_real(s->kl[e]));
    json_t *numbers =
        json_pack("{s:o,s:I,s:f,s:b,s:i,s:f}", "kl", kl, "steps", (json_int_t)s->adamw.n_done,
                  "best_kl", s->adamw.best_value, "has_best", s->adamw.has_best, "restarts",
                  s->n_restarts, "rate", s->rate);
    char *text = numbers ? fl__json_dump(numbers, 0) : NULL;
    const fl_metadata_pair metadata = {"state", text};
    for (size_t i = 0; i < FL_COUNT(names); i++)
        decls[i] = (fl_tensor_decl){.name = names[i], .dtype = FL_DTYPE_F32, .n_dims = 1,
                                    .dims = {(int64_t)s->n}};
    fl_status st = text ? fl__safetensors_writer_open(&w, path, decls, FL_COUNT(names),
                                                      &metadata, 1, err)
                        : fl__fail_nomem(err, "tuning", 256);
    for (size_t i = 0; i < FL_COUNT(names) && !st; i++)
        st = fl__safetensors_writer_write(w, names[i], arrays[i], s->n * sizeof(float), err);
    if (!st) st = fl__safetensors_writer_commit(&w, err);
    fl__safetensors_writer_discard(&w);
    json_decref(numbers);
    fl__free(&text);
    return st;
}

typedef struct saved_state {
    fl_tensors *file;
    double *kl; /* owned */
    fl_tune_state state;
} saved_state;

static void saved_fini(saved_state *s)
{
    fl__tensors_close(&s->file);
    fl__free(&s->kl);
}

/* The arrays stay in the map; they are only read. */
static fl_status load_state(saved_state *s, const char *path, fl_err *err)
{
    static const char *const names[] = {"p", "m", "v", "best"};
    float **const arrays[] = {&s->state.adamw.p, &s->state.adamw.m, &s->state.adamw.v,
                              &s->state.adamw.best};
    json_t *o = NULL;
    fl_status st = fl__tensors_open_file(&s->file, path, err);
    const char *text = st ? NULL : fl__tensors_metadata(s->file, "state");
    if (text) st = fl__json_parse(&o, text, strlen(text), path, err);
    json_t *kl = json_object_get(o, "kl");
    const size_t n_epochs = json_array_size(kl);
    if (!st && !json_is_array(kl))
        st = fl__fail(err, FL_E_INPUT, "resume: %s: no state of tuning in it; remove it", path);
    for (size_t i = 0; i < FL_COUNT(names) && !st; i++) {
        const fl_tensor_view *t;
        const int64_t dims[] = {i ? (int64_t)s->state.n : -1};
        st = fl__tensors_require(&t, s->file, names[i], FL_DTYPE_BIT(FL_DTYPE_F32), 1, dims,
                                 err);
        if (st) break;
        s->state.n = (size_t)t->n_elements;
        *arrays[i] = (float *)(uintptr_t)t->data;
    }
    if (!st) s->kl = fl__alloc(FL_MAX(n_epochs, (size_t)1), sizeof *s->kl);
    if (!st && !s->kl) st = fl__fail_nomem(err, "tuning", n_epochs * sizeof *s->kl);
    for (size_t e = 0; e < n_epochs && !st; e++)
        s->kl[e] = json_number_value(json_array_get(kl, e));
    s->state.kl = s->kl;
    s->state.n_epochs = (int)n_epochs;
    s->state.n_restarts = (int)json_integer_value(json_object_get(o, "restarts"));
    s->state.rate = json_number_value(json_object_get(o, "rate"));
    s->state.adamw.n_done = json_integer_value(json_object_get(o, "steps"));
    s->state.adamw.best_value = json_number_value(json_object_get(o, "best_kl"));
    s->state.adamw.has_best = json_is_true(json_object_get(o, "has_best"));
    json_decref(o);
    return st;
}

static fl_status tell_epoch(void *user, const fl_tune_state *state, fl_err *err)
{
    const fl_quant_job *job = user;
    char *path = fl__checkpoint_path(&job->checkpoint, FL_CHECKPOINT_TUNING);
    const fl_status st =
        path ? save_state(state, path, err) : fl__fail_nomem(err, "tuning", 64);
    fl__free(&path);
    fl__quant_progress(job, "tune", job->model->cfg.n_layers - 1,
                       state->kl[state->n_epochs - 1],
                       0.9 + 0.1 * state->n_epochs / job->c.tune.epochs);
    return st;
}

static json_t *report_of(const fl_tune_result *r, const fl_tune_options *o)
{
    json_t *kl = json_array();
    for (int e = 0; e < r->n_epochs; e++) (void)json_array_append_new(kl, json_real(r->kl[e]));
    return json_pack("{s:o,s:i,s:f,s:s}", "epoch_kl", kl, "restarts", r->n_restarts, "lr",
                     o->lr, "gemm", o->bf16 ? "bf16" : "float32");
}

static fl_status tune(fl_quant_job *job, const rounded *m, const char *path, fl_err *err)
{
    fl_tune_result r;
    tuned_list list = {0};
    saved_state saved = {0};
    char *state = fl__checkpoint_path(&job->checkpoint, FL_CHECKPOINT_TUNING);
    if (!state) return fl__fail_nomem(err, "tuning", 64);
    const bool resumes = fl__file_exists(state);
    fl_status st = resumes ? load_state(&saved, state, err) : FL_OK;
    fl__free(&state);
    if (st) {
        saved_fini(&saved);
        return st;
    }
    fl__stream_embed_lane(job->stream, FL_LANE_QUANT);
    const fl_tune_data data = {.x = job->stream->x_quant,
                               .teacher = job->stream->x_float,
                               .n_windows = job->calib->n_windows,
                               .seq_len = job->calib->seq_len,
                               .should_stop = job->o->should_stop,
                               .user = job->o->user,
                               .log = &job->o->log,
                               .on_epoch = tell_epoch,
                               .epoch_user = job,
                               .resume = resumes ? &saved.state : NULL};
    st = fl__tune(&r, job->model, m->blocks, &data, &job->c.tune, job->ex, err);
    saved_fini(&saved);
    if (st) return st;
    job->tuning = report_of(&r, &job->c.tune);
    st = fl__checkpoint_save(&job->checkpoint, "tuning.json", job->tuning, err);
    if (!st) st = list_tuned(&list, job->model, m->blocks, &r, err);
    if (!st) st = save_tuned(&list, path, err);
    list_fini(&list);
    fl__tune_result_fini(&r, job->model->cfg.n_layers);
    return st;
}

fl_status fl__quant_tune(fl_quant_job *job, fl_err *err)
{
    rounded m = {0};
    fl_status st = FL_OK;
    const char *why = fl__quant_tune_obstacle(&job->c, &job->model->cfg);
    if (why) {
        fl__log(&job->o->log, FL_LOG_WARN, "no end-to-end tuning: it cannot do %s", why);
        job->tuning = json_pack("{s:s}", "skipped", why);
        return job->tuning ? FL_OK : fl__fail_nomem(err, "tuning", 64);
    }
    char *path = fl__checkpoint_path(&job->checkpoint, FL_CHECKPOINT_TUNED);
    if (!path) return fl__fail_nomem(err, "tuning", 64);
    if (fl__file_exists(path)) {
        st = fl__checkpoint_load(&job->tuning, &job->checkpoint, "tuning.json", err);
    } else {
        st = rounded_load(&m, job, err);
        if (!st) st = tune(job, &m, path, err);
    }
    rounded_fini(&m);
    if (!st) st = apply(job, path, err);
    fl__free(&path);
    return st;
}
