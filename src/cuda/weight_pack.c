/* weight_pack.c - integer weights into the GPU's layout n16k64 (gemm_cuda.h), on the host.
 *
 * Runs once per weight at load. Plain C on purpose: the packed bytes can be made, cached and
 * tested on machines without a GPU.
 * SPDX-License-Identifier: MIT */
#include "cuda/gemm_cuda.h"

#include <string.h>

static int round_up(int n, int multiple)
{
    return (n + multiple - 1) / multiple * multiple;
}

size_t fl__cuda_weight_bytes(int N, int K, int bits)
{
    return (size_t)round_up(N, 16) * (size_t)round_up(K, 64) * (size_t)bits / 8;
}

/* Where the codes are: channel n is row n / n_from of from[n % n_from]. */
typedef struct source {
    const int8_t *from[2];
    int n_from, N, K;
} source;

static int code_at(const source *s, int n, int k)
{
    const size_t row = (size_t)(n / s->n_from);
    return n < s->N && k < s->K ? s->from[n % s->n_from][row * (size_t)s->K + (size_t)k] : 0;
}

/* One block of 16 channels x 64 k at 4 bits. */
static void pack_w4(uint8_t *dst, const source *s, int n0, int k0)
{
    for (int i = 0; i < 512; i++) {
        const int lane = i / 16, j = i % 16 / 4, b = i % 4;
        const int n = n0 + lane / 4 * 2 + j % 2;
        const int k = k0 + 4 * (lane % 4) + 16 * (j / 2) + b;
        const int first = code_at(s, n, k), second = code_at(s, n, k + 32);
        dst[i] = (uint8_t)((first & 15) << 4 | (second & 15));
    }
}

/* One block of the 8 even or odd channels of a panel x 64 k at 8 bits. */
static void pack_w8(uint8_t *dst, const source *s, int n0, int k0)
{
    for (int i = 0; i < 512; i++) {
        const int row = i / 64, k = i % 64;
        dst[row * 64 + (k / 16 ^ row / 2) * 16 + k % 16] =
            (uint8_t)code_at(s, n0 + 2 * row, k0 + k);
    }
}

static void pack(uint8_t *dst, int32_t *col_sum, const source *s, int bits)
{
    const int N_pad = round_up(s->N, 16), K_pad = round_up(s->K, 64);
    for (int n0 = 0; n0 < N_pad; n0 += bits == 4 ? 16 : n0 % 2 ? 15 : 1)
        for (int k0 = 0; k0 < K_pad; k0 += 64, dst += 512)
            if (bits == 4) pack_w4(dst, s, n0, k0);
            else pack_w8(dst, s, n0, k0);
    memset(col_sum, 0, (size_t)N_pad * sizeof *col_sum);
    for (int n = 0; n < s->N; n++)
        for (int k = 0; k < s->K; k++) col_sum[n] += code_at(s, n, k);
}

void fl__cuda_weight_pack(uint8_t *dst, int32_t *col_sum, const int8_t *codes, int N, int K,
                          int bits)
{
    const source s = {{codes, NULL}, 1, N, K};
    pack(dst, col_sum, &s, bits);
}

void fl__cuda_weight_pack_gated(uint8_t *dst, int32_t *col_sum, const int8_t *gate,
                                const int8_t *up, int N, int K, int bits)
{
    const source s = {{gate, up}, 2, 2 * N, K};
    pack(dst, col_sum, &s, bits);
}
