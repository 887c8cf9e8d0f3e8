/* postprocessors.c - the table of post-processors: tokens put around the ids of the text.
 * SPDX-License-Identifier: MIT */
#include "text/pipeline.h"

#include "base/mem.h"

#include <stdio.h>
#include <string.h>

/* ---- TemplateProcessing: special tokens and the text's ids ("$A") in a given order ------- */

typedef struct piece {
    int32_t *ids; /* [n_ids], owned; NULL: the text's ids */
    size_t n_ids;
} piece;

typedef struct id_template {
    piece *pieces; /* [n_pieces], owned */
    size_t n_pieces;
} id_template;

static void free_template(void **settings)
{
    id_template *t = *settings;
    for (size_t i = 0; i < t->n_pieces; i++) fl__free(&t->pieces[i].ids);
    fl__free(&t->pieces);
    fl__free(settings);
}

/* special_tokens.<name>.ids */
static fl_status read_special(piece *p, const json_t *json, const char *name,
                              const fl_parse *at, fl_err *err)
{
    const json_t *special = json_object_get(json_object_get(json, "special_tokens"), name);
    const json_t *ids = json_object_get(special, "ids");
    size_t n_bytes;
    if (!json_is_array(ids))
        return fl__fail(err, FL_E_INPUT,
                        "bad tokenizer: %s: %s.special_tokens has no ids of \"%.40s\"; get the "
                        "file again",
                        at->where, at->field, name);
    p->ids = fl__alloc(json_array_size(ids), sizeof *p->ids);
    if (!p->ids) return fl__fail_nomem(err, at->where, json_array_size(ids));
    for (size_t i = 0; i < json_array_size(ids); i++) {
        const json_t *id = json_array_get(ids, i);
        if (!json_is_integer(id) ||
            !fl__vocab_text(at->vocab, json_integer_value(id), &n_bytes))
            return fl__fail(err, FL_E_INPUT,
                            "bad tokenizer: %s: %s.special_tokens: an id of \"%.40s\" is in no "
                            "vocabulary; get the file again",
                            at->where, at->field, name);
        p->ids[p->n_ids++] = (int32_t)json_integer_value(id);
    }
    return FL_OK;
}

/* {"Sequence": {"id": "A"}} or {"SpecialToken": {"id": "<s>"}} */
static fl_status read_piece(piece *p, const json_t *piece_json, const json_t *json,
                            const fl_parse *at, fl_err *err)
{
    const json_t *sequence = json_object_get(piece_json, "Sequence");
    const json_t *special = json_object_get(piece_json, "SpecialToken");
    const char *id = NULL;
    if (json_object_size(piece_json) != 1 || (!sequence && !special))
        return fl__unsupported(err, at, "single", "no list of Sequence and SpecialToken");
    const fl_status st =
        fl__json_get_string(sequence ? sequence : special, "id", true, &id, at->place, err);
    if (st) return st;
    if (special) return read_special(p, json, id, at, err);
    if (strcmp(id, "A") != 0) return fl__unsupported(err, at, "single", "not about sequence A");
    return FL_OK;
}

static fl_status parse_template(void **settings, const json_t *json, const fl_parse *at,
                                fl_err *err)
{
    const json_t *single = json_object_get(json, "single");
    if (!json_is_array(single))
        return fl__unsupported(err, at, "single", "no list of Sequence and SpecialToken");
    id_template *t = fl__calloc(1, sizeof *t);
    if (!t) return fl__fail_nomem(err, at->where, sizeof *t);
    *settings = t;
    fl_status st = FL_OK;
    t->pieces = fl__calloc(json_array_size(single), sizeof *t->pieces);
    if (!t->pieces) st = fl__fail_nomem(err, at->where, json_array_size(single));
    for (size_t i = 0; i < json_array_size(single) && !st; i++)
        st = read_piece(&t->pieces[t->n_pieces++], json_array_get(single, i), json, at, err);
    if (st) free_template(settings);
    return st;
}

/* Writes the result to `to`, or only counts it when that is NULL. */
static size_t fill(int32_t *to, const id_template *t, const int32_t *ids, size_t n_ids,
                   bool add_special)
{
    size_t n = 0;
    for (size_t i = 0; i < t->n_pieces; i++) {
        const piece *p = &t->pieces[i];
        if (p->ids && !add_special) continue;
        const int32_t *from = p->ids ? p->ids : ids;
        const size_t n_more = p->ids ? p->n_ids : n_ids;
        if (to && n_more > 0) memcpy(to + n, from, n_more * sizeof *to);
        n += n_more;
    }
    return n;
}

static fl_status template_run(int32_t **ids, size_t *n_ids, const void *settings,
                              bool add_special, fl_err *err)
{
    const size_t n = fill(NULL, settings, *ids, *n_ids, add_special);
    int32_t *filled = fl__alloc(n, sizeof *filled);
    if (!filled) return fl__fail_nomem(err, "token ids", n * sizeof *filled);
    (void)fill(filled, settings, *ids, *n_ids, add_special);
    fl__free(ids);
    *ids = filled;
    *n_ids = n;
    return FL_OK;
}

/* ---- ByteLevel: trims offsets, which are not computed here ------------------------------- */

static fl_status byte_level_run(int32_t **ids, size_t *n_ids, const void *settings,
                                bool add_special, fl_err *err)
{
    (void)ids, (void)n_ids, (void)settings, (void)add_special, (void)err;
    return FL_OK;
}

static const fl_step_row rows[] = {
    {.type = "TemplateProcessing",
     .parse = parse_template,
     .free = free_template,
     .postprocess = template_run},
    {.type = "ByteLevel", .postprocess = byte_level_run},
};

const fl_stage fl__postprocessor_stage = {"post_processor", "processors", rows, FL_COUNT(rows)};
