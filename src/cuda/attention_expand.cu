/* attention_expand.cu - the cache's codes to bf16 tiles (attention_tiles.h).
 *
 * A CTA has a page of a KV head: 8 warps, one per group of 16 tokens of K or of V. A lane holds
 * the words of its fragments, whose registers are neighbours along a tile's row as they are
 * (K: two d of a token; V^T: two tokens of a d), and puts them into shared memory, swizzled;
 * the copy engine stores what is then contiguous. (code - zero) * scale is exact in float32 and
 * rounded once, to bf16.
 * SPDX-License-Identifier: MIT */
#include "cuda/attention_tiles.h"

#include "cuda/attention_sm90.h"

#include <cuda_fp16.h>

enum { N_THREADS = 256, GROUP = FL_CUDA_KV_GROUP, PAGE = FL_CUDA_KV_PAGE };

typedef struct expand_args {
    fl_cuda_kv kv;
    const int32_t *first_row, *position;
    uint8_t *tiles;
    uint32_t *counter;
    int max_tiles;
} expand_args;

template <int N> DEV void load_global_words(uint32_t *w, const uint8_t *at, int lane)
{
#pragma unroll
    for (int i = 0; i < N / 4; i++)
        asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
                     : "=r"(w[4 * i]), "=r"(w[4 * i + 1]), "=r"(w[4 * i + 2]),
                       "=r"(w[4 * i + 3])
                     : "l"(at + i * 512 + lane * 16));
#pragma unroll
    for (int i = N / 4 * 4; i < N; i++) w[i] = *(const uint32_t *)(at + i * 128 + lane * 4);
}

/* Scale of a token and -zero times it. */
typedef struct grid_point {
    float scale, shift;
} grid_point;

template <int BITS> DEV grid_point load_grid(const uint32_t *meta, bool is_v, int t)
{
    const uint32_t s = meta[8 * is_v + t % 8] >> t / 8 * 16,
                   z = meta[16 + t % 8] >> (2 * is_v + t / 8) * 8;
    grid_point g;
    g.scale = __half2float(__ushort_as_half((uint16_t)s));
    g.shift = -(float)(z & 0xff) * g.scale;
    return g;
}

/* Codes u and v, as floats' bits of 2^23 + code, dequantised. */
DEV uint32_t dequantize(uint32_t u, uint32_t v, grid_point low, grid_point high)
{
    const float x = __uint_as_float(u) - 8388608.0f, y = __uint_as_float(v) - 8388608.0f;
    return bf16x2(fmaf(x, low.scale, low.shift), fmaf(y, high.scale, high.shift));
}

/* Register a of fragment f; not for K at 8 bits. */
template <int BITS>
DEV uint32_t fragment(const uint32_t *w, int f, int a, grid_point low, grid_point high)
{
    const uint32_t one = 0x4b000000u;
    if (BITS == 16) return w[4 * f + a];
    if (BITS == 4)
        return dequantize((w[f] >> 4 * a & 15) | one, (w[f] >> (4 * a + 16) & 15) | one, low,
                          high);
    const uint32_t v = w[2 * f + a / 2];
    return dequantize(__byte_perm(v, one, 0x7440 + a % 2), __byte_perm(v, one, 0x7442 + a % 2),
                      low, high);
}

/* Columns c, c + 1 (even) of row `row` of 128 bytes. */
DEV void put_swizzled(uint32_t part, int row, int c, uint32_t v)
{
    const uint32_t at = part + row * 128 + ((c / 8 ^ row % 8) * 16) + c % 8 * 2;
    asm volatile("st.shared.u32 [%0], %1;" ::"r"(at), "r"(v) : "memory");
}

/* Fragments of K: rows are tokens, columns d. */
template <int D, int BITS>
DEV void expand_keys(uint32_t k, const uint8_t *words, const uint32_t *meta, int group,
                     int lane)
{
    constexpr int WORDS = D * BITS / 64;
    uint32_t w[WORDS];
    grid_point g[2] = {};
    load_global_words<WORDS>(w, words, lane);
    const int r = lane / 4, q = lane % 4;
#pragma unroll
    for (int i = 0; i < 2 && BITS < 16; i++) g[i] = load_grid<BITS>(meta, false, r + i * 8);
#pragma unroll
    for (int f = 0; f < D / 16; f++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const uint32_t part = k + f / 4 * (PAGE * 128);
            const int row = group * GROUP + r, column = f % 4 * 16;
            if (BITS == 8) {
                const uint32_t v = w[2 * f + i % 2], one = 0x4b000000u;
                put_swizzled(part, row + i % 2 * 8, column + 4 * q + i / 2 * 2,
                             dequantize(__byte_perm(v, one, 0x7440 + i / 2 * 2),
                                        __byte_perm(v, one, 0x7441 + i / 2 * 2), g[i % 2],
                                        g[i % 2]));
            } else {
                put_swizzled(part, row + i % 2 * 8, column + 2 * q + i / 2 * 8,
                             fragment<BITS>(w, f, i, g[i % 2], g[i % 2]));
            }
        }
}

/* Fragments of V: rows are d, columns tokens, of which n_left count. */
template <int D, int BITS>
DEV void expand_values(uint32_t v, const uint8_t *words, const uint32_t *meta, int group,
                       int n_left, int lane)
{
    constexpr int WORDS = D * BITS / 64;
    uint32_t w[WORDS], keep[2];
    grid_point low[2] = {}, high[2] = {};
    load_global_words<WORDS>(w, words, lane);
    const int r = lane / 4;
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const int t = lane % 4 * 2 + i * 8;
        if (BITS < 16) low[i] = load_grid<BITS>(meta, true, t);
        if (BITS < 16) high[i] = load_grid<BITS>(meta, true, t + 1);
        keep[i] = (t < n_left ? 0xffffu : 0) | (t + 1 < n_left ? 0xffff0000u : 0);
    }
#pragma unroll
    for (int f = 0; f < D / 16; f++)
#pragma unroll
        for (int i = 0; i < 4; i++)
            put_swizzled(v, f * 16 + r + i % 2 * 8, group * GROUP + lane % 4 * 2 + i / 2 * 8,
                         fragment<BITS>(w, f, i, low[i / 2], high[i / 2]) & keep[i / 2]);
}

DEV void bulk_store(uint8_t *to, uint32_t from, int n_bytes)
{
    asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(to),
                 "r"(from), "r"(n_bytes)
                 : "memory");
}

template <int D, int BITS>
__global__
__launch_bounds__(N_THREADS) void expand_kernel(const __grid_constant__ expand_args g)
{
    typedef tile_shape<D> sh;
    constexpr int HALF_BYTES = 2 * D * BITS, BYTES = 2 * HALF_BYTES + (BITS < 16 ? 96 : 0);
    constexpr int K_PAGE = PAGE * 128;
    __shared__ __align__(1024) uint8_t out[sh::K_PARTS * K_PAGE + D * 128];
    const int page = blockIdx.x, head = blockIdx.y, b = blockIdx.z;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, group = warp / 2;
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
    asm volatile("griddepcontrol.wait;" ::: "memory");
    if (page + head + b == 0 && threadIdx.x == 0) *g.counter = 0;
    const int n = g.position[b] + g.first_row[b + 1] - g.first_row[b];
    if (page / 2 * TILE_TOKENS >= n) return;
    const int n_left = n - page * PAGE - group * GROUP;
    const uint32_t k = smem_addr(out), v = k + sh::K_PARTS * K_PAGE;
    if (n_left > 0) {
        const int at = g.kv.table[(int64_t)b * g.kv.table_stride + page];
        const uint8_t *from =
            g.kv.pages + (((int64_t)at * g.kv.n_kv_heads + head) * 4 + group) * BYTES;
        const uint32_t *meta = (const uint32_t *)(from + 2 * HALF_BYTES);
        if (warp % 2 == 0) expand_keys<D, BITS>(k, from, meta, group, lane);
        else expand_values<D, BITS>(v, from + HALF_BYTES, meta, group, n_left, lane);
    } else if (warp % 2) {
        for (int i = lane; i < D * GROUP / 2; i += 32)
            put_swizzled(v, i / (GROUP / 2), group * GROUP + i % (GROUP / 2) * 2, 0);
    }
    fence_async_smem();
    __syncthreads();
    if (threadIdx.x != 0) return;
    uint8_t *tile =
        g.tiles + (((int64_t)b * g.kv.n_kv_heads + head) * g.max_tiles + page / 2) * sh::BYTES;
    for (int i = 0; i < sh::K_PARTS; i++)
        bulk_store(tile + (2 * i + page % 2) * K_PAGE, k + i * K_PAGE, K_PAGE);
    bulk_store(tile + sh::K_BYTES + page % 2 * (D * 128), v, D * 128);
    asm volatile("cp.async.bulk.commit_group;\ncp.async.bulk.wait_group 0;" ::: "memory");
}

/* ---- host -------------------------------------------------------------------------------- */

template <int D, int BITS>
static cudaError_t launch(const expand_args *g, dim3 grid, cudaStream_t stream)
{
    cudaLaunchAttribute attribute;
    cudaLaunchConfig_t config = {};
    attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attribute.val.programmaticStreamSerializationAllowed = 1;
    config.gridDim = grid;
    config.blockDim = dim3(N_THREADS);
    config.stream = stream;
    config.attrs = &attribute;
    config.numAttrs = 1;
    return cudaLaunchKernelEx(&config, expand_kernel<D, BITS>, *g);
}

template <int D>
static cudaError_t launch_bits(const expand_args *g, dim3 grid, cudaStream_t stream)
{
    if (g->kv.bits == 4) return launch<D, 4>(g, grid, stream);
    if (g->kv.bits == 8) return launch<D, 8>(g, grid, stream);
    if (g->kv.bits == 16) return launch<D, 16>(g, grid, stream);
    return cudaErrorInvalidValue;
}

cudaError_t fl__cuda_kv_expand(const fl_cuda_attention_prefill *a, uint8_t *tiles,
                               uint32_t *counter, cudaStream_t stream)
{
    const expand_args g = {*a->kv, a->first_row, a->position,
                           tiles,  counter,      tiles_of(a->max_tokens)};
    const dim3 grid((unsigned)g.max_tiles * 2, (unsigned)a->kv->n_kv_heads,
                    (unsigned)a->n_seqs);
    if (a->kv->D == 64) return launch_bits<64>(&g, grid, stream);
    if (a->kv->D == 80) return launch_bits<80>(&g, grid, stream);
    if (a->kv->D == 128) return launch_bits<128>(&g, grid, stream);
    return cudaErrorInvalidValue;
}
