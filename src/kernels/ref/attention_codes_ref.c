/* attention_codes_ref.c - the definition of attention over codes.
 * SPDX-License-Identifier: MIT */
#include "kernels/attention_codes_rows.h"

static void load_grid(float *scale, int32_t *zero, const uint8_t *block, fl_kv_side side, int D,
                      int bits)
{
    const uint8_t *scales = block + fl__kv_scale_at(side, D, bits);
    const uint8_t *zeros = block + fl__kv_zero_at(side, D, bits);
    for (int t = 0; t < FL_KV_PAGE; t++) {
        uint16_t h;
        memcpy(&h, scales + 2 * t, sizeof h);
        scale[t] = fl__f16_to_f32(h);
        zero[t] = zeros[t];
    }
}

/* X of n numbers, and their step. */
static float to_fixed(int32_t *X, const float *x, int n)
{
    float top = 0;
    bool finite = true;
    for (int i = 0; i < n; i++) {
        finite = finite && isfinite(x[i]);
        if (fabsf(x[i]) > top) top = fabsf(x[i]);
    }
    const bool some = finite && top >= FL_FIXED_TINY;
    const float inv = some ? FL_FIXED_MAX / top : 0;
    for (int i = 0; i < n; i++) X[i] = some ? (int32_t)rintf(x[i] * inv) : 0;
    return !finite ? NAN : some ? top / FL_FIXED_MAX : 0;
}

/* T over n terms. codes: term i of the lane at codes[i / 4 * stride + i % 4]. */
static float sum_codes(const int32_t *X, const uint8_t *codes, int64_t stride, int n,
                       const int32_t *zero, int zero_step)
{
    int32_t h = 0, l = 0;
    for (int i = 0; i < n; i++) {
        const int32_t code = codes[i / 4 * stride + i % 4] - zero[i * zero_step];
        const int32_t H = (X[i] + 8192) >> 14;
        h += H * code;
        l += (X[i] - H * 16384) * code;
    }
    return fmaf((float)h, 16384.0f, (float)l);
}

void fl__attention_prepare_ref(void *x, const float *q, int64_t q_stride, int n_rows, int group,
                               int D, float scale)
{
    fl_codes_head *heads = x;
    int32_t *X = (int32_t *)(void *)((uint8_t *)x + fl__codes_heads_bytes(n_rows));
    for (int r = 0; r < n_rows; r++)
        heads[r].step =
            to_fixed(X + (int64_t)r * D, q + r / group * q_stride + r % group * D, D) * scale;
}

/* Row r, which sees n keys. */
static void one_row(const fl_attention_codes *a, int r, int n, float step, const int32_t *X,
                    const fl_codes_work *work)
{
    const int D = a->D, ld = fl__attention_ld(D);
    float s[FL_CODES_KEYS], w[FL_CODES_KEYS], *o = a->o + (int64_t)r * ld, top = -INFINITY;
    int32_t W[FL_CODES_KEYS];
    float sum = 0;
    for (int t = 0; t < n; t++) {
        const uint8_t *codes = work->k + (size_t)(t / FL_KV_PAGE) * fl__codes_page_bytes(D) +
                               t % FL_KV_PAGE * 4;
        s[t] = sum_codes(X, codes, 4 * FL_KV_PAGE, D, work->k_zero + t, 0) *
               (step * work->k_scale[t]);
        if (s[t] > top) top = s[t];
    }
    for (int t = 0; t < n; t++) {
        const float p = s[t] == -INFINITY ? 0 : expf(s[t] - top);
        sum += p;
        w[t] = p * work->v_scale[t];
    }
    const float w_step = to_fixed(W, w, n);
    for (int d = 0; d < D; d++)
        o[d] = sum_codes(W, work->v + 4 * d, 4 * ld, n, work->v_zero, 1) * w_step;
    a->l[r] = sum;
    a->m[r] = top;
}

void fl__attention_codes_ref(const fl_attention_codes *a)
{
    const int D = a->D, ld = fl__attention_ld(D);
    const fl_codes_work work = fl__codes_work(a->work, D);
    const fl_codes_head *heads = a->x;
    const int32_t *X = (const int32_t *)(const void *)((const uint8_t *)a->x +
                                                       fl__codes_heads_bytes(a->n_rows));
    for (int p = 0; p < a->n_pages; p++) {
        const int t = p * FL_KV_PAGE;
        load_grid(work.k_scale + t, work.k_zero + t, a->k[p], FL_KV_KEYS, D, a->k_bits);
        load_grid(work.v_scale + t, work.v_zero + t, a->v[p], FL_KV_VALUES, D, a->v_bits);
        fl__codes_spread(work.k + (size_t)p * fl__codes_page_bytes(D), FL_KV_PAGE, a->k[p],
                         FL_KV_KEYS, D, a->k_bits);
        fl__codes_spread(work.v + (size_t)t * (size_t)ld, ld, a->v[p], FL_KV_VALUES, D,
                         a->v_bits);
    }
    for (int r = 0; r < a->n_rows; r++)
        one_row(a, r, fl__codes_seen(a, r), heads[r].step, X + (int64_t)r * D, &work);
}
