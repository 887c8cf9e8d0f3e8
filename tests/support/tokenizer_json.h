/* tokenizer_json.h - tokenizers from JSON written in a test, with ' for " (and ` for ').
 * SPDX-License-Identifier: MIT */
#ifndef FL_TEST_TOKENIZER_JSON_H
#define FL_TEST_TOKENIZER_JSON_H

#include "text/tokenizer.h"

/* ' becomes ", ` becomes '. Owned by the caller (fl__free). */
char *fl_test_quoted(const char *json);
fl_status fl_test_tokenizer_open(fl_tokenizer **t, const char *json, fl_err *err);
/* Fails the test where the tokenizer is refused. */
fl_tokenizer *fl_test_tokenizer(const char *json);
/* Ids of text as "3 1 4". Valid until the next call. */
const char *fl_test_ids(const fl_tokenizer *t, const char *text, size_t n_bytes, bool special);

#endif
