/* tensor_map.h - descriptors of 2-D arrays for the bulk copy engine.
 *
 * cuTensorMapEncodeTiled is a driver function; it is found through the runtime, so that nothing
 * links against libcuda. Encoding is host arithmetic, under a microsecond.
 * SPDX-License-Identifier: MIT */
#ifndef FL_CUDA_TENSOR_MAP_H
#define FL_CUDA_TENSOR_MAP_H

#include "base/status.h"

#include <cuda.h>

/* Rows of `cols` elements, row_bytes apart (multiple of 16); boxes of box_cols x box_rows, laid
 * in shared memory row by row, with the 128-byte swizzle if asked. Elements outside read as 0
 * and are not written. */
typedef struct tensor_2d {
    const void *data;
    CUtensorMapDataType type;
    uint64_t cols, rows, row_bytes;
    uint32_t box_cols, box_rows;
    bool swizzle;
} tensor_2d;

extern "C" fl_status fl__tensor_map(CUtensorMap *map, const tensor_2d *t, fl_err *err);

#endif
