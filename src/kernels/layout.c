/* layout.c - packing integer weights into layout n16k4, and the nibbles of model files.
 * SPDX-License-Identifier: MIT */
#include "kernels/layout.h"

#include "base/mem.h"

#include <limits.h>
#include <string.h>

#define K_MAX 65536 /* sums of products stay below 2^31, see gemm.h */

/* Byte that holds code [n, k]; at 4 bits the nibble is k % 8 / 4. */
static size_t code_index(const fl_weight *w, int n, int k)
{
    const int k_row = w->bits == 4 ? 8 : 4; /* input channels in 64 bytes */
    const size_t row = (size_t)(n / 16) * (size_t)(w->K_pad / k_row) + (size_t)(k / k_row);
    return row * 64 + (size_t)(n % 16 * 4 + k % 4);
}

/* Row n of codes. Returns the first input channel whose code is out of range, or K. */
static int pack_row(fl_weight *w, const int8_t *codes, int n)
{
    const int lo = w->bits == 4 ? -8 : -127, hi = w->bits == 4 ? 7 : 127;
    int32_t sum = 0;
    for (int k = 0; k < w->K; k++) {
        const int code = codes[k];
        if (code < lo || code > hi) return k;
        sum += code;
        uint8_t *byte = &w->data[code_index(w, n, k)];
        if (w->bits == 8)
            *byte = (uint8_t)code;
        else if (k % 8 < 4)
            *byte = (uint8_t)((*byte & 0xf0) | (code + 8));
        else
            *byte = (uint8_t)((*byte & 0x0f) | (code + 8) << 4);
    }
    w->col_sum[n] = sum;
    return w->K;
}

fl_status fl__weight_pack(fl_weight *w, const int8_t *codes, int N, int K, int bits,
                          fl_err *err)
{
    memset(w, 0, sizeof *w);
    if (N < 1 || N > INT_MAX - 15 || K < 1 || K > K_MAX)
        return fl__fail(
            err, FL_E_UNSUPPORTED,
            "weight packing: [%d, %d]: integer kernels take 1 to %d input channels; "
            "keep this layer in float",
            N, K, K_MAX);
    w->bits = bits;
    w->N = N;
    w->K = K;
    w->N_pad = (N + 15) / 16 * 16;
    w->K_pad = (K + 63) / 64 * 64;
    w->n_bytes = (size_t)w->N_pad * (size_t)w->K_pad / 8 * (size_t)bits;
    w->data = fl__alloc(w->n_bytes, 1);
    w->col_sum = fl__calloc((size_t)w->N_pad, sizeof *w->col_sum);
    if (!w->data || !w->col_sum) {
        const size_t n_bytes = w->n_bytes;
        fl__weight_fini(w);
        return fl__fail_nomem(err, "packed weights", n_bytes);
    }
    memset(w->data, bits == 4 ? 0x88 : 0, w->n_bytes); /* code 0 everywhere */
    for (int n = 0; n < N; n++) {
        const int8_t *row = codes + (size_t)n * (size_t)K;
        const int k = pack_row(w, row, n);
        if (k == K) continue;
        fl__weight_fini(w);
        return fl__fail(err, FL_E_INPUT,
                        "weight packing: code [%d, %d]: %d does not fit %d bits; the model "
                        "file is damaged, quantise again",
                        n, k, row[k], bits);
    }
    return FL_OK;
}

void fl__weight_unpack(int8_t *codes, const fl_weight *w)
{
    for (int n = 0; n < w->N; n++) {
        int8_t *row = codes + (size_t)n * (size_t)w->K;
        for (int k = 0; k < w->K; k++) {
            const uint8_t byte = w->data[code_index(w, n, k)];
            if (w->bits == 8)
                row[k] = (int8_t)byte;
            else
                row[k] = (int8_t)((k % 8 < 4 ? byte & 15 : byte >> 4) - 8);
        }
    }
}

void fl__weight_fini(fl_weight *w)
{
    fl__free(&w->data);
    fl__free(&w->col_sum);
    memset(w, 0, sizeof *w);
}

void fl__nibbles_pack(uint8_t *packed, const int8_t *codes, int N, int K)
{
    const size_t row_bytes = ((size_t)K + 1) / 2;
    for (int n = 0; n < N; n++) {
        const int8_t *c = codes + (size_t)n * (size_t)K;
        uint8_t *p = packed + (size_t)n * row_bytes;
        for (int k = 0; k < K; k += 2) {
            const int high = k + 1 < K ? c[k + 1] : 0;
            p[k / 2] = (uint8_t)((c[k] & 15) | (high & 15) << 4);
        }
    }
}

void fl__nibbles_unpack(int8_t *codes, const uint8_t *packed, int N, int K)
{
    const size_t row_bytes = ((size_t)K + 1) / 2;
    for (int n = 0; n < N; n++) {
        int8_t *c = codes + (size_t)n * (size_t)K;
        const uint8_t *p = packed + (size_t)n * row_bytes;
        for (int k = 0; k < K; k++) {
            const int nibble = k % 2 ? p[k / 2] >> 4 : p[k / 2] & 15;
            c[k] = (int8_t)((nibble ^ 8) - 8); /* sign of bit 3 */
        }
    }
}
