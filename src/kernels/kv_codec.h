/* kv_codec.h - keys and values of a cache page as codes of 8, 4, 3 or 2 bits.
 *
 * A block holds the keys, or the values, of one head for the 64 tokens of a page:
 *
 *   codes  planes of 32-bit words, see below; up to a multiple of 64 bytes
 *   scale  f16    [64]
 *   zero   uint8  [64]    0..2^bits-1
 *
 * Both products of attention are sums of codes times numbers that all lanes share: scores sum
 * over channels, one lane per token; values sum over tokens, one lane per channel. Codes lie in
 * the order in which such sums read them. With n terms (keys: D channels, values: 64 tokens)
 * and n_lanes lanes (keys: 64 tokens, values: D channels), a plane of b bits is
 *
 *   uint32 [ceil(n * b / 32)][n_lanes]
 *
 * and a word holds 32 / b terms of one lane: term 4 * k + j of the word in byte j, from bit
 * b * k of that byte on. So a shift by b * k and a mask leave four terms of a lane in a lane's
 * four bytes, the operand of the byte products of all instruction sets, and of AMX tiles. 8, 4
 * and 2 bits are one plane; 3 bits are a plane of the lower two and a plane of the third. Keys
 * have 0 for channels from D on.
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
 *   D     even, 2..FL_KV_MAX_D; bits 8, 4, 3 or 2
 *   x     f32 [D];  block fl__kv_block_bytes(side, D, bits), 64-byte aligned
 *   expand  keys: out f32 [D, 64] (transposed); values: out f32 [64, D]; all 64 tokens,
 *           whatever those hold that were never quantised
 *
 * Tokens share words: a block is quantised by one thread at a time.
 * SPDX-License-Identifier: MIT */
#ifndef FL_KERNELS_KV_CODEC_H
#define FL_KERNELS_KV_CODEC_H

#include <stddef.h>
#include <stdint.h>

#define FL_KV_PAGE  64 /* tokens per page */
#define FL_KV_MAX_D 512

typedef enum fl_kv_side { FL_KV_KEYS, FL_KV_VALUES } fl_kv_side;

static inline int fl__kv_terms(fl_kv_side side, int D)
{
    return side == FL_KV_KEYS ? D : FL_KV_PAGE;
}

static inline int fl__kv_lanes(fl_kv_side side, int D)
{
    return side == FL_KV_KEYS ? FL_KV_PAGE : D;
}

/* Words of one lane in a plane of b bits. */
static inline size_t fl__kv_words(fl_kv_side side, int D, int b)
{
    return ((size_t)fl__kv_terms(side, D) * (size_t)b + 31) / 32;
}

/* Where the plane of the third bit begins: behind that of the lower two. */
static inline size_t fl__kv_third_at(fl_kv_side side, int D)
{
    return fl__kv_words(side, D, 2) * (size_t)fl__kv_lanes(side, D) * sizeof(uint32_t);
}

static inline size_t fl__kv_scale_at(fl_kv_side side, int D, int bits)
{
    const size_t words = bits == 3 ? fl__kv_words(side, D, 2) + fl__kv_words(side, D, 1)
                                   : fl__kv_words(side, D, bits);
    return (words * (size_t)fl__kv_lanes(side, D) * sizeof(uint32_t) + 63) / 64 * 64;
}

static inline size_t fl__kv_zero_at(fl_kv_side side, int D, int bits)
{
    return fl__kv_scale_at(side, D, bits) + FL_KV_PAGE * sizeof(uint16_t);
}

static inline size_t fl__kv_block_bytes(fl_kv_side side, int D, int bits)
{
    return fl__kv_zero_at(side, D, bits) + FL_KV_PAGE;
}

/* Token t (0..63) of the block. */
typedef void fl_kv_quantize_fn(void *block, fl_kv_side side, int t, const float *x, int D,
                               int bits, float c_max, float c_min);
typedef void fl_kv_expand_fn(float *out, const void *block, fl_kv_side side, int D, int bits);

typedef struct fl_kv_codec_kernel {
    const char *name;
    uint32_t isa;
    fl_kv_quantize_fn *quantize;
    fl_kv_expand_fn *expand;
} fl_kv_codec_kernel;

extern const fl_kv_codec_kernel fl__kv_codec_kernels[]; /* best first, reference last */
extern const int fl__n_kv_codec_kernels;
const fl_kv_codec_kernel *fl__kv_codec_select(uint32_t isa);

#endif
