/* block.h - one block from float to integers: fold the smoothing in, round site after site,
 * write the shard.
 * SPDX-License-Identifier: MIT */
#ifndef FL_QUANT_BLOCK_H
#define FL_QUANT_BLOCK_H

#include "quant/gptq.h"
#include "quant/plan.h"
#include "quant/stream.h"

/* Does k_proj's bias come to nothing? Without a rotary embedding it adds the same number to the
 * scores of all keys of a query, and the softmax takes that out again; it is dropped where K is
 * quantised, whose range it would only widen. */
bool fl__key_bias_is_dropped(const fl_model *model);

typedef struct fl_block_options {
    bool use_gptq; /* else nearest */
    fl_gptq_options gptq;
    bool w_per_tensor;
    bool search_scale; /* weight scales by least squared error, else max|w| */
    bool flatten_weights; /* split large columns of sites with static activations */
    double weight_beta, weight_max_ratio; /* threshold of that, cap on the columns it adds */
} fl_block_options;

/* Float32 copy of a block with the plan's smoothing folded in (methods: norms, v_proj and
 * up_proj rows), computed in double, and without a key bias that is dropped. plan: FL_N_SITES
 * entries or NULL: a plain float32 copy. Post-norm sites keep their factors as premul. */
fl_status fl__block_fold(fl_block *folded, const fl_model *model, int layer,
                         const fl_site_plan *plan, fl_err *err);

/* to = from, whose sites then point to to's linears; from is left empty. */
void fl__block_move(fl_block *to, fl_block *from);

/* What rounding did to one site. */
typedef struct fl_site_outcome {
    double gptq_error[FL_SITE_MAX_LINEARS]; /* relative, per linear; NaN for nearest */
    double damping;                         /* used; NaN for nearest */
    double weight_ratio, weight_threshold;  /* of columns in digits; 0, NaN without */
} fl_site_outcome;

/* A block being quantised: the folded float block, and the quantised one that grows site by
 * site. */
typedef struct fl_block_job {
    const fl_model *model;
    const fl_exec *ex;
    const fl_site_plan *plan;  /* [FL_N_SITES] */
    const fl_block_options *o;
    int layer;
    fl_block folded;           /* owned */
    fl_block quant;            /* norms, float weights and transforms that are equal to
                                  folded's are borrowed from it */
    int8_t *codes[FL_N_LINEARS]; /* [n_out, fl__site_weight_columns] owned; NULL: stays
                                    float */
    uint8_t *packed_w[FL_N_LINEARS]; /* weight-only 4-bit: nibbles that quant's linear reads */
    fl_weight_split split;           /* of the site being rounded; copies NULL: none */
    fl_site_outcome outcome[FL_N_SITES];
} fl_block_job;

/* folded: the float block to round, taken on success; NULL: the plan's smoothing is folded
 * here. */
fl_status fl__block_job_init(fl_block_job *j, const fl_model *model, const fl_exec *ex,
                             int layer, const fl_site_plan *plan, const fl_block_options *o,
                             fl_block *folded, fl_err *err);
void fl__block_job_fini(fl_block_job *j);
/* Rounds one site; sites must come in order. stream is needed for GPTQ (its lanes hold the
 * block's inputs), else NULL. FL_E_INTERRUPTED when the stream was told to stop. */
fl_status fl__block_job_site(fl_block_job *j, fl_stream *stream, int site, fl_err *err);
/* Writes the finished block as a safetensors shard; *n_bytes of tensor data. names, if not
 * NULL, is an array that receives the tensors' names as JSON strings. */
fl_status fl__block_job_write(const fl_block_job *j, const char *path, json_t *names,
                              int64_t *n_bytes, fl_err *err);

/* Bytes of a folded block; of what rounding leaves of one linear (codes, and the form that the
 * quantised lane runs on) where its site has `extra` code columns more per channel and its
 * codes `digits` more; and of what writing takes on top. */
size_t fl__block_float_bytes(const fl_model *model);
size_t fl__block_linear_bytes(const fl_model *model, int linear, int w_bits, fl_act_kind act,
                              double extra, double digits, bool w_per_tensor);
size_t fl__block_write_bytes(const fl_model *model, int w_bits);

#endif
