/* rowops_cuda.cu - norms, SiLU times up, sums, embedding, rotary embedding; quantising of rows
 * behind any front, per token or by a fixed scale.
 *
 * Norms and quantisers: one CTA per row, which it holds in registers, eight values per thread
 * and up to four times that. The others: eight values per thread, one thread after another.
 * SPDX-License-Identifier: MIT */
#include "cuda/rowops_cuda.h"

#include "cuda/activation.h"
#include "cuda/launch.h"
#include "cuda/row_values.h"

enum { THREADS = 256, MAX_WIDTH = 32768, MANY_ROWS = 512 };

/* What becomes of a row: values, codes on its own grid, codes on a fixed one. */
typedef enum row_result { VALUES, TOKEN_CODES, FIXED_CODES } row_result;

typedef struct norm_args {
    fl_cuda_row x;
    fl_cuda_matrix y;
    fl_cuda_codes codes;
    fl_cuda_grid grid;
    fl_cuda_quantize_static fixed;
    int n;
} norm_args;

/* ---- rows in registers ------------------------------------------------------------------- */

DEV float block_sum(float v, float *shared)
{
    v = warp_sum(v);
    if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = v;
    __syncthreads();
    return warp_sum(threadIdx.x % 32 < blockDim.x / 32 ? shared[threadIdx.x % 32] : 0.0f);
}

/* Both largest values at once. */
DEV void block_max(float *a, float *b, float (*shared)[32])
{
    const int lane = threadIdx.x % 32;
    *a = warp_max(*a);
    *b = warp_max(*b);
    if (lane == 0) {
        shared[0][threadIdx.x / 32] = *a;
        shared[1][threadIdx.x / 32] = *b;
    }
    __syncthreads();
    *a = warp_max(lane < blockDim.x / 32 ? shared[0][lane] : 0.0f);
    *b = warp_max(lane < blockDim.x / 32 ? shared[1][lane] : 0.0f);
}

DEV int chunk_at(int i)
{
    return 8 * (i * blockDim.x + threadIdx.x);
}

/* The sum over the row of v - mean, or of its square. */
template <int chunks>
DEV float row_sum(const float (*v)[8], int n, bool squares, float mean, float *shared)
{
    float sum = 0;
#pragma unroll
    for (int i = 0; i < chunks; i++) {
        if (chunk_at(i) >= n) continue;
#pragma unroll
        for (int j = 0; j < 8; j++) {
            const float d = v[i][j] - mean;
            sum = squares ? fmaf(d, d, sum) : sum + d;
        }
    }
    return block_sum(sum, shared);
}

/* The thread's chunks of the row, zero beyond it: what the front gives. */
template <int F, int chunks>
DEV void load_chunks(float (*v)[8], const norm_args *p, int64_t m, float (*shared)[32])
{
    const fl_cuda_row *x = &p->x;
    row_stats stats = {0, 1};
#pragma unroll
    for (int i = 0; i < chunks; i++) {
#pragma unroll
        for (int j = 0; j < 8; j++) v[i][j] = 0;
        if (chunk_at(i) >= p->n) continue;
        load_first<F, 8>(v[i], x, m, chunk_at(i));
        if (F == FRONT_SILU) gate_row<8>(v[i], x, m, chunk_at(i));
    }
    if (x->layer_norm) stats.mean = row_sum<chunks>(v, p->n, false, 0, shared[0]) / (float)p->n;
    if (is_normed(x))
        stats.factor =
            norm_factor(row_sum<chunks>(v, p->n, true, stats.mean, shared[1]), p->n, x->eps);
#pragma unroll
    for (int i = 0; i < chunks; i++)
        if (chunk_at(i) < p->n) finish_row<8>(v[i], x, chunk_at(i), stats);
}

template <int chunks> DEV void put_values(const norm_args *p, float (*v)[8], int64_t m)
{
#pragma unroll
    for (int i = 0; i < chunks; i++)
        if (chunk_at(i) < p->n) store_eight(&p->y, m, chunk_at(i), v[i]);
}

/* Exact in float32: |sum| <= 32768 * 128 = 2^22. */
DEV void put_sum(const norm_args *p, int64_t m, int sum, float *shared)
{
    if (!p->codes.x_sum) return;
    const float total = block_sum((float)sum, shared);
    if (threadIdx.x == 0) p->codes.x_sum[m] = (int32_t)total;
}

template <int chunks>
DEV void put_token(const norm_args *p, float (*v)[8], int64_t m, float (*shared)[32])
{
    float top = 0, bottom = 0;
    int sum = 0;
#pragma unroll
    for (int i = 0; i < chunks; i++)
#pragma unroll
        for (int j = 0; j < 8; j++) {
            top = fmaxf(top, v[i][j]);
            bottom = fmaxf(bottom, -v[i][j]);
        }
    block_max(&top, &bottom, shared);
    const token_grid grid = make_grid(&p->grid, top, bottom);
#pragma unroll
    for (int i = 0; i < chunks; i++) {
        uint2 w = make_uint2(0, 0);
        if (chunk_at(i) < p->n)
            w = make_uint2(four_codes(&grid, v[i]), four_codes(&grid, v[i] + 4));
        if (chunk_at(i) < p->codes.ld)
            *(uint2 *)(p->codes.codes + m * p->codes.ld + chunk_at(i)) = w;
        sum = sum_codes(w.x, sum_codes(w.y, sum));
    }
    put_sum(p, m, sum, shared[2]);
    if (threadIdx.x != 0) return;
    p->codes.x_scale[m] = grid.scale;
    p->codes.x_zero[m] = grid.zero;
}

/* Whole numbers before the clamp of the first digit. */
DEV float fixed_step(const fl_cuda_quantize_static *s, float v, int c)
{
    return fminf(fmaxf(rintf(__fmul_rn(v, s->inv_scale)), s->lo[c]), s->hi[c]);
}

/* q [n] in shared memory: the steps, where there are further digits. */
template <int chunks>
DEV void put_fixed(const norm_args *p, float (*v)[8], int64_t m, int16_t *q, float *shared)
{
    const fl_cuda_quantize_static *s = &p->fixed;
    int8_t *row = p->codes.codes + m * p->codes.ld;
    int sum = 0;
#pragma unroll
    for (int i = 0; i < chunks; i++) {
        const int c = chunk_at(i);
        uint32_t t[8];
        if (c >= p->n) continue;
#pragma unroll
        for (int j = 0; j < 8; j++) {
            const float step = fixed_step(s, v[i][j], c + j);
            if (s->n_extra > 0) q[c + j] = (int16_t)(int)step;
            t[j] = (uint32_t)((int)fminf(fmaxf(step, (float)s->first_lo), (float)s->first_hi) +
                              s->zero);
        }
        const uint32_t lo = four_bytes(t[0], t[1], t[2], t[3]),
                       hi = four_bytes(t[4], t[5], t[6], t[7]);
        *(uint2 *)(row + c) = make_uint2(lo, hi);
        sum = sum_codes(lo, sum_codes(hi, sum));
    }
    if (s->n_extra > 0) __syncthreads();
    for (int e = threadIdx.x; e < s->n_extra; e += blockDim.x) {
        const int step = q[s->extra_src[e]];
        const int left = min(max(abs(step) - s->extra_off[e], 0), s->cap);
        const int code = (step < 0 ? -left : left) + s->zero;
        row[p->n + e] = (int8_t)code;
        sum += code;
    }
    for (int c = p->n + s->n_extra + threadIdx.x; c < p->codes.ld; c += blockDim.x) row[c] = 0;
    put_sum(p, m, sum, shared);
}

template <int F, int chunks, row_result R>
__global__ void __launch_bounds__(1024, 1) row_kernel(const norm_args p)
{
    extern __shared__ __align__(16) int16_t steps[];
    __shared__ float shared[5][32];
    float v[chunks][8];
    const int64_t m = blockIdx.x;
    wait_previous();
    launch_next();
    load_chunks<F, chunks>(v, &p, m, shared);
    if (R == VALUES) put_values<chunks>(&p, v, m);
    if (R == TOKEN_CODES) put_token<chunks>(&p, v, m, shared + 2);
    if (R == FIXED_CODES) put_fixed<chunks>(&p, v, m, steps, shared[2]);
}

template <int F, row_result R>
static cudaError_t launch_row(const norm_args *p, int M, int width, cudaStream_t stream)
{
    /* few threads for a row where there are many rows: more rows are under way at a time */
    const int chunks = width > 16384 || (M > MANY_ROWS && width >= 1024) ? 4
                       : width > 8192                                    ? 2
                                                                         : 1;
    const int threads = (width + 256 * chunks - 1) / (256 * chunks) * 32;
    const int n_bytes = R == FIXED_CODES && p->fixed.n_extra > 0 ? 2 * p->n : 0;
    const auto kernel = chunks == 1   ? row_kernel<F, 1, R>
                        : chunks == 2 ? row_kernel<F, 2, R>
                                      : row_kernel<F, 4, R>;
    return launch_after(kernel, dim3(M), threads, n_bytes, stream, *p);
}

/* Every front takes a row of at most `width` values and codes. */
template <row_result R>
static cudaError_t launch_rows(const norm_args *p, int M, int width, cudaStream_t stream)
{
    if (p->x.up) return launch_row<FRONT_SILU, R>(p, M, width, stream);
    if (p->x.x_f32) return launch_row<FRONT_F32, R>(p, M, width, stream);
    return launch_row<FRONT_BF16, R>(p, M, width, stream);
}

static fl_status finish(cudaError_t e, const char *what, int M, int n, fl_err *err)
{
    if (e == cudaSuccess) return FL_OK;
    return fl__fail(err, FL_E_FAIL, "cuda: %s [%d, %d]: %s; see the GPU's log", what, M, n,
                    cudaGetErrorString(e));
}

static fl_status bad_width(const char *what, int n, fl_err *err)
{
    return fl__fail(err, FL_E_INPUT,
                    "cuda: %s of %d channels: not a multiple of 8 up to %d; use --device cpu",
                    what, n, (int)MAX_WIDTH);
}

extern "C" fl_status fl__cuda_quantize_token(const fl_cuda_codes *y, const fl_cuda_row *x,
                                             int M, int n, const fl_cuda_grid *grid,
                                             void *stream, fl_err *err)
{
    norm_args p = {};
    p.x = *x, p.codes = *y, p.grid = *grid, p.n = n;
    if (n % 8 != 0 || y->ld > MAX_WIDTH) return bad_width("per-token quantiser", n, err);
    if (M == 0) return FL_OK;
    return finish(launch_rows<TOKEN_CODES>(&p, M, (int)y->ld, (cudaStream_t)stream),
                  "per-token quantiser", M, n, err);
}

fl_status fl__cuda_static_rows(const fl_cuda_codes *y, const fl_cuda_row *x, int M,
                               const fl_cuda_quantize_static *spec, cudaStream_t stream,
                               fl_err *err)
{
    norm_args p = {};
    p.x = *x, p.codes = *y, p.fixed = *spec, p.n = spec->n_channels;
    if (p.n % 8 != 0 || y->ld > MAX_WIDTH) return bad_width("static quantiser", p.n, err);
    if (M == 0) return FL_OK;
    return finish(launch_rows<FIXED_CODES>(&p, M, (int)y->ld, stream), "static quantiser", M,
                  p.n, err);
}

extern "C" fl_status fl__cuda_row_values(const fl_cuda_matrix *y, const fl_cuda_row *x, int M,
                                         int n, void *stream, fl_err *err)
{
    norm_args p = {};
    p.x = *x, p.y = *y, p.n = n;
    if (n % 8 != 0 || n > MAX_WIDTH) return bad_width("row op", n, err);
    if (M == 0) return FL_OK;
    return finish(launch_rows<VALUES>(&p, M, n, (cudaStream_t)stream), "row op", M, n, err);
}

extern "C" fl_status fl__cuda_rms_norm(const fl_cuda_matrix *y, const fl_cuda_matrix *x,
                                       const float *gain, int M, int n, float eps, void *stream,
                                       fl_err *err)
{
    fl_cuda_row row = {};
    row.x = x->data, row.ldx = x->ld, row.x_f32 = x->f32, row.gain = gain, row.eps = eps;
    return fl__cuda_row_values(y, &row, M, n, stream, err);
}

/* ---- element by element ------------------------------------------------------------------ */

/* What a grid of one thread per eight values has to do. */
typedef struct eights {
    int M, per_row; /* chunks of eight */
} eights;

DEV bool my_eight(const eights *e, int *m, int *c)
{
    const int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    *m = (int)(i / e->per_row);
    *c = (int)(i % e->per_row) * 8;
    return *m < e->M;
}

template <class A>
static cudaError_t launch_each(void (*kernel)(A), const eights *e, cudaStream_t stream,
                               const A &args)
{
    const int64_t n_blocks = ((int64_t)e->M * e->per_row + THREADS - 1) / THREADS;
    return launch_after(kernel, dim3((unsigned)n_blocks), THREADS, 0, stream, args);
}

typedef struct each_args {
    fl_cuda_matrix y;
    fl_cuda_row x; /* silu, add */
    const uint16_t *table;
    const int32_t *ids;
    int n_ids;
    bool adds; /* embedding: to y */
    eights e;
} each_args;

__global__ void silu_mul_kernel(const each_args p)
{
    float v[8];
    int m, c;
    wait_previous();
    launch_next();
    if (!my_eight(&p.e, &m, &c)) return;
    load_row<FRONT_SILU, 8>(v, &p.x, m, c, {0, 1});
    store_eight(&p.y, m, c, v);
}

extern "C" fl_status fl__cuda_silu_mul(const fl_cuda_matrix *y, const fl_cuda_matrix *x,
                                       const uint16_t *up, int M, int n, void *stream,
                                       fl_err *err)
{
    each_args p = {};
    if (n % 8 != 0) return bad_width("silu", n, err);
    if (M == 0) return FL_OK;
    p.e = {M, n / 8}, p.y = *y;
    p.x.x = x->data, p.x.ldx = x->ld, p.x.up = up;
    return finish(launch_each(silu_mul_kernel, &p.e, (cudaStream_t)stream, p), "silu", M, n,
                  err);
}

__global__ void add_kernel(const each_args p)
{
    float v[8];
    int m, c;
    wait_previous();
    launch_next();
    if (my_eight(&p.e, &m, &c)) load_first<FRONT_F32, 8>(v, &p.x, m, c);
}

extern "C" fl_status fl__cuda_add(const fl_cuda_matrix *x, const fl_cuda_matrix *add, int M,
                                  int n, void *stream, fl_err *err)
{
    each_args p = {};
    if (n % 8 != 0 || !x->f32) return bad_width("sum", n, err);
    if (M == 0) return FL_OK;
    p.e = {M, n / 8};
    p.x.x = x->data, p.x.ldx = x->ld;
    p.x.add = add->data, p.x.ld_add = add->ld, p.x.add_f32 = add->f32;
    return finish(launch_each(add_kernel, &p.e, (cudaStream_t)stream, p), "sum", M, n, err);
}

__global__ void embed_kernel(const each_args p)
{
    alignas(16) float v[8] = {}, w[8] = {};
    int m, c;
    wait_previous();
    launch_next();
    if (!my_eight(&p.e, &m, &c)) return;
    const int32_t id = p.ids[m];
    if (id >= 0 && id < p.n_ids) load_bf16<8>(v, p.table + (int64_t)id * p.e.per_row * 8 + c);
    if (p.adds) {
        load_eight(w, &p.y, m, c);
#pragma unroll
        for (int i = 0; i < 8; i++) v[i] = __fadd_rn(v[i], w[i]);
    }
    store_eight(&p.y, m, c, v);
}

static fl_status embed(const fl_cuda_matrix *y, const uint16_t *table, const int32_t *ids,
                       int M, int n, int n_ids, bool adds, void *stream, fl_err *err)
{
    each_args p = {};
    if (n % 8 != 0) return bad_width("embedding", n, err);
    if (M == 0) return FL_OK;
    p.e = {M, n / 8}, p.y = *y, p.table = table, p.ids = ids, p.n_ids = n_ids, p.adds = adds;
    return finish(launch_each(embed_kernel, &p.e, (cudaStream_t)stream, p), "embedding", M, n,
                  err);
}

extern "C" fl_status fl__cuda_embed(const fl_cuda_matrix *y, const uint16_t *table,
                                    const int32_t *ids, int M, int n, int n_ids, void *stream,
                                    fl_err *err)
{
    return embed(y, table, ids, M, n, n_ids, false, stream, err);
}

extern "C" fl_status fl__cuda_embed_add(const fl_cuda_matrix *y, const uint16_t *table,
                                        const int32_t *ids, int M, int n, int n_ids,
                                        void *stream, fl_err *err)
{
    return embed(y, table, ids, M, n, n_ids, true, stream, err);
}

typedef struct rope_args {
    fl_cuda_matrix x;
    const float *cos, *sin;
    const int32_t *positions;
    int D;
    eights e; /* of the first halves of the heads */
} rope_args;

__global__ void rope_kernel(const rope_args p)
{
    alignas(16) float a[8], b[8], c[8], s[8], y[8];
    const int half = p.D / 2;
    int m, at;
    wait_previous();
    launch_next();
    if (!my_eight(&p.e, &m, &at)) return;
    const int i = at % half, column = at / half * p.D + i;
    const int64_t angle = (int64_t)p.positions[m] * half + i;
    load_eight(a, &p.x, m, column);
    load_eight(b, &p.x, m, column + half);
    load_f32<8>(c, p.cos + angle);
    load_f32<8>(s, p.sin + angle);
#pragma unroll
    for (int j = 0; j < 8; j++) y[j] = __fsub_rn(__fmul_rn(a[j], c[j]), __fmul_rn(b[j], s[j]));
    store_eight(&p.x, m, column, y);
#pragma unroll
    for (int j = 0; j < 8; j++) y[j] = __fadd_rn(__fmul_rn(b[j], c[j]), __fmul_rn(a[j], s[j]));
    store_eight(&p.x, m, column + half, y);
}

extern "C" fl_status fl__cuda_rope(const fl_cuda_matrix *x, const float *cos, const float *sin,
                                   const int32_t *positions, int M, int n_heads, int D,
                                   void *stream, fl_err *err)
{
    const rope_args p = {*x, cos, sin, positions, D, {M, n_heads * D / 16}};
    if (D % 16 != 0) return bad_width("rotary embedding", D, err);
    if (M == 0) return FL_OK;
    return finish(launch_each(rope_kernel, &p.e, (cudaStream_t)stream, p), "rotary embedding",
                  M, n_heads * D, err);
}
