/* gemm.h - integer GEMM with fused scales: the op behind every quantised linear layer.
 *
 *   acc[m,n] = sum_k x[m,k] * w[n,k]                                           (int32, exact)
 *   sum[m,n] = acc[m,n] - x_zero[m] * w.col_sum[n]                             (int32, exact)
 *   y[m,n]   = ((float)sum[m,n] * (x_scale[m] * w_scale[n]) + bias[n]) + residual[m,n]
 *
 * with each float operation rounded separately (no fused multiply-add), so that every row of
 * the table equals `_ref` bit for bit in the float32 output too; bf16 output rounds that
 * float32 to nearest even. Nothing overflows for K <= 65536 with codes as below: |acc| and
 * |x_zero * col_sum| together stay under 2^31.
 *
 *   x       int8  [M, ldx] row-major, any value in -128..127; columns K..K_pad-1 are zero;
 *                 ldx >= K_pad, ldx % 64 == 0, 64-byte aligned
 *   x_sum   int32 [M] sum over k of x[m,k] (the quantise kernels deliver it)
 *   x_scale f32, x_zero int32: [M] when *_stride is 1, [1] when 0; x_zero NULL means 0.
 *                 The real activation is x_scale * (x - x_zero).
 *   w       packed, layout.h; w_scale f32 [N] (stride 1) or [1] (stride 0)
 *   bias    f32 [N] or NULL (NULL adds nothing)
 *   residual f32 [M, ldr] or NULL (the same). May be y itself where y is f32 and ldr = ldy: an
 *                 element is read before it is written, by whoever writes it
 *   y       f32 or bf16 [M, ldy], columns 0..N-1 written, nothing else touched
 *
 * Unsigned activation codes (after ReLU) are this contract too: code u in 0..255 is stored as
 * u - 128 with x_zero = -128; 4-bit unsigned codes up to 127 need nothing.
 * SPDX-License-Identifier: MIT */
#ifndef FL_KERNELS_GEMM_H
#define FL_KERNELS_GEMM_H

#include "base/exec.h"
#include "kernels/layout.h"

typedef struct fl_gemm {
    const int8_t *x;
    int64_t ldx;
    const int32_t *x_sum;
    const float *x_scale;
    int x_scale_stride;
    const int32_t *x_zero;
    int x_zero_stride;
    const fl_weight *w;
    const float *w_scale;
    int w_scale_stride;
    const float *bias;
    const float *residual;
    int64_t ldr;
    void *y;
    int64_t ldy;
    bool y_bf16;
    int M;
} fl_gemm;

/* Computes y[m0..m1, n0..n1); n0 and (unless n1 == N) n1 are multiples of 16. scratch: the
 * row's own, at least scratch_bytes, 64-byte aligned, one per thread. Cannot fail. */
typedef void fl_gemm_fn(const fl_gemm *g, int m0, int m1, int n0, int n1, void *scratch);

typedef struct fl_gemm_kernel {
    const char *name;     /* gemm_a8w4_<tile>_<isa>: a8: activation codes are bytes */
    uint32_t isa;         /* all of these bits needed */
    int bits;             /* weight bits it reads: 4 or 8 */
    int min_M, max_M;     /* rows of x it is meant for; select takes the first that fits */
    int tile_M, tile_N;   /* work item that the caller should cut */
    size_t scratch_bytes; /* per thread, for one tile_M x tile_N item and any K */
    fl_gemm_fn *run;
} fl_gemm_kernel;

extern const fl_gemm_kernel fl__gemm_kernels[]; /* best first, reference rows last */
extern const int fl__n_gemm_kernels;

/* First row that the instruction sets allow and that is meant for M rows; never NULL. */
const fl_gemm_kernel *fl__gemm_select(uint32_t isa, int bits, int M);

/* The best row stride of x for K input channels: rows a multiple of 1024 bytes apart would
 * share few sets of the first-level cache (AMX loads 16 rows at once); they get a line more. */
int fl__gemm_ldx(int K);

/* Scratch that fl__gemm_run may need for any weight and any M under ex. */
size_t fl__gemm_scratch_bytes(const fl_exec *ex);

/* n products, n <= FL_GEMM_MAX_RUN, none of which reads another's y: selects rows by M, cuts
 * all y into fixed tiles and runs them in one loop on ex's threads. scratch: at least
 * fl__gemm_scratch_bytes(ex), 64-byte aligned. Allocates nothing, cannot fail. */
enum { FL_GEMM_MAX_RUN = 4 };
void fl__gemm_run(const fl_exec *ex, const fl_gemm *g, int n, void *scratch);

#endif
