/* linear_float.c - linear layers on float activations: the float path, the head, weight-only
 * layers.
 *
 * Weights stay in the checkpoint's type and are widened to float32 a piece at a time in a
 * thread's scratch, so that a 16-bit model costs no second copy in memory. Tiles of 240 rows x
 * 64 outputs; within one, panel after panel, 2,048 input channels at a time are packed, which
 * all rows of the tile then pass. Few rows (decoding) take the weights without a detour. Both
 * ways add up an output in the same order (kernels/gemm_f32.h): a token has the same bits alone
 * and in a batch.
 * SPDX-License-Identifier: MIT */
#include "model/linear.h"

#include "kernels/gemm_f32.h"

enum { TILE_M = 240, TILE_N = 64, TILE_K = 2048 };
enum { PIECE = FL_GEMM_F32_PIECE, MAX_PANEL = FL_GEMM_F32_MAX_PANEL };

typedef struct job {
    const fl_linear *lin;
    const fl_gemm_f32_kernel *kernel;
    const float *x;
    float *y, *scratch; /* scratch: [threads, SCRATCH_FLOATS] */
    int64_t ldx, ldy;
    int n_rows, m_tiles;
} job;

/* What a thread needs: a panel, a piece of its rows as floats, the chains of a tile. */
enum { PANEL_FLOATS = MAX_PANEL * TILE_K, PIECE_FLOATS = MAX_PANEL * PIECE };
enum { CHAIN_FLOATS = TILE_M * FL_GEMM_F32_CHAINS * MAX_PANEL };
enum { SCRATCH_FLOATS = PANEL_FLOATS + PIECE_FLOATS + CHAIN_FLOATS };

static fl_float_type float_type(const fl_linear *lin)
{
    return lin->w_type == FL_DTYPE_F32    ? FL_FLOAT_F32
           : lin->w_type == FL_DTYPE_BF16 ? FL_FLOAT_BF16
                                          : FL_FLOAT_F16;
}

/* Row n, channel k of a weight that is no codes. */
static const void *float_weight(const fl_linear *lin, int n, int k)
{
    const size_t at = (size_t)n * (size_t)lin->n_in + (size_t)k;
    return (const char *)lin->w + at * fl__dtype_bytes(lin->w_type);
}

/* Row n, channels [k0, k0 + count) of codes times their scale; k0 is even. */
static void dequantize(float *to, const fl_linear *lin, int n, int k0, int count)
{
    const size_t K = (size_t)lin->n_in;
    const float s = lin->w_scale[n * lin->w_scale_stride];
    if (lin->w_bits == 8) {
        const int8_t *q = (const int8_t *)lin->w + (size_t)n * K + k0;
        for (int k = 0; k < count; k++) to[k] = (float)q[k] * s;
        return;
    }
    const uint8_t *q = (const uint8_t *)lin->w + (size_t)n * ((K + 1) / 2) + k0 / 2;
    for (int k = 0; k < count; k++) {
        const int nibble = k % 2 ? q[k / 2] >> 4 : q[k / 2] & 15;
        to[k] = (float)(nibble >= 8 ? nibble - 16 : nibble) * s;
    }
}

/* One panel: outputs [n0, n0 + n), channels [k0, k0 + K). */
static void pack(const job *j, float *panel, float *rows, int n0, int n, int k0, int K)
{
    const fl_linear *lin = j->lin;
    if (lin->w_bits == 16) {
        j->kernel->pack[float_type(lin)](panel, j->kernel->panel, float_weight(lin, n0, k0),
                                         lin->n_in, n, K);
        return;
    }
    for (int k = 0; k < K; k += PIECE) {
        const int count = FL_MIN(PIECE, K - k);
        for (int i = 0; i < n; i++) dequantize(rows + i * PIECE, lin, n0 + i, k0 + k, count);
        j->kernel->pack[FL_FLOAT_F32](panel + k * j->kernel->panel, j->kernel->panel, rows,
                                      PIECE, n, count);
    }
}

static void add_bias(const job *j, int m0, int m1, int n0, int n1)
{
    if (!j->lin->bias) return;
    for (int m = m0; m < m1; m++)
        for (int n = n0; n < n1; n++) j->y[m * j->ldy + n] += j->lin->bias[n];
}

/* Rows [m0, m1) of one panel's outputs [n0, n0 + n). */
static void run_panel(const job *j, float *scratch, int m0, int m1, int n0, int n)
{
    fl_gemm_f32_part p = {.panel = scratch,
                          .sums = scratch + PANEL_FLOATS + PIECE_FLOATS,
                          .y = j->y + m0 * j->ldy + n0,
                          .ldx = j->ldx,
                          .ldy = j->ldy,
                          .M = m1 - m0,
                          .n = n};
    for (int k = 0; k < j->lin->n_in; k += TILE_K) {
        p.K = FL_MIN(TILE_K, j->lin->n_in - k);
        p.x = j->x + m0 * j->ldx + k;
        p.first = k == 0;
        p.last = k + p.K == j->lin->n_in;
        pack(j, scratch, scratch + PANEL_FLOATS, n0, n, k, p.K);
        j->kernel->run(&p);
    }
}

static void tile(void *arg, int64_t item, int thread)
{
    const job *j = arg;
    const int width = j->kernel->panel;
    const int m0 = (int)(item % j->m_tiles) * TILE_M, m1 = FL_MIN(m0 + TILE_M, j->n_rows);
    const int n0 = (int)(item / j->m_tiles) * TILE_N, n1 = FL_MIN(n0 + TILE_N, j->lin->n_out);
    float *scratch = j->scratch + (size_t)thread * SCRATCH_FLOATS;
    for (int n = n0; n < n1; n += width)
        run_panel(j, scratch, m0, m1, n, FL_MIN(width, n1 - n));
    add_bias(j, m0, m1, n0, n1);
}

static void few_rows(void *arg, int64_t item, int thread)
{
    const job *j = arg;
    const int n0 = (int)item * TILE_N, n1 = FL_MIN(n0 + TILE_N, j->lin->n_out);
    (void)thread;
    j->kernel->few[float_type(j->lin)](j->y + n0, j->ldy, j->x, j->ldx,
                                       float_weight(j->lin, n0, 0), j->lin->n_in, j->n_rows,
                                       n1 - n0, j->lin->n_in);
    add_bias(j, 0, j->n_rows, n0, n1);
}

size_t fl__linear_float_scratch_bytes(const fl_exec *ex)
{
    return (size_t)ex->n_threads * SCRATCH_FLOATS * sizeof(float);
}

void fl__linear_float_run(const fl_exec *ex, const fl_linear *lin, const float *x, int64_t ldx,
                          int n_rows, float *y, int64_t ldy, void *scratch)
{
    const int n_tiles = (lin->n_out + TILE_N - 1) / TILE_N;
    if (lin->rival && lin->rival->run(lin, x, n_rows, y)) return;
    job j = {.lin = lin,
             .kernel = fl__gemm_f32_select(ex->isa),
             .x = x,
             .y = y,
             .scratch = scratch,
             .ldx = ldx,
             .ldy = ldy,
             .n_rows = n_rows,
             .m_tiles = (n_rows + TILE_M - 1) / TILE_M};
    if (n_rows <= j.kernel->few_rows && lin->w_bits == 16)
        fl__parallel_for(ex, n_tiles, few_rows, &j);
    else
        fl__parallel_for(ex, (int64_t)n_tiles * j.m_tiles, tile, &j);
}
