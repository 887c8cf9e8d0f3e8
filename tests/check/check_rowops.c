/* check_rowops.c - dot products against double sums, silu_mul against its reference.
 * SPDX-License-Identifier: MIT */
#include "check/ck.h"

#include "base/float16.h"
#include "kernels/dot.h"
#include "kernels/rowops.h"

#include <math.h>
#include <string.h>

/* ---- dot --------------------------------------------------------------------------------- */

/* n * 2^-23 * sum |x w|, as the contract says; pointers off by one element. */
static void dot_one(ck *t, const fl_dot_kernel *k, int n)
{
    fl_rng rng = fl__rng_init(t->seed, n, "dot");
    ck_buf x = ck_buf_new((size_t)(n + 1) * sizeof(float)), w = ck_buf_new((size_t)(n + 1) * 4);
    ck_buf b = ck_buf_new((size_t)(n + 1) * 2), h = ck_buf_new((size_t)(n + 1) * 2);
    float *xs = (float *)x.data + 1, *ws = (float *)w.data + 1;
    uint16_t *bs = (uint16_t *)b.data + 1, *hs = (uint16_t *)h.data + 1;
    double exact[3] = {0}, size[3] = {0};
    for (int i = 0; i < n; i++) {
        xs[i] = (float)(fl__rng_normal(&rng) * (i % 7 == 0 ? 50 : 1));
        ws[i] = (float)fl__rng_normal(&rng);
        bs[i] = fl__f32_to_bf16(ws[i]);
        hs[i] = (uint16_t)(ck_int(&rng, 0, 1) << 15 | ck_int(&rng, 0, 0x4400)); /* |w| <= 4 */
        const double as_float[3] = {ws[i], fl__bf16_to_f32(bs[i]), fl__f16_to_f32(hs[i])};
        for (int type = 0; type < 3; type++) {
            exact[type] += xs[i] * as_float[type];
            size[type] += fabs(xs[i] * as_float[type]);
        }
    }
    const double got[3] = {k->f32(xs, ws, n), k->bf16(xs, bs, n), k->f16(xs, hs, n)};
    for (int type = 0; type < 3; type++)
        if (!(fabs(got[type] - exact[type]) <= n * 0x1p-23 * size[type]))
            ck_complain(t, "n %d, type %d: %.9g, exact %.9g, seed %llu", n, type, got[type],
                        exact[type], (unsigned long long)t->seed);
    ck_buf_free(&x);
    ck_buf_free(&w);
    ck_buf_free(&b);
    ck_buf_free(&h);
}

static void dot_rows(ck *t)
{
    static const int large[] = {63, 64, 65, 127, 160, 448, 1000, 4096, 14336};
    for (int i = 0; i < fl__n_dot_kernels; i++) {
        const fl_dot_kernel *k = &fl__dot_kernels[i];
        if (k->isa & ~t->isa) {
            ck_skip(t, k->name, "this machine cannot");
            continue;
        }
        if (!ck_begin(t, k->name)) continue;
        for (int n = 1; n <= 50; n++) dot_one(t, k, n);
        for (size_t n = 0; n < FL_COUNT(large); n++) dot_one(t, k, large[n]);
        ck_end(t);
    }
}

/* ---- silu_mul ---------------------------------------------------------------------------- */

static void silu_one(ck *t, const fl_silu_mul_kernel *k, int n)
{
    static const float odd[] = {0,     -0.0f,  1e-30f, -1e-30f, 20,   -20,   87,   -87,
                                88.5f, -88.5f, 200,    -200,    1e4f, -1e4f, 1e6f, -1e6f};
    const fl_silu_mul_kernel *ref = &fl__silu_mul_kernels[fl__n_silu_mul_kernels - 1];
    fl_rng rng = fl__rng_init(t->seed, n, "silu");
    const size_t n_bytes = (size_t)n * sizeof(float);
    ck_buf x = ck_buf_new(n_bytes), u = ck_buf_new(n_bytes), y = ck_buf_new(n_bytes),
           want = ck_buf_new(n_bytes);
    for (int i = 0; i < n; i++) {
        ((float *)x.data)[i] = ck_int(&rng, 0, 3)
                                   ? (float)(fl__rng_normal(&rng) * 4)
                                   : odd[ck_int(&rng, 0, (int)FL_COUNT(odd) - 1)];
        ((float *)u.data)[i] = (float)fl__rng_normal(&rng);
    }
    ref->run(want.data, x.data, u.data, n);
    k->run(y.data, x.data, u.data, n);
    for (int i = 0; i < n; i++) {
        const double got = ((float *)y.data)[i], expected = ((float *)want.data)[i];
        if (!(fabs(got - expected) <= 2e-6 * fabs(expected) + 1e-30))
            ck_complain(t, "n %d, x %g: %.9g, reference %.9g", n, (double)((float *)x.data)[i],
                        got, expected);
    }
    k->run(x.data, x.data, u.data, n); /* in place */
    ck_true(t, memcmp(x.data, y.data, n_bytes) == 0);
    ck_true(t, ck_buf_intact(&y) && ck_buf_intact(&x) && ck_buf_intact(&u));
    ck_buf_free(&x);
    ck_buf_free(&u);
    ck_buf_free(&y);
    ck_buf_free(&want);
}

static void silu_rows(ck *t)
{
    for (int i = 0; i < fl__n_silu_mul_kernels; i++) {
        const fl_silu_mul_kernel *k = &fl__silu_mul_kernels[i];
        if (k->isa & ~t->isa) {
            ck_skip(t, k->name, "this machine cannot");
            continue;
        }
        if (!ck_begin(t, k->name)) continue;
        for (int n = 1; n <= 40; n++) silu_one(t, k, n);
        silu_one(t, k, 448);
        silu_one(t, k, 5000);
        ck_end(t);
    }
}

void check_rowops(ck *t)
{
    dot_rows(t);
    silu_rows(t);
}
