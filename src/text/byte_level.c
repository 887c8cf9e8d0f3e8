/* byte_level.c - GPT-2's printable stand-ins for bytes. SPDX-License-Identifier: MIT */
#include "text/byte_level.h"

#include "text/unicode.h"

const char fl__byte_level_regex[] =
    "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";

/* 00..20 -> U+0100.., 7F..A0 -> U+0121.., AD -> U+0143 */
static int32_t to_char(unsigned char byte)
{
    if (byte <= 0x20) return 0x100 + byte;
    if (byte >= 0x7F && byte <= 0xA0) return 0x121 + (byte - 0x7F);
    return byte == 0xAD ? 0x143 : byte;
}

static int to_byte(int32_t cp)
{
    if (cp >= 0x100 && cp <= 0x120) return cp - 0x100;
    if (cp >= 0x121 && cp <= 0x142) return cp - 0x121 + 0x7F;
    if (cp == 0x143) return 0xAD;
    return cp < 0x100 && to_char((unsigned char)cp) == cp ? (int)cp : -1;
}

int fl__byte_level_encode(fl_text_buf *out, const char *s, size_t n_bytes)
{
    if (n_bytes > SIZE_MAX / 2 || fl__text_buf_reserve(out, 2 * n_bytes)) return -1;
    char *to = out->data + out->n_bytes;
    for (size_t i = 0; i < n_bytes; i++) {
        const int32_t cp = to_char((unsigned char)s[i]);
        if (cp < 0x80) {
            *to++ = (char)cp;
        } else {
            *to++ = (char)(0xC0 | cp >> 6);
            *to++ = (char)(0x80 | (cp & 0x3F));
        }
    }
    out->n_bytes = (size_t)(to - out->data);
    return 0;
}

int fl__byte_level_decode(fl_text_buf *out, const char *s, size_t n_bytes)
{
    const size_t before = out->n_bytes;
    if (fl__text_buf_reserve(out, n_bytes)) return -1;
    for (size_t i = 0; i < n_bytes;) {
        const fl_utf8_char c = fl__utf8_read(s + i, n_bytes - i);
        const int byte = to_byte(c.cp);
        if (byte < 0) {
            out->n_bytes = before;
            return fl__text_buf_append(out, s, n_bytes);
        }
        out->data[out->n_bytes++] = (char)byte;
        i += (size_t)c.n_bytes;
    }
    return 0;
}
