/* check_engine_cuda.cu - the engine's own kernels (engine_kernels.h) against what defines them.
 *
 * Packing of weights: the bytes and sums of weight_pack.c from the same codes, digits of
 * flattening and gated pairs included. Head transforms: float64 sums of the same bf16 numbers,
 * within the rounding of D float32 additions and of the bf16 result. Simple attention: beside
 * the prefill kernel over the same cache, within what bf16 probabilities may differ by, and
 * heads of 32 beside the same heads padded to 64 with zeros.
 * SPDX-License-Identifier: MIT */
#include "cuda/attention_cuda.h"
#include "cuda/engine_kernels.h"
#include "cuda_test.h"

#include <math.h>
#include <string.h>

typedef struct tally {
    int passed, failed;
} tally;

static void count(tally *t, bool good, const char *what, int a, int b, int c)
{
    t->passed += good;
    t->failed += !good;
    if (!good) printf("FAILED: %s [%d, %d, %d]\n", what, a, b, c);
}

static float unit(uint64_t *state)
{
    return (float)(next_random(state) % 20001) / 10000.0f - 1.0f;
}

static uint16_t to_bf16(float x)
{
    uint32_t u;
    memcpy(&u, &x, sizeof u);
    return (uint16_t)((u + 0x7fffu + (u >> 16 & 1)) >> 16);
}

static float from_bf16(uint16_t v)
{
    const uint32_t u = (uint32_t)v << 16;
    float x;
    memcpy(&x, &u, sizeof x);
    return x;
}

/* ---- packing ----------------------------------------------------------------------------- */

/* As a file has them: bytes, or nibbles with each row padded to whole bytes. */
static uint8_t *file_codes(const int8_t *codes, int N, int columns, int bits, size_t *n_bytes)
{
    const size_t row = bits == 8 ? (size_t)columns : (size_t)(columns + 1) / 2;
    uint8_t *out = (uint8_t *)calloc((size_t)N, row);
    *n_bytes = (size_t)N * row;
    for (int n = 0; n < N; n++)
        for (int k = 0; k < columns; k++) {
            const int code = codes[(size_t)n * (size_t)columns + (size_t)k];
            if (bits == 8) out[(size_t)n * row + (size_t)k] = (uint8_t)code;
            else out[(size_t)n * row + (size_t)k / 2] |= (uint8_t)((code & 15) << 4 * (k % 2));
        }
    return out;
}

static int8_t *random_codes(size_t n, int bits, uint64_t *state)
{
    int8_t *c = (int8_t *)malloc(n);
    for (size_t i = 0; i < n; i++)
        c[i] = bits == 4 ? (int8_t)(next_random(state) % 16) - 8
                         : (int8_t)((int)(next_random(state) % 255) - 127);
    return c;
}

/* codes [N, columns] to [N, K] with the extra columns spread out. */
static int8_t *spread(const int8_t *codes, int N, int columns, int n_in, int K,
                      const int32_t *extra)
{
    int8_t *out = (int8_t *)malloc((size_t)N * (size_t)K);
    for (int n = 0; n < N; n++)
        for (int k = 0; k < K; k++)
            out[(size_t)n * (size_t)K + (size_t)k] =
                codes[(size_t)n * (size_t)columns + (size_t)(k < n_in ? k : extra[k - n_in])];
    return out;
}

/* One weight of N channels, or a gated pair of N each. */
static void check_pack(tally *t, int N, int n_in, int n_extra, int bits, bool gated)
{
    uint64_t state = 77 + (uint64_t)(N + n_in + n_extra + bits);
    const int K = n_in + n_extra, columns = n_in + 3, total = gated ? 2 * N : N;
    const size_t n_bytes = fl__cuda_weight_bytes(total, K, bits);
    int32_t *extra = (int32_t *)malloc(sizeof *extra * (size_t)(n_extra + 1));
    int8_t *codes[2], *wide[2];
    for (int e = 0; e < n_extra; e++)
        extra[e] = (int32_t)(next_random(&state) % (uint64_t)columns);
    uint8_t *want = (uint8_t *)calloc(n_bytes, 1), *got = (uint8_t *)calloc(n_bytes, 1);
    int32_t *want_sum = (int32_t *)calloc((size_t)total, 4);
    int32_t *got_sum = (int32_t *)calloc((size_t)total, 4);
    uint8_t *dst = (uint8_t *)gpu_alloc(n_bytes);
    int32_t *sums = (int32_t *)gpu_alloc((size_t)total * 4);
    int32_t *extra_gpu = (int32_t *)gpu_copy(extra, sizeof *extra * (size_t)(n_extra + 1));
    CUDA_OK(cudaMemset(dst, 0x5a, n_bytes));
    for (int i = 0; i <= gated; i++) {
        size_t file_bytes;
        codes[i] = random_codes((size_t)N * (size_t)columns, bits, &state);
        wide[i] = spread(codes[i], N, columns, n_in, K, extra);
        uint8_t *file = file_codes(codes[i], N, columns, bits, &file_bytes);
        void *file_gpu = gpu_copy(file, file_bytes);
        const fl_cuda_pack p = {dst,           sums, file_gpu, extra_gpu, bits, i,
                                gated ? 2 : 1, N,    K,        columns,   n_in};
        FL_OK_OR_EXIT(fl__cuda_pack_codes(&p, NULL, &err));
        CUDA_OK(cudaDeviceSynchronize());
        CUDA_OK(cudaFree(file_gpu));
        free(file);
    }
    if (gated) fl__cuda_weight_pack_gated(want, want_sum, wide[0], wide[1], N, K, bits);
    else fl__cuda_weight_pack(want, want_sum, wide[0], N, K, bits);
    CUDA_OK(cudaMemcpy(got, dst, n_bytes, cudaMemcpyDeviceToHost));
    CUDA_OK(cudaMemcpy(got_sum, sums, (size_t)total * 4, cudaMemcpyDeviceToHost));
    count(t, memcmp(got, want, n_bytes) == 0, "packed bytes", total, K, bits);
    count(t, memcmp(got_sum, want_sum, (size_t)total * 4) == 0, "sums of codes", total, K,
          bits);
    CUDA_OK(cudaFree(dst));
    CUDA_OK(cudaFree(sums));
    CUDA_OK(cudaFree(extra_gpu));
    for (int i = 0; i <= gated; i++) free(codes[i]), free(wide[i]);
    free(extra), free(want), free(got), free(want_sum), free(got_sum);
}

/* ---- 8-bit decoding ---------------------------------------------------------------------- */

/* Beside the prefill kernel, whose check is check_gemm_cuda.cu: the same bits. */
static void check_w8(tally *t, int M, int N, int K, bool gated, bool residual, bool y_bf16)
{
    uint64_t state = 21 + (uint64_t)(M + N + K);
    const int K_pad = (K + 63) / 64 * 64, width = gated ? N / 2 : N;
    const size_t w_bytes = fl__cuda_weight_bytes(N, K, 8), y_bytes = (size_t)(M * N) * 4;
    int8_t *codes = random_codes((size_t)N * (size_t)K, 8, &state);
    int8_t *x = (int8_t *)calloc((size_t)M, (size_t)K_pad);
    float *scales = (float *)malloc((size_t)(N + M) * 4), *add = (float *)malloc(y_bytes);
    int32_t *zeros = (int32_t *)malloc((size_t)M * 4);
    int32_t *sums = (int32_t *)calloc((size_t)N, 4);
    uint8_t *packed = (uint8_t *)malloc(w_bytes), *out[2];
    for (int m = 0; m < M; m++)
        for (int k = 0; k < K; k++) x[m * K_pad + k] = (int8_t)(next_random(&state) % 256);
    for (int i = 0; i < N + M; i++) scales[i] = (unit(&state) + 1.5f) / 1000;
    for (int m = 0; m < M; m++) zeros[m] = (int32_t)(next_random(&state) % 256) - 128;
    for (int i = 0; i < M * N; i++) add[i] = unit(&state);
    fl__cuda_weight_pack(packed, sums, codes, N, K, 8);
    const fl_cuda_weight w = {8,
                              N,
                              K,
                              N,
                              K_pad,
                              (uint8_t *)gpu_copy(packed, w_bytes),
                              (int32_t *)gpu_copy(sums, (size_t)N * 4)};
    fl_cuda_gemm g = {};
    g.x = (int8_t *)gpu_copy(x, (size_t)(M * K_pad));
    g.ldx = K_pad;
    g.x_scale = (float *)gpu_copy(scales + N, (size_t)M * 4);
    g.x_zero = (int32_t *)gpu_copy(zeros, (size_t)M * 4);
    g.x_scale_stride = g.x_zero_stride = g.w_scale_stride = 1;
    g.w = &w;
    g.w_scale = g.bias = (float *)gpu_copy(scales, (size_t)N * 4);
    g.residual = residual ? (float *)gpu_copy(add, y_bytes) : NULL;
    g.ldr = g.ldy = width;
    g.y_bf16 = y_bf16, g.gated = gated, g.M = M;
    for (int i = 0; i < 2; i++) {
        g.y = gpu_alloc(y_bytes);
        CUDA_OK(cudaMemset(g.y, 0x33, y_bytes));
        const fl_cuda_gemm_plan plan = {64, 1, 0, 0, 1, 0};
        if (i == 0) FL_OK_OR_EXIT(fl__cuda_gemm_w8_sm90(&g, plan, 132, NULL, &err));
        else FL_OK_OR_EXIT(fl__cuda_gemm_w8_decode(&g, 132, NULL, &err));
        out[i] = (uint8_t *)malloc(y_bytes);
        CUDA_OK(cudaMemcpy(out[i], g.y, y_bytes, cudaMemcpyDeviceToHost));
        CUDA_OK(cudaFree(g.y));
    }
    count(t, memcmp(out[0], out[1], y_bytes) == 0, "8-bit decoding", M, N, K);
    void *const gpu[] = {(void *)w.data,    (void *)w.col_sum, (void *)g.x,
                         (void *)g.x_scale, (void *)g.x_zero,  (void *)g.w_scale,
                         (void *)g.residual};
    for (size_t i = 0; i < sizeof gpu / sizeof *gpu; i++) CUDA_OK(cudaFree(gpu[i]));
    free(codes), free(x), free(scales), free(add), free(zeros), free(sums), free(packed);
    free(out[0]), free(out[1]);
}

/* ---- head transforms --------------------------------------------------------------------- */

enum { POSITIONS = 300 };

/* Row m of one head through the definition; limit: of each value. */
static void heads_row(double *y, double *limit, const float *x, const float *c, const float *s,
                      const uint16_t *f, int D)
{
    float u[128];
    const int half = D / 2;
    for (int d = 0; d < half; d++) {
        const float ac = x[d] * c[d], bs = x[d + half] * s[d];
        const float bc = x[d + half] * c[d], as = x[d] * s[d];
        u[d] = from_bf16(to_bf16(ac - bs));
        u[d + half] = from_bf16(to_bf16(bc + as));
    }
    for (int j = 0; j < D; j++) {
        double sum = 0, size = 0;
        for (int k = 0; k < D; k++) {
            const double product = (double)u[k] * from_bf16(f[k * D + j]);
            sum += product;
            size += fabs(product);
        }
        y[j] = sum;
        limit[j] = fabs(sum) / 256 + (D + 2) * size / 16777216;
    }
}

static void check_heads(tally *t, int M, int n_heads, int n_kv_heads, int D)
{
    uint64_t state = 5 + (uint64_t)(M + D);
    const int all = n_heads + n_kv_heads, ld = all * D + 8;
    const size_t n_angles = (size_t)POSITIONS * (size_t)(D / 2);
    uint16_t *x = (uint16_t *)malloc((size_t)M * (size_t)ld * 2);
    uint16_t *f[2], *out = (uint16_t *)malloc((size_t)M * (size_t)all * (size_t)D * 2);
    float *cosines = (float *)malloc(n_angles * 4), *sines = (float *)malloc(n_angles * 4);
    int32_t *pos = (int32_t *)malloc((size_t)M * 4);
    static uint16_t packed[2][128 * 128];
    static float factor[128 * 128];
    bool good = true;
    for (int i = 0; i < M * ld; i++) x[i] = to_bf16(4 * unit(&state));
    for (size_t i = 0; i < n_angles; i++) {
        const double angle = 3.0 * unit(&state);
        cosines[i] = (float)cos(angle), sines[i] = (float)sin(angle);
    }
    for (int m = 0; m < M; m++) pos[m] = (int32_t)(next_random(&state) % POSITIONS);
    for (int i = 0; i < 2; i++) {
        f[i] = (uint16_t *)malloc((size_t)(D * D) * 2);
        for (int k = 0; k < D * D; k++) {
            f[i][k] = to_bf16(unit(&state) / sqrtf((float)D));
            factor[k] = from_bf16(f[i][k]);
        }
        fl__cuda_heads_pack(packed[i], D, factor);
    }
    uint16_t *x_gpu = (uint16_t *)gpu_copy(x, (size_t)M * (size_t)ld * 2);
    uint16_t *y = (uint16_t *)gpu_alloc((size_t)M * (size_t)all * (size_t)D * 2);
    fl_cuda_heads h = {};
    h.q.data = x_gpu;
    h.k.data = x_gpu + n_heads * D;
    h.q.ld = h.k.ld = ld;
    h.q_out = y;
    h.k_out = y + (int64_t)M * n_heads * D;
    h.q_factor = (uint16_t *)gpu_copy(packed[0], (size_t)(D * D) * 2);
    h.k_factor = (uint16_t *)gpu_copy(packed[1], (size_t)(D * D) * 2);
    h.cos = (float *)gpu_copy(cosines, n_angles * 4);
    h.sin = (float *)gpu_copy(sines, n_angles * 4);
    h.row_position = (int32_t *)gpu_copy(pos, (size_t)M * 4);
    h.n_heads = n_heads, h.n_kv_heads = n_kv_heads, h.D = D;
    FL_OK_OR_EXIT(fl__cuda_heads(&h, M, NULL, &err));
    CUDA_OK(
        cudaMemcpy(out, y, (size_t)M * (size_t)all * (size_t)D * 2, cudaMemcpyDeviceToHost));
    for (int m = 0; m < M; m++)
        for (int a = 0; a < all; a++) {
            const bool key = a >= n_heads;
            const uint16_t *got =
                key ? out + ((size_t)M * n_heads + (size_t)m * n_kv_heads + (a - n_heads)) * D
                    : out + ((size_t)m * n_heads + a) * D;
            float row[128];
            double want[128], limit[128];
            for (int d = 0; d < D; d++) row[d] = from_bf16(x[(size_t)m * ld + a * D + d]);
            heads_row(want, limit, row, cosines + (size_t)pos[m] * (D / 2),
                      sines + (size_t)pos[m] * (D / 2), f[key], D);
            for (int d = 0; d < D; d++)
                good = good && fabs(from_bf16(got[d]) - want[d]) <= limit[d];
        }
    count(t, good, "head transforms", M, all, D);
    void *const gpu[] = {x_gpu,
                         y,
                         (void *)h.q_factor,
                         (void *)h.k_factor,
                         (void *)h.cos,
                         (void *)h.sin,
                         (void *)h.row_position};
    for (size_t i = 0; i < sizeof gpu / sizeof *gpu; i++) CUDA_OK(cudaFree(gpu[i]));
    free(x), free(out), free(f[0]), free(f[1]), free(cosines), free(sines), free(pos);
}

/* ---- mixed heads ------------------------------------------------------------------------- */

/* Beside the transform of any shape with the identity on the right, which adds up in the CPU's
 * order: sums of n1 products differ by their last bits, so codes by a step where they lie at a
 * border, one in a thousand at most. */
static void check_mix(tally *t, int M, int n1, int n2, fl_cuda_grid grid)
{
    uint64_t state = 3 + (uint64_t)(M + n1);
    const int n = n1 * n2, ld = (n + 63) / 64 * 64, n_differ_limit = M * n / 1000;
    uint16_t *x = (uint16_t *)malloc((size_t)(M * n) * 2);
    float *left = (float *)malloc((size_t)(n1 * n1) * 4);
    float *right = (float *)calloc((size_t)(n2 * n2), 4);
    int8_t *codes[2];
    float *scales[2];
    int32_t *zeros[2];
    for (int i = 0; i < M * n; i++) x[i] = to_bf16(3 * unit(&state) * unit(&state));
    for (int i = 0; i < n1 * n1; i++) left[i] = unit(&state) / sqrtf((float)n1);
    for (int i = 0; i < n2; i++) right[i * n2 + i] = 1;
    void *packed = calloc(fl__cuda_transform_bytes(n1, n2) + fl__cuda_mix_bytes(n1), 1);
    fl__cuda_transform_pack(packed, n1, n2, left, right);
    void *factors = gpu_copy(packed, fl__cuda_transform_bytes(n1, n2));
    fl__cuda_mix_pack(packed, n1, left);
    void *mix = gpu_copy(packed, fl__cuda_mix_bytes(n1));
    uint16_t *x_gpu = (uint16_t *)gpu_copy(x, (size_t)(M * n) * 2);
    for (int i = 0; i < 2; i++) {
        fl_cuda_codes y = {(int8_t *)gpu_alloc((size_t)(M * ld)), ld, NULL,
                           (float *)gpu_alloc((size_t)M * 4),
                           (int32_t *)gpu_alloc((size_t)M * 4)};
        CUDA_OK(cudaMemset(y.codes, 0x55, (size_t)(M * ld)));
        fl_cuda_row row = {};
        row.x = x_gpu, row.ldx = n;
        const fl_cuda_transform transform = {n1, n2, factors};
        const fl_cuda_mix m = {x_gpu, n, y, grid, mix, n1, n2};
        if (i == 0)
            FL_OK_OR_EXIT(
                fl__cuda_transform_quantize(&y, &row, M, &transform, &grid, 132, NULL, &err));
        else FL_OK_OR_EXIT(fl__cuda_mix_heads(&m, M, 132, NULL, &err));
        codes[i] = (int8_t *)malloc((size_t)(M * ld));
        scales[i] = (float *)malloc((size_t)M * 4);
        zeros[i] = (int32_t *)malloc((size_t)M * 4);
        CUDA_OK(cudaMemcpy(codes[i], y.codes, (size_t)(M * ld), cudaMemcpyDeviceToHost));
        CUDA_OK(cudaMemcpy(scales[i], y.x_scale, (size_t)M * 4, cudaMemcpyDeviceToHost));
        CUDA_OK(cudaMemcpy(zeros[i], y.x_zero, (size_t)M * 4, cudaMemcpyDeviceToHost));
        CUDA_OK(cudaFree(y.codes));
        CUDA_OK(cudaFree(y.x_scale));
        CUDA_OK(cudaFree(y.x_zero));
    }
    int n_differ = 0;
    bool good = true;
    for (int m = 0; m < M; m++) {
        good = good && fabsf(scales[0][m] - scales[1][m]) <= 1e-5f * scales[0][m];
        good = good && abs(zeros[0][m] - zeros[1][m]) <= 1;
        if (zeros[0][m] != zeros[1][m]) continue; /* all of the row's codes moved */
        for (int k = 0; k < ld; k++) {
            const int d = abs(codes[0][m * ld + k] - codes[1][m * ld + k]);
            good = good && d <= 1 && (k < n || codes[1][m * ld + k] == 0);
            n_differ += d;
        }
    }
    count(t, good && n_differ <= n_differ_limit, "mixed heads", M, n1, n2);
    CUDA_OK(cudaFree(x_gpu));
    CUDA_OK(cudaFree(factors));
    CUDA_OK(cudaFree(mix));
    for (int i = 0; i < 2; i++) free(codes[i]), free(scales[i]), free(zeros[i]);
    free(x), free(left), free(right), free(packed);
}

/* ---- attention --------------------------------------------------------------------------- */

/* A cache of n_seqs sequences of `tokens` each, filled through the append, and q for the last
 * `rows` of each of them. */
typedef struct attention_case {
    fl_cuda_kv kv;
    int n_heads, n_seqs, tokens, rows;
    int32_t *first, *position; /* of the last rows, device */
    uint16_t *q;               /* device, rotated: as it is */
} attention_case;

/* Heads of `width` random channels in the first ones of D; the rest is zero. */
static attention_case make_case(int D, int width, int bits, int n_heads, int n_kv_heads,
                                int n_seqs, int tokens, int rows)
{
    attention_case c = {{bits, D, n_kv_heads, NULL, NULL, (tokens + 63) / 64},
                        n_heads,
                        n_seqs,
                        tokens,
                        rows,
                        NULL,
                        NULL,
                        NULL};
    const int heads = n_heads + 2 * n_kv_heads, n_pages = n_seqs * c.kv.table_stride;
    const size_t n_rows = (size_t)n_seqs * (size_t)tokens, ld = (size_t)heads * (size_t)D;
    uint64_t state = 9; /* the same numbers whatever D is */
    uint16_t *x = (uint16_t *)calloc(n_rows * ld, 2);
    int32_t *table = (int32_t *)malloc((size_t)n_pages * 4), first[65], start[64], last[64];
    for (size_t m = 0; m < n_rows; m++)
        for (int h = 0; h < heads; h++)
            for (int d = 0; d < width; d++)
                x[m * ld + (size_t)h * (size_t)D + (size_t)d] = to_bf16(2 * unit(&state));
    for (int i = 0; i < n_pages; i++) table[i] = (i * 7 + 3) % n_pages; /* 7 and n: coprime */
    for (int b = 0; b <= n_seqs; b++) first[b] = b * tokens;
    for (int b = 0; b < n_seqs; b++) start[b] = 0, last[b] = tokens - rows;
    uint16_t *x_gpu = (uint16_t *)gpu_copy(x, n_rows * ld * 2);
    uint16_t *q = (uint16_t *)gpu_alloc(n_rows * (size_t)(n_heads * D) * 2);
    c.kv.table = (int32_t *)gpu_copy(table, (size_t)n_pages * 4);
    c.kv.pages = (uint8_t *)gpu_alloc((size_t)n_pages * fl__cuda_kv_page_bytes(&c.kv));
    fl_cuda_kv_append a = {};
    a.kv = &c.kv;
    a.q = x_gpu, a.k = x_gpu + n_heads * D, a.v = x_gpu + (n_heads + n_kv_heads) * D;
    a.ldq = a.ldk = a.ldv = (int64_t)ld;
    a.x_bf16 = true;
    a.n_heads = n_heads;
    a.q_out = q;
    a.first_row = (int32_t *)gpu_copy(first, (size_t)(n_seqs + 1) * 4);
    a.position = (int32_t *)gpu_copy(start, (size_t)n_seqs * 4);
    a.n_seqs = n_seqs, a.max_rows = tokens;
    for (int i = 0; i < 4; i++) a.clip[i] = 1;
    FL_OK_OR_EXIT(fl__cuda_kv_append(&a, NULL, &err));
    CUDA_OK(cudaDeviceSynchronize());
    const size_t row = (size_t)(n_heads * D);
    c.q = (uint16_t *)gpu_alloc((size_t)(n_seqs * rows) * row * 2);
    for (int b = 0; b < n_seqs; b++)
        CUDA_OK(cudaMemcpy(c.q + (size_t)(b * rows) * row,
                           q + ((size_t)(b * tokens + tokens - rows)) * row,
                           (size_t)rows * row * 2, cudaMemcpyDeviceToDevice));
    for (int b = 0; b <= n_seqs; b++) first[b] = b * rows;
    c.first = (int32_t *)gpu_copy(first, (size_t)(n_seqs + 1) * 4);
    c.position = (int32_t *)gpu_copy(last, (size_t)n_seqs * 4);
    free(x), free(table);
    return c;
}

static float *run_simple(const attention_case *c)
{
    const size_t n = (size_t)(c->n_seqs * c->rows * c->n_heads * c->kv.D);
    float *y = (float *)gpu_alloc(n * 4), *out = (float *)malloc(n * 4);
    const fl_cuda_attention_simple a = {&c->kv,    c->q,     y,           false,   c->n_heads,
                                        c->n_seqs, c->first, c->position, c->rows, 0.25f};
    FL_OK_OR_EXIT(fl__cuda_attention_simple(&a, NULL, &err));
    CUDA_OK(cudaMemcpy(out, y, n * 4, cudaMemcpyDeviceToHost));
    CUDA_OK(cudaFree(y));
    return out;
}

static float *run_prefill(const attention_case *c)
{
    const size_t n = (size_t)(c->n_seqs * c->rows * c->n_heads * c->kv.D);
    float *y = (float *)gpu_alloc(n * 4), *out = (float *)malloc(n * 4);
    void *workspace = gpu_alloc(fl__cuda_attention_prefill_workspace_bytes(
        c->kv.D, c->kv.n_kv_heads, c->n_seqs, c->tokens));
    const fl_cuda_attention_prefill a = {&c->kv,     c->q,      y,        false,
                                         c->n_heads, c->n_seqs, c->first, c->position,
                                         c->rows,    c->tokens, 0.25f,    workspace};
    FL_OK_OR_EXIT(fl__cuda_attention_prefill(&a, NULL, &err));
    CUDA_OK(cudaMemcpy(out, y, n * 4, cudaMemcpyDeviceToHost));
    CUDA_OK(cudaFree(y));
    CUDA_OK(cudaFree(workspace));
    return out;
}

/* Values reach 2; the fast kernel rounds keys, values and probabilities to bf16, by 2^-9 each,
 * and a score of up to 0.25 * 4 * D moves by 2^-9 of itself: exp of that over all keys. */
static double fast_limit(int D)
{
    return 2 * (2 * 2.0 / 512 + 0.25 * sqrt((double)D) * 4 / 512);
}

static void check_attention(tally *t, int D, int bits, int n_heads, int n_kv_heads)
{
    const attention_case c = make_case(D, D, bits, n_heads, n_kv_heads, 3, 150, 37);
    float *simple = run_simple(&c), *fast = run_prefill(&c);
    double worst = 0;
    for (int i = 0; i < c.n_seqs * c.rows * n_heads * D; i++) {
        const double d = fabs((double)simple[i] - (double)fast[i]);
        if (!(d <= worst)) worst = d;
    }
    count(t, worst <= fast_limit(D), "simple attention beside prefill", D, bits, n_heads);
    if (!(worst <= fast_limit(D))) printf("  difference %g, limit %g\n", worst, fast_limit(D));
    free(simple), free(fast);
}

/* Codes of a padded head have the grid of the unpadded one: zeros are within every range. */
static void check_narrow(tally *t, int bits)
{
    const attention_case a = make_case(32, 32, bits, 5, 5, 2, 200, 41),
                         b = make_case(64, 32, bits, 5, 5, 2, 200, 41);
    float *narrow = run_simple(&a), *wide = run_simple(&b);
    bool good = true;
    for (int i = 0; i < a.n_seqs * a.rows * 5; i++)
        for (int d = 0; d < 32; d++)
            good = good && fabsf(narrow[i * 32 + d] - wide[i * 64 + d]) <= 1e-5f;
    count(t, good, "attention of heads of 32", 32, bits, 5);
    free(narrow), free(wide);
}

int main(int argc, char **argv)
{
    tally t = {0, 0};
    if (argc > 1 && strcmp(argv[1], "--check") != 0) return 0; /* no bench here */
    for (int bits = 4; bits <= 8; bits += 4) {
        check_pack(&t, 16, 64, 0, bits, false);
        check_pack(&t, 48, 200, 0, bits, false);
        check_pack(&t, 160, 448, 37, bits, false);
        check_pack(&t, 24, 200, 5, bits, true);
        check_pack(&t, 448, 160, 0, bits, true);
        check_narrow(&t, bits);
    }
    check_narrow(&t, 16);
    for (int D = 32; D <= 128; D *= 2) {
        check_heads(&t, 1, 4, 2, D);
        check_heads(&t, 37, 5, 5, D);
    }
    for (int M = 1; M <= 16; M += M < 4 ? 1 : 4) {
        check_w8(&t, M, 96, 200, false, false, false);
        check_w8(&t, M, 8192, 512, false, false, false);
        check_w8(&t, M, 4096, 1408, false, true, false);
        check_w8(&t, M, 2816, 4096, true, false, true);
        check_w8(&t, M, 35200, 320, false, false, true);
    }
    static const int mixes[][3] = {{1, 32, 128}, {9, 32, 128},  {700, 32, 128}, {33, 8, 64},
                                   {5, 5, 32},   {33, 56, 128}, {40, 40, 128},  {21, 64, 64}};
    for (size_t i = 0; i < sizeof mixes / sizeof *mixes; i++) {
        check_mix(&t, mixes[i][0], mixes[i][1], mixes[i][2], {4, true, 0.98f, 0.95f});
        check_mix(&t, mixes[i][0], mixes[i][1], mixes[i][2], {8, false, 1, 1});
    }
    for (int bits = 4; bits <= 16; bits *= 2) {
        check_attention(&t, 64, bits, 8, 4);
        check_attention(&t, 128, bits, 8, 2);
    }
    printf("%d passed, %d failed, 0 skipped\n", t.passed, t.failed);
    return t.failed > 0 || t.passed == 0;
}
