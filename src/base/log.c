/* log.c - formats a line and hands it to the caller's sink. SPDX-License-Identifier: MIT */
#include "base/log.h"

#include <stdarg.h>
#include <stdio.h>

void fl__log(const fl_log *log, fl_log_level level, const char *fmt, ...)
{
    char line[1024];
    va_list ap;
    if (!log || !log->write) return;
    va_start(ap, fmt);
    (void)vsnprintf(line, sizeof line, fmt, ap);
    va_end(ap);
    log->write(log->user, level, line);
}
