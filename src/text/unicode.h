/* unicode.h - UTF-8 that nobody vouches for, and the character classes that tokenizers ask for.
 *
 * Decoding follows table 3-7 of the Unicode standard. Ill-formed bytes are grouped into maximal
 * subparts, each of which is read as one U+FFFD: the practice of bytes.decode('utf-8',
 * 'replace') and of Rust's from_utf8_lossy.
 *
 * Classes are those of the Hugging Face tokenizers library (Rust's char methods and its regex
 * crate), with the tables of utf8proc; docs/tokenizers.md says where Unicode versions differ.
 * SPDX-License-Identifier: MIT */
#ifndef FL_TEXT_UNICODE_H
#define FL_TEXT_UNICODE_H

#include "text/text_buf.h"

#include <stdbool.h>

#define FL_REPLACEMENT       "\xEF\xBF\xBD" /* U+FFFD */
#define FL_REPLACEMENT_BYTES 3

typedef struct fl_utf8_char {
    int n_bytes; /* of the character, or of the ill-formed subpart; 1..4 */
    bool valid;
    bool truncated; /* not valid, but more bytes could make it so */
    int32_t cp;     /* when valid */
} fl_utf8_char;

/* First character of s; n_bytes > 0. */
fl_utf8_char fl__utf8_read(const char *s, size_t n_bytes);
/* Bytes of the longest well-formed prefix. */
size_t fl__utf8_valid_prefix(const char *s, size_t n_bytes);
/* Appends s with one U+FFFD for every ill-formed subpart. 0, or -1 when out of memory. */
int fl__utf8_repair(fl_text_buf *out, const char *s, size_t n_bytes);
/* Start of the last character of well-formed s; n_bytes > 0. */
size_t fl__utf8_last(const char *s, size_t n_bytes);

bool fl__char_is_space(int32_t cp);   /* White_Space */
bool fl__char_is_word(int32_t cp);    /* \w of UTS 18: Alphabetic, M, Nd, Pc, Join_Control */
bool fl__char_is_numeric(int32_t cp); /* Nd, Nl, No */
bool fl__char_is_punctuation(int32_t cp); /* P*, and the ASCII symbols $+<=>^`|~ */

typedef enum fl_unicode_form { FL_NFC, FL_NFD, FL_NFKC, FL_NFKD } fl_unicode_form;
/* Appends well-formed s in the given normal form. Linear but for sorting runs of combining
 * marks, which is n log n. 0, or -1 when out of memory. */
int fl__unicode_normalize(fl_text_buf *out, const char *s, size_t n_bytes,
                          fl_unicode_form form);

#endif
