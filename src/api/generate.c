/* generate.c - prompt in, text out: encode, feed, then pick and feed until something ends it.
 *
 * The memory of the loop is taken in front of it: the sampler's candidates, the ids, and a text
 * buffer that is grown only by unusually long tokens.
 * SPDX-License-Identifier: MIT */
#include "api/engine.h"

#include "base/clock.h"
#include "base/file.h"
#include "base/mem.h"
#include "text/sampling.h"

#include <string.h>

enum { BYTES_PER_TOKEN = 16 }; /* first guess of the text's size */
static const size_t MAX_PROMPT_BYTES = (size_t)1 << 30;

typedef struct job {
    fl_session *session;
    const fl_generate_options *options;
    fl_generate_result *result;
    size_t text_room; /* bytes of result->text */
    fl_sampler sampler;
    fl_detok *detok;
    const float *logits; /* borrowed from the session */
} job;

/* Appends text to the result and hands it to the caller; *go_on is the caller's answer. */
static fl_status emit(job *j, const char *text, size_t n_bytes, bool *go_on, fl_err *err)
{
    fl_generate_result *r = j->result;
    const size_t need = r->n_text_bytes + n_bytes + 1;
    if (need > j->text_room) {
        const size_t room = FL_MAX(need, 2 * j->text_room);
        if (fl__grow(&r->text, room, 1) != 0) return fl__fail_nomem(err, "text", room);
        j->text_room = room;
    }
    memcpy(r->text + r->n_text_bytes, text, n_bytes);
    r->n_text_bytes += n_bytes;
    r->text[r->n_text_bytes] = '\0';
    *go_on = !j->options->on_text || j->options->on_text(j->options->user, text, n_bytes);
    return FL_OK;
}

/* ---- prompt ------------------------------------------------------------------------------ */

static fl_status check_prompt(const job *j, size_t n_ids, fl_err *err)
{
    const fl_session *s = j->session;
    if (n_ids == 0)
        return fl__fail(
            err, FL_E_USAGE,
            "empty prompt: generate: it has no tokens; give at least one character");
    if (n_ids > (size_t)(s->n_positions - s->length))
        return fl__fail(err, FL_E_USAGE,
                        "prompt too long: generate: %zu tokens, the context has room for %d; "
                        "shorten the prompt or use a larger context",
                        n_ids, s->n_positions - s->length);
    return FL_OK;
}

static fl_status feed_prompt(job *j, const char *text, size_t n_bytes, fl_err *err)
{
    fl_session *s = j->session;
    int32_t *ids = NULL;
    size_t n_ids = 0;
    fl_status st =
        fl_engine_encode(&ids, &n_ids, s->engine, text, n_bytes, s->length == 0, err);
    if (st == FL_OK) st = check_prompt(j, n_ids, err);
    if (st == FL_OK) st = fl_session_feed(s, ids, n_ids, &j->logits, err);
    if (st == FL_OK) j->result->n_prompt_tokens = (int)n_ids;
    fl_ids_free(&ids);
    return st;
}

static fl_status run_prompt(job *j, fl_err *err)
{
    const fl_generate_options *o = j->options;
    char *file = NULL;
    const char *text = o->prompt ? o->prompt : "";
    size_t n_bytes = o->prompt ? o->n_prompt_bytes : 0;
    fl_status st = FL_OK;
    if (o->prompt_path) {
        st = fl__file_read(&file, &n_bytes, o->prompt_path, MAX_PROMPT_BYTES, err);
        text = file;
    }
    if (st == FL_OK) st = feed_prompt(j, text, n_bytes, err);
    fl__free(&file);
    return st;
}

/* ---- decoding ---------------------------------------------------------------------------- */

/* Tokens that may be generated: each but the last needs a place in the context. */
static int max_tokens(const job *j)
{
    const int room = j->session->n_positions - j->session->length + 1;
    const int wanted = j->options->n_predict;
    return wanted < 0 ? room : FL_MIN(wanted, room);
}

static fl_status prepare_loop(job *j, fl_err *err)
{
    const fl_engine *e = j->session->engine;
    const size_t n = (size_t)max_tokens(j);
    j->text_room = n * BYTES_PER_TOKEN + 1;
    j->result->ids = fl__alloc(n, sizeof *j->result->ids);
    if (!j->result->ids) return fl__fail_nomem(err, "token ids", n * sizeof *j->result->ids);
    j->result->text = fl__calloc(j->text_room, 1);
    if (!j->result->text) return fl__fail_nomem(err, "text", j->text_room);
    return fl__detok_new(&j->detok, e->tokenizer, !j->options->special, err);
}

static bool is_end(const fl_model_config *cfg, int32_t id)
{
    for (int i = 0; i < cfg->n_eos; i++)
        if (cfg->eos_ids[i] == id) return true;
    return false;
}

/* One token. *reason is set when it was the last. */
static fl_status step(job *j, int n_max, const char **reason, fl_err *err)
{
    fl_session *s = j->session;
    fl_generate_result *r = j->result;
    const char *text;
    size_t n_bytes;
    bool go_on = true;
    const int32_t id =
        fl__sampler_pick(&j->sampler, j->logits, s->ids, (size_t)s->length, s->length);
    if (id < 0)
        return fl__fail(
            err, FL_E_FAIL,
            "generation failed: position %d: the logits are no finite numbers; check "
            "the model with flatiron verify",
            s->length);
    if (is_end(&s->engine->model->cfg, id)) {
        *reason = "stop";
        return FL_OK;
    }
    r->ids[r->n_tokens++] = id;
    fl_status st = fl__detok_push(&text, &n_bytes, j->detok, id, err);
    if (st == FL_OK) st = emit(j, text, n_bytes, &go_on, err);
    if (st != FL_OK) return st;
    if (!go_on) *reason = "cancelled";
    else if (r->n_tokens < n_max) st = fl_session_feed(s, &id, 1, &j->logits, err);
    return st;
}

static fl_status run_loop(job *j, fl_err *err)
{
    const int n_max = max_tokens(j);
    const char *text, *reason = NULL;
    size_t n_bytes;
    bool go_on;
    fl_status st = FL_OK;
    while (st == FL_OK && !reason && j->result->n_tokens < n_max)
        st = step(j, n_max, &reason, err);
    if (st == FL_OK) st = fl__detok_finish(&text, &n_bytes, j->detok, err);
    if (st == FL_OK && n_bytes > 0) st = emit(j, text, n_bytes, &go_on, err);
    j->result->finish_reason = reason ? reason : "length";
    return st;
}

fl_status fl_session_generate(fl_generate_result *result, fl_session *session,
                              const fl_generate_options *options, fl_err *err)
{
    job j = {.session = session, .options = options, .result = result};
    memset(result, 0, sizeof *result);
    fl_status st = fl__sampler_init(&j.sampler, &options->sample,
                                    session->engine->model->cfg.vocab_size, err);
    const double start = fl__now_s();
    if (st == FL_OK) st = run_prompt(&j, err);
    const double decoding = fl__now_s();
    if (st == FL_OK) st = prepare_loop(&j, err);
    if (st == FL_OK) st = run_loop(&j, err);
    result->prefill_s = decoding - start;
    result->decode_s = fl__now_s() - decoding;
    fl__detok_free(&j.detok);
    fl__sampler_fini(&j.sampler);
    if (st != FL_OK) fl_generate_result_fini(result);
    return st;
}

void fl_generate_result_fini(fl_generate_result *result)
{
    fl__free(&result->text);
    fl__free(&result->ids);
    memset(result, 0, sizeof *result);
}
