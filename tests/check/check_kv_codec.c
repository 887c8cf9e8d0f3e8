/* check_kv_codec.c - every row of the KV codec against the reference, bit for bit: codes,
 * scales, zeros and expanded values; the reference against values worked out by hand and
 * against the size of a step.
 * SPDX-License-Identifier: MIT */
#include "check/ck.h"

#include "base/float16.h"
#include "kernels/kv_codec.h"

#include <float.h>
#include <math.h>
#include <string.h>

enum { T = FL_KV_PAGE };

static const int all_bits[] = {8, 4, 3, 2};

static const fl_kv_codec_kernel *reference(void)
{
    return &fl__kv_codec_kernels[fl__n_kv_codec_kernels - 1];
}

/* Row of token t: usual ones and every kind that has no ordinary scale. */
static void draw_row(float *x, int D, int t, fl_rng *rng)
{
    static const float odd[] = {NAN,      INFINITY, -INFINITY, FLT_MAX,
                                -FLT_MAX, 1e-42f,   -0.0f,     1e6f};
    const float size = ldexpf(1, ck_int(rng, -30, 20)), shift = (float)ck_int(rng, -2, 2);
    for (int d = 0; d < D; d++) {
        const float z = (float)fl__rng_normal(rng);
        switch (t % 10) {
        case 0: x[d] = 0; break;
        case 1: x[d] = size; break; /* all equal */
        case 2: x[d] = -size; break;
        case 3: x[d] = fabsf(z) * size; break; /* zero at an end */
        case 4: x[d] = -fabsf(z) * size; break;
        case 5: x[d] = z * 1e-7f; break; /* scales around the smallest */
        case 6: x[d] = z * 2e5f; break; /* and around the largest */
        case 7: x[d] = d % 3 ? z : odd[ck_int(rng, 0, (int)FL_COUNT(odd) - 1)]; break;
        case 8: x[d] = (float)ck_int(rng, -8, 7) / 2; break; /* ties */
        default: x[d] = (z + shift) * size; break;
        }
    }
}

static void one(ck *t, const fl_kv_codec_kernel *k, int D, int bits, int draw)
{
    fl_rng rng = fl__rng_init(t->seed, D * 256 + bits * 16 + draw, "kv-codec");
    const size_t n = (size_t)(D * T), n_bytes = fl__kv_block_bytes(D, bits);
    ck_buf got = ck_buf_new(n_bytes), want = ck_buf_new(n_bytes);
    ck_buf x = ck_buf_new((size_t)D * sizeof(float));
    ck_buf a = ck_buf_new(n * sizeof(float)), b = ck_buf_new(n * sizeof(float));
    for (int i = 0; i < T; i++) {
        const int row = (i * 37 + draw) % T; /* what is there already stays */
        const float c_max = ck_int(&rng, 0, 1) ? 1.0f : (float)fl__rng_unit(&rng);
        const float c_min = ck_int(&rng, 0, 1) ? 1.0f : (float)fl__rng_unit(&rng);
        draw_row(x.data, D, i + draw, &rng);
        k->quantize(got.data, row, x.data, D, bits, c_max, c_min);
        reference()->quantize(want.data, row, x.data, D, bits, c_max, c_min);
        if (memcmp(got.data, want.data, n_bytes) != 0)
            ck_complain(t, "quantise: D %d, %d bits, kind %d, draw %d, seed %llu", D, bits,
                        (i + draw) % 10, draw, (unsigned long long)t->seed);
    }
    k->expand_k(a.data, want.data, D, bits);
    reference()->expand_k(b.data, want.data, D, bits);
    if (memcmp(a.data, b.data, a.n_bytes) != 0)
        ck_complain(t, "expand K: D %d, %d bits, draw %d", D, bits, draw);
    if (!ck_buf_intact(&a)) ck_complain(t, "expand K: guard: D %d, %d bits", D, bits);
    k->expand_v(a.data, want.data, D, bits);
    reference()->expand_v(b.data, want.data, D, bits);
    if (memcmp(a.data, b.data, a.n_bytes) != 0)
        ck_complain(t, "expand V: D %d, %d bits, draw %d", D, bits, draw);
    if (!ck_buf_intact(&a) || !ck_buf_intact(&got))
        ck_complain(t, "guard: D %d, %d bits", D, bits);
    ck_buf *const all[] = {&got, &want, &x, &a, &b};
    for (size_t i = 0; i < FL_COUNT(all); i++) ck_buf_free(all[i]);
}

static void row(ck *t, const fl_kv_codec_kernel *k)
{
    static const int widths[] = {2, 4, 6, 8, 10, 14, 16, 18, 24, 26, 32, 64, 80, 126, 128, 512};
    for (size_t i = 0; i < FL_COUNT(widths); i++)
        for (size_t b = 0; b < FL_COUNT(all_bits); b++)
            for (int draw = 0; draw < 3; draw++) one(t, k, widths[i], all_bits[b], draw);
}

typedef struct hand_case {
    int D, bits;
    float c_max, c_min, x[8];
    float scale;
    int zero;
    uint8_t codes[8];
    int n_bytes;
} hand_case;

static const hand_case hand_cases[] = {
    {4, 2, 1, 1, {-1, 0, 1, 2}, 1, 1, {0xe4}, 1},
    {6, 2, 1, 1, {-1, 0, 1, 2, 2, 2}, 1, 1, {0xe4, 0x0f}, 2},
    {4, 2, 0.5f, 1, {-1, 0, 1, 4}, 1, 1, {0xe4}, 1}, /* 4 is clipped to 2 */
    {4, 2, 1, 0.5f, {-2, 0, 1, 2}, 1, 1, {0xe4}, 1},
    {2, 4, 1, 1, {-5, 10}, 1, 5, {0xf0}, 1},
    {8, 3, 1, 1, {0, 1, 2, 3, 4, 5, 6, 7}, 1, 0, {0x88, 0xc6, 0xfa}, 3},
    {6, 3, 1, 1, {0, 1, 2, 3, 4, 7}, 1, 0, {0x88, 0xc6, 0x03}, 3},
    {2, 3, 1, 1, {7, 5}, 1, 0, {0x2f}, 1},
    {2, 8, 1, 1, {-100, 155}, 1, 100, {0, 255}, 2},
    {4, 8, 1, 1, {255, 0.5f, 1.5f, 2.5f}, 1, 0, {255, 0, 2, 2}, 4}, /* ties to even */
    {2, 4, 1, 1, {0, 0}, 1, 0, {0x00}, 1},
    {2, 4, 1, 1, {30, 30}, 2, 0, {0xff}, 1},
    {2, 4, 1, 1, {-30, -30}, 2, 15, {0x00}, 1},
    {2, 4, 1, 1, {1e-9f, 1e-10f}, 1, 0, {0x00}, 1},  /* no f16 is as small as the scale */
    {2, 4, 1, 1, {1e30f, -1e30f}, 1, 15, {0x0f}, 1}, /* nor as large */
    {4, 4, 1, 1, {NAN, 15, 1, NAN}, 1, 0, {0xf0, 0x01}, 2},
};

static void by_hand(ck *t)
{
    for (size_t i = 0; i < FL_COUNT(hand_cases); i++) {
        const hand_case *c = &hand_cases[i];
        uint8_t block[64 * 8 + 64 * 3];
        uint16_t scale;
        reference()->quantize(block, 3, c->x, c->D, c->bits, c->c_max, c->c_min);
        memcpy(&scale, block + fl__kv_scale_at(c->D, c->bits) + 3 * sizeof scale, sizeof scale);
        if (memcmp(block + 3 * c->n_bytes, c->codes, (size_t)c->n_bytes) != 0 ||
            fl__f16_to_f32(scale) != c->scale ||
            block[fl__kv_zero_at(c->D, c->bits) + 3] != c->zero)
            ck_complain(t, "case %zu: codes %02x %02x, scale %g, zero %d", i,
                        block[3 * c->n_bytes], block[3 * c->n_bytes + 1],
                        (double)fl__f16_to_f32(scale),
                        block[fl__kv_zero_at(c->D, c->bits) + 3]);
        ck_true(t, (int)fl__kv_row_bytes(c->D, c->bits) == c->n_bytes);
    }
    ck_true(t, fl__kv_block_bytes(128, 4) == 64 * (64 + 3));
}

/* Without clipping no value is further off than one step: half of it by its own rounding, half
 * by that of zero at the ends; and a little of the scale's. */
static void within_a_step(ck *t)
{
    enum { D = 64 };
    static uint8_t block[64 * 64 + 64 * 3];
    static float x[T][D], v[T * D], k_t[D * T];
    fl_rng rng = fl__rng_init(t->seed, 0, "kv-step");
    for (size_t b = 0; b < FL_COUNT(all_bits); b++) {
        const int bits = all_bits[b], qmax = (1 << bits) - 1;
        for (int i = 0; i < T; i++) {
            for (int d = 0; d < D; d++) x[i][d] = (float)fl__rng_normal(&rng) + (float)(i % 3);
            reference()->quantize(block, i, x[i], D, bits, 1, 1);
        }
        reference()->expand_v(v, block, D, bits);
        reference()->expand_k(k_t, block, D, bits);
        for (int i = 0; i < T; i++) {
            float hi = 0, lo = 0;
            for (int d = 0; d < D; d++) {
                hi = fmaxf(hi, x[i][d]);
                lo = fminf(lo, x[i][d]);
            }
            const double step = (double)(hi - lo) / qmax;
            for (int d = 0; d < D; d++) {
                ck_true(t, fabs((double)v[i * D + d] - x[i][d]) <= step + (hi - lo) * 0x1p-10);
                ck_true(t, v[i * D + d] == k_t[d * T + i]);
            }
        }
    }
}

void check_kv_codec(ck *t)
{
    for (int i = 0; i < fl__n_kv_codec_kernels; i++) {
        const fl_kv_codec_kernel *k = &fl__kv_codec_kernels[i];
        if (k->isa & ~t->isa) {
            ck_skip(t, k->name, "instruction set missing or masked");
        } else if (ck_begin(t, k->name)) {
            row(t, k);
            if (k == reference()) by_hand(t);
            ck_end(t);
        }
    }
    if (!ck_begin(t, "kv_codec_ref, size of a step")) return;
    within_a_step(t);
    ck_end(t);
}
