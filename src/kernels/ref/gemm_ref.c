/* gemm_ref.c - integer GEMM in plain C: what gemm.h defines, in the order of its formulas.
 *
 * Reads the packed layout and nothing derived (neither x_sum nor scratch), so that a wrong sum
 * from the quantise kernels shows up as a difference between this row and the others.
 * SPDX-License-Identifier: MIT */
#include "kernels/gemm_rows.h"

#include <string.h>

static int weight_code(const fl_weight *w, int n, int k)
{
    const uint8_t *panel = w->data + (size_t)(n / 16) * (size_t)w->K_pad * 2 * (size_t)w->bits;
    const int lane = n % 16 * 4 + k % 4;
    if (w->bits == 8) return (int8_t)panel[k / 4 * 64 + lane];
    const int byte = panel[k / 8 * 64 + lane];
    return (k % 8 < 4 ? byte & 15 : byte >> 4) - 8;
}

static uint16_t bf16_from_f32(float f)
{
    uint32_t u;
    memcpy(&u, &f, sizeof u);
    if ((u & 0x7fffffffu) > 0x7f800000u) return (uint16_t)(u >> 16 | 0x40); /* quiet NaN */
    return (uint16_t)((u + 0x7fff + (u >> 16 & 1)) >> 16);
}

static void put(const fl_gemm *g, int m, int n, int32_t acc)
{
    const int32_t zero = g->x_zero ? g->x_zero[m * g->x_zero_stride] : 0;
    const float scale = g->x_scale[m * g->x_scale_stride] * g->w_scale[n * g->w_scale_stride];
    float y = (float)(acc - zero * g->w->col_sum[n]) * scale;
    if (g->bias) y = y + g->bias[n];
    if (g->residual) y = y + g->residual[m * g->ldr + n];
    const int64_t at = m * g->ldy + n;
    if (g->y_bf16)
        ((uint16_t *)g->y)[at] = bf16_from_f32(y);
    else
        ((float *)g->y)[at] = y;
}

void fl__gemm_ref(const fl_gemm *g, int m0, int m1, int n0, int n1, void *scratch)
{
    (void)scratch;
    for (int m = m0; m < m1; m++) {
        const int8_t *x = g->x + m * g->ldx;
        for (int n = n0; n < n1; n++) {
            int32_t acc = 0;
            for (int k = 0; k < g->w->K; k++) acc += x[k] * weight_code(g->w, n, k);
            put(g, m, n, acc);
        }
    }
}
