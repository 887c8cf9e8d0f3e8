/* config.c - config.json of the two families.
 *
 * Defaults are those of the Hugging Face configuration classes, because a file may leave out
 * what equals them; sizes that decide tensor shapes must be there. What we do not compute is
 * refused rather than ignored, as far as fields are known that would change the result: a model
 * that runs but computes something else is worse than one that does not run. Fields that matter
 * only in training (dropout, init_std) or to other programs are not looked at.
 * SPDX-License-Identifier: MIT */
#include "model/config.h"

#include "base/file.h"
#include "base/mem.h"

#include <inttypes.h>
#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

enum { MAX_LAYERS = 1 << 12, MAX_HEADS = 1 << 14, MAX_HEAD_DIM = 1 << 9 };
#define MAX_CONFIG_BYTES     ((size_t)64 << 20) /* quantization_config lists every layer */
#define MAX_GENERATION_BYTES ((size_t)1 << 20)

/* One file being read: what the helpers below need besides the key. */
typedef struct {
    const json_t *root;
    const char *where;
    fl_err *err;
} source;

static fl_status fail_unsupported(const source *src, const char *key, const json_t *v,
                                  const char *supported)
{
    char shown[FL_JSON_SHOWN_BYTES];
    fl__json_show(shown, v);
    return fl__fail(src->err, FL_E_UNSUPPORTED,
                    "unsupported model: %s: %s is %s; supported: %s", src->where, key, shown,
                    supported);
}

static fl_status fail_input(const source *src, const char *key, const char *why)
{
    return fl__fail(src->err, FL_E_INPUT, "bad field: %s: %s %s; fix the file", src->where, key,
                    why);
}

/* A size from 1 to max; absent: *value is kept when it is not 0, else the field is missing. */
static fl_status get_size(int *value, const source *src, const char *key, int max)
{
    int64_t n = *value;
    const fl_status st =
        fl__json_get_int(src->root, key, n == 0, 1, max, &n, src->where, src->err);
    if (!st) *value = (int)n;
    return st;
}

static fl_status get_bool(bool *value, const source *src, const char *key)
{
    return fl__json_get_bool(src->root, key, false, value, src->where, src->err);
}

/* A finite number above min (or equal to it); absent: *value is kept unless required. */
static fl_status get_number(double *value, const source *src, const char *key, bool required,
                            double min)
{
    double x = *value;
    char why[64];
    const fl_status st =
        fl__json_get_double(src->root, key, required, &x, src->where, src->err);
    if (st) return st;
    if (!isfinite(x) || x < min || x <= 0) {
        (void)snprintf(why, sizeof why, "is %g, wanted a number %s %g", x,
                       min > 0 ? "of at least" : "above", min);
        return fail_input(src, key, why);
    }
    *value = x;
    return FL_OK;
}

/* The field, NULL when absent or null. */
static const json_t *get(const source *src, const char *key)
{
    const json_t *v = json_object_get(src->root, key);
    return json_is_null(v) ? NULL : v;
}

static bool is_text(const json_t *v, const char *text)
{
    return json_is_string(v) && strcmp(json_string_value(v), text) == 0;
}

/* Absent, or this text. */
static fl_status want_text(const source *src, const char *key, const char *text)
{
    const json_t *v = get(src, key);
    return !v || is_text(v, text) ? FL_OK : fail_unsupported(src, key, v, text);
}

/* Absent, or this number. */
static fl_status want_number(const source *src, const char *key, double number)
{
    char supported[32];
    const json_t *v = get(src, key);
    if (!v || (json_is_number(v) && json_number_value(v) == number)) return FL_OK;
    (void)snprintf(supported, sizeof supported, "%g", number);
    return fail_unsupported(src, key, v, supported);
}

/* Absent, or off. */
static fl_status want_off(const source *src, const char *key)
{
    const json_t *v = get(src, key);
    const bool zero = json_is_number(v) && json_number_value(v) == 0;
    return !v || zero || json_is_false(v) ? FL_OK
                                          : fail_unsupported(src, key, v, "models without it");
}

/* ---- tokens ------------------------------------------------------------------------- */

static fl_status parse_eos(fl_model_config *cfg, const source *src)
{
    const json_t *v = get(src, "eos_token_id");
    const size_t n = json_is_array(v) ? json_array_size(v) : 1;
    int ids[FL_MAX_EOS_IDS];
    if (!v) return FL_OK;
    if (n > FL_MAX_EOS_IDS)
        return fail_unsupported(src, "eos_token_id", v, "at most 8 end tokens");
    for (size_t i = 0; i < n; i++) {
        const json_t *id = json_is_array(v) ? json_array_get(v, i) : v;
        if (!json_is_integer(id) || json_integer_value(id) < 0 ||
            json_integer_value(id) > INT_MAX)
            return fail_input(src, "eos_token_id", "is neither a token id nor a list of them");
        ids[i] = (int)json_integer_value(id);
    }
    memcpy(cfg->eos_ids, ids, n * sizeof ids[0]);
    cfg->n_eos = (int)n;
    return FL_OK;
}

static fl_status parse_tokens(fl_model_config *cfg, const source *src)
{
    int64_t bos = -1;
    fl_status st = fl__json_get_int(src->root, "bos_token_id", false, -1, INT_MAX, &bos,
                                    src->where, src->err);
    if (!st) st = parse_eos(cfg, src);
    cfg->bos_id = (int)bos;
    return st;
}

/* ---- rotary positions --------------------------------------------------------------- */

static fl_status parse_llama3(fl_model_config *cfg, const source *rope)
{
    fl_status st = get_number(&cfg->rope.low_freq_factor, rope, "low_freq_factor", true, 0);
    if (!st) st = get_number(&cfg->rope.high_freq_factor, rope, "high_freq_factor", true, 0);
    if (!st)
        st = get_size(&cfg->rope.original_positions, rope, "original_max_position_embeddings",
                      FL_MAX_SIZE);
    if (!st && cfg->rope.high_freq_factor <= cfg->rope.low_freq_factor)
        st = fail_input(rope, "high_freq_factor", "is not above low_freq_factor");
    return st;
}

/* rope is rope_parameters or rope_scaling. */
static fl_status parse_rope_object(fl_model_config *cfg, const source *rope)
{
    const json_t *type = get(rope, "rope_type");
    const char *key = type ? "rope_type" : "type";
    if (!type) type = get(rope, "type");

    fl_status st = want_number(rope, "partial_rotary_factor", 1);
    if (!st) st = get_number(&cfg->rope.theta, rope, "rope_theta", false, 0);
    if (st) return st;
    if (!type) {
        if (!get(rope, "factor")) return FL_OK;
        return fail_input(rope, "rope_type", "is not there, but factor is");
    }
    if (is_text(type, "default")) return FL_OK;
    if (is_text(type, "linear")) cfg->rope.kind = FL_ROPE_LINEAR;
    else if (is_text(type, "llama3")) cfg->rope.kind = FL_ROPE_LLAMA3;
    else return fail_unsupported(rope, key, type, "default, linear, llama3");
    st = get_number(&cfg->rope.factor, rope, "factor", true, 1);
    if (!st && cfg->rope.kind == FL_ROPE_LLAMA3) st = parse_llama3(cfg, rope);
    return st;
}

static fl_status parse_rope(fl_model_config *cfg, const source *src)
{
    static const char *const keys[] = {"rope_parameters", "rope_scaling"};
    const json_t *seen = NULL;
    cfg->rope.kind = FL_ROPE_DEFAULT;
    cfg->rope.theta = 10000;
    cfg->rope.factor = 1;
    fl_status st = get_number(&cfg->rope.theta, src, "rope_theta", false, 0);
    for (size_t i = 0; !st && i < FL_COUNT(keys); i++) {
        const json_t *v = get(src, keys[i]);
        char where[512];
        if (!v) continue;
        if (!json_is_object(v)) return fail_input(src, keys[i], "is no object");
        if (seen && !json_equal((json_t *)(uintptr_t)seen, (json_t *)(uintptr_t)v))
            return fail_unsupported(src, keys[i], v, "either it or rope_parameters");
        (void)snprintf(where, sizeof where, "%s: %s", src->where, keys[i]);
        st = parse_rope_object(cfg, &(source){v, where, src->err});
        seen = v;
    }
    return st;
}

/* ---- families ----------------------------------------------------------------------- */

/* Checkpoints of other heads (classification, embeddings) have other tensors. */
static fl_status want_architecture(const source *src, const char *name)
{
    const json_t *list = get(src, "architectures"), *entry;
    size_t i;
    if (!list || (json_is_array(list) && json_array_size(list) == 0)) return FL_OK;
    json_array_foreach(list, i, entry)
    {
        if (is_text(entry, name)) return FL_OK;
    }
    return fail_unsupported(src, "architectures",
                            json_array_size(list) == 1 ? json_array_get(list, 0) : list, name);
}

/* Some files give a window that is switched off beside it. */
static fl_status refuse_sliding_window(const source *src)
{
    const json_t *use = get(src, "use_sliding_window"), *window = get(src, "sliding_window");
    if (json_is_true(use))
        return fail_unsupported(src, "use_sliding_window", use,
                                "attention over the whole context");
    if (window && !json_is_false(use))
        return fail_unsupported(src, "sliding_window", window,
                                "attention over the whole context");
    const json_t *types = get(src, "layer_types"), *type;
    size_t i;
    json_array_foreach(types, i, type)
    {
        if (!is_text(type, "full_attention"))
            return fail_unsupported(src, "layer_types", type, "full_attention");
    }
    return FL_OK;
}

static fl_status refuse_llama_variants(const source *src)
{
    /* Fields of relatives that ship under model_type llama. */
    static const char *const off[] = {"num_local_experts", "num_experts",
                                      "attn_logit_softcapping", "final_logit_softcapping"};
    static const char *const ones[] = {"partial_rotary_factor", "embedding_multiplier",
                                       "residual_multiplier", "logits_scaling"};
    fl_status st = want_architecture(src, "LlamaForCausalLM");
    if (!st) st = want_text(src, "hidden_act", "silu");
    if (!st) st = refuse_sliding_window(src);
    for (size_t i = 0; !st && i < FL_COUNT(off); i++) st = want_off(src, off[i]);
    for (size_t i = 0; !st && i < FL_COUNT(ones); i++) st = want_number(src, ones[i], 1);
    return st;
}

/* head_dim where the file gives none. */
static fl_status derive_head_dim(fl_model_config *cfg, const source *src)
{
    if (cfg->hidden_size % cfg->n_heads != 0)
        return fail_input(src, "hidden_size", "is no multiple of num_attention_heads");
    cfg->head_dim = cfg->hidden_size / cfg->n_heads;
    if (cfg->head_dim > MAX_HEAD_DIM)
        return fail_input(src, "hidden_size", "makes heads of more than 512 channels");
    return FL_OK;
}

static fl_status parse_llama_heads(fl_model_config *cfg, const source *src)
{
    cfg->n_kv_heads = cfg->n_heads;
    fl_status st = get_size(&cfg->n_kv_heads, src, "num_key_value_heads", MAX_HEADS);
    if (!st && get(src, "head_dim"))
        st = get_size(&cfg->head_dim, src, "head_dim", MAX_HEAD_DIM);
    else if (!st) st = derive_head_dim(cfg, src);
    if (st) return st;
    if (cfg->n_heads % cfg->n_kv_heads != 0)
        return fail_input(src, "num_attention_heads", "is no multiple of num_key_value_heads");
    if (cfg->head_dim % 2 != 0) return fail_input(src, "head_dim", "is odd");
    if ((int64_t)cfg->n_heads * cfg->head_dim > FL_MAX_SIZE)
        return fail_input(src, "head_dim", "times num_attention_heads is above 1048576");
    return FL_OK;
}

static fl_status parse_llama(fl_model_config *cfg, const source *src)
{
    cfg->n_positions = 2048;
    cfg->norm_eps = 1e-6;
    cfg->pre_norm = cfg->final_norm = true;
    fl_status st = refuse_llama_variants(src);
    if (!st) st = get_size(&cfg->ffn_size, src, "intermediate_size", FL_MAX_SIZE);
    if (!st) st = get_size(&cfg->n_positions, src, "max_position_embeddings", FL_MAX_SIZE);
    if (!st) st = parse_llama_heads(cfg, src);
    if (!st) st = get_number(&cfg->norm_eps, src, "rms_norm_eps", false, 0);
    if (!st) st = get_bool(&cfg->tied_head, src, "tie_word_embeddings");
    if (!st) st = get_bool(&cfg->attn_bias, src, "attention_bias");
    if (!st) st = get_bool(&cfg->mlp_bias, src, "mlp_bias");
    if (!st) st = parse_rope(cfg, src);
    cfg->embed_size = cfg->hidden_size;
    return st;
}

static fl_status parse_opt(fl_model_config *cfg, const source *src)
{
    bool bias = true, no_final_norm = false, affine = true;
    cfg->n_positions = 2048;
    cfg->norm_eps = 1e-5;
    cfg->pre_norm = cfg->tied_head = true;
    cfg->embed_size = cfg->hidden_size;
    cfg->n_kv_heads = cfg->n_heads;
    cfg->rope.kind = FL_ROPE_NONE;
    fl_status st = want_architecture(src, "OPTForCausalLM");
    if (!st) st = want_text(src, "activation_function", "relu");
    if (!st) st = get_size(&cfg->ffn_size, src, "ffn_dim", FL_MAX_SIZE);
    if (!st) st = get_size(&cfg->n_positions, src, "max_position_embeddings", FL_MAX_SIZE);
    if (!st) st = get_size(&cfg->embed_size, src, "word_embed_proj_dim", FL_MAX_SIZE);
    if (!st) st = derive_head_dim(cfg, src);
    if (!st) st = get_bool(&cfg->tied_head, src, "tie_word_embeddings");
    if (!st) st = get_bool(&cfg->pre_norm, src, "do_layer_norm_before");
    if (!st) st = get_bool(&no_final_norm, src, "_remove_final_layer_norm");
    if (!st) st = get_bool(&affine, src, "layer_norm_elementwise_affine");
    if (!st) st = get_bool(&bias, src, "enable_bias");
    if (!st && !affine)
        st = fail_unsupported(src, "layer_norm_elementwise_affine", json_false(), "true");
    cfg->attn_bias = cfg->mlp_bias = bias;
    cfg->final_norm = cfg->pre_norm && !no_final_norm;
    return st;
}

static fl_status parse_quant(fl_model_config *cfg, const source *src)
{
    char where[512];
    const json_t *quant = get(src, "quantization_config");
    if (!quant) return FL_OK;
    if (!json_is_object(quant)) return fail_input(src, "quantization_config", "is no object");
    (void)snprintf(where, sizeof where, "%s: quantization_config", src->where);
    const source inner = {quant, where, src->err};
    const json_t *method = get(&inner, "quant_method"), *version = get(&inner, "version");
    if (!method) return fail_input(&inner, "quant_method", "is not there");
    if (!is_text(method, "flatiron"))
        return fail_unsupported(&inner, "quant_method", method, "flatiron, or a float model");
    if (!version) return fail_input(&inner, "version", "is not there");
    if (!json_is_integer(version) || json_integer_value(version) != FL_QUANT_VERSION)
        return fail_unsupported(&inner, "version", version, "1");
    cfg->quant = json_incref((json_t *)(uintptr_t)quant);
    return FL_OK;
}

static fl_status parse_family(fl_model_config *cfg, const source *src)
{
    const json_t *type = get(src, "model_type");
    if (!type) return fail_input(src, "model_type", "is not there");
    if (is_text(type, "llama")) cfg->family = FL_FAMILY_LLAMA;
    else if (is_text(type, "opt")) cfg->family = FL_FAMILY_OPT;
    else return fail_unsupported(src, "model_type", type, "llama, opt");
    return FL_OK;
}

/* ---- public ------------------------------------------------------------------------- */

fl_status fl__model_config_parse(fl_model_config *cfg, const json_t *root, const char *where,
                                 fl_err *err)
{
    const source src = {root, where, err};
    *cfg = (fl_model_config){.bos_id = -1};
    if (!json_is_object(root))
        return fl__fail(err, FL_E_INPUT,
                        "bad config: %s: it is no JSON object; get the file again", where);
    fl_status st = parse_family(cfg, &src);
    if (!st) st = get_size(&cfg->vocab_size, &src, "vocab_size", FL_MAX_SIZE);
    if (!st) st = get_size(&cfg->hidden_size, &src, "hidden_size", FL_MAX_SIZE);
    if (!st) st = get_size(&cfg->n_layers, &src, "num_hidden_layers", MAX_LAYERS);
    if (!st) st = get_size(&cfg->n_heads, &src, "num_attention_heads", MAX_HEADS);
    if (!st) st = parse_tokens(cfg, &src);
    if (!st)
        st = cfg->family == FL_FAMILY_LLAMA ? parse_llama(cfg, &src) : parse_opt(cfg, &src);
    if (!st) st = parse_quant(cfg, &src);
    return st;
}

fl_status fl__model_config_parse_generation(fl_model_config *cfg, const json_t *root,
                                            const char *where, fl_err *err)
{
    if (!json_is_object(root))
        return fl__fail(err, FL_E_INPUT,
                        "bad config: %s: it is no JSON object; get the file again", where);
    return parse_eos(cfg, &(source){root, where, err});
}

fl_status fl__model_config_load(fl_model_config *cfg, const char *model_dir, fl_err *err)
{
    fl_status st;
    json_t *root = NULL, *generation = NULL;
    char *path = fl__path_join(model_dir, "config.json");
    char *generation_path = fl__path_join(model_dir, "generation_config.json");

    *cfg = (fl_model_config){.bos_id = -1};
    if (!path || !generation_path) {
        st = fl__fail_nomem(err, model_dir, strlen(model_dir));
        goto out;
    }
    st = fl__json_load(&root, path, MAX_CONFIG_BYTES, err);
    if (!st) st = fl__model_config_parse(cfg, root, path, err);
    if (!st && fl__file_exists(generation_path)) {
        st = fl__json_load(&generation, generation_path, MAX_GENERATION_BYTES, err);
        if (!st) st = fl__model_config_parse_generation(cfg, generation, generation_path, err);
    }
out:
    if (st) fl__model_config_fini(cfg);
    json_decref(root);
    json_decref(generation);
    fl__free(&path);
    fl__free(&generation_path);
    return st;
}

void fl__model_config_fini(fl_model_config *cfg)
{
    json_decref(cfg->quant);
    cfg->quant = NULL;
}
