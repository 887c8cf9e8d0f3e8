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

/* Sizes and memory; the codes are not set, the sums are 0. */
static fl_status weight_init(fl_weight *w, int N, int K, int bits, fl_err *err)
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
    w->data = fl__alloc_huge(w->n_bytes, 1);
    w->col_sum = fl__calloc((size_t)w->N_pad, sizeof *w->col_sum);
    if (w->data && w->col_sum) return FL_OK;
    const size_t n_bytes = w->n_bytes;
    fl__weight_fini(w);
    return fl__fail_nomem(err, "packed weights", n_bytes);
}

fl_status fl__weight_pack(fl_weight *w, const int8_t *codes, int N, int K, int bits,
                          fl_err *err)
{
    const fl_status st = weight_init(w, N, K, bits, err);
    if (st) return st;
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

/* ---- random codes ------------------------------------------------------------------------ */

typedef struct {
    fl_weight *w;
    uint64_t seed;
} random_job;

/* Xorshift, 8 bytes a step; any byte is two 4-bit codes, and all but 0x80 an 8-bit code. */
static void random_bytes(uint8_t *to, size_t n_bytes, uint64_t state, int bits)
{
    for (size_t i = 0; i < n_bytes; i += sizeof state) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        memcpy(to + i, &state, sizeof state);
    }
    for (size_t i = 0; bits == 8 && i < n_bytes; i++) to[i] = to[i] == 0x80 ? 0 : to[i];
}

static void clear_code(fl_weight *w, int n, int k)
{
    uint8_t *byte = &w->data[code_index(w, n, k)];
    if (w->bits == 8) *byte = 0;
    else *byte = k % 8 < 4 ? (*byte & 0xf0) | 8 : (*byte & 0x0f) | 8 << 4;
}

static void sum_panel(int32_t *col_sum, const uint8_t *rows, size_t n_bytes, int bits)
{
    int32_t sum[64] = {0};
    for (size_t at = 0; at < n_bytes; at += 64)
        for (int i = 0; i < 64; i++)
            sum[i] += bits == 8
                          ? (int8_t)rows[at + (size_t)i]
                          : (rows[at + (size_t)i] & 15) + (rows[at + (size_t)i] >> 4) - 16;
    for (int i = 0; i < 64; i++) col_sum[i / 4] += sum[i];
}

static void random_panel(void *arg, int64_t panel, int thread)
{
    const random_job *j = arg;
    fl_weight *w = j->w;
    const size_t n_bytes = (size_t)w->K_pad * 16 / 8 * (size_t)w->bits;
    uint8_t *rows = w->data + (size_t)panel * n_bytes;
    (void)thread;
    random_bytes(rows, n_bytes, (j->seed + (uint64_t)panel + 1) * 0x9e3779b97f4a7c15u | 1,
                 w->bits);
    for (int n = (int)panel * 16; n < (int)panel * 16 + 16; n++)
        for (int k = n < w->N ? w->K : 0; k < w->K_pad; k++) clear_code(w, n, k);
    sum_panel(w->col_sum + panel * 16, rows, n_bytes, w->bits);
}

fl_status fl__weight_random(fl_weight *w, const fl_exec *ex, int N, int K, int bits,
                            uint64_t seed, fl_err *err)
{
    random_job job = {w, seed};
    const fl_status st = weight_init(w, N, K, bits, err);
    if (!st) fl__parallel_for(ex, w->N_pad / 16, random_panel, &job);
    return st;
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
