/* train_rows.c - table of the inner loops of training. SPDX-License-Identifier: MIT */
#include "train/train_rows.h"

#include "base/isa.h"
#include "base/status.h"

const fl_train_rows *const fl__train_rows[] = {
    &fl__train_rows_avx512,
    &fl__train_rows_avx2,
    &fl__train_rows_ref,
};
const int fl__n_train_rows = (int)FL_COUNT(fl__train_rows);

const fl_train_rows *fl__train_rows_select(uint32_t isa)
{
    const fl_train_rows *const *rows = fl__train_rows;
    while (((*rows)->isa & ~isa) != 0) rows++;
    return *rows;
}
