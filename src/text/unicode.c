/* unicode.c - UTF-8 decoding, character classes and normal forms on utf8proc's tables.
 *
 * utf8proc's own utf8proc_map is not used: it allocates behind our back, and it sorts combining
 * marks by exchanging neighbours, so that a megabyte of marks in the wrong order would take
 * minutes. Here characters are decomposed one by one, each run of marks is merge-sorted by its
 * combining class (stable, as the standard demands), and utf8proc composes the result.
 * SPDX-License-Identifier: MIT */
#include "text/unicode.h"

#include "base/mem.h"

#include <string.h>
#include <utf8proc.h>

fl_utf8_char fl__utf8_read(const char *s, size_t n_bytes)
{
    const unsigned char *b = (const unsigned char *)s;
    const unsigned char lead = b[0];
    /* Bounds of the second byte: tighter than 80..BF where a character would be overlong, a
     * surrogate or beyond U+10FFFF. */
    unsigned char low = 0x80, high = 0xBF;
    int n;
    int32_t cp;

    if (lead < 0x80) return (fl_utf8_char){1, true, false, lead};
    if (lead < 0xC2 || lead > 0xF4) return (fl_utf8_char){1, false, false, 0};
    if (lead < 0xE0) {
        n = 2;
        cp = lead & 0x1F;
    } else if (lead < 0xF0) {
        n = 3;
        cp = lead & 0x0F;
        if (lead == 0xE0) low = 0xA0;
        if (lead == 0xED) high = 0x9F;
    } else {
        n = 4;
        cp = lead & 0x07;
        if (lead == 0xF0) low = 0x90;
        if (lead == 0xF4) high = 0x8F;
    }
    for (int i = 1; i < n; i++) {
        if ((size_t)i == n_bytes) return (fl_utf8_char){i, false, true, 0};
        if (b[i] < low || b[i] > high) return (fl_utf8_char){i, false, false, 0};
        cp = cp << 6 | (b[i] & 0x3F);
        low = 0x80;
        high = 0xBF;
    }
    return (fl_utf8_char){n, true, false, cp};
}

size_t fl__utf8_valid_prefix(const char *s, size_t n_bytes)
{
    size_t i = 0;
    while (i < n_bytes) {
        uint64_t eight;
        if (n_bytes - i >= sizeof eight) {
            memcpy(&eight, s + i, sizeof eight);
            if ((eight & 0x8080808080808080u) == 0) {
                i += sizeof eight;
                continue;
            }
        }
        const fl_utf8_char c = fl__utf8_read(s + i, n_bytes - i);
        if (!c.valid) break;
        i += (size_t)c.n_bytes;
    }
    return i;
}

int fl__utf8_repair(fl_text_buf *out, const char *s, size_t n_bytes)
{
    for (;;) {
        const size_t good = fl__utf8_valid_prefix(s, n_bytes);
        if (fl__text_buf_append(out, s, good)) return -1;
        if (good == n_bytes) return 0;
        s += good;
        n_bytes -= good;
        const size_t bad = (size_t)fl__utf8_read(s, n_bytes).n_bytes;
        if (fl__text_buf_append(out, FL_REPLACEMENT, FL_REPLACEMENT_BYTES)) return -1;
        s += bad;
        n_bytes -= bad;
    }
}

size_t fl__utf8_last(const char *s, size_t n_bytes)
{
    size_t i = n_bytes - 1;
    while (i > 0 && (s[i] & 0xC0) == 0x80) i--;
    return i;
}

bool fl__char_is_space(int32_t cp)
{
    return (cp >= 0x09 && cp <= 0x0D) || cp == 0x20 || cp == 0x85 || cp == 0xA0 ||
           cp == 0x1680 || (cp >= 0x2000 && cp <= 0x200A) || cp == 0x2028 || cp == 0x2029 ||
           cp == 0x202F || cp == 0x205F || cp == 0x3000;
}

bool fl__char_is_word(int32_t cp)
{
    switch (utf8proc_category(cp)) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LL:
    case UTF8PROC_CATEGORY_LT:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO:
    case UTF8PROC_CATEGORY_MN:
    case UTF8PROC_CATEGORY_MC:
    case UTF8PROC_CATEGORY_ME:
    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_NL:
    case UTF8PROC_CATEGORY_PC:
        return true;
    default:
        /* Join_Control, then the circled, squared and negative Latin letters: the symbols that
         * are Alphabetic. */
        return cp == 0x200C || cp == 0x200D || (cp >= 0x24B6 && cp <= 0x24E9) ||
               (cp >= 0x1F130 && cp <= 0x1F149) || (cp >= 0x1F150 && cp <= 0x1F169) ||
               (cp >= 0x1F170 && cp <= 0x1F189);
    }
}

bool fl__char_is_numeric(int32_t cp)
{
    const utf8proc_category_t c = utf8proc_category(cp);
    return c == UTF8PROC_CATEGORY_ND || c == UTF8PROC_CATEGORY_NL || c == UTF8PROC_CATEGORY_NO;
}

bool fl__char_is_punctuation(int32_t cp)
{
    const utf8proc_category_t c = utf8proc_category(cp);
    if (c >= UTF8PROC_CATEGORY_PC && c <= UTF8PROC_CATEGORY_PO) return true;
    return cp > 0 && cp < 0x80 && strchr("$+<=>^`|~", cp) != NULL;
}

/* ---- normal forms ------------------------------------------------------------------------ */

static int combining_class(int32_t cp)
{
    return utf8proc_get_property(cp)->combining_class;
}

/* Bottom-up merge sort of n marks by combining class; spare has room for n as well. */
static void sort_marks(int32_t *marks, int32_t *spare, size_t n)
{
    int32_t *from = marks, *to = spare;
    for (size_t width = 1; width < n; width *= 2) {
        for (size_t start = 0; start < n; start += 2 * width) {
            const size_t middle = start + width < n ? start + width : n;
            const size_t end = start + 2 * width < n ? start + 2 * width : n;
            size_t a = start, b = middle;
            for (size_t i = start; i < end; i++) {
                const bool take_a = a < middle && (b == end || combining_class(from[a]) <=
                                                                   combining_class(from[b]));
                to[i] = take_a ? from[a++] : from[b++];
            }
        }
        int32_t *const swap = from;
        from = to;
        to = swap;
    }
    if (from != marks) memcpy(marks, from, n * sizeof *marks);
}

static void order_marks(int32_t *chars, int32_t *spare, size_t n)
{
    for (size_t i = 0; i < n;) {
        size_t end = i;
        while (end < n && combining_class(chars[end]) != 0) end++;
        if (end > i + 1) sort_marks(chars + i, spare, end - i);
        i = end > i ? end : i + 1;
    }
}

/* Decomposed characters of s; *chars is owned by the caller, also on failure. */
static int decompose(int32_t **chars, size_t *n_chars, const char *s, size_t n_bytes,
                     utf8proc_option_t options)
{
    size_t capacity = n_bytes + 8, n = 0;
    *chars = fl__alloc(capacity, sizeof **chars);
    if (!*chars) return -1;
    for (size_t i = 0; i < n_bytes;) {
        const fl_utf8_char c = fl__utf8_read(s + i, n_bytes - i);
        i += (size_t)c.n_bytes;
        for (;;) {
            const size_t room = capacity - n;
            const utf8proc_ssize_t wrote = utf8proc_decompose_char(
                c.cp, *chars + n, (utf8proc_ssize_t)room, options, NULL);
            if (wrote < 0) return -1;
            if ((size_t)wrote <= room) {
                n += (size_t)wrote;
                break;
            }
            capacity = capacity * 2 + (size_t)wrote;
            if (fl__grow((void **)chars, capacity, sizeof **chars)) return -1;
        }
    }
    *n_chars = n;
    return 0;
}

static bool is_ascii(const char *s, size_t n_bytes)
{
    for (size_t i = 0; i < n_bytes; i++)
        if (s[i] & 0x80) return false;
    return true;
}

int fl__unicode_normalize(fl_text_buf *out, const char *s, size_t n_bytes, fl_unicode_form form)
{
    int32_t *chars = NULL, *spare = NULL;
    size_t n_chars = 0;
    int options = UTF8PROC_STABLE;
    int failed = -1;

    if (is_ascii(s, n_bytes)) return fl__text_buf_append(out, s, n_bytes);
    options |= form == FL_NFC || form == FL_NFKC ? UTF8PROC_COMPOSE : UTF8PROC_DECOMPOSE;
    if (form == FL_NFKC || form == FL_NFKD) options |= UTF8PROC_COMPAT;
    if (decompose(&chars, &n_chars, s, n_bytes, (utf8proc_option_t)options)) goto out;
    spare = fl__alloc(n_chars, sizeof *spare);
    if (!spare) goto out;
    order_marks(chars, spare, n_chars);
    if (options & UTF8PROC_COMPOSE)
        n_chars = (size_t)utf8proc_normalize_utf32(chars, (utf8proc_ssize_t)n_chars,
                                                   (utf8proc_option_t)options);
    for (size_t i = 0; i < n_chars; i++)
        if (fl__text_buf_append_char(out, chars[i])) goto out;
    failed = 0;
out:
    fl__free(&chars);
    fl__free(&spare);
    return failed;
}
