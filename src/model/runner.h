/* runner.h - a model ready to run, on the CPU or on a device: what sessions and evaluation use.
 *
 * A runner owns a cache for its sequences and the memory of a batch; it does not own the model.
 * On the CPU it is fl__model_forward and fl__model_logits, bit for bit.
 * SPDX-License-Identifier: MIT */
#ifndef FL_MODEL_RUNNER_H
#define FL_MODEL_RUNNER_H

#include "model/device.h"

typedef struct fl_runner fl_runner;

/* dm NULL: the CPU. n_sequences of n_positions tokens, batches of up to max_rows tokens. */
fl_status fl__runner_new(fl_runner **out, const fl_model *model, const fl_exec *ex,
                         fl_device_model *dm, int n_sequences, int n_positions, int max_rows,
                         fl_err *err);
void fl__runner_free(fl_runner **runner);
/* Forgets positions from n on, or makes room for them. */
void fl__runner_resize(fl_runner *runner, int seq, int n);
/* Errors are a device's; on the CPU it cannot fail. */
fl_status fl__runner_forward(fl_runner *runner, const int32_t *ids, const fl_span *spans,
                             int n_spans, fl_err *err);
/* logits [n, vocab] of rows [row, row + n) of the last forward. */
fl_status fl__runner_logits(fl_runner *runner, int row, int n, float *logits, fl_err *err);
/* One token of sequence 0 at position pos and the logits behind it. */
fl_status fl__runner_decode(fl_runner *runner, int32_t id, int pos, float *logits, fl_err *err);

#endif
