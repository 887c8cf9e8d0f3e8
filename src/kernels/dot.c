/* dot.c - table of the float dot kernels. SPDX-License-Identifier: MIT */
#include "kernels/dot.h"

#include "base/isa.h"
#include "base/status.h"

float fl__dot_f32_ref(const float *x, const float *w, int n);
float fl__dot_bf16_ref(const float *x, const uint16_t *w, int n);
float fl__dot_f16_ref(const float *x, const uint16_t *w, int n);
float fl__dot_f32_avx2(const float *x, const float *w, int n);
float fl__dot_bf16_avx2(const float *x, const uint16_t *w, int n);
float fl__dot_f16_avx2(const float *x, const uint16_t *w, int n);

const fl_dot_kernel fl__dot_kernels[] = {
    {"dot_avx2", FL_ISA_AVX2, fl__dot_f32_avx2, fl__dot_bf16_avx2, fl__dot_f16_avx2},
    {"dot_ref", 0, fl__dot_f32_ref, fl__dot_bf16_ref, fl__dot_f16_ref},
};
const int fl__n_dot_kernels = (int)FL_COUNT(fl__dot_kernels);

const fl_dot_kernel *fl__dot_select(uint32_t isa)
{
    const fl_dot_kernel *k = fl__dot_kernels;
    while ((k->isa & ~isa) != 0) k++;
    return k;
}
