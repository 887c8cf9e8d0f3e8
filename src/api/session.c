/* session.c - one sequence: cache, activations, logits; feeding it in chunks.
 *
 * All memory is taken by fl_session_new, so that a decode step allocates nothing. A prompt goes
 * through in chunks of FL_PROMPT_CHUNK_ROWS tokens, which bounds the activations whatever its
 * length.
 * SPDX-License-Identifier: MIT */
#include "api/engine.h"

#include "base/mem.h"

#include <string.h>

static fl_status session_init(fl_session *s, int n_positions, fl_err *err)
{
    const fl_model *model = s->engine->model;
    const size_t n_vocab = (size_t)model->cfg.vocab_size;
    s->n_positions = n_positions;
    s->max_rows = FL_MIN(s->engine->device_model ? FL_DEVICE_CHUNK_ROWS : FL_PROMPT_CHUNK_ROWS,
                         n_positions);
    const fl_status st =
        fl__runner_new(&s->runner, model, &s->engine->exec, s->engine->device_model, 1,
                       n_positions, s->max_rows, err);
    if (st != FL_OK) return st;
    s->ids = fl__alloc((size_t)n_positions, sizeof *s->ids);
    if (!s->ids) return fl__fail_nomem(err, "token ids", (size_t)n_positions * sizeof *s->ids);
    s->logits = fl__alloc(n_vocab, sizeof *s->logits);
    return s->logits ? FL_OK : fl__fail_nomem(err, "logits", n_vocab * sizeof *s->logits);
}

fl_status fl_session_new(fl_session **out, fl_engine *engine, const fl_session_options *options,
                         fl_err *err)
{
    const int context = engine->model->cfg.n_positions;
    const int n_positions = options && options->n_positions ? options->n_positions : context;
    *out = NULL;
    if (n_positions < 1 || n_positions > context)
        return fl__fail(err, FL_E_USAGE,
                        "bad context size: %d: the model's context is %d tokens; use 1 to %d",
                        n_positions, context, context);
    fl_session *s = fl__calloc(1, sizeof *s);
    if (!s) return fl__fail_nomem(err, "session", sizeof *s);
    s->engine = engine;
    const fl_status st = session_init(s, n_positions, err);
    if (st != FL_OK) {
        fl_session_free(&s);
        return st;
    }
    *out = s;
    return FL_OK;
}

void fl_session_free(fl_session **session)
{
    fl_session *s = *session;
    if (!s) return;
    fl__free(&s->logits);
    fl__free(&s->ids);
    fl__runner_free(&s->runner);
    fl__free(session);
}

static fl_status check_feed(const fl_session *s, const int32_t *ids, size_t n_ids, fl_err *err)
{
    const int n_vocab = s->engine->model->cfg.vocab_size;
    if (n_ids == 0)
        return fl__fail(err, FL_E_USAGE,
                        "nothing to feed: session: no token ids; feed at least one");
    if (n_ids > (size_t)(s->n_positions - s->length))
        return fl__fail(
            err, FL_E_USAGE,
            "context full: session: %zu tokens more than the %d already there do not "
            "fit in %d; use a shorter prompt or a larger context",
            n_ids, s->length, s->n_positions);
    for (size_t i = 0; i < n_ids; i++)
        if (ids[i] < 0 || ids[i] >= n_vocab)
            return fl__fail(
                err, FL_E_USAGE,
                "bad token id: session: %d, number %zu of those fed; ids are 0 to %d",
                (int)ids[i], i, n_vocab - 1);
    return FL_OK;
}

static fl_status feed_chunk(fl_session *s, const int32_t *ids, int n, fl_err *err)
{
    const fl_span span = {.seq = 0, .pos = s->length, .n_rows = n};
    return fl__runner_forward(s->runner, ids, &span, 1, err);
}

fl_status fl_session_feed(fl_session *session, const int32_t *ids, size_t n_ids,
                          const float **logits, fl_err *err)
{
    fl_session *s = session;
    *logits = NULL;
    fl_status st = check_feed(s, ids, n_ids, err);
    if (st != FL_OK) return st;
    int n = 0;
    for (size_t at = 0; at < n_ids && !st; at += (size_t)n) {
        n = (int)FL_MIN(n_ids - at, (size_t)s->max_rows);
        st = n_ids == 1 ? fl__runner_decode(s->runner, *ids, s->length, s->logits, err)
                        : feed_chunk(s, ids + at, n, err);
        if (st) return st;
        memcpy(s->ids + s->length, ids + at, (size_t)n * sizeof *ids);
        s->length += n;
    }
    if (n_ids > 1) st = fl__runner_logits(s->runner, n - 1, 1, s->logits, err);
    if (!st) *logits = s->logits;
    return st;
}

void fl_session_truncate(fl_session *session, size_t n_keep)
{
    if (n_keep >= (size_t)session->length) return;
    session->length = (int)n_keep;
    fl__runner_resize(session->runner, 0, session->length);
}

size_t fl_session_length(const fl_session *session)
{
    return (size_t)session->length;
}
