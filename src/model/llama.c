/* llama.c - LLaMA blocks: RMSNorm, rotary attention with grouped KV heads, SwiGLU.
 *
 *   x += o(attention(rope(q, k), v))   with q, k, v of norm0(x)
 *   x += down(silu(gate) * up)         with gate, up of norm1(x)
 * SPDX-License-Identifier: MIT */
#include "model/family.h"

static void build(fl_program *p, const fl_model_config *cfg)
{
    const int hidden = cfg->hidden_size, attn = cfg->n_heads * cfg->head_dim;
    const int kv = cfg->n_kv_heads * cfg->head_dim;
    *p = (fl_program){.width = {[FL_BUF_X] = hidden,
                                [FL_BUF_NORM] = hidden,
                                [FL_BUF_Q] = attn,
                                [FL_BUF_K] = kv,
                                [FL_BUF_V] = kv,
                                [FL_BUF_ATTN] = attn,
                                [FL_BUF_GATE] = cfg->ffn_size,
                                [FL_BUF_UP] = cfg->ffn_size,
                                [FL_BUF_T] = hidden}};
    fl__program_add(p, (fl_op){FL_OP_NORM, .which = 0, .src = FL_BUF_X, .dst = FL_BUF_NORM});
    fl__program_add(p, (fl_op){FL_OP_SITE, .which = FL_SITE_QKV, .src = FL_BUF_NORM,
                               .dst = FL_BUF_Q, .dst2 = FL_BUF_K, .dst3 = FL_BUF_V});
    fl__program_add(p, (fl_op){FL_OP_ROPE, .src = FL_BUF_Q, .src2 = FL_BUF_K});
    fl__program_add(p, (fl_op){FL_OP_HEADS, .src = FL_BUF_Q, .src2 = FL_BUF_K});
    fl__program_add(p, (fl_op){FL_OP_ATTENTION, .src = FL_BUF_Q, .src2 = FL_BUF_K,
                               .src3 = FL_BUF_V, .dst = FL_BUF_ATTN});
    fl__program_add(
        p, (fl_op){FL_OP_SITE, .which = FL_SITE_O, .src = FL_BUF_ATTN, .dst = FL_BUF_T});
    fl__program_add(p, (fl_op){FL_OP_ADD, .src = FL_BUF_T, .dst = FL_BUF_X});
    p->n_attention_ops = p->n_ops;
    fl__program_add(p, (fl_op){FL_OP_NORM, .which = 1, .src = FL_BUF_X, .dst = FL_BUF_NORM});
    fl__program_add(p, (fl_op){FL_OP_SITE, .which = FL_SITE_UP, .src = FL_BUF_NORM,
                               .dst = FL_BUF_GATE, .dst2 = FL_BUF_UP});
    fl__program_add(p, (fl_op){FL_OP_SILU_MUL, .src = FL_BUF_GATE, .src2 = FL_BUF_UP,
                               .dst = FL_BUF_UP});
    fl__program_add(
        p, (fl_op){FL_OP_SITE, .which = FL_SITE_DOWN, .src = FL_BUF_UP, .dst = FL_BUF_T});
    fl__program_add(p, (fl_op){FL_OP_ADD, .src = FL_BUF_T, .dst = FL_BUF_X});
}

static bool has_bias(const fl_model_config *cfg, int linear)
{
    return linear <= FL_LIN_O ? cfg->attn_bias : cfg->mlp_bias;
}

static const char *const prefixes[] = {"model.", NULL};

const fl_family_def fl__family_llama = {
    .prefixes = prefixes,
    .embed = "embed_tokens.weight",
    .final_norm = "norm",
    .head = "lm_head.weight",
    .layers = "layers.",
    .linear = {[FL_LIN_Q] = "self_attn.q_proj", [FL_LIN_K] = "self_attn.k_proj",
               [FL_LIN_V] = "self_attn.v_proj", [FL_LIN_O] = "self_attn.o_proj",
               [FL_LIN_GATE] = "mlp.gate_proj", [FL_LIN_UP] = "mlp.up_proj",
               [FL_LIN_DOWN] = "mlp.down_proj"},
    .norm = {"input_layernorm", "post_attention_layernorm"},
    .build = build,
    .has_bias = has_bias,
};
