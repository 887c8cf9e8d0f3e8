/* transform_pack.c - the factors of a transform in tensor core order, for the GPU's kernels.
 *
 * Fast shapes, tiles of 16 x 16 of the transposed factors as mma m16n8k16 A fragments, 16 bytes
 * per lane l, q = l % 4, words (row l/4, k 2q) (row + 8, same) (row, k + 8) (row + 8, k + 8):
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
    static const int shapes[][2] = {{16, 32},  {32, 44},  {32, 64},  {64, 64},
                                    {64, 128}, {86, 128}, {112, 128}};
    for (size_t i = 0; i < FL_COUNT(shapes); i++)
        if (n1 == shapes[i][0] && n2 == shapes[i][1]) return true;
    return false;
}

size_t fl__cuda_transform_bytes(int n1, int n2)
{
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

void fl__cuda_transform_pack(void *dst, int n1, int n2, const float *left, const float *right)
{
    uint16_t *to = dst;
    if (fl__cuda_transform_is_fast(n1, n2)) {
        const size_t b = (size_t)(n2 + 31) / 32 * 32;
        pack_right(to, right, n2);
        pack_left(to + b * b, left, n1);
        return;
    }
    for (int i = 0; i < n2 * n2; i++) *to++ = to_bf16(right[i]);
    for (int i = 0; i < n1 * n1; i++) *to++ = to_bf16(left[i]);
}
