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

/* Codes, scales and zeros of all pages. Beyond what any row sees, scales of values are 0, not
 * what lies there. */
FL_INLINE void spread_pages(const fl_codes_work *work, const fl_attention_codes *a)
{
    const int D = a->D, ld = fl__attention_ld(D), n = a->n_pages * FL_KV_PAGE;
    for (int p = 0; p < a->n_pages; p++) {
        const int t = p * FL_KV_PAGE;
        load_grid(work->k_scale + t, work->k_zero + t, a->k[p], FL_KV_KEYS, D, a->k_bits);
        load_grid(work->v_scale + t, work->v_zero + t, a->v[p], FL_KV_VALUES, D, a->v_bits);
        fl__codes_spread(work->k + (size_t)p * fl__codes_page_bytes(D), FL_KV_PAGE, a->k[p],
                         FL_KV_KEYS, D, a->k_bits);
        fl__codes_spread(work->v + (size_t)t * (size_t)ld, ld, a->v[p], FL_KV_VALUES, D,
                         a->v_bits);
    }
    for (int t = fl__codes_seen(a, a->n_rows - 1); t < n; t++) work->v_scale[t] = 0;
}

/* Pages that any of rows [r0, r0 + rows) sees. */
FL_INLINE int pages_seen(const fl_attention_codes *a, int r0, int rows)
{
    return (fl__codes_seen(a, r0 + rows - 1) + FL_KV_PAGE - 1) / FL_KV_PAGE;
}

#endif
