/* kv_codec_avx2.h - packing 8 codes, for the AVX2 and AVX-512 rows of the KV codec.
 * SPDX-License-Identifier: MIT */
#ifndef FL_KERNELS_X86_KV_CODEC_AVX2_H
#define FL_KERNELS_X86_KV_CODEC_AVX2_H

#include "kernels/x86/simd.h"

#include <stdint.h>
#include <string.h>

/* 0, bits, 2 bits, .. 7 bits: where the codes of a group stand. */
FL_INLINE __m256i group_shifts(int bits)
{
    return _mm256_mullo_epi32(_mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7),
                              _mm256_set1_epi32(bits));
}

/* 8 codes (int32) to the first n_bytes of their `bits` bytes. */
FL_INLINE void store_group(uint8_t *to, __m256i codes, int bits, size_t n_bytes)
{
    if (bits == 8) {
        const __m128i low = _mm256_castsi256_si128(codes);
        const __m128i words = _mm_packus_epi32(low, _mm256_extracti128_si256(codes, 1));
        uint8_t bytes[16];
        _mm_storeu_si128((__m128i *)(void *)bytes, _mm_packus_epi16(words, words));
        memcpy(to, bytes, n_bytes);
        return;
    }
    const __m256i placed = _mm256_sllv_epi32(codes, group_shifts(bits));
    __m128i v =
        _mm_or_si128(_mm256_castsi256_si128(placed), _mm256_extracti128_si256(placed, 1));
    v = _mm_or_si128(v, _mm_shuffle_epi32(v, 0x4e));
    v = _mm_or_si128(v, _mm_shuffle_epi32(v, 0xb1));
    const uint32_t word = (uint32_t)_mm_cvtsi128_si32(v);
    memcpy(to, &word, n_bytes);
}

/* Four bytes from anywhere: what is behind the codes of a group is masked away, and behind the
 * last row are the block's scales. */
FL_INLINE int32_t load_word(const uint8_t *from)
{
    int32_t word;
    memcpy(&word, from, sizeof word);
    return word;
}

#endif
