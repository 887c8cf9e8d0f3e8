/* gemm_bf16.h - float32 sums of bfloat16 products: the matrix product of training.
 *
 *   C[m,n] = (add ? C[m,n] : 0) + sum_k A[m,k] * B[k,n]
 *
 *   C   float32 [M, ldc]; columns 0..N-1 are written, nothing else touched
 *   A   bfloat16 [M, K] dense, K a multiple of 32
 *   B   bfloat16 [N/64 rounded up][K/2][64][2]: panels of 64 columns, in each the pairs (2k,
 *       2k + 1) of a column side by side, as the tile and dot product instructions read them;
 *       columns beyond N are zeros
 *
 * Products are exact; sums are float32 in an order that depends on K alone, `_ref`'s in rising
 * k, the AMX row's as the tile unit adds (pairs, without subnormals): each within (K + 2) *
 * 2^-24 * sum |a * b| + K * 2^-126 of the exact sum. One thread, no allocation, cannot fail.
 * SPDX-License-Identifier: MIT */
#ifndef FL_KERNELS_GEMM_BF16_H
#define FL_KERNELS_GEMM_BF16_H

#include <stdbool.h>
#include <stdint.h>

#define FL_GEMM_BF16_PANEL 64
#define FL_GEMM_BF16_STEP  32 /* K is a multiple of it */

typedef void fl_gemm_bf16_fn(float *C, int64_t ldc, const uint16_t *A, const uint16_t *B, int M,
                             int N, int K, bool add);

typedef struct fl_gemm_bf16_kernel {
    const char *name;
    uint32_t isa; /* all of these bits needed; 0: the reference */
    fl_gemm_bf16_fn *run;
} fl_gemm_bf16_kernel;

extern const fl_gemm_bf16_kernel fl__gemm_bf16_kernels[]; /* best first, reference last */
extern const int fl__n_gemm_bf16_kernels;
const fl_gemm_bf16_kernel *fl__gemm_bf16_select(uint32_t isa);

#endif
