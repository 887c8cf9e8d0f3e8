/* tune.h - end-to-end tuning: the floats around the codes learn to predict what the float model
 * predicts.
 *
 * Block by block, rounding leaves errors that add up over the depth of the model. Here the
 * whole quantised model runs on the calibration text, and the gradient of KL(float model ||
 * quantised model), mean over tokens, goes back through all blocks to a factor for each channel
 * of each norm and for each weight scale (AdamW, cosine). Codes, transforms and clips stay. The
 * idea is that of the second phase of EfficientQAT (arXiv 2407.11062), with the float model as
 * teacher.
 *
 *   tune_block.c   a block, forward and backward     tune_head.c  the loss
 *   tune_static.c  activations on a fixed scale      tune.c       the loop
 *
 * Memory: the rounded model, the inputs of all blocks for one batch, one block in float32.
 * SPDX-License-Identifier: MIT */
#ifndef FL_QUANT_TUNE_H
#define FL_QUANT_TUNE_H

#include "base/log.h"
#include "quant/tune/tune_block.h"
#include "train/adamw.h"

typedef struct fl_tune_options {
    int epochs; /* 0: no tuning */
    int batch_windows;
    double lr;
    bool bf16;
} fl_tune_options;

/* Where an interrupted run goes on: behind n_epochs of them. */
typedef struct fl_tune_state {
    fl_adamw_state adamw;
    size_t n;            /* of its arrays */
    int n_epochs, n_restarts;
    double rate;
    const double *kl;    /* [n_epochs] */
} fl_tune_state;

typedef struct fl_tune_data {
    const float *x;       /* [n_windows * seq_len, hidden]: embedded text */
    const float *teacher; /* the same: what the float model's last block gives */
    int n_windows, seq_len;
    bool (*should_stop)(void *user); /* NULL: never */
    void *user;
    const fl_log *log;
    /* Told after each epoch, with the state to go on from; FL_OK to go on. NULL: not told. */
    fl_status (*on_epoch)(void *user, const fl_tune_state *state, fl_err *err);
    void *epoch_user;
    const fl_tune_state *resume; /* NULL: from the start */
} fl_tune_data;

typedef struct fl_tune_result {
    fl_tune_factors *factors; /* [n_layers] owned */
    float *final_norm;        /* [hidden] factors of the final norm's gain, owned */
    double *kl;               /* [n_epochs] owned: mean over each epoch's text */
    int n_epochs, n_restarts;
} fl_tune_result;

/* blocks [n_layers] stay the caller's. FL_E_INTERRUPTED when should_stop said so. */
fl_status fl__tune(fl_tune_result *result, const fl_model *model, const fl_block *blocks,
                   const fl_tune_data *data, const fl_tune_options *o, const fl_exec *ex,
                   fl_err *err);
void fl__tune_result_fini(fl_tune_result *r, int n_layers);
/* What it takes beside the blocks and the data. */
size_t fl__tune_bytes(const fl_model *model, int n_windows, int seq_len);

#endif
