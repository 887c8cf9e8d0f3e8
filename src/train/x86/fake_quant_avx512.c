/* fake_quant_avx512.c - fake_quant_body.h for AVX-512.
 * SPDX-License-Identifier: MIT */
#include "train/x86/fake_quant_body.h"
