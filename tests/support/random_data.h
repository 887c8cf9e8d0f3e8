/* random_data.h - seeded numbers for tests, and how far two arrays are apart.
 * SPDX-License-Identifier: MIT */
#ifndef FL_TEST_RANDOM_DATA_H
#define FL_TEST_RANDOM_DATA_H

#include <stddef.h>

/* n normal numbers times deviation, the same for the same purpose; free with fl__free. */
float *fl_test_normal(size_t n, double deviation, const char *purpose);
/* x [n_rows, K] in place: neighbouring columns become alike (share of the left one), so that a
 * Hessian has something off its diagonal. */
void fl_test_correlate(float *x, int n_rows, int K, float share);
/* Largest |a - b|; infinity when one is NaN and the other is not. */
double fl_test_max_diff(const float *a, const float *b, size_t n);

#endif
