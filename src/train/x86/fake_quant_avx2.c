/* fake_quant_avx2.c - fake_quant_body.h for AVX2.
 * SPDX-License-Identifier: MIT */
#include "train/x86/fake_quant_body.h"
