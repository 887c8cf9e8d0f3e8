/* bench_attention_cuda.cu - rates of decode attention and of appending, all cache formats.
 *
 * Every contestant is a CUDA graph of launches that rotate through caches in an arena of 3 GB;
 * medians of rounds. Shares are of a copy kernel over 1 GB in this run.
 * SPDX-License-Identifier: MIT */
#include "bench_attention_cuda.h"

static int n_sm;

__global__ void copy_kernel(uint4 *to, const uint4 *from, size_t n)
{
    size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x;
    for (; i < n; i += (size_t)gridDim.x * blockDim.x) to[i] = from[i];
}

static double copy_rate(uint8_t *arena, size_t n)
{
    const float ms = median_ms([&](int, cudaStream_t s) {
        copy_kernel<<<n_sm * 16, 512, 0, s>>>((uint4 *)arena, (const uint4 *)(arena + n / 2),
                                              n / 32);
    });
    return n / (ms * 1e6);
}

/* One decode step over B sequences of n tokens; as many caches as fill the arena, in turn. */
static float bench_decode(uint8_t *arena, size_t arena_bytes, int bits, int D, int n_kv,
                          int group, int B, int n, double *gb)
{
    const int pages = (n + 63) / 64;
    fl_cuda_kv kv = {bits, D, n_kv, arena, NULL, pages};
    const size_t bytes = fl__cuda_kv_page_bytes(&kv) * (size_t)pages * (size_t)B;
    const int n_sets = (int)FL_MIN(arena_bytes / bytes, (size_t)PER_ROUND);
    std::vector<int> table((size_t)pages * B), lengths(B, n);
    for (size_t i = 0; i < table.size(); i++)
        table[i] = (int)(i * 7919 % table.size()); /* shuffled where 7919 does not divide */
    kv.table = (int32_t *)gpu_copy(table.data(), table.size() * 4);
    fl_cuda_attention a = {};
    const size_t n_q = (size_t)B * n_kv * group * D;
    a.q = gpu_alloc(n_q * 2), a.y = gpu_alloc(n_q * 2), a.q_bf16 = a.y_bf16 = true;
    fill_random<<<64, 256>>>((uint32_t *)a.q, n_q / 2, 9);
    a.n_heads = n_kv * group, a.n_seqs = B;
    a.n_tokens = (int32_t *)gpu_copy(lengths.data(), lengths.size() * 4);
    a.scale = 0.01f;
    const size_t ws = fl__cuda_attention_workspace_bytes(D, n_kv, B, n_sm);
    a.workspace = gpu_alloc(ws);
    CUDA_OK(cudaMemset(a.workspace, 0, ws));
    const float ms = median_ms([&](int i, cudaStream_t s) {
        fl_cuda_kv one = kv;
        one.pages = arena + (size_t)(i % n_sets) * bytes;
        a.kv = &one;
        FL_OK_OR_EXIT(fl__cuda_attention_decode(&a, n_sm, s, &err));
    });
    *gb = bytes / (ms * 1e6);
    CUDA_OK(cudaFree((void *)a.q));
    CUDA_OK(cudaFree(a.y));
    CUDA_OK(cudaFree(a.workspace));
    CUDA_OK(cudaFree((void *)a.n_tokens));
    CUDA_OK(cudaFree((void *)kv.table));
    return ms;
}

static void bench_append(uint8_t *arena, double copy, int bits, int B, int rows)
{
    enum { D = 128, N_KV = 8, N_HEADS = 32 };
    const int width = (N_HEADS + 2 * N_KV) * D, pages = rows > 1 ? rows / 64 : 32;
    std::vector<int> table((size_t)pages * B), first(1, 0), position(B, rows > 1 ? 0 : 2000);
    for (size_t i = 0; i < table.size(); i++) table[i] = (int)i;
    for (int b = 0; b < B; b++) first.push_back((b + 1) * rows);
    fl_cuda_kv kv = {bits, D, N_KV, NULL, NULL, pages};
    const size_t kv_bytes = fl__cuda_kv_page_bytes(&kv) * table.size();
    const size_t x_bytes = (size_t)B * rows * width * 2,
                 q_bytes = (size_t)B * rows * N_HEADS * D * 2;
    const size_t set = (kv_bytes + x_bytes + q_bytes + 255) / 256 * 256;
    const int n_sets = set > (100u << 20) ? 2 : 4;
    std::vector<float> one(4096 * D / 2, 0.7f);
    kv.table = (int32_t *)gpu_copy(table.data(), table.size() * 4);
    fl_cuda_kv_append a = {};
    a.kv = &kv;
    a.ldq = a.ldk = a.ldv = width, a.x_bf16 = true, a.n_heads = N_HEADS;
    a.cos = a.sin = (float *)gpu_copy(one.data(), one.size() * 4);
    a.first_row = (int32_t *)gpu_copy(first.data(), first.size() * 4);
    a.position = (int32_t *)gpu_copy(position.data(), position.size() * 4);
    a.n_seqs = B, a.max_rows = rows;
    for (int i = 0; i < 4; i++) a.clip[i] = 1;
    const float ms = median_ms([&](int i, cudaStream_t s) {
        uint8_t *at = arena + (size_t)(i % n_sets) * set;
        const uint16_t *x = (const uint16_t *)(at + kv_bytes);
        kv.pages = at;
        a.q = x, a.k = x + N_HEADS * D, a.v = x + (N_HEADS + N_KV) * D;
        a.q_out = (uint16_t *)(at + kv_bytes + x_bytes);
        FL_OK_OR_EXIT(fl__cuda_kv_append(&a, s, &err));
    });
    const double bytes = x_bytes + q_bytes + (rows > 1 ? (double)kv_bytes : 0);
    printf("append kv%-2d %2d x %4d rows: %.4f ms, %5.0f GB/s, %3.0f %% of copy\n", bits, B,
           rows, ms, bytes / (ms * 1e6), 100 * bytes / (ms * 1e6) / copy);
    CUDA_OK(cudaFree((void *)a.cos));
    CUDA_OK(cudaFree((void *)a.first_row));
    CUDA_OK(cudaFree((void *)a.position));
    CUDA_OK(cudaFree((void *)kv.table));
}

void bench_attention(int n, bool quick, int only)
{
    n_sm = n;
    static const int shapes[][5] = {
        /* D, kv heads, group, B, n */
        {128, 8, 4, 1, 32768},  {128, 8, 4, 1, 16384}, {128, 8, 4, 1, 4096},
        {128, 8, 4, 1, 131072}, {128, 8, 4, 16, 2048}, {128, 8, 4, 64, 2048},
        {128, 32, 1, 16, 2048}, {64, 32, 1, 16, 2048}, {80, 32, 1, 16, 2048},
        {128, 8, 8, 8, 4096},   {128, 8, 4, 64, 512},
    };
    const size_t arena_bytes = (size_t)3 << 30;
    uint8_t *arena = (uint8_t *)gpu_alloc(arena_bytes);
    fill_random<<<1024, 256>>>((uint32_t *)arena, arena_bytes / 4, 1);
    CUDA_OK(cudaDeviceSynchronize());
    const double copy = copy_rate(arena, (size_t)1 << 30);
    printf("copy %.0f GB/s (read + write)\n", copy);
    for (size_t i = 0; i < FL_COUNT(shapes) - (quick ? 3 : 0); i++) {
        const int *s = shapes[i];
        if (only >= 0 && (int)i != only) continue;
        float ms[3];
        double gb[3];
        for (int f = 0; f < 3; f++)
            ms[f] =
                bench_decode(arena, arena_bytes, 4 << f, s[0], s[1], s[2], s[3], s[4], &gb[f]);
        printf("decode D %-3d %2d x %d heads, %2d x %6d tokens:", s[0], s[1], s[2], s[3], s[4]);
        for (int f = 0; f < 3; f++)
            printf("  %s %.4f ms %4.0f GB/s %3.0f %%",
                   f == 2 ? "bf16"
                   : f    ? "kv8"
                          : "kv4",
                   ms[f], gb[f], 100 * gb[f] / copy);
        printf("  bf16/kv4 %.2f bf16/kv8 %.2f\n", ms[2] / ms[0], ms[2] / ms[1]);
        fflush(stdout);
    }
    for (int f = 0; f < 3 && only < 0; f++) {
        bench_append(arena, copy, 4 << f, 1, 4096);
        bench_append(arena, copy, 4 << f, 64, 1);
    }
    CUDA_OK(cudaFree(arena));
}
