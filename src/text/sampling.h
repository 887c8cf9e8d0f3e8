/* sampling.h - choosing the next token from logits.
 *
 * The order of the steps is llama.cpp's, so that its users' settings mean the same here:
 *   repeat penalty, top-k, top-p, min-p, temperature, draw.
 * Equal logits rank by id, lower first; temperature 0 takes the first of that ranking. The draw
 * is keyed by (seed, position): the same text gives the same continuation whether its prompt
 * was fed in one piece or in many, and whatever was generated before.
 * SPDX-License-Identifier: MIT */
#ifndef FL_TEXT_SAMPLING_H
#define FL_TEXT_SAMPLING_H

#include "base/status.h"

#define FL_REPEAT_WINDOW 64 /* tokens that the repeat penalty looks back on */

typedef struct fl_candidate {
    float logit;
    int32_t id;
    double weight; /* relative probability, of the kept candidates only */
} fl_candidate;

typedef struct fl_sampler {
    fl_sample_options options;
    int n_vocab;
    fl_candidate *candidates; /* [n_vocab] owned */
} fl_sampler;

/* Takes the memory of all picks. FL_E_USAGE (an option is out of range), FL_E_NOMEM. */
fl_status fl__sampler_init(fl_sampler *s, const fl_sample_options *options, int n_vocab,
                           fl_err *err);
void fl__sampler_fini(fl_sampler *s);

/* The token for `position`, from logits [n_vocab]; recent [n_recent] are the tokens before it,
 * of which the last FL_REPEAT_WINDOW count. Allocates nothing. -1 when the logits are no
 * numbers (a NaN, an infinity, or nothing above -infinity). */
int32_t fl__sampler_pick(fl_sampler *s, const float *logits, const int32_t *recent,
                         size_t n_recent, int position);

#endif
