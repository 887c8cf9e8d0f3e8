/* linear_float.c - linear layers on float activations: the float path, the head, weight-only
 * layers.
 *
 * Weights stay in the checkpoint's type and are widened to float32 tile by tile in a thread's
 * scratch, so that a 16-bit model costs no second copy in memory. Many rows: tiles of 256 x 64
 * through a single-threaded library SGEMM. Few rows (decoding): one dot product per output,
 * straight from the 16-bit weights. The tiles do not depend on the number of threads. A row's
 * bits can differ between the two ways (other order of sums): that is the float path's 1e-4
 * between incremental and full passes.
 * SPDX-License-Identifier: MIT */
#include "model/linear.h"

#include "kernels/dot.h"
#include "kernels/onednn.h"

#include <math.h>

enum { TILE_M = 256, TILE_N = 64, FEW_ROWS = 8 };

typedef struct job {
    const fl_linear *lin;
    const fl_dot_kernel *dot;
    const float *x;
    float *y, *scratch; /* scratch: [threads, TILE_N, n_in] */
    int64_t ldx, ldy;
    int n_rows, m_tiles;
} job;

/* Row n of the weight as float32: borrowed, or widened into to. */
static const float *weight_row(const fl_linear *lin, int n, float *to)
{
    const size_t K = (size_t)lin->n_in, at = (size_t)n * K;
    if (lin->w_bits == 8) {
        const int8_t *q = (const int8_t *)lin->w + at;
        const float s = lin->w_scale[n * lin->w_scale_stride];
        for (size_t k = 0; k < K; k++) to[k] = (float)q[k] * s;
        return to;
    }
    if (lin->w_bits == 4) {
        const uint8_t *q = (const uint8_t *)lin->w + (size_t)n * ((K + 1) / 2);
        const float s = lin->w_scale[n * lin->w_scale_stride];
        for (size_t k = 0; k < K; k++) {
            const int nibble = k % 2 ? q[k / 2] >> 4 : q[k / 2] & 15;
            to[k] = (float)(nibble >= 8 ? nibble - 16 : nibble) * s;
        }
        return to;
    }
    if (lin->w_type == FL_DTYPE_F32) return (const float *)lin->w + at;
    fl__dtype_to_f32(to, lin->w_type, (const uint16_t *)lin->w + at, K);
    return to;
}

static bool is_plain_f32(const fl_linear *lin)
{
    return lin->w_bits == 16 && lin->w_type == FL_DTYPE_F32;
}

static void add_bias(const job *j, int m0, int m1, int n0, int n1)
{
    if (!j->lin->bias) return;
    for (int m = m0; m < m1; m++)
        for (int n = n0; n < n1; n++) j->y[m * j->ldy + n] += j->lin->bias[n];
}

static void tile(void *arg, int64_t item, int thread)
{
    const job *j = arg;
    const int K = j->lin->n_in;
    const int m0 = (int)(item % j->m_tiles) * TILE_M, m1 = FL_MIN(m0 + TILE_M, j->n_rows);
    const int n0 = (int)(item / j->m_tiles) * TILE_N, n1 = FL_MIN(n0 + TILE_N, j->lin->n_out);
    const float *w = is_plain_f32(j->lin) ? weight_row(j->lin, n0, NULL) : NULL;
    if (!w) {
        float *wide = j->scratch + (size_t)thread * TILE_N * (size_t)K;
        for (int n = n0; n < n1; n++)
            (void)weight_row(j->lin, n, wide + (size_t)(n - n0) * (size_t)K);
        w = wide;
    }
    float *y = j->y + m0 * j->ldy + n0;
    if (fl__onednn_sgemm(m1 - m0, n1 - n0, K, 1.0f, j->x + m0 * j->ldx, j->ldx, w, K, true,
                         0.0f, y, j->ldy, NULL)) {
        /* No way to report from inside a parallel loop: poison, so that nobody can use the
         * result. */
        for (int m = 0; m < m1 - m0; m++)
            for (int n = 0; n < n1 - n0; n++) y[m * j->ldy + n] = NAN;
    }
    add_bias(j, m0, m1, n0, n1);
}

static float dot_row(const job *j, const float *x, int n, const float *wide)
{
    const fl_linear *lin = j->lin;
    const size_t at = (size_t)n * (size_t)lin->n_in;
    if (wide) return j->dot->f32(x, wide, lin->n_in);
    if (lin->w_type == FL_DTYPE_F32)
        return j->dot->f32(x, (const float *)lin->w + at, lin->n_in);
    const uint16_t *h = (const uint16_t *)lin->w + at;
    return lin->w_type == FL_DTYPE_BF16 ? j->dot->bf16(x, h, lin->n_in)
                                        : j->dot->f16(x, h, lin->n_in);
}

static void few_rows(void *arg, int64_t item, int thread)
{
    const job *j = arg;
    const int n0 = (int)item * TILE_N, n1 = FL_MIN(n0 + TILE_N, j->lin->n_out);
    float *scratch = j->scratch + (size_t)thread * TILE_N * (size_t)j->lin->n_in;
    for (int n = n0; n < n1; n++) {
        const float *wide = j->lin->w_bits == 16 ? NULL : weight_row(j->lin, n, scratch);
        for (int m = 0; m < j->n_rows; m++)
            j->y[m * j->ldy + n] = dot_row(j, j->x + m * j->ldx, n, wide);
    }
    add_bias(j, 0, j->n_rows, n0, n1);
}

size_t fl__linear_float_scratch_bytes(const fl_exec *ex, int max_n_in)
{
    return (size_t)ex->n_threads * TILE_N * (size_t)max_n_in * sizeof(float);
}

void fl__linear_float_run(const fl_exec *ex, const fl_linear *lin, const float *x, int64_t ldx,
                          int n_rows, float *y, int64_t ldy, void *scratch)
{
    const int n_tiles = (lin->n_out + TILE_N - 1) / TILE_N;
    job j = {.lin = lin,
             .dot = fl__dot_select(ex->isa),
             .x = x,
             .y = y,
             .scratch = scratch,
             .ldx = ldx,
             .ldy = ldy,
             .n_rows = n_rows,
             .m_tiles = (n_rows + TILE_M - 1) / TILE_M};
    if (n_rows < FEW_ROWS)
        fl__parallel_for(ex, n_tiles, few_rows, &j);
    else
        fl__parallel_for(ex, (int64_t)n_tiles * j.m_tiles, tile, &j);
}
