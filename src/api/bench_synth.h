/* bench_synth.h - models of random weights, made in memory: what `bench model` runs.
 *
 * Codes go straight into the kernels' layout, so that no checkpoint and no packing is needed;
 * sizes, bits, transforms and what else decides the time are those of a quantised model, the
 * text is noise.
 * SPDX-License-Identifier: MIT */
#ifndef FL_API_BENCH_SYNTH_H
#define FL_API_BENCH_SYNTH_H

#include "model/model.h"

typedef struct fl_synth {
    const char *method; /* "none": a 16-bit model; "rtn", "flatquant", "flattenquant" */
    int w_bits, a_bits, kv_bits, head_bits;
    const fl_model *share; /* its embedding, and where both are float its head, are borrowed; it
                              must outlive the model. NULL: none */
    bool no_weights; /* linears have shapes and scales but neither weights nor codes: a device
                           makes its own */
} fl_synth;

/* Extra columns of flattening over channels, at 8 bits: what calibration gives on the models
 * measured. At 4 bits copies are folded and cost no columns. */
#define FL_SYNTH_FLATTEN_RATIO 0.05

/* A model of cfg (which is copied; without quantization_config). FL_E_NOMEM, FL_E_UNSUPPORTED:
 * too wide for the integer kernels. */
fl_status fl__synth_model(fl_model **out, const fl_model_config *cfg, const fl_synth *o,
                          const fl_exec *ex, fl_err *err);
/* Bytes of the blocks' weights. */
size_t fl__synth_block_bytes(const fl_model_config *cfg, int w_bits);

#endif
