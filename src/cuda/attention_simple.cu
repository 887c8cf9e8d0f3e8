/* attention_simple.cu - attention over the paged cache, a CTA per query row and head: for sizes
 * that the fast kernels do not have, and as their check.
 *
 * Sixteen tokens at a time: keys are expanded from the cache's fragments (attention_cuda.h) to
 * float32 in shared memory, scores and the running softmax follow, then values likewise.
 * SPDX-License-Identifier: MIT */
#include "cuda/engine_kernels.h"

#include "cuda/attention_sm90.h"

#include <cuda_fp16.h>
#include <cuda_runtime.h>

enum { N_THREADS = 128, MAX_D = 128, GROUP = FL_CUDA_KV_GROUP };

typedef struct simple_args {
    fl_cuda_attention_simple a;
    fl_cuda_kv kv;
    int64_t group_bytes;
} simple_args;

/* Where word w of a lane lies among n words per lane. */
DEV int word_at(int w, int lane, int n)
{
    const int quads = n / 4;
    if (w / 4 < quads) return (w / 4 * 32 + lane) * 4 + w % 4;
    return quads * 128 + (w - 4 * quads) * 32 + lane;
}

/* Value of token t, channel d; which: 0 keys, 1 values. */
DEV float cached(const uint32_t *group, int which, int t, int d, int D, int bits)
{
    const int i = which ? d % 16 : t, j = which ? t : d % 16, f = d / 16;
    const int lane = 4 * (i % 8) + j % 8 / 2, a = i / 8 + 2 * (j / 8), e = j % 2;
    const int n = D * bits / 64, r = t % 8, upper = t / 8;
    const uint32_t *words = group + which * 32 * n, *meta = group + 64 * n;
    if (bits == 16) {
        const uint32_t w = words[word_at(4 * f + a, lane, n)];
        return e ? high_half(w) : low_half(w);
    }
    int code;
    if (bits == 4) code = words[word_at(f, lane, n)] >> 4 * (a + 4 * e) & 15;
    else if (which) code = words[word_at(2 * f + a / 2, lane, n)] >> 8 * (a % 2 + 2 * e) & 255;
    else code = words[word_at(2 * f + i / 8, 4 * (i % 8) + j / 4, n)] >> 8 * (j % 4) & 255;
    const float scale =
        __half2float(__ushort_as_half((uint16_t)(meta[8 * which + r] >> 16 * upper)));
    const int zero = meta[16 + r] >> (16 * which + 8 * upper) & 255;
    return (float)(code - zero) * scale;
}

__global__ void __launch_bounds__(N_THREADS)
    simple_kernel(const __grid_constant__ simple_args g)
{
    __shared__ float q[MAX_D], x[GROUP][MAX_D + 1], score[GROUP];
    const int b = blockIdx.z, head = blockIdx.y, row = blockIdx.x, D = g.kv.D;
    const int first = g.a.first_row[b], n_rows = g.a.first_row[b + 1] - first;
    if (row >= n_rows) return;
    const int n_tokens = g.a.position[b] + row + 1;
    const int kv_head = head / (g.a.n_heads / g.kv.n_kv_heads), d = threadIdx.x;
    const int64_t at = ((int64_t)(first + row) * g.a.n_heads + head) * D;
    float m = -INFINITY, l = 0, o = 0;
    if (d < D) q[d] = low_half(g.a.q[at + d]);
    for (int t0 = 0; t0 < n_tokens; t0 += GROUP) {
        const int page = g.kv.table[(int64_t)b * g.kv.table_stride + t0 / 64];
        const int n = min(n_tokens - t0, (int)GROUP);
        const uint32_t *group =
            (const uint32_t *)(g.kv.pages + (((int64_t)page * g.kv.n_kv_heads + kv_head) * 4 +
                                             t0 / GROUP % 4) *
                                                g.group_bytes);
        __syncthreads();
        for (int i = threadIdx.x; i < n * D; i += N_THREADS)
            x[i / D][i % D] = cached(group, 0, i / D, i % D, D, g.kv.bits);
        __syncthreads();
        if (threadIdx.x < n) {
            float s = 0;
            for (int i = 0; i < D; i++) s = fmaf(q[i], x[threadIdx.x][i], s);
            score[threadIdx.x] = s * g.a.scale;
        }
        __syncthreads();
        float top = m;
        for (int t = 0; t < n; t++) top = fmaxf(top, score[t]);
        const float shrink = __expf(m - top);
        l *= shrink;
        o *= shrink;
        m = top;
        for (int t = 0; t < n; t++) {
            const float p = __expf(score[t] - m);
            l += p;
            if (d < D) o = fmaf(p, cached(group, 1, t, d, D, g.kv.bits), o);
        }
    }
    if (d >= D) return;
    if (g.a.y_bf16) ((uint16_t *)g.a.y)[at + d] = (uint16_t)bf16x2(o / l, 0.0f);
    else ((float *)g.a.y)[at + d] = o / l;
}

extern "C" fl_status fl__cuda_attention_simple(const fl_cuda_attention_simple *a, void *stream,
                                               fl_err *err)
{
    const simple_args g = {*a, *a->kv, (int64_t)fl__cuda_kv_group_bytes(a->kv->D, a->kv->bits)};
    const dim3 grid((unsigned)a->max_rows, (unsigned)a->n_heads, (unsigned)a->n_seqs);
    simple_kernel<<<grid, N_THREADS, 0, (cudaStream_t)stream>>>(g);
    const cudaError_t e = cudaGetLastError();
    if (e != cudaSuccess)
        return fl__fail(err, FL_E_FAIL, "cuda: attention of %d rows: %s; see the GPU's log",
                        a->max_rows, cudaGetErrorString(e));
    return FL_OK;
}
