/* peak_ref.c - products and reads in plain C. SPDX-License-Identifier: MIT */
#include "kernels/peak.h"

void fl__peak_ref(int64_t n_rounds)
{
    int32_t sum[8] = {0}, a = 3, b = 5;
    for (int64_t r = 0; r < n_rounds; r++)
        for (int i = 0; i < 8; i++) {
            __asm__ volatile("" : "+r"(a), "+r"(b)); /* the product is not a constant */
            sum[i] += (int8_t)a * (int8_t)b;
        }
    for (int i = 0; i < 8; i++) __asm__ volatile("" ::"r"(sum[i]));
}

uint64_t fl__read_ref(const void *data, size_t n_bytes)
{
    const uint64_t *p = data;
    uint64_t sum[8] = {0}, all = 0;
    for (size_t i = 0; i < n_bytes / 64; i++)
        for (int j = 0; j < 8; j++) sum[j] ^= p[i * 8 + (size_t)j];
    for (int j = 0; j < 8; j++) all ^= sum[j];
    return all;
}
