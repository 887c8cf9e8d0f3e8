/* small_model.h - a model directory that a test writes itself: a LLaMA of random weights with a
 * byte-level tokenizer that has one token per byte. Function, not quality: its text is noise.
 * SPDX-License-Identifier: MIT */
#ifndef FL_TEST_SMALL_MODEL_H
#define FL_TEST_SMALL_MODEL_H

#include "base/status.h"

enum { FL_SMALL_BOS = 256, FL_SMALL_EOS = 257 }; /* ids 0..255 are the bytes, in byte order */

typedef struct fl_small_model {
    int n_layers, hidden_size, n_heads, n_kv_heads, ffn_size, n_positions;
    int vocab_size; /* at least 258 */
    int head_dim;   /* 0: hidden_size / n_heads */
    uint64_t seed;  /* of the weights */
    bool adds_bos;  /* the tokenizer's post-processor puts BOS in front */
} fl_small_model;

/* 2 layers, 64 wide, 4 heads over 2, context 96. */
fl_small_model fl_test_small_model_defaults(void);
/* Writes it to the test's directory under name; returns the path. Fails the test on errors. */
const char *fl_test_small_model(const char *name, const fl_small_model *model);
/* Writes or replaces a file. */
void fl_test_write_text(const char *path, const char *text);

#endif
