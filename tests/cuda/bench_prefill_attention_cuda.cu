/* bench_prefill_attention_cuda.cu - rates of prefill attention, all cache formats.
 *
 * Medians of graphs as in bench_attention_cuda.cu. TFLOP/s count 4 D per head and pair of a row
 * and a token that it sees; "expand" is the first of the two launches alone.
 * SPDX-License-Identifier: MIT */
#include "bench_attention_cuda.h"
#include "check_attention_cuda.h"

#include "cuda/attention_tiles.h"
#include "cuda/sm90.h"

static const size_t ARENA_BYTES = (size_t)2 << 30;

typedef struct prefill_shape {
    int D, n_kv, group, B, rows, position;
} prefill_shape;

typedef struct prefill_time {
    float ms, expand_ms;
} prefill_time;

/* bf16 evenly between -2 and 2: what runs through the multipliers decides the clock. */
static __global__ void fill_uniform(uint32_t *p, size_t n)
{
    size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x;
    for (; i < n; i += (size_t)gridDim.x * blockDim.x) {
        uint64_t h = (i + 77) * 0x9e3779b97f4a7c15ull;
        h = (h ^ h >> 30) * 0xbf58476d1ce4e5b9ull;
        h ^= h >> 31;
        p[i] = bf16x2((float)(uint16_t)h / 16384 - 2, (float)(uint16_t)(h >> 16) / 16384 - 2);
    }
}

/* All tokens' keys and values from x into the cache. */
static void fill_cache(const fl_cuda_kv *kv, const void *x, int B, int n)
{
    std::vector<int> first(1, 0), position(B, 0);
    for (int b = 0; b < B; b++) first.push_back((b + 1) * n);
    fl_cuda_kv_append a = {};
    a.kv = kv;
    a.k = x, a.v = (const uint16_t *)x + kv->D * kv->n_kv_heads;
    a.ldk = a.ldv = 2 * kv->D * kv->n_kv_heads, a.x_bf16 = true;
    a.first_row = (int32_t *)gpu_copy(first.data(), first.size() * 4);
    a.position = (int32_t *)gpu_copy(position.data(), position.size() * 4);
    a.n_seqs = B, a.max_rows = n;
    for (int i = 0; i < 4; i++) a.clip[i] = 1;
    FL_OK_OR_EXIT(fl__cuda_kv_append(&a, NULL, &err));
    CUDA_OK(cudaDeviceSynchronize());
    CUDA_OK(cudaFree((void *)a.first_row));
    CUDA_OK(cudaFree((void *)a.position));
}

/* q, y, the cache and the workspace in turn in the arena. */
static prefill_time bench_one(uint8_t *arena, const prefill_shape *s, int bits)
{
    const int n = s->position + s->rows, pages = (n + 63) / 64;
    const size_t n_q = (size_t)s->B * s->rows * s->n_kv * s->group * s->D;
    std::vector<int> table((size_t)pages * s->B), first(1, 0), position(s->B, s->position);
    for (size_t i = 0; i < table.size(); i++) table[i] = (int)(i * 7919 % table.size());
    for (int b = 0; b < s->B; b++) first.push_back((b + 1) * s->rows);
    fl_cuda_kv kv = {bits, s->D, s->n_kv, NULL, NULL, pages};
    kv.table = (int32_t *)gpu_copy(table.data(), table.size() * 4);
    fl_cuda_attention_prefill a = {};
    a.kv = &kv, a.y_bf16 = true, a.n_heads = s->n_kv * s->group, a.n_seqs = s->B;
    a.first_row = (int32_t *)gpu_copy(first.data(), first.size() * 4);
    a.position = (int32_t *)gpu_copy(position.data(), position.size() * 4);
    a.max_rows = s->rows, a.max_tokens = n, a.scale = 1 / sqrtf((float)s->D);
    a.q = (uint16_t *)arena, a.y = arena + n_q * 2;
    kv.pages = arena + n_q * 4;
    a.workspace = kv.pages + (fl__cuda_kv_page_bytes(&kv) * table.size() + 255) / 256 * 256;
    /* the workspace holds what the cache is made of, at first */
    fill_uniform<<<1024, 256>>>((uint32_t *)arena, ARENA_BYTES / 4);
    fill_cache(&kv, a.workspace, s->B, n);
    prefill_time t;
    t.ms = median_ms([&](int, cudaStream_t stream) {
        FL_OK_OR_EXIT(fl__cuda_attention_prefill(&a, stream, &err));
    });
    t.expand_ms = median_ms([&](int, cudaStream_t stream) {
        CUDA_OK(fl__cuda_kv_expand(&a, (uint8_t *)a.workspace + 128, (uint32_t *)a.workspace,
                                   stream));
    });
    CUDA_OK(cudaFree((void *)kv.table));
    CUDA_OK(cudaFree((void *)a.first_row));
    CUDA_OK(cudaFree((void *)a.position));
    return t;
}

void bench_prefill(bool quick, int only)
{
    static const prefill_shape shapes[] = {
        {128, 8, 4, 1, 4096, 0},   {128, 8, 4, 1, 1024, 0},    {128, 8, 4, 1, 16384, 0},
        {128, 8, 4, 16, 512, 0},   {128, 8, 4, 1, 2048, 6144}, {128, 32, 1, 1, 4096, 0},
        {64, 32, 1, 1, 4096, 0},   {64, 8, 4, 1, 4096, 0},     {80, 32, 1, 1, 4096, 0},
        {128, 8, 4, 1, 128, 8064},
    };
    uint8_t *arena = (uint8_t *)gpu_alloc(ARENA_BYTES);
    for (size_t i = 0; i < (quick ? 2 : FL_COUNT(shapes)); i++) {
        const prefill_shape *s = &shapes[i];
        if (only >= 0 && (int)i != only) continue;
        const double pairs = (double)s->B * s->rows * (s->position + (s->rows + 1) / 2.0);
        const double tflop = 4e-12 * pairs * s->D * s->n_kv * s->group;
        printf("prefill D %-3d %2d x %d heads, %2d x %5d rows at %4d:", s->D, s->n_kv, s->group,
               s->B, s->rows, s->position);
        for (int bits = 4; bits <= 16; bits *= 2) {
            const prefill_time t = bench_one(arena, s, bits);
            printf("  kv%d %.4f ms %3.0f TFLOP/s, expand %.4f", bits, t.ms, tflop / t.ms * 1e3,
                   t.expand_ms);
        }
        printf("\n");
        fflush(stdout);
    }
    CUDA_OK(cudaFree(arena));
}
