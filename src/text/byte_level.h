/* byte_level.h - GPT-2's printable stand-ins for bytes, and its way of cutting text into words.
 *
 * Bytes that are visible Latin-1 characters stand for themselves, the other 68 are U+0100
 * onward in order of the byte: 0x20 is U+0120, "G with a dot".
 * SPDX-License-Identifier: MIT */
#ifndef FL_TEXT_BYTE_LEVEL_H
#define FL_TEXT_BYTE_LEVEL_H

#include "text/text_buf.h"

/* The regular expression of GPT-2. */
extern const char fl__byte_level_regex[];

/* Appends the stand-ins of n_bytes. 0, or -1 when out of memory. */
int fl__byte_level_encode(fl_text_buf *out, const char *s, size_t n_bytes);
/* Appends the bytes that the stand-ins of well-formed s mean, or s itself when one of its
 * characters is none. 0, or -1 when out of memory. */
int fl__byte_level_decode(fl_text_buf *out, const char *s, size_t n_bytes);

#endif
