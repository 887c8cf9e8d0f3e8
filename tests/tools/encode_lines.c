/* encode_lines.c - the library's tokenizer as a filter, for tools/tokenizer_parity.py.
 *
 *   encode_lines encode|encode-special MODEL_DIR   records of text -> records of ids
 *   encode_lines decode|decode-skip    MODEL_DIR   records of ids  -> records of text
 *
 * A record is a 32-bit little-endian count and then as many bytes, or 32-bit ids. The decode
 * modes also decode id by id and fail where that gives another text than decoding all at once.
 * Records that the tokenizer refuses come back with count FFFFFFFF and a line on stderr.
 * SPDX-License-Identifier: MIT */
#include "base/mem.h"
#include "text/text_buf.h"
#include "text/tokenizer.h"

#include <stdio.h>
#include <string.h>

enum { MAX_RECORD_BYTES = 1 << 28 };

/* One record of count units; *end says that there is none. 0, or -1 on a broken stream. */
static int read_record(fl_text_buf *record, size_t unit_bytes, bool *end)
{
    unsigned char head[4];
    const size_t got = fread(head, 1, sizeof head, stdin);
    *end = got == 0;
    if (got != sizeof head) return *end ? 0 : -1;
    const size_t count = head[0] | head[1] << 8 | head[2] << 16 | (size_t)head[3] << 24;
    if (count > MAX_RECORD_BYTES) return -1;
    fl__text_buf_clear(record);
    if (fl__text_buf_reserve(record, count * unit_bytes)) return -1;
    record->n_bytes = fread(record->data, 1, count * unit_bytes, stdin);
    return record->n_bytes == count * unit_bytes ? 0 : -1;
}

static void write_record(const void *data, size_t count, size_t unit_bytes)
{
    const unsigned char head[4] = {count & 0xFF, count >> 8 & 0xFF, count >> 16 & 0xFF,
                                   count >> 24 & 0xFF};
    (void)fwrite(head, 1, sizeof head, stdout);
    if (count != 0xFFFFFFFF) (void)fwrite(data, unit_bytes, count, stdout);
}

static fl_status encode(const fl_tokenizer *t, const fl_text_buf *record, bool special,
                        fl_err *err)
{
    int32_t *ids;
    size_t n_ids;
    const fl_status st =
        fl__tokenizer_encode(&ids, &n_ids, t, record->data, record->n_bytes, special, err);
    if (!st) write_record(ids, n_ids, sizeof *ids);
    fl__free(&ids);
    return st;
}

static fl_status decode_stream(fl_text_buf *out, const fl_tokenizer *t, const int32_t *ids,
                               size_t n_ids, bool skip, fl_err *err)
{
    fl_detok *d;
    const char *text = NULL;
    size_t n_bytes = 0;
    fl__text_buf_clear(out);
    fl_status st = fl__detok_new(&d, t, skip, err);
    for (size_t i = 0; i <= n_ids && !st; i++) {
        st = i < n_ids ? fl__detok_push(&text, &n_bytes, d, ids[i], err)
                       : fl__detok_finish(&text, &n_bytes, d, err);
        if (!st && fl__text_buf_append(out, text, n_bytes)) st = FL_E_NOMEM;
    }
    fl__detok_free(&d);
    return st;
}

static fl_status decode(const fl_tokenizer *t, const fl_text_buf *record, bool skip,
                        fl_err *err)
{
    const int32_t *ids = (const int32_t *)(const void *)record->data;
    const size_t n_ids = record->n_bytes / sizeof *ids;
    fl_text_buf streamed = {0};
    char *text;
    size_t n_bytes;
    fl_status st = fl__tokenizer_decode(&text, &n_bytes, t, ids, n_ids, skip, err);
    if (!st) st = decode_stream(&streamed, t, ids, n_ids, skip, err);
    if (!st && (streamed.n_bytes != n_bytes || memcmp(streamed.data, text, n_bytes) != 0))
        st = fl__fail(err, FL_E_FAIL, "decoding id by id gives another text");
    if (!st) write_record(text, n_bytes, 1);
    fl__text_buf_fini(&streamed);
    fl__free(&text);
    return st;
}

int main(int argc, char **argv)
{
    fl_tokenizer *t = NULL;
    fl_text_buf record = {0};
    fl_err err = {""};
    bool end = false;
    int failed = 0;
    if (argc != 3) {
        (void)fprintf(stderr, "usage: encode_lines encode|encode-special|decode|decode-skip "
                              "MODEL_DIR <records\n");
        return 2;
    }
    const bool encodes = strncmp(argv[1], "encode", 6) == 0;
    const bool option = strchr(argv[1], '-') != NULL;
    if (fl__tokenizer_open(&t, argv[2], &err)) {
        (void)fprintf(stderr, "encode_lines: %s\n", err.text);
        return 3;
    }
    while (!failed) {
        failed = read_record(&record, encodes ? 1 : sizeof(int32_t), &end);
        if (failed || end) break;
        const fl_status st =
            encodes ? encode(t, &record, option, &err) : decode(t, &record, option, &err);
        if (st) {
            write_record(NULL, 0xFFFFFFFF, 1);
            (void)fprintf(stderr, "encode_lines: %s\n", err.text);
        }
    }
    fl__text_buf_fini(&record);
    fl__tokenizer_close(&t);
    return failed ? 1 : 0;
}
