/* text_buf.h - a byte buffer that grows. {0} is a valid empty one.
 *
 * Appending returns 0, or -1 when out of memory with the contents kept. The bytes are not
 * NUL-terminated. A buffer that is cleared keeps its memory, so that a loop that fills and
 * clears one stops allocating after its largest round.
 * SPDX-License-Identifier: MIT */
#ifndef FL_TEXT_BUF_H
#define FL_TEXT_BUF_H

#include <stddef.h>
#include <stdint.h>

typedef struct fl_text_buf {
    char *data; /* [capacity], owned */
    size_t n_bytes, capacity;
} fl_text_buf;

/* Room for extra more bytes behind the contents. */
int fl__text_buf_reserve(fl_text_buf *b, size_t extra_bytes);
int fl__text_buf_append(fl_text_buf *b, const char *s, size_t n_bytes);
/* cp as UTF-8. */
int fl__text_buf_append_char(fl_text_buf *b, int32_t cp);
void fl__text_buf_clear(fl_text_buf *b);
void fl__text_buf_fini(fl_text_buf *b);

#endif
