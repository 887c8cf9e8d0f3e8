/* tokenizer_files.c - opening a tokenizer from a model directory.
 *
 * tokenizer.json says everything but which tokens begin and end a text: that is in
 * tokenizer_config.json or special_tokens_map.json.
 *
 * Without it, vocab.json + merges.txt hold the model only, and the rest is put together as
 * transformers does it for the tokenizer_class of tokenizer_config.json (table `layouts`): the
 * same document that tokenizer.json would be, read by the same code.
 * SPDX-License-Identifier: MIT */
#include "text/tokenizer.h"

#include "base/file.h"
#include "base/mem.h"
#include "text/pipeline.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#define MAX_FILE_BYTES ((size_t)256 << 20)

#define SPLIT(regex)                                                                           \
    "{\"type\":\"Sequence\",\"pretokenizers\":["                                               \
    "{\"type\":\"Split\",\"pattern\":{\"Regex\":\"" regex "\"},\"behavior\":\"Isolated\","     \
    "\"invert\":false},"                                                                       \
    "{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"use_regex\":false}]}"
#define CONTRACTIONS "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\\\r\\\\n\\\\p{L}\\\\p{N}]?\\\\p{L}+|"
#define REST                                                                                   \
    "| ?[^\\\\s\\\\p{L}\\\\p{N}]+[\\\\r\\\\n]*|\\\\s*[\\\\r\\\\n]+|\\\\s+(?!\\\\S)|\\\\s+"

static const char gpt2_layout[] =
    "{\"model\":{\"type\":\"BPE\"},\"decoder\":{\"type\":\"ByteLevel\"},"
    "\"pre_tokenizer\":{\"type\":\"ByteLevel\",\"add_prefix_space\":false}}";
static const char llama3_layout[] =
    "{\"model\":{\"type\":\"BPE\",\"ignore_merges\":true},\"decoder\":{\"type\":\"ByteLevel\"},"
    "\"pre_tokenizer\":" SPLIT(CONTRACTIONS "\\\\p{N}{1,3}" REST) "}";
static const char qwen2_layout[] =
    "{\"model\":{\"type\":\"BPE\"},\"decoder\":{\"type\":\"ByteLevel\"},"
    "\"normalizer\":{\"type\":\"NFC\"},"
    "\"pre_tokenizer\":" SPLIT(CONTRACTIONS "\\\\p{N}" REST) "}";

/* The first row is also that of a directory which names no class. */
static const struct {
    const char *tokenizer_class;
    const char *json;
} layouts[] = {
    {"GPT2Tokenizer", gpt2_layout},
    {"GPT2TokenizerFast", gpt2_layout},
    {"PreTrainedTokenizerFast", llama3_layout},
    {"TokenizersBackend", llama3_layout},
    {"LlamaTokenizerFast", llama3_layout},
    {"Qwen2Tokenizer", qwen2_layout},
    {"Qwen2TokenizerFast", qwen2_layout},
};

/* Keys of tokenizer_config.json and special_tokens_map.json that name special tokens. */
static const char *const special_keys[] = {"bos_token", "eos_token", "unk_token", "sep_token",
                                           "pad_token", "cls_token", "mask_token"};

/* What a model directory holds beside tokenizer.json; NULL where a file is missing. */
typedef struct side_files {
    json_t *config, *special_map, *added;                                         /* owned */
    char *config_path, *special_map_path, *added_path, *vocab_path, *merges_path; /* owned */
} side_files;

static void side_files_fini(side_files *f)
{
    json_decref(f->config);
    json_decref(f->special_map);
    json_decref(f->added);
    fl__free(&f->config_path);
    fl__free(&f->special_map_path);
    fl__free(&f->added_path);
    fl__free(&f->vocab_path);
    fl__free(&f->merges_path);
}

static fl_status load_object(json_t **out, const char *path, fl_err *err)
{
    const fl_status st = fl__json_load(out, path, MAX_FILE_BYTES, err);
    if (st || json_is_object(*out)) return st;
    return fl__fail(err, FL_E_INPUT, "bad tokenizer: %s: not a JSON object; get the file again",
                    path);
}

static fl_status load_optional(json_t **out, char **path, const char *dir, const char *name,
                               fl_err *err)
{
    *path = fl__path_join(dir, name);
    if (!*path) return fl__fail_nomem(err, name, strlen(dir));
    return fl__file_exists(*path) ? load_object(out, *path, err) : FL_OK;
}

static fl_status side_files_load(side_files *f, const char *dir, fl_err *err)
{
    fl_status st =
        load_optional(&f->config, &f->config_path, dir, "tokenizer_config.json", err);
    if (!st)
        st = load_optional(&f->special_map, &f->special_map_path, dir,
                           "special_tokens_map.json", err);
    if (st) return st;
    f->added_path = fl__path_join(dir, "added_tokens.json");
    f->vocab_path = fl__path_join(dir, "vocab.json");
    f->merges_path = fl__path_join(dir, "merges.txt");
    if (!f->added_path || !f->vocab_path || !f->merges_path)
        return fl__fail_nomem(err, "file names", strlen(dir));
    return FL_OK;
}

/* A special token is a text, or an object with its content. NULL when it is neither. */
static const char *token_content(const json_t *token)
{
    return json_string_value(json_is_object(token) ? json_object_get(token, "content") : token);
}

/* From tokenizer_config.json, else special_tokens_map.json; NULL: not named. */
static const json_t *named_special(const side_files *f, const char *key)
{
    const json_t *token = json_object_get(f->config, key);
    return token_content(token) ? token : json_object_get(f->special_map, key);
}

static int32_t named_id(const fl_tokenizer *t, const side_files *f, const char *key)
{
    const char *content = token_content(named_special(f, key));
    return content ? fl__tokenizer_id(t, content, strlen(content)) : -1;
}

/* ---- vocab.json + merges.txt: the document that tokenizer.json would be ------------------ */

static bool flag(const json_t *object, const char *key)
{
    return json_is_true(json_object_get(object, key));
}

/* Appends an entry to added_tokens; 0, or -1 when out of memory. from may be NULL. */
static int append_added(json_t *list, const char *content, int64_t id, bool special,
                        const json_t *from)
{
    return json_array_append_new(
        list, json_pack("{s:s, s:I, s:b, s:b, s:b, s:b, s:b}", "content", content, "id",
                        (json_int_t)id, "special", special, "single_word",
                        flag(from, "single_word"), "lstrip", flag(from, "lstrip"), "rstrip",
                        flag(from, "rstrip"), "normalized", flag(from, "normalized")));
}

static int by_id(const void *left, const void *right)
{
    const json_int_t a = json_integer_value(json_object_get(*(json_t *const *)left, "id"));
    const json_int_t b = json_integer_value(json_object_get(*(json_t *const *)right, "id"));
    return a < b ? -1 : a > b;
}

/* added_tokens as Hugging Face writes them: by id. */
static int sort_by_id(json_t **list)
{
    const size_t n = json_array_size(*list);
    json_t *sorted = json_array();
    json_t **entries = fl__alloc(n, sizeof *entries);
    int failed = !sorted || !entries;
    for (size_t i = 0; i < n && !failed; i++) entries[i] = json_array_get(*list, i);
    if (!failed) qsort(entries, n, sizeof *entries, by_id);
    for (size_t i = 0; i < n && !failed; i++) failed = json_array_append(sorted, entries[i]);
    fl__free(&entries);
    if (failed) {
        json_decref(sorted);
        return -1;
    }
    json_decref(*list);
    *list = sorted;
    return 0;
}

static bool is_listed(const json_t *list, const char *content)
{
    for (size_t i = 0; i < json_array_size(list); i++)
        if (strcmp(token_content(json_array_get(list, i)), content) == 0) return true;
    return false;
}

/* {"50256": {"content": "<|endoftext|>", ..}} of tokenizer_config.json. */
static fl_status add_from_decoder(json_t *list, const json_t *decoder, const char *where,
                                  fl_err *err)
{
    const char *key;
    json_t *token;
    json_object_foreach((json_t *)decoder, key, token)
    {
        char *end;
        const long long id = strtoll(key, &end, 10);
        const char *content = token_content(token);
        if (!content || end == key || *end || id < 0 || id >= FL_MAX_VOCAB)
            return fl__fail(
                err, FL_E_INPUT,
                "bad tokenizer: %s: added_tokens_decoder[\"%.20s\"] is no token with "
                "its id; get the file again",
                where, key);
        if (append_added(list, content, id, flag(token, "special"), token))
            return fl__fail_nomem(err, where, strlen(content));
    }
    return FL_OK;
}

/* {"<|im_start|>": 151644} of added_tokens.json. */
static fl_status add_from_map(json_t *list, const json_t *added, const char *where, fl_err *err)
{
    const char *content;
    json_t *id;
    json_object_foreach((json_t *)added, content, id)
    {
        if (!json_is_integer(id))
            return fl__fail(
                err, FL_E_INPUT,
                "bad tokenizer: %s: the id of \"%.40s\" is no integer; get the file "
                "again",
                where, content);
        if (append_added(list, content, json_integer_value(id), false, NULL))
            return fl__fail_nomem(err, where, strlen(content));
    }
    return FL_OK;
}

/* A special token that has no entry yet gets one, with the vocabulary's id or the next free
 * one; one that has an entry becomes special. */
static fl_status add_special(json_t *list, const json_t *vocab, const json_t *token,
                             const char *where, fl_err *err)
{
    const char *content = token_content(token);
    if (!content || !content[0]) return FL_OK;
    int64_t next_id = (int64_t)json_object_size(vocab);
    for (size_t i = 0; i < json_array_size(list); i++) {
        json_t *entry = json_array_get(list, i);
        const char *listed = token_content(entry);
        if (strcmp(listed, content) == 0)
            return json_object_set_new(entry, "special", json_true())
                       ? fl__fail_nomem(err, where, strlen(content))
                       : FL_OK;
        if (!json_object_get(vocab, listed)) next_id++;
    }
    const json_t *known = json_object_get(vocab, content);
    const int64_t id = json_is_integer(known) ? json_integer_value(known) : next_id;
    return append_added(list, content, id, true, json_is_object(token) ? token : NULL)
               ? fl__fail_nomem(err, where, strlen(content))
               : FL_OK;
}

static fl_status add_specials(json_t *list, const json_t *vocab, const side_files *f,
                              fl_err *err)
{
    static const char gpt2_special[] = "<|endoftext|>";
    const char *where = f->config ? f->config_path : f->special_map_path;
    fl_status st = FL_OK;
    for (size_t i = 0; i < FL_COUNT(special_keys) && !st; i++)
        st = add_special(list, vocab, named_special(f, special_keys[i]), where, err);
    const json_t *more = json_object_get(f->special_map, "additional_special_tokens");
    for (size_t i = 0; i < json_array_size(more) && !st; i++)
        st = add_special(list, vocab, json_array_get(more, i), where, err);
    /* GPT-2's own files name none, and it has one. */
    if (!st && json_array_size(list) == 0 && json_object_get(vocab, gpt2_special)) {
        json_t *token = json_string(gpt2_special);
        st = token ? add_special(list, vocab, token, where, err)
                   : fl__fail_nomem(err, where, sizeof gpt2_special);
        json_decref(token);
    }
    return st;
}

/* *list is owned by the caller, also on failure. */
static fl_status collect_added(json_t **list, const json_t *vocab, side_files *f, fl_err *err)
{
    const json_t *decoder = json_object_get(f->config, "added_tokens_decoder");
    fl_status st = FL_OK;
    *list = json_array();
    if (!*list) return fl__fail_nomem(err, "added tokens", 0);
    if (json_is_object(decoder)) {
        st = add_from_decoder(*list, decoder, f->config_path, err);
    } else if (fl__file_exists(f->added_path)) {
        st = load_object(&f->added, f->added_path, err);
        if (!st) st = add_from_map(*list, f->added, f->added_path, err);
    }
    if (!st && sort_by_id(list)) st = fl__fail_nomem(err, "added tokens", 0);
    return st ? st : add_specials(*list, vocab, f, err);
}

/* {"single": [<bos>, A]} when tokenizer_config.json asks for add_bos_token. */
static int set_post_processor(json_t *tokenizer, const side_files *f, const json_t *added)
{
    const char *bos = token_content(named_special(f, "bos_token"));
    int64_t id = -1;
    if (!flag(f->config, "add_bos_token") || !bos || !is_listed(added, bos)) return 0;
    for (size_t i = 0; i < json_array_size(added); i++)
        if (strcmp(token_content(json_array_get(added, i)), bos) == 0)
            id = json_integer_value(json_object_get(json_array_get(added, i), "id"));
    return json_object_set_new(tokenizer, "post_processor",
                               json_pack("{s:s, s:[{s:{s:s}}, {s:{s:s}}], s:{s:{s:[I]}}}",
                                         "type", "TemplateProcessing", "single", "SpecialToken",
                                         "id", bos, "Sequence", "id", "A", "special_tokens",
                                         bos, "ids", (json_int_t)id));
}

static fl_status choose_layout(json_t **tokenizer, const side_files *f, fl_err *err)
{
    const char *class = layouts[0].tokenizer_class;
    const fl_status st =
        fl__json_get_string(f->config, "tokenizer_class", false, &class, f->config_path, err);
    if (st) return st;
    for (size_t i = 0; i < FL_COUNT(layouts); i++)
        if (strcmp(class, layouts[i].tokenizer_class) == 0)
            return fl__json_parse(tokenizer, layouts[i].json, strlen(layouts[i].json),
                                  layouts[i].tokenizer_class, err);
    return fl__fail(err, FL_E_UNSUPPORTED,
                    "unsupported tokenizer: %s: tokenizer_class is \"%.60s\", and there is no "
                    "tokenizer.json that would say what it does; add one",
                    f->config_path, class);
}

/* Puts the document together; *tokenizer is owned by the caller, also on failure. */
static fl_status compose(json_t **tokenizer, side_files *f, fl_err *err)
{
    json_t *vocab = NULL, *added = NULL;
    fl_status st = choose_layout(tokenizer, f, err);
    if (!st) st = load_object(&vocab, f->vocab_path, err);
    if (!st) st = collect_added(&added, vocab, f, err);
    if (!st) {
        json_t *model = json_object_get(*tokenizer, "model");
        json_t *pretokenizer = json_object_get(*tokenizer, "pre_tokenizer");
        int failed = json_object_set(model, "vocab", vocab);
        failed |= json_object_set(*tokenizer, "added_tokens", added);
        if (flag(f->config, "add_prefix_space"))
            failed |= json_object_set_new(pretokenizer, "add_prefix_space", json_true());
        failed |= set_post_processor(*tokenizer, f, added);
        if (failed) st = fl__fail_nomem(err, f->vocab_path, 0);
    }
    json_decref(vocab);
    json_decref(added);
    return st;
}

static fl_status open_vocab_merges(fl_tokenizer **out, side_files *f, fl_err *err)
{
    json_t *tokenizer = NULL;
    char *merges = NULL;
    fl_parse at = {.where = f->vocab_path, .merges_where = f->merges_path};
    fl_status st = compose(&tokenizer, f, err);
    if (!st)
        st = fl__file_read(&merges, &at.n_merges_bytes, f->merges_path, MAX_FILE_BYTES, err);
    at.merges = merges;
    if (!st) st = fl__tokenizer_build(out, tokenizer, &at, err);
    json_decref(tokenizer);
    fl__free(&merges);
    return st;
}

static fl_status open_tokenizer_json(fl_tokenizer **out, const char *path, fl_err *err)
{
    json_t *tokenizer = NULL;
    fl_parse at = {.where = path};
    fl_status st = fl__json_load(&tokenizer, path, MAX_FILE_BYTES, err);
    if (!st) st = fl__tokenizer_build(out, tokenizer, &at, err);
    json_decref(tokenizer);
    return st;
}

fl_status fl__tokenizer_open(fl_tokenizer **out, const char *model_dir, fl_err *err)
{
    side_files f = {0};
    *out = NULL;
    char *path = fl__path_join(model_dir, "tokenizer.json");
    fl_status st = path ? side_files_load(&f, model_dir, err)
                        : fl__fail_nomem(err, model_dir, strlen(model_dir));
    if (st) goto out;
    if (fl__file_exists(path)) {
        st = open_tokenizer_json(out, path, err);
    } else if (fl__file_exists(f.vocab_path) && fl__file_exists(f.merges_path)) {
        st = open_vocab_merges(out, &f, err);
    } else {
        st = fl__fail(err, FL_E_INPUT,
                      "no tokenizer: %s: neither tokenizer.json nor vocab.json + merges.txt is "
                      "there; get the directory again",
                      model_dir);
    }
    if (!st) {
        (*out)->bos = named_id(*out, &f, "bos_token");
        (*out)->eos = named_id(*out, &f, "eos_token");
    }
out:
    side_files_fini(&f);
    fl__free(&path);
    return st;
}
