/* broken_model.h - a model directory to damage: links to another's files, each replaced by a
 * copy when it is changed. All functions fail the test when they cannot do what they say.
 * SPDX-License-Identifier: MIT */
#ifndef FL_TEST_BROKEN_MODEL_H
#define FL_TEST_BROKEN_MODEL_H

#include <stddef.h>

/* Makes (or makes anew) directory dir with links to all files of from. */
void fl_test_link_model(const char *dir, const char *from);
/* Removes a file of dir; writes one. */
void fl_test_drop(const char *dir, const char *name);
void fl_test_put(const char *dir, const char *name, const void *data, size_t n_bytes);

/* Merges patch, the text of a JSON object, into the JSON file: objects key by key, everything
 * else is replaced. */
void fl_test_patch_json(const char *dir, const char *name, const char *patch);
/* The same with the header of a safetensors file; "tensor": null removes it. The data stays. */
void fl_test_patch_header(const char *dir, const char *name, const char *patch);
/* Overwrites n_bytes of a tensor's data from byte `at` on, whatever shard of dir holds it. */
void fl_test_poke(const char *dir, const char *tensor, size_t at, const void *bytes,
                  size_t n_bytes);

#endif
