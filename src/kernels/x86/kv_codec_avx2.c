/* kv_codec_avx2.c - the KV codec, 8 codes per step.
 *
 * 8 codes are `bits` bytes: one 32-bit word holds a group at 4, 3 or 2 bits, half a group at 8.
 * K: a gather takes one word of each of 8 tokens, and a shift per code leaves 8 tokens of one
 * channel side by side, which is the transposed order without any transposing. V: one word in
 * all lanes, each lane shifted by its own place. The tail of a row (D % 8 codes) goes through
 * the same code on a padded copy.
 * SPDX-License-Identifier: MIT */
#include "kernels/kv_codec_rows.h"
#include "kernels/x86/kv_codec_avx2.h"

#define T FL_KV_PAGE

/* ---- quantising -------------------------------------------------------------------------- */

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

FL_INLINE void quantize_row(uint8_t *row, const fl_kv_grid *g, const float *x, int D, int bits)
{
    const __m256 inv = _mm256_set1_ps(g->inv), zero = _mm256_set1_ps((float)g->zero);
    const __m256 qmax = _mm256_set1_ps((float)((1 << bits) - 1));
    int d = 0;
    for (; d + 8 <= D; d += 8, row += bits)
        store_group(row, codes_of(_mm256_loadu_ps(x + d), inv, zero, qmax), bits, (size_t)bits);
    if (d == D) return;
    /* Lanes behind the row are set to 0, not to the code of 0. */
    float tail[8] = {0};
    memcpy(tail, x + d, (size_t)(D - d) * sizeof *x);
    const __m256i there =
        _mm256_cmpgt_epi32(_mm256_set1_epi32(D - d), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
    const __m256i codes = codes_of(_mm256_loadu_ps(tail), inv, zero, qmax);
    store_group(row, _mm256_and_si256(codes, there), bits, fl__kv_row_bytes(D - d, bits));
}

void fl__kv_quantize_avx2(void *block, int t, const float *x, int D, int bits, float c_max,
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

/* Scales and zeros of a block as numbers. */
typedef struct grids {
    float scale[T];
    int32_t zero[T];
} grids;

FL_INLINE void load_grids(grids *g, const uint8_t *block, int D, int bits)
{
    const uint8_t *scale = block + fl__kv_scale_at(D, bits);
    const uint8_t *zero = block + fl__kv_zero_at(D, bits);
    for (int t = 0; t < T; t += 8) {
        const __m128i h = _mm_loadu_si128((const __m128i *)(const void *)(scale + 2 * t));
        const __m128i z = _mm_loadl_epi64((const __m128i *)(const void *)(zero + t));
        _mm256_storeu_ps(g->scale + t, _mm256_cvtph_ps(h));
        _mm256_storeu_si256((__m256i *)(void *)(g->zero + t), _mm256_cvtepu8_epi32(z));
    }
}

FL_INLINE __m256 value_of(__m256i code, __m256i zero, __m256 scale)
{
    return _mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_sub_epi32(code, zero)), scale);
}

/* n channels (all of one word) of all tokens. */
FL_INLINE void expand_k_word(float *out, const uint8_t *codes, size_t row_bytes, const grids *g,
                             int bits, int n)
{
    const __m256i mask = _mm256_set1_epi32((1 << bits) - 1);
    const __m256i rows = _mm256_mullo_epi32(_mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7),
                                            _mm256_set1_epi32((int)row_bytes));
    for (int t = 0; t < T; t += 8) {
        const int *from = (const int *)(const void *)(codes + (size_t)t * row_bytes);
        const __m256i words = _mm256_i32gather_epi32(from, rows, 1);
        const __m256i zero = _mm256_loadu_si256((const __m256i *)(const void *)(g->zero + t));
        const __m256 scale = _mm256_loadu_ps(g->scale + t);
        for (int i = 0; i < n; i++) {
            const __m256i code = _mm256_and_si256(_mm256_srli_epi32(words, i * bits), mask);
            _mm256_storeu_ps(out + i * T + t, value_of(code, zero, scale));
        }
    }
}

FL_INLINE void expand_k(float *out, const uint8_t *block, int D, int bits)
{
    const int per_word = bits == 8 ? 4 : 8;
    const size_t row_bytes = fl__kv_row_bytes(D, bits);
    grids g;
    int d = 0;
    load_grids(&g, block, D, bits);
    for (; d + per_word <= D; d += per_word)
        expand_k_word(out + d * T, block + d * bits / 8, row_bytes, &g, bits, per_word);
    if (d < D) expand_k_word(out + d * T, block + d * bits / 8, row_bytes, &g, bits, D - d);
}

void fl__kv_expand_k_avx2(float *out, const void *block, int D, int bits)
{
    switch (bits) {
    case 8: expand_k(out, block, D, 8); break;
    case 4: expand_k(out, block, D, 4); break;
    case 3: expand_k(out, block, D, 3); break;
    default: expand_k(out, block, D, 2); break;
    }
}

FL_INLINE __m256i load_codes(const uint8_t *from, int bits)
{
    if (bits == 8)
        return _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(const void *)from));
    const __m256i word = _mm256_set1_epi32(load_word(from));
    return _mm256_and_si256(_mm256_srlv_epi32(word, group_shifts(bits)),
                            _mm256_set1_epi32((1 << bits) - 1));
}

FL_INLINE void expand_v(float *out, const uint8_t *block, int D, int bits)
{
    const size_t row_bytes = fl__kv_row_bytes(D, bits);
    grids g;
    load_grids(&g, block, D, bits);
    for (int t = 0; t < T; t++, out += D) {
        const uint8_t *row = block + (size_t)t * row_bytes;
        const __m256i zero = _mm256_set1_epi32(g.zero[t]);
        const __m256 scale = _mm256_set1_ps(g.scale[t]);
        int d = 0;
        for (; d + 8 <= D; d += 8, row += bits)
            _mm256_storeu_ps(out + d, value_of(load_codes(row, bits), zero, scale));
        if (d == D) continue;
        float tail[8];
        _mm256_storeu_ps(tail, value_of(load_codes(row, bits), zero, scale));
        memcpy(out + d, tail, (size_t)(D - d) * sizeof *out);
    }
}

void fl__kv_expand_v_avx2(float *out, const void *block, int D, int bits)
{
    switch (bits) {
    case 8: expand_v(out, block, D, 8); break;
    case 4: expand_v(out, block, D, 4); break;
    case 3: expand_v(out, block, D, 3); break;
    default: expand_v(out, block, D, 2); break;
    }
}
