/* bench_model.h - one run of `bench model`: what is measured, and how it is reported.
 * SPDX-License-Identifier: MIT */
#ifndef FL_API_BENCH_MODEL_H
#define FL_API_BENCH_MODEL_H

#include "api/bench_bf16.h"
#include "base/json.h"

enum { FL_BENCH_PREFILL, FL_BENCH_DECODE, FL_BENCH_N_PHASES };

/* Where the time of a phase goes. */
enum {
    FL_BENCH_PREPARE, /* norms, transforms, quantising */
    FL_BENCH_QKV,     /* products of a site, in the order of FL_SITE_*; where activations are
                         float, with what is done to them */
    FL_BENCH_O,
    FL_BENCH_UP,
    FL_BENCH_DOWN,
    FL_BENCH_ATTENTION, /* with appending to the cache */
    FL_BENCH_OTHER,     /* embedding, rotary positions, silu, residual sums, last norm */
    FL_BENCH_HEAD,
    FL_BENCH_TOTAL,
    FL_BENCH_N_TIMES
};

/* A model that is measured. */
typedef struct fl_bench_lane {
    char name[64];
    fl_model *model; /* owned, like what follows */
    fl_workspace *ws;
    fl_kv_cache *kv;
    float *last;   /* [sequences, embed_size] hidden states behind the last tokens */
    float *logits; /* [sequences, vocab] */
    double *ms[FL_BENCH_N_PHASES]; /* [N_TIMES, rounds] of a prefill; of a step of decoding */
    double op_s[FL_MAX_OPS], quantize_s[FL_N_SITES]; /* of the current pass */
} fl_bench_lane;

typedef struct fl_bench_run {
    const fl_bench_model_options *o;
    fl_exec ex;
    fl_model_config cfg;  /* with the layers that run */
    int n_shape_layers;
    int chunk;            /* tokens of a sequence per pass of a prefill */
    fl_bench_lane lane[2]; /* the model and its 16-bit opponent */
    int n_lanes;
    fl_bench_bf16 *bf16;
    int32_t *ids;         /* [sequences * chunk] */
    double *peak_ms, *read_ms; /* [rounds] */
    size_t n_read_bytes;
    uint64_t sink;
} fl_bench_run;

/* llama3-8b, llama3-70b, llama2-7b, opt-6.7b, opt-30b or a file. FL_E_INPUT,
 * FL_E_UNSUPPORTED. */
fl_status fl__bench_shape(fl_model_config *cfg, const char *shape, fl_err *err);
/* {"machine", "shape", "rows"} of a finished run; sorts its times. NULL: memory. */
json_t *fl__bench_model_report(fl_bench_run *run);

#endif
