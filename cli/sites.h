/* sites.h - the per-layer table that the report of quantize and inspect share.
 * SPDX-License-Identifier: MIT */
#ifndef FL_CLI_SITES_H
#define FL_CLI_SITES_H

#include "print.h"

/* quantization: the object that holds "sites", as in config.json. */
void cli_print_sites(const json_t *quantization);

#endif
