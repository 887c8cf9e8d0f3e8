/* inject_outliers.c - a float checkpoint with outliers put in, to test what quantisation does.
 *
 *   inject_outliers MODEL OUT                       outlier channels
 *   inject_outliers MODEL OUT --tokens R --text FILE    outlier tokens
 *
 * Channels: in each norm of each block a share of the channels (1 %, drawn from the seed) has
 * its gain, and in LayerNorm its bias, multiplied by a factor from 20..60; the columns of the
 * linears that read the norm (q, k, v; gate, up; fc1) are divided by it. The function of the
 * model stays what it was, up to float32 rounding. Only where the norms come before the blocks'
 * halves: a post-norm's output is the residual too.
 *
 * Tokens: rare ids that together make up the share R of a text's tokens have their embedding
 * rows multiplied by such factors in a few channels, drawn anew for each id, so that no scale
 * per channel can take them all away. This changes what the model does with these tokens: the
 * written float model is the baseline to compare with, not MODEL. A tied head is untied first,
 * as scaled rows in the head would change every prediction.
 *
 * All float weights are written as F32 in one model.safetensors, other files are copied.
 * SPDX-License-Identifier: MIT */
#include "base/file.h"
#include "base/json.h"
#include "base/mem.h"
#include "base/rng.h"
#include "format/safetensors_write.h"
#include "model/family.h"
#include "text/tokenizer.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { MAX_TEXT_BYTES = 1 << 30, MAX_CONFIG_BYTES = 1 << 24, RARE_IDS_AT_LEAST = 8 };
#define HEAD_NAME "lm_head.weight"

typedef struct request {
    const char *model_dir, *out_dir, *text_path;
    double share;           /* of the channels */
    double lowest, highest; /* factor */
    double tokens;          /* share of the text's tokens; 0: outlier channels */
    uint64_t seed;
} request;

typedef enum edit_kind { EDIT_MULTIPLY, EDIT_DIVIDE_COLUMNS } edit_kind;

/* What happens to one tensor. MULTIPLY: elementwise, factor has the tensor's size. */
typedef struct edit {
    const fl_tensor_view *view;
    edit_kind kind;
    const double *factor; /* borrowed */
} edit;

typedef struct job {
    const request *r;
    fl_model *model;
    double *factors; /* owned: [n_layers, 2, hidden], or [vocab, embed_size] */
    edit *edits;     /* owned */
    size_t n_edits, max_edits;
    bool untie;
} job;

/* ---- factors ----------------------------------------------------------------------------- */

static int outliers_of(const request *r, int n_channels)
{
    const int n = (int)lround(r->share * n_channels);
    return n < 1 ? 1 : n > n_channels ? n_channels : n;
}

/* Gives outliers_of distinct channels of factor[n_channels], which is all 1, their factors. */
static void draw_factors(double *factor, int n_channels, fl_rng *rng, const request *r)
{
    for (int left = outliers_of(r, n_channels); left > 0;) {
        const uint64_t c = fl__rng_below(rng, (uint64_t)n_channels);
        if (factor[c] != 1) continue;
        factor[c] = r->lowest + (r->highest - r->lowest) * fl__rng_unit(rng);
        left--;
    }
}

static fl_status factors_new(job *j, size_t n, size_t max_edits, fl_err *err)
{
    j->factors = fl__alloc(n, sizeof *j->factors);
    j->edits = fl__calloc(max_edits, sizeof *j->edits);
    j->max_edits = max_edits;
    if (!j->factors || !j->edits) return fl__fail_nomem(err, "factors", n * sizeof *j->factors);
    for (size_t i = 0; i < n; i++) j->factors[i] = 1;
    return FL_OK;
}

/* An edit of the tensor of that name; one that need not be there is passed over. */
static fl_status add_edit(job *j, const char *name, bool required, edit_kind kind,
                          const double *factor, fl_err *err)
{
    const fl_tensor_view *view = fl__tensors_find(j->model->tensors, name);
    if (!view && !required) return FL_OK;
    if (!view || j->n_edits == j->max_edits)
        return fl__fail(err, FL_E_INPUT,
                        "outliers: %s: tensor %s is missing; get the model again",
                        j->r->model_dir, name);
    j->edits[j->n_edits++] = (edit){view, kind, factor};
    return FL_OK;
}

/* ---- outlier channels -------------------------------------------------------------------- */

static fl_status plan_norm(job *j, int layer, int norm, fl_err *err)
{
    const fl_model_config *cfg = &j->model->cfg;
    double *factor = j->factors + (size_t)(layer * 2 + norm) * (size_t)cfg->hidden_size;
    fl_rng rng = fl__rng_init(j->r->seed, layer * 2 + norm, "outlier-channels");
    char name[FL_MAX_TENSOR_NAME];
    int linears[FL_SITE_MAX_LINEARS];
    const int n = fl__site_linears(linears, cfg, norm ? FL_SITE_UP : FL_SITE_QKV);

    draw_factors(factor, cfg->hidden_size, &rng, j->r);
    fl__norm_tensor_name(name, j->model, layer, norm, ".weight");
    fl_status st = add_edit(j, name, true, EDIT_MULTIPLY, factor, err);
    fl__norm_tensor_name(name, j->model, layer, norm, ".bias");
    if (!st) st = add_edit(j, name, false, EDIT_MULTIPLY, factor, err);
    for (int i = 0; i < n && !st; i++) {
        fl__linear_tensor_name(name, j->model, layer, linears[i], ".weight");
        st = add_edit(j, name, true, EDIT_DIVIDE_COLUMNS, factor, err);
    }
    return st;
}

static fl_status plan_channels(job *j, fl_err *err)
{
    const fl_model_config *cfg = &j->model->cfg;
    const size_t n_norms = (size_t)cfg->n_layers * 2;
    if (!cfg->pre_norm)
        return fl__fail(err, FL_E_UNSUPPORTED,
                        "outliers: %s: the norms come after the residual, a scale there "
                        "changes the function; take a pre-norm model",
                        j->r->model_dir);
    fl_status st = factors_new(j, n_norms * (size_t)cfg->hidden_size,
                               n_norms * (2 + FL_SITE_MAX_LINEARS), err);
    for (int i = 0; i < cfg->n_layers * 2 && !st; i++) st = plan_norm(j, i / 2, i % 2, err);
    if (!st)
        (void)printf("%zu norms, %d of %d channels in each, factors %g..%g\n", n_norms,
                     outliers_of(j->r, cfg->hidden_size), cfg->hidden_size, j->r->lowest,
                     j->r->highest);
    return st;
}

/* ---- outlier tokens ---------------------------------------------------------------------- */

static fl_status count_ids(int64_t *counts, int64_t *total, const job *j, fl_err *err)
{
    fl_tokenizer *tokenizer = NULL;
    char *text = NULL;
    int32_t *ids = NULL;
    size_t n_bytes = 0, n_ids = 0;
    fl_status st = fl__file_read(&text, &n_bytes, j->r->text_path, MAX_TEXT_BYTES, err);
    if (!st) st = fl__tokenizer_open(&tokenizer, j->r->model_dir, err);
    if (!st) st = fl__tokenizer_encode(&ids, &n_ids, tokenizer, text, n_bytes, false, err);
    for (size_t i = 0; i < n_ids && !st; i++) {
        if (ids[i] < 0 || ids[i] >= j->model->cfg.vocab_size)
            st = fl__fail(err, FL_E_INPUT,
                          "outliers: %s: token id %d, the model has %d; tokenizer and model do "
                          "not belong together",
                          j->r->text_path, ids[i], j->model->cfg.vocab_size);
        else
            counts[ids[i]]++;
    }
    *total = (int64_t)n_ids;
    fl__tokenizer_close(&tokenizer);
    fl__free(&text);
    fl__free(&ids);
    return st;
}

/* Ids in random order that occur, none of them more often than an eighth of the wanted tokens,
 * until the wanted number of tokens is reached. Gives their rows factors. */
static void scale_rare_rows(job *j, const int64_t *counts, int32_t *order, int64_t total)
{
    const fl_model_config *cfg = &j->model->cfg;
    const int64_t wanted = (int64_t)ceil(j->r->tokens * (double)total);
    const int64_t most = wanted / RARE_IDS_AT_LEAST > 1 ? wanted / RARE_IDS_AT_LEAST : 1;
    fl_rng rng = fl__rng_init(j->r->seed, 0, "outlier-ids");
    int64_t found = 0;
    int n_ids = 0;
    for (int i = 0; i < cfg->vocab_size; i++) {
        const uint64_t k = fl__rng_below(&rng, (uint64_t)i + 1);
        order[i] = order[k];
        order[k] = i;
    }
    for (int i = 0; i < cfg->vocab_size && found < wanted; i++) {
        const int32_t id = order[i];
        if (counts[id] == 0 || counts[id] > most || counts[id] > wanted - found) continue;
        fl_rng row = fl__rng_init(j->r->seed, id, "outlier-row");
        draw_factors(j->factors + (size_t)id * (size_t)cfg->embed_size, cfg->embed_size, &row,
                     j->r);
        found += counts[id];
        n_ids++;
    }
    (void)printf("%d ids, %lld of %lld tokens of the text (%.3f %%), %d of %d channels in "
                 "each, factors %g..%g\n",
                 n_ids, (long long)found, (long long)total,
                 total ? 100.0 * (double)found / (double)total : 0.0,
                 outliers_of(j->r, cfg->embed_size), cfg->embed_size, j->r->lowest,
                 j->r->highest);
}

static fl_status plan_tokens(job *j, fl_err *err)
{
    const fl_model_config *cfg = &j->model->cfg;
    const size_t n_vocab = (size_t)cfg->vocab_size;
    int64_t *counts = fl__calloc(n_vocab, sizeof *counts), total = 0;
    int32_t *order = fl__calloc(n_vocab, sizeof *order);
    char name[FL_MAX_TENSOR_NAME];
    fl_status st = counts && order ? factors_new(j, n_vocab * (size_t)cfg->embed_size, 1, err)
                                   : fl__fail_nomem(err, "token counts", n_vocab * 12);
    if (!st) st = count_ids(counts, &total, j, err);
    if (!st) {
        scale_rare_rows(j, counts, order, total);
        j->untie = cfg->tied_head;
        (void)snprintf(name, sizeof name, "%s%s", j->model->prefix, fl__family(cfg)->embed);
        st = add_edit(j, name, true, EDIT_MULTIPLY, j->factors, err);
    }
    fl__free(&counts);
    fl__free(&order);
    return st;
}

/* ---- writing ----------------------------------------------------------------------------- */

static bool is_float(fl_dtype dtype)
{
    return (FL_DTYPES_FLOAT & FL_DTYPE_BIT(dtype)) != 0;
}

static const edit *find_edit(const job *j, const fl_tensor_view *view)
{
    for (size_t i = 0; i < j->n_edits; i++)
        if (j->edits[i].view == view) return &j->edits[i];
    return NULL;
}

static void apply(float *x, const edit *e)
{
    const size_t n = (size_t)e->view->n_elements;
    const size_t columns = (size_t)e->view->dims[e->view->n_dims - 1];
    for (size_t i = 0; i < n; i++)
        x[i] = (float)(e->kind == EDIT_MULTIPLY ? x[i] * e->factor[i]
                                                : x[i] / e->factor[i % columns]);
}

static fl_status write_tensor(fl_safetensors_writer *w, const char *name,
                              const fl_tensor_view *view, const edit *e, fl_err *err)
{
    const size_t n = (size_t)view->n_elements;
    if (!is_float(view->dtype))
        return fl__safetensors_writer_write(w, name, view->data, view->n_bytes, err);
    float *x = fl__alloc(n, sizeof *x);
    if (!x) return fl__fail_nomem(err, name, n * sizeof *x);
    fl__dtype_to_f32(x, view->dtype, view->data, n);
    if (e) apply(x, e);
    const fl_status st = fl__safetensors_writer_write(w, name, x, n * sizeof *x, err);
    fl__free(&x);
    return st;
}

/* An untied head is the embedding a second time, unscaled; what the checkpoint has under that
 * name is left out. */
static bool is_dropped(const job *j, const fl_tensor_view *view)
{
    return j->untie && strcmp(view->name, HEAD_NAME) == 0;
}

static fl_status write_tensors(const job *j, fl_err *err)
{
    static const fl_metadata_pair metadata[] = {{"format", "pt"}};
    const fl_tensors *set = j->model->tensors;
    const size_t count = fl__tensors_count(set);
    fl_tensor_decl *decls = fl__calloc(count + 1, sizeof *decls);
    char *path = fl__path_join(j->r->out_dir, "model.safetensors");
    fl_safetensors_writer *w = NULL;
    size_t n = 0;
    fl_status st =
        decls && path ? FL_OK : fl__fail_nomem(err, "tensors", count * sizeof *decls);

    for (size_t i = 0; i < count && !st; i++) {
        const fl_tensor_view *v = fl__tensors_at(set, i);
        if (is_dropped(j, v)) continue;
        decls[n] = (fl_tensor_decl){.name = v->name,
                                    .dtype = is_float(v->dtype) ? FL_DTYPE_F32 : v->dtype,
                                    .n_dims = v->n_dims};
        memcpy(decls[n].dims, v->dims, sizeof v->dims);
        n++;
    }
    if (!st && j->untie) {
        decls[n] = (fl_tensor_decl){.name = HEAD_NAME, .dtype = FL_DTYPE_F32, .n_dims = 2};
        memcpy(decls[n++].dims, j->edits[0].view->dims, sizeof decls->dims);
    }
    if (!st) st = fl__safetensors_writer_open(&w, path, decls, n, metadata, 1, err);
    for (size_t i = 0; i < count && !st; i++) {
        const fl_tensor_view *v = fl__tensors_at(set, i);
        if (!is_dropped(j, v)) st = write_tensor(w, v->name, v, find_edit(j, v), err);
    }
    if (!st && j->untie) st = write_tensor(w, HEAD_NAME, j->edits[0].view, NULL, err);
    if (!st) st = fl__safetensors_writer_commit(&w, err);
    fl__safetensors_writer_discard(&w);
    fl__free(&decls);
    fl__free(&path);
    return st;
}

/* config.json with the element type of what is written, and an untied head. */
static fl_status write_config(const job *j, fl_err *err)
{
    char *from = fl__path_join(j->r->model_dir, "config.json"), *text = NULL;
    char *to = fl__path_join(j->r->out_dir, "config.json");
    json_t *root = NULL;
    fl_status st = from && to ? fl__json_load(&root, from, MAX_CONFIG_BYTES, err)
                              : fl__fail_nomem(err, "config.json", 64);
    if (st) goto out;
    if (json_object_get(root, "dtype"))
        (void)json_object_set_new(root, "dtype", json_string("float32"));
    if (json_object_get(root, "torch_dtype"))
        (void)json_object_set_new(root, "torch_dtype", json_string("float32"));
    if (j->untie) (void)json_object_set_new(root, "tie_word_embeddings", json_false());
    text = fl__json_dump(root, 1);
    st = text ? fl__file_write(to, text, strlen(text), err)
              : fl__fail_nomem(err, "config.json", 4096);
out:
    json_decref(root);
    fl__free(&from);
    fl__free(&to);
    fl__free(&text);
    return st;
}

static bool is_side_file(const char *name)
{
    const size_t n = strlen(name), m = strlen(".safetensors");
    return strcmp(name, "config.json") != 0 && !strstr(name, ".safetensors.index.json") &&
           (n < m || strcmp(name + n - m, ".safetensors") != 0);
}

static fl_status copy_side_files(const job *j, fl_err *err)
{
    char **names = NULL;
    size_t n = 0;
    fl_status st = fl__dir_list(&names, &n, j->r->model_dir, err);
    for (size_t i = 0; i < n && !st; i++) {
        if (!is_side_file(names[i])) continue;
        char *from = fl__path_join(j->r->model_dir, names[i]);
        char *to = fl__path_join(j->r->out_dir, names[i]);
        st = from && to ? fl__file_copy(from, to, err) : fl__fail_nomem(err, names[i], 256);
        fl__free(&from);
        fl__free(&to);
    }
    fl__dir_list_free(&names, n);
    return st;
}

/* ---- the call ---------------------------------------------------------------------------- */

static fl_status write_model(const job *j, fl_err *err)
{
    if (access(j->r->out_dir, F_OK) == 0)
        return fl__fail(err, FL_E_USAGE, "outliers: %s: exists already; choose another name",
                        j->r->out_dir);
    fl_status st = fl__dir_make(j->r->out_dir, err);
    if (st) return st;
    st = write_tensors(j, err);
    if (!st) st = write_config(j, err);
    if (!st) st = copy_side_files(j, err);
    if (st) (void)fl__dir_remove(j->r->out_dir, NULL);
    return st;
}

static fl_status run(const request *r, fl_err *err)
{
    const fl_exec ex = {0, 1};
    job j = {.r = r};
    fl_status st = fl__model_open(&j.model, r->model_dir, &ex, true, err);
    if (!st && j.model->sites)
        st = fl__fail(err, FL_E_UNSUPPORTED, "outliers: %s: is quantised; give a float model",
                      r->model_dir);
    if (!st) st = r->tokens > 0 ? plan_tokens(&j, err) : plan_channels(&j, err);
    if (!st) st = write_model(&j, err);
    fl__model_close(&j.model);
    fl__free(&j.factors);
    fl__free(&j.edits);
    return st;
}

static const char help[] =
    "usage: inject_outliers MODEL OUT [options]\n"
    "\n"
    "Writes the float checkpoint MODEL to the new directory OUT with outlier channels: in\n"
    "each norm some channels are multiplied, the columns of the weights behind it divided.\n"
    "OUT computes the same function, up to float32 rounding. Pre-norm models only.\n"
    "\n"
    "  --share P      share of the channels, at least one (default 0.01)\n"
    "  --lowest F     least factor (default 20)\n"
    "  --highest F    largest factor (default 60)\n"
    "  --seed S       same seed, same bytes (default 0)\n"
    "\n"
    "With --tokens, outlier tokens instead: rare ids that make up the share R of a text's\n"
    "tokens have the share P of their embedding's channels multiplied, others for each id.\n"
    "OUT is then another function than MODEL: compare what is made from OUT with OUT itself.\n"
    "A tied head is written apart, unscaled.\n"
    "\n"
    "  --tokens R     share of the tokens, e.g. 0.001\n"
    "  --text FILE    the text in which they are counted\n";

static int parse_number(double *to, const char *text, double lowest, double highest)
{
    char *end;
    *to = strtod(text, &end);
    return *text && !*end && *to >= lowest && *to <= highest ? 0 : -1;
}

/* One option and its value; -1 when there is no such option or the value makes no sense. */
static int parse_option(request *r, const char *name, const char *value)
{
    double seed;
    if (strcmp(name, "--share") == 0) return parse_number(&r->share, value, 0, 1);
    if (strcmp(name, "--lowest") == 0) return parse_number(&r->lowest, value, 1e-3, 1e6);
    if (strcmp(name, "--highest") == 0) return parse_number(&r->highest, value, 1e-3, 1e6);
    if (strcmp(name, "--tokens") == 0) return parse_number(&r->tokens, value, 1e-9, 1);
    if (strcmp(name, "--text") == 0) {
        r->text_path = value;
        return 0;
    }
    if (strcmp(name, "--seed") != 0 || parse_number(&seed, value, 0, 1e15)) return -1;
    r->seed = (uint64_t)seed;
    return 0;
}

/* 0, or -1 when the command line makes no sense. */
static int parse(request *r, int argc, char **argv)
{
    const char **dirs[2] = {&r->model_dir, &r->out_dir};
    int n_dirs = 0;
    for (int i = 1; i < argc; i++) {
        if (strncmp(argv[i], "--", 2) == 0) {
            if (i + 1 == argc || parse_option(r, argv[i], argv[i + 1])) return -1;
            i++;
        } else {
            if (n_dirs == 2) return -1;
            *dirs[n_dirs++] = argv[i];
        }
    }
    if (n_dirs != 2 || r->highest < r->lowest) return -1;
    return (r->tokens > 0) == (r->text_path != NULL) ? 0 : -1;
}

int main(int argc, char **argv)
{
    request r = {.share = 0.01, .lowest = 20, .highest = 60};
    fl_err err = {""};
    if (argc == 2 && strcmp(argv[1], "--help") == 0) {
        (void)fputs(help, stdout);
        return 0;
    }
    if (parse(&r, argc, argv)) {
        (void)fputs(help, stderr);
        return 2;
    }
    const fl_status st = run(&r, &err);
    if (st) (void)fprintf(stderr, "inject_outliers: %s\n", err.text);
    return fl_exit_code(st);
}
