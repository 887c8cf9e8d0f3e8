/* job_finish.c - what makes a directory of shards a model: the tensors outside the blocks,
 * index, config.json with
 * quantization_config, the side files verbatim, and the report. SPDX-License-Identifier: MIT */
#include "quant/job.h"

#include "base/clock.h"
#include "base/file.h"
#include "base/isa.h"
#include "base/mem.h"
#include "format/safetensors_write.h"

#include <math.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

void fl__quant_shard_name(char name[FL_SHARD_NAME_BYTES], const fl_model *model, int i)
{
    (void)snprintf(name, FL_SHARD_NAME_BYTES, "model-%05d-of-%05d.safetensors", i + 1,
                   model->cfg.n_layers + 1);
}

/* ---- tensors outside the blocks ---------------------------------------------------------- */

/* Tensors that the forward pass reads outside the blocks as they are in the checkpoint: all but
 * the layers' own and a head that is tied anyway, or gets 8 bits. */
static bool is_outside(const fl_quant_config *c, const fl_model *model, const fl_tensor_view *t)
{
    const fl_family_def *family = fl__family(&model->cfg);
    const size_t n = strlen(model->prefix), m = strlen(family->layers);
    if (strncmp(t->name, model->prefix, n) == 0 && strncmp(t->name + n, family->layers, m) == 0)
        return false;
    const bool copies_head = !model->cfg.tied_head && c->head_bits == 16;
    return copies_head || strcmp(t->name, family->head) != 0;
}

/* The final norm's gain, where tuning changed it. */
static bool is_tuned(const fl_quant_job *job, const fl_tensor_view *t)
{
    const size_t n = strlen(job->model->prefix);
    const char *norm = fl__family(&job->model->cfg)->final_norm;
    return job->final_gain && strncmp(t->name, job->model->prefix, n) == 0 &&
           strncmp(t->name + n, norm, strlen(norm)) == 0 &&
           strcmp(t->name + n + strlen(norm), ".weight") == 0;
}

static size_t outside_bytes(const fl_quant_job *job, const fl_tensor_view *t)
{
    return is_tuned(job, t) ? (size_t)t->n_elements * sizeof(float) : t->n_bytes;
}

/* The shard of what is outside the blocks. */
typedef struct outside {
    const fl_tensor_view **views; /* [n_views] copied; their decls come first */
    fl_tensor_decl *decls;
    char scale_name[FL_HEAD_NAME_BYTES];
    size_t n_views, n_decls;
} outside;

static void declare_outside(outside *o, const fl_quant_job *job)
{
    const fl_tensors *set = job->model->tensors;
    for (size_t i = 0; i < fl__tensors_count(set); i++) {
        const fl_tensor_view *t = fl__tensors_at(set, i);
        if (!is_outside(&job->c, job->model, t)) continue;
        fl_tensor_decl *d = &o->decls[o->n_views];
        *d = (fl_tensor_decl){.name = t->name,
                              .dtype = is_tuned(job, t) ? FL_DTYPE_F32 : t->dtype,
                              .n_dims = t->n_dims};
        memcpy(d->dims, t->dims, sizeof t->dims);
        o->views[o->n_views++] = t;
    }
    o->n_decls = o->n_views;
    if (job->c.head_bits == 16) return;
    fl__quant_head_decls(o->decls + o->n_decls, o->scale_name, job->model);
    o->n_decls += FL_HEAD_TENSORS;
}

static fl_status write_outside_file(const outside *o, const fl_quant_job *job, const char *path,
                                    fl_err *err)
{
    static const fl_metadata_pair metadata[] = {{"format", "pt"}};
    fl_safetensors_writer *w = NULL;
    fl_status st =
        fl__safetensors_writer_open(&w, path, o->decls, o->n_decls, metadata, 1, err);
    for (size_t i = 0; i < o->n_views && !st; i++)
        st = fl__safetensors_writer_write(
            w, o->views[i]->name,
            is_tuned(job, o->views[i]) ? job->final_gain : o->views[i]->data,
            outside_bytes(job, o->views[i]), err);
    if (!st && job->c.head_bits == 8) st = fl__quant_head_write(w, job->model, job->ex, err);
    if (!st) st = fl__safetensors_writer_commit(&w, err);
    fl__safetensors_writer_discard(&w);
    return st;
}

/* {file, names, bytes}; NULL: memory. */
static json_t *outside_shard(const outside *o, const fl_quant_job *job, const char *file)
{
    int64_t n_bytes = job->c.head_bits == 8 ? fl__quant_head_stored_bytes(job->model) : 0;
    json_t *names = json_array();
    for (size_t i = 0; i < o->n_decls; i++)
        (void)json_array_append_new(names, json_string(o->decls[i].name));
    for (size_t i = 0; i < o->n_views; i++) n_bytes += (int64_t)outside_bytes(job, o->views[i]);
    return json_pack("{s:s,s:o,s:I}", "file", file, "names", names, "bytes",
                     (json_int_t)n_bytes);
}

static fl_status write_outside(const fl_quant_job *job, json_t *shards, fl_err *err)
{
    const size_t count = fl__tensors_count(job->model->tensors) + FL_HEAD_TENSORS;
    char file[FL_SHARD_NAME_BYTES];
    outside o = {.decls = fl__calloc(count, sizeof *o.decls),
                 .views = fl__alloc(count, sizeof *o.views)};
    fl__quant_shard_name(file, job->model, 0);
    char *path = fl__checkpoint_path(&job->checkpoint, file);
    fl_status st = o.decls && o.views && path
                       ? FL_OK
                       : fl__fail_nomem(err, "shard", count * sizeof *o.decls);
    if (!st) {
        declare_outside(&o, job);
        st = write_outside_file(&o, job, path, err);
    }
    if (!st) {
        json_t *shard = outside_shard(&o, job, file);
        if (!shard || json_array_insert_new(shards, 0, shard))
            st = fl__fail_nomem(err, "shard list", 64);
    }
    fl__free(&o.decls);
    fl__free(&o.views);
    fl__free(&path);
    return st;
}

static fl_status write_index(const fl_quant_job *job, const json_t *shards, fl_err *err)
{
    size_t n = 0, i, k, at = 0;
    int64_t total = 0;
    json_t *shard, *name;
    json_array_foreach(shards, i, shard) n += json_array_size(json_object_get(shard, "names"));
    fl_index_entry *entries = fl__alloc(n, sizeof *entries);
    if (!entries) return fl__fail_nomem(err, "index", n * sizeof *entries);
    json_array_foreach(shards, i, shard)
    {
        const char *file = json_string_value(json_object_get(shard, "file"));
        total += json_integer_value(json_object_get(shard, "bytes"));
        json_array_foreach(json_object_get(shard, "names"), k, name)
            entries[at++] = (fl_index_entry){json_string_value(name), file};
    }
    const fl_status st = fl__tensors_write_index(job->checkpoint.dir, entries, n, total, err);
    fl__free(&entries);
    return st;
}

/* ---- side files -------------------------------------------------------------------------- */

static bool ends_with(const char *s, const char *end)
{
    const size_t n = strlen(s), m = strlen(end);
    return n >= m && strcmp(s + n - m, end) == 0;
}

/* Weights in any format and what is written anew are not copied; neither is the report of an
 * earlier run. */
static bool is_side_file(const char *name)
{
    static const char *const weights[] = {".safetensors", ".bin",  ".pt",   ".pth", ".h5",
                                          ".msgpack",     ".gguf", ".onnx", ".tmp"};
    for (size_t i = 0; i < FL_COUNT(weights); i++)
        if (ends_with(name, weights[i])) return false;
    return strcmp(name, "config.json") != 0 && !ends_with(name, ".safetensors.index.json") &&
           !ends_with(name, ".bin.index.json") && strcmp(name, "flatiron_report.json") != 0;
}

static fl_status copy_side_files(const fl_quant_job *job, fl_err *err)
{
    char **names = NULL;
    size_t n = 0;
    fl_status st = fl__dir_list(&names, &n, job->model->dir, err);
    for (size_t i = 0; i < n && !st; i++) {
        if (!is_side_file(names[i])) continue;
        char *from = fl__path_join(job->model->dir, names[i]),
             *to = fl__checkpoint_path(&job->checkpoint, names[i]);
        st = from && to ? fl__file_copy(from, to, err)
                        : fl__fail_nomem(err, names[i], strlen(names[i]));
        fl__free(&from);
        fl__free(&to);
    }
    fl__dir_list_free(&names, n);
    return st;
}

int64_t fl__quant_outside_bytes(const fl_quant_config *c, const fl_model *model)
{
    char **names = NULL;
    size_t n = 0;
    int64_t bytes = c->head_bits == 8 ? fl__quant_head_stored_bytes(model) : 0;
    for (size_t i = 0; i < fl__tensors_count(model->tensors); i++) {
        const fl_tensor_view *t = fl__tensors_at(model->tensors, i);
        if (is_outside(c, model, t)) bytes += (int64_t)t->n_bytes;
    }
    if (fl__dir_list(&names, &n, model->dir, NULL)) return bytes;
    for (size_t i = 0; i < n; i++) {
        struct stat st;
        char *path = is_side_file(names[i]) ? fl__path_join(model->dir, names[i]) : NULL;
        if (path && stat(path, &st) == 0) bytes += st.st_size;
        fl__free(&path);
    }
    fl__dir_list_free(&names, n);
    return bytes;
}

/* ---- config.json and the report ---------------------------------------------------------- */

/* A number of a site's report; 0: null. */
static double site_number(const fl_quant_job *job, int i, const char *key)
{
    return json_number_value(json_object_get(json_array_get(job->sites, (size_t)i), key));
}

/* Shares of the linears of the blocks that run at 4 bits. */
static json_t *int4_shares(const fl_quant_job *job)
{
    double n = 0, n4 = 0, params = 0, params4 = 0, ratio = 0, ratio4 = 0, bits = 0, width = 0,
           n_sites4 = 0, digits = 0, stored = 0;
    const fl_model_config *cfg = &job->model->cfg;
    for (int i = 0; i < cfg->n_layers * FL_N_SITES; i++) {
        const fl_site_plan *p = &job->plan->sites[i];
        int linears[FL_SITE_MAX_LINEARS];
        const int count = fl__site_linears(linears, cfg, i % FL_N_SITES);
        const double more = site_number(job, i, "weight_flatten_ratio");
        const double flattened = site_number(job, i, "flatten_ratio");
        for (int k = 0; k < count; k++) {
            int n_out, n_in;
            fl__linear_shape(&n_out, &n_in, cfg, linears[k]);
            n += 1;
            params += (double)n_out * n_in;
            digits += (double)n_out * n_in * more;
            stored += (double)n_out * n_in * (1 + more) * fl__stored_bits(p->w_bits);
            if (p->a_bits != 4 || p->w_bits != 4) continue;
            n4 += 1;
            params4 += (double)n_out * n_in;
        }
        ratio += flattened * p->n_in;
        width += p->n_in;
        bits += site_number(job, i, "effective_bits") * p->n_in;
        if (p->a_bits == 4) {
            ratio4 = fmax(ratio4, flattened);
            n_sites4 += 1;
        }
    }
    /* one multiply-accumulate per weight and token: by parameters and by MACs is the same
     * share */
    return json_pack("{s:f,s:f,s:f,s:f,s:f,s:f,s:f,s:o}", "int4_share_linears", n4 / n,
                     "int4_share_parameters", params4 / params, "int4_share_macs",
                     params4 / params, "flatten_ratio", ratio / width,
                     "effective_activation_bits", bits / width, "weight_flatten_ratio",
                     digits / params, "stored_weight_bits", stored / params,
                     "max_flatten_ratio_int4",
                     n_sites4 > 0 ? json_real(ratio4) : json_null());
}

static json_t *quantization_config(const fl_quant_job *job)
{
    char calib[32] = "";
    if (job->calib)
        (void)snprintf(calib, sizeof calib, "%016llx",
                       (unsigned long long)fl__calib_hash(job->calib));
    return json_pack(
        "{s:s,s:i,s:s,s:s,s:i,s:i,s:i,s:o,s:{s:o,s:s,s:s},s:o,s:O}", "quant_method", "flatiron",
        "version", FL_QUANT_VERSION, "flatiron_version", FL_VERSION, "method", job->c.method,
        "k_bits", job->c.k_bits, "v_bits", job->c.v_bits, "head_bits",
        job->c.head_bits, "options",
        fl__quant_config_json(&job->c), "calibration", "source",
        fl__json_text(job->calib_name ? job->calib_name : "none"), "hash", calib, "isa",
        fl__isa_name(job->ex->isa), "summary", int4_shares(job), "sites", job->sites);
}

static fl_status write_json(const fl_quant_job *job, const char *name, const json_t *v,
                            fl_err *err)
{
    return fl__checkpoint_save(&job->checkpoint, name, v, err);
}

static fl_status write_config(const fl_quant_job *job, fl_err *err)
{
    json_t *root = NULL;
    char *path = fl__path_join(job->model->dir, "config.json");
    fl_status st = path ? fl__json_load(&root, path, 1 << 26, err)
                        : fl__fail_nomem(err, "config.json", 16);
    json_t *q = st ? NULL : quantization_config(job);
    if (!st && (!q || json_object_set_new(root, "quantization_config", q)))
        st = fl__fail_nomem(err, "config.json", 4096);
    if (!st) st = write_json(job, "config.json", root, err);
    json_decref(root);
    fl__free(&path);
    return st;
}

fl_status fl__quant_finish(fl_quant_job *job, const json_t *shards, json_t *report, fl_err *err)
{
    json_t *list = json_copy((json_t *)(uintptr_t)shards); /* shallow; jansson's copy takes no
                                                              const */
    fl_status st = list ? write_outside(job, list, err) : fl__fail_nomem(err, "shard list", 64);
    if (!st) st = write_index(job, list, err);
    json_decref(list);
    if (!st) st = write_config(job, err);
    if (!st) st = copy_side_files(job, err);
    if (st) return st;
    fl__quant_progress(job, "write", job->model->cfg.n_layers - 1, NAN, 1);

    (void)json_object_set_new(report, "model", fl__json_text(job->model->dir));
    (void)json_object_set_new(report, "options", fl__quant_config_json(&job->c));
    (void)json_object_set_new(report, "isa", json_string(fl__isa_name(job->ex->isa)));
    (void)json_object_set_new(report, "summary", int4_shares(job));
    (void)json_object_set_new(report, "sites", json_incref(job->sites));
    if (job->tuning) (void)json_object_set(report, "tuning", job->tuning);
    /* The report in the model is part of its bytes: what differs from run to run stays out of
     * it. */
    st = write_json(job, "flatiron_report.json", report, err);
    (void)json_object_set_new(report, "output", fl__json_text(job->o->out_dir));
    (void)json_object_set_new(report, "seconds", json_real(fl__now_s() - job->started_s));
    return st ? st : fl__checkpoint_finish(&job->checkpoint, job->model->cfg.n_layers, err);
}
