/* test_safetensors.c - round trips, shards, and files that are broken in every way we know,
 * each with its status and the text that names file and tensor. SPDX-License-Identifier: MIT */
#include "base/file.h"
#include "base/mem.h"
#include "format/safetensors.h"
#include "format/safetensors_write.h"
#include "support/fl_test.h"

#include <stdio.h>
#include <string.h>

/* A file with this header (header_bytes of it, 0: all) and n_data bytes behind it. */
static void put_file(const char *path, const char *header, size_t n_data)
{
    unsigned char bytes[4096] = {0};
    const size_t n = strlen(header);
    assert_true(8 + n + n_data <= sizeof bytes);
    bytes[0] = (unsigned char)n;
    bytes[1] = (unsigned char)(n >> 8);
    memcpy(bytes + 8, header, n);
    for (size_t i = 0; i < n_data; i++) bytes[8 + n + i] = (unsigned char)i;
    assert_int_equal(fl__file_write(path, bytes, 8 + n + n_data, NULL), FL_OK);
}

/* The errors of a file that nobody wrote right begin with what, name the file, then the rest.
 */
static void assert_broken(fl_status st, const fl_err *err, const char *path, const char *want)
{
    char all[512];
    assert_int_equal(st, FL_E_INPUT);
    (void)snprintf(all, sizeof all, ": %s: %s", path, want);
    if (!strstr(err->text, all)) fail_msg("wanted '%s', got '%s'", all, err->text);
    assert_non_null(strstr(err->text, "; "));
}

/* ---- round trips -------------------------------------------------------------------- */

static const fl_tensor_decl decls[] = {
    {"codes", FL_DTYPE_U8, 2, {3, 1}},  {"weight", FL_DTYPE_BF16, 2, {2, 3}},
    {"empty", FL_DTYPE_F32, 2, {0, 4}}, {"scale", FL_DTYPE_F32, 1, {2}},
    {"scalar", FL_DTYPE_F32, 0, {0}},   {"halves", FL_DTYPE_F16, 1, {1}},
    {"count", FL_DTYPE_I64, 1, {1}},    {"strange name/\xc3\xa4\"", FL_DTYPE_I8, 1, {1}},
};
static const fl_metadata_pair metadata[] = {{"format", "pt"}, {"made_by", "a \"test\""}};

static fl_status write_sample(const char *path, fl_err *err)
{
    static const unsigned char data[64] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13};
    fl_safetensors_writer *w;
    fl_status st = fl__safetensors_writer_open(&w, path, decls, FL_COUNT(decls), metadata,
                                               FL_COUNT(metadata), err);
    if (st) return st;
    for (size_t i = FL_COUNT(decls); !st && i-- > 0;) {
        int64_t n_elements;
        size_t n_bytes;
        assert_int_equal(fl__shape_bytes(&n_elements, &n_bytes, decls[i].dtype, decls[i].n_dims,
                                         decls[i].dims),
                         0);
        const size_t half = n_bytes / 2;
        st = fl__safetensors_writer_write(w, decls[i].name, data, half, err);
        if (!st)
            st = fl__safetensors_writer_write(w, decls[i].name, data + half, n_bytes - half,
                                              err);
    }
    if (!st) st = fl__safetensors_writer_commit(&w, err);
    fl__safetensors_writer_discard(&w);
    return st;
}

static void what_is_written_is_read(void **state)
{
    (void)state;
    fl_err err;
    fl_tensors *set;
    const char *path = fl_test_path("a.safetensors");
    assert_int_equal(write_sample(path, &err), FL_OK);
    assert_int_equal(fl__tensors_open_file(&set, path, &err), FL_OK);
    assert_int_equal(fl__tensors_count(set), FL_COUNT(decls));
    for (size_t i = 0; i < FL_COUNT(decls); i++) {
        const fl_tensor_view *v = fl__tensors_find(set, decls[i].name);
        assert_non_null(v);
        assert_string_equal(v->name, decls[i].name);
        assert_string_equal(v->file, path);
        assert_int_equal(v->dtype, decls[i].dtype);
        assert_int_equal(v->n_dims, decls[i].n_dims);
        for (int d = 0; d < v->n_dims; d++) assert_int_equal(v->dims[d], decls[i].dims[d]);
        assert_int_equal((uintptr_t)v->data % fl__dtype_bytes(v->dtype), 0);
        for (size_t k = 0; k < v->n_bytes; k++)
            assert_int_equal(((const unsigned char *)v->data)[k], k < 13 ? k + 1 : 0);
    }
    assert_int_equal(fl__tensors_find(set, "scalar")->n_elements, 1);
    assert_int_equal(fl__tensors_find(set, "empty")->n_bytes, 0);
    assert_null(fl__tensors_find(set, "weigh"));
    assert_null(fl__tensors_find(set, "__metadata__"));
    assert_string_equal(fl__tensors_metadata(set, "format"), "pt");
    assert_string_equal(fl__tensors_metadata(set, "made_by"), "a \"test\"");
    assert_null(fl__tensors_metadata(set, "none"));
    assert_int_equal(fl__tensors_file_count(set), 1);
    assert_string_equal(fl__tensors_file(set, 0), path);
    fl__tensors_close(&set);
    assert_null(set);
    fl__tensors_close(&set);
}

/* The bytes themselves, so that other readers' view of the format is pinned too. */
static void the_bytes_are_the_formats(void **state)
{
    (void)state;
    static const fl_tensor_decl two[] = {{"b", FL_DTYPE_U8, 1, {3}},
                                         {"a", FL_DTYPE_U16, 1, {1}}};
    static const char want[] =
        "\x70\0\0\0\0\0\0\0{\"a\":{\"dtype\":\"U16\",\"shape\":[1],\"data_offsets\":[0,2]},"
        "\"b\":{\"dtype\":\"U8\",\"shape\":[3],\"data_offsets\":[2,5]}}      \1\2xyz";
    fl_err err;
    char *got;
    size_t n_bytes;
    fl_safetensors_writer *w;
    const char *path = fl_test_path("b.safetensors");
    assert_int_equal(fl__safetensors_writer_open(&w, path, two, 2, NULL, 0, &err), FL_OK);
    assert_int_equal(fl__safetensors_writer_write(w, "b", "xyz", 3, &err), FL_OK);
    assert_int_equal(fl__safetensors_writer_write(w, "a", "\1\2", 2, &err), FL_OK);
    assert_false(fl__file_exists(path));
    assert_int_equal(fl__safetensors_writer_commit(&w, &err), FL_OK);
    assert_null(w);
    assert_int_equal(fl__file_read(&got, &n_bytes, path, 1000, &err), FL_OK);
    assert_int_equal(n_bytes, sizeof want - 1);
    assert_memory_equal(got, want, n_bytes);
    fl__free(&got);
}

static void order_of_views_is_that_of_the_file(void **state)
{
    (void)state;
    fl_tensors *set;
    const char *path = fl_test_path("c.safetensors");
    put_file(path,
             "{\"z\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[4,6]},"
             "\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]},"
             "\"n\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[4,4]}} ",
             6);
    assert_int_equal(fl__tensors_open_file(&set, path, NULL), FL_E_INPUT); /* not aligned */
    put_file(path,
             "{\"z\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[4,6]},"
             "\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]},"
             "\"n\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[4,4]}}      ",
             6);
    fl_err err;
    assert_int_equal(fl__tensors_open_file(&set, path, &err), FL_OK);
    assert_string_equal(fl__tensors_at(set, 0)->name, "a");
    assert_string_equal(fl__tensors_at(set, 1)->name, "n");
    assert_string_equal(fl__tensors_at(set, 2)->name, "z");
    fl__tensors_close(&set);
}

static void a_file_may_hold_no_tensors(void **state)
{
    (void)state;
    fl_tensors *set;
    fl_err err;
    const char *path = fl_test_path("none.safetensors");
    put_file(path, "{}", 0);
    assert_int_equal(fl__tensors_open_file(&set, path, &err), FL_OK);
    assert_int_equal(fl__tensors_count(set), 0);
    assert_null(fl__tensors_find(set, "x"));
    fl__tensors_close(&set);
}

/* ---- broken files ------------------------------------------------------------------- */

#define HEADER(tensors) "{" tensors "}"
#define ENTRY(name, dtype, shape, offsets)                                                     \
    "\"" name "\":{\"dtype\":\"" dtype "\",\"shape\":" shape ",\"data_offsets\":" offsets "}"

static const struct {
    const char *header;
    size_t n_data;
    const char *want; /* behind ": <file>: " */
} broken[] = {
    /* places */
    {HEADER(ENTRY("w", "U8", "[8]", "[0,8]")), 7,
     "w: it ends at byte 8 of the data, which has "
     "only 7: the file is truncated"},
    {HEADER(ENTRY("w", "U8", "[4]", "[0,4]") "," ENTRY("v", "U8", "[4]", "[2,6]")), 6,
     "v: its data overlaps that of w"},
    {HEADER(ENTRY("w", "U8", "[4]", "[0,4]") "," ENTRY("v", "U8", "[4]", "[0,4]")), 4,
     "w: its data overlaps that of v"},
    {HEADER(ENTRY("w", "U8", "[8]", "[0,8]") "," ENTRY("v", "U8", "[0]", "[4,4]")), 8,
     "v: its data overlaps that of w"},
    {HEADER(ENTRY("w", "U8", "[2]", "[0,2]") "," ENTRY("v", "U8", "[2]", "[4,6]")), 6,
     "v: 2 bytes before its data belong to no tensor"},
    {HEADER(ENTRY("w", "U8", "[2]", "[2,4]")), 4, "w: 2 bytes before its data belong"},
    {HEADER(ENTRY("w", "U8", "[2]", "[0,2]")), 5, "w: 3 bytes behind its data belong to no"},
    {"{}", 1, "(no tensors): 1 bytes behind its data"},
    {HEADER(ENTRY("w", "U8", "[2]", "[2,0]")), 2, "w: its data_offsets run backwards"},
    {HEADER(ENTRY("w", "U8", "[2]", "[-2,0]")), 2, "w: its data_offsets run backwards"},
    {HEADER(ENTRY("w", "U8", "[2]", "[0,9223372036854775807]")), 2,
     "w: it ends at byte "
     "9223372036854775807"},
    {HEADER(ENTRY("w", "U8", "[2]", "[0,99999999999999999999]")), 2,
     "w: its data_offsets are no"},
    {HEADER(ENTRY("w", "U8", "[2]", "[0]")), 2, "w: its data_offsets are no pair of integers"},
    {HEADER(ENTRY("w", "U8", "[2]", "[0,1,2]")), 2, "w: its data_offsets are no pair"},
    {HEADER(ENTRY("w", "U8", "[2]", "[0.0,2.0]")), 2, "w: its data_offsets are no pair"},
    {HEADER(ENTRY("w", "U8", "[2]", "\"0,2\"")), 2, "w: its data_offsets are no pair"},
    {"{\"w\":{\"dtype\":\"U8\",\"shape\":[2]}}", 2, "w: its data_offsets are no pair"},
    {HEADER(ENTRY("u", "U8", "[1]", "[0,1]") "," ENTRY("w", "F32", "[1]", "[1,5]")), 5,
     "w: its data is not aligned to its element size"},
    /* shapes and types */
    {HEADER(ENTRY("w", "F32", "[2]", "[0,4]")), 4,
     "w: its data_offsets hold 4 bytes, but its "
     "shape and dtype F32 need 8"},
    {HEADER(ENTRY("w", "U8", "[1,2]", "[0,4]")), 4, "w: its data_offsets hold 4 bytes"},
    {HEADER(ENTRY("w", "U8", "[4294967296,4294967296]", "[0,0]")), 0, "w: its shape overflows"},
    {HEADER(ENTRY("w", "F64", "[4611686018427387904]", "[0,0]")), 0, "w: its shape overflows"},
    {HEADER(ENTRY("w", "U8", "[-1]", "[0,1]")), 1,
     "w: its shape has something else than sizes"},
    {HEADER(ENTRY("w", "U8", "[1.5]", "[0,1]")), 1, "w: its shape has something else"},
    {HEADER(ENTRY("w", "U8", "[\"1\"]", "[0,1]")), 1, "w: its shape has something else"},
    {HEADER(ENTRY("w", "U8", "3", "[0,1]")), 1, "w: it has no shape"},
    {HEADER(ENTRY("w", "U8", "[1,1,1,1,1,1,1,1,1]", "[0,1]")), 1, "w: it has more than 8 dim"},
    {HEADER(ENTRY("w", "Q4_0", "[1]", "[0,1]")), 1, "w: dtype Q4_0 is not known"},
    {HEADER(ENTRY("w", "f32", "[1]", "[0,4]")), 4, "w: dtype f32 is not known"},
    {"{\"w\":{\"shape\":[1],\"data_offsets\":[0,1]}}", 1, "w: it has no dtype"},
    {"{\"w\":{\"dtype\":4,\"shape\":[1],\"data_offsets\":[0,1]}}", 1, "w: it has no dtype"},
    /* names and the header itself */
    {"{\"w\":[]}", 0, "w: its header entry is no object"},
    {HEADER(ENTRY("", "U8", "[1]", "[0,1]")), 1, "\"\": the name is empty"},
    {HEADER(ENTRY("a\\n\\u001bb", "U8", "[1]", "[0,1]")), 1, "\"a  b\": the name has control"},
    {HEADER(ENTRY("a\\u0000b", "U8", "[1]", "[0,1]")), 1, "line 1, column "},
    {HEADER(ENTRY("a\xff", "U8", "[1]", "[0,1]")), 1, "line 1, column "},
    {HEADER(ENTRY("w", "U8", "[1]", "[0,1]") "," ENTRY("w", "U8", "[1]", "[1,2]")), 2,
     "line 1, column "},
    {"{\"__metadata__\":{\"a\":1}}", 0, "its __metadata__ holds something else than texts"},
    {"{\"__metadata__\":[]}", 0, "its __metadata__ is no object"},
    {"[]", 0, "its header does not begin with {"},
    {" {}", 0, "its header does not begin with {"},
    {"", 4, "its header does not begin with {"},
    {"{\"w\":", 0, "line 1, column "},
    {"{} {}", 0, "line 1, column "},
};

static void broken_files_name_file_and_tensor(void **state)
{
    (void)state;
    const char *path = fl_test_path("broken.safetensors");
    const size_t before = fl__mem_get().now_bytes;
    for (size_t i = 0; i < FL_COUNT(broken); i++) {
        fl_err err = {""};
        fl_tensors *set = (fl_tensors *)1;
        put_file(path, broken[i].header, broken[i].n_data);
        const fl_status st = fl__tensors_open_file(&set, path, &err);
        assert_null(set);
        assert_broken(st, &err, path, broken[i].want);
        assert_int_equal(fl__mem_get().now_bytes, before);
    }
}

static void long_names_are_refused(void **state)
{
    (void)state;
    char name[300], header[512];
    fl_err err;
    fl_tensors *set;
    const char *path = fl_test_path("long.safetensors");
    memset(name, 'n', sizeof name);
    name[257] = '\0';
    (void)snprintf(header, sizeof header,
                   "{\"%s\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}", name);
    put_file(path, header, 1);
    assert_broken(fl__tensors_open_file(&set, path, &err), &err, path,
                  "\"nnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnn\": the name is longer than 256 bytes");
}

static void broken_lengths(void **state)
{
    (void)state;
    static const struct {
        const char bytes[17];
        size_t n_bytes;
        const char *want;
    } cases[] = {
        {"", 0, "it has no 8-byte length"},
        {"\2\0\0\0\0\0\0", 7, "it has no 8-byte length"},
        {"\2\0\0\0\0\0\0\0{", 9,
         "a header of 2 bytes does not fit the file, which may be trunc"},
        {"\0\0\0\0\0\0\0\0{}", 10, "its header does not begin with {"},
        {"\1\xe1\xf5\5\0\0\0\0{}", 10,
         "a header of 100000001 bytes does not fit the limit of 100"},
        {"\xff\xff\xff\xff\xff\xff\xff\xff{}", 10,
         "a header of 18446744073709551615 bytes does"},
        {"PK\3\4\0\0\0\0aaaaaaaa", 16, "a header of 67324752 bytes does not fit the file"},
    };
    const char *path = fl_test_path("length.safetensors");
    for (size_t i = 0; i < FL_COUNT(cases); i++) {
        fl_err err;
        fl_tensors *set;
        assert_int_equal(fl__file_write(path, cases[i].bytes, cases[i].n_bytes, &err), FL_OK);
        assert_broken(fl__tensors_open_file(&set, path, &err), &err, path, cases[i].want);
    }
}

/* Any prefix of a good file is refused, none crashes. */
static void every_truncation_is_an_error(void **state)
{
    (void)state;
    fl_err err;
    char *bytes;
    size_t n_bytes;
    fl_tensors *set;
    const char *path = fl_test_path("t.safetensors");
    assert_int_equal(write_sample(path, &err), FL_OK);
    assert_int_equal(fl__file_read(&bytes, &n_bytes, path, 10000, &err), FL_OK);
    for (size_t n = 0; n < n_bytes; n++) {
        char *part = fl__alloc(n, 1);
        memcpy(part, bytes, n);
        assert_int_equal(fl__tensors_open_memory(&set, part, n, "part", &err), FL_E_INPUT);
        assert_null(set);
        fl__free(&part);
    }
    assert_int_equal(fl__tensors_open_memory(&set, bytes, n_bytes, "whole", &err), FL_OK);
    assert_string_equal(fl__tensors_at(set, 0)->file, "whole");
    fl__tensors_close(&set);
    fl__free(&bytes);
}

/* ---- shards ------------------------------------------------------------------------- */

static void put_text(const char *name, const char *text)
{
    assert_int_equal(fl__file_write(fl_test_path(name), text, strlen(text), NULL), FL_OK);
}

static void put_shards(const char *weight_map)
{
    char index[1024];
    put_file(
        fl_test_path("b.safetensors"),
        "{\"__metadata__\":{\"k\":\"b\",\"only\":\"b\"}," ENTRY("w2", "U8", "[2]", "[0,2]") "}",
        2);
    put_file(fl_test_path("a.safetensors"),
             "{\"__metadata__\":{\"k\":\"a\"}," ENTRY("w1", "U8", "[2]", "[0,2]") "," ENTRY(
                 "w3", "U8", "[1]", "[2,3]") "}",
             3);
    (void)snprintf(index, sizeof index, "{\"metadata\":{\"total_size\":5},\"weight_map\":%s}",
                   weight_map);
    put_text("model.safetensors.index.json", index);
}

static void shards_make_one_set(void **state)
{
    (void)state;
    fl_err err;
    fl_tensors *set;
    put_shards("{\"w2\":\"b.safetensors\",\"w1\":\"a.safetensors\",\"w3\":\"a.safetensors\"}");
    assert_int_equal(fl__tensors_open(&set, fl_test_dir(), &err), FL_OK);
    assert_int_equal(fl__tensors_count(set), 3);
    assert_string_equal(fl__tensors_at(set, 0)->name, "w1");
    assert_string_equal(fl__tensors_at(set, 1)->name, "w3");
    assert_string_equal(fl__tensors_at(set, 2)->name, "w2");
    assert_string_equal(fl__tensors_find(set, "w2")->file, fl_test_path("b.safetensors"));
    assert_string_equal(fl__tensors_metadata(set, "k"), "a");
    assert_string_equal(fl__tensors_metadata(set, "only"), "b");
    assert_int_equal(fl__tensors_file_count(set), 2);
    fl__tensors_close(&set);
    /* A single file goes before the index. */
    put_file(fl_test_path("model.safetensors"), "{}", 0);
    assert_int_equal(fl__tensors_open(&set, fl_test_dir(), &err), FL_OK);
    assert_int_equal(fl__tensors_count(set), 0);
    fl__tensors_close(&set);
}

static void broken_indexes(void **state)
{
    (void)state;
    static const struct {
        const char *weight_map, *want;
    } cases[] = {
        {"{}", "it has no weight_map with tensors"},
        {"[]", "it has no weight_map with tensors"},
        {"{\"w1\":1}", "w1: its shard is no plain file name"},
        {"{\"w1\":\"../a.safetensors\"}", "w1: ../a.safetensors is no plain file name"},
        {"{\"w1\":\"..\"}", "w1: .. is no plain file name"},
        {"{\"w1\":\"/etc/passwd\"}", "w1: /etc/passwd is no plain file name"},
        {"{\"w1\":\"\"}", "w1:  is no plain file name"},
        {"{\"w1\":\"a\\tb\"}", "w1: a b is no plain file name"},
        {"{\"w9\":\"a.safetensors\"}",
         "w9: it is not in a.safetensors, where the index puts it"},
        {"{\"w1\":\"b.safetensors\",\"w2\":\"a.safetensors\"}",
         "w1: it is not in b.safetensors"},
    };
    const char *path = fl_test_path("model.safetensors.index.json");
    for (size_t i = 0; i < FL_COUNT(cases); i++) {
        fl_err err;
        fl_tensors *set;
        put_shards(cases[i].weight_map);
        assert_broken(fl__tensors_open(&set, fl_test_dir(), &err), &err, path, cases[i].want);
        assert_null(set);
    }
    fl_err err;
    fl_tensors *set;
    put_text("model.safetensors.index.json", "{\"weight_map\": {");
    assert_broken(fl__tensors_open(&set, fl_test_dir(), &err), &err, path, "line 1");
}

static void missing_shards_and_twice_held_tensors(void **state)
{
    (void)state;
    fl_err err;
    fl_tensors *set;
    put_shards("{\"w1\":\"a.safetensors\",\"w2\":\"c.safetensors\"}");
    assert_broken(fl__tensors_open(&set, fl_test_dir(), &err), &err,
                  fl_test_path("c.safetensors"), "No such file");
    put_shards("{\"w1\":\"a.safetensors\",\"w2\":\"b.safetensors\"}");
    put_file(fl_test_path("b.safetensors"),
             HEADER(ENTRY("w2", "U8", "[1]", "[0,1]") "," ENTRY("w1", "U8", "[1]", "[1,2]")),
             2);
    const fl_status st = fl__tensors_open(&set, fl_test_dir(), &err);
    assert_int_equal(st, FL_E_INPUT);
    assert_non_null(strstr(err.text, ": w1: it is also in "));
    assert_non_null(strstr(err.text, "a.safetensors"));
    assert_non_null(strstr(err.text, "b.safetensors"));
    /* a broken shard is named, not the index */
    put_file(fl_test_path("b.safetensors"), HEADER(ENTRY("w2", "U8", "[3]", "[0,3]")), 2);
    assert_broken(fl__tensors_open(&set, fl_test_dir(), &err), &err,
                  fl_test_path("b.safetensors"), "w2: it ends at byte 3");
}

static void a_directory_without_weights(void **state)
{
    (void)state;
    fl_err err;
    fl_tensors *set;
    assert_int_equal(fl__tensors_open(&set, fl_test_dir(), &err), FL_E_INPUT);
    assert_non_null(strstr(err.text, "neither model.safetensors nor model.safetensors.index"));
    assert_int_equal(fl__tensors_open(&set, "/nonexistent", &err), FL_E_INPUT);
    assert_int_equal(fl__tensors_open_file(&set, fl_test_path("none"), &err), FL_E_INPUT);
}

static void an_index_is_written_as_it_is_read(void **state)
{
    (void)state;
    static const fl_index_entry entries[] = {
        {"w1", "a.safetensors"}, {"w3", "a.safetensors"}, {"w2", "b.safetensors"}};
    fl_err err;
    fl_tensors *set;
    char *text;
    size_t n_bytes;
    put_shards("{}");
    assert_int_equal(fl__tensors_write_index(fl_test_dir(), entries, 3, 5, &err), FL_OK);
    assert_int_equal(fl__tensors_open(&set, fl_test_dir(), &err), FL_OK);
    assert_int_equal(fl__tensors_count(set), 3);
    fl__tensors_close(&set);
    assert_int_equal(fl__file_read(&text, &n_bytes,
                                   fl_test_path("model.safetensors.index.json"), 1000, &err),
                     FL_OK);
    assert_string_equal(text, "{\n  \"metadata\": {\n    \"total_size\": 5\n  },\n"
                              "  \"weight_map\": {\n    \"w1\": \"a.safetensors\",\n"
                              "    \"w3\": \"a.safetensors\",\n"
                              "    \"w2\": \"b.safetensors\"\n  }\n}");
    fl__free(&text);
}

/* ---- what a model asks for ---------------------------------------------------------- */

static void require_checks_type_and_shape(void **state)
{
    (void)state;
    fl_err err;
    fl_tensors *set;
    const fl_tensor_view *v;
    const int64_t right[] = {2, 3}, any[] = {-1, 3}, wrong[] = {2, 4};
    const char *path = fl_test_path("r.safetensors");
    assert_int_equal(write_sample(path, &err), FL_OK);
    assert_int_equal(fl__tensors_open_file(&set, path, &err), FL_OK);
    assert_int_equal(fl__tensors_require(&v, set, "weight", FL_DTYPES_FLOAT, 2, right, &err),
                     FL_OK);
    assert_string_equal(v->name, "weight");
    assert_int_equal(fl__tensors_require(&v, set, "weight", FL_DTYPES_FLOAT, 2, any, &err),
                     FL_OK);
    assert_int_equal(fl__tensors_require(&v, set, "weight", FL_DTYPES_FLOAT, -1, NULL, &err),
                     FL_OK);
    assert_int_equal(fl__tensors_require(&v, set, "scalar", FL_DTYPES_FLOAT, 0, NULL, &err),
                     FL_OK);
    assert_broken(fl__tensors_require(&v, set, "weight", FL_DTYPES_FLOAT, 2, wrong, &err), &err,
                  path, "weight: its shape is [2, 3], wanted [2, 4]");
    assert_null(v);
    assert_broken(fl__tensors_require(&v, set, "weight", FL_DTYPES_FLOAT, 1, any, &err), &err,
                  path, "weight: its shape is [2, 3], wanted [*]");
    assert_broken(fl__tensors_require(&v, set, "codes", FL_DTYPES_FLOAT, 2, any, &err), &err,
                  path, "codes: its dtype is U8, wanted F16 or BF16 or F32");
    assert_broken(fl__tensors_require(&v, set, "wait", FL_DTYPES_FLOAT, 2, any, &err), &err,
                  path, "wait: it is not there");
    fl__tensors_close(&set);
}

static void writer_refuses_what_no_reader_takes(void **state)
{
    (void)state;
    fl_err err;
    fl_safetensors_writer *w;
    const char *path = fl_test_path("w.safetensors");
    static const fl_tensor_decl bad[][2] = {
        {{"a", FL_DTYPE_U8, 1, {1}}, {"a", FL_DTYPE_F32, 1, {1}}},
        {{"a", FL_DTYPE_U8, 1, {1}}, {"", FL_DTYPE_F32, 1, {1}}},
        {{"a", FL_DTYPE_U8, 1, {1}}, {"__metadata__", FL_DTYPE_F32, 1, {1}}},
        {{"a", FL_DTYPE_U8, 1, {1}}, {"b", FL_DTYPE_F32, 1, {-1}}},
        {{"a", FL_DTYPE_U8, 1, {1}}, {"b", FL_DTYPE_F32, 1, {INT64_MAX}}},
        {{"a", FL_DTYPE_U8, 1, {INT64_MAX}}, {"b", FL_DTYPE_U8, 1, {1}}},
        {{"a", FL_DTYPE_U8, 1, {1}}, {"b", FL_DTYPE_U8, 9, {1}}},
    };
    for (size_t i = 0; i < FL_COUNT(bad); i++) {
        assert_int_equal(fl__safetensors_writer_open(&w, path, bad[i], 2, NULL, 0, &err),
                         FL_E_FAIL);
        assert_null(w);
    }
    static const fl_tensor_decl good[] = {{"a", FL_DTYPE_U8, 1, {2}},
                                          {"b", FL_DTYPE_U8, 1, {1}}};
    assert_int_equal(fl__safetensors_writer_open(&w, path, good, 2, NULL, 0, &err), FL_OK);
    assert_int_equal(fl__safetensors_writer_write(w, "c", "x", 1, &err), FL_E_FAIL);
    assert_int_equal(fl__safetensors_writer_write(w, "b", "xy", 2, &err), FL_E_FAIL);
    assert_int_equal(fl__safetensors_writer_write(w, "b", "x", 1, &err), FL_OK);
    assert_int_equal(fl__safetensors_writer_write(w, "a", "x", 1, &err), FL_OK);
    assert_int_equal(fl__safetensors_writer_commit(&w, &err), FL_E_FAIL);
    assert_non_null(strstr(err.text, ": a: not all of its bytes were written"));
    assert_null(w);
    assert_false(fl__file_exists(path));
    assert_false(fl__file_exists(fl_test_path("w.safetensors.tmp")));
    const fl_metadata_pair no_utf8 = {"k", "\xff"};
    assert_int_not_equal(fl__safetensors_writer_open(&w, path, good, 2, &no_utf8, 1, &err),
                         FL_OK);
    assert_int_not_equal(
        fl__safetensors_writer_open(&w, fl_test_path("no/w"), good, 2, NULL, 0, &err), FL_OK);
}

/* ---- memory, real models ------------------------------------------------------------ */

static fl_status write_and_open(void)
{
    static const fl_index_entry entries[] = {{"w1", "a.safetensors"}, {"w2", "b.safetensors"}};
    fl_err err;
    fl_tensors *set = NULL;
    fl_status st = write_sample(fl_test_path("s.safetensors"), &err);
    if (!st) st = fl__tensors_write_index(fl_test_dir(), entries, 2, 5, &err);
    if (!st) st = fl__tensors_open(&set, fl_test_dir(), &err);
    fl__tensors_close(&set);
    if (!st) st = fl__tensors_open_memory(&set, "\2\0\0\0\0\0\0\0{}", 10, "memory", &err);
    fl__tensors_close(&set);
    return st;
}

static void out_of_memory_leaks_nothing(void **state)
{
    (void)state;
    put_shards("{}");
    const size_t before = fl__mem_get().now_bytes;
    fl_status st = FL_E_NOMEM;
    int n = 0;
    while (st) {
        assert_true(n < 500);
        fl__mem_fail_after((uint64_t)++n);
        st = write_and_open();
        fl__mem_fail_after(0);
        assert_true(st == FL_OK || st == FL_E_NOMEM);
        assert_int_equal(fl__mem_get().now_bytes, before);
        assert_false(fl__file_exists(fl_test_path("s.safetensors.tmp")));
    }
    assert_true(n > 30);
}

static void shared_models_open(void **state)
{
    (void)state;
    static const char *const models[] = {"models/llama-2m", "models/opt-2m", "models/llama-28m",
                                         "models/opt-27m"};
    for (size_t i = 0; i < FL_COUNT(models); i++) {
        fl_err err;
        fl_tensors *set;
        const char *dir = fl_test_shared(models[i]);
        assert_int_equal(fl__tensors_open(&set, dir, &err), FL_OK);
        assert_true(fl__tensors_count(set) > 30);
        for (size_t k = 0; k < fl__tensors_count(set); k++)
            assert_int_equal(fl__tensors_at(set, k)->dtype, FL_DTYPE_BF16);
        fl__tensors_close(&set);
    }
    fl_tensors *golden;
    assert_int_equal(
        fl__tensors_open_file(
            &golden, fl_test_shared("models/llama-2m/golden/golden.safetensors"), NULL),
        FL_OK);
    assert_non_null(fl__tensors_find(golden, "logits.0"));
    fl__tensors_close(&golden);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(what_is_written_is_read),
    cmocka_unit_test(the_bytes_are_the_formats),
    cmocka_unit_test(order_of_views_is_that_of_the_file),
    cmocka_unit_test(a_file_may_hold_no_tensors),
    cmocka_unit_test(broken_files_name_file_and_tensor),
    cmocka_unit_test(long_names_are_refused),
    cmocka_unit_test(broken_lengths),
    cmocka_unit_test(every_truncation_is_an_error),
    cmocka_unit_test(shards_make_one_set),
    cmocka_unit_test(broken_indexes),
    cmocka_unit_test(missing_shards_and_twice_held_tensors),
    cmocka_unit_test(a_directory_without_weights),
    cmocka_unit_test(an_index_is_written_as_it_is_read),
    cmocka_unit_test(require_checks_type_and_shape),
    cmocka_unit_test(writer_refuses_what_no_reader_takes),
    cmocka_unit_test(out_of_memory_leaks_nothing),
    cmocka_unit_test(shared_models_open),
};
FL_TEST_MAIN(tests)
