/* check_flatten.c - flattening by explicit copies and folded into one 8-bit code give the same
 * integer sums, hence the same bytes of y: quantise row x weight bits x zero point.
 * SPDX-License-Identifier: MIT */
#include "check/ck.h"

#include "base/mem.h"
#include "kernels/gemm.h"
#include "kernels/quantize.h"

#include <stdio.h>
#include <string.h>

enum { M = 19, N = 37, C = 70, MAX_COPIES = 18, MAX_WIDTH = C * MAX_COPIES };

/* Channel c is clamped at +-copies[c] * 7; its copies 2, 3, .. follow all first copies. */
typedef struct flatten_case {
    int copies[C], width; /* width: C and the extra copies */
    float lo[C], hi[C], premul[C], x[M * C];
    int32_t src[MAX_WIDTH], off[MAX_WIDTH];
    int8_t w[N * C], w_wide[N * MAX_WIDTH];
    fl_quantize_static folded, explicit;
} flatten_case;

static void draw(flatten_case *f, ck *t, int bits, int zero)
{
    fl_rng rng = fl__rng_init(t->seed, bits * 256 + zero, "flatten");
    f->width = C;
    for (int c = 0; c < C; c++) {
        f->copies[c] = ck_int(&rng, 0, 2) ? 1 : ck_int(&rng, 2, MAX_COPIES);
        f->hi[c] = (float)(7 * f->copies[c]);
        f->lo[c] = -f->hi[c];
        f->premul[c] = 0.5f + (float)fl__rng_unit(&rng);
        for (int i = 1; i < f->copies[c]; i++, f->width++) {
            f->src[f->width - C] = c;
            f->off[f->width - C] = i * 7;
        }
    }
    for (int i = 0; i < M * C; i++) f->x[i] = (float)(fl__rng_normal(&rng) * 60);
    for (int n = 0; n < N; n++) {
        for (int c = 0; c < C; c++)
            f->w[n * C + c] = (int8_t)ck_int(&rng, bits == 4 ? -8 : -127, bits == 4 ? 7 : 127);
        int8_t *wide = f->w_wide + n * f->width;
        memcpy(wide, f->w + n * C, C);
        for (int p = C; p < f->width; p++) wide[p] = f->w[n * C + f->src[p - C]];
    }
    f->folded = (fl_quantize_static){.n_channels = C, .ld = 128, .inv_scale = 1, .zero = zero,
                                     .first_lo = -127, .first_hi = 127, .cap = 7,
                                     .premul = f->premul, .lo = f->lo, .hi = f->hi,
                                     .extra_src = f->src, .extra_off = f->off};
    f->explicit = f->folded;
    f->explicit.n_extra = f->width - C;
    f->explicit.ld = (f->width + 63) / 64 * 64;
    f->explicit.first_lo = -7;
    f->explicit.first_hi = 7;
}

/* x -> codes -> y, with the static spec and the weights [N, K]. */
static void forward(ck *t, const fl_quantize_kernel *k, const flatten_case *f,
                    const fl_quantize_static *spec, const int8_t *weights, int K, int bits,
                    ck_buf *codes, float *y)
{
    static const float x_scale = 0.03f, w_scale = 0.7f;
    const fl_exec ex = {t->isa, 1};
    const int32_t x_zero = spec->zero;
    int32_t x_sum[M];
    fl_weight w;
    ck_buf scratch = ck_buf_new(fl__gemm_scratch_bytes(&ex));
    *codes = ck_buf_new((size_t)M * (size_t)spec->ld);
    ck_true(t, fl__weight_pack(&w, weights, N, K, bits, NULL) == FL_OK);
    for (int m = 0; m < M; m++)
        k->run_static((int8_t *)codes->data + m * spec->ld, &x_sum[m], f->x + m * C, spec);
    const fl_gemm g = {.x = codes->data,
                       .ldx = spec->ld,
                       .x_sum = x_sum,
                       .x_scale = &x_scale,
                       .x_zero = &x_zero,
                       .w = &w,
                       .w_scale = &w_scale,
                       .y = y,
                       .ldy = N,
                       .M = M};
    fl__gemm_run(&ex, &g, 1, scratch.data);
    fl__weight_fini(&w);
    ck_buf_free(&scratch);
}

/* Digits without their zero points add up to the folded code. */
static void digits_add_up(ck *t, const flatten_case *f, const ck_buf *folded,
                          const ck_buf *explicit)
{
    const int zero = f->folded.zero;
    for (int m = 0; m < M; m++) {
        const int8_t *wide = (int8_t *)explicit->data + m * f->explicit.ld;
        int sum[C];
        for (int c = 0; c < C; c++) sum[c] = wide[c] - zero;
        for (int p = C; p < f->width; p++) sum[f->src[p - C]] += wide[p] - zero;
        for (int c = 0; c < C; c++)
            if (sum[c] != ((int8_t *)folded->data)[m * f->folded.ld + c] - zero)
                ck_complain(t, "digits of [%d, %d] add up to %d", m, c, sum[c]);
    }
}

static void both_ways(ck *t, const fl_quantize_kernel *k, flatten_case *f, int bits, int zero)
{
    float y[2][M * N];
    ck_buf folded, explicit;
    draw(f, t, bits, zero);
    forward(t, k, f, &f->folded, f->w, C, bits, &folded, y[0]);
    forward(t, k, f, &f->explicit, f->w_wide, f->width, bits, &explicit, y[1]);
    digits_add_up(t, f, &folded, &explicit);
    if (memcmp(y[0], y[1], sizeof y[0]) != 0)
        ck_complain(t, "folded and explicit differ: %d bits, zero %d, seed %llu", bits, zero,
                    (unsigned long long)t->seed);
    ck_buf_free(&folded);
    ck_buf_free(&explicit);
}

void check_flatten(ck *t)
{
    flatten_case *f = fl__alloc(1, sizeof *f);
    for (int r = 0; f && r < fl__n_quantize_kernels; r++) {
        const fl_quantize_kernel *k = &fl__quantize_kernels[r];
        char name[64];
        (void)snprintf(name, sizeof name, "flatten, folded = explicit, %s", k->name);
        if (k->isa & ~t->isa) {
            ck_skip(t, name, "instruction set missing or masked");
        } else if (ck_begin(t, name)) {
            for (int bits = 4; bits <= 8; bits += 4)
                for (int zero = -1; zero <= 1; zero++) both_ways(t, k, f, bits, zero);
            ck_end(t);
        }
    }
    fl__free(&f);
}
