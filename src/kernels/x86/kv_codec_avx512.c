/* kv_codec_avx512.c - the KV codec, 16 channels of a row per step, the end of a row under a
 * mask.
 * SPDX-License-Identifier: MIT */
#include "kernels/kv_codec_rows.h"
#include "kernels/x86/simd.h"

FL_INLINE __mmask16 tail_mask(int left)
{
    return left < 16 ? (__mmask16)((1u << left) - 1) : (__mmask16)0xffff;
}

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

void fl__kv_quantize_avx512(void *block, fl_kv_side side, int t, const float *x, int D,
                            int bits, float c_max, float c_min)
{
    fl_kv_codes c;
    float largest, smallest;
    row_range(&largest, &smallest, x, D);
    const fl_kv_grid g = fl__kv_grid(largest, smallest, bits, c_max, c_min);
    int d = 0;
    for (; d < D; d += 16) {
        const __mmask16 mask = tail_mask(D - d);
        const __m512i codes = codes_of(mask, _mm512_maskz_loadu_ps(mask, x + d), &g, bits);
        _mm_storeu_si128((__m128i *)(void *)(c.code + d), _mm512_cvtepi32_epi8(codes));
    }
    memset(c.code + d, 0, sizeof c.code - (size_t)d);
    fl__kv_put(block, side, t, &c, D, bits, &g);
}

void fl__kv_expand_avx512(float *out, const void *block, fl_kv_side side, int D, int bits)
{
    fl__kv_expand(out, block, side, D, bits);
}
