/* gemm.c - the table of integer GEMM kernels, choice of a row, cutting into tiles.
 * SPDX-License-Identifier: MIT */
#include "kernels/gemm.h"

#include "base/isa.h"
#include "kernels/gemm_rows.h"

#include <limits.h>

/* Bytes of weights times rows of x that one core is through with before others have come. */
enum { SMALL_WORK = 32 * 1024 };

/* A row needs every set that its file was compiled for. */
#define AVX2       FL_ISA_AVX2
#define AVXVNNI    (AVX2 | FL_ISA_AVXVNNI)
#define AVX512VNNI (AVX2 | FL_ISA_AVX512 | FL_ISA_AVX512VNNI)
#define AMX        (AVX512VNNI | FL_ISA_AMX)

/* name, isa, bits, M from .. to, tile */
#define FEW(f, isa, bits, to, tile_M, tile_N)                                                  \
    {"gemm_" #f, isa, bits, 1, to, tile_M, tile_N, 0, fl__gemm_##f}
#define MANY(f, isa, bits, from, T)                                                            \
    {"gemm_" #f, isa,     bits,       from,          INT_MAX,                                  \
     T##_TILE_M, T##_TILE_N, T##_SCRATCH, fl__gemm_##f}

const fl_gemm_kernel fl__gemm_kernels[] = {
    MANY(a8w4_32x32_amx, AMX, 4, 9, FL_GEMM_32X32_AMX),
    MANY(a8w8_32x32_amx, AMX, 8, 5, FL_GEMM_32X32_AMX),
    FEW(a8w4_4x64_avx512vnni, AVX512VNNI, 4, 15, 16, 64),
    FEW(a8w8_4x64_avx512vnni, AVX512VNNI, 8, 15, 16, 64),
    MANY(a8w4_12x32_avx512vnni, AVX512VNNI, 4, 16, FL_GEMM_12X32_AVX512VNNI),
    MANY(a8w8_12x32_avx512vnni, AVX512VNNI, 8, 16, FL_GEMM_12X32_AVX512VNNI),
    FEW(a8w4_4x16_avxvnni, AVXVNNI, 4, 11, 16, 64),
    FEW(a8w8_4x16_avxvnni, AVXVNNI, 8, 11, 16, 64),
    MANY(a8w4_6x16_avxvnni, AVXVNNI, 4, 12, FL_GEMM_6X16_AVXVNNI),
    MANY(a8w8_6x16_avxvnni, AVXVNNI, 8, 12, FL_GEMM_6X16_AVXVNNI),
    FEW(a8w4_4x16_avx2, AVX2, 4, 23, 24, 64),
    FEW(a8w8_4x16_avx2, AVX2, 8, 23, 24, 64),
    MANY(a8w4_6x16_avx2, AVX2, 4, 24, FL_GEMM_6X16_AVX2),
    MANY(a8w8_6x16_avx2, AVX2, 8, 24, FL_GEMM_6X16_AVX2),
    {"gemm_a8w4_ref", 0, 4, 0, INT_MAX, 16, 64, 0, fl__gemm_ref},
    {"gemm_a8w8_ref", 0, 8, 0, INT_MAX, 16, 64, 0, fl__gemm_ref},
};
const int fl__n_gemm_kernels = (int)FL_COUNT(fl__gemm_kernels);

const fl_gemm_kernel *fl__gemm_select(uint32_t isa, int bits, int M)
{
    const fl_gemm_kernel *k = fl__gemm_kernels;
    while ((k->isa & ~isa) != 0 || k->bits != bits || M < k->min_M || M > k->max_M)
        k++; /* stops at the reference row at the latest */
    return k;
}

int fl__gemm_ldx(int K)
{
    const int K_pad = (K + 63) / 64 * 64;
    return K_pad % 1024 == 0 ? K_pad + 64 : K_pad;
}

static size_t round_64(size_t n)
{
    return (n + 63) / 64 * 64;
}

size_t fl__gemm_scratch_bytes(const fl_exec *ex)
{
    size_t most = 0;
    for (int i = 0; i < fl__n_gemm_kernels; i++) {
        const fl_gemm_kernel *k = &fl__gemm_kernels[i];
        if ((k->isa & ~ex->isa) == 0) most = FL_MAX(most, round_64(k->scratch_bytes));
    }
    return most * (size_t)ex->n_threads;
}

typedef struct {
    const fl_gemm *g;
    const fl_gemm_kernel *kernel;
    int tile_N, n_tiles_N;
    int64_t first, end; /* items of the loop */
} product;

typedef struct {
    product products[FL_GEMM_MAX_RUN];
    uint8_t *scratch;
    size_t scratch_bytes; /* of a thread */
} gemm_job;

static int64_t ceil_div(int64_t a, int64_t b)
{
    return (a + b - 1) / b;
}

static void run_tile(void *arg, int64_t item, int thread)
{
    const gemm_job *job = arg;
    const product *p = job->products;
    while (item >= p->end) p++;
    const fl_gemm_kernel *k = p->kernel;
    const int64_t tile = item - p->first;
    const int m0 = (int)(tile / p->n_tiles_N) * k->tile_M;
    const int n0 = (int)(tile % p->n_tiles_N) * p->tile_N;
    k->run(p->g, m0, FL_MIN(m0 + k->tile_M, p->g->M), n0,
           FL_MIN(n0 + p->tile_N, p->g->w->N),
           job->scratch + (size_t)thread * job->scratch_bytes);
}

static product cut(const fl_exec *ex, const fl_gemm *g, int64_t first)
{
    const fl_gemm_kernel *k = fl__gemm_select(ex->isa, g->w->bits, g->M);
    const int64_t n_tiles_M = ceil_div(g->M, k->tile_M);
    product p = {.g = g, .kernel = k, .tile_N = k->tile_N, .first = first};

    /* Narrower tiles where there would be too few for the threads. Integer sums are exact, so
     * the cut never shows in the result. */
    while (p.tile_N > 64 && n_tiles_M * ceil_div(g->w->N, p.tile_N) < 4 * ex->n_threads)
        p.tile_N /= 2;
    p.n_tiles_N = (int)ceil_div(g->w->N, p.tile_N);
    p.end = first + n_tiles_M * p.n_tiles_N;
    return p;
}

void fl__gemm_run(const fl_exec *ex, const fl_gemm *g, int n, void *scratch)
{
    gemm_job job = {.scratch = scratch};
    int64_t n_items = 0, work = 0;
    for (int i = 0; i < n; i++) {
        product *p = &job.products[i];
        *p = cut(ex, &g[i], n_items);
        n_items = p->end;
        work += (int64_t)g[i].w->n_bytes * g[i].M;
        job.scratch_bytes = FL_MAX(job.scratch_bytes, round_64(p->kernel->scratch_bytes));
    }
    const fl_exec alone = {ex->isa, 1};
    fl__parallel_for(work < SMALL_WORK ? &alone : ex, n_items, run_tile, &job);
}
