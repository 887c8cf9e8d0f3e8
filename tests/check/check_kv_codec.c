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

/* Code of term i of a lane, read off the words as kv_codec.h has them. */
static int code_at(const uint8_t *block, fl_kv_side side, int D, int bits, int i, int lane)
{
    const int n_lanes = side == FL_KV_KEYS ? T : D, n = side == FL_KV_KEYS ? D : T;
    const int widths[2] = {bits == 3 ? 2 : bits, bits == 3 ? 1 : 0};
    int code = 0, from = 0;
    for (int p = 0; p < 2 && widths[p]; p++) {
        const int b = widths[p], in_word = i % (32 / b);
        const int byte = (i / (32 / b) * n_lanes + lane) * 4 + in_word % 4;
        code |= (block[byte] >> in_word / 4 * b & ((1 << b) - 1)) << from;
        block += (n * b + 31) / 32 * n_lanes * 4;
        from += b;
    }
    return code;
}

static void one_side(ck *t, const fl_kv_codec_kernel *k, fl_kv_side side, int D, int bits,
                     int draw)
{
    fl_rng rng = fl__rng_init(t->seed, D * 256 + bits * 16 + draw, "kv-codec");
    const size_t n = (size_t)(D * T), n_bytes = fl__kv_block_bytes(side, D, bits);
    ck_buf got = ck_buf_new(n_bytes), want = ck_buf_new(n_bytes);
    ck_buf x = ck_buf_new((size_t)D * sizeof(float));
    ck_buf a = ck_buf_new(n * sizeof(float)), b = ck_buf_new(n * sizeof(float));
    for (int i = 0; i < T; i++) {
        const int row = (i * 37 + draw) % T; /* what is there already stays */
        const float c_max = ck_int(&rng, 0, 1) ? 1.0f : (float)fl__rng_unit(&rng);
        const float c_min = ck_int(&rng, 0, 1) ? 1.0f : (float)fl__rng_unit(&rng);
        draw_row(x.data, D, i + draw, &rng);
        k->quantize(got.data, side, row, x.data, D, bits, c_max, c_min);
        reference()->quantize(want.data, side, row, x.data, D, bits, c_max, c_min);
        if (memcmp(got.data, want.data, n_bytes) != 0)
            ck_complain(t, "quantise: side %d, D %d, %d bits, kind %d, draw %d, seed %llu",
                        (int)side, D, bits, (i + draw) % 10, draw, (unsigned long long)t->seed);
    }
    k->expand(a.data, want.data, side, D, bits);
    reference()->expand(b.data, want.data, side, D, bits);
    if (memcmp(a.data, b.data, a.n_bytes) != 0)
        ck_complain(t, "expand: side %d, D %d, %d bits, draw %d", (int)side, D, bits, draw);
    if (!ck_buf_intact(&a) || !ck_buf_intact(&got))
        ck_complain(t, "guard: side %d, D %d, %d bits", (int)side, D, bits);
    ck_buf *const all[] = {&got, &want, &x, &a, &b};
    for (size_t i = 0; i < FL_COUNT(all); i++) ck_buf_free(all[i]);
}

static void one(ck *t, const fl_kv_codec_kernel *k, int D, int bits, int draw)
{
    one_side(t, k, FL_KV_KEYS, D, bits, draw);
    one_side(t, k, FL_KV_VALUES, D, bits, draw);
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
    int zero, codes[8];
} hand_case;

static const hand_case hand_cases[] = {
    {4, 2, 1, 1, {-1, 0, 1, 2}, 1, 1, {0, 1, 2, 3}},
    {6, 2, 1, 1, {-1, 0, 1, 2, 2, 2}, 1, 1, {0, 1, 2, 3, 3, 3}},
    {4, 2, 0.5f, 1, {-1, 0, 1, 4}, 1, 1, {0, 1, 2, 3}}, /* 4 is clipped to 2 */
    {4, 2, 1, 0.5f, {-2, 0, 1, 2}, 1, 1, {0, 1, 2, 3}},
    {2, 4, 1, 1, {-5, 10}, 1, 5, {0, 15}},
    {8, 3, 1, 1, {0, 1, 2, 3, 4, 5, 6, 7}, 1, 0, {0, 1, 2, 3, 4, 5, 6, 7}},
    {6, 3, 1, 1, {0, 1, 2, 3, 4, 7}, 1, 0, {0, 1, 2, 3, 4, 7}},
    {2, 3, 1, 1, {7, 5}, 1, 0, {7, 5}},
    {2, 8, 1, 1, {-100, 155}, 1, 100, {0, 255}},
    {4, 8, 1, 1, {255, 0.5f, 1.5f, 2.5f}, 1, 0, {255, 0, 2, 2}}, /* ties to even */
    {2, 4, 1, 1, {0, 0}, 1, 0, {0, 0}},
    {2, 4, 1, 1, {30, 30}, 2, 0, {15, 15}},
    {2, 4, 1, 1, {-30, -30}, 2, 15, {0, 0}},
    {2, 4, 1, 1, {1e-9f, 1e-10f}, 1, 0, {0, 0}},   /* no f16 is as small as the scale */
    {2, 4, 1, 1, {1e30f, -1e30f}, 1, 15, {15, 0}}, /* nor as large */
    {4, 4, 1, 1, {NAN, 15, 1, NAN}, 1, 0, {0, 15, 1, 0}},
};

static void by_hand(ck *t)
{
    enum { TOKEN = 37 };
    for (size_t i = 0; i < 2 * FL_COUNT(hand_cases); i++) {
        const hand_case *c = &hand_cases[i / 2];
        const fl_kv_side side = i % 2 ? FL_KV_VALUES : FL_KV_KEYS;
        uint8_t block[64 * 64 + 64 * 3];
        uint16_t scale;
        memset(block, 0xa5, sizeof block);
        reference()->quantize(block, side, TOKEN, c->x, c->D, c->bits, c->c_max, c->c_min);
        memcpy(&scale, block + fl__kv_scale_at(side, c->D, c->bits) + TOKEN * sizeof scale,
               sizeof scale);
        if (fl__f16_to_f32(scale) != c->scale ||
            block[fl__kv_zero_at(side, c->D, c->bits) + TOKEN] != c->zero)
            ck_complain(t, "case %zu: scale %g, zero %d", i, (double)fl__f16_to_f32(scale),
                        block[fl__kv_zero_at(side, c->D, c->bits) + TOKEN]);
        for (int d = 0; d < c->D; d++) {
            const int code = side == FL_KV_KEYS
                                 ? code_at(block, side, c->D, c->bits, d, TOKEN)
                                 : code_at(block, side, c->D, c->bits, TOKEN, d);
            if (code != c->codes[d]) ck_complain(t, "case %zu: code %d is %d", i, d, code);
        }
    }
    ck_true(t, fl__kv_block_bytes(FL_KV_KEYS, 128, 4) == 64 * (64 + 3));
    ck_true(t, fl__kv_block_bytes(FL_KV_VALUES, 128, 3) == 64 * (48 + 3));
}

/* Without clipping no value is further off than one step: half of it by its own rounding, half
 * by that of zero at the ends; and a little of the scale's. */
static void within_a_step(ck *t)
{
    enum { D = 64 };
    static uint8_t keys[64 * 64 + 64 * 3], values[64 * 64 + 64 * 3];
    static float x[T][D], v[T * D], k_t[D * T];
    fl_rng rng = fl__rng_init(t->seed, 0, "kv-step");
    for (size_t b = 0; b < FL_COUNT(all_bits); b++) {
        const int bits = all_bits[b], qmax = (1 << bits) - 1;
        for (int i = 0; i < T; i++) {
            for (int d = 0; d < D; d++) x[i][d] = (float)fl__rng_normal(&rng) + (float)(i % 3);
            reference()->quantize(keys, FL_KV_KEYS, i, x[i], D, bits, 1, 1);
            reference()->quantize(values, FL_KV_VALUES, i, x[i], D, bits, 1, 1);
        }
        reference()->expand(v, values, FL_KV_VALUES, D, bits);
        reference()->expand(k_t, keys, FL_KV_KEYS, D, bits);
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
