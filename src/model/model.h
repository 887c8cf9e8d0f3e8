/* model.h - a model in memory and its forward pass: the one path of evaluation, generation,
 * calibration.
 *
 * A block is a list of ops over named activation buffers, built once by its family (llama.c,
 * opt.c); an executor walks the list. Calibration hooks into the same walk, a GPU executor will
 * walk the same list. Activations are float32 [rows, width], rows = tokens of all sequences of
 * the batch one after another.
 * SPDX-License-Identifier: MIT */
#ifndef FL_MODEL_MODEL_H
#define FL_MODEL_MODEL_H

#include "base/exec.h"
#include "format/safetensors.h"
#include "model/config.h"
#include "model/kv_cache.h"
#include "model/linear.h"

/* Sites of a block, in the order in which they run. */
enum { FL_SITE_QKV, FL_SITE_O, FL_SITE_UP, FL_SITE_DOWN, FL_N_SITES };
/* Linears of a block. OPT: fc1 is UP, fc2 is DOWN, there is no GATE. */
enum {
    FL_LIN_Q,
    FL_LIN_K,
    FL_LIN_V,
    FL_LIN_O,
    FL_LIN_GATE,
    FL_LIN_UP,
    FL_LIN_DOWN,
    FL_N_LINEARS
};

typedef enum fl_op_kind {
    FL_OP_NORM,      /* dst = norm[which](src) */
    FL_OP_SITE,      /* dst, dst2, dst3 = linears of site[which] (src) */
    FL_OP_ROPE,      /* src (Q) and src2 (K) rotated in place by position */
    FL_OP_HEADS,     /* src (Q) and src2 (K): each head transformed in place, where the block
                        has head transforms */
    FL_OP_ATTENTION, /* K (src2), V (src3) appended to the cache; dst = attention of Q (src) */
    FL_OP_SILU_MUL,  /* dst = silu(src) * src2 */
    FL_OP_RELU,      /* dst = max(src, 0) in place */
    FL_OP_ADD,       /* dst += src */
} fl_op_kind;

/* Activation buffers. */
enum {
    FL_BUF_X,
    FL_BUF_NORM,
    FL_BUF_Q,
    FL_BUF_K,
    FL_BUF_V,
    FL_BUF_ATTN,
    FL_BUF_GATE,
    FL_BUF_UP,
    FL_BUF_T,
    FL_N_BUFS
};

typedef struct fl_op {
    fl_op_kind kind;
    int which; /* norm or site number */
    int src, src2, src3, dst, dst2, dst3;
} fl_op;

#define FL_MAX_OPS 16
typedef struct fl_program {
    fl_op ops[FL_MAX_OPS];
    int n_ops;
    int n_attention_ops; /* the first half: until the MLP's half starts from FL_BUF_X alone */
    int width[FL_N_BUFS]; /* floats per row of each buffer, 0: unused */
} fl_program;

typedef struct fl_norm {
    float *gain; /* [hidden] owned */
    float *bias; /* [hidden] owned, NULL: RMSNorm */
} fl_norm;

typedef struct fl_block {
    fl_norm norm[2];
    fl_linear linear[FL_N_LINEARS];
    fl_site site[FL_N_SITES];
    float kv_clip[4]; /* fl_kv_rows.clip of this layer, 1 by default */
    /* right factors [head_dim, head_dim] over n_heads, n_kv_heads; n1 0: none */
    fl_transform head_transform_q, head_transform_k;
} fl_block;

/* How one site of a quantised model runs, from quantization_config. */
typedef struct fl_site_info {
    fl_act_kind act;
    int w_bits, a_bits;
    bool is_unsigned;
    bool asymmetric; /* token */
} fl_site_info;

typedef struct fl_model {
    fl_model_config cfg;
    fl_tensors *tensors;     /* the open checkpoint; float weights are borrowed from it */
    char *dir;
    const char *prefix;      /* of tensor names: "model.", "model.decoder." */
    const char *quant_method; /* "none", or quantization_config.method; borrowed from
                                 cfg.quant */
    fl_site_info *sites;     /* [n_layers, FL_N_SITES], NULL: float model */
    int w_bits, a_bits;      /* 16 float, 0 mixed */
    int head_bits;           /* 16: float; 8: int8 per output channel, inputs int8 per token */
    fl_kv_format k_format, v_format; /* of the cache that this model runs with */
    fl_program program;      /* of every block */
    fl_linear embed;         /* [vocab, embed_size] as rows; w only */
    fl_linear positions;     /* OPT: [n_positions + 2, hidden] as rows; n_out 0: none */
    fl_linear project_in, project_out; /* OPT-350M; n_out 0: none */
    fl_linear head;          /* [vocab, embed_size]; tied and float: borrows embed's w */
    fl_site head_site;       /* of head alone */
    fl_norm final_norm;      /* gain NULL: none */
    float *rope_cos, *rope_sin; /* [n_positions, head_dim/2] owned; NULL: no RoPE */
    fl_block *blocks;        /* [n_layers], or NULL when opened for streaming */
    bool keeps_codes; /* integer weights stay as the file has them, borrowed, for a device; the
                         CPU's kernels cannot run such a model */
    double stream_max_extra; /* streaming: code columns that flattening may add per input
                                channel */
    size_t stream_transform_bytes; /* streaming: fl__transform_scratch_bytes of the largest
                                      transform that a block will get; 0: none */
    bool stream_own_clips; /* streaming: linears of a site will have clips of their own */
    fl_kv_format stream_k_format, stream_v_format; /* streaming: of the cache that the quantised
                                                      model will run with */
    int64_t n_params;
    size_t weight_bytes;     /* read by one forward pass, embedding rows apart */
} fl_model;

/* Memory for batches of up to max_rows tokens; kv heads etc. from the model. */
typedef struct fl_workspace {
    int max_rows;
    float *buf[FL_N_BUFS]; /* [max_rows, program.width[i]] */
    float *embed;          /* [max_rows, embed_size] rows before project_in / after
                              project_out */
    void *scratch;         /* of the kernels */
    size_t scratch_bytes;
    double *op_s; /* [FL_MAX_OPS] borrowed; seconds of each op of a block are added to it; NULL:
                     not measured */
} fl_workspace;

/* Config and tensor headers only: the weights, norms and blocks of *out are empty. For those
 * who want to know what a model is or ought to be. */
fl_status fl__model_open_config(fl_model **out, const char *dir, fl_err *err);
/* Opens a model directory, float or quantised. streaming: blocks stay unloaded, see
 * fl__block_load, and the codes of an 8-bit head unpacked. */
fl_status fl__model_open(fl_model **out, const char *dir, const fl_exec *ex, bool streaming,
                         fl_err *err);
/* The same for a device: keeps_codes. */
fl_status fl__model_open_codes(fl_model **out, const char *dir, fl_err *err);
/* The last step of opening: rotary table and sums, for a model put together elsewhere. */
fl_status fl__model_complete(fl_model *model, fl_err *err);
void fl__model_close(fl_model **model);
/* Bytes that a streaming model takes beside its map: rotary table, final norm, list of
 * tensors. */
size_t fl__model_table_bytes(const fl_model *model);

/* Loads one block of the open checkpoint; weights are borrowed from the map. */
fl_status fl__block_load(fl_block *block, const fl_model *model, int layer, fl_err *err);
void fl__block_fini(fl_block *block);

size_t fl__workspace_bytes(const fl_model *model, const fl_exec *ex, int max_rows);
fl_status fl__workspace_new(fl_workspace **out, const fl_model *model, const fl_exec *ex,
                            int max_rows, fl_err *err);
void fl__workspace_free(fl_workspace **ws);

/* buf[FL_BUF_X] = embeddings of ids[n_rows] at the spans' positions. */
void fl__model_embed(const fl_model *model, const fl_exec *ex, fl_workspace *ws,
                     const int32_t *ids, const fl_span *spans, int n_spans);

/* Called before an FL_OP_SITE runs, with its input; may be NULL. Returning false ends the walk
 * there. */
typedef bool fl_site_hook(void *user, int site, const float *x, int n_rows);
/* Which ops of a block to run. A half starts from FL_BUF_X alone and leaves its result
 * there. */
typedef enum fl_half { FL_HALF_BOTH, FL_HALF_ATTENTION, FL_HALF_MLP } fl_half;

/* buf[FL_BUF_X] <- block(buf[FL_BUF_X]); `layer` is the cache's layer index. The cache has
 * room. */
void fl__block_run(const fl_model *model, const fl_block *block, int layer, fl_half half,
                   const fl_exec *ex, fl_workspace *ws, fl_kv_cache *kv, const fl_span *spans,
                   int n_spans, fl_site_hook *hook, void *user);

/* All blocks and the final norm: hidden states of the batch, ready for fl__model_logits, are
 * left in ws (borrowed, [n_rows, embed_size]). Resizes the cache's sequences to hold the
 * spans. */
const float *fl__model_forward(const fl_model *model, const fl_exec *ex, fl_workspace *ws,
                               fl_kv_cache *kv, const int32_t *ids, const fl_span *spans,
                               int n_spans);
/* final norm (+ project_out) of buf[FL_BUF_X], as fl__model_forward ends. */
const float *fl__model_finish(const fl_model *model, const fl_exec *ex, fl_workspace *ws,
                              int n_rows);
/* logits [n, vocab] of n rows of hidden. */
void fl__model_logits(const fl_model *model, const fl_exec *ex, fl_workspace *ws,
                      const float *hidden, int n, float *logits);

/* Cache options for this model. */
fl_kv_options fl__model_kv_options(const fl_model *model, int n_sequences, int n_positions);

#endif
