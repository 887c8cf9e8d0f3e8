/* check_transform_cuda.cu - transform + quantise on the GPU against exact sums.
 *
 *   check_transform            checks, then the whole bench
 *   check_transform --check    checks only
 *   check_transform --quick    both, under a minute
 *   check_transform --bench    bench only
 *
 * Random near-normal rows with a few loud channels, random factors, outputs in poisoned
 * buffers with spare rows and columns. What the GPU may answer is derived (transform_bound.h):
 * scales within an interval, each code one of the integers that its own interval allows, static
 * codes and sums of codes exactly.
 * SPDX-License-Identifier: MIT */
#include "check_transform_cuda.h"

#include "transform_bound.h"

#include <math.h>
#include <string.h>

typedef enum front {
    BARE,
    BF16,
    F32,
    NORM_BF16,
    NORM_F32,
    SILU,
    LAYER_F32, /* behind a sum */
    RELU_BF16,
    N_FRONTS
} front;

static const char *const front_names[] = {"bf16",           "bf16*premul", "f32*premul",
                                          "norm bf16",      "norm f32",    "silu*up",
                                          "add, layer f32", "relu bf16"};

typedef struct counts {
    int64_t codes, differ; /* from the CPU's */
    int64_t open;          /* codes that may be one of two */
    int64_t wrong, broken; /* outside of what is allowed; sums, padding, poison */
    int wrong_scales;
    double scale_error; /* to the CPU's */
} counts;

typedef struct problem {
    int n1, n2, n, M, stride; /* stride: every how many rows the host checks */
    int64_t ldx, ld;
    float *x, *up, *gain, *bias, *premul, *left, *right; /* host */
    void *d_kept32, *d_bias, *d_x32, *d_x16, *d_up, *d_gain, *d_premul, *d_factors;
    uint8_t *d_out;
    size_t out_bytes;
} problem;

static void problem_init(problem *p, int n1, int n2, int M, uint64_t *seed)
{
    uint64_t bias_seed = 77;
    memset(p, 0, sizeof *p);
    p->n1 = n1, p->n2 = n2, p->n = n1 * n2, p->M = M;
    p->stride = M > 100 ? FL_MAX(1, (int)((int64_t)M * p->n * (n1 + n2) / 15000000)) : 1;
    p->ldx = (p->n + 7) / 8 * 8 + 16;
    p->ld = (p->n + 63) / 64 * 64 + 64;
    const size_t n_x = (size_t)M * p->ldx;
    p->x = random_floats(n_x, 1, 0, seed);
    p->up = random_floats(n_x, 1, 0, seed);
    for (size_t i = 0; i < n_x; i++)
        if (i % 97 == 0) p->x[i] *= 20;
    p->gain = random_floats(p->n, 0.2f, 1, seed);
    p->bias = random_floats(p->n, 0.5f, 0, &bias_seed);
    p->premul = random_floats(p->n, 0.2f, 1, seed);
    p->left = random_floats((size_t)n1 * n1, 1 / sqrtf((float)n1), 0, seed);
    p->right = random_floats((size_t)n2 * n2, 1 / sqrtf((float)n2), 0, seed);
    if (M > 1) memset(p->x, 0, p->ldx * sizeof *p->x); /* a row of zeros */
    uint16_t *x16 = to_bf16(p->x, n_x), *up16 = to_bf16(p->up, n_x);
    void *packed = malloc(fl__cuda_transform_bytes(n1, n2));
    fl__cuda_transform_pack(packed, n1, n2, p->left, p->right);
    p->d_kept32 = gpu_copy(p->x, n_x * 4);
    p->d_x32 = gpu_copy(p->x, n_x * 4);
    p->d_x16 = gpu_copy(x16, n_x * 2);
    p->d_up = gpu_copy(up16, n_x * 2);
    p->d_gain = gpu_copy(p->gain, p->n * sizeof(float));
    p->d_bias = gpu_copy(p->bias, p->n * sizeof(float));
    p->d_premul = gpu_copy(p->premul, p->n * sizeof(float));
    p->d_factors = gpu_copy(packed, fl__cuda_transform_bytes(n1, n2));
    for (size_t i = 0; i < n_x; i++) p->up[i] = bf16_to(up16[i]);
    for (int i = 0; i < n1 * n1; i++) p->left[i] = bf16_to(bf16_of(p->left[i]));
    for (int i = 0; i < n2 * n2; i++) p->right[i] = bf16_to(bf16_of(p->right[i]));
    p->out_bytes = (size_t)(M + 2) * (p->ld + 12);
    p->d_out = (uint8_t *)gpu_alloc(p->out_bytes);
    free(x16);
    free(up16);
    free(packed);
}

static void problem_fini(problem *p)
{
    void *device[] = {p->d_x32,     p->d_x16, p->d_up,     p->d_gain, p->d_premul,
                      p->d_factors, p->d_out, p->d_kept32, p->d_bias};
    void *host[] = {p->x, p->up, p->gain, p->bias, p->premul, p->left, p->right};
    for (size_t i = 0; i < FL_COUNT(device); i++) CUDA_OK(cudaFree(device[i]));
    for (size_t i = 0; i < FL_COUNT(host); i++) free(host[i]);
}

static bool is_f32(front f)
{
    return f == F32 || f == NORM_F32 || f == LAYER_F32;
}

/* Row m as the front gives it, premul included: exact, and how far float32 may be off. */
static void host_row(double *v, double *e, const problem *p, front f, int m)
{
    const float *x = p->x + m * p->ldx, *up = p->up + m * p->ldx;
    const double unit = 1.0 / (1 << 24); /* half a unit of float32, relative */
    double mean = 0, squares = 0, magnitude = 0;
    for (int c = 0; c < p->n; c++) {
        v[c] = is_f32(f) ? x[c] : bf16_to(bf16_of(x[c]));
        e[c] = 0;
        if (f == LAYER_F32) v[c] = (float)v[c] + up[c];
        mean += v[c] / p->n;
        magnitude += fabs(v[c]) / p->n;
    }
    if (f != LAYER_F32) mean = 0;
    for (int c = 0; c < p->n; c++) squares += (v[c] - mean) * (v[c] - mean) / p->n;
    /* the longest chain of one sum, over the row's squares or values: no kernel gives a thread
     * more than 64 of them; then come lanes and warps */
    const double terms = 64 + 20;
    const double factor = 1 / sqrt(squares + 1e-5f);
    for (int c = 0; c < p->n; c++) {
        if (f == SILU) {
            const double exp_part = 1 / (1 + exp(v[c])); /* of the error of exp(-x) */
            v[c] = v[c] / (1 + exp(-v[c])) * up[c];
            e[c] = fabs(v[c]) * unit * (8 + exp_part * 2 * (3 + 1.2 * fabs(x[c])));
        }
        if (f == NORM_BF16 || f == NORM_F32 || f == LAYER_F32) {
            const double shift = f == LAYER_F32 ? terms * unit * magnitude : 0;
            v[c] = (v[c] - mean) * factor * p->gain[c];
            e[c] = fabs(v[c]) * unit * (terms / 2 + 6) + 2 * shift * factor * fabs(p->gain[c]);
        }
        if (f == LAYER_F32) {
            v[c] += p->bias[c];
            e[c] += fabs(v[c]) * unit;
        }
        if (f == RELU_BF16) v[c] = fmax(v[c], 0);
        if (f != BARE) {
            v[c] *= p->premul[c];
            e[c] = e[c] * fabs(p->premul[c]) + fabs(v[c]) * unit;
        }
    }
}

static fl_cuda_codes out_of(const problem *p)
{
    uint8_t *o = p->d_out;
    const size_t rows = (size_t)p->M + 2;
    fl_cuda_codes y = {};
    y.codes = (int8_t *)o;
    y.ld = p->ld;
    y.x_sum = (int32_t *)(o + rows * p->ld);
    y.x_scale = (float *)(o + rows * p->ld + 4 * rows);
    y.x_zero = (int32_t *)(o + rows * p->ld + 8 * rows);
    return y;
}

/* One row of the GPU's: got, its sum, scale and zero point. */
static void compare_row(counts *k, const problem *p, const transform_bound *b,
                        const fl_cuda_grid *grid, const uint8_t *out, int m)
{
    const size_t rows = (size_t)p->M + 2;
    const int8_t *got = (const int8_t *)out + m * p->ld;
    int32_t sum, got_sum, got_zero;
    float got_scale;
    memcpy(&got_sum, out + rows * p->ld + 4 * m, 4);
    memcpy(&got_scale, out + rows * p->ld + 4 * rows + 4 * m, 4);
    memcpy(&got_zero, out + rows * p->ld + 8 * rows + 4 * m, 4);
    sum = 0;
    for (int c = 0; c < p->n; c++) sum += got[c];
    if (!transform_bound_scale(b, grid, got_scale, got_zero)) k->wrong_scales++;
    for (int c = 0; c < p->n; c++) {
        int lo, hi;
        transform_bound_code(&lo, &hi, b, grid, got_scale, got_zero, c);
        k->wrong += got[c] < lo || got[c] > hi;
        k->open += lo != hi;
    }
    k->codes += p->n;
    for (int64_t c = p->n; c < p->ld; c++) k->broken += got[c] != 0;
    k->broken += sum != got_sum;
}

/* How the CPU's reference row differs, for the record. */
static void count_differences(counts *k, const problem *p, const transform_bound *b,
                              const fl_cuda_row *row, const double *v, const fl_cuda_grid *grid,
                              const uint8_t *out, int m)
{
    const size_t rows = (size_t)p->M + 2;
    const int8_t *got = (const int8_t *)out + m * p->ld;
    float *x = (float *)malloc(p->n * sizeof *x), *y = (float *)malloc(p->n * sizeof *y);
    float *scratch = (float *)malloc(2 * p->n * sizeof *x);
    int8_t *codes = (int8_t *)malloc(p->ld);
    fl_transform t = {};
    fl_quantize_token spec = {};
    int32_t sum, zero, got_zero;
    float scale, got_scale;
    t.n1 = p->n1, t.n2 = p->n2, t.left = p->left, t.right = p->right;
    spec.n_channels = p->n, spec.ld = (int)p->ld, spec.bits = grid->bits;
    spec.asymmetric = grid->asymmetric;
    spec.clip_max = grid->clip_max, spec.clip_min = grid->clip_min;
    for (int c = 0; c < p->n; c++) x[c] = (float)v[c];
    fl__transform_ref(y, x, &t, NULL, scratch);
    fl__quantize_token_ref(codes, &sum, &scale, &zero, y, &spec);
    memcpy(&got_scale, out + rows * p->ld + 4 * rows + 4 * m, 4);
    memcpy(&got_zero, out + rows * p->ld + 8 * rows + 4 * m, 4);
    for (int c = 0; c < p->n; c++) k->differ += got[c] - got_zero != codes[c] - zero;
    k->scale_error = fmax(k->scale_error, fabs((double)got_scale / scale - 1));
    if (fabs((double)got_scale / scale - 1) > 2e-5) {
        printf("     row %d: scale %.8g, the CPU's %.8g: %.1e\n", m, got_scale, scale,
               (double)got_scale / scale - 1);
        explain_scale(b, row, v, m);
    }
    free(x);
    free(y);
    free(scratch);
    free(codes);
}

static void compare(counts *k, const problem *p, front f, const fl_cuda_row *row,
                    const fl_cuda_grid *grid)
{
    uint8_t *out = (uint8_t *)malloc(p->out_bytes);
    double *v = (double *)malloc(p->n * sizeof *v), *e = (double *)malloc(p->n * sizeof *v);
    const size_t rows = (size_t)p->M + 2;
    transform_bound b;
    memset(k, 0, sizeof *k);
    transform_bound_init(&b, p->n1, p->n2, p->left, p->right);
    CUDA_OK(cudaMemcpy(out, p->d_out, p->out_bytes, cudaMemcpyDeviceToHost));
    for (int m = 0; m < p->M;
         m += m + p->stride < p->M || m == p->M - 1 ? p->stride : p->M - 1 - m) {
        host_row(v, e, p, f, m);
        transform_bound_row(&b, v, e);
        compare_row(k, p, &b, grid, out, m);
        count_differences(k, p, &b, row, v, grid, out, m);
    }
    for (int64_t i = p->M * p->ld; i < (int64_t)rows * p->ld; i++) k->broken += out[i] != 0xa5;
    for (int part = 0; part < 3; part++)
        for (int i = 0; i < 8; i++)
            k->broken += out[rows * p->ld + 4 * (part * rows + p->M) + i] != 0xa5;
    transform_bound_fini(&b);
    free(out);
    free(v);
    free(e);
}

/* x + add in memory. */
static int64_t check_sum(const problem *p)
{
    const size_t n_x = (size_t)p->M * p->ldx;
    float *x = (float *)malloc(n_x * 4);
    int64_t wrong = 0;
    CUDA_OK(cudaMemcpy(x, p->d_x32, n_x * 4, cudaMemcpyDeviceToHost));
    for (size_t i = 0; i < n_x; i++) {
        const bool inside = (int64_t)i % p->ldx < p->n;
        wrong += x[i] != (inside ? p->x[i] + p->up[i] : p->x[i]);
    }
    CUDA_OK(cudaMemcpy(p->d_x32, p->d_kept32, n_x * 4, cudaMemcpyDeviceToDevice));
    free(x);
    return wrong;
}

static void check_front(tally *t, const problem *p, front f, const fl_cuda_grid *grid, int n_sm)
{
    const fl_cuda_transform transform = {p->n1, p->n2, p->d_factors};
    const fl_cuda_codes y = out_of(p);
    fl_cuda_row x = {};
    fl_err err = {};
    counts k;
    void *dense = NULL;
    x.x_f32 = is_f32(f);
    x.x = x.x_f32 ? p->d_x32 : p->d_x16;
    x.ldx = p->ldx;
    x.eps = 1e-5f;
    if (f == SILU) x.up = (const uint16_t *)p->d_up;
    if (f == NORM_BF16 || f == NORM_F32 || f == LAYER_F32) x.gain = (const float *)p->d_gain;
    if (f != BARE) x.premul = (const float *)p->d_premul;
    if (f == LAYER_F32) {
        x.layer_norm = true;
        x.bias = (const float *)p->d_bias;
        x.add = p->d_up;
        x.ld_add = p->ldx;
    }
    x.relu = f == RELU_BF16;
    if (f == BARE && p->M % 2 == 1) { /* dense rows, which come by tensor map */
        dense = gpu_alloc(2 * (size_t)p->M * p->n);
        CUDA_OK(cudaMemcpy2D(dense, 2 * p->n, p->d_x16, 2 * p->ldx, 2 * p->n, p->M,
                             cudaMemcpyDeviceToDevice));
        x.x = dense;
        x.ldx = p->n;
    }
    CUDA_OK(cudaMemset(p->d_out, 0xa5, p->out_bytes));
    if (fl__cuda_transform_quantize(&y, &x, p->M, &transform, grid, n_sm, 0, &err) != FL_OK) {
        printf("launch failed: %s\n", err.text);
        exit(1);
    }
    CUDA_OK(cudaDeviceSynchronize());
    compare(&k, p, f, &x, grid);
    if (f == LAYER_F32) k.broken += check_sum(p);
    CUDA_OK(cudaFree(dense));
    t->codes[grid->bits] += k.codes;
    t->differ[grid->bits] += k.differ;
    t->open[grid->bits] += k.open;
    /* a check that allows two codes everywhere would say nothing */
    const bool ok =
        k.wrong == 0 && k.broken == 0 && k.wrong_scales == 0 && k.open * 5 <= k.codes;
    printf("%s %5d x %3dx%-3d %-14s %d bits %-4s wrong %lld of %lld, scales %d, broken %lld; "
           "open %lld; to the CPU: %lld codes, scale %.1e\n",
           ok ? "ok  " : "FAIL", p->M, p->n1, p->n2, front_names[f], grid->bits,
           grid->asymmetric ? "asym" : "sym", (long long)k.wrong, (long long)k.codes,
           k.wrong_scales, (long long)k.broken, (long long)k.open, (long long)k.differ,
           k.scale_error);
    fflush(stdout);
    ok ? t->passed++ : t->failed++;
}

static void check_transforms(tally *t, int n_sm, bool quick)
{
    static const int shapes[][2] = {{64, 64}, {64, 128},  {112, 128}, {86, 128},
                                    {16, 32}, {32, 44},   {32, 64},   {7, 13},
                                    {20, 36}, {128, 224}, {96, 160}};
    static const int rows[] = {1, 3, 129, 700, 2500}; /* many: rings wrap round */
    static const fl_cuda_grid grids[] = {
        {4, false, 1, 1}, {4, true, 0.9f, 0.95f}, {8, false, 0.9f, 1}, {8, true, 1, 1}};
    uint64_t seed = 12345;
    for (size_t s = 0; s < FL_COUNT(shapes); s++)
        for (size_t r = 0; r < FL_COUNT(rows); r++) {
            const int n1 = shapes[s][0], n2 = shapes[s][1];
            problem p;
            if (!fl__cuda_transform_is_fast(n1, n2) && rows[r] > (n1 > 64 ? 3 : 700)) continue;
            if (rows[r] > 1000 && n1 * n2 != 4096) continue;
            if (quick && rows[r] > 500 && n1 != 64) continue;
            problem_init(&p, n1, n2, rows[r], &seed);
            for (int f = 0; f < N_FRONTS; f++)
                check_front(t, &p, (front)f, &grids[(f + r + s) % 4], n_sm);
            problem_fini(&p);
        }
}

/* ---- static ------------------------------------------------------------------------------ */

static void check_static(tally *t, int n, int n_extra, int M, bool f32, int n_sm)
{
    uint64_t seed = 99 + n + M;
    const int64_t ldx = (n + 7) / 8 * 8, ld = (n + n_extra + 63) / 64 * 64;
    const size_t n_x = (size_t)M * ldx, rows = (size_t)M + 2;
    float *x = random_floats(n_x, 30, 0, &seed), *premul = random_floats(n, 0.2f, 1, &seed);
    float *lo = (float *)malloc(4 * n), *hi = (float *)malloc(4 * n);
    int32_t *extra = (int32_t *)malloc(8 * (n_extra + 1));
    for (int c = 0; c < n; c++) {
        hi[c] = 7.0f * (float)(1 + next_random(&seed) % 18);
        lo[c] = c % 5 ? -hi[c] : 0;
    }
    for (int e = 0; e < n_extra; e++) {
        extra[e] = (int32_t)(next_random(&seed) % n);
        extra[n_extra + e] = 7 * (1 + e % 4);
    }
    if (n_x > 20) x[17] = NAN;
    uint16_t *x16 = to_bf16(x, n_x);
    x16[17] = 0x7fc0;
    int8_t *d_codes = (int8_t *)gpu_alloc(rows * ld + 4 * rows), *codes = (int8_t *)malloc(ld);
    int8_t *got = (int8_t *)malloc(rows * ld + 4 * rows);
    void *device[] = {f32 ? gpu_copy(x, 4 * n_x) : gpu_copy(x16, 2 * n_x),
                      gpu_copy(premul, 4 * n),
                      gpu_copy(lo, 4 * n),
                      gpu_copy(hi, 4 * n),
                      gpu_copy(extra, 8 * (n_extra + 1)),
                      d_codes};
    fl_cuda_row row = {};
    fl_cuda_codes y = {};
    fl_err err = {};
    const int first = n_extra ? 7 : 127;
    const fl_cuda_quantize_static spec = {n,
                                          n_extra,
                                          0.73f,
                                          n_extra ? 3 : 0,
                                          -first,
                                          first,
                                          7,
                                          (float *)device[2],
                                          (float *)device[3],
                                          (int32_t *)device[4],
                                          (int32_t *)device[4] + n_extra};
    const fl_quantize_static ref = {
        n, n_extra, (int)ld, 0.73f, spec.zero, -first,         first,
        7, premul,  lo,      hi,    extra,     extra + n_extra};
    row.x = device[0], row.ldx = ldx, row.x_f32 = f32, row.premul = (float *)device[1];
    y.codes = d_codes, y.ld = ld, y.x_sum = (int32_t *)(d_codes + rows * ld);
    CUDA_OK(cudaMemset(d_codes, 0xa5, rows * ld + 4 * rows));
    if (fl__cuda_quantize_static(&y, &row, M, &spec, n_sm, 0, &err) != FL_OK) {
        printf("launch failed: %s\n", err.text);
        exit(1);
    }
    CUDA_OK(cudaMemcpy(got, d_codes, rows * ld + 4 * rows, cudaMemcpyDeviceToHost));
    int64_t wrong = 0;
    float *v = (float *)malloc(4 * ldx);
    for (int m = 0; m < M; m++) {
        int32_t sum;
        for (int c = 0; c < n; c++) v[c] = f32 ? x[m * ldx + c] : bf16_to(x16[m * ldx + c]);
        fl__quantize_static_ref(codes, &sum, v, &ref);
        for (int64_t c = 0; c < ld; c++) wrong += codes[c] != got[m * ld + c];
        wrong += memcmp(&sum, got + rows * ld + 4 * m, 4) != 0;
    }
    for (int64_t i = M * ld; i < (int64_t)rows * ld; i++) wrong += (uint8_t)got[i] != 0xa5;
    printf("%s static %d x %d + %d %s: %lld wrong\n", wrong ? "FAIL" : "ok  ", M, n, n_extra,
           f32 ? "f32" : "bf16", (long long)wrong);
    wrong ? t->failed++ : t->passed++;
    for (size_t i = 0; i < FL_COUNT(device); i++) CUDA_OK(cudaFree(device[i]));
    void *host[] = {x, premul, lo, hi, extra, x16, codes, got, v};
    for (size_t i = 0; i < FL_COUNT(host); i++) free(host[i]);
}

static void check_statics(tally *t, int n_sm)
{
    static const int sizes[][2] = {{4096, 0},  {14336, 0}, {512, 0},    {100, 0},
                                   {4100, 96}, {300, 300}, {20000, 77}, {28672, 0}};
    static const int rows[] = {1, 3, 129, 1000};
    for (size_t s = 0; s < FL_COUNT(sizes); s++)
        for (size_t r = 0; r < FL_COUNT(rows); r++)
            check_static(t, sizes[s][0], sizes[s][1], rows[r], (r + s) % 2, n_sm);
}

int main(int argc, char **argv)
{
    const char *mode = argc > 1 ? argv[1] : "";
    const bool quick = strcmp(mode, "--quick") == 0;
    cudaDeviceProp device;
    tally t = {};
    CUDA_OK(cudaGetDeviceProperties(&device, 0));
    printf("%s, %d SMs\n", device.name, device.multiProcessorCount);
    if (strcmp(mode, "--bench") != 0) {
        check_statics(&t, device.multiProcessorCount);
        check_rowops(&t);
        check_transforms(&t, device.multiProcessorCount, quick);
    }
    for (int bits = 4; bits <= 8; bits += 4)
        if (t.codes[bits] > 0)
            printf("transform, %d bits: %lld of %lld codes differ from the CPU's (%.2f of "
                   "10,000), %lld might\n",
                   bits, (long long)t.differ[bits], (long long)t.codes[bits],
                   1e4 * (double)t.differ[bits] / (double)t.codes[bits],
                   (long long)t.open[bits]);
    if (strcmp(mode, "--check") != 0) bench_transform(device.multiProcessorCount, quick);
    printf("%d passed, %d failed, 0 skipped\n", t.passed, t.failed);
    return t.failed > 0;
}
