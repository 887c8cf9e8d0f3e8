/* transform.c - the table of transform kernels, packing of factors, loops over rows of x.
 * SPDX-License-Identifier: MIT */
#include "kernels/transform.h"

#include "base/float16.h"
#include "base/isa.h"
#include "base/mem.h"
#include "kernels/transform_rows.h"

#include <string.h>

#define PANEL FL_TRANSFORM_PANEL
#define TILE  FL_TRANSFORM_TILE

#define AVX2   FL_ISA_AVX2
#define AVX512 (AVX2 | FL_ISA_AVX512)

const fl_transform_kernel fl__transform_kernels[] = {
    {"transform_amxbf16", AVX512 | FL_ISA_AMXBF16, TILE, TILE, fl__transform_amxbf16},
    {"transform_avx512", AVX512, 1, PANEL, fl__transform_avx512},
    {"transform_avx2", AVX2, 1, PANEL, fl__transform_avx2},
    {"transform_ref", 0, 1, PANEL, fl__transform_ref},
};
const int fl__n_transform_kernels = (int)FL_COUNT(fl__transform_kernels);

const fl_transform_kernel *fl__transform_select(uint32_t isa)
{
    const fl_transform_kernel *k = fl__transform_kernels;
    while ((k->isa & ~isa) != 0) k++; /* stops at the reference row at the latest */
    return k;
}

/* ---- factors ----------------------------------------------------------------------------- */

static size_t square(int n)
{
    return (size_t)n * (size_t)n;
}

static size_t panel_floats(int n)
{
    return (size_t)fl__round_up(n, PANEL) * (size_t)n;
}

size_t fl__transform_bytes(int n1, int n2, bool has_left, bool has_right)
{
    size_t bytes = 0;
    if (has_left)
        bytes += square(n1) * sizeof(float) + square(fl__round_up(n1, TILE)) * sizeof(uint16_t);
    if (has_right)
        bytes += (square(n2) + panel_floats(n2)) * sizeof(float) +
                 square(fl__round_up(n2, TILE)) * sizeof(uint16_t);
    return bytes;
}

static void round_factor(float *to, const float *from, int n)
{
    for (size_t i = 0; i < square(n); i++) to[i] = fl__bf16_to_f32(fl__f32_to_bf16(from[i]));
}

static void pack_left(fl_transform *t)
{
    const size_t n = (size_t)t->n1, ld = (size_t)fl__round_up(t->n1, TILE);
    for (size_t i = 0; i < n; i++)
        for (size_t a = 0; a < n; a++)
            t->left_rows[a * ld + i] = fl__f32_to_bf16(t->left[i * n + a]);
}

static void pack_right(fl_transform *t)
{
    const size_t n = (size_t)t->n2, k_tiles = (n + TILE - 1) / TILE;
    for (size_t k = 0; k < n; k++)
        for (size_t j = 0; j < n; j++) {
            const float v = t->right[k * n + j];
            const size_t tile = j / 16 * k_tiles + k / TILE;
            t->right_panels[(j / PANEL * n + k) * PANEL + j % PANEL] = v;
            t->right_tiles[tile * 512 + k % TILE / 2 * 32 + j % 16 * 2 + k % 2] =
                fl__f32_to_bf16(v);
        }
}

fl_status fl__transform_init(fl_transform *t, int n1, int n2, const float *left,
                             const float *right, fl_err *err)
{
    bool ok = true;
    *t = (fl_transform){0};
    if (!left && !right) return FL_OK;
    t->n1 = n1;
    t->n2 = n2;
    if (left) {
        t->left = fl__alloc(square(n1), sizeof *t->left);
        t->left_rows = fl__calloc(square(fl__round_up(n1, TILE)), sizeof *t->left_rows);
        ok = t->left && t->left_rows;
    }
    if (ok && right) {
        t->right = fl__alloc(square(n2), sizeof *t->right);
        t->right_panels = fl__calloc(panel_floats(n2), sizeof *t->right_panels);
        t->right_tiles = fl__calloc(square(fl__round_up(n2, TILE)), sizeof *t->right_tiles);
        ok = t->right && t->right_panels && t->right_tiles;
    }
    if (!ok) {
        fl__transform_fini(t);
        return fl__fail_nomem(err, "transform of a layer's input",
                              fl__transform_bytes(n1, n2, left, right));
    }
    if (left) {
        round_factor(t->left, left, n1);
        pack_left(t);
    }
    if (right) {
        round_factor(t->right, right, n2);
        pack_right(t);
    }
    return FL_OK;
}

void fl__transform_fini(fl_transform *t)
{
    fl__free(&t->left);
    fl__free(&t->right);
    fl__free(&t->right_panels);
    fl__free(&t->left_rows);
    fl__free(&t->right_tiles);
    memset(t, 0, sizeof *t);
}

/* ---- rows of x --------------------------------------------------------------------------- */

static size_t round_64(size_t n)
{
    return (n + 63) / 64 * 64;
}

size_t fl__transform_kernel_scratch(const fl_transform_kernel *k, int n1, int n2)
{
    const size_t padded =
        (size_t)fl__round_up(n1, k->pad_1) * (size_t)fl__round_up(n2, k->pad_2);
    return round_64(2 * padded * sizeof(float));
}

static size_t row_bytes(int n1, int n2)
{
    return round_64((size_t)n1 * (size_t)n2 * sizeof(float));
}

size_t fl__transform_scratch_bytes(const fl_exec *ex, int n1, int n2)
{
    const fl_transform_kernel *k = fl__transform_select(ex->isa);
    return (size_t)ex->n_threads *
           (fl__transform_kernel_scratch(k, n1, n2) + row_bytes(n1, n2));
}

typedef struct transform_job {
    const fl_transform_kernel *kernel;
    const fl_quantize_kernel *quantize;
    const fl_transform *t;
    /* both NULL: to float rows; without premul, which the transform has applied */
    const fl_quantize_token *token;
    const fl_quantize_static *fixed;
    fl_rows x;
    const float *premul;
    int64_t ldy, ld;
    float *y, *scale;
    int8_t *codes; /* NULL: float rows */
    int32_t *x_sum, *zero;
    uint8_t *scratch;
    int M, rows_per_item;
} transform_job;

static void transform_item(void *arg, int64_t item, int thread)
{
    const transform_job *j = arg;
    const fl_transform *t = j->t;
    const size_t kernel_bytes = fl__transform_kernel_scratch(j->kernel, t->n1, t->n2);
    uint8_t *scratch =
        j->scratch + (size_t)thread * (kernel_bytes + row_bytes(t->n1, t->n2));
    float *row = (float *)(void *)(scratch + kernel_bytes);
    const int first = (int)item * j->rows_per_item;
    for (int m = first; m < FL_MIN(first + j->rows_per_item, j->M); m++) {
        float *y = j->codes ? row : j->y + m * j->ldy;
        j->kernel->run(y, fl__rows_get(&j->x, m, y), t, j->premul, scratch);
        if (!j->codes) continue;
        int8_t *codes = j->codes + m * j->ld;
        if (j->token)
            j->quantize->run_token(codes, j->x_sum + m, j->scale + m, j->zero + m, y, j->token);
        else
            j->quantize->run_static(codes, j->x_sum + m, y, j->fixed);
    }
}

/* A row is work enough for an item; several only where there are plenty. */
static void run_rows(const fl_exec *ex, transform_job *j)
{
    j->kernel = fl__transform_select(ex->isa);
    j->quantize = fl__quantize_select(ex->isa);
    j->rows_per_item = j->M < 256 ? 1 : 4;
    fl__parallel_for(ex, (j->M + j->rows_per_item - 1) / j->rows_per_item, transform_item, j);
}

void fl__transform_run(const fl_exec *ex, float *y, int64_t ldy, const float *x, int64_t ldx,
                       int M, const fl_transform *t, const float *premul, void *scratch)
{
    transform_job job = {.t = t, .x = fl__rows_at(x, ldx), .premul = premul, .ldy = ldy,
                         .y = y, .scratch = scratch, .M = M};
    run_rows(ex, &job);
}

void fl__transform_quantize_run(const fl_exec *ex, int8_t *codes, int32_t *x_sum, float *scale,
                                int32_t *zero, fl_rows x, int M, const fl_transform *t,
                                const fl_quantize_token *spec, void *scratch)
{
    fl_quantize_token plain = *spec;
    plain.premul = NULL;
    transform_job job = {.t = t, .token = &plain, .x = x, .premul = spec->premul,
                         .ld = spec->ld, .scale = scale, .codes = codes, .x_sum = x_sum,
                         .zero = zero, .scratch = scratch, .M = M};
    run_rows(ex, &job);
}

void fl__transform_quantize_static_run(const fl_exec *ex, int8_t *codes, int32_t *x_sum,
                                       fl_rows x, int M, const fl_transform *t,
                                       const fl_quantize_static *spec, void *scratch)
{
    fl_quantize_static plain = *spec;
    plain.premul = NULL;
    transform_job job = {.t = t, .fixed = &plain, .x = x, .premul = spec->premul,
                         .ld = spec->ld, .codes = codes, .x_sum = x_sum, .scratch = scratch,
                         .M = M};
    run_rows(ex, &job);
}
