/* log.h - messages of the library to whoever asked for them. The library never prints: it calls
 * the callback of the options (NULL: silence). SPDX-License-Identifier: MIT */
#ifndef FL_BASE_LOG_H
#define FL_BASE_LOG_H

#include <flatiron/flatiron.h>

void fl__log(const fl_log *log, fl_log_level level, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

#endif
