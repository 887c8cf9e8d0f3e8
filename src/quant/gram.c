/* gram.c - accumulation of H and C in tiles of 256. SPDX-License-Identifier: MIT */
#include "quant/gram.h"

#include "base/mem.h"

#include <cblas.h>
#include <string.h>

enum { TILE = 256 };

size_t fl__gram_bytes(int K, bool with_cross)
{
    const size_t n = (size_t)K;
    return n * n * sizeof(float) * (with_cross ? 2 : 1) +
           2 * n * (sizeof(double) + sizeof(float));
}

fl_status fl__gram_init(fl_gram *g, int K, bool with_cross, fl_err *err)
{
    const size_t n = (size_t)K;
    *g = (fl_gram){.K = K};
    g->h = fl__calloc(n * n, sizeof(float));
    g->c = with_cross ? fl__calloc(n * n, sizeof(float)) : NULL;
    g->pivot_q = fl__calloc(n, sizeof(float));
    g->pivot_f = fl__calloc(n, sizeof(float));
    g->sum_q = fl__calloc(n, sizeof(double));
    g->sum_f = fl__calloc(n, sizeof(double));
    if (!g->h || (with_cross && !g->c) || !g->pivot_q || !g->pivot_f || !g->sum_q ||
        !g->sum_f) {
        fl__gram_fini(g);
        return fl__fail_nomem(err, "Hessian", fl__gram_bytes(K, with_cross));
    }
    return FL_OK;
}

void fl__gram_fini(fl_gram *g)
{
    fl__free(&g->h);
    fl__free(&g->c);
    fl__free(&g->pivot_q);
    fl__free(&g->pivot_f);
    fl__free(&g->sum_q);
    fl__free(&g->sum_f);
}

typedef struct job {
    fl_gram *g;
    float *xq, *xf;
    int n_rows, n_tiles;
} job;

static void add_tile(const job *j, float *to, const float *b, int ti, int tj)
{
    const int K = j->g->K, i0 = ti * TILE, j0 = tj * TILE;
    cblas_sgemm(CblasRowMajor, CblasTrans, CblasNoTrans, FL_MIN(TILE, K - i0),
                FL_MIN(TILE, K - j0), j->n_rows, 1.0f, j->xq + i0, K, b + j0, K, 1.0f,
                to + (size_t)i0 * (size_t)K + j0, K);
}

/* Columns [i0, i1): the pivot is chosen at the first batch, taken off, and what is left is
 * summed. */
static void shift_columns(float *x, float *pivot, double *sum, bool first, int n_rows, int K,
                          int i0, int i1)
{
    for (int r = 0; first && r < n_rows; r++)
        for (int i = i0; i < i1; i++) sum[i] += (double)x[(size_t)r * (size_t)K + (size_t)i];
    for (int i = i0; first && i < i1; i++) {
        pivot[i] = (float)(sum[i] / n_rows);
        sum[i] = 0;
    }
    for (int r = 0; r < n_rows; r++)
        for (int i = i0; i < i1; i++) {
            float *at = x + (size_t)r * (size_t)K + (size_t)i;
            *at -= pivot[i];
            sum[i] += (double)*at;
        }
}

static void shift_tile(void *arg, int64_t item, int thread)
{
    const job *j = arg;
    const int K = j->g->K, i0 = (int)item * TILE, i1 = FL_MIN(i0 + TILE, K);
    const bool first = j->g->n_rows == 0;
    fl_gram *g = j->g;
    (void)thread;
    shift_columns(j->xq, g->pivot_q, g->sum_q, first, j->n_rows, K, i0, i1);
    if (j->xf) shift_columns(j->xf, g->pivot_f, g->sum_f, first, j->n_rows, K, i0, i1);
}

static void tile(void *arg, int64_t item, int thread)
{
    const job *j = arg;
    const int ti = (int)(item / j->n_tiles), tj = (int)(item % j->n_tiles);
    (void)thread;
    if (tj >= ti) add_tile(j, j->g->h, j->xq, ti, tj);
    if (j->g->c) add_tile(j, j->g->c, j->xf, ti, tj);
}

void fl__gram_add(fl_gram *g, const fl_exec *ex, float *xq, float *xf, int n_rows)
{
    const int n_tiles = (g->K + TILE - 1) / TILE;
    job j = {g, xq, xf, n_rows, n_tiles};
    fl__parallel_for(ex, n_tiles, shift_tile, &j);
    fl__parallel_for(ex, (int64_t)n_tiles * n_tiles, tile, &j);
    g->n_rows += n_rows;
}

void fl__gram_finish(fl_gram *g)
{
    const size_t K = (size_t)g->K;
    for (size_t i = 0; i < K; i++)
        for (size_t j = 0; j < i; j++) g->h[i * K + j] = g->h[j * K + i];
}
