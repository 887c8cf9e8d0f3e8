/* stream.h - calibration tokens on their way through the model, one block in memory at a time.
 *
 * Two activation buffers hold the input of the current block for all calibration tokens: what
 * the float model has there, and what the quantised blocks before it make of it. A walk runs
 * batches of windows through a block: up to a site (to look at its input) or to the end (the
 * block's output then overwrites its input in place).
 * SPDX-License-Identifier: MIT */
#ifndef FL_QUANT_STREAM_H
#define FL_QUANT_STREAM_H

#include "model/model.h"
#include "quant/calib.h"
#include "quant/gram.h"
#include "quant/site_stats.h"

typedef struct fl_stream {
    const fl_model *model;
    const fl_exec *ex;
    const fl_calib *calib;
    int batch_windows, batch_rows; /* per batch; the last may be shorter */
    float *x_float, *x_quant;      /* [n_windows * seq_len, hidden]; x_quant NULL: not
                                      followed */
    float *site_float, *site_quant; /* [batch_rows, widest site input] */
    float *first_batch;             /* [batch_rows, hidden] */
    float *target;                  /* as x_float: see fl__stream_target; NULL: not asked for */
    fl_workspace *ws;
    fl_kv_cache *kv_float, *kv_quant; /* one layer, batch_windows sequences */
    fl_span *spans;
    bool (*should_stop)(void *user); /* asked before each batch; NULL: never */
    void *stop_user;
} fl_stream;

typedef struct fl_stream_bytes {
    size_t activations; /* x_float, x_quant */
    size_t workspace;   /* all the rest */
} fl_stream_bytes;

/* What fl__stream_new takes. */
fl_stream_bytes fl__stream_bytes(const fl_model *model, const fl_exec *ex, int n_windows,
                                 int seq_len, bool follow_quant);
fl_status fl__stream_new(fl_stream **out, const fl_model *model, const fl_exec *ex,
                         const fl_calib *calib, bool follow_quant, fl_err *err);
void fl__stream_free(fl_stream **s);

typedef enum fl_lane { FL_LANE_FLOAT, FL_LANE_QUANT } fl_lane;

/* Embeds all windows into x_float (and x_quant). */
void fl__stream_embed(fl_stream *s);
/* The same into one of them. */
void fl__stream_embed_lane(fl_stream *s, fl_lane lane);

/* Walks a lane through a block or half of it. hook sees every site's input. store: outputs
 * replace the lane's inputs. false when should_stop said so. */
bool fl__stream_walk(fl_stream *s, fl_lane lane, const fl_block *block, fl_half half,
                     bool store, fl_site_hook *hook, void *user);

/* The float lane through a block, its outputs to s->target ([n_windows * seq_len, hidden],
 * allocated at the first call); the lane itself is left alone. FL_E_NOMEM, FL_E_INTERRUPTED. */
fl_status fl__stream_target(fl_stream *s, const fl_block *block, fl_site_hook *hook, void *user,
                            fl_err *err);
/* What it put there becomes the float lane's inputs: no second walk through the same block.
 * target is lost. */
void fl__stream_take_target(fl_stream *s);

/* The first batch of the float lane, as fl__stream_stats found it, through a block once more
 * (the lane is left alone): its output goes to `to`; returns how many floats. */
size_t fl__stream_first_batch(fl_stream *s, const fl_block *block, float *to);

/* Statistics of all sites of the float lane's block; stats[i] initialised by this call,
 * n_sample rows each. The block's outputs replace the lane's inputs; those of the first batch
 * are kept. */
fl_status fl__stream_stats(fl_site_stats stats[FL_N_SITES], fl_stream *s, const fl_block *block,
                           int n_sample, fl_err *err);

/* The same of what the quantisers of a learned block will meet: its sites' inputs behind their
 * transforms, on the quantised lane, which is left alone. */
fl_status fl__stream_learned_stats(fl_site_stats stats[FL_N_SITES], fl_stream *s,
                                   const fl_block *block, int n_sample, fl_err *err);

/* Second moments at one site: the lanes hold the input of the site's half of the block; the
 * quantised lane (sites before it quantised, `probe` saying how this one quantises its input
 * for linear number `linear` of it) against the float lane. gram must be initialised. false
 * when should_stop said so. */
bool fl__stream_gram(fl_gram *gram, fl_stream *s, const fl_block *float_block,
                     const fl_block *quant_block, int site, const fl_site *probe, int linear);

/* sum (q - f)^2 / sum f^2 over all tokens, f and q what the two lanes hold now; NaN without a
 * quantised lane. */
double fl__stream_distance(const fl_stream *s);

/* out = the values that codes of x stand for: x through the site's premul, transform and
 * quantiser, and back to floats that its weights meet. Float sites: fl__site_input. */
void fl__site_dequantized(const fl_exec *ex, const fl_site *site, int linear, const float *x,
                          int n_rows, float *out, void *scratch);

#endif
