/* check_layout.c - the packed layouts against their drawings. SPDX-License-Identifier: MIT */
#include "check/ck.h"

#include "kernels/layout.h"

#include <string.h>

/* layout.h's drawing, written as loops over its dimensions. */
static void expect_n16k4(ck *t, const fl_weight *w, const int8_t *codes)
{
    const int k_row = w->bits == 4 ? 8 : 4;
    size_t at = 0;
    for (int panel = 0; panel < w->N_pad / 16; panel++)
        for (int k0 = 0; k0 < w->K_pad; k0 += k_row)
            for (int lane = 0; lane < 16; lane++)
                for (int j = 0; j < 4; j++, at++) {
                    const int n = panel * 16 + lane, k = k0 + j;
                    const bool in = n < w->N && k < w->K, in4 = n < w->N && k + 4 < w->K;
                    const int first = in ? codes[n * w->K + k] : 0;
                    const int second = in4 ? codes[n * w->K + k + 4] : 0;
                    const int want =
                        w->bits == 8 ? first & 255 : (first + 8) | (second + 8) << 4;
                    if (w->data[at] != want)
                        ck_complain(t, "byte %zu of [%d, %d] is %d, not %d", at, w->N, w->K,
                                    w->data[at], want);
                }
    ck_true(t, at == w->n_bytes);
}

static void pack_one(ck *t, int N, int K, int bits)
{
    fl_rng rng = fl__rng_init(t->seed, N * 1000 + K, "layout");
    const int lo = bits == 4 ? -8 : -127, hi = bits == 4 ? 7 : 127;
    ck_buf codes = ck_buf_new((size_t)N * (size_t)K), back = ck_buf_new((size_t)N * (size_t)K);
    int8_t *c = codes.data;
    fl_weight w;
    for (int i = 0; i < N * K; i++) c[i] = (int8_t)ck_int(&rng, lo, hi);
    ck_true(t, fl__weight_pack(&w, c, N, K, bits, NULL) == FL_OK);
    expect_n16k4(t, &w, c);
    for (int n = 0; n < w.N_pad; n++) {
        int sum = 0;
        for (int k = 0; k < K && n < N; k++) sum += c[n * K + k];
        if (w.col_sum[n] != sum) ck_complain(t, "col_sum[%d] of [%d, %d]", n, N, K);
    }
    fl__weight_unpack(back.data, &w);
    ck_true(t, memcmp(c, back.data, codes.n_bytes) == 0 && ck_buf_intact(&back));
    fl__weight_fini(&w);
    ck_true(t, !w.data && !w.col_sum);
    ck_buf_free(&codes);
    ck_buf_free(&back);
}

static void refuse(ck *t)
{
    static const struct {
        int8_t code;
        int bits;
    } bad[] = {{8, 4}, {-9, 4}, {-128, 8}};
    fl_err err;
    fl_weight w;
    for (size_t i = 0; i < FL_COUNT(bad); i++) {
        int8_t codes[6] = {0};
        codes[5] = bad[i].code;
        ck_true(t, fl__weight_pack(&w, codes, 2, 3, bad[i].bits, &err) == FL_E_INPUT);
        ck_true(t, strstr(err.text, "code [1, 2]") && !w.data);
    }
    ck_true(t, fl__weight_pack(&w, NULL, 1, 65537, 8, &err) == FL_E_UNSUPPORTED);
}

static void nibbles(ck *t)
{
    static const int8_t codes[] = {-8, 7, 3, /* row 1 */ -1, 0, 1};
    static const uint8_t want[] = {0x78, 0x03, 0x0f, 0x01};
    ck_buf packed = ck_buf_new(sizeof want), back = ck_buf_new(sizeof codes);
    fl__nibbles_pack(packed.data, codes, 2, 3);
    ck_true(t, memcmp(packed.data, want, sizeof want) == 0 && ck_buf_intact(&packed));
    fl__nibbles_unpack(back.data, packed.data, 2, 3);
    ck_true(t, memcmp(back.data, codes, sizeof codes) == 0 && ck_buf_intact(&back));
    ck_buf_free(&packed);
    ck_buf_free(&back);
}

void check_layout(ck *t)
{
    static const int dims[] = {1, 3, 8, 15, 16, 17, 63, 64, 65, 130};
    if (ck_begin(t, "layout n16k4")) {
        for (size_t i = 0; i < FL_COUNT(dims); i++)
            for (size_t j = 0; j < FL_COUNT(dims); j++) {
                pack_one(t, dims[i], dims[j], 4);
                pack_one(t, dims[i], dims[j], 8);
            }
        ck_end(t);
    }
    if (ck_begin(t, "layout refuses codes out of range")) {
        refuse(t);
        ck_end(t);
    }
    if (ck_begin(t, "layout of model files")) {
        nibbles(t);
        ck_end(t);
    }
}
