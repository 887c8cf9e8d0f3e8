/* text_buf.c - a byte buffer that grows by doubling. SPDX-License-Identifier: MIT */
#include "text/text_buf.h"

#include "base/mem.h"

#include <string.h>
#include <utf8proc.h>

enum { FIRST_BYTES = 64, MAX_CHAR_BYTES = 4 };

int fl__text_buf_reserve(fl_text_buf *b, size_t extra_bytes)
{
    if (b->data && extra_bytes <= b->capacity - b->n_bytes) return 0;
    if (extra_bytes > SIZE_MAX / 2 - b->n_bytes) return -1;
    size_t capacity = b->capacity > 0 ? b->capacity : FIRST_BYTES;
    while (capacity < b->n_bytes + extra_bytes) capacity *= 2;
    if (fl__grow((void **)&b->data, capacity, 1)) return -1;
    b->capacity = capacity;
    return 0;
}

int fl__text_buf_append(fl_text_buf *b, const char *s, size_t n_bytes)
{
    if (fl__text_buf_reserve(b, n_bytes)) return -1;
    if (n_bytes > 0) memcpy(b->data + b->n_bytes, s, n_bytes);
    b->n_bytes += n_bytes;
    return 0;
}

int fl__text_buf_append_char(fl_text_buf *b, int32_t cp)
{
    if (fl__text_buf_reserve(b, MAX_CHAR_BYTES)) return -1;
    b->n_bytes += (size_t)utf8proc_encode_char(cp, (utf8proc_uint8_t *)(b->data + b->n_bytes));
    return 0;
}

void fl__text_buf_clear(fl_text_buf *b)
{
    b->n_bytes = 0;
}

void fl__text_buf_fini(fl_text_buf *b)
{
    fl__free(&b->data);
    *b = (fl_text_buf){0};
}
