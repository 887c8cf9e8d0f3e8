/* quantize_static.cu - one fixed scale: rows to codes, at the speed of memory.
 *
 * A thread owns eight channels and keeps their limits in registers over all its rows, four of
 * which are in flight. Rows wider than 8,192 channels go through more CTAs side by side, which
 * add to x_sum.
 * SPDX-License-Identifier: MIT */
#include "cuda/activation.h"

enum { MAX_SPAN = 8192, ROWS = 4 };

typedef struct static_args {
    fl_cuda_row x;
    fl_cuda_codes y;
    fl_cuda_quantize_static s;
    int M, span; /* channels of a CTA */
} static_args;

/* Of eight channels. */
typedef struct limits {
    float lo[8], hi[8], premul[8];
} limits;

/* The clamp of the first digit on top of the channel's own. Beyond the channels: 0. */
DEV void load_limits(limits *l, const static_args *p, int c)
{
    const fl_cuda_quantize_static *s = &p->s;
    const float first_lo = (float)s->first_lo, first_hi = (float)s->first_hi;
#pragma unroll
    for (int i = 0; i < 8; i++) {
        const bool inside = c + i < s->n_channels;
        l->lo[i] = inside ? fminf(fmaxf(s->lo[c + i], first_lo), first_hi) : 0.0f;
        l->hi[i] = inside ? fminf(fmaxf(s->hi[c + i], first_lo), first_hi) : 0.0f;
        l->premul[i] = inside && p->x.premul ? p->x.premul[c + i] : 1.0f;
    }
}

/* Eight values as they lie in memory; a row's stride covers those beyond its channels. */
template <int F> struct raw_eight {
    uint4 w[F == FRONT_F32 ? 2 : 1];
};

template <int F> DEV void load_raw(raw_eight<F> *raw, const static_args *p, int64_t m, int c)
{
    const int64_t at = m * p->x.ldx + c;
    if (F == FRONT_F32) {
        raw->w[0] = *(const uint4 *)((const float *)p->x.x + at);
        raw->w[F == FRONT_F32] = *(const uint4 *)((const float *)p->x.x + at + 4);
    } else raw->w[0] = *(const uint4 *)((const uint16_t *)p->x.x + at);
}

template <int F> DEV void values_of(float *v, const raw_eight<F> *raw, const limits *l)
{
    const uint32_t w[4] = {raw->w[0].x, raw->w[0].y, raw->w[0].z, raw->w[0].w};
    const uint4 second = raw->w[F == FRONT_F32];
    const uint32_t u[4] = {second.x, second.y, second.z, second.w};
#pragma unroll
    for (int i = 0; i < 8; i++) {
        const uint32_t half = i % 2 ? w[i / 2] & 0xffff0000u : w[i / 2] << 16;
        const uint32_t bits = F == FRONT_F32 ? (i < 4 ? w[i % 4] : u[i % 4]) : half;
        v[i] = __fmul_rn(__uint_as_float(bits), l->premul[i]);
    }
}

DEV uint32_t static_codes(const limits *l, int i, const float *v, float inv_scale)
{
    uint32_t t[4];
#pragma unroll
    for (int j = 0; j < 4; j++)
        t[j] = rounded(fminf(fmaxf(__fmul_rn(v[j], inv_scale), l->lo[i + j]), l->hi[i + j]));
    return four_bytes(t[0], t[1], t[2], t[3]);
}

/* Zero points go to the channels only: n_channels may end within the eight. */
DEV uint32_t with_zero(uint32_t w, const fl_cuda_quantize_static *s, int c)
{
    if (c + 4 <= s->n_channels) return add_zero(w, s->zero);
    if (c >= s->n_channels) return 0;
    const uint32_t mask = (1u << 8 * (s->n_channels - c)) - 1;
    return add_zero(w, s->zero) & mask;
}

DEV int put_eight(const static_args *p, const limits *l, const float *v, int64_t m, int c)
{
    uint2 w;
    w.x = with_zero(static_codes(l, 0, v, p->s.inv_scale), &p->s, c);
    w.y = with_zero(static_codes(l, 4, v + 4, p->s.inv_scale), &p->s, c + 4);
    *(uint2 *)(p->y.codes + m * p->y.ld + c) = w;
    return sum_codes(w.x, sum_codes(w.y, 0));
}

/* The sums of ROWS rows over the CTA; every warp's part lies in shared[parity]. */
DEV void put_sums(const static_args *p, int32_t (*shared)[32], const int *sum, int64_t m)
{
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, n_warps = blockDim.x / 32;
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
        const int part = __reduce_add_sync(0xffffffffu, sum[r]);
        if (lane == 0) shared[r][warp] = part;
    }
    __syncthreads();
    for (int r = warp; r < ROWS && m + r < p->M; r += n_warps) {
        const int total = __reduce_add_sync(0xffffffffu, lane < n_warps ? shared[r][lane] : 0);
        if (lane != 0) continue;
        if (gridDim.y == 1) p->y.x_sum[m + r] = total;
        else atomicAdd(p->y.x_sum + m + r, total);
    }
}

template <int F>
__global__ void __launch_bounds__(1024, 1) static_kernel(const static_args p)
{
    __shared__ int32_t shared[2][ROWS][32];
    const int c = blockIdx.y * p.span + 8 * threadIdx.x;
    const bool inside = c < p.s.n_channels, stored = c < p.y.ld;
    limits l;
    int parity = 0;
    load_limits(&l, &p, c);
    for (int64_t m = ROWS * blockIdx.x; m < p.M; m += ROWS * gridDim.x, parity ^= 1) {
        raw_eight<F> raw[ROWS] = {};
        int sum[ROWS] = {};
#pragma unroll
        for (int r = 0; r < ROWS; r++)
            if (inside && m + r < p.M) load_raw<F>(&raw[r], &p, m + r, c);
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            float v[8];
            if (!stored || m + r >= p.M) continue;
            values_of<F>(v, &raw[r], &l);
            sum[r] = put_eight(&p, &l, v, m + r, c);
        }
        if (p.y.x_sum) put_sums(&p, shared[parity], sum, m);
    }
}

/* Further digits, one CTA per row, after the first ones: |q| - off within 0..cap. */
template <int F> __global__ void extra_kernel(const static_args p)
{
    const int64_t m = blockIdx.x;
    int sum = 0;
    for (int e = threadIdx.x; e < p.s.n_extra; e += blockDim.x) {
        const int c = p.s.extra_src[e];
        const int64_t at = m * p.x.ldx + c;
        float v = F == FRONT_F32
                      ? ((const float *)p.x.x)[at]
                      : __uint_as_float((uint32_t)((const uint16_t *)p.x.x)[at] << 16);
        if (p.x.premul) v = __fmul_rn(v, p.x.premul[c]);
        const float t = fminf(fmaxf(rintf(__fmul_rn(v, p.s.inv_scale)), p.s.lo[c]), p.s.hi[c]);
        const int q = (int)t, left = min(max(abs(q) - p.s.extra_off[e], 0), p.s.cap);
        const int code = (q < 0 ? -left : left) + p.s.zero;
        p.y.codes[m * p.y.ld + p.s.n_channels + e] = (int8_t)code;
        sum += code;
    }
    sum = __reduce_add_sync(0xffffffffu, sum);
    if (threadIdx.x % 32 == 0 && p.y.x_sum) atomicAdd(p.y.x_sum + m, sum);
}

template <int F> static cudaError_t launch(static_args *p, int n_sm, cudaStream_t stream)
{
    const int ld = (int)p->y.ld, n_y = (ld + MAX_SPAN - 1) / MAX_SPAN;
    const int threads = ((ld + n_y - 1) / n_y + 255) / 256 * 32;
    const int n_x = FL_MIN((p->M + ROWS - 1) / ROWS, n_sm * FL_MAX(1, 1024 / threads));
    p->span = 8 * threads;
    if (n_y > 1 && p->y.x_sum) {
        const cudaError_t e =
            cudaMemsetAsync(p->y.x_sum, 0, sizeof(int32_t) * (size_t)p->M, stream);
        if (e != cudaSuccess) return e;
    }
    static_kernel<F><<<dim3(n_x, n_y), threads, 0, stream>>>(*p);
    if (p->s.n_extra > 0) extra_kernel<F><<<p->M, 256, 0, stream>>>(*p);
    return cudaGetLastError();
}

extern "C" fl_status fl__cuda_quantize_static(const fl_cuda_codes *y, const fl_cuda_row *x,
                                              int M, const fl_cuda_quantize_static *spec,
                                              int n_sm, void *stream, fl_err *err)
{
    static_args p = {*x, *y, *spec, M, 0};
    cudaError_t e;
    if (M == 0) return FL_OK;
    if (x->up || x->gain || x->layer_norm || x->relu || x->add)
        return fl__cuda_static_rows(y, x, M, spec, (cudaStream_t)stream, err);
    e = x->x_f32 ? launch<FRONT_F32>(&p, n_sm, (cudaStream_t)stream)
                 : launch<FRONT_BF16>(&p, n_sm, (cudaStream_t)stream);
    if (e != cudaSuccess)
        return fl__fail(err, FL_E_FAIL, "cuda: static quantise [%d, %d]: %s; see the GPU's log",
                        M, spec->n_channels, cudaGetErrorString(e));
    return FL_OK;
}
