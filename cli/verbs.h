/* verbs.h - one table per verb, each in its own file. SPDX-License-Identifier: MIT */
#ifndef FL_CLI_VERBS_H
#define FL_CLI_VERBS_H

#include "options.h"

extern const cli_verb cli_verb_quantize;
extern const cli_verb cli_verb_eval;
extern const cli_verb cli_verb_generate;
extern const cli_verb cli_verb_bench;
extern const cli_verb cli_verb_inspect;
extern const cli_verb cli_verb_verify;
extern const cli_verb cli_verb_devices;

#endif
