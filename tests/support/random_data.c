/* random_data.c - seeded numbers for tests. SPDX-License-Identifier: MIT */
#include "support/random_data.h"

#include "base/mem.h"
#include "base/rng.h"
#include "support/fl_test.h"

#include <math.h>

float *fl_test_normal(size_t n, double deviation, const char *purpose)
{
    fl_rng rng = fl__rng_init(1, 0, purpose);
    float *x = fl__alloc(n, sizeof *x);
    if (!x) fail_msg("out of memory");
    for (size_t i = 0; i < n; i++) x[i] = (float)(deviation * fl__rng_normal(&rng));
    return x;
}

void fl_test_correlate(float *x, int n_rows, int K, float share)
{
    for (int r = 0; r < n_rows; r++)
        for (int k = 1; k < K; k++) x[r * K + k] += share * x[r * K + k - 1];
}

double fl_test_max_diff(const float *a, const float *b, size_t n)
{
    double most = 0;
    for (size_t i = 0; i < n; i++) {
        const double d = fabs((double)a[i] - (double)b[i]);
        if (isnan(d) && !(isnan(a[i]) && isnan(b[i])) && a[i] != b[i]) return INFINITY;
        if (d > most) most = d;
    }
    return most;
}
