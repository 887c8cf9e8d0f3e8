/* opt_model.c - config.json, tokenizer.json and model.safetensors of a random OPT.
 * SPDX-License-Identifier: MIT */
#include "support/opt_model.h"

#include "support/fl_test.h"
#include "support/small_model.h"

#include "base/file.h"
#include "base/json.h"
#include "base/mem.h"
#include "base/rng.h"
#include "format/safetensors_write.h"

#include <stdio.h>
#include <string.h>

enum { MAX_TENSORS = 96, NAME_BYTES = 80 };

fl_opt_model fl_test_opt_model_defaults(void)
{
    return (fl_opt_model){.n_layers = 2,
                          .hidden_size = 48,
                          .n_heads = 4,
                          .ffn_size = 80,
                          .n_positions = 96,
                          .vocab_size = 264,
                          .embed_size = 48,
                          .pre_norm = true};
}

static void check(fl_status st, const fl_err *err)
{
    if (st != FL_OK) fail_msg("%s", err->text);
}

static void write_config(const char *dir, const fl_opt_model *m)
{
    json_t *doc = json_pack(
        "{s:s, s:[s], s:i, s:i, s:i, s:i, s:i, s:i, s:i, s:b, s:b, s:b, s:s, s:i, s:i}",
        "model_type", "opt", "architectures", "OPTForCausalLM", "num_hidden_layers",
        m->n_layers, "hidden_size", m->hidden_size, "num_attention_heads", m->n_heads,
        "ffn_dim", m->ffn_size, "max_position_embeddings", m->n_positions, "vocab_size",
        m->vocab_size, "word_embed_proj_dim", m->embed_size, "do_layer_norm_before",
        m->pre_norm, "enable_bias", !m->no_bias, "tie_word_embeddings", !m->untied,
        "activation_function", "relu", "bos_token_id", FL_SMALL_BOS, "eos_token_id",
        FL_SMALL_EOS);
    char *text = fl__json_dump(doc, 1), *path = fl__path_join(dir, "config.json");
    if (!text || !path) fail_msg("out of memory");
    fl_test_write_text(path, text);
    fl__free(&text);
    fl__free(&path);
    json_decref(doc);
}

typedef struct tensor_list {
    fl_tensor_decl decls[MAX_TENSORS];
    char names[MAX_TENSORS][NAME_BYTES];
    size_t n;
} tensor_list;

static void add(tensor_list *t, const char *name, int rows, int cols)
{
    if (t->n == MAX_TENSORS) fail_msg("too many layers");
    if (snprintf(t->names[t->n], NAME_BYTES, "%s", name) >= NAME_BYTES)
        fail_msg("name: %s", name);
    t->decls[t->n] = (fl_tensor_decl){.name = t->names[t->n],
                                      .dtype = FL_DTYPE_F32,
                                      .n_dims = cols > 0 ? 2 : 1,
                                      .dims = {rows, cols}};
    t->n++;
}

/* weight [rows, cols] (cols 0: a norm's gain) and bias [rows] of model.decoder.<name> */
static void add_pair(tensor_list *t, const char *name, int rows, int cols, bool bias)
{
    char full[NAME_BYTES + 32];
    (void)snprintf(full, sizeof full, "model.decoder.%s.weight", name);
    add(t, full, rows, cols);
    (void)snprintf(full, sizeof full, "model.decoder.%s.bias", name);
    if (bias) add(t, full, rows, 0);
}

static void declare(tensor_list *t, const fl_opt_model *m)
{
    static const char *const attn[] = {"q_proj", "k_proj", "v_proj", "out_proj"};
    const int D = m->hidden_size;
    char name[NAME_BYTES];
    add_pair(t, "embed_tokens", m->vocab_size, m->embed_size, false);
    add_pair(t, "embed_positions", m->n_positions + 2, D, false);
    if (m->embed_size != D) {
        add_pair(t, "project_in", D, m->embed_size, false);
        add_pair(t, "project_out", m->embed_size, D, false);
    }
    if (m->pre_norm) add_pair(t, "final_layer_norm", D, 0, true);
    for (int i = 0; i < m->n_layers; i++) {
        for (size_t k = 0; k < FL_COUNT(attn); k++) {
            (void)snprintf(name, sizeof name, "layers.%d.self_attn.%s", i, attn[k]);
            add_pair(t, name, D, D, !m->no_bias);
        }
        (void)snprintf(name, sizeof name, "layers.%d.fc1", i);
        add_pair(t, name, m->ffn_size, D, !m->no_bias);
        (void)snprintf(name, sizeof name, "layers.%d.fc2", i);
        add_pair(t, name, D, m->ffn_size, !m->no_bias);
        (void)snprintf(name, sizeof name, "layers.%d.self_attn_layer_norm", i);
        add_pair(t, name, D, 0, true);
        (void)snprintf(name, sizeof name, "layers.%d.final_layer_norm", i);
        add_pair(t, name, D, 0, true);
    }
    if (m->untied) add(t, "lm_head.weight", m->vocab_size, m->embed_size);
}

/* Gains near 1 with outliers, biases and matrices so that activations keep their size. */
static void write_tensor(fl_safetensors_writer *w, const fl_tensor_decl *d, double outlier,
                         fl_rng *r)
{
    const size_t len = strlen(d->name);
    const bool gain = strstr(d->name, "norm") && strcmp(d->name + len - 7, ".weight") == 0;
    const int64_t n = d->n_dims == 1 ? d->dims[0] : d->dims[0] * d->dims[1];
    fl_err err = {""};
    for (int64_t i = 0; i < n; i++) {
        float x = (float)((gain ? 1 : 0) + 0.15 * fl__rng_normal(r));
        if (gain && outlier > 0 && i % 16 == 3) x *= (float)outlier;
        check(fl__safetensors_writer_write(w, d->name, &x, sizeof x, &err), &err);
    }
}

const char *fl_test_opt_model(const char *name, const fl_opt_model *m)
{
    static tensor_list t;
    fl_small_model tokenizer = fl_test_small_model_defaults(); /* for its tokenizer.json */
    tokenizer.vocab_size = m->vocab_size;
    const char *dir = fl_test_small_model(name, &tokenizer);
    fl_safetensors_writer *w;
    fl_err err = {""};
    fl_rng r = fl__rng_init(1, 0, "opt-model");
    char *path = fl__path_join(dir, "model.safetensors");
    if (!path) fail_msg("out of memory");
    write_config(dir, m);
    t.n = 0;
    declare(&t, m);
    check(fl__safetensors_writer_open(&w, path, t.decls, t.n, NULL, 0, &err), &err);
    for (size_t i = 0; i < t.n; i++) write_tensor(w, &t.decls[i], m->outlier, &r);
    check(fl__safetensors_writer_commit(&w, &err), &err);
    fl__free(&path);
    return dir;
}
