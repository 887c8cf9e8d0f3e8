/* test_linear.c - sites against the arithmetic they stand for, in double: every way to quantise
 * the input, every way to store the weight, folded and explicit copies, threads.
 * SPDX-License-Identifier: MIT */
#include "model/linear.h"

#include "base/float16.h"
#include "base/isa.h"
#include "base/mem.h"
#include "base/rng.h"
#include "support/fl_test.h"
#include "support/random_data.h"

#include <math.h>
#include <string.h>

enum { K = 100, N0 = 37, N1 = 16, ROWS = 21 };
static const int n_out[2] = {N0, N1};

/* A site with two linears of random codes. */
typedef struct problem {
    fl_site site;
    fl_linear linear[2];
    int8_t codes[2][N0 * K];
    float *x, *y[2];
    void *scratch;
    fl_exec ex;
} problem;

typedef struct variant {
    fl_act_kind act;
    int a_bits, w_bits;
    bool is_unsigned, flatten, premul, per_tensor, bias, explicit_copies;
    int n_threads;
} variant;

static uint16_t copies_of(int channel, const variant *v)
{
    /* 19 copies of a 4-bit code need two int8 columns */
    static const uint16_t some[] = {1, 1, 2, 1, 19, 1, 3, 40};
    return v->flatten ? some[channel % 8] : 1;
}

static int qmax_of(const variant *v)
{
    return v->is_unsigned ? (1 << v->a_bits) - 1 : (1 << (v->a_bits - 1)) - 1;
}

static void fill_site(problem *p, const variant *v)
{
    fl_site *s = &p->site;
    *s = (fl_site){.act = v->act, .a_bits = v->a_bits, .is_unsigned = v->is_unsigned,
                   .scale = 0.13f, .n_in = K, .explicit_copies = v->explicit_copies,
                   .n_linears = 2, .linears = {&p->linear[0], &p->linear[1]}};
    if (v->flatten) s->copies = fl__alloc(K, sizeof *s->copies);
    for (int c = 0; c < K && v->flatten; c++) s->copies[c] = copies_of(c, v);
    if (v->premul) s->premul = fl_test_normal(K, 1, "premul");
    for (int c = 0; c < K && v->premul; c++) s->premul[c] = fabsf(s->premul[c]) + 0.25f;
    assert_int_equal(fl__site_prepare(s, NULL), FL_OK);
}

static void fill_linear(problem *p, int i, const variant *v)
{
    fl_linear *lin = &p->linear[i];
    fl_rng rng = fl__rng_init(1, i, "codes");
    *lin = (fl_linear){.n_out = n_out[i], .n_in = K, .w_scale_stride = v->per_tensor ? 0 : 1};
    lin->w_scale = fl_test_normal((size_t)n_out[i], 1, "w_scale");
    for (int n = 0; n < n_out[i]; n++) lin->w_scale[n] = fabsf(lin->w_scale[n]) + 0.01f;
    if (v->bias) lin->bias = fl_test_normal((size_t)n_out[i], 1, "bias");
    for (int k = 0; k < n_out[i] * K; k++)
        p->codes[i][k] = (int8_t)(v->w_bits == 4 ? (int)fl__rng_below(&rng, 16) - 8
                                                 : (int)fl__rng_below(&rng, 255) - 127);
    assert_int_equal(fl__linear_pack(lin, &p->site, p->codes[i], v->w_bits, NULL), FL_OK);
}

static problem *make(const variant *v)
{
    problem *p = fl__calloc(1, sizeof *p);
    p->ex = (fl_exec){fl__isa_detect(), v->n_threads ? v->n_threads : 1};
    fill_site(p, v);
    for (int i = 0; i < 2; i++) fill_linear(p, i, v);
    p->x = fl_test_normal(ROWS * K, 1.5, "x");
    for (int k = 0; k < ROWS * K; k++) {
        if (k % 11 == 0) p->x[k] *= 30; /* clipped, or carried by copies */
        if (v->is_unsigned) p->x[k] = fmaxf(p->x[k], 0);
    }
    for (int i = 0; i < 2; i++) p->y[i] = fl__calloc(ROWS * N0, sizeof(float));
    p->scratch = fl__alloc(fl__site_scratch_bytes(&p->ex, ROWS, K, p->site.code_ld, 0, false),
                           1);
    return p;
}

static void run(problem *p)
{
    float *const y[FL_SITE_MAX_LINEARS] = {p->y[0], p->y[1], NULL};
    fl__site_run(&p->ex, &p->site, p->x, ROWS, y, p->scratch);
}

static void done(problem **pp)
{
    problem *p = *pp;
    for (int i = 0; i < 2; i++) {
        fl__linear_fini(&p->linear[i]);
        fl__free(&p->y[i]);
    }
    fl__site_fini(&p->site);
    fl__free(&p->x);
    fl__free(&p->scratch);
    fl__free(pp);
}

/* The value that the code of x[row, c] stands for; float32 operations as the contract says. */
static double dequantised(const problem *p, const variant *v, int row, int c)
{
    const float x = p->x[row * K + c] * (v->premul ? p->site.premul[c] : 1);
    const int qmax = qmax_of(v);
    float scale = p->site.scale;
    if (v->act == FL_ACT_FLOAT) return x;
    if (v->act == FL_ACT_TOKEN) {
        float top = 0;
        for (int k = 0; k < K; k++)
            top = fmaxf(top, fabsf(p->x[row * K + k] * (v->premul ? p->site.premul[k] : 1)));
        scale = top / (float)qmax;
    }
    const float inv = 1.0f / scale, most = (float)(qmax * copies_of(c, v));
    float q = rintf(x * inv);
    q = fminf(fmaxf(q, v->is_unsigned ? 0 : -most), most);
    return (double)q * scale;
}

static void check_against_double(const problem *p, const variant *v)
{
    for (int i = 0; i < 2; i++)
        for (int r = 0; r < ROWS; r++)
            for (int n = 0; n < n_out[i]; n++) {
                const fl_linear *lin = &p->linear[i];
                double want = 0, size = 0;
                for (int k = 0; k < K; k++) {
                    const double term = dequantised(p, v, r, k) * p->codes[i][n * K + k] *
                                        lin->w_scale[n * lin->w_scale_stride];
                    want += term;
                    size += fabs(term);
                }
                if (lin->bias) want += lin->bias[n];
                const double got = p->y[i][r * n_out[i] + n];
                if (!(fabs(got - want) <= 1e-6 * size + 1e-5))
                    fail_msg("act %d a%d w%d linear %d row %d channel %d: %g, wanted %g",
                             v->act, v->a_bits, v->w_bits, i, r, n, got, want);
            }
}

/* ---- integer activations ----------------------------------------------------------------- */

static const variant integer_variants[] = {
    {.act = FL_ACT_STATIC, .a_bits = 8, .w_bits = 8},
    {.act = FL_ACT_STATIC, .a_bits = 8, .w_bits = 4, .bias = true},
    {.act = FL_ACT_STATIC, .a_bits = 4, .w_bits = 4, .per_tensor = true},
    {.act = FL_ACT_STATIC, .a_bits = 4, .w_bits = 8, .premul = true},
    {.act = FL_ACT_STATIC, .a_bits = 8, .w_bits = 8, .is_unsigned = true, .bias = true},
    {.act = FL_ACT_STATIC, .a_bits = 4, .w_bits = 4, .is_unsigned = true},
    {.act = FL_ACT_STATIC, .a_bits = 8, .w_bits = 8, .flatten = true, .bias = true},
    {.act = FL_ACT_STATIC, .a_bits = 8, .w_bits = 4, .flatten = true, .is_unsigned = true},
    {.act = FL_ACT_STATIC, .a_bits = 4, .w_bits = 4, .flatten = true, .premul = true},
    {.act = FL_ACT_STATIC, .a_bits = 4, .w_bits = 4, .flatten = true, .explicit_copies = true},
    {.act = FL_ACT_STATIC, .a_bits = 4, .w_bits = 8, .flatten = true, .is_unsigned = true},
    {.act = FL_ACT_TOKEN, .a_bits = 8, .w_bits = 8, .bias = true},
    {.act = FL_ACT_TOKEN, .a_bits = 8, .w_bits = 4, .premul = true},
    {.act = FL_ACT_TOKEN, .a_bits = 4, .w_bits = 4, .per_tensor = true},
};

static void integer_sites_compute_what_their_codes_mean(void **state)
{
    (void)state;
    for (size_t i = 0; i < FL_COUNT(integer_variants); i++) {
        problem *p = make(&integer_variants[i]);
        run(p);
        check_against_double(p, &integer_variants[i]);
        done(&p);
    }
}

static void threads_do_not_change_a_bit(void **state)
{
    (void)state;
    for (size_t i = 0; i < FL_COUNT(integer_variants); i++) {
        variant v = integer_variants[i];
        problem *a = make(&v);
        v.n_threads = 2;
        problem *b = make(&v);
        run(a);
        run(b);
        for (int l = 0; l < 2; l++)
            assert_memory_equal(a->y[l], b->y[l], sizeof(float) * ROWS * N0);
        done(&a);
        done(&b);
    }
}

/* A row alone gives the bits that it has in a batch: decoding equals prefill. */
static void rows_do_not_depend_on_the_batch(void **state)
{
    (void)state;
    for (size_t i = 0; i < FL_COUNT(integer_variants); i++) {
        problem *p = make(&integer_variants[i]);
        run(p);
        for (int r = 0; r < ROWS; r++) {
            float y0[N0], y1[N1];
            float *const y[FL_SITE_MAX_LINEARS] = {y0, y1, NULL};
            fl__site_run(&p->ex, &p->site, p->x + r * K, 1, y, p->scratch);
            assert_memory_equal(y0, p->y[0] + r * N0, sizeof y0);
            assert_memory_equal(y1, p->y[1] + r * N1, sizeof y1);
        }
        done(&p);
    }
}

static void instruction_sets_do_not_change_a_bit(void **state)
{
    (void)state;
    for (size_t i = 0; i < FL_COUNT(integer_variants); i++) {
        problem *a = make(&integer_variants[i]), *b = make(&integer_variants[i]);
        b->ex.isa = 0;
        run(a);
        run(b);
        for (int l = 0; l < 2; l++)
            assert_memory_equal(a->y[l], b->y[l], sizeof(float) * ROWS * N0);
        done(&a);
        done(&b);
    }
}

/* ---- flattening -------------------------------------------------------------------------- */

static void folded_copies_equal_explicit_ones_bit_for_bit(void **state)
{
    (void)state;
    for (int u = 0; u < 2; u++)
        for (int w_bits = 4; w_bits <= 8; w_bits += 4) {
            variant v = {.act = FL_ACT_STATIC, .a_bits = 4, .w_bits = w_bits, .is_unsigned = u,
                         .flatten = true, .bias = true};
            problem *folded = make(&v);
            v.explicit_copies = true;
            problem *expanded = make(&v);
            run(folded);
            run(expanded);
            for (int l = 0; l < 2; l++)
                assert_memory_equal(folded->y[l], expanded->y[l], sizeof(float) * ROWS * N0);
            assert_true(fl__site_n_extra(&expanded->site) > fl__site_n_extra(&folded->site));
            done(&folded);
            done(&expanded);
        }
}

static void columns_are_counted_by_hand(void **state)
{
    (void)state;
    uint16_t copies[] = {1, 2, 18, 19, 36, 37, 8, 9};
    fl_site s = {.act = FL_ACT_STATIC, .a_bits = 4, .scale = 1, .n_in = 8, .copies = copies};
    assert_int_equal(fl__site_n_extra(&s), 0 + 0 + 0 + 1 + 1 + 2 + 0 + 0); /* 18 x 7 in a
                                                                              byte */
    s.is_unsigned = true;
    assert_int_equal(fl__site_n_extra(&s), 0 + 0 + 2 + 2 + 4 + 4 + 0 + 1); /* 8 x 15 in a
                                                                              byte */
    s.explicit_copies = true;
    assert_int_equal(fl__site_n_extra(&s), 0 + 1 + 17 + 18 + 35 + 36 + 7 + 8);
    s.explicit_copies = false;
    s.a_bits = 8;
    assert_int_equal(fl__site_n_extra(&s), 0 + 1 + 17 + 18 + 35 + 36 + 7 + 8);
    s.act = FL_ACT_TOKEN;
    assert_int_equal(fl__site_n_extra(&s), 0);
}

/* ---- weights in digits ------------------------------------------------------------------- */

typedef struct digits_case {
    int a_bits, w_bits;
    bool is_unsigned, explicit_copies, reference;
} digits_case;

static const uint16_t activation_copies[] = {1, 19, 2, 1, 1, 40};
static const uint16_t weight_copies[] = {1, 1, 3, 5};

/* A site of K channels, and one linear of wide codes, drawn and stored as digits. */
static void fill_digits(problem *p, int *wide, const digits_case *d)
{
    const int qmax = (1 << (d->w_bits - 1)) - 1;
    fl_rng rng = fl__rng_init(1, 0, "wide codes");
    fl_site *s = &p->site;
    *s = (fl_site){.act = FL_ACT_STATIC, .a_bits = d->a_bits, .is_unsigned = d->is_unsigned,
                   .scale = 1, .n_in = K, .explicit_copies = d->explicit_copies,
                   .n_linears = 1, .linears = {&p->linear[0]}};
    s->copies = fl__alloc(K, sizeof *s->copies);
    s->weight_copies = fl__alloc(K, sizeof *s->weight_copies);
    for (int c = 0; c < K; c++) {
        s->copies[c] = activation_copies[c % 6];
        s->weight_copies[c] = weight_copies[c % 4];
    }
    assert_int_equal(fl__site_prepare(s, NULL), FL_OK);
    const int ld = fl__site_weight_columns(s);
    int8_t *codes = fl__calloc((size_t)(N0 * ld), 1);
    for (int n = 0; n < N0; n++)
        for (int c = 0, next = K; c < K; next += s->weight_copies[c++] - 1) {
            const int most = s->weight_copies[c] * qmax;
            int left = (int)fl__rng_below(&rng, (uint64_t)(2 * most + 1)) - most;
            wide[n * K + c] = left;
            for (int i = 0; i < s->weight_copies[c]; i++) {
                const int digit = left > qmax ? qmax : left < -qmax ? -qmax : left;
                codes[n * ld + (i == 0 ? c : next + i - 1)] = (int8_t)digit;
                left -= digit;
            }
        }
    p->linear[0] = (fl_linear){.n_out = N0, .n_in = K, .w_scale_stride = 0};
    p->linear[0].w_scale = fl__alloc(1, sizeof(float));
    p->linear[0].w_scale[0] = 1;
    assert_int_equal(fl__linear_pack(&p->linear[0], s, codes, d->w_bits, NULL), FL_OK);
    fl__free(&codes);
}

static void check_digits(const digits_case *d)
{
    static int wide[N0 * K];
    problem *p = fl__calloc(1, sizeof *p);
    const int qmax = d->is_unsigned ? (1 << d->a_bits) - 1 : (1 << (d->a_bits - 1)) - 1;
    p->ex = (fl_exec){d->reference ? 0 : fl__isa_detect(), 1};
    fill_digits(p, wide, d);
    p->x = fl_test_normal(ROWS * K, qmax, "x");
    for (int k = 0; k < ROWS * K; k++) p->x[k] *= k % 6 == 5 ? 15 : 2;
    p->y[0] = fl__calloc(ROWS * N0, sizeof(float));
    p->scratch =
        fl__alloc(fl__site_scratch_bytes(&p->ex, ROWS, K, p->site.code_ld, 0, false), 1);
    run(p);
    for (int r = 0; r < ROWS; r++)
        for (int n = 0; n < N0; n++) {
            int64_t sum = 0;
            for (int c = 0; c < K; c++) {
                const int most = qmax * p->site.copies[c], least = d->is_unsigned ? 0 : -most;
                const int q = (int)rintf(p->x[r * K + c]);
                sum += (int64_t)(q < least ? least : q > most ? most : q) * wide[n * K + c];
            }
            if (p->y[0][r * N0 + n] != (float)sum)
                fail_msg("a%d w%d unsigned %d: row %d channel %d: %.9g, wanted %lld",
                         d->a_bits, d->w_bits, d->is_unsigned, r, n, p->y[0][r * N0 + n],
                         (long long)sum);
        }
    done(&p);
}

/* Every column of an activation meets every digit of the weight: the integers of the product
 * are those of whole codes. */
static void digits_of_both_give_the_product_of_whole_codes(void **state)
{
    (void)state;
    for (int i = 0; i < 32; i++)
        check_digits(&(digits_case){i & 1 ? 8 : 4, i & 2 ? 8 : 4, i & 4, i & 8, i & 16});
}

static void columns_of_digits_are_counted_by_hand(void **state)
{
    (void)state;
    uint16_t copies[] = {1, 19, 1, 2}, digits[] = {1, 3, 4, 1};
    fl_site s = {.act = FL_ACT_STATIC, .a_bits = 4, .scale = 1, .n_in = 4, .copies = copies,
                 .weight_copies = digits};
    assert_int_equal(fl__site_weight_columns(&s), 4 + 2 + 3);
    assert_int_equal(fl__site_n_extra(&s), 0 + (2 * 3 - 1) + 3 + 0);
    s.a_bits = 8;
    assert_int_equal(fl__site_n_extra(&s), 0 + (19 * 3 - 1) + 3 + 1);
    s.copies = NULL;
    assert_int_equal(fl__site_n_extra(&s), 0 + 2 + 3 + 0);
    s.act = FL_ACT_TOKEN;
    assert_int_equal(fl__site_n_extra(&s), 0);
    assert_int_equal(fl__site_weight_columns(&s), 4);
}

/* ---- float activations ------------------------------------------------------------------- */

/* Weight-only: codes as the model file stores them. */
static void use_stored_codes(problem *p, int bits, uint8_t *nibbles[2])
{
    for (int i = 0; i < 2; i++) {
        fl_linear *lin = &p->linear[i];
        fl__weight_fini(&lin->packed);
        lin->w_bits = bits;
        lin->w = p->codes[i];
        if (bits == 8) continue;
        nibbles[i] = fl__alloc((size_t)n_out[i] * (K + 1) / 2, 1);
        fl__nibbles_pack(nibbles[i], p->codes[i], n_out[i], K);
        lin->w = nibbles[i];
    }
}

static void weight_only_sites_multiply_the_dequantised_weight(void **state)
{
    (void)state;
    for (int bits = 4; bits <= 8; bits += 4)
        for (int rows = 0; rows < 2; rows++) {
            const variant v = {.act = FL_ACT_FLOAT, .a_bits = 16, .w_bits = bits, .bias = true,
                               .premul = bits == 4, .per_tensor = bits == 8};
            uint8_t *nibbles[2] = {NULL, NULL};
            problem *p = make(&v);
            use_stored_codes(p, bits, nibbles);
            if (rows) {
                run(p);
            } else { /* row by row: the way of decoding */
                for (int r = 0; r < ROWS; r++) {
                    float *const y[FL_SITE_MAX_LINEARS] = {p->y[0] + r * N0, p->y[1] + r * N1,
                                                           NULL};
                    fl__site_run(&p->ex, &p->site, p->x + r * K, 1, y, p->scratch);
                }
            }
            check_against_double(p, &v);
            done(&p);
            fl__free(&nibbles[0]);
            fl__free(&nibbles[1]);
        }
}

/* Float weights of all types, few rows and many, against double. */
static void float_linears_are_right_for_all_types(void **state)
{
    (void)state;
    static const fl_dtype types[] = {FL_DTYPE_F32, FL_DTYPE_BF16, FL_DTYPE_F16};
    const fl_exec ex = {fl__isa_detect(), 2};
    float *w = fl_test_normal(N0 * K, 1, "w"), *x = fl_test_normal(ROWS * K, 1, "x");
    float *bias = fl_test_normal(N0, 1, "bias"), y[ROWS * N0];
    static uint16_t half[N0 * K];
    void *scratch = fl__alloc(fl__linear_float_scratch_bytes(&ex), 1);
    for (size_t t = 0; t < FL_COUNT(types); t++)
        for (int rows = 1; rows <= ROWS; rows += ROWS - 1) {
            for (int i = 0; i < N0 * K; i++) {
                w[i] = (float)(int)(w[i] * 32) / 32; /* exact in all types */
                half[i] = types[t] == FL_DTYPE_BF16 ? fl__f32_to_bf16(w[i]) : 0;
                for (int h = 0; types[t] == FL_DTYPE_F16 && h < 0x10000; h += 16)
                    if (fl__f16_to_f32((uint16_t)h) == w[i]) half[i] = (uint16_t)h;
            }
            const fl_linear lin = {.n_out = N0, .n_in = K, .w_type = types[t], .w_bits = 16,
                                   .w = types[t] == FL_DTYPE_F32 ? (void *)w : (void *)half,
                                   .bias = bias};
            fl__linear_float_run(&ex, &lin, x, K, rows, y, N0, scratch);
            for (int r = 0; r < rows; r++)
                for (int n = 0; n < N0; n++) {
                    double want = bias[n];
                    for (int k = 0; k < K; k++) want += (double)x[r * K + k] * w[n * K + k];
                    assert_true(fabs(y[r * N0 + n] - want) < 1e-4);
                }
        }
    fl__free(&w);
    fl__free(&x);
    fl__free(&bias);
    fl__free(&scratch);
}

/* More input channels than are packed at a time: one row alone, the same in a batch, and codes
 * against the same weights as floats. */
static void long_rows_are_cut_and_joined(void **state)
{
    (void)state;
    enum { LONG = 4107, OUT = 19, MANY = 29 };
    const fl_exec ex = {fl__isa_detect(), 2};
    float *x = fl_test_normal(MANY * LONG, 1, "x"), *w = fl_test_normal(OUT * LONG, 1, "w");
    int8_t *codes = fl__calloc(OUT * LONG, 1);
    float scale = 0.25f, many[MANY * OUT], one[OUT], coded[MANY * OUT];
    void *scratch = fl__alloc(fl__linear_float_scratch_bytes(&ex), 1);
    for (int i = 0; i < OUT * LONG; i++) w[i] = (float)(codes[i] = (int8_t)(w[i] * 30)) * scale;
    const fl_linear lin = {
        .n_out = OUT, .n_in = LONG, .w_type = FL_DTYPE_F32, .w_bits = 16, .w = w};
    const fl_linear lin8 = {
        .n_out = OUT, .n_in = LONG, .w_bits = 8, .w = codes, .w_scale = &scale};
    fl__linear_float_run(&ex, &lin, x, LONG, MANY, many, OUT, scratch);
    fl__linear_float_run(&ex, &lin8, x, LONG, MANY, coded, OUT, scratch);
    assert_memory_equal(many, coded, sizeof many);
    for (int r = 0; r < MANY; r++) {
        fl__linear_float_run(&ex, &lin, x + r * LONG, LONG, 1, one, OUT, scratch);
        for (int n = 0; n < OUT; n++) {
            double want = 0;
            for (int k = 0; k < LONG; k++) want += (double)x[r * LONG + k] * w[n * LONG + k];
            assert_true(fabs(one[n] - want) < 0.05);
            assert_true(one[n] == many[r * OUT + n]);
        }
    }
    fl__free(&x);
    fl__free(&w);
    fl__free(&codes);
    fl__free(&scratch);
}

static void running_out_of_memory_leaves_nothing(void **state)
{
    (void)state;
    variant v = {.act = FL_ACT_STATIC, .a_bits = 8, .w_bits = 8, .flatten = true};
    problem *p = make(&v);
    const size_t before = fl__mem_get().now_bytes;
    for (unsigned n = 1;; n++) {
        fl_linear lin = {.n_out = N0, .n_in = K};
        fl__mem_fail_after(n);
        const fl_status st = fl__linear_pack(&lin, &p->site, p->codes[0], 8, NULL);
        fl__linear_fini(&lin);
        assert_int_equal(fl__mem_get().now_bytes, before);
        if (!st) break;
        assert_int_equal(st, FL_E_NOMEM);
    }
    for (unsigned n = 1;; n++) {
        uint16_t copies[] = {1, 2};
        fl_site s = {
            .act = FL_ACT_STATIC, .a_bits = 8, .scale = 1, .n_in = 2, .copies = copies};
        fl__mem_fail_after(n);
        const fl_status st = fl__site_prepare(&s, NULL);
        s.copies = NULL;
        fl__site_fini(&s);
        assert_int_equal(fl__mem_get().now_bytes, before);
        if (!st) break;
        assert_int_equal(st, FL_E_NOMEM);
    }
    fl__mem_fail_after(0);
    done(&p);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(integer_sites_compute_what_their_codes_mean),
    cmocka_unit_test(threads_do_not_change_a_bit),
    cmocka_unit_test(rows_do_not_depend_on_the_batch),
    cmocka_unit_test(instruction_sets_do_not_change_a_bit),
    cmocka_unit_test(folded_copies_equal_explicit_ones_bit_for_bit),
    cmocka_unit_test(columns_are_counted_by_hand),
    cmocka_unit_test(digits_of_both_give_the_product_of_whole_codes),
    cmocka_unit_test(columns_of_digits_are_counted_by_hand),
    cmocka_unit_test(weight_only_sites_multiply_the_dequantised_weight),
    cmocka_unit_test(float_linears_are_right_for_all_types),
    cmocka_unit_test(long_rows_are_cut_and_joined),
    cmocka_unit_test(running_out_of_memory_leaves_nothing),
};
FL_TEST_MAIN(tests)
