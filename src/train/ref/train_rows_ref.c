/* train_rows_ref.c - inner loops of training, one at a time: the definition.
 * SPDX-License-Identifier: MIT */
#define TRAIN_ROWS_TABLE fl__train_rows_ref
#define TRAIN_ROWS_NAME  "train_rows_ref"
#define TRAIN_ROWS_ISA   0
#include "train/x86/train_rows_body.h"
