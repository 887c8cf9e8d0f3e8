/* replace.h - "Replace", which is a normaliser and a decoder: every match of a pattern becomes
 * a text. SPDX-License-Identifier: MIT */
#ifndef FL_TEXT_REPLACE_H
#define FL_TEXT_REPLACE_H

#include "text/pipeline.h"

fl_status fl__replace_parse(void **settings, const json_t *json, const fl_parse *at,
                            fl_err *err);
void fl__replace_free(void **settings);
fl_status fl__replace_run(fl_text_buf *out, const void *settings, const char *text,
                          size_t n_bytes, fl_matcher *matcher, fl_err *err);

#endif
