/* rng.h - random numbers keyed by what they are for, never by how many were drawn before.
 *
 * A stream is a pure function of (seed, block, purpose): resuming at block 17 draws the same
 * numbers as a run that went through blocks 0 to 16. Generator: splitmix64 over a hashed key.
 * SPDX-License-Identifier: MIT */
#ifndef FL_BASE_RNG_H
#define FL_BASE_RNG_H

#include <stdint.h>

typedef struct {
    uint64_t state;
} fl_rng;

/* purpose: a short constant text such as "calib-windows". */
fl_rng fl__rng_init(uint64_t seed, int block, const char *purpose);
uint64_t fl__rng_u64(fl_rng *r);
/* Uniform in [0, n), n > 0, unbiased. */
uint64_t fl__rng_below(fl_rng *r, uint64_t n);
/* Uniform in [0, 1), 53 bits. */
double fl__rng_unit(fl_rng *r);
/* Standard normal (Box-Muller, one value per two uniforms: no hidden state). */
double fl__rng_normal(fl_rng *r);

#endif
