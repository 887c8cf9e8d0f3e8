/* kron_ref.c - kron_body.h for plain C.
 * SPDX-License-Identifier: MIT */
#include "train/kron_body.h"
