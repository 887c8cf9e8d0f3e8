/* check_gemm_cuda.cu - the GPU's integer GEMMs against plain sums, bit for bit; their bench.
 *
 *   check_gemm            checks, then the whole bench
 *   check_gemm --check    checks only
 *   check_gemm --quick    both, under a minute
 *   check_gemm --prefill, --decode   checks of these kernels only
 *   check_gemm --bench    bench only
 *   check_gemm --plans    bench with every plan of the prefill kernel
 *   check_gemm --bench-decode        bench of up to 16 rows only
 *
 * Sums come from a kernel of one dp4a loop per output, itself compared with a scalar loop on
 * the host at random places; scales are applied on the host in the contract's order: f32 and
 * bf16 outputs must agree in every bit. float32 with scales of 1 shows the sums themselves
 * (below 2^24). Outputs lie in poisoned buffers with spare rows and columns.
 * SPDX-License-Identifier: MIT */
#include "cuda_test.h"

#include <string.h>

typedef struct problem {
    int M, N, K, K_pad, bits;
    int64_t ldx, ldy;
    int8_t *codes, *x; /* host [N, K_pad], [M, ldx] */
    float *x_scale, *w_scale, *bias;
    int32_t *x_zero;
    int32_t *acc; /* host [M, N], sum over x * w */
    int32_t *col_sum;
    fl_cuda_weight w;
    fl_cuda_gemm g; /* device pointers */
    size_t y_bytes;
    uint8_t *y_host;
} problem;

typedef struct tally {
    int passed, failed;
} tally;

__global__ void sums_kernel(int32_t *acc, const int8_t *x, const int8_t *codes, int M, int N,
                            int K_pad, int64_t ldx)
{
    const int n = blockIdx.x * blockDim.x + threadIdx.x;
    const int m = blockIdx.y * blockDim.y + threadIdx.y;
    if (m >= M || n >= N) return;
    const int *a = (const int *)(x + m * ldx), *b = (const int *)(codes + (int64_t)n * K_pad);
    int sum = 0;
    for (int k = 0; k < K_pad / 4; k++) sum = __dp4a(a[k], b[k], sum);
    acc[(int64_t)m * N + n] = sum;
}

static void fill_random(problem *p, uint64_t *seed)
{
    for (int64_t i = 0; i < (int64_t)p->N * p->K_pad; i++) {
        const int8_t v = (int8_t)next_random(seed);
        p->codes[i] = i % p->K_pad >= p->K ? 0 : p->bits == 4 ? (int8_t)(v >> 4) : v;
    }
    for (int64_t i = 0; i < p->M * p->ldx; i++)
        p->x[i] = i % p->ldx >= p->K ? 0 : (int8_t)next_random(seed);
    /* extremes: a row of x and a channel of the largest magnitudes */
    for (int k = 0; k < p->K; k++) {
        p->x[(p->M - 1) * p->ldx + k] = -128;
        p->codes[k] = p->bits == 4 ? -8 : -128;
        if (p->K > 8192 && p->bits == 8) p->codes[k] = k % 2 ? 127 : -128;
    }
    for (int n = 0; n < p->N; n++) {
        p->w_scale[n] = 1e-3f * (float)(1 + next_random(seed) % 1000);
        p->bias[n] = 0.01f * (float)(int)(next_random(seed) % 20001) - 100.0f;
    }
    for (int m = 0; m < p->M; m++) {
        p->x_scale[m] = 1e-3f * (float)(1 + next_random(seed) % 1000);
        p->x_zero[m] = (int)(next_random(seed) % 256) - 128;
    }
}

static void check_reference(const problem *p, uint64_t *seed)
{
    for (int i = 0; i < 64; i++) {
        const int m = (int)(next_random(seed) % p->M), n = (int)(next_random(seed) % p->N);
        int sum = 0;
        for (int k = 0; k < p->K; k++)
            sum += p->x[m * p->ldx + k] * p->codes[(int64_t)n * p->K_pad + k];
        if (sum != p->acc[(int64_t)m * p->N + n]) {
            printf("the reference sums are wrong at %d %d\n", m, n);
            exit(1);
        }
    }
}

static void make_sums(problem *p, int8_t *x, int8_t *codes)
{
    const size_t n_bytes = sizeof(int32_t) * (size_t)p->M * (size_t)p->N;
    int32_t *acc = (int32_t *)gpu_alloc(n_bytes);
    const dim3 block(32, 8), grid((p->N + 31) / 32, (p->M + 7) / 8);
    sums_kernel<<<grid, block>>>(acc, x, codes, p->M, p->N, p->K_pad, p->ldx);
    CUDA_OK(cudaMemcpy(p->acc, acc, n_bytes, cudaMemcpyDeviceToHost));
    CUDA_OK(cudaFree(acc));
}

/* The packed weight on the device, from codes without padding. */
static void make_weight(problem *p)
{
    const int N_pad = (p->N + 15) / 16 * 16;
    const size_t n_bytes = fl__cuda_weight_bytes(p->N, p->K, p->bits);
    uint8_t *packed = (uint8_t *)malloc(n_bytes);
    int8_t *tight = (int8_t *)malloc((size_t)p->N * p->K);
    p->col_sum = (int32_t *)malloc(sizeof(int32_t) * N_pad);
    for (int n = 0; n < p->N; n++)
        memcpy(tight + (size_t)n * p->K, p->codes + (size_t)n * p->K_pad, p->K);
    fl__cuda_weight_pack(packed, p->col_sum, tight, p->N, p->K, p->bits);
    p->w = {p->bits, p->N, p->K, N_pad, p->K_pad};
    p->w.data = (uint8_t *)gpu_copy(packed, n_bytes);
    p->w.col_sum = (int32_t *)gpu_copy(p->col_sum, sizeof(int32_t) * N_pad);
    free(packed);
    free(tight);
}

static void problem_init(problem *p, int M, int N, int K, int bits, int32_t *workspace,
                         uint64_t *seed)
{
    memset(p, 0, sizeof *p);
    p->M = M, p->N = N, p->K = K, p->bits = bits;
    p->K_pad = (K + 63) / 64 * 64;
    p->ldx = p->K_pad + 64;
    p->ldy = (N + 15) / 8 * 8;
    p->codes = (int8_t *)malloc((size_t)N * p->K_pad);
    p->x = (int8_t *)malloc((size_t)M * p->ldx);
    p->x_scale = (float *)malloc(sizeof(float) * M);
    p->x_zero = (int32_t *)malloc(sizeof(int32_t) * M);
    p->w_scale = (float *)malloc(sizeof(float) * N);
    p->bias = (float *)malloc(sizeof(float) * N);
    p->acc = (int32_t *)malloc(sizeof(int32_t) * (size_t)M * N);
    fill_random(p, seed);
    make_weight(p);
    int8_t *x = (int8_t *)gpu_copy(p->x, (size_t)M * p->ldx);
    int8_t *codes = (int8_t *)gpu_copy(p->codes, (size_t)N * p->K_pad);
    make_sums(p, x, codes);
    CUDA_OK(cudaFree(codes));
    check_reference(p, seed);
    p->g.x = x;
    p->g.ldx = p->ldx;
    p->g.x_scale = (float *)gpu_copy(p->x_scale, sizeof(float) * M);
    p->g.x_zero = (int32_t *)gpu_copy(p->x_zero, sizeof(int32_t) * M);
    p->g.w_scale = (float *)gpu_copy(p->w_scale, sizeof(float) * N);
    p->g.bias = (float *)gpu_copy(p->bias, sizeof(float) * N);
    p->g.w = &p->w;
    p->g.ldy = p->ldy;
    p->g.M = M;
    p->g.workspace = workspace;
    p->y_bytes = 4 * (size_t)(M + 2) * p->ldy;
    p->g.y = gpu_alloc(p->y_bytes);
    p->y_host = (uint8_t *)malloc(p->y_bytes);
}

static void problem_fini(problem *p)
{
    const void *device[] = {p->g.x,    p->g.x_scale, p->g.x_zero,  p->g.w_scale,
                            p->g.bias, p->w.data,    p->w.col_sum, p->g.y};
    void *host[] = {p->codes, p->x,   p->x_scale, p->x_zero, p->w_scale,
                    p->bias,  p->acc, p->col_sum, p->y_host};
    for (size_t i = 0; i < FL_COUNT(device); i++) CUDA_OK(cudaFree((void *)device[i]));
    for (size_t i = 0; i < FL_COUNT(host); i++) free(host[i]);
}

static uint16_t bf16_of(float f)
{
    uint32_t u;
    memcpy(&u, &f, sizeof u);
    return (uint16_t)((u + 0x7fff + (u >> 16 & 1)) >> 16);
}

/* Which scales, zero points and bias a run uses: 0 none (sums), 1 all, 2 one for all rows. */
static float expected(const problem *p, int m, int n, int mode)
{
    const int32_t acc = p->acc[(int64_t)m * p->N + n];
    if (mode == 0) return (float)acc;
    const int row = mode == 1 ? m : 0, channel = mode == 1 ? n : 0;
    const volatile float scale = p->x_scale[row] * p->w_scale[channel];
    const volatile float y = (float)(acc - p->x_zero[row] * p->col_sum[n]) * scale;
    return mode == 1 ? y + p->bias[n] : y;
}

/* Differences from what is expected, poison included; the first is printed. */
static int64_t differences(const problem *p, int mode, bool bf16, const char *name)
{
    const int width = bf16 ? 2 : 4;
    int64_t wrong = 0;
    for (int64_t m = 0; m < p->M + 2; m++)
        for (int64_t n = 0; n < p->ldy; n++) {
            const uint8_t *at = p->y_host + (m * p->ldy + n) * width;
            const float want = m < p->M && n < p->N ? expected(p, (int)m, (int)n, mode) : 0.0f;
            const uint16_t half = bf16_of(want);
            uint8_t bytes[4];
            memcpy(bytes, bf16 ? (const void *)&half : (const void *)&want, width);
            if (m >= p->M || n >= p->N) memset(bytes, 0xa5, sizeof bytes);
            if (memcmp(bytes, at, width) == 0) continue;
            if (wrong++ == 0) {
                float got;
                uint32_t word = 0;
                memcpy((uint8_t *)&word + 4 - width, at, width);
                memcpy(&got, &word, 4);
                printf("  %s [%d, %d, %d] at %lld %lld: want %.9g got %.9g\n", name, p->M, p->N,
                       p->K, (long long)m, (long long)n, want, got);
            }
        }
    return wrong;
}

static void check_run(const problem *p, gemm_kind kind, fl_cuda_gemm_plan plan, int mode,
                      bool bf16, int n_sm, tally *t)
{
    char name[96];
    fl_cuda_gemm g = p->g;
    static const float one = 1.0f;
    float *device_one = (float *)gpu_copy(&one, sizeof one);
    snprintf(name, sizeof name, "%s tokens %d split %d ctas %d mode %d %s",
             kind == GEMM_W4   ? "w4"
             : kind == GEMM_W8 ? "w8"
                               : "decode",
             plan.tokens, plan.n_split, plan.decode_ctas, mode, bf16 ? "bf16" : "f32");
    g.y_bf16 = bf16;
    g.x_scale_stride = g.x_zero_stride = g.w_scale_stride = mode == 1;
    if (mode == 0) g.x_scale = g.w_scale = device_one, g.x_zero = NULL;
    if (mode != 1) g.bias = NULL;
    CUDA_OK(cudaMemset(g.y, 0xa5, p->y_bytes));
    run_gemm(kind, &g, plan, n_sm, NULL);
    CUDA_OK(cudaDeviceSynchronize());
    CUDA_OK(cudaMemcpy(p->y_host, g.y, p->y_bytes, cudaMemcpyDeviceToHost));
    CUDA_OK(cudaFree(device_one));
    const int64_t wrong = differences(p, mode, bf16, name);
    if (wrong) {
        printf("FAIL %s [%d, %d, %d]: %lld wrong\n", name, p->M, p->N, p->K, (long long)wrong);
        t->failed++;
    } else {
        t->passed++;
    }
}

static void check_prefill(int M, int N, int K, bool all, int n_sm, int32_t *workspace, tally *t)
{
    uint64_t seed = 0x9e3779b97f4a7c15ull + (uint64_t)M * 1000003 + N * 1009 + K;
    for (int bits = 4; bits <= 8; bits += 4) {
        const gemm_kind kind = bits == 4 ? GEMM_W4 : GEMM_W8;
        problem p;
        problem_init(&p, M, N, K, bits, workspace, &seed);
        for (int tokens = 64; all && tokens <= 256; tokens *= 2)
            for (int n_split = 1; n_split <= 3; n_split += 2)
                for (int bf16 = 0; bf16 <= 1; bf16++)
                    check_run(&p, kind, {tokens, n_split, 0}, bf16, bf16, n_sm, t);
        const fl_cuda_gemm_plan plan = fl__cuda_gemm_plan(&p.g, n_sm);
        check_run(&p, kind, plan, 0, false, n_sm, t);
        check_run(&p, kind, plan, 1, true, n_sm, t);
        check_run(&p, kind, plan, 1, false, n_sm, t);
        check_run(&p, kind, plan, 2, true, n_sm, t);
        problem_fini(&p);
    }
    printf("prefill [%d, %d, %d]: %d passed, %d failed so far\n", M, N, K, t->passed,
           t->failed);
    fflush(stdout);
}

static void check_decode(int N, int K, int n_sm, tally *t)
{
    static const int rows[] = {1, 2, 3, 5, 8, 9, 13, 16};
    uint64_t seed = 0x9e3779b97f4a7c15ull + N * 1009 + K;
    for (size_t i = 0; i < FL_COUNT(rows); i++) {
        problem p;
        problem_init(&p, rows[i], N, K, 4, NULL, &seed);
        for (int ctas = 1; ctas <= 2; ctas++)
            for (int mode = 0; mode <= 2; mode++)
                for (int bf16 = mode == 0 ? 0 : 1; bf16 >= 0; bf16--)
                    check_run(&p, GEMM_DECODE, {0, 0, ctas}, mode, bf16, n_sm, t);
        problem_fini(&p);
    }
    printf("decode [1..16, %d, %d]: %d passed, %d failed so far\n", N, K, t->passed, t->failed);
    fflush(stdout);
}

static tally check_all(int n_sm, bool quick, bool prefill, bool decoding)
{
    static const int small[][3] = {{1, 16, 64},     {7, 48, 100},     {64, 128, 128},
                                   {63, 208, 1376}, {65, 2048, 4160}, {129, 1040, 1377},
                                   {300, 512, 640}};
    static const int large[][3] = {
        {257, 4096, 4096}, {513, 272, 14336}, {2048, 6144, 4096}, {4097, 1552, 4096}};
    static const int decode[][2] = {{16, 64},     {48, 100},     {208, 1376},  {4096, 4096},
                                    {6144, 4160}, {4096, 14336}, {28672, 4096}};
    tally t = {0, 0};
    int32_t *workspace = (int32_t *)gpu_alloc(fl__cuda_gemm_workspace_bytes());
    CUDA_OK(cudaMemset(workspace, 0, fl__cuda_gemm_workspace_bytes()));
    for (size_t i = 0; prefill && i < FL_COUNT(small); i++)
        check_prefill(small[i][0], small[i][1], small[i][2], true, n_sm, workspace, &t);
    for (size_t i = 0; prefill && i < FL_COUNT(large) - (quick ? 2 : 0); i++)
        check_prefill(large[i][0], large[i][1], large[i][2], false, n_sm, workspace, &t);
    for (size_t i = 0; decoding && i < FL_COUNT(decode) - (quick ? 2 : 0); i++)
        check_decode(decode[i][0], decode[i][1], n_sm, &t);
    CUDA_OK(cudaFree(workspace));
    return t;
}

int main(int argc, char **argv)
{
    bool quick = false, check = true, bench = true, plans = false;
    bool prefill = true, decoding = true;
    int n_sm = 0, max_rows = 1 << 20;
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--quick") == 0) quick = true;
        if (strcmp(argv[i], "--check") == 0) bench = false;
        if (strcmp(argv[i], "--prefill") == 0) bench = decoding = false;
        if (strcmp(argv[i], "--decode") == 0) bench = prefill = false;
        if (strcmp(argv[i], "--bench") == 0) check = false;
        if (strcmp(argv[i], "--plans") == 0) check = false, plans = true;
        if (strcmp(argv[i], "--bench-decode") == 0) check = false, max_rows = 16;
    }
    CUDA_OK(cudaDeviceGetAttribute(&n_sm, cudaDevAttrMultiProcessorCount, 0));
    tally t = {0, 0};
    if (check) t = check_all(n_sm, quick, prefill, decoding);
    if (bench) bench_gemm(n_sm, quick, plans, max_rows);
    if (check) printf("%d passed, %d failed, 0 skipped\n", t.passed, t.failed);
    return t.failed > 0 || (check && t.passed == 0);
}
