/* fake_quant_ref.c - fake_quant_body.h for plain C.
 * SPDX-License-Identifier: MIT */
#include "train/x86/fake_quant_body.h"
