/* kv_codec.h - keys and values of a cache page as codes of 8, 4, 3 or 2 bits.
 *
 * A block holds the keys, or the values, of one head for the 64 tokens of a page. It is three
 * arrays, one behind the other, each at a multiple of 64 bytes of the block:
 *
 *   codes  uint8  [64, row_bytes]  token-major rows, row_bytes = ceil(D * bits / 8)
 *   scale  f16    [64]
 *   zero   uint8  [64]             0..2^bits-1
 *
 * A row is a stream of bits from the lowest bit of its first byte on: code d is bits d * bits
 * .. (d + 1) * bits - 1, so that 8 codes are `bits` whole bytes and a nibble's low half is the
 * even d. Bits behind the last code are 0. Token-major K as well as V: a kernel that multiplies
 * codes streams whole rows and takes scale and zero out of the sum,
 *   q . k = scale * (q . code - zero * sum q),
 * with the scales and zeros of 16 tokens in one load each.
 *
 * Quantising row x [D] with clips c_max, c_min (float32, one rounding per step, NaN left out of
 * max and min):
 *
 *   hi = c_max * max(0, max x);  lo = c_min * min(0, min x);  qmax = 2^bits - 1
 *   scale = f16((hi - lo) / qmax), to nearest even; 1 where that is 0 or not finite
 *   inv = 1 / scale;  zero = clamp(rne(-lo * inv), 0, qmax)
 *   code[d] = clamp(rne(x[d] * inv) + zero, 0, qmax); NaN gives 0
 *
 * The value of a code is (code - zero) * scale. All rows of the table equal _ref bit for bit,
 * codes and values.
 *
 *   D     even, 2 and more; bits 8, 4, 3 or 2
 *   x     f32 [D];  block fl__kv_block_bytes(D, bits), 64-byte aligned
 *   expand_k  out f32 [D, 64] (transposed);  expand_v  out f32 [64, D]; all 64 tokens, whatever
 *             those hold that were never quantised
 *
 * Different tokens of a block may be quantised by different threads.
 * SPDX-License-Identifier: MIT */
#ifndef FL_KERNELS_KV_CODEC_H
#define FL_KERNELS_KV_CODEC_H

#include <stddef.h>
#include <stdint.h>

#define FL_KV_PAGE 64 /* tokens per page */

static inline size_t fl__kv_row_bytes(int D, int bits)
{
    return ((size_t)D * (size_t)bits + 7) / 8;
}

/* Offsets within a block. */
static inline size_t fl__kv_scale_at(int D, int bits)
{
    return FL_KV_PAGE * fl__kv_row_bytes(D, bits);
}

static inline size_t fl__kv_zero_at(int D, int bits)
{
    return fl__kv_scale_at(D, bits) + FL_KV_PAGE * sizeof(uint16_t);
}

static inline size_t fl__kv_block_bytes(int D, int bits)
{
    return fl__kv_zero_at(D, bits) + FL_KV_PAGE;
}

/* Token t (0..63) of the block. */
typedef void fl_kv_quantize_fn(void *block, int t, const float *x, int D, int bits, float c_max,
                               float c_min);
typedef void fl_kv_expand_fn(float *out, const void *block, int D, int bits);

typedef struct fl_kv_codec_kernel {
    const char *name;
    uint32_t isa;
    fl_kv_quantize_fn *quantize;
    fl_kv_expand_fn *expand_k, *expand_v;
} fl_kv_codec_kernel;

extern const fl_kv_codec_kernel fl__kv_codec_kernels[]; /* best first, reference last */
extern const int fl__n_kv_codec_kernels;
const fl_kv_codec_kernel *fl__kv_codec_select(uint32_t isa);

#endif
