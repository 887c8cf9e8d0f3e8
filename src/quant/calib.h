/* calib.h - calibration windows: equal runs of tokens, cut at seeded random places or sampled
 * by the model.
 * SPDX-License-Identifier: MIT */
#ifndef FL_QUANT_CALIB_H
#define FL_QUANT_CALIB_H

#include "base/log.h"
#include "model/model.h"

typedef struct fl_calib {
    int n_windows, seq_len;
    int32_t *ids; /* [n_windows, seq_len] owned */
} fl_calib;

/* Windows at random offsets of ids[n_ids] (a text, tokenised once). FL_E_INPUT when the text is
 * shorter than a window or an id is not below n_vocab. */
fl_status fl__calib_from_ids(fl_calib *c, const int32_t *ids, size_t n_ids, int n_windows,
                             int seq_len, uint64_t seed, int n_vocab, const char *where,
                             fl_err *err);
/* Windows that the model itself writes at temperature 1 after one random token each:
 * calibration without any text. The model must be open with its blocks. should_stop is asked
 * before each token; FL_E_INTERRUPTED when it says so. */
typedef bool fl_calib_stop_fn(void *user);
fl_status fl__calib_from_model(fl_calib *c, const fl_model *model, const fl_exec *ex,
                               int n_windows, int seq_len, uint64_t seed,
                               fl_calib_stop_fn *should_stop, void *user, fl_err *err);
/* Bytes that it takes beside the model and the windows. */
size_t fl__calib_sample_bytes(const fl_model *model, const fl_exec *ex, int n_windows,
                              int seq_len);
void fl__calib_fini(fl_calib *c);
/* FNV-1a over shape and ids, for fingerprints. */
uint64_t fl__calib_hash(const fl_calib *c);

#endif
