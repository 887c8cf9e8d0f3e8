/* flatquant_reference.h - one quantised block of FlatQuant in double, from the formulas alone
 * (docs/flatquant.md): what a training pass and a folded block are checked against.
 *
 * The block is a function of everything that is learned. Recording, each rounding is a rounding
 * and each clamp, maximum and ReLU notes which way it went; replaying, a rounding is u + const
 * with the constant of the record, and the noted ways are gone again. The replayed function is
 * smooth in the parameters, and its derivative is the straight-through gradient.
 * SPDX-License-Identifier: MIT */
#ifndef FL_TEST_FLATQUANT_REFERENCE_H
#define FL_TEST_FLATQUANT_REFERENCE_H

#include "quant/flatquant/flatquant.h"

/* A learned array, and where the pass under test leaves its gradient. */
typedef struct fl_reference_group {
    char name[32];
    double *value;     /* [n] */
    const float *grad; /* [n], NULL: none is wanted */
    size_t n;
} fl_reference_group;

typedef struct fl_reference fl_reference;

enum { FL_REFERENCE_MAX_GROUPS = 48 };

/* Reads values out of model, block and params, and computes nothing with them. online_bf16:
 * transforms as at run time, factors and activations in bfloat16. */
fl_reference *fl_test_reference_new(const fl_model *model, const fl_block *block,
                                    const fl_flatquant_params *params, const float *x,
                                    int n_windows, int seq_len, bool online_bf16);
void fl_test_reference_free(fl_reference **r);
int fl_test_reference_groups(const fl_reference *r,
                             fl_reference_group groups[FL_REFERENCE_MAX_GROUPS]);

/* The block's output [n_windows * seq_len, hidden]; borrowed, until the next call. */
const double *fl_test_reference_record(fl_reference *r);
const double *fl_test_reference_replay(fl_reference *r);
/* Distance of the record's nearest rounding from a tie, over what float32 may be off by there:
 * above 1 a float32 computation rounds everything the same way. */
double fl_test_reference_nearest_tie(const fl_reference *r);

#endif
