/* attention_codes_avx2.h - scales and zeros of a page, for all x86 rows of attention over
 * codes. SPDX-License-Identifier: MIT */
#ifndef FL_KERNELS_X86_ATTENTION_CODES_AVX2_H
#define FL_KERNELS_X86_ATTENTION_CODES_AVX2_H

#include "kernels/attention_codes_rows.h"
#include "kernels/x86/simd.h"

FL_INLINE void load_grid(float *scale, int32_t *zero, const uint8_t *block, fl_kv_side side,
                         int D, int bits)
{
    const uint8_t *scales = block + fl__kv_scale_at(side, D, bits);
    const uint8_t *zeros = block + fl__kv_zero_at(side, D, bits);
    for (int t = 0; t < FL_KV_PAGE; t += 8) {
        const __m128i h = _mm_loadu_si128((const __m128i *)(const void *)(scales + 2 * t));
        const __m128i z = _mm_loadl_epi64((const __m128i *)(const void *)(zeros + t));
        _mm256_storeu_ps(scale + t, _mm256_cvtph_ps(h));
        _mm256_storeu_si256((__m256i *)(void *)(zero + t), _mm256_cvtepu8_epi32(z));
    }
}

/* Codes, scales and zeros of page p, ready for blocks of rows. */
FL_INLINE void spread_page(const fl_codes_work *work, fl_codes_grids *g,
                           const fl_attention_codes *a, int p)
{
    const int D = a->D;
    load_grid(g->k_scale, g->k_zero, a->k[p], FL_KV_KEYS, D, a->k_bits);
    load_grid(g->v_scale, g->v_zero, a->v[p], FL_KV_VALUES, D, a->v_bits);
    fl__codes_spread(work->k, FL_KV_PAGE, a->k[p], FL_KV_KEYS, D, a->k_bits);
    fl__codes_spread(work->v, fl__attention_ld(D), a->v[p], FL_KV_VALUES, D, a->v_bits);
}

#endif
