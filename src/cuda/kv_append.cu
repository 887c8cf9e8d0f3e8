/* kv_append.cu - new tokens into the paged cache: rotary embedding, grid, codes, layout.
 *
 * A CTA owns a group of 16 tokens of a sequence and KV head, so that words shared by several
 * tokens have one writer. Eight threads per row hold 8 values of its first half and the 8 that
 * rotate with them each, find the grid by shuffles and leave codes in shared memory. Then a
 * thread per word gathers its codes, keeping those of older tokens. The same CTA rotates its KV
 * head's query heads. All that a thread reads is on its way before it computes. Floats as on
 * the CPU: each operation rounded on its own.
 * SPDX-License-Identifier: MIT */
#include "cuda/attention_cuda.h"

#include "cuda/launch.h"
#include "cuda/sm90.h"

#include <cuda_fp16.h>
#include <cuda_runtime.h>

enum {
    N_THREADS = 256,
    GROUP = FL_CUDA_KV_GROUP,
    PER_ROW = 8, /* threads */
    STRIDE = 144 /* codes between rows in shared memory: off the same banks */
};

typedef struct append_args {
    fl_cuda_kv_append a;
    fl_cuda_kv kv;
    bool aligned; /* rows begin at multiples of 16 bytes */
} append_args;

/* The group's new tokens: t0 <= t < t1 of it, in row `row` + t of q, k and v. */
typedef struct span {
    int t0, t1, row, position; /* of t = 0 */
} span;

template <int BITS> struct code_type {
    typedef uint8_t type;
};
template <> struct code_type<16> {
    typedef uint16_t type; /* bf16 */
};

template <int BITS> struct shared_rows {
    __align__(16) typename code_type<BITS>::type value[2][GROUP][STRIDE];
    uint16_t scale[2][GROUP];
    uint8_t zero[2][GROUP];
};

/* ---- rows -------------------------------------------------------------------------------- */

/* A thread's part of a row as it lies: 8 values of its first half, 8 of its second. */
template <bool X16> struct raw_row {
    uint4 v[X16 ? 2 : 4];
};

DEV uint4 load_16(const void *from, bool aligned)
{
    const uint32_t *p = (const uint32_t *)from;
    if (aligned) return *(const uint4 *)from;
    return make_uint4(p[0], p[1], p[2], p[3]);
}

template <bool X16>
DEV void load_row(raw_row<X16> *r, const void *from, int64_t at, int half, bool aligned)
{
#pragma unroll
    for (int i = 0; i < 2; i++) {
        if constexpr (X16) {
            r->v[i] = load_16((const uint16_t *)from + at + i * half, aligned);
        } else {
            r->v[2 * i] = load_16((const float *)from + at + i * half, aligned);
            r->v[2 * i + 1] = load_16((const float *)from + at + i * half + 4, aligned);
        }
    }
}

template <bool X16> DEV void row_values(float *x, const raw_row<X16> *r)
{
#pragma unroll
    for (int i = 0; i < (X16 ? 8 : 16); i++) {
        const uint4 v = r->v[i / 4];
        const uint32_t w = i % 4 == 0 ? v.x : i % 4 == 1 ? v.y : i % 4 == 2 ? v.z : v.w;
        if (X16) x[2 * i % 16] = __uint_as_float(w << 16);
        if (X16) x[(2 * i + 1) % 16] = __uint_as_float(w & 0xffff0000u);
        else x[i] = __uint_as_float(w);
    }
}

DEV void load_eight(float *x, const float *from)
{
    const float4 u = *(const float4 *)from, v = *(const float4 *)(from + 4);
    x[0] = u.x, x[1] = u.y, x[2] = u.z, x[3] = u.w;
    x[4] = v.x, x[5] = v.y, x[6] = v.z, x[7] = v.w;
}

DEV void rotate(float *x, const fl_cuda_kv_append *a, int position, int d, int half)
{
    float c[8], s[8];
    if (!a->cos) return;
    load_eight(c, a->cos + (int64_t)position * half + d);
    load_eight(s, a->sin + (int64_t)position * half + d);
#pragma unroll
    for (int i = 0; i < 8; i++) {
        const float u = x[i], v = x[i + 8];
        x[i] = __fsub_rn(__fmul_rn(u, c[i]), __fmul_rn(v, s[i]));
        x[i + 8] = __fadd_rn(__fmul_rn(v, c[i]), __fmul_rn(u, s[i]));
    }
}

DEV uint4 eight_bf16(const float *x)
{
    return make_uint4(bf16x2(x[0], x[1]), bf16x2(x[2], x[3]), bf16x2(x[4], x[5]),
                      bf16x2(x[6], x[7]));
}

DEV uint32_t code_of(float x, float inv, float zero, float qmax)
{
    const float u = __fadd_rn(rintf(__fmul_rn(x, inv)), zero);
    return (uint32_t)(int)fminf(fmaxf(u, 0), qmax); /* NaN: 0 */
}

/* Codes of one row, of which the thread has 16 values, or zeros. */
template <int BITS>
DEV void quantize_row(shared_rows<BITS> *s, int which, int t, const float *x, const float *clip,
                      int c, int half)
{
    const float qmax = (float)((1 << BITS) - 1);
    float hi = 0, lo = 0;
#pragma unroll
    for (int i = 0; i < 16; i++) hi = fmaxf(hi, x[i]), lo = fmaxf(lo, -x[i]);
#pragma unroll
    for (int i = 1; i < PER_ROW; i *= 2) {
        hi = fmaxf(hi, __shfl_xor_sync(~0u, hi, i));
        lo = fmaxf(lo, __shfl_xor_sync(~0u, lo, i));
    }
    hi = __fmul_rn(clip[0], hi);
    lo = __fmul_rn(clip[1], -lo);
    uint16_t scale = __half_as_ushort(__float2half_rn(__fdiv_rn(__fsub_rn(hi, lo), qmax)));
    if (scale == 0 || (scale & 0x7c00u) == 0x7c00u) scale = 0x3c00u;
    const float inv = __fdiv_rn(1.0f, __half2float(__ushort_as_half(scale)));
    const float zero = fminf(rintf(__fmul_rn(-lo, inv)), qmax);
    if (c == 0) {
        s->scale[which][t] = scale;
        s->zero[which][t] = (uint8_t)zero;
    }
    if (8 * c >= half) return;
#pragma unroll
    for (int j = 0; j < 2; j++) {
        uint32_t w[2] = {0, 0};
#pragma unroll
        for (int i = 0; i < 8; i++)
            w[i / 4] |= code_of(x[8 * j + i], inv, zero, qmax) << i % 4 * 8;
        *(uint2 *)&s->value[which][t][j * half + 8 * c] = make_uint2(w[0], w[1]);
    }
}

/* The thread's row of K or V. */
typedef struct kv_row {
    int which, t;
    bool inside;
} kv_row;

template <int D> DEV kv_row my_row(const span *p)
{
    const int i = threadIdx.x / PER_ROW, t = i % GROUP;
    return {i / GROUP, t, t >= p->t0 && t < p->t1 && 8 * (threadIdx.x % PER_ROW) < D / 2};
}

template <int D, bool X16>
DEV void load_kv(raw_row<X16> *raw, const append_args *g, const span *p, kv_row r, int head)
{
    const int64_t ld = r.which ? g->a.ldv : g->a.ldk;
    if (r.inside)
        load_row<X16>(raw, r.which ? g->a.v : g->a.k,
                      (p->row + r.t) * ld + head * D + threadIdx.x % PER_ROW * 8, D / 2,
                      g->aligned);
}

template <int D, int BITS, bool X16>
DEV void fill_rows(shared_rows<BITS> *s, const append_args *g, const span *p,
                   const raw_row<X16> *raw, kv_row r)
{
    constexpr int half = D / 2;
    const int c = threadIdx.x % PER_ROW;
    float x[16] = {};
    if (r.inside) {
        row_values<X16>(x, raw);
        if (!r.which) rotate(x, &g->a, p->position + r.t, 8 * c, half);
    }
    if constexpr (BITS < 16) {
        quantize_row<BITS>(s, r.which, r.t, x, g->a.clip + 2 * r.which, c, half);
    } else if (r.inside) {
        *(uint4 *)&s->value[r.which][r.t][8 * c] = eight_bf16(x);
        *(uint4 *)&s->value[r.which][r.t][half + 8 * c] = eight_bf16(x + 8);
    }
}

/* The query heads of a KV head: `count` of h0 and on; n rows, token by token. */
typedef struct q_rows {
    int h0, count, n;
} q_rows;

enum { AHEAD = 2, Q_STEP = N_THREADS / PER_ROW }; /* rows of q that a thread has on its way */

/* Where the thread's part of row i of them lies, rows of ld elements. */
template <int D> DEV int64_t q_row_at(const span *p, q_rows r, int i, int64_t ld)
{
    return (p->row + p->t0 + i / r.count) * ld + (r.h0 + i % r.count) * D +
           threadIdx.x % PER_ROW * 8;
}

template <int D, bool X16>
DEV void load_q_rows(raw_row<X16> *raw, const append_args *g, const span *p, q_rows r, int i)
{
#pragma unroll
    for (int k = 0; k < AHEAD; k++)
        if (i + k * Q_STEP < r.n)
            load_row<X16>(raw + k, g->a.q, q_row_at<D>(p, r, i + k * Q_STEP, g->a.ldq), D / 2,
                          g->aligned);
}

template <int D, bool X16>
DEV void rotate_q_rows(const raw_row<X16> *raw, const append_args *g, const span *p, q_rows r,
                       int i)
{
#pragma unroll
    for (int k = 0; k < AHEAD; k++) {
        const int at = i + k * Q_STEP;
        float x[16];
        if (at >= r.n) return;
        row_values<X16>(x, raw + k);
        rotate(x, &g->a, p->position + p->t0 + at / r.count, threadIdx.x % PER_ROW * 8, D / 2);
        uint16_t *to = g->a.q_out + q_row_at<D>(p, r, at, (int64_t)g->a.n_heads * D);
        *(uint4 *)to = eight_bf16(x);
        *(uint4 *)(to + D / 2) = eight_bf16(x + 8);
    }
}

/* ---- words ------------------------------------------------------------------------------- */

/* Where word w of a lane lies among n words per lane, in words. */
DEV int word_at(int w, int lane, int n)
{
    const int quads = n / 4;
    if (w / 4 < quads) return (w / 4 * 32 + lane) * 4 + w % 4;
    return quads * 128 + (w - 4 * quads) * 32 + lane;
}

/* Token and d of value i of word w of a lane: K's token or V's d is the fragment's row. */
typedef struct place {
    int t, d;
} place;

template <int BITS> DEV place place_of(int which, int lane, int w, int i)
{
    const bool bytes = BITS == 8 && !which;
    const int f = BITS == 16 ? w / 4 : w * 4 / BITS;
    const int a = BITS == 16 ? w % 4 : BITS == 8 ? w % 2 * 2 + i % 2 : i % 4;
    const int e = BITS == 16 ? i : i / (BITS == 8 ? 2 : 4);
    const int row = lane / 4 + 8 * (bytes ? w % 2 : a % 2);
    const int column = bytes ? lane % 4 * 4 + i : lane % 4 * 2 + e + 8 * (a / 2);
    return {which ? column : row, 16 * f + (which ? row : column)};
}

/* The bits of new tokens in the word. */
template <int BITS> DEV uint32_t fresh_bits(const span *p, int which, int lane, int w)
{
    uint32_t out = 0;
#pragma unroll
    for (int i = 0; i < 32 / BITS; i++) {
        const int t = place_of<BITS>(which, lane, w, i).t;
        if (t >= p->t0 && t < p->t1) out |= ((1u << BITS) - 1) << BITS * i;
    }
    return out;
}

template <int BITS>
DEV uint32_t gather_word(const shared_rows<BITS> *s, int which, int lane, int w)
{
    uint32_t out = 0;
#pragma unroll
    for (int i = 0; i < 32 / BITS; i++) {
        const place at = place_of<BITS>(which, lane, w, i);
        out |= (uint32_t)s->value[which][at.t][at.d] << BITS * i;
    }
    return out;
}

template <int BITS>
DEV void merge_meta(uint32_t *meta, const shared_rows<BITS> *s, const span *p)
{
    const int i = threadIdx.x / 8, r = threadIdx.x % 8;
    if (i >= 3) return;
    uint32_t word = meta[threadIdx.x];
    for (int j = 0; j < 2; j++) {
        const int t = r + 8 * j;
        if (t < p->t0 || t >= p->t1) continue;
        if (i < 2) word = (word & ~(0xffffu << 16 * j)) | (uint32_t)s->scale[i][t] << 16 * j;
        else
            word = (word & ~(0x00ff00ffu << 8 * j)) |
                   ((uint32_t)s->zero[0][t] | (uint32_t)s->zero[1][t] << 16) << 8 * j;
    }
    meta[threadIdx.x] = word;
}

/* The words that a thread writes: of K, then of V, word w of the lanes to warp w % warps. */
template <int D, int BITS> struct my_words {
    static constexpr int N = D * BITS / 64, WARPS = N_THREADS / 32;
    static constexpr int TURNS = (2 * N + WARPS - 1) / WARPS;
    uint32_t old[TURNS], fresh[TURNS];
};

template <int D, int BITS>
DEV void read_words(my_words<D, BITS> *m, const span *p, const uint32_t *words)
{
    typedef my_words<D, BITS> sh;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
    for (int k = 0; k < sh::TURNS; k++) {
        const int i = warp + k * sh::WARPS, which = i >= sh::N, w = i - which * sh::N;
        m->fresh[k] = i < 2 * sh::N ? fresh_bits<BITS>(p, which, lane, w) : 0;
        m->old[k] = 0;
        if (m->fresh[k] != 0 && m->fresh[k] != ~0u)
            m->old[k] = words[which * 32 * sh::N + word_at(w, lane, sh::N)];
    }
}

template <int D, int BITS>
DEV void write_words(const my_words<D, BITS> *m, const shared_rows<BITS> *s, const span *p,
                     uint32_t *words)
{
    typedef my_words<D, BITS> sh;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
    for (int k = 0; k < sh::TURNS; k++) {
        const int i = warp + k * sh::WARPS, which = i >= sh::N, w = i - which * sh::N;
        if (m->fresh[k] == 0) continue;
        words[which * 32 * sh::N + word_at(w, lane, sh::N)] =
            (m->old[k] & ~m->fresh[k]) | (gather_word<BITS>(s, which, lane, w) & m->fresh[k]);
    }
    if constexpr (BITS < 16) merge_meta<BITS>(words + 64 * sh::N, s, p);
}

template <int D, int BITS, bool X16>
__global__
__launch_bounds__(N_THREADS) void append_kernel(const __grid_constant__ append_args g)
{
    constexpr int WORDS = D * BITS + (BITS < 16 ? 24 : 0); /* of a group */
    __shared__ shared_rows<BITS> rows;
    launch_next();
    wait_previous();
    const int b = blockIdx.z, head = blockIdx.y, start = g.a.position[b];
    const int n_rows = g.a.first_row[b + 1] - g.a.first_row[b];
    const int group = start / GROUP + blockIdx.x, i = threadIdx.x / PER_ROW;
    span p;
    p.t0 = max(start - group * GROUP, 0);
    p.t1 = min(start + n_rows - group * GROUP, (int)GROUP);
    p.position = group * GROUP;
    p.row = g.a.first_row[b] + group * GROUP - start;
    if (p.t0 >= p.t1) return;
    raw_row<X16> kv = {}, q[AHEAD] = {};
    my_words<D, BITS> mine;
    q_rows heads = {head * g.a.n_heads / g.kv.n_kv_heads, 1, 0};
    if (g.a.q && threadIdx.x % PER_ROW * 8 < D / 2) {
        heads.count = (head + 1) * g.a.n_heads / g.kv.n_kv_heads - heads.h0;
        heads.n = (p.t1 - p.t0) * heads.count;
    }
    const kv_row row = my_row<D>(&p);
    const int page = g.kv.table[(int64_t)b * g.kv.table_stride + group / 4];
    load_kv<D, X16>(&kv, &g, &p, row, head);
    load_q_rows<D, X16>(q, &g, &p, heads, i);
    uint32_t *words = (uint32_t *)g.kv.pages +
                      (((int64_t)page * g.kv.n_kv_heads + head) * 4 + group % 4) * WORDS;
    read_words<D, BITS>(&mine, &p, words);
    fill_rows<D, BITS, X16>(&rows, &g, &p, &kv, row);
    rotate_q_rows<D, X16>(q, &g, &p, heads, i);
    __syncthreads();
    write_words<D, BITS>(&mine, &rows, &p, words);
#pragma unroll 1
    for (int j = i + AHEAD * Q_STEP; j < heads.n; j += AHEAD * Q_STEP) {
        load_q_rows<D, X16>(q, &g, &p, heads, j);
        rotate_q_rows<D, X16>(q, &g, &p, heads, j);
    }
}

/* ---- host -------------------------------------------------------------------------------- */

extern "C" size_t fl__cuda_kv_group_bytes(int D, int bits)
{
    return (size_t)GROUP * (size_t)D * (size_t)bits / 4 + (bits < 16 ? 96 : 0);
}

extern "C" size_t fl__cuda_kv_page_bytes(const fl_cuda_kv *kv)
{
    return fl__cuda_kv_group_bytes(kv->D, kv->bits) * 4 * (size_t)kv->n_kv_heads;
}

template <int D, int BITS> static cudaError_t launch(const append_args *g, cudaStream_t stream)
{
    const int max_rows = g->a.max_rows;
    const dim3 grid((unsigned)((max_rows + GROUP - 1) / GROUP + (max_rows > 1)),
                    (unsigned)g->kv.n_kv_heads, (unsigned)g->a.n_seqs);
    if (g->a.x_bf16)
        return launch_after(append_kernel<D, BITS, true>, grid, N_THREADS, 0, stream, *g);
    return launch_after(append_kernel<D, BITS, false>, grid, N_THREADS, 0, stream, *g);
}

template <int D> static cudaError_t launch_bits(const append_args *g, cudaStream_t stream)
{
    if (g->kv.bits == 4) return launch<D, 4>(g, stream);
    if (g->kv.bits == 8) return launch<D, 8>(g, stream);
    if (g->kv.bits == 16) return launch<D, 16>(g, stream);
    return cudaErrorInvalidValue;
}

/* Whether x (may be NULL), rows of ld elements, and what lies at multiples of 8 elements in
 * them begin at multiples of 16 bytes. */
static bool is_aligned(const void *x, int64_t ld, bool bf16)
{
    return (uintptr_t)x % 16 == 0 && ld * (bf16 ? 2 : 4) % 16 == 0;
}

extern "C" fl_status fl__cuda_kv_append(const fl_cuda_kv_append *a, void *stream, fl_err *err)
{
    append_args g;
    cudaError_t e = cudaErrorInvalidValue;
    g.a = *a;
    g.kv = *a->kv;
    g.aligned = is_aligned(a->k, a->ldk, a->x_bf16) && is_aligned(a->v, a->ldv, a->x_bf16) &&
                (!a->q || is_aligned(a->q, a->ldq, a->x_bf16));
    if (g.kv.D == 32) e = launch_bits<32>(&g, (cudaStream_t)stream);
    if (g.kv.D == 64) e = launch_bits<64>(&g, (cudaStream_t)stream);
    if (g.kv.D == 80) e = launch_bits<80>(&g, (cudaStream_t)stream);
    if (g.kv.D == 128) e = launch_bits<128>(&g, (cudaStream_t)stream);
    if (e != cudaSuccess)
        return fl__fail(err, FL_E_FAIL, "cuda: kv append of %d rows: %s; see the GPU's log",
                        a->max_rows, cudaGetErrorString(e));
    return FL_OK;
}
