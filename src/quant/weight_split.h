/* weight_split.h - columns of a site's weights that are split into digits, so that a large
 * column no longer sets the scale: flattening's mirror image (docs/flattenquant.md, "Weights in
 * digits").
 *
 * A column with k digits has codes within +-k qmax. They are stored as digits, digit_i =
 * sign(q) * clamp(|q| - (i-1) qmax, 0, qmax), which add up to q: the first in the column's own
 * place, the others behind the K plain columns, channel by channel. All linears of a site are
 * split alike, as they share the input that is repeated.
 * SPDX-License-Identifier: MIT */
#ifndef FL_QUANT_WEIGHT_SPLIT_H
#define FL_QUANT_WEIGHT_SPLIT_H

#include "quant/flattenquant/flattenquant.h"

/* Where it is an argument, NULL: every column is one digit. */
typedef struct fl_weight_split {
    int K, qmax;
    int ld;           /* columns of codes: K + sum of (copies - 1) */
    uint16_t *copies; /* [K] digits of each column, owned */
    int32_t *second;  /* [K] where its second digit would lie, owned */
    float *lo, *hi;   /* [K] range of its codes, owned */
    float threshold;  /* of fl__weight_split_choose */
    double ratio;     /* (ld - K) / K */
} fl_weight_split;

/* For weights of `bits`; copies [K] are copied. FL_E_NOMEM. */
fl_status fl__weight_split_init(fl_weight_split *split, const uint16_t *copies, int K, int bits,
                                fl_err *err);
void fl__weight_split_fini(fl_weight_split *split);

/* Chooses the digits of a site's columns. m_j is the largest |W_nj| over all rows, each divided
 * by the root mean square of the row (per_tensor: of its tensor); T = beta * mean of the m_j
 * below the box plot's fence; ceil(m_j / T) digits. T rises until the digits beyond the first
 * add at most max_ratio * K columns to the product, where channel j has columns[j] of its own.
 * FL_E_NOMEM. */
fl_status fl__weight_split_choose(fl_weight_split *split, const fl_flatten_weight *weights,
                                  int n_weights, int K, int bits, bool per_tensor,
                                  const int *columns, double beta, double max_ratio,
                                  fl_err *err);
size_t fl__weight_split_bytes(int K);

/* Code of column k into a row of `ld` codes, and back. */
static inline void fl__weight_split_put(int8_t *row, const fl_weight_split *s, int k, int code)
{
    if (!s || s->copies[k] == 1) {
        row[k] = (int8_t)code;
        return;
    }
    const int size = code < 0 ? -code : code;
    for (int i = 0; i < s->copies[k]; i++) {
        const int left = size - i * s->qmax;
        const int digit = left < 0 ? 0 : left > s->qmax ? s->qmax : left;
        row[i == 0 ? k : s->second[k] + i - 1] = (int8_t)(code < 0 ? -digit : digit);
    }
}

static inline int fl__weight_split_get(const int8_t *row, const fl_weight_split *s, int k)
{
    int code = row[k];
    for (int i = 1; s && i < s->copies[k]; i++) code += row[s->second[k] + i - 1];
    return code;
}

#endif
