/* row_values.h - eight neighbouring values of a row of either type, 16-byte loads and stores.
 * SPDX-License-Identifier: MIT */
#ifndef FL_CUDA_ROW_VALUES_H
#define FL_CUDA_ROW_VALUES_H

#include "cuda/activation.h"
#include "cuda/rowops_cuda.h"

DEV void load_eight(float *v, const fl_cuda_matrix *x, int64_t m, int c)
{
    if (x->f32) load_f32<8>(v, (const float *)x->data + m * x->ld + c);
    else load_bf16<8>(v, (const uint16_t *)x->data + m * x->ld + c);
}

DEV void store_eight(const fl_cuda_matrix *y, int64_t m, int c, const float *v)
{
    if (y->f32) {
        float4 *to = (float4 *)((float *)y->data + m * y->ld + c);
        to[0] = make_float4(v[0], v[1], v[2], v[3]);
        to[1] = make_float4(v[4], v[5], v[6], v[7]);
    } else
        *(uint4 *)((uint16_t *)y->data + m * y->ld + c) = make_uint4(
            bf16x2(v[0], v[1]), bf16x2(v[2], v[3]), bf16x2(v[4], v[5]), bf16x2(v[6], v[7]));
}

#endif
