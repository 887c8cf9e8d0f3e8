/* transform_pack.c - the factors of a transform in tensor core order, for the GPU's kernels.
 *
 * Wide shapes (n1 >= 64, transform_wide.h), lane l, q = l % 4:
 *   right  [64 columns j][k / 16][warp][lane][4 words]: A fragments of right^T, words (row l/4,
 *          k 2q) (row + 8, same) (row, k + 8) (row + 8, k + 8); row r of a warp is column
 *          j = 16 warp + 2 (r % 8) + r / 8
 *   left   [i / 64][a][128 bytes of 64 i], the 16-byte pieces swizzled: piece c at c ^ a % 8;
 *          a padded to 8
 * Small shapes, tiles of 16 x 16 of the transposed factors as mma m16n8k16 A fragments, 16
 * bytes per lane, words as above:
 *   right  [warp of 32 columns j][2 tiles][k / 16][lane]; row r of tile t is column
 *          j = 32 warp + 8 (r % 8 / 2) + 2 (2 t + r / 8) + r % 2, so that a lane ends with
 *          eight codes side by side
 *   left   [row tile][k / 16][lane] after it
 * zero beyond n1 and n2. Other shapes: right, then left, row-major bf16.
 * SPDX-License-Identifier: MIT */
#include "cuda/transform_cuda.h"

#include <string.h>

static uint16_t to_bf16(float x)
{
    uint32_t u;
    memcpy(&u, &x, sizeof u);
    return (uint16_t)((u + 0x7fffu + (u >> 16 & 1)) >> 16);
}

bool fl__cuda_transform_is_fast(int n1, int n2)
{
    static const int shapes[][2] = {{16, 32},  {32, 44},  {32, 64},   {64, 64},
                                    {64, 128}, {86, 128}, {112, 128}, {128, 224}};
    for (size_t i = 0; i < FL_COUNT(shapes); i++)
        if (n1 == shapes[i][0] && n2 == shapes[i][1]) return true;
    return false;
}

static bool is_wide(int n1, int n2)
{
    return n1 >= 64 && fl__cuda_transform_is_fast(n1, n2);
}

static int round_up(int n, int unit)
{
    return (n + unit - 1) / unit * unit;
}

static size_t wide_right_bytes(int n2)
{
    return 2 * (size_t)round_up(n2, 64) * (size_t)n2;
}

size_t fl__cuda_transform_bytes(int n1, int n2)
{
    if (is_wide(n1, n2))
        return wide_right_bytes(n2) +
               2 * (size_t)round_up(round_up(n1, 16), 64) * (size_t)round_up(n1, 8);
    const size_t a = (size_t)(n1 + 15) / 16 * 16, b = (size_t)(n2 + 31) / 32 * 32;
    return 2 * (a * a + b * b);
}

/* One lane's word: row r, columns k and k + 1 of the transposed factor f [n, n]. */
static void put(uint16_t *to, const float *f, int n, int r, int k)
{
    for (int i = 0; i < 2; i++) to[i] = r < n && k + i < n ? to_bf16(f[(k + i) * n + r]) : 0;
}

static void pack_right(uint16_t *to, const float *right, int n2)
{
    const int padded = (n2 + 31) / 32 * 32;
    for (int tile = 0; tile < padded / 16; tile++)
        for (int step = 0; step < padded / 16; step++)
            for (int w = 0; w < 128; w++, to += 2) {
                const int lane = w / 4, row = lane / 4 + w % 2 * 8;
                const int j =
                    tile / 2 * 32 + row % 8 / 2 * 8 + 2 * (tile % 2 * 2 + row / 8) + row % 2;
                put(to, right, n2, j, 16 * step + lane % 4 * 2 + w % 4 / 2 * 8);
            }
}

static void pack_left(uint16_t *to, const float *left, int n1)
{
    const int n_tiles = (n1 + 15) / 16;
    for (int tile = 0; tile < n_tiles; tile++)
        for (int step = 0; step < n_tiles; step++)
            for (int w = 0; w < 128; w++, to += 2) {
                const int lane = w / 4, row = lane / 4 + w % 2 * 8;
                put(to, left, n1, 16 * tile + row, 16 * step + lane % 4 * 2 + w % 4 / 2 * 8);
            }
}

static void pack_wide(uint8_t *dst, int n1, int n2, const float *left, const float *right)
{
    const int n_steps = n2 / 16, cols = round_up(n1, 8), n_tiles = round_up(n1, 64) / 64;
    uint16_t *to = (uint16_t *)dst;
    for (int warp = 0; warp < round_up(n2, 64) / 16; warp++)
        for (int step = 0; step < n_steps; step++)
            for (int w = 0; w < 128; w++) {
                const int lane = w / 4, j = 16 * warp + lane / 4 * 2 + w % 2;
                const int64_t at =
                    ((int64_t)(warp / 4 * n_steps + step) * 4 + warp % 4) * 128 + w;
                put(to + 2 * at, right, n2, j, 16 * step + lane % 4 * 2 + w % 4 / 2 * 8);
            }
    to = (uint16_t *)(dst + wide_right_bytes(n2));
    for (int tile = 0; tile < n_tiles; tile++)
        for (int a = 0; a < cols; a++)
            for (int i = 0; i < 64; i += 2, to += 2)
                put(to - i + ((i / 8 ^ a % 8) * 8 + i % 8), left, n1, a, 64 * tile + i);
}

void fl__cuda_transform_pack(void *dst, int n1, int n2, const float *left, const float *right)
{
    uint16_t *to = dst;
    if (is_wide(n1, n2)) {
        pack_wide(dst, n1, n2, left, right);
        return;
    }
    if (fl__cuda_transform_is_fast(n1, n2)) {
        const size_t b = (size_t)(n2 + 31) / 32 * 32;
        pack_right(to, right, n2);
        pack_left(to + b * b, left, n1);
        return;
    }
    for (int i = 0; i < n2 * n2; i++) *to++ = to_bf16(right[i]);
    for (int i = 0; i < n1 * n1; i++) *to++ = to_bf16(left[i]);
}
