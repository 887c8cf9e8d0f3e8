/* kv_append.cu - new tokens into the paged cache: rotary embedding, grid, codes, layout.
 *
 * A CTA owns a group of 16 tokens of a sequence and KV head, so that words shared by several
 * tokens have one writer: first a warp per row rotates, finds the grid and leaves codes in
 * shared memory, then a thread per word gathers its codes, keeping those of older tokens.
 * More CTAs rotate the heads of q. Floats as on the CPU: each operation rounded on its own.
 * SPDX-License-Identifier: MIT */
#include "cuda/attention_cuda.h"

#include "cuda/sm90.h"

#include <cuda_fp16.h>
#include <cuda_runtime.h>

enum { N_THREADS = 256, MAX_D = 128, GROUP = FL_CUDA_KV_GROUP };

typedef struct append_args {
    fl_cuda_kv_append a;
    fl_cuda_kv kv;
    int64_t group_bytes;
} append_args;

/* The group's new tokens: t0 <= t < t1 of it, in row `row` + t of q, k and v. */
typedef struct span {
    int t0, t1, row, position; /* of t = 0 */
    uint8_t *group;            /* head 0's */
} span;

typedef struct shared_rows {
    uint16_t value[2][GROUP][MAX_D]; /* codes or bf16 */
    uint16_t scale[2][GROUP];
    uint8_t zero[2][GROUP];
} shared_rows;

/* A lane's four values of a row: pairs (d, d + D / 2) at d = 2 lane, 2 lane + 1. */
DEV void load_row(float *x, const void *from, int64_t at, int half, bool bf16)
{
    for (int i = 0; i < 2; i++) {
        const int64_t j = at + i * half;
        if (bf16) {
            const uint32_t v = *(const uint32_t *)((const uint16_t *)from + j);
            x[2 * i] = __uint_as_float(v << 16);
            x[2 * i + 1] = __uint_as_float(v & 0xffff0000u);
        } else {
            const float2 v = *(const float2 *)((const float *)from + j);
            x[2 * i] = v.x;
            x[2 * i + 1] = v.y;
        }
    }
}

DEV void rotate(float *x, const fl_cuda_kv_append *a, int position, int d, int half)
{
    if (!a->cos) return;
    const int64_t at = (int64_t)position * half + d;
    for (int i = 0; i < 2; i++) {
        const float c = a->cos[at + i], s = a->sin[at + i], u = x[i], v = x[i + 2];
        x[i] = __fsub_rn(__fmul_rn(u, c), __fmul_rn(v, s));
        x[i + 2] = __fadd_rn(__fmul_rn(v, c), __fmul_rn(u, s));
    }
}

DEV float warp_max(float v)
{
    for (int i = 16; i > 0; i /= 2) v = fmaxf(v, __shfl_xor_sync(~0u, v, i));
    return v;
}

DEV int code_of(float x, float inv, float zero, float qmax)
{
    const float u = __fadd_rn(rintf(__fmul_rn(x, inv)), zero);
    if (!(u > 0)) return 0;
    return u < qmax ? (int)u : (int)qmax;
}

/* Codes of one row; a lane without values has zeros. */
DEV void quantize_row(shared_rows *s, int which, int t, const float *x, int bits,
                      const float *clip, int lane, int half)
{
    const float qmax = (float)((1 << bits) - 1);
    const float hi = __fmul_rn(
        clip[0], warp_max(fmaxf(fmaxf(fmaxf(0, x[0]), x[1]), fmaxf(fmaxf(0, x[2]), x[3]))));
    const float lo = __fmul_rn(clip[1], -warp_max(fmaxf(fmaxf(fmaxf(0, -x[0]), -x[1]),
                                                        fmaxf(fmaxf(0, -x[2]), -x[3]))));
    uint16_t scale = __half_as_ushort(__float2half_rn(__fdiv_rn(__fsub_rn(hi, lo), qmax)));
    if (scale == 0 || (scale & 0x7c00u) == 0x7c00u) scale = 0x3c00u;
    const float inv = __fdiv_rn(1.0f, __half2float(__ushort_as_half(scale)));
    const float zero = fminf(rintf(__fmul_rn(-lo, inv)), qmax);
    if (lane == 0) {
        s->scale[which][t] = scale;
        s->zero[which][t] = (uint8_t)zero;
    }
    for (int i = 0; i < 4 && 2 * lane < half; i++)
        s->value[which][t][i / 2 * half + 2 * lane + i % 2] =
            (uint16_t)code_of(x[i], inv, zero, qmax);
}

DEV void fill_rows(shared_rows *s, const append_args *g, const span *p, int head)
{
    const fl_cuda_kv_append *a = &g->a;
    const int lane = threadIdx.x % 32, half = g->kv.D / 2;
    for (int i = threadIdx.x / 32; i < 2 * GROUP; i += N_THREADS / 32) {
        const int t = i % GROUP, which = i / GROUP;
        float x[4] = {};
        if (t < p->t0 || t >= p->t1) continue;
        if (2 * lane < half) {
            const int64_t ld = which ? a->ldv : a->ldk;
            const int64_t at = (p->row + t) * ld + head * g->kv.D + 2 * lane;
            load_row(x, which ? a->v : a->k, at, half, a->x_bf16);
            if (!which) rotate(x, a, p->position + t, 2 * lane, half);
        }
        if (g->kv.bits < 16) {
            quantize_row(s, which, t, x, g->kv.bits, a->clip + 2 * which, lane, half);
        } else if (2 * lane < half) {
            *(uint32_t *)&s->value[which][t][2 * lane] = bf16x2(x[0], x[1]);
            *(uint32_t *)&s->value[which][t][half + 2 * lane] = bf16x2(x[2], x[3]);
        }
    }
}

/* Where word w of a lane lies among n words per lane, in words. */
DEV int word_at(int w, int lane, int n)
{
    const int quads = n / 4;
    if (w / 4 < quads) return (w / 4 * 32 + lane) * 4 + w % 4;
    return quads * 128 + (w - 4 * quads) * 32 + lane;
}

/* Value i of word w of a lane: K's token or V's d is the fragment's row. */
DEV int value_at(const shared_rows *s, const span *p, int which, int lane, int w, int i,
                 int bits, bool *fresh)
{
    const bool bytes = bits == 8 && !which;
    const int f = bits == 16 ? w / 4 : w * 4 / bits;
    const int a = bits == 16 ? w % 4 : bits == 8 ? w % 2 * 2 + i % 2 : i % 4;
    const int e = bits == 16 ? i : i / (bits == 8 ? 2 : 4);
    const int row = lane / 4 + 8 * (bytes ? w % 2 : a % 2);
    const int column = bytes ? lane % 4 * 4 + i : lane % 4 * 2 + e + 8 * (a / 2);
    const int t = which ? column : row, d = 16 * f + (which ? row : column);
    *fresh = t >= p->t0 && t < p->t1;
    return s->value[which][t][d];
}

DEV uint32_t merge_word(uint32_t old, const shared_rows *s, const span *p, int which, int lane,
                        int w, int bits)
{
    const uint32_t mask = (1u << bits) - 1;
    for (int i = 0; i < 32 / bits; i++) {
        bool fresh;
        const uint32_t v = (uint32_t)value_at(s, p, which, lane, w, i, bits, &fresh);
        if (fresh) old = (old & ~(mask << bits * i)) | v << bits * i;
    }
    return old;
}

DEV void merge_meta(uint32_t *meta, const shared_rows *s, const span *p)
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

DEV void rotate_q(const append_args *g, const span *p, int head)
{
    const fl_cuda_kv_append *a = &g->a;
    const int d = threadIdx.x % 32 * 2, half = g->kv.D / 2;
    if (d >= half) return;
    for (int t = p->t0 + threadIdx.x / 32; t < p->t1; t += N_THREADS / 32) {
        float x[4];
        load_row(x, a->q, (p->row + t) * a->ldq + head * g->kv.D + d, half, a->x_bf16);
        rotate(x, a, p->position + t, d, half);
        uint16_t *to = a->q_out + ((int64_t)(p->row + t) * a->n_heads + head) * g->kv.D + d;
        *(uint32_t *)to = bf16x2(x[0], x[1]);
        *(uint32_t *)(to + half) = bf16x2(x[2], x[3]);
    }
}

__global__
__launch_bounds__(N_THREADS) void append_kernel(const __grid_constant__ append_args g)
{
    __shared__ shared_rows rows;
    const int b = blockIdx.z, head = blockIdx.y, start = g.a.position[b];
    const int n_rows = g.a.first_row[b + 1] - g.a.first_row[b];
    const int group = start / GROUP + blockIdx.x;
    span p;
    p.t0 = max(start - group * GROUP, 0);
    p.t1 = min(start + n_rows - group * GROUP, (int)GROUP);
    p.position = group * GROUP;
    p.row = g.a.first_row[b] + group * GROUP - start;
    if (p.t0 >= p.t1) return;
    if (head >= g.kv.n_kv_heads) {
        rotate_q(&g, &p, head - g.kv.n_kv_heads);
        return;
    }
    fill_rows(&rows, &g, &p, head);
    const int page = g.kv.table[(int64_t)b * g.kv.table_stride + group / 4];
    uint32_t *words =
        (uint32_t *)(g.kv.pages + (((int64_t)page * g.kv.n_kv_heads + head) * 4 + group % 4) *
                                      g.group_bytes);
    __syncthreads();
    const int n = g.kv.D * g.kv.bits / 64; /* words per lane */
    const bool whole = p.t0 == 0 && p.t1 == GROUP;
    for (int i = threadIdx.x; i < 64 * n; i += N_THREADS) {
        const int which = i / (32 * n), w = i / 32 % n, lane = i % 32;
        uint32_t *to = words + which * 32 * n + word_at(w, lane, n);
        *to = merge_word(whole ? 0 : *to, &rows, &p, which, lane, w, g.kv.bits);
    }
    if (g.kv.bits < 16) merge_meta(words + 64 * n, &rows, &p);
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

extern "C" fl_status fl__cuda_kv_append(const fl_cuda_kv_append *a, void *stream, fl_err *err)
{
    append_args g;
    g.a = *a;
    g.kv = *a->kv;
    g.group_bytes = (int64_t)fl__cuda_kv_group_bytes(a->kv->D, a->kv->bits);
    const dim3 grid((unsigned)((a->max_rows + GROUP - 1) / GROUP + (a->max_rows > 1)),
                    (unsigned)(a->kv->n_kv_heads + (a->q ? a->n_heads : 0)),
                    (unsigned)a->n_seqs);
    append_kernel<<<grid, N_THREADS, 0, (cudaStream_t)stream>>>(g);
    const cudaError_t e = cudaGetLastError();
    if (e != cudaSuccess)
        return fl__fail(err, FL_E_FAIL, "cuda: kv append of %d rows: %s; see the GPU's log",
                        a->max_rows, cudaGetErrorString(e));
    return FL_OK;
}
