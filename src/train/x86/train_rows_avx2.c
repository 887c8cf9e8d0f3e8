/* train_rows_avx2.c - inner loops of training, eight at a time. SPDX-License-Identifier: MIT */
#include "base/isa.h"
#define TRAIN_ROWS_TABLE fl__train_rows_avx2
#define TRAIN_ROWS_NAME  "train_rows_avx2"
#define TRAIN_ROWS_ISA   FL_ISA_AVX2
#include "train/x86/train_rows_body.h"
