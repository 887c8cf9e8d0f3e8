/* quantized.h - our quantised checkpoint: which tensors it has and how a site is read from
 * them.
 *
 * config.json carries "quantization_config" (docs/formats.md); per block and site it says how
 * the site runs. Tensors, <lin> being the full name of a linear and <site> that of the site's
 * first linear:
 *   <lin>.weight            I8 [N, K], or U8 [N, (K+1)/2] nibbles (kernels/layout.h), or the
 *   float weight <lin>.weight_scale      F32 [N] or [1]
 *   <lin>.bias              F32 [N], where the family has one or bias correction made one
 *   <site>.input_scale      F32 [1]      static activations
 *   <site>.input_copies     U16 [K]      k_c of flattening, absent when all are 1
 *   <site>.weight_copies    U16 [K]      digits per column of its weights, absent when all are
 *   1; the codes are then [N, K + sum of (digits - 1)]: digits beyond the first lie behind
 *   the K plain columns, channel by channel
 *   <site>.input_multiplier F32 [K]      applied before quantising, where smoothing could not
 *                                        be folded
 *   <site>.transform_left   F32 [n1, n1] factors of the input's transform (transform.h), n1 *
 *   <site>.transform_right  F32 [n2, n2] n2 = K; absent: identity
 *   <site>.input_clip       F32 [2]      per token: clips of the largest and the smallest
 *                                        value; [linears of the site, 2]: of each of them
 * and per block, <attention> being what is before the name of k_proj:
 *   <attention>.kv_clip     F32 [4]      clips of K and V (fl_kv_rows), absent when all are 1
 *   <attention>.key_transform, .query_transform  F32 [head_dim, head_dim], both or none: each
 *                                        head of k, of q, after the rotary embedding, times it
 * and, where head_bits is 8, beside the embedding, tied or not:
 *   <head>              I8 [vocab, K]    codes of the head; <head>_scale F32 [vocab]
 * SPDX-License-Identifier: MIT */
#ifndef FL_MODEL_QUANTIZED_H
#define FL_MODEL_QUANTIZED_H

#include "model/model.h"

#define FL_MAX_COPIES 4096 /* of one channel */
#define FL_MAX_CODE_COLUMNS 65536
#define FL_HEAD_NAME_BYTES 64

/* Names of fl_act_kind in the file: "float", "static", "token". */
extern const char *const fl__act_names[3];

/* Fills model->sites, quant_method, bits and formats of K and V from model->cfg.quant. The head
 * has 16 or 8 bits.
 * FL_E_INPUT names the field. */
fl_status fl__quantized_config_load(fl_model *model, fl_err *err);
/* Loads site `which` of a block whose roles (n_in, linears) are set. */
fl_status fl__quantized_site_load(fl_block *block, const fl_model *model, int layer, int which,
                                  fl_err *err);
/* Loads what the block's attention has beside its linears. */
fl_status fl__quantized_attention_load(fl_block *block, const fl_model *model, int layer,
                                       fl_err *err);
/* Sizes of the factors that the checkpoint's tensors give to a site: *n1 * *n2 = K, or 0 and 0
 * where it has none. FL_E_INPUT when they do not fit K. */
fl_status fl__quantized_transform_sizes(int *n1, int *n2, const fl_model *model, int layer,
                                        int which, fl_err *err);
/* The site's transform; t stays empty where it has none. */
fl_status fl__quantized_transform_load(fl_transform *t, const fl_model *model, int layer,
                                       int which, fl_err *err);
/* The block's head transforms. */
fl_status fl__quantized_heads_load(fl_block *block, const fl_model *model, int layer,
                                   fl_err *err);
/* "lm_head.weight_scale" */
void fl__head_scale_name(char name[FL_HEAD_NAME_BYTES], const fl_model *model);
/* The 8-bit head and its site, whose n_in and linears are set; pack: for the kernels. */
fl_status fl__quantized_head_load(fl_model *model, bool pack, fl_err *err);
/* Columns that <site>.weight_copies adds to the weights of a site with static activations; 0
 * where it is absent, -1 where it is damaged. */
int64_t fl__quantized_weight_extra(const fl_model *model, int layer, int first_linear);
/* A float vector of n elements of the checkpoint as float32, owned. */
fl_status fl__model_vector(float **out, const fl_model *model, const char *name, int n,
                           fl_err *err);

#endif
