/* buffers.c - see buffers.h. SPDX-License-Identifier: MIT */
#include "base/buffers.h"

#include "base/mem.h"

fl_status fl__buffers_alloc(const fl_float_buffer *list, int n, const char *what, fl_err *err)
{
    for (int i = 0; i < n; i++) {
        *list[i].at = fl__alloc(list[i].n, sizeof(float));
        if (!*list[i].at) return fl__fail_nomem(err, what, list[i].n * sizeof(float));
    }
    return FL_OK;
}

void fl__buffers_free(const fl_float_buffer *list, int n)
{
    for (int i = 0; i < n; i++) fl__free(list[i].at);
}

size_t fl__buffers_count(const fl_float_buffer *list, int n)
{
    size_t sum = 0;
    for (int i = 0; i < n; i++) sum += list[i].n;
    return sum;
}
