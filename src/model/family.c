/* family.c - what all families share about names, shapes and programs.
 * SPDX-License-Identifier: MIT */
#include "model/family.h"

#include <stdio.h>

const char *const fl__site_names[FL_N_SITES] = {"qkv", "o", "up", "down"};

const fl_family_def *fl__family(const fl_model_config *cfg)
{
    return cfg->family == FL_FAMILY_LLAMA ? &fl__family_llama : &fl__family_opt;
}

void fl__linear_shape(int *n_out, int *n_in, const fl_model_config *cfg, int linear)
{
    const int attn = cfg->n_heads * cfg->head_dim, kv = cfg->n_kv_heads * cfg->head_dim;
    const int shape[FL_N_LINEARS][2] = {
        [FL_LIN_Q] = {attn, cfg->hidden_size},   [FL_LIN_K] = {kv, cfg->hidden_size},
        [FL_LIN_V] = {kv, cfg->hidden_size},     [FL_LIN_O] = {cfg->hidden_size, attn},
        [FL_LIN_GATE] = {cfg->ffn_size, cfg->hidden_size},
        [FL_LIN_UP] = {cfg->ffn_size, cfg->hidden_size},
        [FL_LIN_DOWN] = {cfg->hidden_size, cfg->ffn_size},
    };
    const bool there = fl__family(cfg)->linear[linear] != NULL;
    *n_out = there ? shape[linear][0] : 0;
    *n_in = there ? shape[linear][1] : 0;
}

int fl__site_linears(int linears[FL_SITE_MAX_LINEARS], const fl_model_config *cfg, int site)
{
    static const int of_site[FL_N_SITES][FL_SITE_MAX_LINEARS] = {
        [FL_SITE_QKV] = {FL_LIN_Q, FL_LIN_K, FL_LIN_V},
        [FL_SITE_O] = {FL_LIN_O, -1, -1},
        [FL_SITE_UP] = {FL_LIN_GATE, FL_LIN_UP, -1},
        [FL_SITE_DOWN] = {FL_LIN_DOWN, -1, -1},
    };
    int n = 0;
    for (int i = 0; i < FL_SITE_MAX_LINEARS; i++) {
        const int lin = of_site[site][i];
        if (lin >= 0 && fl__family(cfg)->linear[lin]) linears[n++] = lin;
    }
    return n;
}

static void tensor_name(char name[FL_MAX_TENSOR_NAME], const fl_model *model, int layer,
                        const char *part, const char *suffix)
{
    (void)snprintf(name, FL_MAX_TENSOR_NAME, "%s%s%d.%s%s", model->prefix,
                   fl__family(&model->cfg)->layers, layer, part, suffix);
}

void fl__linear_tensor_name(char name[FL_MAX_TENSOR_NAME], const fl_model *model, int layer,
                            int linear, const char *suffix)
{
    tensor_name(name, model, layer, fl__family(&model->cfg)->linear[linear], suffix);
}

void fl__attention_tensor_name(char name[FL_MAX_TENSOR_NAME], const fl_model *model, int layer,
                               const char *suffix)
{
    tensor_name(name, model, layer, "self_attn", suffix);
}

void fl__norm_tensor_name(char name[FL_MAX_TENSOR_NAME], const fl_model *model, int layer,
                          int norm, const char *suffix)
{
    tensor_name(name, model, layer, fl__family(&model->cfg)->norm[norm], suffix);
}

void fl__program_add(fl_program *p, fl_op op)
{
    p->ops[p->n_ops++] = op;
}
