/* job.h - quantising a model from its first block to its last: plan, rounding, output.
 *
 *   job_config.c  options of the public header made definite for a method
 *   job_config_flatquant.c  those of FlatQuant and quarot
 *   job_plan.c    one pass of the float model: smoothing, thresholds, bits of every site
 *   job.c         one pass of both lanes: every block rounded and written, resumable
 *   job_learn.c   FlatQuant: a block's transforms learned and folded before it is rounded
 *   job_tune.c    end-to-end tuning of the floats around the codes, behind the last block
 *   job_head.c    the 8-bit head
 *   job_finish.c  the tensors outside the blocks, config.json, side files, report
 *   job_memory.c  what it will take, for the dry run and for the comparison at the end
 *   job_time.c    how long it will take
 * SPDX-License-Identifier: MIT */
#ifndef FL_QUANT_JOB_H
#define FL_QUANT_JOB_H

#include "base/log.h"
#include "format/safetensors_write.h"
#include "model/quantized.h"
#include "quant/block.h"
#include "quant/checkpoint.h"
#include "quant/flatquant/flatquant.h"
#include "quant/flattenquant/flattenquant.h"
#include "quant/tune/tune.h"

typedef enum fl_select { FL_SELECT_KL, FL_SELECT_OUTPUT, FL_SELECT_RANDOM } fl_select;

/* Every choice made; nothing here is "automatic" any more. */
typedef struct fl_quant_config {
    const char *method;
    fl_act_kind act;
    bool mixed;          /* bits per site by selection; else w_bits, a_bits everywhere */
    int w_bits, a_bits;
    int k_bits, v_bits;  /* of the KV cache */
    int head_bits;       /* 16 or 8 */
    bool smooth_all;     /* all sites, else those behind norms only (SmoothQuant) */
    bool unsigned_codes;
    fl_flatten_options flatten; /* smooth off: no smoothing anywhere */
    double int4_ratio, gamma;   /* gamma < 0: off */
    fl_select select;
    fl_block_options block;
    bool asymmetric;     /* per-token activations with a zero point */
    bool transforms;     /* flatquant, quarot: sites get transforms before they are rounded */
    fl_flatquant_options flatquant;
    fl_tune_options tune;
    uint64_t seed;
    int n_samples, seq_len;
} fl_quant_config;

/* FL_E_USAGE names the option. */
fl_status fl__quant_config_resolve(fl_quant_config *c, const fl_quantize_options *o,
                                   const fl_model_config *model, uint32_t isa, fl_err *err);
/* Do scales per token come with a zero point? */
bool fl__quant_per_token_asymmetric(const fl_quantize_options *o);
/* FlatQuant's part of it. */
fl_status fl__flatquant_config_resolve(fl_quant_config *c, const fl_quantize_options *o,
                                       const fl_model_config *model, uint32_t isa, fl_err *err);
/* Matrix products of training, as --train-dtype says. */
bool fl__quant_trains_in_bf16(const fl_quantize_options *o, uint32_t isa);
json_t *fl__flatquant_config_json(const fl_flatquant_options *o);
/* The configuration as JSON, for fingerprint, config.json and report. New reference, NULL:
 * memory. */
json_t *fl__quant_config_json(const fl_quant_config *c);
/* Scratch that the transforms which the blocks will get need (fl_model.stream_transform_bytes);
 * 0: none. */
size_t fl__quant_transform_bytes(const fl_quant_config *c, const fl_model_config *model,
                                 const fl_exec *ex);
/* Does the method look at activations at all? Does it follow the quantised lane? */
bool fl__quant_needs_plan_pass(const fl_quant_config *c);
bool fl__quant_needs_lanes(const fl_quant_config *c);
/* Does the plan need statistics of the activations, before the first block or, with
 * transforms, of each block once it is learned? */
bool fl__quant_needs_statistics(const fl_quant_config *c);

typedef struct fl_quant_job {
    const fl_quantize_options *o; /* callbacks and log */
    fl_quant_config c;
    const fl_model *model;        /* opened for streaming */
    const fl_exec *ex;
    const fl_calib *calib;        /* NULL when no pass needs activations */
    const char *calib_name;
    fl_checkpoint checkpoint;
    fl_plan *plan;
    fl_stream *stream;
    double started_s;
    json_t *sites;                /* report entries, owned */
    float *final_gain;            /* [hidden] tuned gain of the final norm, owned; NULL: as it
                                     was */
    json_t *tuning;               /* what tuning did, owned; NULL: not asked for */
} fl_quant_job;

/* Runs it all; *report is a new reference. calib may be NULL when !needs_plan_pass. */
fl_status fl__quant_job_run(json_t **report, const fl_quantize_options *o,
                            const fl_quant_config *c, const fl_model *model, const fl_exec *ex,
                            const fl_calib *calib, const char *calib_name, fl_err *err);

enum { FL_QUANT_SAMPLE_ROWS = 1024 }; /* kept of every site's input while planning */
/* Makes job->plan. Where transforms come with static activations, the scales and copies of a
 * block are left open until it is learned. */
fl_status fl__quant_plan_make(fl_quant_job *job, fl_err *err);
/* These, for a learned block: from what its transforms make of the quantised lane, which is
 * left alone. */
fl_status fl__quant_plan_learned(fl_quant_job *job, int layer, const fl_block *folded,
                                 fl_err *err);
/* Learns a block's transforms on the lanes, folds them and plans its sites: *folded is what is
 * to be rounded, *plain the block as it was. *report: what the training did, new reference. */
fl_status fl__quant_learn_block(fl_block *folded, fl_block *plain, json_t **report,
                                fl_quant_job *job, int layer, fl_err *err);
/* Block `layer` as this run or the one before it wrote it; *shard is what it borrows from. */
fl_status fl__quant_load_finished(fl_block *block, fl_tensors **shard, fl_quant_job *job,
                                  int layer, fl_err *err);
/* NULL, or what keeps a model from being tuned. */
const char *fl__quant_tune_obstacle(const fl_quant_config *c, const fl_model_config *model);
/* Tunes the finished blocks and writes their shards anew; fills job->tuning,
 * job->final_gain. */
fl_status fl__quant_tune(fl_quant_job *job, fl_err *err);

/* Writes the rest of the model and finishes the checkpoint. shards: array of {file, names,
 * bytes}. */
fl_status fl__quant_finish(fl_quant_job *job, const json_t *shards, json_t *report,
                           fl_err *err);
/* Name of the file of shard i (0: outside the blocks; 1 + layer: a block). */
#define FL_SHARD_NAME_BYTES 48
void fl__quant_shard_name(char name[FL_SHARD_NAME_BYTES], const fl_model *model, int i);

/* The 8-bit head: its two tensors as they are declared, and written. */
enum { FL_HEAD_TENSORS = 2 };
void fl__quant_head_decls(fl_tensor_decl decls[FL_HEAD_TENSORS],
                          char scale_name[FL_HEAD_NAME_BYTES], const fl_model *model);
fl_status fl__quant_head_write(fl_safetensors_writer *w, const fl_model *model,
                               const fl_exec *ex, fl_err *err);
/* Bytes of the two; and of memory while they are made. */
int64_t fl__quant_head_stored_bytes(const fl_model *model);
size_t fl__quant_head_bytes(const fl_model *model);

/* Bytes of the output outside the blocks: tensors, most as they are, and side files. */
int64_t fl__quant_outside_bytes(const fl_quant_config *c, const fl_model *model);

/* {"items":{name:bytes},"peak_bytes":N,"disk_bytes":N,"seconds":S or null}. The items are not
 * all in memory together. text_bytes: of the calibration text; < 0: the model samples it. New
 * reference. */
json_t *fl__quant_estimate(const fl_quant_config *c, const fl_model *model, const fl_exec *ex,
                           int64_t text_bytes, bool with_time);
/* Rough time of the run, from quick measurements on ex; NaN when out of memory. */
double fl__quant_seconds(const fl_quant_config *c, const fl_model *model, const fl_exec *ex,
                         int64_t text_bytes);
void fl__quant_progress(const fl_quant_job *job, const char *stage, int block, double loss,
                        double done_share);

#endif
