/* status.c - formatting of error texts. SPDX-License-Identifier: MIT */
#include "base/status.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

fl_status fl__fail(fl_err *err, fl_status st, const char *fmt, ...)
{
    char text[sizeof err->text] = ""; /* apart: the old err->text may be one of the arguments */
    va_list ap;
    if (!err) return st;
    va_start(ap, fmt);
    (void)vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    /* One error is one line, whatever a file name or a library's message contained. */
    for (char *c = text; *c; c++)
        if ((unsigned char)*c < 0x20 || *c == 0x7f) *c = ' ';
    memcpy(err->text, text, strlen(text) + 1);
    return st;
}

fl_status fl__fail_nomem(fl_err *err, const char *what, size_t n_bytes)
{
    return fl__fail(err, FL_E_NOMEM,
                    "out of memory: %s: %zu bytes wanted; free memory or use a smaller batch, "
                    "fewer samples or shorter windows",
                    what, n_bytes);
}
