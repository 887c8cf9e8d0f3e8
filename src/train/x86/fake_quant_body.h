/* fake_quant_body.h - the loops of fake_quant_rows.h, compiled once per instruction set.
 * SPDX-License-Identifier: MIT */
#include "train/fake_quant_rows.h"
#include "kernels/x86/simd.h"
#include "train/x86/train_vec_masks.h"

static void extremes(float *most, float *least, const float *x, int n)
{
    vec high = vec_set(0), low = vec_set(0);
    int i = 0;
    for (; i + VEC_N <= n; i += VEC_N) {
        const vec v = vec_load(x + i, VEC_N);
        high = vec_max(v, high); /* NaN: high stays */
        low = vec_min(v, low);
    }
    if (i < n) { /* the zeros behind the row change neither */
        const vec v = vec_load(x + i, n - i);
        high = vec_max(v, high);
        low = vec_min(v, low);
    }
    *most = vec_top(high);
    *least = vec_bottom(low);
}

static int find(const float *x, int n, float value)
{
    const vec wanted = vec_set(value);
    int i = 0;
    for (; i + VEC_N <= n; i += VEC_N) {
        const uint32_t bits = vec_mask_bits(vec_equal(vec_load(x + i, VEC_N), wanted));
        if (bits) return i + __builtin_ctz(bits);
    }
    for (; i < n; i++)
        if (x[i] == value) break;
    return i;
}

FL_INLINE void quantise_some(float *x_hat, int8_t *codes, const float *x, int n,
                              const fl_row_quant *q)
{
    const vec v = vec_min(vec_max(vec_load(x, n), vec_set(q->clip_lo)), vec_set(q->clip_hi));
    const vec u = vec_mul(v, vec_set(q->inv));
    const vec r = vec_round(vec_min(vec_max(u, vec_set(q->lo)), vec_set(q->hi)));
    if (x_hat) vec_store(x_hat, vec_mul(r, vec_set(q->scale)), n);
    if (codes) vec_store_i8(codes, vec_add(r, vec_set(q->offset)), n);
}

static void quantise(float *x_hat, int8_t *codes, const float *x, int n, const fl_row_quant *q)
{
    int i = 0;
    for (; i + VEC_N <= n; i += VEC_N)
        quantise_some(x_hat ? x_hat + i : NULL, codes ? codes + i : NULL, x + i, VEC_N, q);
    if (i < n)
        quantise_some(x_hat ? x_hat + i : NULL, codes ? codes + i : NULL, x + i, n - i, q);
}

typedef struct lane_sums {
    vec scale, outside, above, below;
} lane_sums;

/* Rounded one step beyond the bounds, u tells whether its code is clamped: not where it merely
 * rounds to the bound. */
FL_INLINE void grad_some(lane_sums *s, float *dx, const float *grad_x, const float *x, int n,
                          const fl_row_quant *q)
{
    const vec g = vec_load(grad_x, n), at = vec_load(x, n), one = vec_set(1);
    const vec clip_lo = vec_set(q->clip_lo), clip_hi = vec_set(q->clip_hi);
    const vec lo = vec_set(q->lo), hi = vec_set(q->hi);
    const vec v = vec_min(vec_max(at, clip_lo), clip_hi);
    const vec u = vec_mul(v, vec_set(q->inv));
    const vec wide = vec_round(vec_min(vec_max(u, vec_sub(lo, one)), vec_add(hi, one)));
    const vec r = vec_min(vec_max(wide, lo), hi);
    const vec_mask outside = vec_mask_or(vec_less(wide, lo), vec_less(hi, wide));
    const vec_mask above = vec_less(clip_hi, at), below = vec_less(at, clip_lo);
    s->scale = vec_fma(g, vec_sub(r, vec_clear(outside, u)), s->scale);
    s->outside = vec_add(s->outside, vec_only(outside, g));
    s->above = vec_add(s->above, vec_only(above, g));
    s->below = vec_add(s->below, vec_only(below, g));
    vec_store(dx, vec_clear(vec_mask_or(outside, vec_mask_or(above, below)), g), n);
}

static fl_row_sums grad(float *dx, const float *g, const float *x, int n, const fl_row_quant *q)
{
    const vec zero = vec_set(0);
    lane_sums s = {zero, zero, zero, zero};
    int i = 0;
    for (; i + VEC_N <= n; i += VEC_N) grad_some(&s, dx + i, g + i, x + i, VEC_N, q);
    if (i < n) grad_some(&s, dx + i, g + i, x + i, n - i, q);
    return (fl_row_sums){vec_sum_wide(s.scale), vec_sum_wide(s.outside),
                         vec_sum_wide(s.above), vec_sum_wide(s.below)};
}

const fl_fake_quant_kernel VEC_NAME(fl__fake_quant_) = {
    .name = "fake_quant_" VEC_TEXT,
    .isa = VEC_ISA,
    .extremes = extremes,
    .find = find,
    .quantise = quantise,
    .grad = grad,
};
