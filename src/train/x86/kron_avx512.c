/* kron_avx512.c - kron_body.h for AVX-512.
 * SPDX-License-Identifier: MIT */
#include "train/x86/kron_body.h"
