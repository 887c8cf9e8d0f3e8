/* decoding.c - token texts on their way through the decoder, at once or id by id.
 *
 * Both ways are the same code: each step takes fragments, holds back only what later fragments
 * can change, and lets go of it at the end. So a stream of pieces adds up to the whole by
 * construction. Without a decoder in the file the token texts are joined with spaces.
 * SPDX-License-Identifier: MIT */
#include "text/decoding.h"

#include "base/mem.h"

#include <string.h>

enum { TOKENS_RESERVED = 4 };

struct fl_detok {
    fl_decoding decoding;
};

/* Room for a few of the longest tokens, so that a stream does not allocate as it goes. */
fl_status fl__decoding_init(fl_decoding *d, const fl_tokenizer *t, bool skip_special,
                            fl_err *err)
{
    const size_t n_bytes = TOKENS_RESERVED * t->longest_token_bytes;
    *d = (fl_decoding){.tokenizer = t, .skip_special = skip_special};
    int failed = fl__text_buf_reserve(&d->out, n_bytes);
    for (int i = 0; i < t->decoder.n; i++) {
        failed |= fl__text_buf_reserve(&d->state[i].held, n_bytes);
        failed |= fl__text_buf_reserve(&d->state[i].bytes, n_bytes);
        failed |= fl__text_buf_reserve(&d->state[i].made, n_bytes);
    }
    if (!failed) return FL_OK;
    fl__decoding_fini(d);
    return fl__fail_nomem(err, "decoder", n_bytes);
}

void fl__decoding_reset(fl_decoding *d)
{
    d->begun = false;
    fl__text_buf_clear(&d->out);
    for (int i = 0; i < FL_MAX_STEPS; i++) {
        fl__text_buf_clear(&d->state[i].held);
        fl__text_buf_clear(&d->state[i].bytes);
        fl__text_buf_clear(&d->state[i].made);
        d->state[i].count = 0;
    }
}

void fl__decoding_fini(fl_decoding *d)
{
    for (int i = 0; i < FL_MAX_STEPS; i++) {
        fl__text_buf_fini(&d->state[i].held);
        fl__text_buf_fini(&d->state[i].bytes);
        fl__text_buf_fini(&d->state[i].made);
    }
    fl__matcher_fini(&d->matcher);
    fl__text_buf_fini(&d->out);
}

fl_status fl__decoding_push(fl_decoding *d, int step, const char *text, size_t n_bytes,
                            bool ends, fl_err *err)
{
    const fl_steps *steps = &d->tokenizer->decoder;
    if (step < steps->n) {
        const fl_step *s = &steps->step[step];
        return s->row->push(d, step, s->settings, text, n_bytes, ends, err);
    }
    if (fl__text_buf_append(&d->out, text, n_bytes))
        return fl__fail_nomem(err, "decoded text", n_bytes);
    return FL_OK;
}

fl_status fl__decoding_push_id(fl_decoding *d, int32_t id, fl_err *err)
{
    const fl_tokenizer *t = d->tokenizer;
    size_t n_bytes;
    const char *text = fl__tokenizer_text(t, id, &n_bytes);
    if (!text || (d->skip_special && fl__tokenizer_is_special(t, id))) return FL_OK;
    const bool first = !d->begun;
    d->begun = true;
    if (t->decoder.n == 0 && !first) {
        const fl_status st = fl__decoding_push(d, 0, " ", 1, true, err);
        if (st) return st;
    }
    return fl__decoding_push(d, 0, text, n_bytes, true, err);
}

fl_status fl__decoding_finish(fl_decoding *d, fl_err *err)
{
    const fl_steps *steps = &d->tokenizer->decoder;
    fl_status st = FL_OK;
    for (int i = 0; i < steps->n && !st; i++)
        if (steps->step[i].row->finish)
            st = steps->step[i].row->finish(d, i, steps->step[i].settings, err);
    return st;
}

/* ---- fl_detok ---------------------------------------------------------------------------- */

fl_status fl__detok_new(fl_detok **out, const fl_tokenizer *t, bool skip_special, fl_err *err)
{
    *out = NULL;
    fl_detok *d = fl__alloc(1, sizeof *d);
    if (!d) return fl__fail_nomem(err, "decoder", sizeof *d);
    const fl_status st = fl__decoding_init(&d->decoding, t, skip_special, err);
    if (st) fl__free(&d);
    *out = d;
    return st;
}

fl_status fl__detok_push(const char **text, size_t *n_bytes, fl_detok *d, int32_t id,
                         fl_err *err)
{
    fl__text_buf_clear(&d->decoding.out);
    const fl_status st = fl__decoding_push_id(&d->decoding, id, err);
    *text = d->decoding.out.data;
    *n_bytes = d->decoding.out.n_bytes;
    return st;
}

fl_status fl__detok_finish(const char **text, size_t *n_bytes, fl_detok *d, fl_err *err)
{
    fl__text_buf_clear(&d->decoding.out);
    const fl_status st = fl__decoding_finish(&d->decoding, err);
    *text = d->decoding.out.data;
    *n_bytes = d->decoding.out.n_bytes;
    return st;
}

void fl__detok_reset(fl_detok *d)
{
    fl__decoding_reset(&d->decoding);
}

void fl__detok_free(fl_detok **d)
{
    if (!*d) return;
    fl__decoding_fini(&(*d)->decoding);
    fl__free(d);
}

fl_status fl__tokenizer_decode(char **text, size_t *n_bytes, const fl_tokenizer *t,
                               const int32_t *ids, size_t n_ids, bool skip_special, fl_err *err)
{
    fl_decoding d;
    *text = NULL;
    *n_bytes = 0;
    fl_status st = fl__decoding_init(&d, t, skip_special, err);
    if (st) return st;
    for (size_t i = 0; i < n_ids && !st; i++) st = fl__decoding_push_id(&d, ids[i], err);
    if (!st) st = fl__decoding_finish(&d, err);
    if (!st && fl__text_buf_append(&d.out, "", 1)) st = fl__fail_nomem(err, "decoded text", 1);
    if (!st) {
        *text = d.out.data;
        *n_bytes = d.out.n_bytes - 1;
        d.out = (fl_text_buf){0};
    }
    fl__decoding_fini(&d);
    return st;
}
