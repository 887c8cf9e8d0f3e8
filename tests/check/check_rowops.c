/* check_rowops.c - silu_mul against its reference. SPDX-License-Identifier: MIT */
#include "check/ck.h"

#include "kernels/rowops.h"

#include <math.h>
#include <string.h>

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
    silu_rows(t);
}
