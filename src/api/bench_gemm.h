/* bench_gemm.h - one shape of the kernel bench. SPDX-License-Identifier: MIT */
#ifndef FL_API_BENCH_GEMM_H
#define FL_API_BENCH_GEMM_H

#include "base/exec.h"
#include "base/status.h"

#include <jansson.h>

/* What the rows of a bench need besides their shape. */
typedef struct fl_bench_context {
    fl_exec ex;
    int n_repeats;
    const char *filter; /* part of the kernel name, or NULL */
    const fl_log *log;
} fl_bench_context;

/* Appends a row per integer GEMM kernel that this machine has for M to rows, oneDNN's s8 and
 * bf16 products and the machine's yardsticks timed in turn with them. */
fl_status fl__bench_gemm(json_t *rows, const fl_bench_context *bench, int M, int N, int K,
                         fl_err *err);
/* The same for the quantise kernels on float x [M, K]: static, per token, flattened. */
fl_status fl__bench_quantize(json_t *rows, const fl_bench_context *bench, int M, int K,
                             fl_err *err);
/* The same for transforms fused with the quantiser, beside the products behind them. */
fl_status fl__bench_transform(json_t *rows, const fl_bench_context *bench, fl_err *err);
/* The same for attention over quantised keys and values: one token that sees 8,192. */
fl_status fl__bench_attention(json_t *rows, const fl_bench_context *bench, fl_err *err);

#endif
