/* config.h - what config.json says about a model, checked and with its defaults filled in.
 *
 * Two families: llama (RMSNorm, rotary positions, grouped-query heads, SwiGLU) and opt
 * (LayerNorm, learned positions with offset 2, ReLU, optionally post-norm and a narrower
 * embedding). A field that asks for anything else is FL_E_UNSUPPORTED and named; a field whose
 * value makes no sense is FL_E_INPUT and named. After success all sizes are positive, at most
 * FL_MAX_SIZE, and fit each other, so that products of two of them fit 64 bits.
 * SPDX-License-Identifier: MIT */
#ifndef FL_MODEL_CONFIG_H
#define FL_MODEL_CONFIG_H

#include "base/json.h"

#define FL_MAX_SIZE      (1 << 20)
#define FL_MAX_EOS_IDS   8
#define FL_QUANT_VERSION 1 /* of quantization_config */

typedef enum fl_family { FL_FAMILY_LLAMA, FL_FAMILY_OPT } fl_family;

typedef enum fl_rope_kind {
    FL_ROPE_NONE,    /* learned positions */
    FL_ROPE_DEFAULT, /* angle = position / theta^(2i/head_dim) */
    FL_ROPE_LINEAR,  /* the same with position / factor */
    FL_ROPE_LLAMA3,  /* long waves slowed down by factor, short ones kept, a ramp between */
} fl_rope_kind;

typedef struct fl_model_config {
    fl_family family;
    int n_layers, hidden_size, n_heads;
    int n_kv_heads; /* divides n_heads */
    int head_dim;   /* even where there is RoPE; n_heads * head_dim need not be hidden_size */
    int ffn_size, vocab_size;
    int n_positions; /* context length */
    int embed_size;  /* width of the embedding and the head: hidden_size but for OPT-350M */
    double norm_eps;
    bool tied_head;           /* the head is the embedding */
    bool attn_bias, mlp_bias; /* of q, k, v, o; of gate, up, down (OPT: fc1, fc2) */
    bool pre_norm,
        final_norm; /* norms before each half of a block; one behind the last block */
    struct {
        fl_rope_kind kind;
        double theta, factor, low_freq_factor, high_freq_factor;
        int original_positions;
    } rope;
    int bos_id; /* -1: none */
    int eos_ids[FL_MAX_EOS_IDS];
    int n_eos;
    json_t *quant; /* quantization_config, owned; NULL: a float checkpoint */
} fl_model_config;

/* Reads model_dir/config.json and, where there is one, the end tokens of
 * model_dir/generation_config.json, which go before those of config.json. */
fl_status fl__model_config_load(fl_model_config *cfg, const char *model_dir, fl_err *err);
/* The same from a parsed config.json; where names it in errors. */
fl_status fl__model_config_parse(fl_model_config *cfg, const json_t *root, const char *where,
                                 fl_err *err);
/* End tokens of a parsed generation_config.json replace those of cfg when it has any. */
fl_status fl__model_config_parse_generation(fl_model_config *cfg, const json_t *root,
                                            const char *where, fl_err *err);
void fl__model_config_fini(fl_model_config *cfg);

#endif
