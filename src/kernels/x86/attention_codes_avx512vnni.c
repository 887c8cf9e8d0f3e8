/* attention_codes_avx512vnni.c - attention over codes for AVX-512 VNNI: four rows at a time,
 * vpdpbusd of a lane's four codes with four terms' digits, broadcast; all sums of 32 lanes in
 * registers. SPDX-License-Identifier: MIT */
#include "kernels/x86/attention_codes_avx512.h"

#define ROWS 4

void fl__attention_prepare_avx512vnni(void *x, const float *q, int64_t q_stride, int n_rows,
                                      int group, int D, float scale)
{
    const int terms = fl__codes_terms(D);
    fl_codes_head *heads = x;
    uint8_t *to = (uint8_t *)x + fl__codes_heads_bytes(n_rows);
    for (int r = 0; r < n_rows; r++, to += DIGITS * terms) {
        const float *from = q + r / group * q_stride + r % group * D;
        __m512i top = _mm512_setzero_si512(), sum_h = top, sum_l = top, H, L;
        for (int d = 0; d < D; d += 16)
            top = max_bits(top, _mm512_maskz_loadu_ps(lanes_under(D - d), from + d));
        const fixed f = fixed_of((uint32_t)_mm512_reduce_max_epi32(top));
        for (int d = 0; d < terms; d += 16) { /* 0 from D on */
            const __m512 v = _mm512_maskz_loadu_ps(lanes_under(D - d), from + d);
            put_fixed(to + d, (size_t)terms, &H, &L, v, f.inv);
            sum_h = _mm512_add_epi32(sum_h, H);
            sum_l = _mm512_add_epi32(sum_l, L);
        }
        heads[r] = (fl_codes_head){f.step * scale, _mm512_reduce_add_epi32(sum_h),
                                   _mm512_reduce_add_epi32(sum_l), 0};
    }
}

/* Sums of lanes [lane, lane + 16 vecs). */
FL_INLINE void sum_tile(const product *p, int lane, int rows, int vecs)
{
    __m512i acc[ROWS * DIGITS][2];
    const uint8_t *codes = p->codes + 4 * lane;
    const size_t row_bytes = (size_t)p->row_bytes;
    for (int i = 0; i < DIGITS * rows; i++)
        for (int v = 0; v < vecs; v++) acc[i][v] = _mm512_setzero_si512();
    for (int t = 0; t < p->n_terms; t += 4, codes += 4 * p->n_lanes) {
        __m512i four[2];
        for (int v = 0; v < vecs; v++) four[v] = _mm512_loadu_si512(codes + 64 * v);
        for (int i = 0; i < DIGITS * rows; i++) {
            int32_t digits;
            memcpy(&digits, p->x + (size_t)i * row_bytes + t, sizeof digits);
            const __m512i x = _mm512_set1_epi32(digits);
            for (int v = 0; v < vecs; v++) {
                acc[i][v] = _mm512_dpbusd_epi32(acc[i][v], four[v], x);
                FL_KEEP(acc[i][v]);
            }
        }
    }
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < vecs; v++) {
            int32_t *to = p->sums + 2 * r * p->n_lanes + lane + 16 * v;
            const __m512i l1 = _mm512_slli_epi32(acc[DIGITS * r + 1][v], 7);
            _mm512_storeu_si512(to, acc[DIGITS * r][v]);
            _mm512_storeu_si512(to + p->n_lanes,
                                _mm512_add_epi32(l1, acc[DIGITS * r + 2][v]));
        }
}

/* Where 16 lanes are left over, the tile before them is summed again with them. */
FL_INLINE void sum_rows(const product *p, int rows)
{
    int lane = 0;
    for (; lane + 32 <= p->n_lanes; lane += 32) sum_tile(p, lane, rows, 2);
    if (p->n_lanes < 32) sum_tile(p, 0, rows, 1);
    else if (lane < p->n_lanes) sum_tile(p, p->n_lanes - 32, rows, 2);
}

static void sum_codes(const product *p, int rows)
{
    switch (rows) {
    case 1: sum_rows(p, 1); break;
    case 2: sum_rows(p, 2); break;
    case 3: sum_rows(p, 3); break;
    default: sum_rows(p, 4); break;
    }
}

void fl__attention_codes_avx512vnni(const fl_attention_codes *a)
{
    run_pages(a, ROWS, sum_codes);
}
