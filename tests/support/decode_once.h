/* decode_once.h - what is evaluated is what is generated. SPDX-License-Identifier: MIT */
#ifndef FL_TEST_DECODE_ONCE_H
#define FL_TEST_DECODE_ONCE_H

/* For a model of integer sites: logits behind every prefix of 100 tokens (or the context) are
 * the same bits, fed as a window (as eval does), one by one (as generate does) and behind a
 * truncation; decoding takes no memory; the cache has this format. Fails the test otherwise. */
void fl_test_decodes_as_it_evaluates(const char *dir, const char *kv_format);

#endif
