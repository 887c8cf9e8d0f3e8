/* normalizers.c - the table of normalisers: text to text. SPDX-License-Identifier: MIT */
#include "text/pipeline.h"

#include "base/mem.h"
#include "text/replace.h"
#include "text/unicode.h"

#include <string.h>
#include <utf8proc.h>

static fl_status nomem(fl_err *err, size_t n_bytes)
{
    return fl__fail_nomem(err, "normalized text", n_bytes);
}

/* ---- NFC, NFD, NFKC, NFKD ---------------------------------------------------------------- */

static fl_status nfc(fl_text_buf *out, const void *settings, const char *text, size_t n_bytes,
                     fl_matcher *matcher, fl_err *err)
{
    (void)settings, (void)matcher;
    return fl__unicode_normalize(out, text, n_bytes, FL_NFC) ? nomem(err, n_bytes) : FL_OK;
}

static fl_status nfd(fl_text_buf *out, const void *settings, const char *text, size_t n_bytes,
                     fl_matcher *matcher, fl_err *err)
{
    (void)settings, (void)matcher;
    return fl__unicode_normalize(out, text, n_bytes, FL_NFD) ? nomem(err, n_bytes) : FL_OK;
}

static fl_status nfkc(fl_text_buf *out, const void *settings, const char *text, size_t n_bytes,
                      fl_matcher *matcher, fl_err *err)
{
    (void)settings, (void)matcher;
    return fl__unicode_normalize(out, text, n_bytes, FL_NFKC) ? nomem(err, n_bytes) : FL_OK;
}

static fl_status nfkd(fl_text_buf *out, const void *settings, const char *text, size_t n_bytes,
                      fl_matcher *matcher, fl_err *err)
{
    (void)settings, (void)matcher;
    return fl__unicode_normalize(out, text, n_bytes, FL_NFKD) ? nomem(err, n_bytes) : FL_OK;
}

/* ---- Lowercase --------------------------------------------------------------------------- */

/* Full lower case without context: U+0130 is the one character that becomes two. */
static fl_status lowercase(fl_text_buf *out, const void *settings, const char *text,
                           size_t n_bytes, fl_matcher *matcher, fl_err *err)
{
    (void)settings, (void)matcher;
    for (size_t i = 0; i < n_bytes;) {
        const fl_utf8_char c = fl__utf8_read(text + i, n_bytes - i);
        const int failed = c.cp == 0x130
                               ? fl__text_buf_append(out, "i\xCC\x87", 3)
                               : fl__text_buf_append_char(out, utf8proc_tolower(c.cp));
        if (failed) return nomem(err, n_bytes);
        i += (size_t)c.n_bytes;
    }
    return FL_OK;
}

/* ---- Prepend: a text in front of what is not empty --------------------------------------- */

static fl_status parse_prepend(void **settings, const json_t *json, const fl_parse *at,
                               fl_err *err)
{
    const char *prefix = NULL;
    const fl_status st = fl__json_get_string(json, "prepend", true, &prefix, at->place, err);
    if (st) return st;
    *settings = fl__strdup(prefix);
    return *settings ? FL_OK : nomem(err, strlen(prefix));
}

static fl_status prepend(fl_text_buf *out, const void *settings, const char *text,
                         size_t n_bytes, fl_matcher *matcher, fl_err *err)
{
    const char *prefix = settings;
    (void)matcher;
    if (n_bytes == 0) return FL_OK;
    if (fl__text_buf_append(out, prefix, strlen(prefix)) ||
        fl__text_buf_append(out, text, n_bytes))
        return nomem(err, n_bytes);
    return FL_OK;
}

/* ---- Replace ----------------------------------------------------------------------------- */

static fl_status replace(fl_text_buf *out, const void *settings, const char *text,
                         size_t n_bytes, fl_matcher *matcher, fl_err *err)
{
    return fl__replace_run(out, settings, text, n_bytes, matcher, err);
}

/* ---- Strip: white space at either end ---------------------------------------------------- */

typedef struct strip {
    bool left, right;
} strip;

static fl_status parse_strip(void **settings, const json_t *json, const fl_parse *at,
                             fl_err *err)
{
    strip *s = fl__calloc(1, sizeof *s);
    *settings = s;
    if (!s) return nomem(err, sizeof *s);
    fl_status st = fl__json_get_bool(json, "strip_left", true, &s->left, at->place, err);
    if (!st) st = fl__json_get_bool(json, "strip_right", true, &s->right, at->place, err);
    if (st) fl__free(settings);
    return st;
}

static fl_status strip_run(fl_text_buf *out, const void *settings, const char *text,
                           size_t n_bytes, fl_matcher *matcher, fl_err *err)
{
    const strip *s = settings;
    size_t start = 0, end = n_bytes;
    (void)matcher;
    while (s->left && start < end) {
        const fl_utf8_char c = fl__utf8_read(text + start, end - start);
        if (!fl__char_is_space(c.cp)) break;
        start += (size_t)c.n_bytes;
    }
    while (s->right && end > start) {
        const size_t last = fl__utf8_last(text, end);
        if (!fl__char_is_space(fl__utf8_read(text + last, end - last).cp)) break;
        end = last;
    }
    return fl__text_buf_append(out, text + start, end - start) ? nomem(err, n_bytes) : FL_OK;
}

static const fl_step_row rows[] = {
    {.type = "NFC", .normalize = nfc},
    {.type = "NFD", .normalize = nfd},
    {.type = "NFKC", .normalize = nfkc},
    {.type = "NFKD", .normalize = nfkd},
    {.type = "Lowercase", .normalize = lowercase},
    {.type = "Prepend", .parse = parse_prepend, .normalize = prepend},
    {.type = "Replace",
     .parse = fl__replace_parse,
     .free = fl__replace_free,
     .normalize = replace},
    {.type = "Strip", .parse = parse_strip, .normalize = strip_run},
};

const fl_stage fl__normalizer_stage = {"normalizer", "normalizers", rows, FL_COUNT(rows)};
