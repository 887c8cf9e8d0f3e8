/* transform_rows.h - the functions behind the rows of transform.c.
 * SPDX-License-Identifier: MIT */
#ifndef FL_KERNELS_TRANSFORM_ROWS_H
#define FL_KERNELS_TRANSFORM_ROWS_H

#include "kernels/transform.h"

fl_transform_fn fl__transform_ref, fl__transform_avx2, fl__transform_avx512,
    fl__transform_amxbf16;

#define FL_TRANSFORM_PANEL 16 /* columns of right_panels */
#define FL_TRANSFORM_TILE  32 /* what AMX pads to: two tiles of rows or columns, one of k */

static inline int fl__round_up(int n, int unit)
{
    return (n + unit - 1) / unit * unit;
}

#endif
