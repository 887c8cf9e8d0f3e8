/* attention_codes_avx512.h - what the AVX-512 VNNI and the AMX row of attention over codes
 * share: fixed point in three digits, softmax.
 *
 * Byte products want signed bytes: X + 8192 = 16384 H + 128 (L1 + 64) + L0, so that L1 is
 * -64..63 and L0 0..127, and L = 128 L1 + L0. Prepared numbers are three rows of bytes, 64
 * terms at a time, 0 from the last term on.
 * SPDX-License-Identifier: MIT */
#ifndef FL_KERNELS_X86_ATTENTION_CODES_AVX512_H
#define FL_KERNELS_X86_ATTENTION_CODES_AVX512_H

#include "kernels/x86/attention_codes_avx2.h"

#define T      FL_KV_PAGE
#define DIGITS 3

FL_INLINE __mmask16 lanes_under(int n)
{
    return n >= 16 ? (__mmask16)0xffff : n <= 0 ? 0 : (__mmask16)((1u << n) - 1);
}

/* ---- fixed point ------------------------------------------------------------------------- */

typedef struct fixed {
    float step, inv;
} fixed;

/* Of numbers whose largest absolute value has these bits. */
FL_INLINE fixed fixed_of(uint32_t top_bits)
{
    const float top = fl__f32_from_bits(top_bits);
    if (top_bits >= 0x7f800000u) return (fixed){NAN, 0};
    if (top < FL_FIXED_TINY) return (fixed){0, 0};
    return (fixed){top / FL_FIXED_MAX, FL_FIXED_MAX / top};
}

FL_INLINE __m512i max_bits(__m512i top, __m512 x)
{
    const __m512i bits = _mm512_and_si512(_mm512_castps_si512(x), _mm512_set1_epi32(INT32_MAX));
    return _mm512_max_epi32(top, bits);
}

/* The low bytes of 64 integers that fit a signed byte. */
FL_INLINE __m512i to_bytes(const __m512i v[4])
{
    const __m512i order =
        _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    const __m512i a = _mm512_packs_epi32(v[0], v[1]), b = _mm512_packs_epi32(v[2], v[3]);
    return _mm512_permutexvar_epi32(order, _mm512_packs_epi16(a, b));
}

/* Sums over H and over L of prepared numbers, of sixteen of them times their zeros. */
typedef struct digit_sums {
    __m512i h, l;
} digit_sums;

/* 64 numbers to 64 bytes in each of three rows, `apart` bytes apart; NaN times 0 is no number,
 * hence the mask. Where sums are asked for they are added up, times zero [64] unless NULL. */
FL_INLINE void put_digits(uint8_t *to, size_t apart, const __m512 x[4], float inv,
                          digit_sums *sums, const int32_t *zero)
{
    const __m512i low = _mm512_set1_epi32(127);
    const __mmask16 some = inv > 0 ? 0xffff : 0;
    __m512i h[4], l1[4], l0[4];
    for (int i = 0; i < 4; i++) {
        const __m512i X =
            _mm512_maskz_cvtps_epi32(some, _mm512_mul_ps(x[i], _mm512_set1_ps(inv)));
        const __m512i Y = _mm512_add_epi32(X, _mm512_set1_epi32(8192));
        h[i] = _mm512_srai_epi32(Y, 14);
        l1[i] = _mm512_and_si512(_mm512_srli_epi32(Y, 7), low);
        l0[i] = _mm512_and_si512(Y, low);
        if (!sums) continue;
        __m512i H = h[i], L = _mm512_sub_epi32(X, _mm512_slli_epi32(H, 14));
        if (zero) {
            const __m512i z = _mm512_loadu_si512(zero + 16 * i);
            H = _mm512_mullo_epi32(H, z);
            L = _mm512_mullo_epi32(L, z);
        }
        sums->h = _mm512_add_epi32(sums->h, H);
        sums->l = _mm512_add_epi32(sums->l, L);
    }
    _mm512_storeu_si512(to, to_bytes(h));
    _mm512_storeu_si512(to + apart, _mm512_sub_epi8(to_bytes(l1), _mm512_set1_epi8(64)));
    _mm512_storeu_si512(to + 2 * apart, to_bytes(l0));
}

/* T of sixteen lanes. */
FL_INLINE __m512 total(__m512i h, __m512i l)
{
    return _mm512_fmadd_ps(_mm512_cvtepi32_ps(h), _mm512_set1_ps(16384.0f),
                           _mm512_cvtepi32_ps(l));
}

/* ---- queries ----------------------------------------------------------------------------- */

/* Where prepared rows lie: digit i of terms [64 k, 64 k + 64) of row r at
 * r / block * block_bytes + r % block * 64 + k * step + i * apart. */
typedef struct row_layout {
    int block;
    size_t block_bytes, step, apart;
} row_layout;

FL_INLINE uint8_t *row_at(uint8_t *rows, const row_layout *to, int r)
{
    return rows + (size_t)(r / to->block) * to->block_bytes + (size_t)(r % to->block) * 64;
}

FL_INLINE void prepare_row(fl_codes_head *head, uint8_t *to, const row_layout *layout,
                           const float *from, int D, float scale)
{
    const __m512i none = _mm512_setzero_si512();
    digit_sums sums = {none, none};
    __m512i top = none;
    for (int d = 0; d < D; d += 16)
        top = max_bits(top, _mm512_maskz_loadu_ps(lanes_under(D - d), from + d));
    const fixed f = fixed_of((uint32_t)_mm512_reduce_max_epi32(top));
    for (int d = 0; d < D; d += 64, to += layout->step) {
        __m512 x[4];
        for (int i = 0; i < 4; i++)
            x[i] = _mm512_maskz_loadu_ps(lanes_under(D - d - 16 * i), from + d + 16 * i);
        put_digits(to, layout->apart, x, f.inv, &sums, NULL);
    }
    *head = (fl_codes_head){f.step * scale, _mm512_reduce_add_epi32(sums.h),
                            _mm512_reduce_add_epi32(sums.l), 0};
}

FL_INLINE void prepare_rows(void *x, const row_layout *layout, const float *q, int64_t q_stride,
                            int n_rows, int group, int D, float scale)
{
    fl_codes_head *heads = x;
    uint8_t *rows = (uint8_t *)x + fl__codes_heads_bytes(n_rows);
    for (int r = 0; r < n_rows; r++)
        prepare_row(heads + r, row_at(rows, layout, r), layout,
                    q + r / group * q_stride + r % group * D, D, scale);
}

/* ---- softmax ----------------------------------------------------------------------------- */

FL_INLINE float max_lane(__m512 v)
{
    const __m256 h = _mm256_max_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
    __m128 m = _mm_max_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
    m = _mm_max_ps(m, _mm_movehl_ps(m, m));
    return _mm_cvtss_f32(_mm_max_ss(m, _mm_movehdup_ps(m)));
}

/* 2^x for x <= 0, to 3e-7; 0 below 2^-126, NaN stays NaN. */
FL_INLINE __m512 exp2_avx512(__m512 x)
{
    const __mmask16 some = _mm512_cmp_ps_mask(x, _mm512_set1_ps(-126.0f), _CMP_NLT_UQ);
    const __m512 n =
        _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const __m512 f = _mm512_sub_ps(x, n);
    __m512 p = _mm512_set1_ps(1.33813025e-3f);
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(9.66636852e-3f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(5.55038101e-2f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(2.40223490e-1f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(6.93147181e-1f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(1.0f));
    return _mm512_maskz_scalef_ps(some, p, n);
}

/* Scores of sixteen lanes from t on: y times steps; none beyond the n seen ones. Returns the
 * largest so far; a NaN is never it. */
FL_INLINE __m512 put_scores(float *s, __m512 y, __m512 step, const float *scale, int t, int n,
                            __m512 tops)
{
    __m512 v = _mm512_mul_ps(y, _mm512_mul_ps(step, _mm512_loadu_ps(scale + t)));
    if (n - t < 16)
        v = _mm512_mask_mov_ps(_mm512_set1_ps(-INFINITY), lanes_under(n - t), v);
    _mm512_store_ps(s + t, v);
    return _mm512_max_ps(v, tops); /* the second operand where either is NaN */
}

/* What a row of probabilities leaves for its values. */
typedef struct weights {
    float step;
    int32_t zero_h, zero_l;
} weights;

/* From scores s[0..n), n a multiple of T, to probabilities, their sum and prepared weights.
 * zeros: of the values, or NULL where they are taken care of. */
FL_INLINE weights softmax_row(uint8_t *w, const row_layout *layout, float *m, float *l,
                              float *s, float top, int n, const float *v_scale,
                              const int32_t *zeros)
{
    const __m512 vtop = _mm512_set1_ps(top == -INFINITY ? 0 : top);
    const __m512 log2e = _mm512_set1_ps(1.44269504f);
    const __m512i none = _mm512_setzero_si512();
    __m512 sum[2] = {_mm512_setzero_ps(), _mm512_setzero_ps()};
    __m512i most[2] = {none, none};
    digit_sums sums = {none, none};
    for (int t = 0; t < n; t += 32)
        for (int i = 0; i < 2; i++) {
            float *const at = s + t + 16 * i;
            const __m512 d = _mm512_sub_ps(_mm512_load_ps(at), vtop);
            const __m512 p = exp2_avx512(_mm512_mul_ps(d, log2e));
            const __m512 y = _mm512_mul_ps(p, _mm512_loadu_ps(v_scale + t + 16 * i));
            sum[i] = _mm512_add_ps(sum[i], p);
            most[i] = max_bits(most[i], y);
            _mm512_store_ps(at, y);
        }
    const fixed f =
        fixed_of((uint32_t)_mm512_reduce_max_epi32(_mm512_max_epi32(most[0], most[1])));
    for (int t = 0; t < n; t += T, w += layout->step) {
        const __m512 x[4] = {_mm512_load_ps(s + t), _mm512_load_ps(s + t + 16),
                             _mm512_load_ps(s + t + 32), _mm512_load_ps(s + t + 48)};
        if (zeros) put_digits(w, layout->apart, x, f.inv, &sums, zeros + t);
        else put_digits(w, layout->apart, x, f.inv, NULL, NULL);
    }
    *l = _mm512_reduce_add_ps(_mm512_add_ps(sum[0], sum[1]));
    *m = top;
    if (!zeros) return (weights){f.step, 0, 0};
    return (weights){f.step, _mm512_reduce_add_epi32(sums.h), _mm512_reduce_add_epi32(sums.l)};
}

#endif
