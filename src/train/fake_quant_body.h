/* fake_quant_body.h - the loops of fake_quant_rows.h, compiled once per instruction set.
 * SPDX-License-Identifier: MIT */
#include "train/fake_quant_rows.h"
#include "train/vec.h"

static void extremes(float *most, float *least, const float *x, int n)
{
    vf high = vf_set(0), low = vf_set(0);
    int i = 0;
    for (; i + VEC_N <= n; i += VEC_N) {
        const vf v = vf_load(x + i, VEC_N);
        high = vf_max(v, high); /* NaN: high stays */
        low = vf_min(v, low);
    }
    if (i < n) { /* the zeros behind the row change neither */
        const vf v = vf_load(x + i, n - i);
        high = vf_max(v, high);
        low = vf_min(v, low);
    }
    *most = vf_largest(high);
    *least = vf_smallest(low);
}

static int find(const float *x, int n, float value)
{
    const vf wanted = vf_set(value);
    int i = 0;
    for (; i + VEC_N <= n; i += VEC_N) {
        const uint32_t bits = vmask_bits(vf_equal(vf_load(x + i, VEC_N), wanted));
        if (bits) return i + __builtin_ctz(bits);
    }
    for (; i < n; i++)
        if (x[i] == value) break;
    return i;
}

VEC_INLINE void quantise_some(float *x_hat, int8_t *codes, const float *x, int n,
                              const fl_row_quant *q)
{
    const vf v = vf_min(vf_max(vf_load(x, n), vf_set(q->clip_lo)), vf_set(q->clip_hi));
    const vf u = vf_mul(v, vf_set(q->inv));
    const vf r = vf_rne(vf_min(vf_max(u, vf_set(q->lo)), vf_set(q->hi)));
    if (x_hat) vf_store(x_hat, vf_mul(r, vf_set(q->scale)), n);
    if (codes) vf_store_i8(codes, vf_add(r, vf_set(q->offset)), n);
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
    vf scale, outside, above, below;
} lane_sums;

/* Rounded one step beyond the bounds, u tells whether its code is clamped: not where it merely
 * rounds to the bound. */
VEC_INLINE void grad_some(lane_sums *s, float *dx, const float *grad_x, const float *x, int n,
                          const fl_row_quant *q)
{
    const vf g = vf_load(grad_x, n), at = vf_load(x, n), one = vf_set(1);
    const vf clip_lo = vf_set(q->clip_lo), clip_hi = vf_set(q->clip_hi);
    const vf lo = vf_set(q->lo), hi = vf_set(q->hi);
    const vf v = vf_min(vf_max(at, clip_lo), clip_hi);
    const vf u = vf_mul(v, vf_set(q->inv));
    const vf wide = vf_rne(vf_min(vf_max(u, vf_sub(lo, one)), vf_add(hi, one)));
    const vf r = vf_min(vf_max(wide, lo), hi);
    const vmask outside = vmask_or(vf_less(wide, lo), vf_less(hi, wide));
    const vmask above = vf_less(clip_hi, at), below = vf_less(at, clip_lo);
    s->scale = vf_fma(g, vf_sub(r, vf_clear(outside, u)), s->scale);
    s->outside = vf_add(s->outside, vf_only(outside, g));
    s->above = vf_add(s->above, vf_only(above, g));
    s->below = vf_add(s->below, vf_only(below, g));
    vf_store(dx, vf_clear(vmask_or(outside, vmask_or(above, below)), g), n);
}

static fl_row_sums grad(float *dx, const float *g, const float *x, int n, const fl_row_quant *q)
{
    const vf zero = vf_set(0);
    lane_sums s = {zero, zero, zero, zero};
    int i = 0;
    for (; i + VEC_N <= n; i += VEC_N) grad_some(&s, dx + i, g + i, x + i, VEC_N, q);
    if (i < n) grad_some(&s, dx + i, g + i, x + i, n - i, q);
    return (fl_row_sums){vf_sum(s.scale), vf_sum(s.outside), vf_sum(s.above), vf_sum(s.below)};
}

const fl_fake_quant_kernel VEC_NAME(fl__fake_quant_) = {
    .name = "fake_quant_" VEC_TEXT,
    .isa = VEC_ISA,
    .extremes = extremes,
    .find = find,
    .quantise = quantise,
    .grad = grad,
};
