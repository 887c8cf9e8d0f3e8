/* check_gemm_f32.c - rows of the float product table against the chain that the contract
 * defines, bit for bit: fused in all rows but _ref. Many rows in panels, K cut in two, and few
 * rows straight from the weights are the same chain.
 * SPDX-License-Identifier: MIT */
#include "check/ck.h"

#include "base/float16.h"
#include "kernels/gemm_f32.h"

#include <math.h>
#include <string.h>

/* Rows of x, w and y are 3, 1 and 2 elements longer than they need to be, so nothing is
 * aligned. What lies between the rows of y must stay. */
typedef struct product {
    int M, N, K, ldx, ldw, ldy;
    fl_float_type type;
    ck_buf x, w, y, panel, sums;
    ck_buf want; /* f32 [M, N] */
} product;

static size_t elem_bytes(fl_float_type type)
{
    return type == FL_FLOAT_F32 ? sizeof(float) : sizeof(uint16_t);
}

static float weight(const product *p, int n, int k)
{
    const int at = n * p->ldw + k;
    const uint16_t *half = p->w.data;
    return p->type == FL_FLOAT_F32    ? ((const float *)p->w.data)[at]
           : p->type == FL_FLOAT_BF16 ? fl__bf16_to_f32(half[at])
                                      : fl__f16_to_f32(half[at]);
}

static product product_new(ck *t, const fl_gemm_f32_kernel *k, fl_float_type type, int M, int N,
                           int K)
{
    fl_rng rng = fl__rng_init(t->seed, M * 100000 + N * 1000 + K, "gemm_f32");
    product p = {.M = M, .N = N, .K = K, .type = type};
    p.ldx = K + 3, p.ldw = K + 1, p.ldy = N + 2;
    const int n_x = (M - 1) * p.ldx + K, n_w = (N - 1) * p.ldw + K;
    p.x = ck_buf_new((size_t)n_x * sizeof(float));
    p.w = ck_buf_new((size_t)n_w * elem_bytes(type));
    p.y = ck_buf_new((size_t)((M - 1) * p.ldy + N) * sizeof(float));
    p.panel = ck_buf_new((size_t)((K + 7) / 8 * 8 * k->panel) * sizeof(float));
    p.sums = ck_buf_new((size_t)(M * FL_GEMM_F32_CHAINS * k->panel) * sizeof(float));
    p.want = ck_buf_new((size_t)(M * N) * sizeof(float));
    for (int i = 0; i < n_x; i++)
        ((float *)p.x.data)[i] = (float)(fl__rng_normal(&rng) * (i % 7 == 0 ? 50 : 1));
    for (int i = 0; i < n_w; i++) {
        const float w = (float)fl__rng_normal(&rng);
        if (type == FL_FLOAT_F32)
            ((float *)p.w.data)[i] = w;
        else if (type == FL_FLOAT_BF16)
            ((uint16_t *)p.w.data)[i] = fl__f32_to_bf16(w);
        else /* |w| <= 4 */
            ((uint16_t *)p.w.data)[i] =
                (uint16_t)(ck_int(&rng, 0, 1) << 15 | ck_int(&rng, 0, 0x4400));
    }
    for (int i = 0; i < M * N; i++) {
        const float *x = (const float *)p.x.data + i / N * p.ldx;
        float s[FL_GEMM_F32_CHAINS] = {0};
        for (int c = 0; c < K; c++) {
            const float w = weight(&p, i % N, c);
            float *sum = &s[c % FL_GEMM_F32_CHAINS];
            *sum = k->isa ? fmaf(x[c], w, *sum) : *sum + x[c] * w;
        }
        ((float *)p.want.data)[i] =
            ((s[0] + s[4]) + (s[1] + s[5])) + ((s[2] + s[6]) + (s[3] + s[7]));
    }
    return p;
}

static void product_free(product *p)
{
    ck_buf *const bufs[] = {&p->x, &p->w, &p->y, &p->panel, &p->sums, &p->want};
    for (size_t i = 0; i < FL_COUNT(bufs); i++) ck_buf_free(bufs[i]);
}

static void compare(ck *t, product *p, const char *what)
{
    const float *y = p->y.data;
    uint8_t gap[2 * sizeof(float)];
    memset(gap, 0xa5, sizeof gap);
    bool right = ck_buf_intact(&p->y) && ck_buf_intact(&p->panel) && ck_buf_intact(&p->sums);
    for (int m = 0; m < p->M; m++) {
        const float *want = (const float *)p->want.data + m * p->N;
        if (memcmp(y + m * p->ldy, want, (size_t)p->N * sizeof *y)) right = false;
        if (m + 1 < p->M && memcmp(y + m * p->ldy + p->N, gap, sizeof gap)) right = false;
    }
    if (!right)
        ck_complain(t, "%s: M %d, N %d, K %d, type %d, seed %llu", what, p->M, p->N, p->K,
                    (int)p->type, (unsigned long long)t->seed);
    ck_buf_poison(&p->y);
}

/* K in parts of `cut` channels. */
static void in_panels(const fl_gemm_f32_kernel *k, product *p, int cut)
{
    for (int n = 0; n < p->N; n += k->panel)
        for (int c = 0; c < p->K; c += cut) {
            const fl_gemm_f32_part part = {.x = (const float *)p->x.data + c,
                                           .panel = p->panel.data,
                                           .sums = p->sums.data,
                                           .y = (float *)p->y.data + n,
                                           .ldx = p->ldx,
                                           .ldy = p->ldy,
                                           .M = p->M,
                                           .n = FL_MIN(k->panel, p->N - n),
                                           .K = FL_MIN(cut, p->K - c),
                                           .first = c == 0,
                                           .last = c + cut >= p->K};
            const size_t at = (size_t)(n * p->ldw + c) * elem_bytes(p->type);
            k->pack[p->type](p->panel.data, k->panel, (const uint8_t *)p->w.data + at, p->ldw,
                             part.n, part.K);
            k->run(&part);
        }
}

static void one(ck *t, const fl_gemm_f32_kernel *k, fl_float_type type, int M, int N, int K)
{
    product p = product_new(t, k, type, M, N, K);
    in_panels(k, &p, K);
    compare(t, &p, "panels");
    in_panels(k, &p, FL_GEMM_F32_PIECE);
    compare(t, &p, "K in parts");
    if (M <= k->few_rows) {
        k->few[type](p.y.data, p.ldy, p.x.data, p.ldx, p.w.data, p.ldw, M, N, K);
        compare(t, &p, "few rows");
    }
    product_free(&p);
}

static void row(ck *t, const fl_gemm_f32_kernel *k)
{
    static const int rows[] = {1, 2, 3, 4, 5, 6, 7, 11, 12, 13, 25, 31};
    static const int outputs[] = {1, 7, 8, 9, 15, 16, 17, 31, 32, 33, 64};
    static const int channels[] = {1, 2, 7, 8, 9, 16, 63, 160, 300, 520};
    for (int type = 0; type < FL_N_FLOAT_TYPES; type++)
        for (size_t m = 0; m < FL_COUNT(rows); m++)
            for (size_t n = 0; n < FL_COUNT(outputs); n++)
                for (size_t c = 0; c < FL_COUNT(channels); c++)
                    if ((m + n + c + (size_t)type) % 3 == 0)
                        one(t, k, (fl_float_type)type, rows[m], outputs[n], channels[c]);
}

void check_gemm_f32(ck *t)
{
    for (int i = 0; i < fl__n_gemm_f32_kernels; i++) {
        const fl_gemm_f32_kernel *k = &fl__gemm_f32_kernels[i];
        if (k->isa & ~t->isa) {
            ck_skip(t, k->name, "this machine cannot");
            continue;
        }
        if (!ck_begin(t, k->name)) continue;
        row(t, k);
        ck_end(t);
    }
}
