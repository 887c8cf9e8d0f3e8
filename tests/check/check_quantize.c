/* check_quantize.c - every row of the quantise table against the reference, bit for bit, and
 * the reference against values worked out by hand. SPDX-License-Identifier: MIT */
#include "check/ck.h"

#include "kernels/quantize.h"

#include <float.h>
#include <math.h>
#include <string.h>

typedef struct quantize_problem {
    fl_quantize_static spec;
    ck_buf x, premul, lo, hi, extra_src, extra_off;
} quantize_problem;

/* Ties, signed zeros, tiny, huge and non-finite values among normal ones. */
static float draw_float(fl_rng *rng)
{
    static const float odd[] = {0.0f,   -0.0f,    0.5f,     1.5f,     -2.5f, 126.5f, FLT_MIN,
                                1e-42f, FLT_MAX,  -FLT_MAX, INFINITY, NAN,   1e9f,   -1e9f};
    switch (ck_int(rng, 0, 7)) {
    case 0: return odd[ck_int(rng, 0, (int)FL_COUNT(odd) - 1)];
    case 1: return (float)ck_int(rng, -300, 300) + 0.5f;
    default: return (float)(fl__rng_normal(rng) * 20);
    }
}

static ck_buf draw_floats(int n, fl_rng *rng)
{
    ck_buf b = ck_buf_new((size_t)n * sizeof(float));
    for (int i = 0; i < n; i++) ((float *)b.data)[i] = draw_float(rng);
    return b;
}

static void draw_bounds(quantize_problem *p, fl_rng *rng)
{
    const int n = p->spec.n_channels, qmax = ck_int(rng, 0, 1) ? 7 : 127;
    const bool unsigned_codes = ck_int(rng, 0, 3) == 0;
    p->lo = ck_buf_new((size_t)n * sizeof(float));
    p->hi = ck_buf_new((size_t)n * sizeof(float));
    for (int c = 0; c < n; c++) {
        const int bound = ck_int(rng, 1, 18) * qmax;
        ((float *)p->lo.data)[c] = unsigned_codes ? 0.0f : (float)-bound;
        ((float *)p->hi.data)[c] = (float)bound;
    }
    p->spec.cap = qmax;
    p->spec.first_lo = unsigned_codes ? 0 : -qmax;
    p->spec.first_hi = qmax;
    p->spec.zero = unsigned_codes ? -128 : ck_int(rng, -1, 0);
    p->spec.lo = p->lo.data;
    p->spec.hi = p->hi.data;
}

static quantize_problem problem_new(ck *t, int n, int n_extra, int draw)
{
    fl_rng rng = fl__rng_init(t->seed, n * 4096 + n_extra * 16 + draw, "quantize");
    quantize_problem p = {.spec = {.n_channels = n, .n_extra = n_extra}};
    p.x = draw_floats(n, &rng);
    p.premul = draw_floats(n, &rng);
    if (ck_int(&rng, 0, 1)) p.spec.premul = p.premul.data;
    p.spec.inv_scale = ck_int(&rng, 0, 1) ? 1.0f : 0.37f;
    p.spec.ld = (n + n_extra + 63) / 64 * 64 + 64 * ck_int(&rng, 0, 1);
    draw_bounds(&p, &rng);
    p.extra_src = ck_buf_new((size_t)n_extra * sizeof(int32_t));
    p.extra_off = ck_buf_new((size_t)n_extra * sizeof(int32_t));
    for (int e = 0; e < n_extra; e++) {
        ((int32_t *)p.extra_src.data)[e] = ck_int(&rng, 0, n - 1);
        ((int32_t *)p.extra_off.data)[e] = ck_int(&rng, 1, 17) * p.spec.cap;
    }
    p.spec.extra_src = p.extra_src.data;
    p.spec.extra_off = p.extra_off.data;
    return p;
}

static void problem_free(quantize_problem *p)
{
    ck_buf *const all[] = {&p->x, &p->premul, &p->lo, &p->hi, &p->extra_src, &p->extra_off};
    for (size_t i = 0; i < FL_COUNT(all); i++) ck_buf_free(all[i]);
}

static const fl_quantize_kernel *reference(void)
{
    return &fl__quantize_kernels[fl__n_quantize_kernels - 1];
}

static void static_one(ck *t, const fl_quantize_kernel *k, int n, int n_extra, int draw)
{
    quantize_problem p = problem_new(t, n, n_extra, draw);
    ck_buf got = ck_buf_new((size_t)p.spec.ld), want = ck_buf_new((size_t)p.spec.ld);
    int32_t got_sum, want_sum, sum = 0;
    k->run_static(got.data, &got_sum, p.x.data, &p.spec);
    reference()->run_static(want.data, &want_sum, p.x.data, &p.spec);
    for (int i = 0; i < p.spec.ld; i++) sum += ((int8_t *)got.data)[i];
    if (memcmp(got.data, want.data, got.n_bytes) != 0 || !ck_buf_intact(&got) ||
        got_sum != want_sum || got_sum != sum)
        ck_complain(t, "static: %d channels, %d extra, draw %d, seed %llu", n, n_extra, draw,
                    (unsigned long long)t->seed);
    ck_buf_free(&got);
    ck_buf_free(&want);
    problem_free(&p);
}

/* What a per-token kernel writes beside the codes. */
typedef struct token_out {
    float scale;
    int32_t x_sum, zero;
} token_out;

static token_out token_run(const fl_quantize_kernel *k, void *codes, const float *x,
                           const fl_quantize_token *spec)
{
    token_out o = {0};
    k->run_token(codes, &o.x_sum, &o.scale, &o.zero, x, spec);
    return o;
}

static bool same(const token_out *a, const token_out *b)
{
    return a->x_sum == b->x_sum && a->zero == b->zero &&
           memcmp(&a->scale, &b->scale, sizeof a->scale) == 0;
}

/* Without clips, with two different ones, one-sided, to next to nothing; draw picks. */
static fl_quantize_token token_spec(const quantize_problem *p, int n, int draw)
{
    static const float clips[][2] = {{1, 1}, {0.9f, 0.6f}, {1, 0.75f}, {1e-11f, 1e-12f}};
    const float *clip = clips[draw / 2 % 4];
    return (fl_quantize_token){.n_channels = n, .ld = p->spec.ld, .premul = p->spec.premul,
                               .bits = p->spec.cap == 7 ? 4 : 8, .asymmetric = draw % 2,
                               .clip_max = clip[0], .clip_min = clip[1]};
}

static void token_one(ck *t, const fl_quantize_kernel *k, int n, int draw)
{
    quantize_problem p = problem_new(t, n, 0, draw);
    const fl_quantize_token spec = token_spec(&p, n, draw);
    ck_buf got = ck_buf_new((size_t)p.spec.ld), want = ck_buf_new((size_t)p.spec.ld);
    if (draw == 0) memset(p.x.data, 0, p.x.n_bytes);
    if (draw >= 6) /* no huge numbers: the scale would make all others 0 */
        for (int c = 0; c < n; c++) {
            float *x = (float *)p.x.data + c;
            *x = *x > 1e6f ? 60 : *x < -1e6f ? -50 : draw >= 12 ? fabsf(*x) : *x;
        }
    if (draw == 1) /* magnitudes whose scale is no normal number */
        for (int c = 0; c < n; c++) ((float *)p.x.data)[c] = c % 3 ? 1e-42f : -2e-40f;
    const token_out o = token_run(k, got.data, p.x.data, &spec);
    const token_out ref = token_run(reference(), want.data, p.x.data, &spec);
    if (memcmp(got.data, want.data, got.n_bytes) != 0 || !ck_buf_intact(&got) ||
        !same(&o, &ref))
        ck_complain(t, "token: %d channels, draw %d, seed %llu", n, draw,
                    (unsigned long long)t->seed);
    ck_buf_free(&got);
    ck_buf_free(&want);
    problem_free(&p);
}

static void row(ck *t, const fl_quantize_kernel *k)
{
    static const int channels[] = {1, 3, 7, 8, 15, 16, 17, 31, 32, 33, 64, 65, 129, 576, 1000};
    static const int extras[] = {0, 1, 8, 15, 33, 64, 100};
    for (size_t i = 0; i < FL_COUNT(channels); i++)
        for (int draw = 0; draw < 18; draw++) {
            token_one(t, k, channels[i], draw);
            for (size_t e = 0; draw < 6 && e < FL_COUNT(extras); e++)
                static_one(t, k, channels[i], extras[e], draw);
        }
}

/* Worked by hand: ties to even, NaN and infinities, the three digits of 17 under cap 7. */
static void by_hand(ck *t)
{
    static const float x[] = {0.5f, 1.5f, -2.5f, NAN, INFINITY, -INFINITY, 17.2f, -17.0f};
    static const float lo[] = {-7, -7, -7, -7, -7, -14, -21, -21};
    static const float hi[] = {7, 7, 7, 7, 7, 14, 21, 21};
    static const int32_t src[] = {6, 6, 7, 7, 5}, off[] = {7, 14, 7, 14, 7};
    static const int8_t want[] = {0, 2, -2, -7, 7, -7, 7, -7, 7, 3, -7, -3, -7};
    const fl_quantize_static spec = {.n_channels = 8, .n_extra = 5, .ld = 64, .inv_scale = 1,
                                     .first_lo = -7, .first_hi = 7, .cap = 7, .lo = lo,
                                     .hi = hi, .extra_src = src, .extra_off = off};
    int8_t codes[64];
    int32_t x_sum;
    reference()->run_static(codes, &x_sum, x, &spec);
    ck_true(t, memcmp(codes, want, sizeof want) == 0 && x_sum == -14);
    for (size_t i = sizeof want; i < sizeof codes; i++) ck_true(t, codes[i] == 0);
}

static void token_by_hand(ck *t)
{
    int8_t codes[64];
    fl_quantize_token spec = {.n_channels = 5, .ld = 64, .bits = 8, .clip_max = 1,
                              .clip_min = 1};
    const float y[] = {-254, 127, 1, 3, 0};
    token_out o = token_run(reference(), codes, y, &spec);
    ck_true(t, o.scale == 2 && codes[0] == -127 && codes[1] == 64 && codes[2] == 0);
    ck_true(t, codes[3] == 2 && codes[4] == 0 && o.x_sum == -61 && o.zero == 0);
    spec.clip_min = 0.5f; /* max(127, 127) / 127: the low end reaches one code further */
    o = token_run(reference(), codes, y, &spec);
    ck_true(t, o.scale == 1 && codes[0] == -128 && codes[1] == 127 && codes[3] == 3);

    const float lopsided[] = {-2, 13, 6, NAN, -0.5f}; /* (13 + 2) / 15 */
    spec = (fl_quantize_token){.n_channels = 5, .ld = 64, .bits = 4, .asymmetric = true,
                               .clip_max = 1, .clip_min = 1};
    o = token_run(reference(), codes, lopsided, &spec);
    ck_true(t, o.scale == 1 && o.zero == 2 && o.x_sum == 0 + 15 + 8 + 0 + 2);
    ck_true(t, codes[0] == 0 && codes[1] == 15 && codes[2] == 8 && codes[3] == 0);
    ck_true(t, codes[4] == 2); /* rne(-0.5) = 0 */
    spec.bits = 8;
    o = token_run(reference(), codes, lopsided, &spec); /* 15 / 255: steps of 1/17 */
    ck_true(t, o.zero == 34 - 128 && codes[0] == -128 && codes[1] == 127 && codes[3] == -128);
    spec.clip_max = 0.5f; /* hi 6.5 */
    o = token_run(reference(), codes, lopsided, &spec);
    ck_true(t, codes[1] == 127 && codes[0] == -128 && o.scale == 8.5f / 255);

    const float zeros[] = {0, 0}, tiny[] = {1e-42f, -2e-40f};
    for (int asymmetric = 0; asymmetric < 2; asymmetric++) {
        spec = (fl_quantize_token){.n_channels = 2, .ld = 64, .bits = 4, .clip_max = 1,
                                   .clip_min = 1, .asymmetric = asymmetric};
        o = token_run(reference(), codes, zeros, &spec);
        ck_true(t, o.scale == 1 && o.x_sum == 0 && o.zero == 0);
        o = token_run(reference(), codes, tiny, &spec);
        ck_true(t, o.scale == 1 && o.x_sum == 0 && o.zero == 0);
    }
}

enum { ROW_N = 100, ROW_LD = 103 };

static void copy_row(void *arg, float *row, int m)
{
    memcpy(row, (const float *)arg + m * ROW_LD, ROW_N * sizeof *row);
}

/* Loops over rows, on 1 thread and in memory, on 3 and made one at a time. */
static void rows_run(ck *t)
{
    const int M = 50, n = ROW_N, ldx = ROW_LD, ld = 128;
    fl_rng rng = fl__rng_init(t->seed, 0, "quantize-rows");
    ck_buf x = draw_floats(M * ldx, &rng);
    ck_buf codes = ck_buf_new((size_t)(M * ld)),
           x_sum = ck_buf_new(sizeof(int32_t) * (size_t)M);
    ck_buf scale = ck_buf_new(sizeof(float) * (size_t)M);
    ck_buf zero = ck_buf_new(sizeof(int32_t) * (size_t)M);
    quantize_problem p = problem_new(t, n, 20, 0);
    p.spec.ld = ld;
    const fl_quantize_token token = {.n_channels = n, .ld = ld, .bits = 8, .asymmetric = true,
                                     .clip_max = 0.8f, .clip_min = 1,
                                     .premul = p.spec.premul};
    for (int threads = 1; threads <= 3; threads += 2) {
        const fl_exec ex = {t->isa, threads};
        int8_t want[128];
        int32_t want_sum;
        const fl_rows rows = threads == 1 ? fl__rows_at(x.data, ldx)
                                          : (fl_rows){.make = copy_row, .arg = x.data};
        ck_buf scratch = ck_buf_new(fl__quantize_scratch_bytes(&ex, ROW_N));
        fl__quantize_static_run(&ex, codes.data, x_sum.data, rows, M, &p.spec, scratch.data);
        for (int m = 0; m < M; m++) {
            reference()->run_static(want, &want_sum, (float *)x.data + m * ldx, &p.spec);
            ck_true(t, memcmp((int8_t *)codes.data + m * ld, want, sizeof want) == 0);
            ck_true(t, ((int32_t *)x_sum.data)[m] == want_sum);
        }
        fl__quantize_token_run(&ex, codes.data, x_sum.data, scale.data, zero.data, rows, M,
                               &token, scratch.data);
        for (int m = 0; m < M; m++) {
            const token_out ref =
                token_run(reference(), want, (float *)x.data + m * ldx, &token);
            const token_out got = {((float *)scale.data)[m], ((int32_t *)x_sum.data)[m],
                                   ((int32_t *)zero.data)[m]};
            ck_true(t, memcmp((int8_t *)codes.data + m * ld, want, sizeof want) == 0);
            ck_true(t, same(&got, &ref));
        }
        ck_true(t, ck_buf_intact(&codes) && ck_buf_intact(&x_sum) && ck_buf_intact(&scale) &&
                       ck_buf_intact(&zero) && ck_buf_intact(&scratch));
        ck_buf_free(&scratch);
    }
    problem_free(&p);
    ck_buf_free(&x);
    ck_buf_free(&codes);
    ck_buf_free(&x_sum);
    ck_buf_free(&scale);
    ck_buf_free(&zero);
}

void check_quantize(ck *t)
{
    for (int r = 0; r < fl__n_quantize_kernels; r++) {
        const fl_quantize_kernel *k = &fl__quantize_kernels[r];
        if (k->isa & ~t->isa) {
            ck_skip(t, k->name, "instruction set missing or masked");
        } else if (ck_begin(t, k->name)) {
            row(t, k);
            if (k == reference()) {
                by_hand(t);
                token_by_hand(t);
            }
            ck_end(t);
        }
    }
    if (ck_begin(t, "quantize, rows of a matrix")) {
        rows_run(t);
        ck_end(t);
    }
}
