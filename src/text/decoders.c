/* decoders.c - the table of decoders: token texts become text.
 *
 * A step gets pieces, at first one per token, possibly in fragments (behind Fuse and ByteLevel
 * there is one piece, which ends with the last id). SPDX-License-Identifier: MIT */
#include "text/pipeline.h"

#include "base/mem.h"
#include "text/byte_level.h"
#include "text/decoding.h"
#include "text/replace.h"
#include "text/unicode.h"

#include <string.h>

static fl_status nomem(fl_err *err, size_t n_bytes)
{
    return fl__fail_nomem(err, "decoded text", n_bytes);
}

/* Puts fragments together: *text, *n_bytes become the whole piece when it ends, else *complete
 * is false. After use the caller clears state->held. */
static fl_status whole_piece(bool *complete, const char **text, size_t *n_bytes,
                             fl_decode_state *state, bool ends, fl_err *err)
{
    *complete = ends;
    if (ends && state->held.n_bytes == 0) return FL_OK;
    if (fl__text_buf_append(&state->held, *text, *n_bytes)) return nomem(err, *n_bytes);
    *text = state->held.data;
    *n_bytes = state->held.n_bytes;
    return FL_OK;
}

/* ---- ByteLevel: stand-ins to bytes, all bytes to one text -------------------------------- */

/* Hands on what state->bytes settles: all but the start of a character that may still be
 * completed. */
static fl_status settle_bytes(fl_decoding *d, int step, bool at_end, fl_err *err)
{
    fl_decode_state *state = &d->state[step];
    const char *bytes = state->bytes.data;
    size_t settled = state->bytes.n_bytes, rest = 0;
    /* A character that is cut off starts in the last three bytes. */
    for (size_t back = 1; back <= 3 && back <= settled && !at_end; back++)
        if (fl__utf8_read(bytes + settled - back, back).truncated) rest = back;
    settled -= rest;
    fl__text_buf_clear(&state->made);
    if (fl__utf8_repair(&state->made, bytes, settled)) return nomem(err, settled);
    if (rest > 0) memmove(state->bytes.data, bytes + settled, rest);
    state->bytes.n_bytes = rest;
    if (state->made.n_bytes == 0 && !at_end) return FL_OK;
    return fl__decoding_push(d, step + 1, state->made.data, state->made.n_bytes, at_end, err);
}

static fl_status byte_level_push(fl_decoding *d, int step, const void *settings,
                                 const char *text, size_t n_bytes, bool ends, fl_err *err)
{
    fl_decode_state *state = &d->state[step];
    bool complete;
    (void)settings;
    const fl_status st = whole_piece(&complete, &text, &n_bytes, state, ends, err);
    if (st || !complete) return st;
    const int failed = fl__byte_level_decode(&state->bytes, text, n_bytes);
    fl__text_buf_clear(&state->held);
    return failed ? nomem(err, n_bytes) : settle_bytes(d, step, false, err);
}

static fl_status byte_level_finish(fl_decoding *d, int step, const void *settings, fl_err *err)
{
    (void)settings;
    return settle_bytes(d, step, true, err);
}

/* ---- ByteFallback: a run of <0x..> is a text, or one U+FFFD per token -------------------- */

static int hex_digit(char c)
{
    if (c >= '0' && c <= '9') return c - '0';
    if (c >= 'a' && c <= 'f') return c - 'a' + 10;
    if (c >= 'A' && c <= 'F') return c - 'A' + 10;
    return -1;
}

/* The byte that a token such as <0x0A> means, or -1. A sign counts as a zero, as in Rust. */
static int byte_of_token(const char *text, size_t n_bytes)
{
    if (n_bytes != 6 || memcmp(text, "<0x", 3) != 0 || text[5] != '>') return -1;
    const int high = text[3] == '+' ? 0 : hex_digit(text[3]), low = hex_digit(text[4]);
    return high < 0 || low < 0 ? -1 : high * 16 + low;
}

static fl_status end_byte_run(fl_decoding *d, int step, fl_err *err)
{
    fl_text_buf *run = &d->state[step].bytes;
    fl_status st = FL_OK;
    const size_t n = run->n_bytes;
    if (n == 0) return FL_OK;
    if (fl__utf8_valid_prefix(run->data, n) == n)
        st = fl__decoding_push(d, step + 1, run->data, n, true, err);
    else
        for (size_t i = 0; i < n && !st; i++)
            st =
                fl__decoding_push(d, step + 1, FL_REPLACEMENT, FL_REPLACEMENT_BYTES, true, err);
    fl__text_buf_clear(run);
    return st;
}

static fl_status byte_fallback_push(fl_decoding *d, int step, const void *settings,
                                    const char *text, size_t n_bytes, bool ends, fl_err *err)
{
    fl_decode_state *state = &d->state[step];
    bool complete;
    (void)settings;
    fl_status st = whole_piece(&complete, &text, &n_bytes, state, ends, err);
    if (st || !complete) return st;
    const int byte = byte_of_token(text, n_bytes);
    if (byte >= 0) {
        const char c = (char)byte;
        if (fl__text_buf_append(&state->bytes, &c, 1)) st = nomem(err, 1);
    } else {
        st = end_byte_run(d, step, err);
        if (!st) st = fl__decoding_push(d, step + 1, text, n_bytes, true, err);
    }
    fl__text_buf_clear(&state->held);
    return st;
}

static fl_status byte_fallback_finish(fl_decoding *d, int step, const void *settings,
                                      fl_err *err)
{
    (void)settings;
    return end_byte_run(d, step, err);
}

/* ---- Fuse: all pieces become one --------------------------------------------------------- */

static fl_status fuse_push(fl_decoding *d, int step, const void *settings, const char *text,
                           size_t n_bytes, bool ends, fl_err *err)
{
    (void)settings, (void)ends;
    return fl__decoding_push(d, step + 1, text, n_bytes, false, err);
}

static fl_status fuse_finish(fl_decoding *d, int step, const void *settings, fl_err *err)
{
    (void)settings;
    return fl__decoding_push(d, step + 1, "", 0, true, err);
}

/* ---- Replace ----------------------------------------------------------------------------- */

static fl_status replace_push(fl_decoding *d, int step, const void *settings, const char *text,
                              size_t n_bytes, bool ends, fl_err *err)
{
    fl_decode_state *state = &d->state[step];
    bool complete;
    fl_status st = whole_piece(&complete, &text, &n_bytes, state, ends, err);
    if (st || !complete) return st;
    fl__text_buf_clear(&state->made);
    st = fl__replace_run(&state->made, settings, text, n_bytes, &d->matcher, err);
    if (!st)
        st = fl__decoding_push(d, step + 1, state->made.data, state->made.n_bytes, true, err);
    fl__text_buf_clear(&state->held);
    return st;
}

/* ---- Strip: up to `start` and `stop` times a character off the ends of each piece -------- */

typedef struct strip {
    char content[5];
    size_t n_content_bytes, start, stop;
} strip;

static fl_status parse_strip(void **settings, const json_t *json, const fl_parse *at,
                             fl_err *err)
{
    const char *content = NULL;
    int64_t start = 0, stop = 0;
    fl_status st = fl__json_get_string(json, "content", true, &content, at->place, err);
    if (!st) st = fl__json_get_int(json, "start", true, 0, INT32_MAX, &start, at->place, err);
    if (!st) st = fl__json_get_int(json, "stop", true, 0, INT32_MAX, &stop, at->place, err);
    if (st) return st;
    const size_t n_bytes = strlen(content);
    if (n_bytes == 0 || (size_t)fl__utf8_read(content, n_bytes).n_bytes != n_bytes)
        return fl__fail(
            err, FL_E_INPUT,
            "bad tokenizer: %s: %s.content is not one character; get the file again", at->where,
            at->field);
    strip *s = fl__calloc(1, sizeof *s);
    if (!s) return nomem(err, sizeof *s);
    memcpy(s->content, content, n_bytes);
    s->n_content_bytes = n_bytes;
    s->start = (size_t)start;
    s->stop = (size_t)stop;
    *settings = s;
    return FL_OK;
}

/* Takes up to n times the character off the front; returns how often. */
static size_t strip_front(const char **text, size_t *n_bytes, const strip *s, size_t n)
{
    size_t done = 0;
    for (; done < n && *n_bytes >= s->n_content_bytes; done++) {
        if (memcmp(*text, s->content, s->n_content_bytes) != 0) break;
        *text += s->n_content_bytes;
        *n_bytes -= s->n_content_bytes;
    }
    return done;
}

/* state->count is how many were taken off this piece's front, or SIZE_MAX when that is over.
 * With nothing to take off the end, fragments go straight through. */
static fl_status strip_push(fl_decoding *d, int step, const void *settings, const char *text,
                            size_t n_bytes, bool ends, fl_err *err)
{
    const strip *s = settings;
    fl_decode_state *state = &d->state[step];
    bool complete = true;
    fl_status st = FL_OK;
    if (s->stop > 0) st = whole_piece(&complete, &text, &n_bytes, state, ends, err);
    if (st || !complete) return st;
    if (state->count != SIZE_MAX)
        state->count += strip_front(&text, &n_bytes, s, s->start - state->count);
    if (n_bytes > 0) state->count = SIZE_MAX;
    for (size_t i = 0; i < s->stop && n_bytes >= s->n_content_bytes; i++) {
        const char *last = text + n_bytes - s->n_content_bytes;
        if (memcmp(last, s->content, s->n_content_bytes) != 0) break;
        n_bytes -= s->n_content_bytes;
    }
    if (ends) state->count = 0;
    st = fl__decoding_push(d, step + 1, text, n_bytes, ends, err);
    fl__text_buf_clear(&state->held);
    return st;
}

static const fl_step_row rows[] = {
    {.type = "ByteLevel", .push = byte_level_push, .finish = byte_level_finish},
    {.type = "ByteFallback", .push = byte_fallback_push, .finish = byte_fallback_finish},
    {.type = "Fuse", .push = fuse_push, .finish = fuse_finish},
    {.type = "Replace",
     .parse = fl__replace_parse,
     .free = fl__replace_free,
     .push = replace_push},
    {.type = "Strip", .parse = parse_strip, .push = strip_push},
};

const fl_stage fl__decoder_stage = {"decoder", "decoders", rows, FL_COUNT(rows)};
