/* tune_head.h - how far the quantised model's predictions are from the float model's, and which
 * way its hidden states ought to move.
 *
 * With p = softmax(teacher head^T), q = softmax(student head^T), per token:
 *   KL(p || q) = sum p (log p - log q),   d KL / d logits = q - p
 * SPDX-License-Identifier: MIT */
#ifndef FL_QUANT_TUNE_HEAD_H
#define FL_QUANT_TUNE_HEAD_H

#include "model/model.h"

typedef struct fl_tune_head fl_tune_head;
/* Holds the head in float32 and logits of some hundred rows. */
fl_status fl__tune_head_new(fl_tune_head **out, const fl_model *model, const fl_exec *ex,
                            int max_rows, bool bf16, fl_err *err);
void fl__tune_head_free(fl_tune_head **head);
size_t fl__tune_head_bytes(const fl_model *model, int max_rows);

/* *kl: mean over n_rows tokens, nats. d [n_rows, embed_size]: its gradient by student. */
fl_status fl__tune_head_loss(double *kl, fl_tune_head *head, float *d, const float *student,
                             const float *teacher, int n_rows, fl_err *err);

#endif
