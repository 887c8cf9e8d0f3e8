/* opt_model.h - a random OPT in a directory: pre-norm as most of the family, or post-norm with
 * a
 * narrow embedding as OPT-350M. SPDX-License-Identifier: MIT */
#ifndef FL_TEST_OPT_MODEL_H
#define FL_TEST_OPT_MODEL_H

#include "base/status.h"

typedef struct fl_opt_model {
    int n_layers, hidden_size, n_heads, ffn_size, n_positions, vocab_size;
    int embed_size; /* other than hidden_size: project_in and project_out */
    bool pre_norm;
    bool no_bias;   /* enable_bias false */
    bool untied;    /* a head of its own */
    double outlier; /* every 16th channel of the norms' gain is this much larger; 0: none */
} fl_opt_model;

/* 2 layers, 48 wide, 4 heads, pre-norm, context 96. */
fl_opt_model fl_test_opt_model_defaults(void);
/* Writes it to the test's directory under name; returns the path. Fails the test on errors. */
const char *fl_test_opt_model(const char *name, const fl_opt_model *model);

#endif
