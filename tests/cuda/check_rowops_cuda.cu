/* check_rowops_cuda.cu - the GPU's small ops against double, or bit for bit where the
 * operations are the CPU's. SPDX-License-Identifier: MIT */
#include "check_transform_cuda.h"

#include <math.h>

enum { SPARE = 2 }; /* poisoned rows after the last */

/* An output of M rows of n with 8 columns and SPARE rows to spare. */
typedef struct output {
    int M, n;
    fl_cuda_matrix y;
    size_t n_bytes;
    uint8_t *host;
} output;

static void output_init(output *o, int M, int n, bool f32)
{
    o->M = M, o->n = n;
    o->n_bytes = (size_t)(M + SPARE) * (n + 8) * (f32 ? 4 : 2);
    o->y.data = gpu_alloc(o->n_bytes);
    o->y.ld = n + 8;
    o->y.f32 = f32;
    o->host = (uint8_t *)malloc(o->n_bytes);
    CUDA_OK(cudaMemset(o->y.data, 0xa5, o->n_bytes));
}

static void output_fini(output *o)
{
    CUDA_OK(cudaFree(o->y.data));
    free(o->host);
}

static float output_at(const output *o, int m, int c)
{
    const size_t at = (size_t)m * o->y.ld + c;
    return o->y.f32 ? ((const float *)o->host)[at] : bf16_to(((const uint16_t *)o->host)[at]);
}

static void report(tally *t, const char *name, int M, int n, double error, double most)
{
    const bool ok = error <= most; /* false for a NaN */
    printf("%s %s %d x %d: error %.2e, at most %.2e\n", ok ? "ok  " : "FAIL", name, M, n, error,
           most);
    ok ? t->passed++ : t->failed++;
}

/* Largest error relative to 1 or the value, or 1e30 where poison is gone. */
static double output_error(output *o, const double *want)
{
    const size_t width = o->y.f32 ? 4 : 2;
    double error = 0;
    CUDA_OK(cudaMemcpy(o->host, o->y.data, o->n_bytes, cudaMemcpyDeviceToHost));
    for (int m = 0; m < o->M + SPARE; m++)
        for (int c = 0; c < o->y.ld; c++) {
            const uint8_t *at = o->host + ((size_t)m * o->y.ld + c) * width;
            if (m >= o->M || c >= o->n) {
                if (at[0] != 0xa5 || at[1] != 0xa5) return 1e30;
                continue;
            }
            const double w = want[(size_t)m * o->n + c];
            const double e = fabs(output_at(o, m, c) - w) / fmax(1.0, fabs(w));
            if (!(e <= error)) error = e;
        }
    return error;
}

static void must(fl_status st, const fl_err *err)
{
    if (st == FL_OK) return;
    printf("launch failed: %s\n", err->text);
    exit(1);
}

/* bf16 keeps 8 bits, the first one counted: half a unit of a number just above a power of two
 * is 2^-8 of it. */
static double tolerance(bool f32)
{
    return f32 ? 4e-6 : 1.0 / 256 + 4e-6;
}

static void check_norm(tally *t, int M, int n, bool x_f32, bool y_f32)
{
    uint64_t seed = 5 + n;
    float *x = random_floats((size_t)M * n, 3, 0, &seed);
    float *gain = random_floats(n, 0.2f, 1, &seed);
    double *want = (double *)malloc(8 * (size_t)M * n);
    uint16_t *x16 = to_bf16(x, (size_t)M * n);
    output o;
    fl_err err = {};
    for (int m = 0; m < M; m++) {
        double sum = 0;
        for (int c = 0; c < n; c++) {
            const double v = x_f32 ? x[m * n + c] : bf16_to(x16[m * n + c]);
            want[m * n + c] = v;
            sum += v * v;
        }
        for (int c = 0; c < n; c++) want[m * n + c] *= gain[c] / sqrt(sum / n + 1e-5);
    }
    fl_cuda_matrix in = {
        x_f32 ? gpu_copy(x, 4 * (size_t)M * n) : gpu_copy(x16, 2 * (size_t)M * n), n, x_f32};
    float *d_gain = (float *)gpu_copy(gain, 4 * n);
    output_init(&o, M, n, y_f32);
    must(fl__cuda_rms_norm(&o.y, &in, d_gain, M, n, 1e-5f, 0, &err), &err);
    report(t, "rms_norm", M, n, output_error(&o, want), tolerance(y_f32));
    output_fini(&o);
    CUDA_OK(cudaFree(in.data));
    CUDA_OK(cudaFree(d_gain));
    free(x), free(gain), free(want), free(x16);
}

/* LayerNorm behind a sum that is kept, ReLU: fl__cuda_row_values. */
static void check_values(tally *t, int M, int n, bool layer_norm, bool add_f32, bool y_f32)
{
    uint64_t seed = 15 + n;
    const size_t n_x = (size_t)M * n;
    float *x = random_floats(n_x, 3, 2, &seed), *add = random_floats(n_x, 1, 0, &seed);
    float *gain = random_floats(n, 0.2f, 1, &seed), *bias = random_floats(n, 0.5f, 0, &seed);
    uint16_t *add16 = to_bf16(add, n_x);
    double *want = (double *)malloc(8 * n_x);
    float *kept = (float *)malloc(4 * n_x);
    fl_cuda_row row = {};
    output o;
    int64_t wrong = 0;
    for (int m = 0; m < M; m++) {
        double mean = 0, square = 0;
        for (size_t i = (size_t)m * n; i < (size_t)(m + 1) * n; i++) {
            kept[i] = x[i] + (add_f32 ? add[i] : bf16_to(add16[i]));
            mean += kept[i] / (double)n;
        }
        for (size_t i = (size_t)m * n; i < (size_t)(m + 1) * n; i++)
            square += (kept[i] - mean) * (kept[i] - mean) / n;
        for (int c = 0; c < n; c++) {
            const size_t i = (size_t)m * n + c;
            const double z = (kept[i] - mean) / sqrt(square + 1e-5) * gain[c] + bias[c];
            want[i] = layer_norm ? z : fmax((double)kept[i], 0);
        }
    }
    row.x = gpu_copy(x, 4 * n_x), row.ldx = n, row.x_f32 = true, row.eps = 1e-5f;
    row.add = add_f32 ? gpu_copy(add, 4 * n_x) : gpu_copy(add16, 2 * n_x);
    row.ld_add = n, row.add_f32 = add_f32;
    row.gain = layer_norm ? (float *)gpu_copy(gain, 4 * n) : NULL;
    row.bias = layer_norm ? (float *)gpu_copy(bias, 4 * n) : NULL;
    row.layer_norm = layer_norm, row.relu = !layer_norm;
    output_init(&o, M, n, y_f32);
    FL_OK_OR_EXIT(fl__cuda_row_values(&o.y, &row, M, n, 0, &err));
    report(t, layer_norm ? "add, layer_norm" : "add, relu", M, n, output_error(&o, want),
           tolerance(y_f32));
    CUDA_OK(cudaMemcpy(x, row.x, 4 * n_x, cudaMemcpyDeviceToHost));
    for (size_t i = 0; i < n_x; i++) wrong += x[i] != kept[i];
    report(t, "add", M, n, (double)wrong, 0);
    output_fini(&o);
    void *device[] = {(void *)row.x, (void *)row.add, (void *)row.gain, (void *)row.bias};
    for (size_t i = 0; i < FL_COUNT(device); i++) CUDA_OK(cudaFree(device[i]));
    free(x), free(add), free(gain), free(bias), free(add16), free(want), free(kept);
}

/* fl__cuda_add, then embeddings on top of it. */
static void check_add(tally *t, int M, int n)
{
    uint64_t seed = 25 + n;
    const size_t n_x = (size_t)M * n;
    float *x = random_floats(n_x, 3, 0, &seed), *add = random_floats(n_x, 1, 0, &seed);
    uint16_t *add16 = to_bf16(add, n_x);
    int32_t *ids = (int32_t *)malloc(4 * M);
    double *want = (double *)malloc(8 * n_x);
    fl_cuda_matrix a = {gpu_copy(add16, 2 * n_x), n, false};
    output o;
    for (int m = 0; m < M; m++) ids[m] = M - 1 - m;
    for (size_t i = 0; i < n_x; i++)
        want[i] = (x[i] + bf16_to(add16[i])) + bf16_to(add16[(M - 1 - i / n) * n + i % n]);
    int32_t *d_ids = (int32_t *)gpu_copy(ids, 4 * M);
    output_init(&o, M, n, true);
    CUDA_OK(cudaMemcpy2D(o.y.data, 4 * o.y.ld, x, 4 * n, 4 * n, M, cudaMemcpyHostToDevice));
    FL_OK_OR_EXIT(fl__cuda_add(&o.y, &a, M, n, 0, &err));
    FL_OK_OR_EXIT(fl__cuda_embed_add(&o.y, (uint16_t *)a.data, d_ids, M, n, M, 0, &err));
    report(t, "add, embed_add", M, n, output_error(&o, want), 1e-7);
    output_fini(&o);
    CUDA_OK(cudaFree(a.data));
    CUDA_OK(cudaFree(d_ids));
    free(x), free(add), free(add16), free(ids), free(want);
}

/* Codes of a fixed scale behind a front, with further digits: bit for bit those of the values
 * that the front alone gives. */
static void check_fixed(tally *t, int M, int n, int n_extra, bool is_unsigned, bool silu)
{
    uint64_t seed = 35 + n;
    const int64_t ld = (n + n_extra + 63) / 64 * 64 + 64;
    const size_t n_x = (size_t)M * n, rows = (size_t)M + SPARE, n_bytes = rows * (ld + 4);
    float *x = random_floats(n_x, 3, 0, &seed), *gain = random_floats(n, 0.2f, 1, &seed);
    float *lo = (float *)malloc(4 * n), *hi = (float *)malloc(4 * n);
    int32_t *extra = (int32_t *)malloc(8 * (n_extra + 1));
    uint16_t *x16 = to_bf16(x, n_x);
    int8_t *codes = (int8_t *)malloc(ld);
    uint8_t *got = (uint8_t *)malloc(n_bytes), *d = (uint8_t *)gpu_alloc(n_bytes);
    float *v = (float *)malloc(4 * n_x);
    const int q = n_extra ? 7 : is_unsigned ? 255 : 127;
    for (int c = 0; c < n; c++) {
        hi[c] = (float)(q * (n_extra ? 1 + (int)(next_random(&seed) % 4) : 1));
        lo[c] = is_unsigned ? 0 : -hi[c];
    }
    for (int e = 0; e < n_extra; e++) {
        extra[e] = (int32_t)(next_random(&seed) % n);
        extra[n_extra + e] = 7 * (1 + e % 3);
    }
    fl_cuda_row row = {};
    row.ldx = n;
    if (silu) {
        row.x = gpu_copy(x16, 2 * n_x);
        row.up = (uint16_t *)row.x;
    } else {
        row.x = gpu_copy(x, 4 * n_x), row.x_f32 = true;
        row.gain = (float *)gpu_copy(gain, 4 * n);
        row.relu = is_unsigned, row.eps = 1e-5f;
    }
    const int zero = is_unsigned && q == 255 ? -128 : 0, first_lo = is_unsigned ? 0 : -q;
    void *device[] = {
        (void *)row.x,       (void *)row.gain,    d,
        gpu_copy(lo, 4 * n), gpu_copy(hi, 4 * n), gpu_copy(extra, 8 * (n_extra + 1)),
        gpu_alloc(4 * n_x)};
    const fl_cuda_quantize_static spec = {n,
                                          n_extra,
                                          20,
                                          zero,
                                          first_lo,
                                          q,
                                          7,
                                          (float *)device[3],
                                          (float *)device[4],
                                          (int32_t *)device[5],
                                          (int32_t *)device[5] + n_extra};
    const fl_quantize_static ref = {n, n_extra, (int)ld, 20, zero,  first_lo,       q,
                                    7, NULL,    lo,      hi, extra, extra + n_extra};
    const fl_cuda_matrix values = {device[6], n, true};
    fl_cuda_codes y = {(int8_t *)d, ld, (int32_t *)(d + rows * ld), NULL, NULL};
    int64_t wrong = 0;
    CUDA_OK(cudaMemset(d, 0xa5, n_bytes));
    FL_OK_OR_EXIT(fl__cuda_quantize_static(&y, &row, M, &spec, 132, 0, &err));
    FL_OK_OR_EXIT(fl__cuda_row_values(&values, &row, M, n, 0, &err));
    CUDA_OK(cudaMemcpy(got, d, n_bytes, cudaMemcpyDeviceToHost));
    CUDA_OK(cudaMemcpy(v, values.data, 4 * n_x, cudaMemcpyDeviceToHost));
    for (int m = 0; m < M; m++) {
        int32_t sum;
        fl__quantize_static_ref(codes, &sum, v + (size_t)m * n, &ref);
        for (int64_t c = 0; c < ld; c++) wrong += codes[c] != (int8_t)got[m * ld + c];
        wrong += memcmp(&sum, got + rows * ld + 4 * m, 4) != 0;
    }
    for (size_t i = M * ld; i < rows * ld; i++) wrong += got[i] != 0xa5;
    report(t, silu ? "silu, fixed scale" : "norm, fixed scale", M, n, (double)wrong, 0);
    for (size_t i = 0; i < FL_COUNT(device); i++) CUDA_OK(cudaFree(device[i]));
    free(x), free(gain), free(lo), free(hi), free(extra), free(x16), free(codes), free(got);
    free(v);
}

static void check_silu(tally *t, int M, int n)
{
    uint64_t seed = 6 + n;
    float *x = random_floats((size_t)M * n, 4, 0, &seed);
    float *up = random_floats((size_t)M * n, 2, 0, &seed);
    double *want = (double *)malloc(8 * (size_t)M * n);
    x[0] = -300, x[1] = 300;
    uint16_t *x16 = to_bf16(x, (size_t)M * n), *up16 = to_bf16(up, (size_t)M * n);
    output o;
    fl_err err = {};
    for (int i = 0; i < M * n; i++) {
        const double v = bf16_to(x16[i]);
        want[i] = v / (1 + exp(-v)) * bf16_to(up16[i]);
    }
    fl_cuda_matrix in = {gpu_copy(x16, 2 * (size_t)M * n), n, false};
    uint16_t *d_up = (uint16_t *)gpu_copy(up16, 2 * (size_t)M * n);
    output_init(&o, M, n, false);
    must(fl__cuda_silu_mul(&o.y, &in, d_up, M, n, 0, &err), &err);
    report(t, "silu_mul", M, n, output_error(&o, want), tolerance(false));
    output_fini(&o);
    CUDA_OK(cudaFree(in.data));
    CUDA_OK(cudaFree(d_up));
    free(x), free(up), free(want), free(x16), free(up16);
}

static void check_embed(tally *t, int M, int n, bool f32)
{
    enum { N_IDS = 300 };
    uint64_t seed = 7 + n;
    float *table = random_floats((size_t)N_IDS * n, 1, 0, &seed);
    uint16_t *table16 = to_bf16(table, (size_t)N_IDS * n);
    int32_t *ids = (int32_t *)malloc(4 * M);
    double *want = (double *)malloc(8 * (size_t)M * n);
    output o;
    fl_err err = {};
    for (int m = 0; m < M; m++) {
        ids[m] = m == 1 ? -1 : m == 2 ? N_IDS : (int32_t)(next_random(&seed) % N_IDS);
        for (int c = 0; c < n; c++)
            want[m * n + c] =
                ids[m] < 0 || ids[m] >= N_IDS ? 0.0 : bf16_to(table16[ids[m] * n + c]);
    }
    uint16_t *d_table = (uint16_t *)gpu_copy(table16, 2 * (size_t)N_IDS * n);
    int32_t *d_ids = (int32_t *)gpu_copy(ids, 4 * M);
    output_init(&o, M, n, f32);
    must(fl__cuda_embed(&o.y, d_table, d_ids, M, n, N_IDS, 0, &err), &err);
    report(t, "embed", M, n, output_error(&o, want), 0);
    output_fini(&o);
    CUDA_OK(cudaFree(d_table));
    CUDA_OK(cudaFree(d_ids));
    free(table), free(table16), free(ids), free(want);
}

static void check_rope(tally *t, int M, int n_heads, int D, bool f32)
{
    enum { POSITIONS = 64 };
    const int n = n_heads * D, half = D / 2;
    uint64_t seed = 8 + n;
    float *x = random_floats((size_t)M * n, 1, 0, &seed);
    float *c = (float *)malloc(4 * POSITIONS * half),
          *s = (float *)malloc(4 * POSITIONS * half);
    int32_t *at = (int32_t *)malloc(4 * M);
    double *want = (double *)malloc(8 * (size_t)M * n);
    output o;
    fl_err err = {};
    for (int i = 0; i < POSITIONS * half; i++) {
        const double angle = i / half * pow(10000.0, -(double)(i % half) / half);
        c[i] = (float)cos(angle), s[i] = (float)sin(angle);
    }
    if (!f32)
        for (int i = 0; i < M * n; i++) x[i] = bf16_to(bf16_of(x[i]));
    for (int m = 0; m < M; m++) at[m] = (int32_t)(next_random(&seed) % POSITIONS);
    for (int i = 0; i < M * n; i++) {
        const int j = i % D % half, angle = at[i / n] * half + j, first = i - i % D + j;
        const double a = x[first], b = x[first + half];
        want[i] = i % D < half ? a * c[angle] - b * s[angle] : b * c[angle] + a * s[angle];
    }
    float *d_c = (float *)gpu_copy(c, 4 * POSITIONS * half);
    float *d_s = (float *)gpu_copy(s, 4 * POSITIONS * half);
    int32_t *d_at = (int32_t *)gpu_copy(at, 4 * M);
    output_init(&o, M, n, f32);
    uint16_t *x16 = to_bf16(x, (size_t)M * n);
    CUDA_OK(cudaMemcpy2D(o.y.data, o.y.ld * (f32 ? 4 : 2), f32 ? (void *)x : x16,
                         n * (f32 ? 4 : 2), n * (f32 ? 4 : 2), M, cudaMemcpyHostToDevice));
    must(fl__cuda_rope(&o.y, d_c, d_s, d_at, M, n_heads, D, 0, &err), &err);
    report(t, "rope", M, n, output_error(&o, want), tolerance(f32));
    output_fini(&o);
    CUDA_OK(cudaFree(d_c));
    CUDA_OK(cudaFree(d_s));
    CUDA_OK(cudaFree(d_at));
    free(x), free(x16), free(c), free(s), free(at), free(want);
}

/* Bit for bit: float32 rows with premul. */
static void check_token(tally *t, int M, int n, const fl_cuda_grid *grid)
{
    uint64_t seed = 9 + n;
    const int64_t ld = (n + 63) / 64 * 64 + 64;
    const size_t rows = (size_t)M + SPARE, n_bytes = rows * (ld + 12);
    float *x = random_floats((size_t)M * n, 1, 0, &seed);
    float *premul = random_floats(n, 0.2f, 1, &seed);
    int8_t *codes = (int8_t *)malloc(ld);
    uint8_t *got = (uint8_t *)malloc(n_bytes), *d = (uint8_t *)gpu_alloc(n_bytes);
    if (M > 1) memset(x, 0, 4 * n);
    x[5] = NAN;
    fl_cuda_row row = {};
    row.x = gpu_copy(x, 4 * (size_t)M * n);
    row.ldx = n;
    row.x_f32 = true;
    row.premul = (float *)gpu_copy(premul, 4 * n);
    fl_cuda_codes y = {(int8_t *)d, ld, (int32_t *)(d + rows * ld),
                       (float *)(d + rows * (ld + 4)), (int32_t *)(d + rows * (ld + 8))};
    fl_quantize_token spec = {
        n, (int)ld, grid->bits, grid->asymmetric, grid->clip_max, grid->clip_min, premul};
    fl_err err = {};
    int64_t wrong = 0;
    CUDA_OK(cudaMemset(d, 0xa5, n_bytes));
    must(fl__cuda_quantize_token(&y, &row, M, n, grid, 0, &err), &err);
    CUDA_OK(cudaMemcpy(got, d, n_bytes, cudaMemcpyDeviceToHost));
    for (int m = 0; m < M; m++) {
        int32_t sum, zero;
        float scale;
        fl__quantize_token_ref(codes, &sum, &scale, &zero, x + (size_t)m * n, &spec);
        for (int64_t c = 0; c < ld; c++) wrong += codes[c] != (int8_t)got[m * ld + c];
        wrong += memcmp(&sum, got + rows * ld + 4 * m, 4) != 0;
        wrong += memcmp(&scale, got + rows * (ld + 4) + 4 * m, 4) != 0;
        wrong += memcmp(&zero, got + rows * (ld + 8) + 4 * m, 4) != 0;
    }
    for (size_t i = M * ld; i < rows * ld; i++) wrong += got[i] != 0xa5;
    report(t, "quantize_token", M, n, (double)wrong, 0);
    CUDA_OK(cudaFree(d));
    CUDA_OK(cudaFree((void *)row.x));
    CUDA_OK(cudaFree((void *)row.premul));
    free(x), free(premul), free(codes), free(got);
}

void check_rowops(tally *t)
{
    static const int widths[] = {512, 1408, 4096, 11008, 14336, 28672};
    static const int rows[] = {1, 3, 129, 600}; /* many rows: fewer threads for each */
    static const fl_cuda_grid grids[] = {
        {4, false, 1, 1}, {4, true, 0.9f, 0.95f}, {8, false, 0.9f, 1}, {8, true, 1, 1}};
    for (size_t w = 0; w < FL_COUNT(widths); w++)
        for (size_t r = 0; r < FL_COUNT(rows); r++) {
            const int n = widths[w], M = rows[r];
            if (M > 129 && n > 4096) continue;
            check_norm(t, M, n, w % 2, r % 2);
            check_norm(t, M, n, !(w % 2), r % 2);
            check_silu(t, M, n);
            check_embed(t, M, n, r % 2);
            check_token(t, M, n, &grids[(r + w) % 4]);
            check_values(t, M, n, w % 2, r % 2, (r + w) % 2);
            check_values(t, M, n, !(w % 2), !(r % 2), (r + w) % 2);
            check_add(t, M, n);
            check_fixed(t, M, n, 0, r % 2, w % 2);
            check_fixed(t, M, n, 200, false, !(w % 2));
        }
    check_rope(t, 1, 32, 128, false);
    check_rope(t, 129, 8, 128, true);
    check_rope(t, 129, 7, 64, false);
}
