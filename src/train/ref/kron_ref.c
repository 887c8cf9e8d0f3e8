/* kron_ref.c - kron_body.h for plain C.
 * SPDX-License-Identifier: MIT */
#include "train/x86/kron_body.h"
