/* check_gemm.c - every row of the integer GEMM table against the reference, bit for bit, and
 * the reference against plain loops over unpacked codes. SPDX-License-Identifier: MIT */
#include "check/gemm_problem.h"

#include "base/mem.h"

#include <stdio.h>
#include <string.h>

static const int few_M[] = {1, 2, 3, 15, 16, 17, 33};
static const int few_N[] = {1, 15, 16, 17, 65};
static const int few_K[] = {1, 3, 63, 64, 65, 129, 576};
/* More than one tile and more than one K block of every row. */
static const int large[][3] = {
    {300, 80, 2200}, {17, 1100, 200}, {47, 40, 4224}, {140, 52, 4300}};

static bool is_ref(const fl_gemm_kernel *k)
{
    return k->isa == 0;
}

static void expect(gemm_problem *p, const fl_gemm_kernel *k, int m0, int m1, int n0, int n1)
{
    if (is_ref(k))
        gemm_problem_define(p, m0, m1, n0, n1);
    else
        gemm_problem_refer(p, m0, m1, n0, n1);
}

static void whole(ck *t, const fl_gemm_kernel *k, int M, int N, int K, int draw)
{
    gemm_problem p = gemm_problem_new(t, M, N, K, k->bits, draw);
    gemm_problem_run(t, &p, k, 0, M, 0, N);
    expect(&p, k, 0, M, 0, N);
    gemm_problem_compare(t, &p, "differs");
    gemm_problem_free(&p);
}

/* A part of y: rows m0.., channels n0.. (a multiple of 16) to n1 (the same, or N). */
static void part(ck *t, const fl_gemm_kernel *k, int draw)
{
    const int M = 40, N = 117, K = 200;
    fl_rng rng = fl__rng_init(t->seed, draw, "gemm-part");
    const int m0 = ck_int(&rng, 0, M - 1), m1 = ck_int(&rng, m0 + 1, M);
    const int n0 = ck_int(&rng, 0, 7) * 16;
    const int n_end = n0 + ck_int(&rng, 1, 8) * 16, n1 = FL_MIN(n_end, N);
    gemm_problem p = gemm_problem_new(t, M, N, K, k->bits, draw);
    gemm_problem_run(t, &p, k, m0, m1, n0, n1);
    expect(&p, k, m0, m1, n0, n1);
    gemm_problem_compare(t, &p, "part differs");
    gemm_problem_free(&p);
}

static void row(ck *t, const fl_gemm_kernel *k)
{
    for (size_t m = 0; m < FL_COUNT(few_M); m++)
        for (size_t n = 0; n < FL_COUNT(few_N); n++)
            for (size_t i = 0; i < FL_COUNT(few_K); i++)
                whole(t, k, few_M[m], few_N[n], few_K[i], 0);
    for (int draw = 1; draw <= 16; draw++) whole(t, k, 21, 50, 130, draw);
    for (int draw = 0; draw < 24; draw++) part(t, k, draw);
    for (size_t i = 0; i < FL_COUNT(large); i++)
        whole(t, k, large[i][0], large[i][1], large[i][2], 0);
}

/* The longest K with the largest sums of either sign: nothing wraps. */
static void longest(ck *t, const fl_gemm_kernel *k)
{
    for (int draw = 0; draw < 16; draw++) {
        gemm_problem p = gemm_problem_new(t, 1, 16, 65536, k->bits, draw);
        if (p.fill == FILL_LOWEST || p.fill == FILL_EXTREMES) {
            gemm_problem_run(t, &p, k, 0, 1, 0, 16);
            gemm_problem_define(&p, 0, 1, 0, 16);
            gemm_problem_compare(t, &p, "wraps");
        }
        gemm_problem_free(&p);
    }
}

/* Table, choice and cut: what callers use, on 1 and 3 threads. */
static void run_whole(ck *t, int bits, int n_threads)
{
    static const int Ms[] = {1, 7, 16, 24, 100, 300};
    const fl_exec ex = {t->isa, n_threads};
    ck_buf scratch = ck_buf_new(fl__gemm_scratch_bytes(&ex));
    for (size_t i = 0; i < FL_COUNT(Ms); i++) {
        gemm_problem p = gemm_problem_new(t, Ms[i], 215, 300, bits, n_threads);
        gemm_problem_refer(&p, 0, Ms[i], 0, 215);
        ck_buf_poison(&p.y);
        p.g.y = p.y.data;
        fl__gemm_run(&ex, &p.g, 1, scratch.data);
        gemm_problem_compare(t, &p, "gemm_run differs");
        ck_true(t, ck_buf_intact(&p.y) && ck_buf_intact(&scratch));
        gemm_problem_free(&p);
    }
    ck_buf_free(&scratch);
}

/* Several products of the same x in one loop, sums added to what y holds. */
static void run_several(ck *t, int M, int n_threads)
{
    static const int bits[] = {4, 8, 4}, Ns[] = {215, 64, 300};
    enum { N_PRODUCTS = FL_COUNT(Ns), K = 300 };
    const fl_exec ex = {t->isa, n_threads};
    ck_buf scratch = ck_buf_new(fl__gemm_scratch_bytes(&ex));
    gemm_problem p[N_PRODUCTS];
    fl_gemm g[N_PRODUCTS];
    for (int i = 0; i < N_PRODUCTS; i++) {
        p[i] = gemm_problem_new(t, M, Ns[i], K, bits[i], i);
        fl_gemm *a = &p[i].g;
        a->y_bf16 = false;
        a->ldy = a->ldr;
        ck_buf_free(&p[i].y);
        ck_buf_free(&p[i].y_ref);
        p[i].y = ck_buf_new(p[i].residual.n_bytes);
        p[i].y_ref = ck_buf_new(p[i].residual.n_bytes);
        a->residual = p[i].residual.data;
        gemm_problem_refer(&p[i], 0, M, 0, Ns[i]);
        a->y = p[i].residual.data;
        g[i] = *a;
    }
    fl__gemm_run(&ex, g, N_PRODUCTS, scratch.data);
    for (int i = 0; i < N_PRODUCTS; i++) {
        for (int m = 0; m < M; m++) {
            const int64_t at = m * g[i].ldr;
            ck_true(t, memcmp((float *)p[i].residual.data + at, (float *)p[i].y_ref.data + at,
                              (size_t)Ns[i] * sizeof(float)) == 0);
        }
        ck_true(t, ck_buf_intact(&p[i].residual));
        gemm_problem_free(&p[i]);
    }
    ck_true(t, ck_buf_intact(&scratch));
    ck_buf_free(&scratch);
}

/* y of more than 2 MB and whole lines, which rows may write past the caches. */
static void run_large(ck *t, int bits, bool y_bf16)
{
    enum { M = 523, N = 2080, K = 70 };
    const fl_exec ex = {t->isa, 2};
    ck_buf scratch = ck_buf_new(fl__gemm_scratch_bytes(&ex));
    gemm_problem p = gemm_problem_new(t, M, N, K, bits, y_bf16);
    fl_gemm *g = &p.g;
    g->y_bf16 = y_bf16;
    g->ldy = N + 32;
    g->residual = NULL;
    ck_buf_free(&p.y);
    ck_buf_free(&p.y_ref);
    p.y = ck_buf_new((size_t)M * (size_t)g->ldy * (y_bf16 ? 2 : 4));
    p.y_ref = ck_buf_new(p.y.n_bytes);
    gemm_problem_refer(&p, 0, M, 0, N);
    g->y = p.y.data;
    fl__gemm_run(&ex, g, 1, scratch.data);
    gemm_problem_compare(t, &p, "large y differs");
    ck_true(t, ck_buf_intact(&p.y) && ck_buf_intact(&scratch));
    gemm_problem_free(&p);
    ck_buf_free(&scratch);
}

static void selection(ck *t)
{
    static const char *const levels[] = {"ref",    "avx2", "avxvnni", "avx512", "avx512vnni",
                                         "amx",    "native"};
    for (size_t i = 0; i < FL_COUNT(levels); i++) {
        uint32_t isa = 0;
        ck_true(t, fl__isa_parse(levels[i], &isa) == 0);
        for (int bits = 4; bits <= 8; bits += 4)
            for (int M = 0; M <= 1000; M++) {
                const fl_gemm_kernel *k = fl__gemm_select(isa, bits, M);
                if ((k->isa & ~isa) || k->bits != bits || M < k->min_M || M > k->max_M)
                    ck_complain(t, "%s for M %d at %s", k->name, M, levels[i]);
                if (i > 0 && M > 0 && is_ref(k))
                    ck_complain(t, "reference row for M %d at %s", M, levels[i]);
            }
    }
}

/* Real layer shapes, a few rows of x; the reference checks the first, a middle and the last
 * panel of channels. */
static void real_shape(ck *t, int N, int K, int bits)
{
    const int M = 18, panels[] = {0, N / 32 * 16, (N - 1) / 16 * 16};
    gemm_problem p = gemm_problem_new(t, M, N, K, bits, 0);
    for (int r = 0; r < fl__n_gemm_kernels; r++) {
        const fl_gemm_kernel *k = &fl__gemm_kernels[r];
        if (k->bits != bits || (k->isa & ~t->isa) || is_ref(k)) continue;
        for (size_t j = 0; j < FL_COUNT(panels); j++) {
            const int n0 = panels[j], n1 = FL_MIN(n0 + 16, N);
            gemm_problem_run(t, &p, k, 0, M, n0, n1);
            gemm_problem_refer(&p, 0, M, n0, n1);
            gemm_problem_compare(t, &p, k->name);
        }
    }
    gemm_problem_free(&p);
}

static void real_shapes(ck *t, int bits)
{
    char line[128];
    int n_shapes = 0, N, K;
    FILE *f = fopen(FL_SOURCE_DIR "/tests/check/shapes/llama3-8b.txt", "r");
    ck_true(t, f);
    while (f && fgets(line, sizeof line, f))
        if (sscanf(line, "%d %d", &N, &K) == 2) {
            real_shape(t, N, K, bits);
            n_shapes++;
        }
    ck_true(t, n_shapes > 0);
    if (f) (void)fclose(f);
}

void check_gemm(ck *t)
{
    for (int r = 0; r < fl__n_gemm_kernels; r++) {
        const fl_gemm_kernel *k = &fl__gemm_kernels[r];
        if (k->isa & ~t->isa) {
            ck_skip(t, k->name, "instruction set missing or masked");
        } else if (ck_begin(t, k->name)) {
            row(t, k);
            longest(t, k);
            ck_end(t);
        }
    }
    for (int bits = 4; bits <= 8; bits += 4) {
        if (ck_begin(t, bits == 4 ? "gemm_run, 4 bits" : "gemm_run, 8 bits")) {
            run_whole(t, bits, 1);
            run_whole(t, bits, 3);
            ck_end(t);
        }
        if (ck_begin(t, bits == 4 ? "gemm at llama3-8b shapes, 4 bits"
                                  : "gemm at llama3-8b shapes, 8 bits")) {
            real_shapes(t, bits);
            ck_end(t);
        }
    }
    if (ck_begin(t, "gemm_run, several products")) {
        for (int M = 1; M <= 100; M += 33)
            for (int n_threads = 1; n_threads <= 3; n_threads++) run_several(t, M, n_threads);
        ck_end(t);
    }
    if (ck_begin(t, "gemm_run, large y")) {
        for (int bits = 4; bits <= 8; bits += 4) {
            run_large(t, bits, false);
            run_large(t, bits, true);
        }
        ck_end(t);
    }
    if (ck_begin(t, "gemm_select")) {
        selection(t);
        ck_end(t);
    }
}
