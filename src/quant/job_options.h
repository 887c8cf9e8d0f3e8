/* job_options.h - small words that the readers of options share.
 * SPDX-License-Identifier: MIT */
#ifndef FL_QUANT_JOB_OPTIONS_H
#define FL_QUANT_JOB_OPTIONS_H

#include "base/status.h"

#include <string.h>

/* a may be NULL. */
static inline bool is(const char *a, const char *b)
{
    return a && strcmp(a, b) == 0;
}

static inline bool pick(fl_switch s, bool automatic)
{
    return s == FL_AUTO ? automatic : s == FL_ON;
}

static inline fl_status usage(fl_err *err, const char *option, const char *why,
                              const char *todo)
{
    return fl__fail(err, FL_E_USAGE, "option: %s: %s; %s", option, why, todo);
}

#endif
