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

static void one_row(float *o, float *m, float *l, float step, const int32_t *X, int n,
                    const fl_codes_work *work, const fl_codes_grids *g, int D)
{
    float s[FL_KV_PAGE] = {0}, w[FL_KV_PAGE] = {0}, top = *m, sum = 0;
    int32_t W[FL_KV_PAGE];
    for (int t = 0; t < n; t++) {
        s[t] = sum_codes(X, work->k + 4 * t, 4 * FL_KV_PAGE, D, g->k_zero + t, 0) *
               (step * g->k_scale[t]);
        if (s[t] > top) top = s[t];
    }
    const float c = *m == -INFINITY ? 0 : expf(*m - top);
    for (int t = 0; t < n; t++) {
        const float p = expf(s[t] - top);
        sum += p;
        w[t] = p * g->v_scale[t];
    }
    *l = *l * c + sum;
    *m = top;
    const float w_step = to_fixed(W, w, FL_KV_PAGE);
    for (int d = 0; d < D; d++) {
        const float y = sum_codes(W, work->v + 4 * d, 4 * fl__attention_ld(D), FL_KV_PAGE,
                                  g->v_zero, 1);
        o[d] = fmaf(y, w_step, o[d] * c);
    }
}

void fl__attention_codes_ref(const fl_attention_codes *a)
{
    const int D = a->D, ld = fl__attention_ld(D);
    const fl_codes_work work = fl__codes_work(a->work, D);
    const fl_codes_head *heads = a->x;
    const int32_t *X = (const int32_t *)(const void *)((const uint8_t *)a->x +
                                                       fl__codes_heads_bytes(a->n_rows));
    fl_codes_grids g;
    for (int p = 0; p < a->n_pages; p++) {
        load_grid(g.k_scale, g.k_zero, a->k[p], FL_KV_KEYS, D, a->k_bits);
        load_grid(g.v_scale, g.v_zero, a->v[p], FL_KV_VALUES, D, a->v_bits);
        fl__codes_spread(work.k, FL_KV_PAGE, a->k[p], FL_KV_KEYS, D, a->k_bits);
        fl__codes_spread(work.v, ld, a->v[p], FL_KV_VALUES, D, a->v_bits);
        for (int r = 0; r < a->n_rows; r++) {
            const int n = fl__codes_seen(a, r, p);
            if (n > 0)
                one_row(a->o + (int64_t)r * ld, a->m + r, a->l + r, heads[r].step,
                        X + (int64_t)r * D, n, &work, &g, D);
        }
    }
}
