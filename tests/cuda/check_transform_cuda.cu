/* check_transform_cuda.cu - transform + quantise on the GPU against the CPU's reference rows.
 *
 *   check_transform            checks, then the whole bench
 *   check_transform --check    checks only
 *   check_transform --quick    both, under a minute
 *   check_transform --bench    bench only
 *
 * Random near-normal rows with a few loud channels, random factors, outputs in poisoned
 * buffers with spare rows and columns. 4-bit codes may differ from the CPU's in one of 10,000
 * (8-bit ones, whose borders lie 17 times as dense, in one of 600) and by one step, scales by
 * 1e-3; static codes in nothing.
 * SPDX-License-Identifier: MIT */
#include "check_transform_cuda.h"

#include <math.h>
#include <string.h>

typedef enum front { BARE, BF16, F32, NORM_BF16, NORM_F32, SILU, N_FRONTS } front;

enum { FEW = 3 }; /* a small problem's share may be less than one code */

static const char *const front_names[] = {"bf16",      "bf16*premul", "f32*premul",
                                          "norm bf16", "norm f32",    "silu*up"};

typedef struct counts {
    int64_t codes, differ, far, broken; /* broken: sums, zero points, padding, poison */
    double scale_error;
} counts;

typedef struct problem {
    int n1, n2, n, M, stride; /* stride: every how many rows the host checks */
    int64_t ldx, ld;
    float *x, *up, *gain, *premul, *left, *right; /* host */
    void *d_x32, *d_x16, *d_up, *d_gain, *d_premul, *d_factors;
    uint8_t *d_out;
    size_t out_bytes;
} problem;

static void problem_init(problem *p, int n1, int n2, int M, uint64_t *seed)
{
    memset(p, 0, sizeof *p);
    p->n1 = n1, p->n2 = n2, p->n = n1 * n2, p->M = M;
    p->stride = M > 100 ? FL_MAX(1, (int)((int64_t)M * p->n * (n1 + n2) / 200000000)) : 1;
    p->ldx = (p->n + 7) / 8 * 8 + 16;
    p->ld = (p->n + 63) / 64 * 64 + 64;
    const size_t n_x = (size_t)M * p->ldx;
    p->x = random_floats(n_x, 1, 0, seed);
    p->up = random_floats(n_x, 1, 0, seed);
    for (size_t i = 0; i < n_x; i++)
        if (i % 97 == 0) p->x[i] *= 20;
    p->gain = random_floats(p->n, 0.2f, 1, seed);
    p->premul = random_floats(p->n, 0.2f, 1, seed);
    p->left = random_floats((size_t)n1 * n1, 1 / sqrtf((float)n1), 0, seed);
    p->right = random_floats((size_t)n2 * n2, 1 / sqrtf((float)n2), 0, seed);
    if (M > 1) memset(p->x, 0, p->ldx * sizeof *p->x); /* a row of zeros */
    uint16_t *x16 = to_bf16(p->x, n_x), *up16 = to_bf16(p->up, n_x);
    void *packed = malloc(fl__cuda_transform_bytes(n1, n2));
    fl__cuda_transform_pack(packed, n1, n2, p->left, p->right);
    p->d_x32 = gpu_copy(p->x, n_x * 4);
    p->d_x16 = gpu_copy(x16, n_x * 2);
    p->d_up = gpu_copy(up16, n_x * 2);
    p->d_gain = gpu_copy(p->gain, p->n * sizeof(float));
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
    void *device[] = {p->d_x32,    p->d_x16,     p->d_up, p->d_gain,
                      p->d_premul, p->d_factors, p->d_out};
    void *host[] = {p->x, p->up, p->gain, p->premul, p->left, p->right};
    for (size_t i = 0; i < FL_COUNT(device); i++) CUDA_OK(cudaFree(device[i]));
    for (size_t i = 0; i < FL_COUNT(host); i++) free(host[i]);
}

/* The row that the front gives, float32, before premul. */
static void host_row(float *v, const problem *p, front f, int m)
{
    const float *x = p->x + m * p->ldx;
    const bool f32 = f == F32 || f == NORM_F32;
    double squares = 0;
    for (int c = 0; c < p->n; c++) {
        v[c] = f32 ? x[c] : bf16_to(bf16_of(x[c]));
        squares += (double)v[c] * v[c];
        if (f == SILU) v[c] = v[c] / (1.0f + expf(-v[c])) * p->up[m * p->ldx + c];
    }
    if (f != NORM_BF16 && f != NORM_F32) return;
    const float factor = (float)(1 / sqrt(squares / p->n + 1e-5));
    for (int c = 0; c < p->n; c++) v[c] = v[c] * factor * p->gain[c];
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

static void compare_row(counts *k, const problem *p, const uint8_t *out, const int8_t *codes,
                        float scale, int zero, int m)
{
    const size_t rows = (size_t)p->M + 2;
    const int8_t *got = (const int8_t *)out + m * p->ld;
    int32_t sum, got_sum, got_zero;
    float got_scale;
    memcpy(&got_sum, out + rows * p->ld + 4 * m, 4);
    memcpy(&got_scale, out + rows * p->ld + 4 * rows + 4 * m, 4);
    memcpy(&got_zero, out + rows * p->ld + 8 * rows + 4 * m, 4);
    sum = 0;
    for (int c = 0; c < p->n; c++) {
        const int step = abs(got[c] - got_zero - (codes[c] - zero));
        sum += got[c];
        k->differ += step > 0;
        k->far += step > 1;
    }
    k->codes += p->n;
    for (int64_t c = p->n; c < p->ld; c++) k->broken += got[c] != 0;
    k->broken += sum != got_sum;
    k->broken += abs(got_zero - zero) > 1;
    k->scale_error = fmax(k->scale_error, fabs((double)got_scale / scale - 1));
}

static void compare(counts *k, const problem *p, front f, const fl_cuda_grid *grid)
{
    uint8_t *out = (uint8_t *)malloc(p->out_bytes);
    float *v = (float *)malloc(p->n * sizeof *v), *y = (float *)malloc(p->n * sizeof *v);
    float *scratch = (float *)malloc(2 * p->n * sizeof *v);
    int8_t *codes = (int8_t *)malloc(p->ld);
    fl_transform t = {};
    fl_quantize_token spec = {};
    const size_t rows = (size_t)p->M + 2;
    t.n1 = p->n1, t.n2 = p->n2, t.left = p->left, t.right = p->right;
    spec.n_channels = p->n, spec.ld = (int)p->ld, spec.bits = grid->bits;
    spec.asymmetric = grid->asymmetric;
    spec.clip_max = grid->clip_max, spec.clip_min = grid->clip_min;
    memset(k, 0, sizeof *k);
    CUDA_OK(cudaMemcpy(out, p->d_out, p->out_bytes, cudaMemcpyDeviceToHost));
    for (int m = 0; m < p->M;
         m += m + p->stride < p->M || m == p->M - 1 ? p->stride : p->M - 1 - m) {
        int32_t sum, zero;
        float scale;
        host_row(v, p, f, m);
        fl__transform_ref(y, v, &t, f == BARE ? NULL : p->premul, scratch);
        fl__quantize_token_ref(codes, &sum, &scale, &zero, y, &spec);
        compare_row(k, p, out, codes, scale, zero, m);
    }
    for (int64_t i = p->M * p->ld; i < (int64_t)rows * p->ld; i++) k->broken += out[i] != 0xa5;
    for (int part = 0; part < 3; part++)
        for (int i = 0; i < 8; i++)
            k->broken += out[rows * p->ld + 4 * (part * rows + p->M) + i] != 0xa5;
    free(out);
    free(v);
    free(y);
    free(scratch);
    free(codes);
}

static void check_front(tally *t, const problem *p, front f, const fl_cuda_grid *grid, int n_sm)
{
    const fl_cuda_transform transform = {p->n1, p->n2, p->d_factors};
    const fl_cuda_codes y = out_of(p);
    fl_cuda_row x = {};
    fl_err err = {};
    counts k;
    x.x_f32 = f == F32 || f == NORM_F32;
    x.x = x.x_f32 ? p->d_x32 : p->d_x16;
    x.ldx = p->ldx;
    x.eps = 1e-5f;
    if (f == SILU) x.up = (const uint16_t *)p->d_up;
    if (f == NORM_BF16 || f == NORM_F32) x.gain = (const float *)p->d_gain;
    if (f != BARE) x.premul = (const float *)p->d_premul;
    CUDA_OK(cudaMemset(p->d_out, 0xa5, p->out_bytes));
    if (fl__cuda_transform_quantize(&y, &x, p->M, &transform, grid, n_sm, 0, &err) != FL_OK) {
        printf("launch failed: %s\n", err.text);
        exit(1);
    }
    CUDA_OK(cudaDeviceSynchronize());
    compare(&k, p, f, grid);
    const int64_t one_in = grid->bits == 4 ? 10000 : 600; /* steps are 17 times finer */
    t->codes[grid->bits] += k.codes;
    t->differ[grid->bits] += k.differ;
    const bool ok = (k.differ - FEW) * one_in <= k.codes && k.far == 0 && k.broken == 0 &&
                    k.scale_error < 1e-3;
    printf("%s %5d x %3dx%-3d %-11s %d bits %-4s differ %lld of %lld (far %lld, broken %lld), "
           "scale %.1e\n",
           ok ? "ok  " : "FAIL", p->M, p->n1, p->n2, front_names[f], grid->bits,
           grid->asymmetric ? "asym" : "sym", (long long)k.differ, (long long)k.codes,
           (long long)k.far, (long long)k.broken, k.scale_error);
    fflush(stdout);
    ok ? t->passed++ : t->failed++;
}

static void check_transforms(tally *t, int n_sm, bool quick)
{
    static const int shapes[][2] = {{64, 64}, {64, 128}, {112, 128}, {86, 128}, {16, 32},
                                    {32, 44}, {32, 64},  {7, 13},    {20, 36},  {128, 224}};
    static const int rows[] = {1, 3, 129, 1000};
    static const fl_cuda_grid grids[] = {
        {4, false, 1, 1}, {4, true, 0.9f, 0.95f}, {8, false, 0.9f, 1}, {8, true, 1, 1}};
    uint64_t seed = 12345;
    for (size_t s = 0; s < FL_COUNT(shapes); s++)
        for (size_t r = 0; r < FL_COUNT(rows); r++) {
            const int n1 = shapes[s][0], n2 = shapes[s][1];
            problem p;
            if (n1 * n2 > 20000 && rows[r] > 3) continue;
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
            printf("transform, %d bits: %lld of %lld codes differ: %.2f of 10,000\n", bits,
                   (long long)t.differ[bits], (long long)t.codes[bits],
                   1e4 * (double)t.differ[bits] / (double)t.codes[bits]);
    if (strcmp(mode, "--check") != 0) bench_transform(device.multiProcessorCount, quick);
    printf("%d passed, %d failed, 0 skipped\n", t.passed, t.failed);
    return t.failed > 0;
}
