/* round.h - rounding to nearest even, as an expression that compilers vectorise.
 *
 * Adding and taking away 1.5 * 2^23 leaves a float whose lowest bit is worth 1: exact for |x| <
 * 2^22, far above any code times copies that this library uses. (rintf is a library call on
 * baseline x86-64.) Sums of squares are kept in eight lanes that are added in a fixed order, so
 * that they too vectorise and stay the same bits.
 * SPDX-License-Identifier: MIT */
#ifndef FL_QUANT_ROUND_H
#define FL_QUANT_ROUND_H

#define FL_LANES 8

static inline float fl__round(float x)
{
    const float magic = 12582912.0f;
    return (x + magic) - magic;
}

static inline double fl__lanes_sum(const float lane[FL_LANES])
{
    double sum = 0;
    for (int i = 0; i < FL_LANES; i++) sum += (double)lane[i];
    return sum;
}

#endif
