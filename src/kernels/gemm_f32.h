/* gemm_f32.h - products of float activations with float weights: the float path's op.
 *
 *   y[m,n] = sum_k x[m,k] * w[n,k] = ((S0 + S4) + (S1 + S5)) + ((S2 + S6) + (S3 + S7))
 *
 * S_r is one chain over k = r, r + 8, r + 16, ... from 0: fused multiply-adds in the rows that
 * need an instruction set, multiply, then add in _ref. So an output's bits depend on its row of
 * x and its row of w alone, not on M, N or where K is cut, and prefill and decoding agree.
 * Rows of the table but _ref give the same bits. Eight chains, because one register can then
 * run along K (few rows: no transpose) and eight outputs can as well (many rows).
 *
 * Many rows: `pack` widens and transposes up to `panel` outputs, `run` multiplies with them.
 * Few rows, M <= few_rows: `few` takes the weights as they are; decoding reads them once.
 * SPDX-License-Identifier: MIT */
#ifndef FL_KERNELS_GEMM_F32_H
#define FL_KERNELS_GEMM_F32_H

#include <stdbool.h>
#include <stdint.h>

typedef enum fl_float_type {
    FL_FLOAT_F32,
    FL_FLOAT_BF16,
    FL_FLOAT_F16,
    FL_N_FLOAT_TYPES
} fl_float_type;

enum { FL_GEMM_F32_CHAINS = 8, FL_GEMM_F32_PIECE = 512, FL_GEMM_F32_MAX_PANEL = 32 };

/* dst: K cut into pieces of 512 channels, each [8, ceil(channels / 8), panel], so by chain; the
 * last one may be shorter. Outputs are rows w + i * ldw, i < n, of one of the three types,
 * 1 <= n <= panel; columns from n on are copies of the last one. */
typedef void fl_gemm_f32_pack_fn(float *dst, int panel, const void *w, int64_t ldw, int n,
                                 int K);

/* All rows of x with one panel, a part of K at a time: K is a multiple of 512 in all parts but
 * the last. */
typedef struct fl_gemm_f32_part {
    const float *x;     /* [M, K], row stride ldx, from the part's first channel on */
    const float *panel; /* this part, packed */
    float *sums;        /* [M, 8, panel]: the chains so far, 64-byte aligned; scratch */
    float *y;           /* [M, n], row stride ldy */
    int64_t ldx, ldy;
    int M, n, K;
    bool first, last; /* sums are undefined before the first part, y is written by the last */
} fl_gemm_f32_part;
typedef void fl_gemm_f32_run_fn(const fl_gemm_f32_part *p);

/* M in 1..few_rows, any n, whole K. */
typedef void fl_gemm_f32_few_fn(float *y, int64_t ldy, const float *x, int64_t ldx,
                                const void *w, int64_t ldw, int M, int n, int K);

typedef struct fl_gemm_f32_kernel {
    const char *name;
    uint32_t isa;
    int panel;    /* outputs of a panel, at most FL_GEMM_F32_MAX_PANEL */
    int few_rows; /* 0: no few */
    fl_gemm_f32_run_fn *run;
    fl_gemm_f32_pack_fn *pack[FL_N_FLOAT_TYPES];
    fl_gemm_f32_few_fn *few[FL_N_FLOAT_TYPES];
} fl_gemm_f32_kernel;

extern const fl_gemm_f32_kernel fl__gemm_f32_kernels[];
extern const int fl__n_gemm_f32_kernels;
const fl_gemm_f32_kernel *fl__gemm_f32_select(uint32_t isa);

#endif
