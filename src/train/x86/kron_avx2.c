/* kron_avx2.c - kron_body.h for AVX2.
 * SPDX-License-Identifier: MIT */
#include "train/x86/kron_body.h"
