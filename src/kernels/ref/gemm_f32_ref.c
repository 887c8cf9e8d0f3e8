/* gemm_f32_ref.c - float products in plain C. SPDX-License-Identifier: MIT */
#include "base/float16.h"
#include "kernels/gemm_f32.h"

#include <string.h>

fl_gemm_f32_run_fn fl__gemm_f32_ref;
fl_gemm_f32_pack_fn fl__gemm_f32_pack_f32_ref, fl__gemm_f32_pack_bf16_ref,
    fl__gemm_f32_pack_f16_ref;

enum { PANEL = 16, CHAINS = FL_GEMM_F32_CHAINS, PIECE = FL_GEMM_F32_PIECE };

/* Of channel k among K in a panel. */
static int place(int k, int K)
{
    const int k0 = k / PIECE * PIECE, left = K - k0 < PIECE ? K - k0 : PIECE;
    return k0 + k % CHAINS * ((left + CHAINS - 1) / CHAINS) + (k - k0) / CHAINS;
}

static void add_channel(float *sums, float x, const float *w)
{
    for (int i = 0; i < PANEL; i++) sums[i] += x * w[i];
}

void fl__gemm_f32_ref(const fl_gemm_f32_part *p)
{
    for (int m = 0; m < p->M; m++) {
        const float *x = p->x + m * p->ldx;
        float(*s)[PANEL] = (float(*)[PANEL])(p->sums + m * CHAINS * PANEL);
        if (p->first) memset(s, 0, CHAINS * sizeof *s);
        for (int k = 0; k < p->K; k++)
            add_channel(s[k % CHAINS], x[k], p->panel + place(k, p->K) * PANEL);
        for (int i = 0; i < p->n && p->last; i++)
            p->y[m * p->ldy + i] = ((s[0][i] + s[4][i]) + (s[1][i] + s[5][i])) +
                                   ((s[2][i] + s[6][i]) + (s[3][i] + s[7][i]));
    }
}

static float from_f32(const void *w, int64_t at)
{
    return ((const float *)w)[at];
}

static float from_bf16(const void *w, int64_t at)
{
    return fl__bf16_to_f32(((const uint16_t *)w)[at]);
}

static float from_f16(const void *w, int64_t at)
{
    return fl__f16_to_f32(((const uint16_t *)w)[at]);
}

static inline void pack(float *dst, int panel, const void *w, int64_t ldw, int n, int K,
                        float (*get)(const void *w, int64_t at))
{
    for (int k = 0; k < K; k++)
        for (int i = 0; i < panel; i++)
            dst[place(k, K) * panel + i] = get(w, (i < n ? i : n - 1) * ldw + k);
}

void fl__gemm_f32_pack_f32_ref(float *dst, int panel, const void *w, int64_t ldw, int n, int K)
{
    pack(dst, panel, w, ldw, n, K, from_f32);
}

void fl__gemm_f32_pack_bf16_ref(float *dst, int panel, const void *w, int64_t ldw, int n, int K)
{
    pack(dst, panel, w, ldw, n, K, from_bf16);
}

void fl__gemm_f32_pack_f16_ref(float *dst, int panel, const void *w, int64_t ldw, int n, int K)
{
    pack(dst, panel, w, ldw, n, K, from_f16);
}
