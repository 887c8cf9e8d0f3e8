/* gemm_cuda.h - integer GEMM on the GPU: the contract of kernels/gemm.h with device pointers.
 *
 *   sum[m,n] = sum_k x[m,k] * w[n,k] - x_zero[m] * col_sum[n]                  (int32, exact)
 *   y[m,n]   = ((float)sum[m,n] * (x_scale[m] * w_scale[n]) + bias[n]) + residual[m,n]
 *
 * every float operation rounded separately, y in float32 or rounded to bf16 (nearest even), so
 * that all paths here give the bits of the CPU's reference row. What differs from the CPU:
 * x_sum is not needed (nibbles are signed here), ldx % 16 == 0 and x is 16-byte aligned;
 * N, ldy and ldr are even, y and residual aligned to 8 bytes.
 *
 * `gated`: channels 2i and 2i + 1 are gate and up of one output (fl__cuda_weight_pack_gated),
 *   y[m,i] = gate / (1 + exp(-gate)) * up            bf16 alone, no residual
 * with gate and up as y above in float32, exponential and division as in `gated` of sm90.h.
 *
 * Weight layout of 4 bits, "n16k64", one for prefill and decode, made so that one 16-byte load
 * per thread is a tensor core A fragment: output channels in panels of 16 (N padded to 16 with
 * zeros), a panel is K_pad / 64 blocks of 64 k one after another; in a block of 512 bytes, lane
 * l = 0..31 has 16, word j, byte b:
 *   n = 16 panel + l / 4 * 2 + j % 2       k = 64 block + 4 * (l % 4) + 16 * (j / 2) + b
 *   the high nibble is code[n, k], the low one code[n, k + 32], two's complement
 * Of 8 bits, "n8k64": the even channels of a panel, then the odd ones, each K_pad / 64 blocks
 * of 8 channels x 64 k, which lie as the tensor cores read them from shared memory: in row r of
 * a block, the 16 bytes of k / 16 at place (k / 16) ^ (r / 2).
 * A nibble masked into the high half of its byte is an int8 of 16 times the code: the kernels
 * multiply these and shift the sum right by 4, exactly. |16 sum| < 2^31 holds for K <= 65536.
 *
 * Launches are asynchronous on `stream`; nothing here allocates or synchronises.
 * SPDX-License-Identifier: MIT */
#ifndef FL_CUDA_GEMM_CUDA_H
#define FL_CUDA_GEMM_CUDA_H

#ifdef __cplusplus
extern "C" {
#endif

#include "base/status.h"

/* Most tiles whose K may be split; the workspace begins with two counters for each. */
enum { FL_CUDA_MAX_SPLIT_TILES = 256 };

typedef struct fl_cuda_weight {
    int bits; /* 4: codes -8..7; 8: codes -128..127 */
    int N, K;
    int N_pad, K_pad;       /* multiples of 16 and 64 */
    const uint8_t *data;    /* layout n16k64 or n8k64, device, 16-byte aligned */
    const int32_t *col_sum; /* [N_pad], device */
} fl_cuda_weight;

typedef struct fl_cuda_gemm {
    const int8_t *x; /* [M, ldx]; columns from K on are not read as long as K % 64 == 0, and
                        must be zero up to K_pad otherwise */
    int64_t ldx;
    /* 4-bit codes: 64 k are 32 bytes, byte i the code of k = i in its high nibble and of
     * k = i + 32 in the low one; ldx in bytes. fl__cuda_gemm_sm80 alone */
    bool x_packed;
    const float *x_scale;
    int x_scale_stride;
    const int32_t *x_zero; /* NULL: 0 */
    int x_zero_stride;
    const fl_cuda_weight *w;
    const float *w_scale;
    int w_scale_stride;
    const float *bias;     /* NULL: none */
    const float *residual; /* [M, ldr]; NULL: none. May be y itself where y is f32, ldr = ldy */
    int64_t ldr;
    void *y;
    int64_t ldy;
    bool y_bf16;
    bool gated; /* y is bf16 [M, N / 2] */
    int M;
    int32_t
        *workspace; /* fl__cuda_gemm_workspace_bytes, zero at first and left zero; NULL: K is
                           not split */
} fl_cuda_gemm;

/* Which kernel, and how it cuts the problem. decode_ctas > 0: the decode kernel, with so many
 * CTAs per multiprocessor, decode_parts of which (1, 2, 4, 8; 0: as few as hold x) share a run
 * of channels by K. Otherwise the prefill kernel: tiles of 128 channels x `tokens` (64,
 * 128 or 256), K cut into n_split parts, walked in groups of `group` token tiles; one warpgroup
 * is `shift` stages of 128 k behind the other (0: in step). These are always set. */
typedef struct fl_cuda_gemm_plan {
    int tokens, n_split, decode_ctas, decode_parts;
    int group, shift;
} fl_cuda_gemm_plan;

/* The GPU that a launch goes to. */
typedef struct fl_cuda_gpu {
    int n_sm;       /* multiprocessors */
    int capability; /* 80: compute capability 8.0 */
} fl_cuda_gpu;

size_t fl__cuda_weight_bytes(int N, int K, int bits);
/* Host: packs codes [N, K] row-major into dst (fl__cuda_weight_bytes) and col_sum [N_pad]. */
void fl__cuda_weight_pack(uint8_t *dst, int32_t *col_sum, const int8_t *codes, int N, int K,
                          int bits);
/* The same of a gated pair [N, K] each: channels 2i of gate, 2i + 1 of up, 2 N of them. */
void fl__cuda_weight_pack_gated(uint8_t *dst, int32_t *col_sum, const int8_t *gate,
                                const int8_t *up, int N, int K, int bits);

/* Enough for every plan that fl__cuda_gemm_plan makes. */
size_t fl__cuda_gemm_workspace_bytes(void);

/* The fastest plan: prefill by a model of the kernel's time on n_sm multiprocessors, decode
 * where it was measured to win. */
fl_cuda_gemm_plan fl__cuda_gemm_plan(const fl_cuda_gemm *g, int n_sm);

/* The GEMM by the kernel and plan that suit the problem and the GPU: 9.0 the three below, 8.x
 * fl__cuda_gemm_sm80. FL_E_UNSUPPORTED for other GPUs, and for x_packed on 9.0, which has no
 * 4-bit tensor cores. */
fl_status fl__cuda_gemm(const fl_cuda_gemm *g, const fl_cuda_gpu *gpu, void *stream,
                        fl_err *err);

/* Prefill: any M; best from 17 rows on. stream is a cudaStream_t. */
fl_status fl__cuda_gemm_w4_sm90(const fl_cuda_gemm *g, fl_cuda_gemm_plan plan, int n_sm,
                                void *stream, fl_err *err);
fl_status fl__cuda_gemm_w8_sm90(const fl_cuda_gemm *g, fl_cuda_gemm_plan plan, int n_sm,
                                void *stream, fl_err *err);

/* Decode: M <= 64, 4-bit weights, 1 or 2 CTAs per multiprocessor. Begins to read the weights
 * before the kernel ahead of it in the stream has ended, which must not write them. */
fl_status fl__cuda_gemm_w4_decode(const fl_cuda_gemm *g, fl_cuda_gemm_plan plan, int n_sm,
                                  void *stream, fl_err *err);

/* The same with 8-bit weights, M <= 16. */
fl_status fl__cuda_gemm_w8_decode(const fl_cuda_gemm *g, int n_sm, void *stream, fl_err *err);

/* 8.0, 8.6, 8.9 (runs on 9.0, slowly where x is packed): tiles of 128 channels x plan.tokens,
 * 32 or 128; nothing else of the plan. */
fl_status fl__cuda_gemm_sm80(const fl_cuda_gemm *g, fl_cuda_gemm_plan plan, void *stream,
                             fl_err *err);

#ifdef __cplusplus
}
#endif
#endif
