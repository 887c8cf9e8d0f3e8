/* train_operand.h - a float32 matrix as operand of bfloat16 products (kernels/gemm_bf16.h).
 *
 * x [R, n], rounded to nearest even, in one or several forms; lengths of K are rounded up to 32
 * with zeros, columns to panels of 64:
 *
 *   ROWS         A operand, K = n: [R][K]
 *   KEYS         B operand, K = n, rows as columns: panels of 64 rows [K / 2][64][2]
 *   COLUMNS      A operand, K = R, columns as rows: chunks of FL_PACK_CHUNK rows, each [n][K]
 *   PAIRS        B operand, K = R: the same chunks, in each panels [K / 2][64][2]
 *   PAIRS_WHOLE  PAIRS with one chunk of all rows
 *
 * A chunk is a product of its own; half a panel of it fits the first-level cache. All forms are
 * made of the same 64 rows at a time, so x is read from memory once.
 * SPDX-License-Identifier: MIT */
#ifndef FL_TRAIN_TRAIN_OPERAND_H
#define FL_TRAIN_TRAIN_OPERAND_H

#include "base/exec.h"
#include "base/status.h"

#include <stddef.h>

enum { FL_PACK_CHUNK = 512 };

typedef enum fl_pack_form {
    FL_PACK_ROWS,
    FL_PACK_KEYS,
    FL_PACK_COLUMNS,
    FL_PACK_PAIRS,
    FL_PACK_PAIRS_WHOLE,
    FL_N_PACK_FORMS
} fl_pack_form;

typedef struct fl_train_packed {
    uint16_t *at[FL_N_PACK_FORMS]; /* owned, NULL: not made */
    size_t bytes[FL_N_PACK_FORMS];
} fl_train_packed;

/* forms: bits 1 << fl_pack_form. Grows what is there; allocates nothing when a size comes
 * again. Not from inside a parallel loop. */
fl_status fl__train_pack(fl_train_packed *packed, const fl_exec *ex, const float *x, int R,
                         int n, unsigned forms, fl_err *err);
/* The same in two steps: room for the forms, then FL_PACK_ITEM rows (fewer at the end) from row
 * `first` on, a multiple of FL_PACK_ITEM, which x points to; on the calling thread. */
enum { FL_PACK_ITEM = 64 };
fl_status fl__train_pack_reserve(fl_train_packed *packed, int R, int n, unsigned forms,
                                 fl_err *err);
void fl__train_pack_rows(const fl_train_packed *packed, const fl_exec *ex, const float *x,
                         int first, int R, int n, unsigned forms);
void fl__train_packed_fini(fl_train_packed *packed);

/* K and columns as packed. */
int fl__pack_length(int K);
int fl__pack_columns(int N);

#endif
