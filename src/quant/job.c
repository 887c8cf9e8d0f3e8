/* job.c - the second pass: every block rounded, written, and passed on to the next.
 * SPDX-License-Identifier: MIT */
#include "quant/job.h"

#include "base/clock.h"
#include "base/file.h"
#include "base/isa.h"
#include "base/mem.h"
#include "model/quantized.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

void fl__quant_progress(const fl_quant_job *job, const char *stage, int block, double loss,
                        double done_share)
{
    const double elapsed = fl__now_s() - job->started_s;
    const fl_quantize_progress p = {
        .stage = stage,
        .block = block,
        .n_blocks = job->model->cfg.n_layers,
        .elapsed_s = elapsed,
        .eta_s = done_share > 0 ? elapsed * (1 - done_share) / done_share : NAN,
        .loss = loss};
    if (job->o->on_progress) job->o->on_progress(job->o->user, &p);
}

/* ---- one block --------------------------------------------------------------------------- */

static json_t *number(double x)
{
    return isfinite(x) ? json_real(x) : json_null();
}

static json_t *block_report(const fl_block_job *b, double loss, json_t *training)
{
    json_t *sites = json_array();
    for (int s = 0; sites && s < FL_N_SITES; s++) {
        json_t *o = fl__site_plan_report(&b->plan[s], b->layer, s), *errors = json_array();
        json_t *names = json_array();
        int linears[FL_SITE_MAX_LINEARS];
        const int n = fl__site_linears(linears, &b->model->cfg, s);
        for (int i = 0; i < n; i++) {
            (void)json_array_append_new(errors, number(b->outcome[s].gptq_error[i]));
            (void)json_array_append_new(
                names, json_string(fl__family(&b->model->cfg)->linear[linears[i]]));
        }
        (void)json_object_set_new(o, "linears", names);
        (void)json_object_set_new(o, "gptq_error", errors);
        (void)json_object_set_new(o, "damping", number(b->outcome[s].damping));
        (void)json_object_set_new(o, "weight_flatten_ratio",
                                  number(b->outcome[s].weight_ratio));
        (void)json_object_set_new(o, "weight_threshold",
                                  number(b->outcome[s].weight_threshold));
        if (s == FL_SITE_DOWN) (void)json_object_set_new(o, "block_error", number(loss));
        if (s == FL_SITE_DOWN && training) (void)json_object_set(o, "training", training);
        (void)json_array_append_new(sites, o);
    }
    return json_pack("{s:i,s:o,s:o}", "layer", b->layer, "block_error", number(loss), "sites",
                     sites);
}

/* Both lanes through a finished half of a block: their outputs become their inputs. block NULL:
 * the float lane stays. */
static fl_status advance_lanes(fl_quant_job *job, const fl_block *block, const fl_block *quant,
                               fl_half half, fl_err *err)
{
    if (!fl__quant_needs_lanes(&job->c)) return FL_OK;
    if ((block &&
         !fl__stream_walk(job->stream, FL_LANE_FLOAT, block, half, true, NULL, NULL)) ||
        !fl__stream_walk(job->stream, FL_LANE_QUANT, quant, half, true, NULL, NULL))
        return fl__checkpoint_interrupted(err);
    return FL_OK;
}

/* Appends the shard's entry to shards. Ownership of names moves. */
static fl_status add_shard(json_t *shards, const char *file, json_t *names, int64_t n_bytes,
                           fl_err *err)
{
    json_t *o =
        json_pack("{s:s,s:o,s:I}", "file", file, "names", names, "bytes", (json_int_t)n_bytes);
    return o && !json_array_append_new(shards, o) ? FL_OK
                                                  : fl__fail_nomem(err, "shard list", 64);
}

static fl_status save_block(fl_quant_job *job, const fl_block_job *b, double loss,
                            json_t *training, json_t *shards, fl_err *err)
{
    char shard[FL_SHARD_NAME_BYTES], name[FL_BLOCK_NAME_BYTES];
    int64_t n_bytes = 0;
    json_t *names = json_array(), *report = block_report(b, loss, training);
    fl__quant_shard_name(shard, job->model, 1 + b->layer);
    fl__checkpoint_block_name(name, b->layer);
    char *path = fl__checkpoint_path(&job->checkpoint, shard);
    fl_status st = names && report && path ? fl__block_job_write(b, path, names, &n_bytes, err)
                                           : fl__fail_nomem(err, "block report", 1024);
    if (!st) {
        (void)json_object_set(report, "names", names);
        (void)json_object_set_new(report, "bytes", json_integer(n_bytes));
        st = fl__checkpoint_save(&job->checkpoint, name, report, err);
    }
    if (!st) (void)json_array_extend(job->sites, json_object_get(report, "sites"));
    if (!st) st = add_shard(shards, shard, json_incref(names), n_bytes, err);
    json_decref(names);
    json_decref(report);
    fl__free(&path);
    return st;
}

/* The sites in order, the lanes behind each half. Behind a learned block the float lane gets
 * what `plain`, the block as it was, put out before the training: folding clips weights and
 * rounds transforms, and the lane is what the next block's training aims at. Only GPTQ needs
 * it between the halves. */
static fl_status round_sites(fl_quant_job *job, fl_block_job *b, const fl_block *plain,
                             fl_err *err)
{
    const bool learned = job->c.transforms, between = !learned || job->c.block.use_gptq;
    const fl_block *block = learned ? plain : &b->folded;
    fl_status st = FL_OK;
    for (int s = 0; s < FL_N_SITES && !st; s++) {
        st = fl__block_job_site(b, job->stream, s, err);
        if (!st && s == FL_SITE_O)
            st = advance_lanes(job, between ? block : NULL, &b->quant, FL_HALF_ATTENTION, err);
        if (!st && s == FL_SITE_DOWN && learned) fl__stream_take_target(job->stream);
        if (!st && s == FL_SITE_DOWN)
            st = advance_lanes(job, learned ? NULL : block, &b->quant, FL_HALF_MLP, err);
    }
    for (int s = 0; s < FL_N_SITES && !st; s++)
        if (b->outcome[s].damping > job->c.block.gptq.damping)
            fl__log(&job->o->log, FL_LOG_WARN,
                    "layer %d, site %s: Hessian needed damping %g instead of %g", b->layer,
                    fl__site_names[s], b->outcome[s].damping, job->c.block.gptq.damping);
    return st;
}

static fl_status quantize_block(fl_quant_job *job, int layer, json_t *shards, fl_err *err)
{
    fl_block_job b = {0};
    fl_block learned, plain = {0};
    json_t *training = NULL;
    double loss = NAN;
    const fl_site_plan *plan = &job->plan->sites[layer * FL_N_SITES];
    fl_status st = FL_OK;
    if (job->c.transforms &&
        (st = fl__quant_learn_block(&learned, &plain, &training, job, layer, err)))
        return st;
    st = fl__block_job_init(&b, job->model, job->ex, layer, plan, &job->c.block,
                            job->c.transforms ? &learned : NULL, err);
    if (st) {
        fl__block_fini(&plain);
        json_decref(training);
        return st;
    }
    st = round_sites(job, &b, &plain, err);
    fl__block_fini(&plain);
    if (!st && fl__quant_needs_lanes(&job->c)) loss = fl__stream_distance(job->stream);
    if (!st) st = save_block(job, &b, loss, training, shards, err);
    json_decref(training);
    fl__block_job_fini(&b);
    if (!st)
        fl__quant_progress(job, "quantize", layer, loss,
                           (fl__quant_needs_plan_pass(&job->c) ? 0.3 : 0) +
                               (fl__quant_needs_plan_pass(&job->c) ? 0.7 : 1) * (layer + 1) /
                                   job->model->cfg.n_layers);
    return st;
}

/* ---- resume: run a block that an earlier run finished ------------------------------------ */

/* The shard as a model of its own, sharing everything but the tensors and what the sites
 * are. */
fl_status fl__quant_load_finished(fl_block *block, fl_tensors **shard, fl_quant_job *job,
                                  int layer, fl_err *err)
{
    char name[FL_SHARD_NAME_BYTES];
    fl_model view = *job->model;
    const size_t n = (size_t)job->model->cfg.n_layers * FL_N_SITES;
    fl__quant_shard_name(name, job->model, 1 + layer);
    char *path = fl__checkpoint_path(&job->checkpoint, name);
    view.sites = fl__alloc(n, sizeof *view.sites);
    fl_status st = path && view.sites
                       ? fl__tensors_open_file(shard, path, err)
                       : fl__fail_nomem(err, "finished block", n * sizeof *view.sites);
    for (size_t i = 0; i < n && !st; i++) {
        const fl_site_plan *p = &job->plan->sites[i];
        view.sites[i] = (fl_site_info){p->act, p->w_bits, p->a_bits, p->is_unsigned,
                                       p->asymmetric};
    }
    view.tensors = *shard;
    if (!st) st = fl__block_load(block, &view, layer, err);
    fl__free(&view.sites);
    fl__free(&path);
    return st;
}

static fl_status replay_block(fl_quant_job *job, int layer, const json_t *report,
                              json_t *shards, fl_err *err)
{
    fl_tensors *shard = NULL;
    fl_block folded = {0}, quant = {0};
    char file[FL_SHARD_NAME_BYTES];
    fl_status st = FL_OK;
    if (fl__quant_needs_lanes(&job->c)) {
        st = fl__block_fold(&folded, job->model, layer, &job->plan->sites[layer * FL_N_SITES],
                            err);
        if (!st) st = fl__quant_load_finished(&quant, &shard, job, layer, err);
        if (!st) st = advance_lanes(job, &folded, &quant, FL_HALF_BOTH, err);
        fl__block_fini(&folded);
        fl__block_fini(&quant);
        fl__tensors_close(&shard);
    }
    fl__quant_shard_name(file, job->model, 1 + layer);
    if (!st) (void)json_array_extend(job->sites, json_object_get(report, "sites"));
    if (!st) st = add_shard(shards, file, json_incref(json_object_get(report, "names")),
                            json_integer_value(json_object_get(report, "bytes")), err);
    return st;
}

static fl_status run_blocks(fl_quant_job *job, json_t *shards, fl_err *err)
{
    fl_status st = FL_OK;
    bool replaying = job->checkpoint.resumed;
    for (int layer = 0; layer < job->model->cfg.n_layers && !st; layer++) {
        char name[FL_BLOCK_NAME_BYTES];
        json_t *report = NULL;
        fl__checkpoint_block_name(name, layer);
        if (replaying) st = fl__checkpoint_load(&report, &job->checkpoint, name, err);
        replaying = report != NULL;
        if (job->o->should_stop && job->o->should_stop(job->o->user))
            st = fl__checkpoint_interrupted(err);
        if (!st) st = report ? replay_block(job, layer, report, shards, err)
                             : quantize_block(job, layer, shards, err);
        json_decref(report);
    }
    return st;
}

/* ---- the whole --------------------------------------------------------------------------- */

/* What a checkpoint must agree on with the run that continues it. */
static fl_status make_fingerprint(json_t **out, const fl_quant_job *job, fl_err *err)
{
    char data[32] = "none", model[32];
    uint64_t h = 0xcbf29ce484222325u;
    for (size_t i = 0; i < fl__tensors_count(job->model->tensors); i++) {
        const fl_tensor_view *t = fl__tensors_at(job->model->tensors, i);
        const unsigned char *bytes = t->data;
        for (const char *c = t->name; *c; c++) h = (h ^ (unsigned char)*c) * 0x100000001b3u;
        /* every 97th byte: a changed checkpoint is noticed without reading all of a large
         * one */
        for (size_t k = 0; k < t->n_bytes; k += 97) h = (h ^ bytes[k]) * 0x100000001b3u;
    }
    (void)snprintf(model, sizeof model, "%016llx", (unsigned long long)h);
    if (job->calib)
        (void)snprintf(data, sizeof data, "%016llx",
                       (unsigned long long)fl__calib_hash(job->calib));
    *out = json_pack("{s:s,s:s,s:o,s:s,s:s}", "model", model, "calibration data", data,
                     "option set", fl__quant_config_json(&job->c), "instruction set",
                     fl__isa_name(job->ex->isa), "flatiron version", FL_VERSION);
    return *out ? FL_OK : fl__fail_nomem(err, "fingerprint", 256);
}

static fl_status load_or_make_plan(fl_quant_job *job, fl_err *err)
{
    json_t *saved = NULL;
    /* one that blocks are learned with says nothing that the options do not */
    if (job->c.transforms) return fl__quant_plan_make(job, err);
    fl_status st = fl__checkpoint_load(&saved, &job->checkpoint, "plan.json", err);
    if (st) return st;
    if (saved) {
        st = fl__plan_from_json(&job->plan, saved, &job->model->cfg, "plan.json", err);
    } else if (!(st = fl__quant_plan_make(job, err))) {
        saved = fl__plan_to_json(job->plan);
        st = fl__checkpoint_save(&job->checkpoint, "plan.json", saved, err);
    }
    json_decref(saved);
    return st;
}

static fl_status prepare(fl_quant_job *job, fl_err *err)
{
    json_t *fingerprint = NULL;
    fl_status st = make_fingerprint(&fingerprint, job, err);
    if (!st) st = fl__checkpoint_open(&job->checkpoint, job->o->out_dir, fingerprint,
                                      job->o->resume || job->o->redo_from >= 0, err);
    json_decref(fingerprint);
    if (!st && job->o->redo_from >= 0)
        st = fl__checkpoint_redo(&job->checkpoint, job->o->redo_from, job->model->cfg.n_layers,
                                 err);
    if (!st && fl__quant_needs_plan_pass(&job->c)) {
        st = fl__stream_new(&job->stream, job->model, job->ex, job->calib,
                            fl__quant_needs_lanes(&job->c), err);
        if (!st) {
            job->stream->should_stop = job->o->should_stop;
            job->stream->stop_user = job->o->user;
        }
    }
    return st;
}

fl_status fl__quant_job_run(json_t **report, const fl_quantize_options *o,
                            const fl_quant_config *c, const fl_model *model, const fl_exec *ex,
                            const fl_calib *calib, const char *calib_name, fl_err *err)
{
    fl_quant_job job = {.o = o,
                        .c = *c,
                        .model = model,
                        .ex = ex,
                        .calib = calib,
                        .calib_name = calib_name,
                        .started_s = fl__now_s(),
                        .sites = json_array()};
    json_t *shards = json_array();
    fl_status st = FL_OK;

    *report = NULL;
    if (!job.sites || !shards) {
        st = fl__fail_nomem(err, "report", 64);
        goto out;
    }
    if ((st = prepare(&job, err))) goto out;
    if ((st = load_or_make_plan(&job, err))) goto out;
    if (fl__quant_needs_lanes(&job.c)) fl__stream_embed(job.stream);
    if ((st = run_blocks(&job, shards, err))) goto out;
    if (job.c.tune.epochs && (st = fl__quant_tune(&job, err))) goto out;
    fl__stream_free(&job.stream);
    *report = json_object();
    st = *report ? fl__quant_finish(&job, shards, *report, err)
                 : fl__fail_nomem(err, "report", 64);
out:
    fl__checkpoint_close(&job.checkpoint, st != FL_OK && st != FL_E_INTERRUPTED);
    fl__stream_free(&job.stream);
    fl__plan_free(&job.plan);
    json_decref(job.sites);
    json_decref(job.tuning);
    fl__free(&job.final_gain);
    json_decref(shards);
    if (st) {
        json_decref(*report);
        *report = NULL;
    }
    return st;
}
