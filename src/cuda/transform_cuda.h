/* transform_cuda.h - activations to codes on the GPU: the contracts of kernels/transform.h
 * and kernels/quantize.h with device pointers.
 *
 * Transform + per-token quantise, a row at a time, from any of these rows:
 *   x                           bf16 or float32
 *   x / rms(x) * gain           rms over the n channels, float32
 *   (x - mean(x)) / sqrt(var(x) + eps) * gain + bias
 *   max(x, 0)
 *   silu(x) * up                both bf16; float32 inside
 * where a float32 x may first have something added, which is kept: x += add; then times
 * premul, rounded to bf16, X' = left^T bf16(U right), codes, sums, scales and zero points as on the CPU.
 *
 * Sums of the tensor cores run in their own order, and norms and silu are float32: where an
 * exact U or U right lies at a border between two bf16 numbers it may become the other one,
 * which moves X' by the last bit of a bf16 times elements of the factors, and a scale with it
 * (by 1e-3 at most, mostly by 1e-6); where X' then lies at the border of two codes, the code is
 * the other one (on random data two in 100,000 of 8 bits, one in 1,000,000 of 4). How far is
 * derived in tests/cuda/transform_bound.h.
 * The shapes of fl__cuda_transform_is_fast take the tensor cores; any other one with n1, n2 <=
 * 256 a plain kernel, which sums in the CPU's order. A row with infinities has no particular
 * codes; one with a NaN has the lowest code and scale 1.
 *
 * Static and per-token quantising without a transform are elementwise and equal the CPU's bits,
 * the scale of a norm or of silu apart.
 *
 * Rows and vectors are 16-byte aligned, strides of rows multiples of 8 elements; ld % 64 == 0,
 * codes beyond the channels are written as 0. Launches are asynchronous on `stream` (a
 * cudaStream_t) and may begin before the kernel ahead of them has ended (programmatic dependent
 * launch), whose results they wait for; factors, gain, bias, premul and limits are read before
 * that and must not be its results. Nothing here allocates or synchronises.
 * SPDX-License-Identifier: MIT */
#ifndef FL_CUDA_TRANSFORM_CUDA_H
#define FL_CUDA_TRANSFORM_CUDA_H

#ifdef __cplusplus
extern "C" {
#endif

#include "base/status.h"

/* The row that is read; with up, of the others only premul. */
typedef struct fl_cuda_row {
    const void *x; /* [M, ldx] */
    int64_t ldx;
    bool x_f32;
    const uint16_t *up; /* bf16 [M, ldx] with x bf16, or NULL */
    const float *gain;  /* [n] or NULL */
    float eps;
    const float *premul; /* [n] or NULL */
    bool layer_norm;     /* gain, bias then NULL: 1, 0 */
    const float *bias;   /* [n] or NULL, after gain */
    bool relu;           /* after the norm, if any */
    const void *add;     /* [M, ld_add] or NULL; x float32, rewritten in place */
    int64_t ld_add;
    bool add_f32; /* else bf16 */
} fl_cuda_row;

typedef struct fl_cuda_codes {
    int8_t *codes; /* [M, ld] */
    int64_t ld;
    int32_t *x_sum; /* [M] or NULL */
    float *x_scale; /* [M]; not written by the static quantiser */
    int32_t *x_zero;
} fl_cuda_codes;

typedef struct fl_cuda_grid {
    int bits;
    bool asymmetric;
    float clip_max, clip_min;
} fl_cuda_grid;

/* factors: what _pack makes, on the device. */
typedef struct fl_cuda_transform {
    int n1, n2;
    const void *factors;
} fl_cuda_transform;

typedef struct fl_cuda_quantize_static {
    int n_channels, n_extra;
    float inv_scale;
    int zero, first_lo, first_hi, cap;
    const float *lo, *hi; /* [n_channels] device, whole */
    const int32_t *extra_src, *extra_off;
} fl_cuda_quantize_static;

bool fl__cuda_transform_is_fast(int n1, int n2);
size_t fl__cuda_transform_bytes(int n1, int n2);
/* Host: left [n1, n1], right [n2, n2] row-major, rounded to bf16 here. */
void fl__cuda_transform_pack(void *dst, int n1, int n2, const float *left, const float *right);

fl_status fl__cuda_transform_quantize(const fl_cuda_codes *y, const fl_cuda_row *x, int M,
                                      const fl_cuda_transform *t, const fl_cuda_grid *grid,
                                      int n_sm, void *stream, fl_err *err);

/* n % 8 == 0, n <= 32768. */
fl_status fl__cuda_quantize_token(const fl_cuda_codes *y, const fl_cuda_row *x, int M, int n,
                                  const fl_cuda_grid *grid, void *stream, fl_err *err);

/* Plain rows at the speed of memory, any width; other fronts (norm, ReLU, silu * up, add) in
 * one pass for n_channels % 8 == 0 and ld <= 32768. */
fl_status fl__cuda_quantize_static(const fl_cuda_codes *y, const fl_cuda_row *x, int M,
                                   const fl_cuda_quantize_static *spec, int n_sm, void *stream,
                                   fl_err *err);

#ifdef __cplusplus
}
#endif
#endif
