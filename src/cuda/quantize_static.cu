/* quantize_static.cu - one fixed scale: rows to codes, at the speed of memory.
 *
 * A CTA has a span of up to 4,096 channels of many rows. One warp copies rows in bulk into a
 * ring in shared memory, as far ahead as it is deep; every other thread owns eight channels,
 * keeps their limits in registers and meets the others nowhere: what a warp has read, and the
 * sum of its codes, it reports at the row's `empty` barrier, behind which the copying warp
 * adds the sums up and refills the place. Wider rows go through CTAs side by side, which add to
 * x_sum.
 * SPDX-License-Identifier: MIT */
#include "cuda/activation.h"
#include "cuda/launch.h"

enum { MAX_SPAN = 4096, MAX_STAGES = 12, RING_BYTES = 98304, MAX_WARPS = MAX_SPAN / 256 };

typedef struct static_args {
    fl_cuda_row x;
    fl_cuda_codes y;
    fl_cuda_quantize_static s;
    int M, span, stages; /* channels of a CTA; places of its ring */
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

/* Eight values from a place of the ring. */
template <int F> DEV void ring_values(float *v, uint32_t from)
{
    uint32_t w[8];
    lds128(w, from);
    if (F == FRONT_F32) lds128(w + 4, from + 16);
#pragma unroll
    for (int i = 0; i < 8; i++) {
        const uint32_t half = i % 2 ? w[i / 2] & 0xffff0000u : w[i / 2] << 16;
        v[i] = __uint_as_float(F == FRONT_F32 ? w[i] : half);
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

typedef struct ring {
    uint64_t full[MAX_STAGES], empty[MAX_STAGES];
    int32_t sums[MAX_STAGES][MAX_WARPS];
} ring;

/* The warps' sums of the row that was at a place. */
DEV void put_sum(const static_args *p, const int32_t *sums, int n_warps, int64_t m)
{
    const int lane = threadIdx.x % 32;
    const int total = __reduce_add_sync(0xffffffffu, lane < n_warps ? sums[lane] : 0);
    if (lane != 0) return;
    if (gridDim.y == 1) p->y.x_sum[m] = total;
    else atomicAdd(p->y.x_sum + m, total);
}

/* The copying warp: rows blockIdx.x, + gridDim.x, .. into the ring. */
template <int F> DEV void copy_rows(const static_args *p, ring *r, uint32_t memory, int n_warps)
{
    const int width = F == FRONT_F32 ? 4 : 2, c = blockIdx.y * p->span;
    const int n_bytes = FL_MAX(0, FL_MIN(p->span, (p->s.n_channels + 7) / 8 * 8 - c)) * width;
    int stage = 0;
    uint32_t parity = 1; /* the first time round nothing has to leave */
    for (int64_t m = blockIdx.x, it = 0;; m += gridDim.x, it++) {
        const int64_t left = m - (int64_t)p->stages * gridDim.x; /* the row that was here */
        if (left >= p->M) return;
        if (left >= 0) {
            mbar_wait(smem_addr(&r->empty[stage]), parity);
            if (p->y.x_sum) put_sum(p, r->sums[stage], n_warps, left);
        }
        if (m < p->M && threadIdx.x % 32 == 0) {
            const uint32_t bar = smem_addr(&r->full[stage]);
            mbar_expect(bar, n_bytes);
            if (n_bytes > 0)
                bulk_load(memory + stage * p->span * width,
                          (const char *)p->x.x + (m * p->x.ldx + c) * width, n_bytes, bar);
        }
        __syncwarp();
        if (++stage == p->stages) stage = 0, parity ^= 1;
    }
}

template <int F>
__global__ void __launch_bounds__(MAX_SPAN / 8 + 32, 2) static_kernel(const static_args p)
{
    extern __shared__ __align__(128) char memory[];
    __shared__ ring r;
    const int n_warps = blockDim.x / 32 - 1, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int width = F == FRONT_F32 ? 4 : 2, c = blockIdx.y * p.span + 8 * threadIdx.x;
    const bool inside = c < p.s.n_channels, stored = c < p.y.ld;
    limits l;
    if (threadIdx.x == 0)
        for (int i = 0; i < p.stages; i++) {
            mbar_init(smem_addr(&r.full[i]), 1);
            mbar_init(smem_addr(&r.empty[i]), n_warps);
        }
    mbar_init_fence();
    __syncthreads();
    if (warp == n_warps) {
        wait_previous();
        launch_next();
        copy_rows<F>(&p, &r, smem_addr(memory), n_warps);
        return;
    }
    load_limits(&l, &p, c);
    wait_previous();
    launch_next();
    int stage = 0;
    uint32_t parity = 0;
    for (int64_t m = blockIdx.x; m < p.M; m += gridDim.x) {
        float v[8] = {};
        mbar_wait(smem_addr(&r.full[stage]), parity);
        if (inside)
            ring_values<F>(v, smem_addr(memory) + (stage * p.span + 8 * threadIdx.x) * width);
        if (p.x.premul)
#pragma unroll
            for (int i = 0; i < 8; i++) v[i] = __fmul_rn(v[i], l.premul[i]);
        int sum = stored ? put_eight(&p, &l, v, m, c) : 0;
        if (p.y.x_sum) sum = __reduce_add_sync(0xffffffffu, sum);
        else __syncwarp();
        if (lane == 0) {
            r.sums[stage][warp] = sum;
            mbar_arrive(smem_addr(&r.empty[stage]));
        }
        if (++stage == p.stages) stage = 0, parity ^= 1;
    }
}

/* Further digits, one CTA per row, after the first ones: |q| - off within 0..cap. */
template <int F> __global__ void extra_kernel(const static_args p)
{
    const int64_t m = blockIdx.x;
    int sum = 0;
    wait_previous();
    launch_next();
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
    const int n_x = FL_MIN(p->M, FL_MAX(1, 2 * n_sm / n_y));
    p->span = 8 * threads;
    const int row_bytes = p->span * (F == FRONT_F32 ? 4 : 2);
    p->stages = FL_MIN(MAX_STAGES, RING_BYTES / row_bytes);
    if (n_y > 1 && p->y.x_sum) {
        const cudaError_t e =
            cudaMemsetAsync(p->y.x_sum, 0, sizeof(int32_t) * (size_t)p->M, stream);
        if (e != cudaSuccess) return e;
    }
    const cudaError_t e = launch_after(static_kernel<F>, dim3(n_x, n_y), threads + 32,
                                       p->stages * row_bytes, stream, *p);
    if (e != cudaSuccess || p->s.n_extra == 0) return e;
    return launch_after(extra_kernel<F>, dim3(p->M), 256, 0, stream, *p);
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
