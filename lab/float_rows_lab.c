/* float_rows_lab.c - the float rows beside each other, one thread: products of a pack of 512
 * outputs and the attention page. Links the library. SPDX-License-Identifier: MIT */
#include "base/clock.h"
#include "base/isa.h"
#include "base/mem.h"
#include "kernels/attention.h"
#include "kernels/gemm_f32.h"

#include <stdio.h>
#include <stdlib.h>

static float *floats(size_t n)
{
    float *p = fl__alloc(n, sizeof *p);
    for (size_t i = 0; i < n; i++) p[i] = (float)(i * 2654435761u % 1000) / 1000 - 0.5f;
    return p;
}

/* M rows, 512 outputs, K channels of bf16 weights, packed once. */
static double gemm_s(const fl_gemm_f32_kernel *k, int M, int K, bool few)
{
    enum { N = 512 };
    const int n_panels = N / k->panel;
    static uint16_t w[512 * 4096];
    for (size_t i = 0; i < 512u * (size_t)K; i++) w[i] = (uint16_t)(0x3e00 + i * 40503u % 256);
    float *x = floats((size_t)M * (size_t)K), *y = floats((size_t)M * N);
    const size_t panel = (size_t)K * (size_t)k->panel;
    float *packed = fl__alloc((size_t)n_panels * panel, 4);
    float *sums = fl__alloc((size_t)M * 8 * (size_t)k->panel, 4);
    for (int p = 0; p < n_panels; p++)
        k->pack[FL_FLOAT_BF16](packed + (size_t)p * panel, k->panel,
                               w + (size_t)p * (size_t)k->panel * (size_t)K, K, k->panel, K);
    double best = 1e9;
    for (int r = 0; r < 7; r++) {
        const double start = fl__now_s();
        if (few) k->few[FL_FLOAT_BF16](y, N, x, K, w, K, M, N, K);
        for (int p = 0; p < n_panels && !few; p++)
            for (int at = 0; at < K; at += FL_GEMM_F32_PIECE) {
                const int n = K - at < FL_GEMM_F32_PIECE ? K - at : FL_GEMM_F32_PIECE;
                const fl_gemm_f32_part part = {.x = x + at,
                                               .panel = packed + (size_t)p * panel +
                                                        (size_t)at * (size_t)k->panel,
                                               .sums = sums,
                                               .y = y + p * k->panel,
                                               .ldx = K,
                                               .ldy = N,
                                               .M = M,
                                               .n = k->panel,
                                               .K = n,
                                               .first = at == 0,
                                               .last = at + n == K};
                k->run(&part);
            }
        const double s = fl__now_s() - start;
        if (s < best) best = s;
    }
    fl__free(&x);
    fl__free(&y);
    fl__free(&packed);
    fl__free(&sums);
    return best;
}

static double page_s(const fl_attention_kernel *k, int D, int n_q)
{
    float *q = floats((size_t)n_q * (size_t)D), *o = floats((size_t)n_q * (size_t)D),
          *kt = floats(64 * (size_t)D), *v = floats(64 * (size_t)D);
    float m[64], l[64];
    double best = 1e9;
    for (int r = 0; r < 15; r++) {
        for (int i = 0; i < 64; i++) m[i] = -1e30f, l[i] = 0;
        const double start = fl__now_s();
        for (int i = 0; i < 50; i++) k->run(o, m, l, q, D, n_q, 64, kt, v, D, 0.1f);
        const double s = (fl__now_s() - start) / 50;
        if (s < best) best = s;
    }
    fl__free(&q);
    fl__free(&o);
    fl__free(&kt);
    fl__free(&v);
    return best;
}

int main(void)
{
    const uint32_t isa = fl__isa_detect();
    static const struct {
        int M, K;
        bool few;
    } shapes[] = {{240, 512, false}, {240, 1024, false}, {240, 4096, false}, {1, 512, true},
                  {4, 512, true},    {1, 4096, true},    {4, 4096, true}};
    for (int i = 0; i < fl__n_gemm_f32_kernels; i++) {
        const fl_gemm_f32_kernel *k = &fl__gemm_f32_kernels[i];
        if (k->isa == 0 || (k->isa & ~isa)) continue;
        for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++) {
            if (shapes[s].few && (!k->few_rows || k->few_rows < shapes[s].M)) continue;
            const double t = gemm_s(k, shapes[s].M, shapes[s].K, shapes[s].few);
            printf("%-24s %d x 512 x %d: %.1f GFLOP/s\n", k->name, shapes[s].M, shapes[s].K,
                   2e-9 * shapes[s].M * 512 * shapes[s].K / t);
        }
    }
    for (int i = 0; i < fl__n_attention_kernels; i++) {
        const fl_attention_kernel *k = &fl__attention_kernels[i];
        if (k->isa == 0 || (k->isa & ~isa)) continue;
        printf("%-24s ns a page: D 64, 64 rows %.0f; D 128, 64 rows %.0f; D 64, 1 row %.0f; D "
               "128, 1 row %.0f\n",
               k->name, 1e9 * page_s(k, 64, 64), 1e9 * page_s(k, 128, 64),
               1e9 * page_s(k, 64, 1), 1e9 * page_s(k, 128, 1));
    }
    return 0;
}
