/* fuzz_tokenizer.c - any bytes as a tokenizer and a text for it.
 *
 * Input: tokenizer.json NUL text, or tokenizer.json NUL merges.txt NUL text (a text of its own
 * follows when there is no NUL). The tokenizer is refused with a reason, or the text becomes
 * ids of its vocabulary, and decoding them at once and one by one gives the same well-formed
 * text.
 * SPDX-License-Identifier: MIT */
#include "base/mem.h"
#include "text/pipeline.h"
#include "text/unicode.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes);

static const char own_text[] =
    "It's 12,345 a\xCC\x81\xC3\x89 <s>\n\n \xF0\x9F\x98\x80\xFF abab  x";

static void check(bool ok)
{
    if (!ok) abort();
}

static void check_stream(const fl_tokenizer *t, const int32_t *ids, size_t n_ids,
                         const char *whole, size_t n_whole)
{
    fl_detok *d;
    const char *piece;
    size_t n_piece, at = 0;
    if (fl__detok_new(&d, t, false, NULL)) return;
    for (size_t i = 0; i <= n_ids; i++) {
        const fl_status st = i < n_ids ? fl__detok_push(&piece, &n_piece, d, ids[i], NULL)
                                       : fl__detok_finish(&piece, &n_piece, d, NULL);
        check(st == FL_OK);
        check(n_piece <= n_whole - at && memcmp(piece, whole + at, n_piece) == 0);
        check(fl__utf8_valid_prefix(piece, n_piece) == n_piece);
        at += n_piece;
    }
    check(at == n_whole);
    fl__detok_free(&d);
}

static void check_text(const fl_tokenizer *t, const char *text, size_t n_bytes)
{
    fl_err err = {""};
    int32_t *ids;
    size_t n_ids, n_decoded, n_token;
    char *decoded;
    if (fl__tokenizer_encode(&ids, &n_ids, t, text, n_bytes, true, &err)) {
        check(!ids && err.text[0]);
        return;
    }
    for (size_t i = 0; i < n_ids; i++) {
        check(ids[i] >= 0 && ids[i] < fl__tokenizer_n_vocab(t));
        check(fl__tokenizer_text(t, ids[i], &n_token) != NULL);
    }
    if (fl__tokenizer_decode(&decoded, &n_decoded, t, ids, n_ids, false, &err)) {
        check(!decoded && err.text[0]);
    } else {
        check(fl__utf8_valid_prefix(decoded, n_decoded) == n_decoded);
        check_stream(t, ids, n_ids, decoded, n_decoded);
    }
    fl__free(&decoded);
    fl__free(&ids);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes)
{
    const char *json = (const char *)data, *const end = json + n_bytes;
    const char *json_end = n_bytes > 0 ? memchr(json, 0, n_bytes) : NULL;
    const char *text = json_end ? json_end + 1 : own_text;
    size_t n_text = json_end ? (size_t)(end - text) : sizeof own_text - 1;
    const char *text_start = json_end && n_text > 0 ? memchr(text, 0, n_text) : NULL;
    fl_parse at = {.where = "fuzz", .merges_where = "fuzz"};
    fl_err err = {""};
    fl_tokenizer *t = NULL;
    json_t *root;
    const size_t before = fl__mem_get().now_bytes;

    if (text_start) {
        at.merges = text;
        at.n_merges_bytes = (size_t)(text_start - text);
        text = text_start + 1;
        n_text = (size_t)(end - text);
    }
    if (fl__json_parse(&root, json, json_end ? (size_t)(json_end - json) : n_bytes, "fuzz",
                       &err)) {
        check(!root && err.text[0]);
        return 0;
    }
    if (fl__tokenizer_build(&t, root, &at, &err)) check(!t && err.text[0]);
    else check_text(t, text, n_text);
    fl__tokenizer_close(&t);
    json_decref(root);
    check(fl__mem_get().now_bytes == before);
    return 0;
}
