/* check_transform.c - every row of the transform table against the definition in double, the
 * vector rows against the reference bit for bit, and the fused quantiser against the two steps.
 * SPDX-License-Identifier: MIT */
#include "check/ck.h"

#include "base/float16.h"
#include "kernels/transform.h"

#include <math.h>
#include <string.h>

typedef struct transform_problem {
    int n1, n2, n;
    fl_transform t;
    ck_buf x, premul, left, right;
    const float *use_premul; /* or NULL */
} transform_problem;

static const int shapes[][2] = {{1, 1},  {1, 16},  {3, 5},   {16, 16}, {7, 33},  {24, 24},
                                {32, 64}, {65, 31}, {1, 300}, {130, 2}, {40, 96}, {17, 1}};
enum { MAX_N = 4096, N_DRAWS = 6 }; /* left, right, both; without and with premul */

static ck_buf draw_normal(size_t n, double deviation, fl_rng *rng)
{
    ck_buf b = ck_buf_new(n * sizeof(float));
    for (size_t i = 0; i < n; i++)
        ((float *)b.data)[i] = (float)(fl__rng_normal(rng) * deviation);
    return b;
}

/* x: normal, some zeros, some channels 1e3 and 1e-30 times as large. */
static transform_problem problem_new(ck *t, int n1, int n2, int draw)
{
    fl_rng rng = fl__rng_init(t->seed, (n1 * 1024 + n2) * 16 + draw, "transform");
    transform_problem p = {.n1 = n1, .n2 = n2, .n = n1 * n2};
    p.x = draw_normal((size_t)p.n, 2, &rng);
    p.premul = draw_normal((size_t)p.n, 1, &rng);
    p.left = draw_normal((size_t)(n1 * n1), 1 / sqrt(n1), &rng);
    p.right = draw_normal((size_t)(n2 * n2), 1 / sqrt(n2), &rng);
    for (int c = 0; c < p.n; c++)
        switch (ck_int(&rng, 0, 30)) {
        case 0: ((float *)p.x.data)[c] = 0; break;
        case 1: ((float *)p.x.data)[c] *= 1e3f; break;
        case 2: ((float *)p.x.data)[c] *= 1e-30f; break;
        default: break;
        }
    if (draw >= 3) p.use_premul = p.premul.data;
    ck_true(t, fl__transform_init(&p.t, n1, n2, draw % 3 != 0 ? p.left.data : NULL,
                                  draw % 3 != 1 ? p.right.data : NULL, NULL) == FL_OK);
    return p;
}

static void problem_free(transform_problem *p)
{
    ck_buf *const all[] = {&p->x, &p->premul, &p->left, &p->right};
    for (size_t i = 0; i < FL_COUNT(all); i++) ck_buf_free(all[i]);
    fl__transform_fini(&p->t);
}

static const fl_transform_kernel *reference(void)
{
    return &fl__transform_kernels[fl__n_transform_kernels - 1];
}

/* Sums in another order: neither bit for bit nor with subnormals. */
static bool is_amx(const fl_transform_kernel *k)
{
    return (k->isa & FL_ISA_AMXBF16) != 0;
}

/* ---- the definition, as intervals ------------------------------------------------------- */

static double bf16_of(double x)
{
    return (double)fl__bf16_to_f32(fl__f32_to_bf16((float)x));
}

/* How far a float32 sum of n products may be from the exact one. */
static double sum_error(int n, double size)
{
    return (n + 2) * 0x1p-24 * size + n * 0x1p-126;
}

/* mid, radius [n]: where Y, or bf16(Y) when a left factor follows, must lie. */
static void define_right(const transform_problem *p, double *mid, double *radius)
{
    const float *x = p->x.data, *right = p->right.data;
    double u[MAX_N];
    for (int c = 0; c < p->n; c++)
        u[c] = bf16_of((double)(p->use_premul ? x[c] * p->use_premul[c] : x[c]));
    for (int c = 0; c < p->n; c++) {
        const double *row = u + c / p->n2 * p->n2;
        double sum = 0, size = 0;
        for (int k = 0; k < p->n2; k++) {
            const double term = row[k] * bf16_of((double)right[k * p->n2 + c % p->n2]);
            sum += term;
            size += fabs(term);
        }
        const double error = sum_error(p->n2, size);
        mid[c] = p->t.right ? sum : u[c];
        radius[c] = p->t.right ? error : 0;
        if (!p->t.left || !p->t.right) continue;
        const double low = bf16_of(sum - error), high = bf16_of(sum + error);
        mid[c] = (low + high) / 2;
        radius[c] = (high - low) / 2;
    }
}

static void check_definition(ck *t, const transform_problem *p, const float *y,
                             const char *name)
{
    const float *left = p->left.data;
    double mid[MAX_N], radius[MAX_N];
    define_right(p, mid, radius);
    for (int c = 0; c < p->n; c++) {
        const int a = c / p->n2, j = c % p->n2;
        double want = mid[c], error = radius[c], size = 0;
        if (p->t.left) {
            want = error = 0;
            for (int i = 0; i < p->n1; i++) {
                const double f = bf16_of((double)left[i * p->n1 + a]);
                want += f * mid[i * p->n2 + j];
                error += fabs(f) * radius[i * p->n2 + j];
                size += fabs(f) * (fabs(mid[i * p->n2 + j]) + radius[i * p->n2 + j]);
            }
            error += sum_error(p->n1, size);
        }
        if (!(fabs((double)y[c] - want) <= error))
            ck_complain(t, "%s: %d x %d%s%s%s, element %d is %g, wanted %g +- %g, seed %llu",
                        name, p->n1, p->n2, p->t.left ? " left" : "",
                        p->t.right ? " right" : "", p->use_premul ? " premul" : "", c,
                        (double)y[c], want, error, (unsigned long long)t->seed);
    }
}

/* ---- rows -------------------------------------------------------------------------------- */

static void one(ck *t, const fl_transform_kernel *k, int n1, int n2, int draw)
{
    transform_problem p = problem_new(t, n1, n2, draw);
    ck_buf y = ck_buf_new((size_t)p.n * sizeof(float)), y_ref = ck_buf_new(y.n_bytes);
    ck_buf scratch = ck_buf_new(fl__transform_kernel_scratch(k, n1, n2));
    ck_buf scratch_ref = ck_buf_new(fl__transform_kernel_scratch(reference(), n1, n2));
    k->run(y.data, p.x.data, &p.t, p.use_premul, scratch.data);
    reference()->run(y_ref.data, p.x.data, &p.t, p.use_premul, scratch_ref.data);
    check_definition(t, &p, y.data, k->name);
    if (!is_amx(k) && memcmp(y.data, y_ref.data, y.n_bytes) != 0)
        ck_complain(t, "%d x %d, draw %d differs from the reference, seed %llu", n1, n2, draw,
                    (unsigned long long)t->seed);
    ck_true(t, ck_buf_intact(&y) && ck_buf_intact(&scratch) && ck_buf_intact(&p.x));
    memcpy(y_ref.data, y.data, y.n_bytes); /* again, in place */
    memcpy(y.data, p.x.data, y.n_bytes);
    ck_buf_poison(&scratch);
    k->run(y.data, y.data, &p.t, p.use_premul, scratch.data);
    ck_true(t, memcmp(y.data, y_ref.data, y.n_bytes) == 0);
    ck_buf_free(&y);
    ck_buf_free(&y_ref);
    ck_buf_free(&scratch);
    ck_buf_free(&scratch_ref);
    problem_free(&p);
}

/* NaN and infinities go where the reference has them. */
static void not_numbers(ck *t, const fl_transform_kernel *k)
{
    transform_problem p = problem_new(t, 5, 19, 2);
    float y[95], want[95], *x = p.x.data;
    ck_buf scratch = ck_buf_new(fl__transform_kernel_scratch(k, 5, 19));
    x[3] = NAN;
    x[40] = INFINITY;
    k->run(y, x, &p.t, NULL, scratch.data);
    reference()->run(want, x, &p.t, NULL, scratch.data);
    for (int c = 0; c < p.n; c++)
        if (isnan(y[c]) != isnan(want[c]) || isinf(y[c]) != isinf(want[c]))
            ck_complain(t, "element %d is %g, the reference has %g", c, (double)y[c],
                        (double)want[c]);
    ck_buf_free(&scratch);
    problem_free(&p);
}

/* ---- many rows, fused with the quantiser ------------------------------------------------- */

enum { ROWS = 300 };

/* Codes of the fused run and how many differ from those of the reference row in two steps. */
typedef struct fused {
    ck_buf codes, x_sum, scale, zero, scratch;
    int64_t n_codes, n_different;
} fused;

static fused fused_new(const fl_exec *ex, int M, int n1, int n2, int ld)
{
    return (fused){.codes = ck_buf_new((size_t)M * (size_t)ld),
                   .x_sum = ck_buf_new((size_t)M * sizeof(int32_t)),
                   .scale = ck_buf_new((size_t)M * sizeof(float)),
                   .zero = ck_buf_new((size_t)M * sizeof(int32_t)),
                   .scratch = ck_buf_new(fl__transform_scratch_bytes(ex, n1, n2))};
}

static bool fused_intact(const fused *f)
{
    return ck_buf_intact(&f->codes) && ck_buf_intact(&f->x_sum) && ck_buf_intact(&f->scale) &&
           ck_buf_intact(&f->zero) && ck_buf_intact(&f->scratch);
}

static void fused_free(fused *f)
{
    ck_buf *const all[] = {&f->codes, &f->x_sum, &f->scale, &f->zero, &f->scratch};
    for (size_t i = 0; i < FL_COUNT(all); i++) ck_buf_free(all[i]);
}

static void compare_row(ck *t, fused *f, int m, const float *x, const transform_problem *p,
                        const fl_quantize_token *spec, bool exact, void *scratch)
{
    const fl_quantize_kernel *quantize = &fl__quantize_kernels[fl__n_quantize_kernels - 1];
    const int8_t *codes = (int8_t *)f->codes.data + (size_t)m * (size_t)spec->ld;
    fl_quantize_token plain = *spec;
    float y[MAX_N], scale;
    int8_t want[MAX_N + 64];
    int32_t x_sum, zero, sum = 0;
    plain.premul = NULL;
    reference()->run(y, x, &p->t, spec->premul, scratch);
    quantize->run_token(want, &x_sum, &scale, &zero, y, &plain);
    for (int c = 0; c < spec->ld; c++) {
        f->n_different += codes[c] != want[c];
        sum += codes[c];
        if (c >= p->n && codes[c] != 0) ck_complain(t, "padding of row %d is not 0", m);
    }
    f->n_codes += p->n;
    ck_true(t, ((int32_t *)f->x_sum.data)[m] == sum);
    if (!exact) return;
    ck_true(t, memcmp((float *)f->scale.data + m, &scale, sizeof scale) == 0);
    ck_true(t, ((int32_t *)f->zero.data)[m] == zero);
}

/* Rows in memory, or the same handed out one at a time. */
typedef struct row_block {
    const float *x;
    int ldx, n;
} row_block;

static void copy_row(void *arg, float *row, int m)
{
    const row_block *b = arg;
    memcpy(row, b->x + m * b->ldx, (size_t)b->n * sizeof *row);
}

static fl_rows rows_of(row_block *b, bool made)
{
    return made ? (fl_rows){.make = copy_row, .arg = b} : fl__rows_at(b->x, b->ldx);
}

/* isa: of the row under test, so that it is the one chosen. */
static void rows_run(ck *t, const fl_transform_kernel *k, int n1, int n2, int draw,
                     int n_threads)
{
    const fl_exec ex = {k->isa, n_threads};
    const bool made = draw % 2;
    const int M = is_amx(k) || n_threads > 1 ? ROWS : 21; /* enough for threads to meet */
    const int ldx = n1 * n2 + 3, ld = (n1 * n2 + 127) / 64 * 64;
    transform_problem p = problem_new(t, n1, n2, draw);
    fl_rng rng = fl__rng_init(t->seed, draw, "transform-rows");
    ck_buf x = draw_normal((size_t)(M * ldx), 1, &rng), y = ck_buf_new(x.n_bytes);
    ck_buf scratch = ck_buf_new(fl__transform_kernel_scratch(reference(), n1, n2));
    const fl_quantize_token spec = {.n_channels = p.n, .ld = ld, .bits = draw % 2 ? 8 : 4,
                                    .asymmetric = draw % 3 == 1, .clip_max = 0.9f,
                                    .clip_min = draw ? 0.8f : 1, .premul = p.use_premul};
    fused f = fused_new(&ex, M, n1, n2, ld), alone = fused_new(&ex, 1, n1, n2, ld);
    row_block at = {x.data, ldx, p.n};
    ck_true(t, fl__transform_select(ex.isa) == k);
    fl__transform_quantize_run(&ex, f.codes.data, f.x_sum.data, f.scale.data, f.zero.data,
                               rows_of(&at, made), M, &p.t, &spec, f.scratch.data);
    fl__transform_run(&ex, y.data, ldx, x.data, ldx, M, &p.t, p.use_premul, f.scratch.data);
    for (int m = 0; m < M; m++) {
        const float *row = (const float *)x.data + m * ldx;
        float want[MAX_N];
        compare_row(t, &f, m, row, &p, &spec, !is_amx(k), scratch.data);
        fl__transform_quantize_run(&ex, alone.codes.data, alone.x_sum.data, alone.scale.data,
                                   alone.zero.data, fl__rows_at(row, ldx), 1, &p.t, &spec,
                                   alone.scratch.data);
        ck_true(t, memcmp((int8_t *)f.codes.data + m * ld, alone.codes.data, (size_t)ld) == 0);
        fl__transform_run(&ex, want, p.n, row, p.n, 1, &p.t, p.use_premul, alone.scratch.data);
        ck_true(t, memcmp((float *)y.data + m * ldx, want, (size_t)p.n * sizeof *want) == 0);
        for (int c = p.n; c < ldx; c++) /* poison between the rows stays */
            ck_true(t, fl__f32_to_bits(((float *)y.data)[m * ldx + c]) == 0xa5a5a5a5u);
    }
    if (f.n_different > (is_amx(k) ? f.n_codes / 10000 : 0))
        ck_complain(t, "%d x %d draw %d: %lld of %lld codes differ, seed %llu", n1, n2, draw,
                    (long long)f.n_different, (long long)f.n_codes,
                    (unsigned long long)t->seed);
    ck_true(t, fused_intact(&f) && fused_intact(&alone) && ck_buf_intact(&y));
    fused_free(&f);
    fused_free(&alone);
    ck_buf_free(&x);
    ck_buf_free(&y);
    ck_buf_free(&scratch);
    problem_free(&p);
}

/* A static quantiser with limits of its own for every channel and some extra columns. */
typedef struct limits {
    fl_quantize_static spec;
    float lo[MAX_N], hi[MAX_N];
    int32_t extra_src[2], extra_off[2];
} limits;

static void limits_init(limits *l, const transform_problem *p, int ld)
{
    for (int c = 0; c < p->n; c++) {
        l->hi[c] = (float)(7 * (1 + c % 5));
        l->lo[c] = c % 3 ? -l->hi[c] : 0;
    }
    for (int e = 0; e < 2; e++) {
        l->extra_src[e] = (5 + 7 * e) % p->n;
        l->extra_off[e] = 7;
    }
    l->spec = (fl_quantize_static){.n_channels = p->n, .n_extra = 2, .ld = ld,
                                   .inv_scale = 4.5f, .first_lo = -7, .first_hi = 7, .cap = 7,
                                   .premul = p->use_premul, .lo = l->lo, .hi = l->hi,
                                   .extra_src = l->extra_src, .extra_off = l->extra_off};
}

/* Codes with one fixed scale are, bit for bit, those of the transform's rows quantised, with
 * company and alone. */
static void static_run(ck *t, const fl_transform_kernel *k, int n1, int n2, int draw,
                       int n_threads)
{
    const fl_exec ex = {k->isa, n_threads};
    const int M = 21, ldx = n1 * n2 + 3, ld = (n1 * n2 + 127) / 64 * 64;
    transform_problem p = problem_new(t, n1, n2, draw);
    fl_rng rng = fl__rng_init(t->seed, draw, "transform-static");
    ck_buf x = draw_normal((size_t)(M * ldx), 1, &rng), y = ck_buf_new(x.n_bytes);
    fused f = fused_new(&ex, M, n1, n2, ld), two_steps = fused_new(&ex, M, n1, n2, ld);
    limits l;
    limits_init(&l, &p, ld);
    fl_quantize_static plain = l.spec;
    plain.premul = NULL;
    row_block at = {x.data, ldx, p.n};
    fl__transform_quantize_static_run(&ex, f.codes.data, f.x_sum.data, rows_of(&at, draw % 2),
                                      M, &p.t, &l.spec, f.scratch.data);
    fl__transform_run(&ex, y.data, ldx, x.data, ldx, M, &p.t, p.use_premul,
                      two_steps.scratch.data);
    fl__quantize_static_run(&ex, two_steps.codes.data, two_steps.x_sum.data,
                            fl__rows_at(y.data, ldx), M, &plain, NULL);
    ck_true(t, memcmp(f.codes.data, two_steps.codes.data, f.codes.n_bytes) == 0);
    ck_true(t, memcmp(f.x_sum.data, two_steps.x_sum.data, f.x_sum.n_bytes) == 0);
    for (int m = 0; m < M; m++) {
        fl__transform_quantize_static_run(&ex, two_steps.codes.data, two_steps.x_sum.data,
                                          fl__rows_at((const float *)x.data + m * ldx, ldx), 1,
                                          &p.t, &l.spec, two_steps.scratch.data);
        ck_true(t, memcmp((int8_t *)f.codes.data + m * ld, two_steps.codes.data,
                          (size_t)ld) == 0);
    }
    ck_true(t, fused_intact(&f) && fused_intact(&two_steps) && ck_buf_intact(&y));
    fused_free(&f);
    fused_free(&two_steps);
    ck_buf_free(&x);
    ck_buf_free(&y);
    problem_free(&p);
}

static void row(ck *t, const fl_transform_kernel *k)
{
    for (size_t i = 0; i < FL_COUNT(shapes); i++)
        for (int draw = 0; draw < N_DRAWS; draw++)
            one(t, k, shapes[i][0], shapes[i][1], draw);
    not_numbers(t, k);
    for (int draw = 0; draw < N_DRAWS; draw++) {
        rows_run(t, k, 16, 32, draw, 1);
        rows_run(t, k, 11, 13, draw, 3);
        static_run(t, k, 16, 32, draw, 1);
        static_run(t, k, 11, 13, draw, 3);
    }
}

/* Worked by hand: [1 2; 3 4] with left [1 1; 0 1] and right [2 0; 0 1]. */
static void by_hand(ck *t)
{
    static const float x[] = {1, 2, 3, 4}, left[] = {1, 1, 0, 1}, right[] = {2, 0, 0, 1};
    static const float both[] = {2, 2, 8, 6}, premul[] = {1, 1, 1, 0.5f};
    const fl_exec ex = {0, 1};
    fl_transform f;
    float y[4];
    ck_buf scratch = ck_buf_new(fl__transform_scratch_bytes(&ex, 2, 2));
    ck_true(t, fl__transform_init(&f, 2, 2, left, right, NULL) == FL_OK);
    fl__transform_run(&ex, y, 4, x, 4, 1, &f, NULL, scratch.data);
    ck_true(t, memcmp(y, both, sizeof y) == 0);
    fl__transform_run(&ex, y, 4, x, 4, 1, &f, premul, scratch.data);
    ck_true(t, y[3] == 4 && y[2] == 8);
    fl__transform_fini(&f);
    ck_true(t, fl__transform_init(&f, 2, 2, NULL, NULL, NULL) == FL_OK && f.n1 == 0);
    /* 257 is no bf16: 256 on the way in; the sum 257 stays what it is on the way out */
    const float odd[] = {257, 1}, sum[] = {1, 0, 1, 1};
    ck_true(t, fl__transform_init(&f, 1, 2, NULL, sum, NULL) == FL_OK);
    fl__transform_run(&ex, y, 2, odd, 2, 1, &f, NULL, scratch.data);
    ck_true(t, y[0] == 257 && y[1] == 1);
    fl__transform_fini(&f);
    ck_buf_free(&scratch);
}

void check_transform(ck *t)
{
    for (int r = 0; r < fl__n_transform_kernels; r++) {
        const fl_transform_kernel *k = &fl__transform_kernels[r];
        if (k->isa & ~t->isa) {
            ck_skip(t, k->name, "instruction set missing or masked");
        } else if (ck_begin(t, k->name)) {
            row(t, k);
            if (k == reference()) by_hand(t);
            ck_end(t);
        }
    }
}
