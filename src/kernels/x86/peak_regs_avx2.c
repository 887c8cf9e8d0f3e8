/* peak_regs_avx2.c - 12 chains of vpmaddubsw + vpaddw; reading with 256-bit loads.
 * SPDX-License-Identifier: MIT */
#include "kernels/peak.h"
#include "kernels/x86/simd.h"

#define CHAINS 12

void fl__peak_avx2(int64_t n_rounds)
{
    __m256i a = _mm256_set1_epi8(3), b = _mm256_set1_epi8(5), sum[CHAINS];
#pragma GCC unroll 12
    for (int i = 0; i < CHAINS; i++) sum[i] = _mm256_setzero_si256();
    for (int64_t r = 0; r < n_rounds; r++) {
#pragma GCC unroll 12
        for (int i = 0; i < CHAINS; i++) {
            FL_KEEP_EACH(a); /* so that no two products are the same */
            sum[i] = _mm256_add_epi16(sum[i], _mm256_maddubs_epi16(a, b));
            FL_KEEP_EACH(sum[i]);
        }
    }
}

uint64_t fl__read_avx2(const void *data, size_t n_bytes)
{
    const __m256i *p = data, *const end = p + n_bytes / 32;
    __m256i s0 = _mm256_setzero_si256(), s1 = s0, s2 = s0, s3 = s0;
    for (; p + 4 <= end; p += 4) {
        s0 = _mm256_xor_si256(s0, _mm256_load_si256(p));
        s1 = _mm256_xor_si256(s1, _mm256_load_si256(p + 1));
        s2 = _mm256_xor_si256(s2, _mm256_load_si256(p + 2));
        s3 = _mm256_xor_si256(s3, _mm256_load_si256(p + 3));
    }
    for (; p < end; p++) s0 = _mm256_xor_si256(s0, _mm256_load_si256(p));
    s0 = _mm256_xor_si256(_mm256_xor_si256(s0, s1), _mm256_xor_si256(s2, s3));
    return (uint64_t)(_mm256_extract_epi64(s0, 0) ^ _mm256_extract_epi64(s0, 1) ^
                      _mm256_extract_epi64(s0, 2) ^ _mm256_extract_epi64(s0, 3));
}
