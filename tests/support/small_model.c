/* small_model.c - config.json, tokenizer.json and model.safetensors of a random LLaMA.
 * SPDX-License-Identifier: MIT */
#include "support/small_model.h"

#include "support/fl_test.h"

#include "base/file.h"
#include "base/json.h"
#include "base/mem.h"
#include "base/rng.h"
#include "format/safetensors_write.h"

#include <stdio.h>
#include <string.h>

enum { MAX_TENSORS = 64, NAME_BYTES = 64 };

fl_small_model fl_test_small_model_defaults(void)
{
    return (fl_small_model){.n_layers = 2,
                            .hidden_size = 64,
                            .n_heads = 4,
                            .n_kv_heads = 2,
                            .ffn_size = 96,
                            .n_positions = 96,
                            .vocab_size = 264};
}

static void check(fl_status st, const fl_err *err)
{
    if (st != FL_OK) fail_msg("%s", err->text);
}

void fl_test_write_text(const char *path, const char *text)
{
    fl_err err = {""};
    check(fl__file_write(path, text, strlen(text), &err), &err);
}

static void write_json(const char *dir, const char *name, json_t *doc)
{
    char *path = fl__path_join(dir, name), *text = doc ? fl__json_dump(doc, 1) : NULL;
    if (!path || !text) fail_msg("out of memory for %s", name);
    fl_test_write_text(path, text);
    fl__free(&path);
    fl__free(&text);
    json_decref(doc);
}

static int head_dim(const fl_small_model *m)
{
    return m->head_dim ? m->head_dim : m->hidden_size / m->n_heads;
}

static void write_config(const char *dir, const fl_small_model *m)
{
    write_json(
        dir, "config.json",
        json_pack("{s:s, s:[s], s:i, s:i, s:i, s:i, s:i, s:i, s:i, s:i, s:s, s:f, s:f, s:b, "
                  "s:i, s:i}",
                  "model_type", "llama", "architectures", "LlamaForCausalLM",
                  "num_hidden_layers", m->n_layers, "hidden_size", m->hidden_size,
                  "num_attention_heads", m->n_heads, "num_key_value_heads", m->n_kv_heads,
                  "head_dim", head_dim(m), "intermediate_size", m->ffn_size,
                  "max_position_embeddings", m->n_positions, "vocab_size", m->vocab_size,
                  "hidden_act", "silu", "rms_norm_eps", 1e-5, "rope_theta", 10000.0,
                  "tie_word_embeddings", 1, "bos_token_id", FL_SMALL_BOS,
                  "eos_token_id", FL_SMALL_EOS));
}

/* ---- tokenizer --------------------------------------------------------------------------- */

/* The printable character that stands for a byte in byte-level vocabularies, as UTF-8:
 * printable Latin-1 as itself, the others counted up from U+0100. */
static void byte_token(char out[3], int byte)
{
    int code = 0x100;
    for (int b = 0; b < 256; b++) {
        const bool printable = (b >= 0x21 && b <= 0x7e) || (b >= 0xa1 && b != 0xad);
        if (b == byte) {
            if (printable) code = b;
            break;
        }
        code += !printable;
    }
    if (code < 0x80) {
        (void)snprintf(out, 3, "%c", code);
    } else {
        out[0] = (char)(0xc0 | code >> 6);
        out[1] = (char)(0x80 | (code & 0x3f));
        out[2] = '\0';
    }
}

static json_t *added_token(int id, const char *text)
{
    return json_pack("{s:i, s:s, s:b, s:b, s:b, s:b, s:b}", "id", id, "content", text,
                     "single_word", 0, "lstrip", 0, "rstrip", 0, "normalized", 0, "special", 1);
}

static void write_tokenizer(const char *dir, const fl_small_model *m)
{
    json_t *vocab = json_object(), *single = json_array();
    for (int b = 0; b < 256; b++) {
        char token[3];
        byte_token(token, b);
        (void)json_object_set_new(vocab, token, json_integer(b));
    }
    if (m->adds_bos)
        (void)json_array_append_new(
            single, json_pack("{s:{s:s, s:i}}", "SpecialToken", "id", "<s>", "type_id", 0));
    (void)json_array_append_new(
        single, json_pack("{s:{s:s, s:i}}", "Sequence", "id", "A", "type_id", 0));
    write_json(
        dir, "tokenizer.json",
        json_pack("{s:s, s:n, s:n, s:[o, o], s:n, s:{s:s, s:b, s:b, s:b}, s:{s:s, s:o, s:[], "
                  "s:{s:{s:s, s:[i], s:[s]}}}, s:{s:s}, s:{s:s, s:o, s:[]}}",
                  "version", "1.0", "truncation", "padding", "added_tokens",
                  added_token(FL_SMALL_BOS, "<s>"), added_token(FL_SMALL_EOS, "</s>"),
                  "normalizer", "pre_tokenizer", "type", "ByteLevel", "add_prefix_space", 0,
                  "trim_offsets", 1, "use_regex", 1, "post_processor", "type",
                  "TemplateProcessing", "single", single, "pair", "special_tokens", "<s>", "id",
                  "<s>", "ids", FL_SMALL_BOS, "tokens", "<s>", "decoder", "type", "ByteLevel",
                  "model", "type", "BPE", "vocab", vocab, "merges"));
}

/* ---- weights ----------------------------------------------------------------------------- */

typedef struct tensor_list {
    fl_tensor_decl decls[MAX_TENSORS];
    char names[MAX_TENSORS][NAME_BYTES];
    size_t n;
} tensor_list;

static void add(tensor_list *t, int layer, const char *name, int rows, int cols)
{
    char *full = t->names[t->n];
    if (t->n == MAX_TENSORS) fail_msg("too many layers");
    if (layer < 0) (void)snprintf(full, NAME_BYTES, "model.%s.weight", name);
    else (void)snprintf(full, NAME_BYTES, "model.layers.%d.%s.weight", layer, name);
    t->decls[t->n++] = (fl_tensor_decl){
        .name = full, .dtype = FL_DTYPE_F32, .n_dims = cols > 0 ? 2 : 1, .dims = {rows, cols}};
}

static void declare(tensor_list *t, const fl_small_model *m)
{
    const int hidden = m->hidden_size, heads = m->n_heads * head_dim(m);
    const int kv = m->n_kv_heads * head_dim(m);
    add(t, -1, "embed_tokens", m->vocab_size, hidden);
    add(t, -1, "norm", hidden, 0);
    for (int i = 0; i < m->n_layers; i++) {
        add(t, i, "input_layernorm", hidden, 0);
        add(t, i, "post_attention_layernorm", hidden, 0);
        add(t, i, "self_attn.q_proj", heads, hidden);
        add(t, i, "self_attn.k_proj", kv, hidden);
        add(t, i, "self_attn.v_proj", kv, hidden);
        add(t, i, "self_attn.o_proj", hidden, heads);
        add(t, i, "mlp.gate_proj", m->ffn_size, hidden);
        add(t, i, "mlp.up_proj", m->ffn_size, hidden);
        add(t, i, "mlp.down_proj", hidden, m->ffn_size);
    }
}

/* Norms near 1, matrices so that activations keep their size. */
static void write_tensor(fl_safetensors_writer *w, const fl_tensor_decl *d, fl_rng *r)
{
    const bool is_norm = d->n_dims == 1;
    const int64_t n = is_norm ? d->dims[0] : d->dims[0] * d->dims[1];
    const double deviation = is_norm ? 0.1 : 0.15;
    fl_err err = {""};
    for (int64_t i = 0; i < n; i++) {
        const float x = (float)((is_norm ? 1 : 0) + deviation * fl__rng_normal(r));
        check(fl__safetensors_writer_write(w, d->name, &x, sizeof x, &err), &err);
    }
}

static void write_weights(const char *dir, const fl_small_model *m)
{
    static tensor_list t;
    fl_safetensors_writer *w;
    fl_err err = {""};
    fl_rng r = fl__rng_init(m->seed, 0, "small-model");
    char *path = fl__path_join(dir, "model.safetensors");
    if (!path) fail_msg("out of memory");
    t.n = 0;
    declare(&t, m);
    check(fl__safetensors_writer_open(&w, path, t.decls, t.n, NULL, 0, &err), &err);
    for (size_t i = 0; i < t.n; i++) write_tensor(w, &t.decls[i], &r);
    check(fl__safetensors_writer_commit(&w, &err), &err);
    fl__free(&path);
}

const char *fl_test_small_model(const char *name, const fl_small_model *model)
{
    const char *dir = fl_test_path(name);
    fl_err err = {""};
    check(fl__dir_make(dir, &err), &err);
    write_config(dir, model);
    write_tokenizer(dir, model);
    write_weights(dir, model);
    return dir;
}
