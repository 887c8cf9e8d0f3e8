/* flatquant_case.h - a small block to learn FlatQuant's transforms for, its inputs, and the
 * block in double beside it.
 * SPDX-License-Identifier: MIT */
#ifndef FL_TEST_FLATQUANT_CASE_H
#define FL_TEST_FLATQUANT_CASE_H

#include "quant/flatquant/flatquant.h"
#include "support/flatquant_reference.h"

enum { FL_CASE_WINDOWS = 2, FL_CASE_TOKENS = 6, FL_CASE_ROWS = 12 };

typedef struct fl_flatquant_case {
    fl_exec ex;
    fl_model *model;
    fl_block block; /* layer 0 in float32 */
    fl_flatquant_params p;
    fl_reference *reference;
    float *x, *x_max[FL_N_SITES]; /* [n]; [n_in] over the float path */
    const double *want;           /* [n] the reference's output, borrowed */
    size_t n;                     /* floats of x: rows * hidden */
} fl_flatquant_case;

/* Directories of random models of one layer: grouped heads and factor pairs 4 x 6, 5 x 6; heads
 * wider than hidden / heads and a prime width; OPT with biases; OPT with the norms behind and a
 * narrow embedding. */
const char *fl_test_case_llama(void);
const char *fl_test_case_wide_llama(void);
const char *fl_test_case_opt(void);
const char *fl_test_case_post_norm(void);
/* Everything learned but the weights; a short training. */
fl_flatquant_options fl_test_case_options(int w_bits, int a_bits, int kv_bits);

/* The block and its inputs, centred by some means where o says so; no parameters, no
 * reference. */
void fl_test_case_load(fl_flatquant_case *c, const char *dir, const fl_flatquant_options *o);
/* Parameters at their start. */
void fl_test_case_start(fl_flatquant_case *c, const fl_flatquant_options *o);
/* load, parameters away from their start, and the reference's record of them: the first seed
 * for which no rounding is so near a tie that float32 might go the other way. */
void fl_test_case_open(fl_flatquant_case *c, const char *dir, const fl_flatquant_options *o,
                       bool online_bf16);
void fl_test_case_close(fl_flatquant_case *c);

/* A pass over the case's windows whose weights are ready. */
fl_flatquant_pass *fl_test_case_pass(fl_flatquant_case *c);
/* y [n] = block(x) on the run-time path, with a cache of these bits (16: float32); plain: the
 * case's own block in float. Free with fl__free. */
float *fl_test_case_run(fl_flatquant_case *c, const fl_block *block, int k_bits, int v_bits);
float *fl_test_case_plain(fl_flatquant_case *c);
/* The same, its sites' inputs shown to a hook. */
float *fl_test_case_watch(fl_flatquant_case *c, fl_site_hook *hook, void *user);
/* The folded block, its weights rounded and trained's mean error taken off, on the run-time
 * path. */
float *fl_test_case_run_folded(fl_flatquant_case *c, const fl_flatquant_result *trained);

/* Fails the test with err's text. */
void fl_test_must(fl_status st, const fl_err *err);
/* Largest |a - b| over the largest |b|; infinity where an a is not finite. */
double fl_test_relative_distance(const float *a, const double *b, size_t n);

#endif
