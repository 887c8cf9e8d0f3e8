/* dtype.c - table of element types. SPDX-License-Identifier: MIT */
#include "format/dtype.h"

#include "base/float16.h"

#include <assert.h>
#include <string.h>

static const struct {
    const char *name;
    size_t n_bytes;
} types[FL_N_DTYPES] = {
    [FL_DTYPE_BOOL] = {"BOOL", 1},       [FL_DTYPE_U8] = {"U8", 1},
    [FL_DTYPE_I8] = {"I8", 1},           [FL_DTYPE_F8_E4M3] = {"F8_E4M3", 1},
    [FL_DTYPE_F8_E5M2] = {"F8_E5M2", 1}, [FL_DTYPE_U16] = {"U16", 2},
    [FL_DTYPE_I16] = {"I16", 2},         [FL_DTYPE_F16] = {"F16", 2},
    [FL_DTYPE_BF16] = {"BF16", 2},       [FL_DTYPE_U32] = {"U32", 4},
    [FL_DTYPE_I32] = {"I32", 4},         [FL_DTYPE_F32] = {"F32", 4},
    [FL_DTYPE_U64] = {"U64", 8},         [FL_DTYPE_I64] = {"I64", 8},
    [FL_DTYPE_F64] = {"F64", 8},
};

const char *fl__dtype_name(fl_dtype dtype)
{
    return types[dtype].name;
}

int fl__dtype_parse(fl_dtype *dtype, const char *name)
{
    for (int i = 0; i < FL_N_DTYPES; i++) {
        if (strcmp(types[i].name, name) != 0) continue;
        *dtype = (fl_dtype)i;
        return 0;
    }
    return -1;
}

size_t fl__dtype_bytes(fl_dtype dtype)
{
    return types[dtype].n_bytes;
}

int fl__shape_bytes(int64_t *n_elements, size_t *n_bytes, fl_dtype dtype, int n_dims,
                    const int64_t *dims)
{
    int64_t n = 1;
    for (int i = 0; i < n_dims; i++)
        if (dims[i] < 0 || __builtin_mul_overflow(n, dims[i], &n)) return -1;
    if (__builtin_mul_overflow((uint64_t)n, types[dtype].n_bytes, n_bytes)) return -1;
    *n_elements = n;
    return 0;
}

void fl__dtype_to_f32(float *dst, fl_dtype dtype, const void *src, size_t n)
{
    switch (dtype) {
    case FL_DTYPE_F32:
        memcpy(dst, src, n * sizeof *dst);
        break;
    case FL_DTYPE_F16:
        fl__f16_to_f32_array(dst, src, n);
        break;
    case FL_DTYPE_BF16:
        fl__bf16_to_f32_array(dst, src, n);
        break;
    default:
        assert(!"no float type of a checkpoint");
    }
}
