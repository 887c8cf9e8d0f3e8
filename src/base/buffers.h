/* buffers.h - arrays of floats that are made, counted and freed together, from one list.
 * SPDX-License-Identifier: MIT */
#ifndef FL_BASE_BUFFERS_H
#define FL_BASE_BUFFERS_H

#include "base/status.h"

#include <stddef.h>

/* Where the pointer is, and how many floats. */
typedef struct fl_float_buffer {
    float **at;
    size_t n;
} fl_float_buffer;
/* All or FL_E_NOMEM, for `what`; what is there then is the caller's to free. */
fl_status fl__buffers_alloc(const fl_float_buffer *list, int n, const char *what, fl_err *err);
void fl__buffers_free(const fl_float_buffer *list, int n);
size_t fl__buffers_count(const fl_float_buffer *list, int n); /* floats */

#endif
