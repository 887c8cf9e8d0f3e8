/* kv_codec_avx512.c - the KV codec, 16 codes or 16 tokens per step.
 *
 * As kv_codec_avx2.c; two groups of 8 codes lie side by side in a register, the end of a row is
 * under a mask.
 * SPDX-License-Identifier: MIT */
#include "kernels/kv_codec_rows.h"
#include "kernels/x86/kv_codec_avx2.h"

#define T FL_KV_PAGE

FL_INLINE __mmask16 tail_mask(int left)
{
    return left < 16 ? (__mmask16)((1u << left) - 1) : (__mmask16)0xffff;
}

/* ---- quantising -------------------------------------------------------------------------- */

FL_INLINE float largest_lane(__m512 v)
{
    float lane[16], top = 0;
    _mm512_storeu_ps(lane, v);
    for (int i = 0; i < 16; i++) top = lane[i] > top ? lane[i] : top;
    return top;
}

/* Lanes behind the row hold 0, which changes neither. max(v, best) is best for NaN. */
FL_INLINE void row_range(float *largest, float *smallest, const float *x, int D)
{
    __m512 top = _mm512_setzero_ps(), bottom = _mm512_setzero_ps();
    for (int d = 0; d < D; d += 16) {
        const __m512 v = _mm512_maskz_loadu_ps(tail_mask(D - d), x + d);
        top = _mm512_max_ps(v, top);
        bottom = _mm512_max_ps(_mm512_sub_ps(_mm512_setzero_ps(), v), bottom);
    }
    *largest = largest_lane(top);
    *smallest = -largest_lane(bottom);
}

/* Codes of the lanes under the mask, 0 in the others. */
FL_INLINE __m512i codes_of(__mmask16 mask, __m512 x, const fl_kv_grid *g, int bits)
{
    const __m512 r = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(g->inv)),
                                          _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const __m512 u = _mm512_max_ps(_mm512_add_ps(r, _mm512_set1_ps((float)g->zero)),
                                   _mm512_setzero_ps()); /* NaN: 0 */
    const __m512 qmax = _mm512_set1_ps((float)((1 << bits) - 1));
    return _mm512_maskz_cvtps_epi32(mask, _mm512_min_ps(u, qmax));
}

FL_INLINE void quantize_row(uint8_t *row, const fl_kv_grid *g, const float *x, int D, int bits)
{
    for (int d = 0; d < D; d += 16, row += 2 * bits) {
        const int n = D - d < 16 ? D - d : 16;
        const __mmask16 mask = tail_mask(n);
        const __m512i codes = codes_of(mask, _mm512_maskz_loadu_ps(mask, x + d), g, bits);
        const __m256i low = _mm512_castsi512_si256(codes);
        store_group(row, low, bits, n < 8 ? fl__kv_row_bytes(n, bits) : (size_t)bits);
        if (n > 8)
            store_group(row + bits, _mm512_extracti64x4_epi64(codes, 1), bits,
                        fl__kv_row_bytes(n - 8, bits));
    }
}

void fl__kv_quantize_avx512(void *block, int t, const float *x, int D, int bits, float c_max,
                            float c_min)
{
    uint8_t *row = (uint8_t *)block + (size_t)t * fl__kv_row_bytes(D, bits);
    float largest, smallest;
    row_range(&largest, &smallest, x, D);
    const fl_kv_grid g = fl__kv_grid(largest, smallest, bits, c_max, c_min);
    fl__kv_scales(block, D, bits)[t] = g.scale;
    fl__kv_zeros(block, D, bits)[t] = g.zero;
    switch (bits) {
    case 8: quantize_row(row, &g, x, D, 8); break;
    case 4: quantize_row(row, &g, x, D, 4); break;
    case 3: quantize_row(row, &g, x, D, 3); break;
    default: quantize_row(row, &g, x, D, 2); break;
    }
}

/* ---- expanding --------------------------------------------------------------------------- */

FL_INLINE __m512 load_scales(const uint8_t *block, int D, int bits, int t)
{
    const uint8_t *from = block + fl__kv_scale_at(D, bits) + 2 * t;
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(const void *)from));
}

FL_INLINE __m512i load_zeros(const uint8_t *block, int D, int bits, int t)
{
    const uint8_t *from = block + fl__kv_zero_at(D, bits) + t;
    return _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(const void *)from));
}

FL_INLINE __m512 value_of(__m512i code, __m512i zero, __m512 scale)
{
    return _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_sub_epi32(code, zero)), scale);
}

/* n channels (all of one word, from channel d on) of all tokens. */
FL_INLINE void expand_k_word(float *out, const uint8_t *block, int D, int bits, int d, int n)
{
    const size_t row_bytes = fl__kv_row_bytes(D, bits);
    const __m512i mask = _mm512_set1_epi32((1 << bits) - 1);
    const __m512i count =
        _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const __m512i rows = _mm512_mullo_epi32(count, _mm512_set1_epi32((int)row_bytes));
    for (int t = 0; t < T; t += 16) {
        const uint8_t *from = block + (size_t)t * row_bytes + d * bits / 8;
        const __m512i words = _mm512_i32gather_epi32(rows, (const void *)from, 1);
        const __m512i zero = load_zeros(block, D, bits, t);
        const __m512 scale = load_scales(block, D, bits, t);
        for (int i = 0; i < n; i++) {
            const __m512i shift = _mm512_set1_epi32(i * bits);
            const __m512i code = _mm512_and_si512(_mm512_srlv_epi32(words, shift), mask);
            _mm512_storeu_ps(out + (d + i) * T + t, value_of(code, zero, scale));
        }
    }
}

FL_INLINE void expand_k(float *out, const uint8_t *block, int D, int bits)
{
    const int per_word = bits == 8 ? 4 : 8;
    int d = 0;
    for (; d + per_word <= D; d += per_word) expand_k_word(out, block, D, bits, d, per_word);
    if (d < D) expand_k_word(out, block, D, bits, d, D - d);
}

void fl__kv_expand_k_avx512(float *out, const void *block, int D, int bits)
{
    switch (bits) {
    case 8: expand_k(out, block, D, 8); break;
    case 4: expand_k(out, block, D, 4); break;
    case 3: expand_k(out, block, D, 3); break;
    default: expand_k(out, block, D, 2); break;
    }
}

/* 16 codes: two groups. At the end of the block's last row this reads up to 12 bytes of the
 * scales behind it. */
FL_INLINE __m512i load_codes(const uint8_t *from, int bits)
{
    if (bits == 8)
        return _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(const void *)from));
    const __m256i shifts = group_shifts(bits);
    const __m256i low = _mm256_srlv_epi32(_mm256_set1_epi32(load_word(from)), shifts);
    const __m256i high = _mm256_srlv_epi32(_mm256_set1_epi32(load_word(from + bits)), shifts);
    return _mm512_and_si512(_mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1),
                            _mm512_set1_epi32((1 << bits) - 1));
}

FL_INLINE void expand_v(float *out, const uint8_t *block, int D, int bits)
{
    const size_t row_bytes = fl__kv_row_bytes(D, bits);
    float scales[T];
    int32_t zeros[T];
    for (int t = 0; t < T; t += 16) {
        _mm512_storeu_ps(scales + t, load_scales(block, D, bits, t));
        _mm512_storeu_si512(zeros + t, load_zeros(block, D, bits, t));
    }
    for (int t = 0; t < T; t++, out += D) {
        const uint8_t *row = block + (size_t)t * row_bytes;
        const __m512i zero = _mm512_set1_epi32(zeros[t]);
        const __m512 scale = _mm512_set1_ps(scales[t]);
        for (int d = 0; d < D; d += 16, row += 2 * bits)
            _mm512_mask_storeu_ps(out + d, tail_mask(D - d),
                                  value_of(load_codes(row, bits), zero, scale));
    }
}

void fl__kv_expand_v_avx512(float *out, const void *block, int D, int bits)
{
    switch (bits) {
    case 8: expand_v(out, block, D, 8); break;
    case 4: expand_v(out, block, D, 4); break;
    case 3: expand_v(out, block, D, 3); break;
    default: expand_v(out, block, D, 2); break;
    }
}
