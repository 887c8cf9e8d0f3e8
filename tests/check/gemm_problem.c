/* gemm_problem.c - drawing, running and comparing one GEMM. SPDX-License-Identifier: MIT */
#include "check/gemm_problem.h"

#include "kernels/gemm_rows.h"

#include <math.h>
#include <string.h>

/* A NaN that adding to its bits, as rounding to bf16 does, would carry into the sign. */
static const uint32_t carrying_nan = 0x7fffffff;

#define PERIOD 1000003 /* codes of large matrices repeat, at no multiple of a tile */

static int draw_code(fl_rng *rng, gemm_fill fill, int lo, int hi)
{
    switch (fill) {
    case FILL_EXTREMES: return ck_int(rng, 0, 1) ? lo : hi;
    case FILL_LOWEST: return lo;
    case FILL_MOSTLY_ZERO: return ck_int(rng, 0, 9) ? 0 : ck_int(rng, lo, hi);
    default: return ck_int(rng, lo, hi);
    }
}

static void draw_x(gemm_problem *p, fl_rng *rng)
{
    const int M = p->g.M, K = p->w.K;
    p->g.ldx = p->w.K_pad + 64 * ck_int(rng, 0, 1);
    p->x = ck_buf_new((size_t)M * (size_t)p->g.ldx); /* beyond K_pad it stays poison */
    p->x_sum = ck_buf_new((size_t)M * sizeof(int32_t));
    int8_t *x = p->x.data;
    int32_t *x_sum = p->x_sum.data;
    for (int m = 0; m < M; m++, x += p->g.ldx) {
        x_sum[m] = 0;
        for (int k = 0; k < p->w.K_pad; k++) {
            x[k] = k < K ? (int8_t)draw_code(rng, p->fill, -128, 127) : 0;
            x_sum[m] += x[k];
        }
    }
    p->g.x = p->x.data;
    p->g.x_sum = x_sum;
}

/* n positive floats of very different sizes. */
static ck_buf draw_scales(int n, fl_rng *rng)
{
    ck_buf b = ck_buf_new((size_t)n * sizeof(float));
    for (int i = 0; i < n; i++)
        ((float *)b.data)[i] = ldexpf(1 + (float)fl__rng_unit(rng), ck_int(rng, -20, 2));
    return b;
}

/* Anything but a NaN: which of two survives a sum is nobody's contract. */
static void draw_residual(gemm_problem *p, fl_rng *rng)
{
    fl_gemm *g = &p->g;
    g->ldr = p->w.N + ck_int(rng, 0, 3);
    p->residual = ck_buf_new(((size_t)(g->M - 1) * (size_t)g->ldr + (size_t)p->w.N) * 4);
    for (size_t i = 0; i < p->residual.n_bytes / sizeof(float); i++)
        ((float *)p->residual.data)[i] = (float)fl__rng_normal(rng);
    if (ck_int(rng, 0, 1)) g->residual = p->residual.data;
}

static void draw_epilogue(gemm_problem *p, fl_rng *rng)
{
    fl_gemm *g = &p->g;
    const int M = g->M, N = p->w.N;
    g->x_scale_stride = ck_int(rng, 0, 1);
    g->w_scale_stride = ck_int(rng, 0, 1);
    p->x_scale = draw_scales(g->x_scale_stride ? M : 1, rng);
    p->w_scale = draw_scales(g->w_scale_stride ? N : 1, rng);
    g->x_scale = p->x_scale.data;
    g->w_scale = p->w_scale.data;
    if (ck_int(rng, 0, 15) == 0) ((float *)p->x_scale.data)[0] = INFINITY;

    g->x_zero_stride = ck_int(rng, 0, 1);
    p->x_zero = ck_buf_new((g->x_zero_stride ? (size_t)M : 1) * sizeof(int32_t));
    for (size_t i = 0; i < p->x_zero.n_bytes / sizeof(int32_t); i++)
        ((int32_t *)p->x_zero.data)[i] = draw_code(rng, p->fill, -128, 127);
    if (ck_int(rng, 0, 2)) g->x_zero = p->x_zero.data;

    p->bias = draw_scales(N, rng);
    /* Not beside an infinite scale: which of two NaNs survives a sum is nobody's contract. */
    if (isfinite(g->x_scale[0]))
        memcpy((float *)p->bias.data + N - 1, &carrying_nan, sizeof carrying_nan);
    if (ck_int(rng, 0, 1)) g->bias = p->bias.data;
    draw_residual(p, rng);
}

gemm_problem gemm_problem_new(ck *t, int M, int N, int K, int bits, int draw)
{
    fl_rng rng =
        fl__rng_init(t->seed, M * 7919 + N * 104729 + K * 31 + bits + draw * 65537, "gemm");
    gemm_problem p = {.fill = (gemm_fill)ck_int(&rng, 0, N_FILLS - 1)};
    p.codes = ck_buf_new((size_t)N * (size_t)K);
    int8_t *codes = p.codes.data;
    for (size_t i = 0; i < p.codes.n_bytes; i++)
        codes[i] = i >= PERIOD ? codes[i - PERIOD]
                               : (int8_t)draw_code(&rng, p.fill, bits == 4 ? -8 : -127,
                                                   bits == 4 ? 7 : 127);
    ck_true(t, fl__weight_pack(&p.w, codes, N, K, bits, NULL) == FL_OK);
    p.g.M = M;
    draw_x(&p, &rng);
    draw_epilogue(&p, &rng);
    p.g.y_bf16 = ck_int(&rng, 0, 1);
    p.g.ldy = N + ck_int(&rng, 0, 5);
    p.y = ck_buf_new((size_t)M * (size_t)p.g.ldy * (p.g.y_bf16 ? 2 : 4));
    p.y_ref = ck_buf_new(p.y.n_bytes);
    return p;
}

void gemm_problem_free(gemm_problem *p)
{
    ck_buf *const all[] = {&p->codes, &p->x,        &p->x_sum,   &p->x_scale, &p->x_zero,
                           &p->bias,  &p->residual, &p->w_scale, &p->y,       &p->y_ref};
    for (size_t i = 0; i < FL_COUNT(all); i++) ck_buf_free(all[i]);
    fl__weight_fini(&p->w);
}

static void complain(ck *t, const gemm_problem *p, const char *what)
{
    const fl_gemm *g = &p->g;
    ck_complain(t,
                "%s: M %d N %d K %d ldx %d ldy %d fill %d%s%s%s%s%s%s seed %llu", what, g->M,
                p->w.N, p->w.K, (int)g->ldx, (int)g->ldy, (int)p->fill,
                g->x_scale_stride ? " x_scale[M]" : "", g->w_scale_stride ? " w_scale[N]" : "",
                !g->x_zero ? "" : g->x_zero_stride ? " x_zero[M]" : " x_zero[1]",
                g->bias ? " bias" : "", g->residual ? " residual" : "",
                g->y_bf16 ? " bf16" : "", (unsigned long long)t->seed);
}

void gemm_problem_run(ck *t, gemm_problem *p, const fl_gemm_kernel *k, int m0, int m1, int n0,
                      int n1)
{
    ck_buf scratch = ck_buf_new(k->scratch_bytes);
    ck_buf_poison(&p->y);
    p->g.w = &p->w;
    p->g.y = p->y.data;
    for (int m = m0; m < m1; m += k->tile_M)
        for (int n = n0; n < n1; n += k->tile_N)
            k->run(&p->g, m, FL_MIN(m + k->tile_M, m1), n, FL_MIN(n + k->tile_N, n1),
                   scratch.data);
    if (!ck_buf_intact(&p->y)) complain(t, p, "wrote beside y");
    if (!ck_buf_intact(&scratch)) complain(t, p, "wrote beside its scratch");
    ck_buf_free(&scratch);
}

static uint16_t bf16_nearest(float f)
{
    /* The candidate below and the one above; ties go to the even one. */
    uint32_t u;
    float low, high;
    memcpy(&u, &f, sizeof u);
    if (isnan(f)) return (uint16_t)(u >> 16 | 0x40);
    const uint32_t below = u & 0xffff0000u, above = below + 0x10000u;
    memcpy(&low, &below, sizeof low);
    memcpy(&high, &above, sizeof high);
    if (isinf(f)) return (uint16_t)(below >> 16);
    if (isinf(high)) return (uint16_t)((u & 0xffffu) >= 0x8000u ? above >> 16 : below >> 16);
    const double to_low = fabs((double)f - low), to_high = fabs((double)high - f);
    const bool up = to_high < to_low || (to_high == to_low && (below >> 16 & 1));
    return (uint16_t)(up ? above >> 16 : below >> 16);
}

void gemm_problem_define(gemm_problem *p, int m0, int m1, int n0, int n1)
{
    const fl_gemm *g = &p->g;
    const int8_t *codes = p->codes.data;
    ck_buf_poison(&p->y_ref);
    for (int m = m0; m < m1; m++)
        for (int n = n0; n < n1; n++) {
            const int zero = g->x_zero ? g->x_zero[m * g->x_zero_stride] : 0;
            int64_t acc = 0;
            for (int k = 0; k < p->w.K; k++)
                acc += (int64_t)(g->x[m * g->ldx + k] - zero) * codes[n * p->w.K + k];
            const float scale =
                g->x_scale[m * g->x_scale_stride] * g->w_scale[n * g->w_scale_stride];
            float y = (float)acc * scale;
            if (g->bias) y += g->bias[n];
            if (g->residual) y += g->residual[m * g->ldr + n];
            if (g->y_bf16)
                ((uint16_t *)p->y_ref.data)[m * g->ldy + n] = bf16_nearest(y);
            else
                ((float *)p->y_ref.data)[m * g->ldy + n] = y;
        }
}

void gemm_problem_refer(gemm_problem *p, int m0, int m1, int n0, int n1)
{
    ck_buf_poison(&p->y_ref);
    p->g.w = &p->w;
    p->g.y = p->y_ref.data;
    fl__gemm_ref(&p->g, m0, m1, n0, n1, NULL);
}

void gemm_problem_compare(ck *t, const gemm_problem *p, const char *what)
{
    if (memcmp(p->y.data, p->y_ref.data, p->y.n_bytes) != 0) complain(t, p, what);
}
