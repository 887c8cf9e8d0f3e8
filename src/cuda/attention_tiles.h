/* attention_tiles.h - keys and values of the cache as bf16 tiles that wgmma reads.
 *
 * Prefill reads a key hundreds of times, so its codes are expanded once, into a workspace:
 * for (sequence, KV head), tile by tile of 128 tokens
 *
 *   K   [d / 64][128 tokens][64 d]        bf16, of D = 80 the last 48 columns undefined
 *   V^T [token / 64][D rows][64 tokens]   bf16, 0 past the sequence's end
 *
 * each row 128 bytes in the 128-byte swizzle: 16-byte chunk c of row r lies at c ^ r % 8. So a
 * tile is one plain bulk copy, and both are K-major B operands.
 * SPDX-License-Identifier: MIT */
#ifndef FL_CUDA_ATTENTION_TILES_H
#define FL_CUDA_ATTENTION_TILES_H

#include "cuda/attention_cuda.h"

#include <cuda_runtime.h>

enum { TILE_TOKENS = 128 };

template <int D> struct tile_shape {
    static constexpr int K_PARTS = (D + 63) / 64;
    static constexpr int K_BYTES = K_PARTS * TILE_TOKENS * 128;
    static constexpr int V_BYTES = 2 * D * 128;
    static constexpr int BYTES = K_BYTES + V_BYTES;
};

static inline int tiles_of(int n_tokens)
{
    return (n_tokens + TILE_TOKENS - 1) / TILE_TOKENS;
}

/* Launches the expansion of position + rows tokens of each sequence to
 * tiles[b][KV head][tiles_of(max_tokens)], and zeroes *counter. */
cudaError_t fl__cuda_kv_expand(const fl_cuda_attention_prefill *a, uint8_t *tiles,
                               uint32_t *counter, cudaStream_t stream);

#endif
