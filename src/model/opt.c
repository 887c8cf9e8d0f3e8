/* opt.c - OPT blocks: LayerNorm with bias, learned positions, ReLU MLP; post-norm for OPT-350M.
 *
 *   pre-norm:   x += out(attention(q, k, v of norm0(x)));  x += fc2(relu(fc1(norm1(x))))
 *   post-norm:  x = norm0(x + out(attention(q, k, v of x)));  x = norm1(x + fc2(relu(fc1(x))))
 *
 * fc1 has the role UP, fc2 the role DOWN. Position p is row p + 2 of the position table.
 * SPDX-License-Identifier: MIT */
#include "model/family.h"

static void build(fl_program *p, const fl_model_config *cfg)
{
    const int hidden = cfg->hidden_size;
    const bool pre = cfg->pre_norm;
    const int in = pre ? FL_BUF_NORM : FL_BUF_X;
    const fl_op norm0 = {FL_OP_NORM, .which = 0, .src = FL_BUF_X, .dst = in};
    const fl_op norm1 = {FL_OP_NORM, .which = 1, .src = FL_BUF_X, .dst = in};
    const fl_op add = {FL_OP_ADD, .src = FL_BUF_T, .dst = FL_BUF_X};

    *p = (fl_program){.width = {[FL_BUF_X] = hidden,
                                [FL_BUF_NORM] = pre ? hidden : 0,
                                [FL_BUF_Q] = hidden,
                                [FL_BUF_K] = hidden,
                                [FL_BUF_V] = hidden,
                                [FL_BUF_ATTN] = hidden,
                                [FL_BUF_UP] = cfg->ffn_size,
                                [FL_BUF_T] = hidden}};
    if (pre) fl__program_add(p, norm0);
    fl__program_add(p, (fl_op){FL_OP_SITE, .which = FL_SITE_QKV, .src = in, .dst = FL_BUF_Q,
                               .dst2 = FL_BUF_K, .dst3 = FL_BUF_V});
    fl__program_add(p, (fl_op){FL_OP_HEADS, .src = FL_BUF_Q, .src2 = FL_BUF_K});
    fl__program_add(p, (fl_op){FL_OP_ATTENTION, .src = FL_BUF_Q, .src2 = FL_BUF_K,
                               .src3 = FL_BUF_V, .dst = FL_BUF_ATTN});
    fl__program_add(
        p, (fl_op){FL_OP_SITE, .which = FL_SITE_O, .src = FL_BUF_ATTN, .dst = FL_BUF_T});
    fl__program_add(p, add);
    if (!pre) fl__program_add(p, norm0);
    p->n_attention_ops = p->n_ops;
    if (pre) fl__program_add(p, norm1);
    fl__program_add(p, (fl_op){FL_OP_SITE, .which = FL_SITE_UP, .src = in, .dst = FL_BUF_UP});
    fl__program_add(p, (fl_op){FL_OP_RELU, .src = FL_BUF_UP, .dst = FL_BUF_UP});
    fl__program_add(
        p, (fl_op){FL_OP_SITE, .which = FL_SITE_DOWN, .src = FL_BUF_UP, .dst = FL_BUF_T});
    fl__program_add(p, add);
    if (!pre) fl__program_add(p, norm1);
}

static bool has_bias(const fl_model_config *cfg, int linear)
{
    (void)linear;
    return cfg->attn_bias;
}

static const char *const prefixes[] = {"model.decoder.", "decoder.", NULL};

const fl_family_def fl__family_opt = {
    .prefixes = prefixes,
    .embed = "embed_tokens.weight",
    .positions = "embed_positions.weight",
    .final_norm = "final_layer_norm",
    .project_in = "project_in.weight",
    .project_out = "project_out.weight",
    .head = "lm_head.weight",
    .layers = "layers.",
    .linear = {[FL_LIN_Q] = "self_attn.q_proj", [FL_LIN_K] = "self_attn.k_proj",
               [FL_LIN_V] = "self_attn.v_proj", [FL_LIN_O] = "self_attn.out_proj",
               [FL_LIN_UP] = "fc1", [FL_LIN_DOWN] = "fc2"},
    .norm = {"self_attn_layer_norm", "final_layer_norm"},
    .position_offset = 2,
    .build = build,
    .has_bias = has_bias,
};
