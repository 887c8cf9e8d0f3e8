/* gemm_bf16_ref.c - the definition. SPDX-License-Identifier: MIT */
#include "base/float16.h"
#include "kernels/gemm_bf16_rows.h"

#include <stddef.h>

void fl__gemm_bf16_ref(float *C, int64_t ldc, const uint16_t *A, const uint16_t *B, int M,
                       int N, int K, bool add)
{
    for (int m = 0; m < M; m++)
        for (int n = 0; n < N; n++) {
            const uint16_t *a = A + (size_t)m * (size_t)K;
            const uint16_t *b = B + (size_t)(n / FL_GEMM_BF16_PANEL) * (size_t)K *
                                        FL_GEMM_BF16_PANEL +
                                (size_t)(n % FL_GEMM_BF16_PANEL) * 2;
            float sum = 0;
            for (int k = 0; k < K; k++)
                sum += fl__bf16_to_f32(a[k]) *
                       fl__bf16_to_f32(b[(size_t)(k / 2) * 2 * FL_GEMM_BF16_PANEL +
                                         (size_t)(k % 2)]);
            float *c = C + m * ldc + n;
            *c = add ? *c + sum : sum;
        }
}
