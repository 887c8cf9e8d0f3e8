/* quantize_once.h - fl_quantize_run as tests want it: a few short windows of the demo's prose.
 * SPDX-License-Identifier: MIT */
#ifndef FL_TEST_QUANTIZE_ONCE_H
#define FL_TEST_QUANTIZE_ONCE_H

#include <flatiron/flatiron.h>

#define FL_TEST_TINY_LLAMA FL_SOURCE_DIR "/models/tiny-llama"

/* Options for model_dir (NULL: the embedded model) to `out` in the test's directory: method,
 * 4 windows of 64 tokens of data/prose.txt, one thread. */
fl_quantize_options fl_test_quantize_options(const char *model_dir, const char *out,
                                             const char *method);
/* Runs it and fails the test when it fails. report NULL: not wanted; else free with
 * fl_string_free. Returns o->out_dir. */
const char *fl_test_quantize(const fl_quantize_options *o, char **report);
/* Fails the test unless both directories hold the same files with the same bytes. */
void fl_test_same_dirs(const char *a, const char *b);

#endif
