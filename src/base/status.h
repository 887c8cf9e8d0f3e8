/* status.h - how every function of the library reports failure.
 *
 * One status type everywhere (fl_status of the public header): FL_OK or a negative typed code.
 * The text goes into an optional caller-owned fl_err, written as
 *     <what>: <where>: <why>; <what to do>
 * on one line, so that the CLI can print "flatiron: " and the text and be done.
 * SPDX-License-Identifier: MIT */
#ifndef FL_BASE_STATUS_H
#define FL_BASE_STATUS_H

#include <flatiron/flatiron.h>

/* Writes the formatted text into err (when not NULL; control characters become spaces) and
 * returns st. err->text may be among the arguments, to put something in front of it. */
fl_status fl__fail(fl_err *err, fl_status st, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

/* fl__fail for a failed allocation of n_bytes: FL_E_NOMEM, names what it was for. */
fl_status fl__fail_nomem(fl_err *err, const char *what, size_t n_bytes);

#define FL_COUNT(a) (sizeof(a) / sizeof((a)[0]))
#define FL_MIN(a, b) ((a) < (b) ? (a) : (b))
#define FL_MAX(a, b) ((a) > (b) ? (a) : (b))

#endif
