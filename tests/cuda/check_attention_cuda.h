/* check_attention_cuda.h - caches with tokens in them, their values read one by one; what the
 * checks of append, decode and prefill share.
 * SPDX-License-Identifier: MIT */
#ifndef FL_TESTS_CHECK_ATTENTION_CUDA_H
#define FL_TESTS_CHECK_ATTENTION_CUDA_H

#include "cuda_test.h"

#include "cuda/attention_cuda.h"

#include <math.h>
#include <string.h>
#include <vector>

extern "C" {
#include "base/float16.h"
}

typedef struct tally {
    int passed, failed;
} tally;

/* ---- a cache with tokens in it ----------------------------------------------------------- */

typedef struct problem {
    int bits, D, n_kv, n_heads, B, max_n;
    std::vector<int> n; /* tokens */
    std::vector<int> table, first;
    std::vector<float> q, k, v, cos_, sin_; /* rows in the order of the sequences */
    int stride;
    fl_cuda_kv kv;
    int32_t *n_gpu;
    size_t page_bytes, n_pages;
} problem;

static inline float uniform(uint64_t *seed)
{
    return (float)(next_random(seed) & 0xffffff) / 8388608.0f - 1.0f;
}

static inline void problem_init(problem *p, int bits, int D, int n_kv, int group,
                                const std::vector<int> &n, uint64_t *seed)
{
    int rows = 0, pages = 0;
    p->bits = bits, p->D = D, p->n_kv = n_kv, p->n_heads = n_kv * group;
    p->n = n, p->B = (int)n.size(), p->max_n = 0, p->stride = 0;
    p->first.assign(1, 0);
    for (int x : n) {
        p->max_n = x > p->max_n ? x : p->max_n;
        rows += x;
        pages += (x + 63) / 64;
        p->first.push_back(rows);
    }
    p->stride = (p->max_n + 63) / 64 + 1;
    std::vector<int> order(pages);
    for (int i = 0; i < pages; i++) order[i] = i;
    for (int i = pages - 1; i > 0; i--) {
        const int j = (int)(next_random(seed) % (uint64_t)(i + 1)), t = order[i];
        order[i] = order[j], order[j] = t;
    }
    p->table.assign((size_t)p->B * p->stride, -1);
    for (int b = 0, at = 0; b < p->B; b++)
        for (int i = 0; i < (n[b] + 63) / 64; i++) p->table[b * p->stride + i] = order[at++];
    p->k.resize((size_t)rows * n_kv * D), p->v.resize(p->k.size());
    p->q.resize((size_t)rows * 1 * D);
    for (size_t i = 0; i < p->k.size(); i++) {
        p->k[i] = uniform(seed) + uniform(seed) + (i % D == 3 ? 4.0f : 0.0f);
        p->v[i] = uniform(seed) + uniform(seed) + 0.3f;
    }
    p->cos_.resize((size_t)p->max_n * D / 2), p->sin_.resize(p->cos_.size());
    for (int t = 0; t < p->max_n; t++)
        for (int i = 0; i < D / 2; i++) {
            const double angle = t * pow(10000.0, -2.0 * i / D);
            p->cos_[(size_t)t * D / 2 + i] = (float)cos(angle);
            p->sin_[(size_t)t * D / 2 + i] = (float)sin(angle);
        }
    p->kv.bits = bits, p->kv.D = D, p->kv.n_kv_heads = n_kv, p->kv.table_stride = p->stride;
    p->page_bytes = fl__cuda_kv_page_bytes(&p->kv), p->n_pages = (size_t)pages;
    p->kv.pages = (uint8_t *)gpu_alloc(p->page_bytes * p->n_pages);
    CUDA_OK(cudaMemset(p->kv.pages, 0xff, p->page_bytes * p->n_pages));
    p->kv.table = (int32_t *)gpu_copy(p->table.data(), p->table.size() * 4);
    p->n_gpu = (int32_t *)gpu_copy(n.data(), n.size() * 4);
}

static inline void problem_fini(problem *p)
{
    CUDA_OK(cudaFree(p->kv.pages));
    CUDA_OK(cudaFree((void *)p->kv.table));
    CUDA_OK(cudaFree(p->n_gpu));
}

/* Appends tokens [from, to) of each sequence as far as it has them. */
static inline void append(problem *p, const float *clip, int from, int to)
{
    const int row = p->n_kv * p->D;
    std::vector<int> first(1, 0), position;
    std::vector<float> k, v;
    int max_rows = 0;
    for (int b = 0; b < p->B; b++) {
        const int t0 = FL_MIN(from, p->n[b]), t1 = FL_MIN(to, p->n[b]);
        const size_t at = (size_t)(p->first[b] + t0) * row, n = (size_t)(t1 - t0) * row;
        k.insert(k.end(), p->k.begin() + at, p->k.begin() + at + n);
        v.insert(v.end(), p->v.begin() + at, p->v.begin() + at + n);
        first.push_back(first.back() + t1 - t0);
        position.push_back(t0);
        max_rows = max_rows > t1 - t0 ? max_rows : t1 - t0;
    }
    if (k.empty()) return;
    fl_cuda_kv_append a = {};
    a.kv = &p->kv;
    a.k = gpu_copy(k.data(), k.size() * 4), a.v = gpu_copy(v.data(), v.size() * 4);
    a.ldk = a.ldv = row;
    a.cos = (float *)gpu_copy(p->cos_.data(), p->cos_.size() * 4);
    a.sin = (float *)gpu_copy(p->sin_.data(), p->sin_.size() * 4);
    a.first_row = (int32_t *)gpu_copy(first.data(), first.size() * 4);
    a.position = (int32_t *)gpu_copy(position.data(), position.size() * 4);
    a.n_seqs = p->B, a.max_rows = max_rows;
    memcpy(a.clip, clip, sizeof a.clip);
    FL_OK_OR_EXIT(fl__cuda_kv_append(&a, NULL, &err));
    CUDA_OK(cudaDeviceSynchronize());
    CUDA_OK(cudaFree((void *)a.k));
    CUDA_OK(cudaFree((void *)a.v));
    CUDA_OK(cudaFree((void *)a.cos));
    CUDA_OK(cudaFree((void *)a.sin));
    CUDA_OK(cudaFree((void *)a.first_row));
    CUDA_OK(cudaFree((void *)a.position));
}

static inline std::vector<uint8_t> fetch_pages(const problem *p)
{
    std::vector<uint8_t> out(p->page_bytes * p->n_pages);
    CUDA_OK(cudaMemcpy(out.data(), p->kv.pages, out.size(), cudaMemcpyDeviceToHost));
    return out;
}

/* The layout of attention_cuda.h, read one value at a time. */
static inline uint32_t word_of(const uint8_t *words, int w, int lane, int n)
{
    const int quads = n / 4;
    const int at = w / 4 < quads ? (w / 4 * 32 + lane) * 4 + w % 4
                                 : quads * 128 + (w - quads * 4) * 32 + lane;
    uint32_t v;
    memcpy(&v, words + 4 * at, 4);
    return v;
}

static inline int raw_value(const uint8_t *words, int bits, int D, bool is_v, int t, int d)
{
    const int i = is_v ? d % 16 : t, j = is_v ? t : d % 16, f = d / 16, n = D * bits / 64;
    const int lane = 4 * (i % 8) + j % 8 / 2, a = i / 8 + 2 * (j / 8), e = j % 2;
    if (bits == 16) return word_of(words, 4 * f + a, lane, n) >> 16 * e & 0xffff;
    if (bits == 4) return word_of(words, f, lane, n) >> 4 * (a + 4 * e) & 15;
    if (is_v) return word_of(words, 2 * f + a / 2, lane, n) >> 8 * (a % 2 + 2 * e) & 255;
    return word_of(words, 2 * f + i / 8, 4 * (i % 8) + j / 4, n) >> 8 * (j % 4) & 255;
}

typedef struct token_view {
    const uint8_t *words, *meta;
    int bits, D, t;
    bool is_v;
} token_view;

static inline token_view view(const problem *p, const std::vector<uint8_t> &pages, int b,
                              int head, int t, bool is_v)
{
    const size_t group = fl__cuda_kv_group_bytes(p->D, p->bits);
    const uint8_t *at = pages.data() +
                        (size_t)p->table[b * p->stride + t / 64] * p->page_bytes +
                        ((size_t)head * 4 + t % 64 / 16) * group;
    const size_t half = (size_t)2 * p->D * p->bits;
    return {at + (is_v ? half : 0), at + 2 * half, p->bits, p->D, t % 16, is_v};
}

static inline uint16_t view_scale(const token_view *w)
{
    uint16_t s;
    memcpy(&s, w->meta + 32 * w->is_v + w->t % 8 * 4 + w->t / 8 * 2, 2);
    return s;
}

static inline int view_zero(const token_view *w)
{
    return w->meta[64 + w->t % 8 * 4 + 2 * w->is_v + w->t / 8];
}

static inline void view_values(const token_view *w, float *out)
{
    for (int d = 0; d < w->D; d++) {
        const int c = raw_value(w->words, w->bits, w->D, w->is_v, w->t, d);
        out[d] = w->bits == 16 ? fl__bf16_to_f32((uint16_t)c)
                               : (float)(c - view_zero(w)) * fl__f16_to_f32(view_scale(w));
    }
}

/* check_prefill_attention_cuda.cu */
typedef enum prefill_choice { PREFILL_ALL, PREFILL_QUICK, PREFILL_TINY } prefill_choice;
tally check_prefill(prefill_choice choice);

/* bench_prefill_attention_cuda.cu */
void bench_prefill(bool quick, int only);

#endif
