/* flatquant.h - FlatQuant's learned transforms of one block (arXiv 2410.09426; rules in
 * docs/flatquant.md).
 *
 * A block's parameters (flatquant_params.c) are trained so that the quantised block, on the
 * inputs that the quantised blocks before it produce, gives what the float block gives on the
 * float model's inputs (flatquant_train.c walks batches; flatquant_block.c is the block's
 * forward and backward pass, made of flatquant_site.c and flatquant_weight.c). Afterwards they
 * are folded into weights and norms in double (flatquant_fold.c); what cannot be folded runs
 * online at the sites.
 *
 *   files                 what
 *   flatquant_centre.c    means of inputs moved into biases, before all else
 *   flatquant_params.c    parameters, their start, their gradients' home
 *   flatquant_weight.c    a weight under its transforms, quantised; gradients
 *   flatquant_site.c      an activation under its transform, quantised; gradients
 *   flatquant_block.c     the block, forward and backward
 *   flatquant_train.c     batches, epochs, optimiser, guards
 *   flatquant_fold.c      the trained block as a float block whose sites carry transforms
 *   flatquant_time.c      how long the training will take
 *
 * SPDX-License-Identifier: MIT */
#ifndef FL_QUANT_FLATQUANT_H
#define FL_QUANT_FLATQUANT_H

#include "base/log.h"
#include "model/family.h"
#include "train/adamw.h"
#include "train/factor.h"
#include "train/fake_quant.h"

typedef enum fl_transform_kind {
    FL_TRANSFORM_NONE,     /* no transform, only scales and clips */
    FL_TRANSFORM_INVERSE,  /* free matrices, inverted directly */
    FL_TRANSFORM_SVD,      /* U diag(s) V^T, U and V by Cayley maps: the official form */
    FL_TRANSFORM_RANDOM,   /* random orthogonal Kronecker factors, not trained */
    FL_TRANSFORM_HADAMARD, /* randomised Hadamard, not trained */
} fl_transform_kind;

typedef struct fl_flatquant_options {
    fl_transform_kind transform;
    bool scale, clip;        /* learn per-channel scales; learn clips */
    bool clip_per_linear;    /* of activations: a pair for each linear of a site, else one */
    bool clip_v_first;       /* v_proj's weight is clipped before P_v mixes its rows, else
                                behind it */
    bool fold_gain;          /* scales that take the gains of norms in front into the weights,
                                not learned (QuaRot); scale must be off, the model pre-norm */
    bool centre;             /* means of inputs go into biases; the family must allow it */
    bool asymmetric;         /* training's activations with a zero point */
    bool quantized_inputs;   /* train on what the quantised blocks before give */
    int w_bits, a_bits, k_bits, v_bits; /* 16: float */
    int epochs, batch_windows;
    int warmup_steps;
    double lr, min_lr;       /* cosine from lr to min_lr (absolute) over all steps */
    double clip_lr;          /* times lr, for clips */
    double weight_lr;        /* times lr, for the weights themselves; 0: weights are fixed */
    double weight_decay;
    double clip_start;       /* raw value in front of the sigmoid */
    double diag_alpha;       /* start of the scales: w_max^(1-alpha) / x_max^alpha */
    bool bf16;               /* GEMMs in bfloat16 */
    uint64_t seed;
} fl_flatquant_options;

/* Learned pairs of clip factors (of the largest and the smallest value), each behind a
 * sigmoid. */
typedef struct fl_flatquant_clip {
    int n; /* pairs: 1, one per linear, or one per output channel; 0: none, nothing clipped */
    float *raw;    /* [2 n] learned: the n of the largest, then the n of the smallest */
    float *value;  /* [2 n] sigmoid(raw) */
    float *d_value, *d_raw; /* [2 n] gradients */
} fl_flatquant_clip;

/* One Kronecker transform x' = x * c, X' = left^T X right, with what is learned for it. */
typedef struct fl_flatquant_site {
    int n_in, n_left, n_right;
    fl_factor left, right; /* n 0: identity */
    bool log_scale;        /* c = exp(raw_c), else c = raw_c */
    float *raw_c, *c, *d_c, *d_raw_c; /* [n_in], NULL: no scale */
    fl_flatquant_clip clip;
} fl_flatquant_site;

typedef struct fl_flatquant_linear {
    int N, K;
    float *w, *dw;     /* [N, K] the weight; dw NULL: it is not trained */
    const float *bias; /* [N] borrowed from the block, or NULL */
    fl_flatquant_clip clip;
} fl_flatquant_linear;

/* All that is learned for a block. Site O has left = P_o over heads and right = P_v within a
 * head, which is folded into v_proj; head is P_h, of keys and (inverted) of queries. */
typedef struct fl_flatquant_params {
    fl_flatquant_options o;
    fl_flatquant_site site[FL_N_SITES];
    fl_flatquant_linear linear[FL_N_LINEARS];
    const float *norm_bias[2]; /* [hidden] borrowed from the block, or NULL */
    fl_factor head; /* n 0: keys are not quantised, or no transforms */
    fl_flatquant_clip k_clip, v_clip;
    int n_heads, n_kv_heads, head_dim;
} fl_flatquant_params;

/* Has the family biases that means of inputs can go into? */
bool fl__flatquant_can_centre(const fl_model_config *cfg);
/* block: float32 weights owned by it, of such a family; mean[site] [n_in] of the inputs on the
 * float path. The block still computes what it did. */
void fl__flatquant_centre(fl_block *block, const fl_model *model,
                          double *const mean[FL_N_SITES]);

/* Start of a block's parameters. block: float32 weights owned by it (fl__block_fold without a
 * plan); x_max[site] [n_in]: largest |x| of each channel on the float path. */
fl_status fl__flatquant_params_init(fl_flatquant_params *p, const fl_model *model,
                                    const fl_block *block, int layer,
                                    float *const x_max[FL_N_SITES],
                                    const fl_flatquant_options *o, const fl_exec *ex,
                                    fl_err *err);
void fl__flatquant_params_fini(fl_flatquant_params *p);
/* Factors, scales and clips from what is learned. FL_E_FAIL: a factor became singular. */
fl_status fl__flatquant_params_update(fl_flatquant_params *p, const fl_exec *ex, fl_err *err);
/* The other way round for gradients: of factors, scales and clips to those of what is
 * learned. */
void fl__flatquant_params_grad(fl_flatquant_params *p, const fl_exec *ex);
/* Every learned array with its gradient and its multiple of the rate; returns how many. */
#define FL_FLATQUANT_MAX_GROUPS 64
int fl__flatquant_params_groups(fl_flatquant_params *p,
                                fl_adamw_group groups[FL_FLATQUANT_MAX_GROUPS]);

/* ---- a block's training pass ------------------------------------------------------------- */

typedef struct fl_flatquant_pass fl_flatquant_pass;

/* Buffers for batches of n_windows windows of seq_len tokens. params must outlive it. */
fl_status fl__flatquant_pass_new(fl_flatquant_pass **out, const fl_model *model,
                                 const fl_block *block, fl_flatquant_params *params,
                                 const fl_exec *ex, int n_windows, int seq_len, fl_err *err);
void fl__flatquant_pass_free(fl_flatquant_pass **pass);
/* What a block's parameters, their optimiser and a pass over batches of n_windows windows
 * take. */
size_t fl__flatquant_bytes(const fl_model *model, const fl_exec *ex,
                           const fl_flatquant_options *o, int n_windows, int seq_len);

/* What training a block will take, from quick measurements on ex; NaN: out of memory. */
double fl__flatquant_seconds(const fl_model *model, const fl_exec *ex,
                             const fl_flatquant_options *o, int n_windows, int seq_len);

/* Transformed, quantised weights from the parameters; before forward, after each change. */
fl_status fl__flatquant_pass_weights(fl_flatquant_pass *pass, fl_err *err);
/* Block output for x [n_windows * seq_len, hidden]; left in the pass, borrowed. */
fl_status fl__flatquant_pass_forward(const float **y, fl_flatquant_pass *pass, const float *x,
                                     int n_windows, fl_err *err);
/* Gradients of all parameters for dy = d loss / d y, after forward. dy is overwritten. */
fl_status fl__flatquant_pass_backward(fl_flatquant_pass *pass, float *dy, int n_windows,
                                      fl_err *err);

/* ---- training, folding ------------------------------------------------------------------- */

typedef struct fl_flatquant_result {
    double first_loss, best_loss, last_loss; /* mean squared error per epoch */
    double *epoch_loss;                      /* [n_epochs] owned */
    int n_epochs, n_restarts;                /* restarts: after a loss that was no number */
    bool bf16;                               /* the last attempt's */
    double *mean_error; /* [hidden] owned: of the block's output over all tokens at the end;
                           NULL unless blocks are centred */
} fl_flatquant_result;

typedef struct fl_flatquant_data {
    const float *x, *y; /* [n_windows * seq_len, hidden]: inputs, wanted outputs */
    int n_windows, seq_len;
    bool (*should_stop)(void *user); /* NULL: never */
    void *user;
    const fl_log *log;
    int layer;
} fl_flatquant_data;

/* Trains params in place. FL_E_INTERRUPTED when should_stop said so. */
fl_status fl__flatquant_train(fl_flatquant_result *result, fl_flatquant_params *params,
                              const fl_model *model, const fl_block *block,
                              const fl_flatquant_data *data, const fl_exec *ex, fl_err *err);
void fl__flatquant_result_fini(fl_flatquant_result *r);

/* folded becomes a float32 block with the parameters folded in: weights transformed and clipped
 * (in double), scales in norms (post-norm: at the sites, fl_site.premul), P_v and down's scales
 * in v_proj and up_proj; its sites and heads carry the online transforms and clips. */
fl_status fl__flatquant_fold(fl_block *folded, const fl_flatquant_params *params,
                             const fl_model *model, int layer, bool clip_weights,
                             const fl_exec *ex, fl_err *err);
/* Takes what training left as the mean error of the block's output off its last bias. */
void fl__flatquant_correct_mean(fl_block *folded, const fl_flatquant_result *result);

#endif
