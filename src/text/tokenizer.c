/* tokenizer.c - building a tokenizer from tokenizer.json, and encoding.
 *
 * Encoding, as in Hugging Face's tokenizers:
 *   1. ill-formed bytes become U+FFFD;
 *   2. added tokens with normalized false are cut out of the text;
 *   3. each part between them is normalised, and the other added tokens are cut out of that;
 *   4. what is left goes piece by piece through the pre-tokeniser to the model;
 *   5. the post-processor works on all ids.
 * SPDX-License-Identifier: MIT */
#include "text/tokenizer.h"

#include "base/mem.h"
#include "text/encoding.h"
#include "text/unicode.h"

#include <inttypes.h>
#include <string.h>

#define MAX_TEXT_BYTES ((size_t)1 << 30)

/* ---- added tokens ------------------------------------------------------------------------ */

static fl_status read_added(fl_added_token *a, int64_t *id, const json_t *json,
                            const fl_parse *at, fl_err *err)
{
    const char *content = NULL;
    const struct {
        const char *key;
        bool *value;
    } flags[] = {{"special", &a->special},
                 {"single_word", &a->single_word},
                 {"lstrip", &a->lstrip},
                 {"rstrip", &a->rstrip},
                 {"normalized", &a->normalize}};
    fl_status st = fl__json_get_string(json, "content", true, &content, at->place, err);
    if (!st) st = fl__json_get_int(json, "id", true, 0, FL_MAX_VOCAB - 1, id, at->place, err);
    for (size_t i = 0; i < FL_COUNT(flags) && !st; i++) {
        if (flags[i].value == &a->normalize) a->normalize = !a->special;
        st = fl__json_get_bool(json, flags[i].key, false, flags[i].value, at->place, err);
    }
    if (st) return st;
    a->n_content_bytes = strlen(content);
    a->content = fl__strdup(content);
    return a->content ? FL_OK : fl__fail_nomem(err, at->where, a->n_content_bytes);
}

/* The text to look for. */
static fl_status normalize_added(fl_added_token *a, const fl_tokenizer *t, const fl_parse *at,
                                 fl_err *err)
{
    fl_text_buf spare[2] = {{0}, {0}};
    fl_matcher matcher = {0};
    const char *text = a->content;
    size_t n_bytes = a->n_content_bytes;
    fl_status st = FL_OK;
    if (a->normalize)
        st =
            fl__normalize(&text, &n_bytes, &t->normalizer, text, n_bytes, spare, &matcher, err);
    if (!st) {
        a->normalized = fl__strndup(text, n_bytes);
        a->n_normalized_bytes = n_bytes;
        if (!a->normalized) st = fl__fail_nomem(err, at->where, n_bytes);
    }
    for (int i = 0; i < 2; i++) fl__text_buf_fini(&spare[i]);
    fl__matcher_fini(&matcher);
    return st;
}

/* Gives the token the id that Hugging Face's loader would give it: that of the model's
 * vocabulary, else the next free one. A file that says otherwise would mean different ids to
 * different programs, so it is refused. */
static fl_status place_added(fl_tokenizer *t, fl_added_token *a, int64_t id, int64_t *next_id,
                             const fl_parse *at, fl_err *err)
{
    const int shown =
        (int)fl__utf8_valid_prefix(a->content, FL_MIN(a->n_content_bytes, (size_t)40));
    const int32_t known = fl__vocab_id(&t->vocab, a->content, a->n_content_bytes);
    const int64_t expected = known >= 0 ? known : (*next_id)++;
    if (id != expected)
        return fl__fail(err, FL_E_INPUT,
                        "bad tokenizer: %s: %s: \"%.*s\" has id %" PRId64
                        ", its place in the vocabulary is %" PRId64 "; get the file again",
                        at->where, at->field, shown, a->content, id, expected);
    a->id = (int32_t)expected;
    if (known >= 0) return FL_OK;
    return fl__vocab_add(&t->vocab, a->content, a->n_content_bytes, expected, at->place, err);
}

static fl_status read_added_tokens(fl_tokenizer *t, const json_t *tokenizer, fl_parse *at,
                                   fl_err *err)
{
    const json_t *list = json_object_get(tokenizer, "added_tokens");
    int64_t next_id = (int64_t)t->vocab.n_tokens;
    const size_t n = json_array_size(list); /* 0 when there is no list */
    fl__parse_enter(at, "added_tokens");
    if (list && !json_is_null(list) && !json_is_array(list))
        return fl__fail(err, FL_E_INPUT,
                        "bad tokenizer: %s: added_tokens is no list; get the file again",
                        at->where);
    t->added.tokens = fl__calloc(n, sizeof *t->added.tokens);
    if (!t->added.tokens) return fl__fail_nomem(err, at->where, n * sizeof *t->added.tokens);
    for (size_t i = 0; i < n; i++) {
        int64_t id = 0;
        fl_added_token *a = &t->added.tokens[t->added.n++];
        fl__parse_enter(at, "added_tokens[%zu]", i);
        fl_status st = read_added(a, &id, json_array_get(list, i), at, err);
        if (!st && a->n_content_bytes == 0) { /* ignored, as in Hugging Face's loader */
            fl__free(&a->content);
            t->added.n--;
            continue;
        }
        if (!st) st = normalize_added(a, t, at, err);
        if (!st) st = place_added(t, a, id, &next_id, at, err);
        if (st) return st;
    }
    if (fl__added_tokens_index(&t->added)) return fl__fail_nomem(err, at->where, n);
    return FL_OK;
}

static fl_status map_added(fl_tokenizer *t, const fl_parse *at, fl_err *err)
{
    t->added_of = fl__alloc(t->vocab.n_ids, sizeof *t->added_of);
    if (!t->added_of) return fl__fail_nomem(err, at->where, t->vocab.n_ids);
    for (size_t id = 0; id < t->vocab.n_ids; id++) {
        t->added_of[id] = -1;
        t->longest_token_bytes = FL_MAX(t->longest_token_bytes, t->vocab.tokens[id].n_bytes);
    }
    for (size_t i = 0; i < t->added.n; i++) {
        const fl_added_token *a = &t->added.tokens[i];
        if (t->added_of[a->id] >= 0)
            return fl__fail(err, FL_E_INPUT,
                            "bad tokenizer: %s: added_tokens[%zu] has the text of added_tokens"
                            "[%d]; get the file again",
                            at->where, i, t->added_of[a->id]);
        t->added_of[a->id] = (int32_t)i;
        t->longest_token_bytes = FL_MAX(t->longest_token_bytes, a->n_normalized_bytes);
    }
    return FL_OK;
}

/* ---- building ---------------------------------------------------------------------------- */

static fl_status check_version(const json_t *tokenizer, const fl_parse *at, fl_err *err)
{
    const char *version = "1.0";
    if (!json_is_object(tokenizer))
        return fl__fail(err, FL_E_INPUT,
                        "bad tokenizer: %s: not a JSON object; get the file again", at->where);
    const fl_status st =
        fl__json_get_string(tokenizer, "version", false, &version, at->where, err);
    if (st || strcmp(version, "1.0") == 0) return st;
    return fl__unsupported(err, at, "version", "not \"1.0\"");
}

/* Hugging Face's loader would give the second of two templates the first one's pieces as texts
 * of their own; nobody writes that. */
static fl_status check_templates(const fl_steps *postprocessor, fl_parse *at, fl_err *err)
{
    int n_templates = 0;
    for (int i = 0; i < postprocessor->n; i++)
        n_templates += postprocessor->step[i].settings != NULL;
    fl__parse_enter(at, "post_processor");
    return n_templates > 1 ? fl__unsupported(err, at, "", "more than one template") : FL_OK;
}

fl_status fl__tokenizer_build(fl_tokenizer **out, const json_t *tokenizer, fl_parse *at,
                              fl_err *err)
{
    *out = NULL;
    fl_status st = check_version(tokenizer, at, err);
    if (st) return st;
    fl_tokenizer *t = fl__calloc(1, sizeof *t);
    if (!t) return fl__fail_nomem(err, at->where, sizeof *t);
    t->bos = t->eos = -1;
    at->vocab = &t->vocab;
    st = fl__steps_parse(&t->model, &fl__model_stage, tokenizer, at, err);
    if (!st && t->model.n == 0)
        st = fl__fail(err, FL_E_INPUT,
                      "bad tokenizer: %s: there is no model; get the file again", at->where);
    if (!st) st = fl__steps_parse(&t->normalizer, &fl__normalizer_stage, tokenizer, at, err);
    if (!st) st = read_added_tokens(t, tokenizer, at, err);
    if (!st) st = map_added(t, at, err);
    if (!st)
        st = fl__steps_parse(&t->pretokenizer, &fl__pretokenizer_stage, tokenizer, at, err);
    if (!st)
        st = fl__steps_parse(&t->postprocessor, &fl__postprocessor_stage, tokenizer, at, err);
    if (!st) st = check_templates(&t->postprocessor, at, err);
    if (!st) st = fl__steps_parse(&t->decoder, &fl__decoder_stage, tokenizer, at, err);
    if (st) fl__tokenizer_close(&t);
    *out = t;
    return st;
}

fl_status fl__tokenizer_open_memory(fl_tokenizer **out, const char *json, size_t n_bytes,
                                    fl_err *err)
{
    json_t *tokenizer = NULL;
    fl_parse at = {.where = "tokenizer.json"};
    *out = NULL;
    fl_status st = fl__json_parse(&tokenizer, json, n_bytes, at.where, err);
    if (!st) st = fl__tokenizer_build(out, tokenizer, &at, err);
    json_decref(tokenizer);
    return st;
}

void fl__tokenizer_close(fl_tokenizer **t)
{
    if (!*t) return;
    fl__steps_fini(&(*t)->normalizer);
    fl__steps_fini(&(*t)->pretokenizer);
    fl__steps_fini(&(*t)->model);
    fl__steps_fini(&(*t)->postprocessor);
    fl__steps_fini(&(*t)->decoder);
    fl__added_tokens_fini(&(*t)->added);
    fl__vocab_fini(&(*t)->vocab);
    fl__free(&(*t)->added_of);
    fl__free(t);
}

/* ---- encoding ---------------------------------------------------------------------------- */

typedef fl_status part_fn(fl_encoding *e, const char *text, size_t n_bytes, fl_err *err);

/* Cuts the tokens of index out of a text; the parts between them go to on_part. */
static fl_status cut_out(fl_encoding *e, const fl_added_index *index, const char *text,
                         size_t n_bytes, part_fn *on_part, fl_err *err)
{
    fl_added_search search = {.index = index, .text = text, .n_bytes = n_bytes};
    size_t done = 0, start, end;
    const fl_added_token *token;
    fl_status st = FL_OK;
    while (!st && (token = fl__added_search_next(&search, &start, &end)) != NULL) {
        if (done < start) st = on_part(e, text + done, start - done, err);
        if (!st) st = fl__encoding_add(e, token->id, err);
        done = end;
    }
    if (!st && done < n_bytes) st = on_part(e, text + done, n_bytes - done, err);
    return st;
}

static fl_status on_normalized_part(fl_encoding *e, const char *text, size_t n_bytes,
                                    fl_err *err)
{
    return fl__pretokenize(e, 0, text, n_bytes, err);
}

static fl_status on_raw_part(fl_encoding *e, const char *text, size_t n_bytes, fl_err *err)
{
    const fl_tokenizer *t = e->tokenizer;
    const fl_status st = fl__normalize(&text, &n_bytes, &t->normalizer, text, n_bytes,
                                       e->normalized, &e->matcher, err);
    return st ? st : cut_out(e, &t->added.normalized, text, n_bytes, on_normalized_part, err);
}

static fl_status encode_text(fl_encoding *e, const char *text, size_t n_bytes, fl_err *err)
{
    if (n_bytes > MAX_TEXT_BYTES)
        return fl__fail(err, FL_E_INPUT,
                        "text too long: %zu bytes: at most 1 GiB at once; split it", n_bytes);
    if (fl__utf8_valid_prefix(text, n_bytes) != n_bytes) {
        if (fl__utf8_repair(&e->repaired, text, n_bytes))
            return fl__fail_nomem(err, "repaired text", n_bytes);
        text = e->repaired.data;
        n_bytes = e->repaired.n_bytes;
    }
    return cut_out(e, &e->tokenizer->added.raw, text, n_bytes, on_raw_part, err);
}

fl_status fl__tokenizer_encode(int32_t **ids, size_t *n_ids, const fl_tokenizer *t,
                               const char *text, size_t n_bytes, bool add_special, fl_err *err)
{
    fl_encoding e;
    *ids = NULL;
    *n_ids = 0;
    fl__encoding_init(&e, t);
    fl_status st = encode_text(&e, text, n_bytes, err);
    for (int i = 0; i < t->postprocessor.n && !st; i++) {
        const fl_step *s = &t->postprocessor.step[i];
        st = s->row->postprocess(&e.ids, &e.n_ids, s->settings, add_special, err);
    }
    if (!st && !e.ids) {
        e.ids = fl__alloc(0, sizeof *e.ids);
        if (!e.ids) st = fl__fail_nomem(err, "token ids", 0);
    }
    if (!st) {
        *ids = e.ids;
        *n_ids = e.n_ids;
        e.ids = NULL;
    }
    fl__encoding_fini(&e);
    return st;
}

/* ---- the vocabulary ---------------------------------------------------------------------- */

int fl__tokenizer_n_vocab(const fl_tokenizer *t)
{
    return (int)t->vocab.n_ids;
}

int32_t fl__tokenizer_id(const fl_tokenizer *t, const char *text, size_t n_bytes)
{
    return fl__vocab_id(&t->vocab, text, n_bytes);
}

/* NULL when the id is no added token. */
static const fl_added_token *added_token(const fl_tokenizer *t, int32_t id)
{
    if (id < 0 || (size_t)id >= t->vocab.n_ids || t->added_of[id] < 0) return NULL;
    return &t->added.tokens[t->added_of[id]];
}

const char *fl__tokenizer_text(const fl_tokenizer *t, int32_t id, size_t *n_bytes)
{
    const fl_added_token *a = added_token(t, id);
    if (!a) return fl__vocab_text(&t->vocab, id, n_bytes);
    *n_bytes = a->n_normalized_bytes;
    return a->normalized;
}

bool fl__tokenizer_is_special(const fl_tokenizer *t, int32_t id)
{
    const fl_added_token *a = added_token(t, id);
    return a && a->special;
}

int32_t fl__tokenizer_bos(const fl_tokenizer *t)
{
    return t->bos;
}

int32_t fl__tokenizer_eos(const fl_tokenizer *t)
{
    return t->eos;
}
