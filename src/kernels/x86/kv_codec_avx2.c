/* kv_codec_avx2.c - the KV codec, eight channels of a row per step.
 * SPDX-License-Identifier: MIT */
#include "kernels/kv_codec_rows.h"
#include "kernels/x86/simd.h"

FL_INLINE float largest_lane(__m256 v)
{
    __m128 m = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    m = _mm_max_ps(m, _mm_movehl_ps(m, m));
    return _mm_cvtss_f32(_mm_max_ss(m, _mm_movehdup_ps(m)));
}

/* Largest and minus the smallest of a row, both at least 0. max(v, best) is best for NaN. */
FL_INLINE void row_range(float *largest, float *smallest, const float *x, int D)
{
    const __m256 sign = _mm256_set1_ps(-0.0f);
    __m256 top = _mm256_setzero_ps(), bottom = _mm256_setzero_ps();
    float tail[8] = {0};
    int d = 0;
    for (; d + 8 <= D; d += 8) {
        const __m256 v = _mm256_loadu_ps(x + d);
        top = _mm256_max_ps(v, top);
        bottom = _mm256_max_ps(_mm256_xor_ps(v, sign), bottom);
    }
    memcpy(tail, x + d, (size_t)(D - d) * sizeof *x);
    const __m256 v = _mm256_loadu_ps(tail);
    *largest = largest_lane(_mm256_max_ps(v, top));
    *smallest = -largest_lane(_mm256_max_ps(_mm256_xor_ps(v, sign), bottom));
}

FL_INLINE __m256i codes_of(__m256 x, __m256 inv, __m256 zero, __m256 qmax)
{
    const __m256 r =
        _mm256_round_ps(_mm256_mul_ps(x, inv), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const __m256 u = _mm256_max_ps(_mm256_add_ps(r, zero), _mm256_setzero_ps()); /* NaN: 0 */
    return _mm256_cvtps_epi32(_mm256_min_ps(u, qmax));
}

/* Eight codes, one per byte. */
FL_INLINE void store_codes(uint8_t *to, __m256i codes)
{
    const __m128i low = _mm256_castsi256_si128(codes);
    const __m128i words = _mm_packus_epi32(low, _mm256_extracti128_si256(codes, 1));
    _mm_storel_epi64((__m128i *)(void *)to, _mm_packus_epi16(words, words));
}

void fl__kv_quantize_avx2(void *block, fl_kv_side side, int t, const float *x, int D, int bits,
                          float c_max, float c_min)
{
    fl_kv_codes c;
    float largest, smallest, tail[8] = {0};
    row_range(&largest, &smallest, x, D);
    const fl_kv_grid g = fl__kv_grid(largest, smallest, bits, c_max, c_min);
    const __m256 inv = _mm256_set1_ps(g.inv), zero = _mm256_set1_ps((float)g.zero);
    const __m256 qmax = _mm256_set1_ps((float)((1 << bits) - 1));
    int d = 0;
    for (; d + 8 <= D; d += 8)
        store_codes(c.code + d, codes_of(_mm256_loadu_ps(x + d), inv, zero, qmax));
    memcpy(tail, x + d, (size_t)(D - d) * sizeof *x);
    store_codes(c.code + d, codes_of(_mm256_loadu_ps(tail), inv, zero, qmax));
    memset(c.code + D, 0, sizeof c.code - (size_t)D);
    fl__kv_put(block, side, t, &c, D, bits, &g);
}

void fl__kv_expand_avx2(float *out, const void *block, fl_kv_side side, int D, int bits)
{
    fl__kv_expand(out, block, side, D, bits);
}
