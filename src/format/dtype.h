/* dtype.h - element types of stored tensors, their names and sizes, and widening to float32.
 * SPDX-License-Identifier: MIT */
#ifndef FL_FORMAT_DTYPE_H
#define FL_FORMAT_DTYPE_H

#include "base/status.h"

enum { FL_MAX_DIMS = 8 };

/* The types of the safetensors format that take whole bytes. */
typedef enum fl_dtype {
    FL_DTYPE_BOOL,
    FL_DTYPE_U8,
    FL_DTYPE_I8,
    FL_DTYPE_F8_E4M3,
    FL_DTYPE_F8_E5M2,
    FL_DTYPE_U16,
    FL_DTYPE_I16,
    FL_DTYPE_F16,
    FL_DTYPE_BF16,
    FL_DTYPE_U32,
    FL_DTYPE_I32,
    FL_DTYPE_F32,
    FL_DTYPE_U64,
    FL_DTYPE_I64,
    FL_DTYPE_F64,
    FL_N_DTYPES
} fl_dtype;

/* Sets of types are bit masks. */
#define FL_DTYPE_BIT(dtype) (UINT32_C(1) << (dtype))
#define FL_DTYPES_FLOAT                                                                        \
    (FL_DTYPE_BIT(FL_DTYPE_F32) | FL_DTYPE_BIT(FL_DTYPE_F16) | FL_DTYPE_BIT(FL_DTYPE_BF16))

/* Name as in the header of a safetensors file, such as "BF16". */
const char *fl__dtype_name(fl_dtype dtype);
/* 0, or -1 when no type of ours has that name. */
int fl__dtype_parse(fl_dtype *dtype, const char *name);
size_t fl__dtype_bytes(fl_dtype dtype);

/* Elements and bytes of a tensor; -1 when a dimension is negative or a product overflows. */
int fl__shape_bytes(int64_t *n_elements, size_t *n_bytes, fl_dtype dtype, int n_dims,
                    const int64_t *dims);

/* dst[i] = (float)src[i] for the types in FL_DTYPES_FLOAT; src may be unaligned. */
void fl__dtype_to_f32(float *dst, fl_dtype dtype, const void *src, size_t n);

#endif
