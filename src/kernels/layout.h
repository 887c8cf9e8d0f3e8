/* layout.h - how integer weights lie in memory.
 *
 * One layout serves AMX prefill and VNNI decode ("n16k4"): output channels in panels of 16; in
 * a panel, rows of 64 bytes that hold 4 consecutive input channels k of 16 output channels n:
 *
 *   8 bits: byte [panel][k/4][n%16][k%4]                  = two's complement code
 *   4 bits: byte [panel][k/8][n%16][k%4], low nibble  = k%8 in 0..3,  code + 8 (0..15)
 *                                         high nibble = k%8 in 4..7,  code + 8
 *
 * N is padded to 16 and K to 64 with code 0, so a (64 k x 16 n) block is one AMX B tile of
 * 1 KB (512 bytes at 4 bits, one nibble split away), and a row is one VNNI operand whose lanes
 * are channels: no horizontal sums. Nibbles are stored with offset 8 because u8 x s8 is what
 * AVX2 (vpmaddubsw), VNNI and AMX (TDPBSUD) multiply natively; the epilogue takes 8 * sum(x)
 * back.
 * SPDX-License-Identifier: MIT */
#ifndef FL_KERNELS_LAYOUT_H
#define FL_KERNELS_LAYOUT_H

#include "base/exec.h"
#include "base/status.h"

typedef struct fl_weight {
    int bits;         /* 4: codes -8..7; 8: codes -127..127 (never -128: AVX2's sign trick) */
    int N, K;         /* output and input channels */
    int N_pad, K_pad; /* multiples of 16 and 64 */
    uint8_t *data;    /* n_bytes in layout n16k4, owned */
    size_t n_bytes;   /* N_pad * K_pad * bits / 8 */
    int32_t *col_sum; /* [N_pad] sum over k of code[n, k], owned */
} fl_weight;

/* Bits that a code takes in memory and in files: codes of 3 bits lie in nibbles. */
static inline int fl__stored_bits(int bits)
{
    return bits < 4 ? 4 : bits;
}

/* Packs codes [N, K] row-major. FL_E_NOMEM; FL_E_INPUT when a code is out of range for bits. */
fl_status fl__weight_pack(fl_weight *w, const int8_t *codes, int N, int K, int bits,
                          fl_err *err);
/* Random codes straight in the layout, for benches: col_sum is theirs, padding is code 0. The
 * same for any number of threads. FL_E_NOMEM, FL_E_UNSUPPORTED like _pack. */
fl_status fl__weight_random(fl_weight *w, const fl_exec *ex, int N, int K, int bits,
                            uint64_t seed, fl_err *err);
/* Inverse: codes [N, K] row-major. */
void fl__weight_unpack(int8_t *codes, const fl_weight *w);
void fl__weight_fini(fl_weight *w);

/* Model file packing: two's complement nibbles, low nibble = even input channel, each row of K
 * codes padded to whole bytes. packed: [N, (K+1)/2]. */
void fl__nibbles_pack(uint8_t *packed, const int8_t *codes, int N, int K);
void fl__nibbles_unpack(int8_t *codes, const uint8_t *packed, int N, int K);

#endif
