/* device.h - a model on a device: its weights there, and runs of the model's program on them.
 *
 * The device's executor walks the same list of ops as the CPU's (forward.c) through a backend
 * (kernels/backend.h). The linears of a site whose input is quantised once are one weight
 * there,
 * one below the other, so that q, k, v and gate, up are one product each; what stands before a
 * site is done by its encoder, and the sum behind it by its linear.
 *
 * What a device does not run is FL_E_UNSUPPORTED when the model is put there, never later:
 * weight-only sites, post-norm blocks with projections (OPT-350M), and what the backend has no
 * kernel for.
 * SPDX-License-Identifier: MIT */
#ifndef FL_MODEL_DEVICE_H
#define FL_MODEL_DEVICE_H

#include "kernels/backend.h"
#include "model/model.h"

typedef struct fl_device_model fl_device_model;
typedef struct fl_device_run fl_device_run;

/* Puts the model on the device, block by block from the checkpoint's map. Where a linear has
 * neither weight nor codes, random ones are made there. model and be outlive *out; the
 * model's blocks are not looked at afterwards. */
fl_status fl__device_model_new(fl_device_model **out, const fl_model *model, fl_backend *be,
                               fl_err *err);
void fl__device_model_free(fl_device_model **dm);
size_t fl__device_model_bytes(const fl_device_model *dm);

/* Room for n_sequences of n_positions tokens, and for steps of up to max_rows of them. */
fl_status fl__device_run_new(fl_device_run **out, fl_device_model *dm, int n_sequences,
                             int n_positions, int max_rows, fl_err *err);
void fl__device_run_free(fl_device_run **run);
size_t fl__device_run_kv_bytes(const fl_device_run *run);
size_t fl__device_run_workspace_bytes(const fl_device_run *run);

/* As fl__kv_resize. */
void fl__device_run_resize(fl_device_run *run, int seq, int n);
/* As fl__model_forward; hidden states stay on the device. */
fl_status fl__device_run_forward(fl_device_run *run, const int32_t *ids, const fl_span *spans,
                                 int n_spans, fl_err *err);
/* Logits of rows [row, row + n) of the last forward, to the host. */
fl_status fl__device_run_logits(fl_device_run *run, int row, int n, float *logits, fl_err *err);
/* Logits of each span's last row, of at most n_sequences; they stay on the device. */
fl_status fl__device_run_last(fl_device_run *run, fl_err *err);
/* A step of decoding, one token for each of the sequences 0..n_seqs-1 at pos, with logits that
 * stay on the device; from the second time on with the same n_seqs it is one graph. logits
 * [n_seqs, vocab] or NULL: there they are copied to. */
fl_status fl__device_run_decode(fl_device_run *run, const int32_t *ids, const int *pos,
                                int n_seqs, float *logits, fl_err *err);

/* Where the time of steps goes, by ops queued one by one. */
enum {
    FL_DEVICE_LAP_ENCODE = FL_MAX_OPS,
    FL_DEVICE_LAP_HEAD,
    FL_DEVICE_LAP_OTHER,
    FL_DEVICE_N_LAPS
};
/* While ms (FL_DEVICE_N_LAPS numbers) is set, steps wait for the device and add to it: the time
 * of each op of a block, of all encoders, of the head with its encoder, of the rest. There are
 * no graphs then. NULL: off. */
void fl__device_run_time(fl_device_run *run, double *ms);
fl_status fl__device_run_wait(fl_device_run *run, fl_err *err);

#endif
