/* check_gemm_cuda.cu - the GPU's integer GEMMs against plain sums, bit for bit; their bench.
 *
 *   check_gemm            checks, then the whole bench
 *   check_gemm --check    checks only
 *   check_gemm --quick    both, under a minute
 *   check_gemm --prefill, --decode, --sm80   checks of these kernels only
 *   check_gemm --bench    bench only
 *   check_gemm --bench --plans       bench with every plan of the prefill kernel
 *   check_gemm --bench --rows 1,16   bench of 1 to 16 rows only
 *   check_gemm --bench --zeros       bench on zeros
 *
 * Sums come from a kernel of one dp4a loop per output, itself compared with a scalar loop on
 * the host at random places; scales are applied on the host in the contract's order: f32 and
 * bf16 outputs must agree in every bit. float32 with scales of 1 shows the sums themselves
 * (below 2^24). Outputs lie in poisoned buffers with spare rows and columns.
 * SPDX-License-Identifier: MIT */
#include "cuda_test.h"

#include "cuda/sm90.h"

#include <math.h>
#include <string.h>

/* What a run multiplies and adds; sums alone: scales of 1, which float32 shows exactly. */
typedef enum run_mode {
    MODE_SUMS,
    MODE_ALL,   /* scale and zero of each row, scale of each channel, bias */
    MODE_ONE,   /* one scale and zero for all rows, one scale for all channels */
    MODE_ADDED, /* MODE_ALL and a residual, in place where y is float32 */
    MODE_GATED, /* MODE_ALL, then pairs of channels */
} run_mode;

typedef struct problem {
    int M, N, K, K_pad, bits, x_bits; /* x_bits 4: packed on the device */
    int64_t ldx, ldy;
    int8_t *codes, *x; /* host [N, K_pad], [M, ldx] */
    float *x_scale, *w_scale, *bias;
    float *residual; /* as y in float32, poison and all */
    float *gated;    /* [M, N / 2], from the device */
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
        p->x[i] = i % p->ldx >= p->K ? 0 : (int8_t)next_random(seed) >> (8 - p->x_bits);
    /* extremes: a row of x and a channel of the largest magnitudes */
    for (int k = 0; k < p->K; k++) {
        p->x[(p->M - 1) * p->ldx + k] = p->x_bits == 4 ? -8 : -128;
        p->codes[k] = p->bits == 4 ? -8 : -128;
        if (p->K > 8192 && p->bits == 8) p->codes[k] = k % 2 ? 127 : -128;
    }
    for (int n = 0; n < p->N; n++) {
        p->w_scale[n] = 1e-3f * (float)(1 + next_random(seed) % 1000);
        p->bias[n] = 0.01f * (float)(int)(next_random(seed) % 20001) - 100.0f;
    }
    memset(p->residual, 0xa5, p->y_bytes);
    for (int64_t i = 0; i < p->M * p->ldy; i++)
        if (i % p->ldy < p->N)
            p->residual[i] = 0.01f * (float)(int)(next_random(seed) % 20001) - 100.0f;
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

/* y of [m, n], of MODE_GATED [m, n] of N / 2 columns. */
static float expected(const problem *p, int m, int n, run_mode mode)
{
    if (mode == MODE_GATED) return p->gated[(int64_t)m * (p->N / 2) + n];
    const int32_t acc = p->acc[(int64_t)m * p->N + n];
    if (mode == MODE_SUMS) return (float)acc;
    const int row = mode == MODE_ONE ? 0 : m, channel = mode == MODE_ONE ? 0 : n;
    const volatile float scale = p->x_scale[row] * p->w_scale[channel];
    const volatile float y = (float)(acc - p->x_zero[row] * p->col_sum[n]) * scale;
    if (mode == MODE_ONE) return y;
    const volatile float with_bias = y + p->bias[n];
    return mode == MODE_ADDED ? with_bias + p->residual[m * p->ldy + n] : with_bias;
}

__global__ void gated_kernel(float *y, const float *pairs, int64_t n)
{
    const int64_t i = blockIdx.x * (int64_t)blockDim.x + threadIdx.x;
    if (i < n) y[i] = gated(pairs[2 * i], pairs[2 * i + 1]);
}

/* The exponential is the device's, so the pairs go there; the host's own must come near. */
static void make_gated(problem *p)
{
    const int64_t n = (int64_t)p->M * (p->N / 2);
    float *pairs = (float *)malloc(8 * n), *y = (float *)gpu_alloc(4 * n);
    for (int64_t i = 0; i < 2 * n; i++)
        pairs[i] = expected(p, (int)(i / p->N), (int)(i % p->N), MODE_ALL);
    float *from = (float *)gpu_copy(pairs, 8 * n);
    gated_kernel<<<(unsigned)((n + 255) / 256), 256>>>(y, from, n);
    CUDA_OK(cudaMemcpy(p->gated, y, 4 * n, cudaMemcpyDeviceToHost));
    for (int64_t i = 0; i < n; i++) {
        const double gate = pairs[2 * i], want = gate / (1 + exp(-gate)) * pairs[2 * i + 1];
        if (fabs(p->gated[i] - want) <= 1e-4 * fabs(want) + 1e-30) continue;
        printf("gated: %g of %g, %g\n", p->gated[i], gate, pairs[2 * i + 1]);
        exit(1);
    }
    CUDA_OK(cudaFree(from));
    CUDA_OK(cudaFree(y));
    free(pairs);
}

/* x on the device at 4 bits, from that at 8. */
static void pack_x(problem *p)
{
    const size_t n_bytes = (size_t)p->M * p->ldx / 2;
    uint8_t *packed = (uint8_t *)malloc(n_bytes);
    for (size_t i = 0; i < n_bytes; i++) {
        const int8_t *block = p->x + i / 32 * 64;
        packed[i] = (uint8_t)(block[i % 32] << 4 | (block[i % 32 + 32] & 15));
    }
    CUDA_OK(cudaFree((void *)p->g.x));
    p->g.x = (int8_t *)gpu_copy(packed, n_bytes);
    p->g.ldx = p->ldx / 2;
    p->g.x_packed = true;
    free(packed);
}

static void problem_init(problem *p, int M, int N, int K, int bits, int x_bits,
                         int32_t *workspace, uint64_t *seed)
{
    memset(p, 0, sizeof *p);
    p->x_bits = x_bits;
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
    p->y_bytes = 4 * (size_t)(M + 2) * p->ldy;
    p->residual = (float *)malloc(p->y_bytes);
    p->gated = (float *)malloc(4 * (size_t)M * (N / 2));
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
    p->g.residual = (float *)gpu_copy(p->residual, p->y_bytes);
    p->g.ldr = p->ldy;
    make_gated(p);
    p->g.y = gpu_alloc(p->y_bytes);
    p->y_host = (uint8_t *)malloc(p->y_bytes);
    if (x_bits == 4) pack_x(p);
}

static void problem_fini(problem *p)
{
    const void *device[] = {p->g.x,    p->g.x_scale, p->g.x_zero, p->g.w_scale, p->g.bias,
                            p->w.data, p->w.col_sum, p->g.y,      p->g.residual};
    void *host[] = {p->codes, p->x,       p->x_scale, p->x_zero,   p->w_scale, p->bias,
                    p->acc,   p->col_sum, p->y_host,  p->residual, p->gated};
    for (size_t i = 0; i < FL_COUNT(device); i++) CUDA_OK(cudaFree((void *)device[i]));
    for (size_t i = 0; i < FL_COUNT(host); i++) free(host[i]);
}

static uint16_t bf16_of(float f)
{
    uint32_t u;
    memcpy(&u, &f, sizeof u);
    return (uint16_t)((u + 0x7fff + (u >> 16 & 1)) >> 16);
}

/* Differences from what is expected, poison included; the first is printed. */
static int64_t differences(const problem *p, run_mode mode, bool bf16, const char *name)
{
    const int width = bf16 ? 2 : 4, N = mode == MODE_GATED ? p->N / 2 : p->N;
    int64_t wrong = 0;
    for (int64_t m = 0; m < p->M + 2; m++)
        for (int64_t n = 0; n < p->ldy; n++) {
            const uint8_t *at = p->y_host + (m * p->ldy + n) * width;
            const float want = m < p->M && n < N ? expected(p, (int)m, (int)n, mode) : 0.0f;
            const uint16_t half = bf16_of(want);
            uint8_t bytes[4];
            memcpy(bytes, bf16 ? (const void *)&half : (const void *)&want, width);
            if (m >= p->M || n >= N) memset(bytes, 0xa5, sizeof bytes);
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

static void check_run(const problem *p, gemm_kind kind, fl_cuda_gemm_plan plan, run_mode mode,
                      bool bf16, int n_sm, tally *t)
{
    static const char *const kinds[] = {"w4", "w8", "decode", "sm80"};
    static const char *const modes[] = {"sums", "all", "one", "added", "gated"};
    static const float one = 1.0f;
    char name[96];
    fl_cuda_gemm g = p->g;
    float *device_one = (float *)gpu_copy(&one, sizeof one);
    snprintf(name, sizeof name, "%s tokens %d split %d group %d shift %d ctas %d/%d %s %s",
             kinds[kind], plan.tokens, plan.n_split, plan.group, plan.shift, plan.decode_ctas,
             plan.decode_parts, modes[mode], bf16 ? "bf16" : "f32");
    g.y_bf16 = bf16;
    g.gated = mode == MODE_GATED;
    g.x_scale_stride = g.x_zero_stride = g.w_scale_stride =
        mode != MODE_SUMS && mode != MODE_ONE;
    if (mode == MODE_SUMS) g.x_scale = g.w_scale = device_one, g.x_zero = NULL;
    if (mode == MODE_SUMS || mode == MODE_ONE) g.bias = NULL;
    if (mode != MODE_ADDED) g.residual = NULL;
    CUDA_OK(cudaMemset(g.y, 0xa5, p->y_bytes));
    if (mode == MODE_ADDED && !bf16) {
        CUDA_OK(cudaMemcpy(g.y, g.residual, p->y_bytes, cudaMemcpyDeviceToDevice));
        g.residual = (const float *)g.y;
    }
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

/* Every way to cut the problem: tiles, parts of K, groups and steps apart. */
static void check_plans(const problem *p, gemm_kind kind, int n_sm, tally *t)
{
    for (int tokens = 64; tokens <= 256; tokens *= 2)
        for (int bf16 = 0; bf16 <= 1; bf16++) {
            check_run(p, kind, {tokens, 1, 0, 0, 4, 0}, bf16 ? MODE_ALL : MODE_SUMS, bf16, n_sm,
                      t);
            check_run(p, kind, {tokens, 3, 0, 0, 8, 0}, bf16 ? MODE_ALL : MODE_SUMS, bf16, n_sm,
                      t);
            /* few multiprocessors: many tiles for each, with and without the same tokens */
            check_run(p, kind, {tokens, 1, 0, 0, 1, 3}, bf16 ? MODE_ALL : MODE_SUMS, bf16, 1,
                      t);
            check_run(p, kind, {tokens, 1, 0, 0, 2, 6}, bf16 ? MODE_ADDED : MODE_ALL, bf16, 3,
                      t);
        }
}

static void check_prefill(int M, int N, int K, bool all, int n_sm, int32_t *workspace, tally *t)
{
    uint64_t seed = 0x9e3779b97f4a7c15ull + (uint64_t)M * 1000003 + N * 1009 + K;
    for (int bits = 4; bits <= 8; bits += 4) {
        const gemm_kind kind = bits == 4 ? GEMM_W4 : GEMM_W8;
        problem p;
        problem_init(&p, M, N, K, bits, 8, workspace, &seed);
        if (all) check_plans(&p, kind, n_sm, t);
        const fl_cuda_gemm_plan plan = fl__cuda_gemm_plan(&p.g, n_sm);
        fl_cuda_gemm_plan apart = plan;
        apart.n_split = 1;
        apart.shift = 5;
        check_run(&p, kind, plan, MODE_SUMS, false, n_sm, t);
        check_run(&p, kind, plan, MODE_ALL, true, n_sm, t);
        check_run(&p, kind, plan, MODE_ALL, false, n_sm, t);
        check_run(&p, kind, plan, MODE_ONE, true, n_sm, t);
        check_run(&p, kind, plan, MODE_ADDED, false, n_sm, t);
        check_run(&p, kind, plan, MODE_GATED, true, n_sm, t);
        check_run(&p, kind, apart, MODE_ADDED, true, n_sm, t);
        check_run(&p, kind, apart, MODE_ALL, true, n_sm, t);
        problem_fini(&p);
    }
    printf("prefill [%d, %d, %d]: %d passed, %d failed so far\n", M, N, K, t->passed,
           t->failed);
    fflush(stdout);
}

static void check_decode(int N, int K, int n_sm, tally *t)
{
    static const int rows[] = {1, 3, 5, 8, 9, 16, 17, 32, 33, 64};
    uint64_t seed = 0x9e3779b97f4a7c15ull + N * 1009 + K;
    for (size_t i = 0; i < FL_COUNT(rows); i++) {
        problem p;
        problem_init(&p, rows[i], N, K, 4, 8, NULL, &seed);
        for (int ctas = 1; ctas <= 2; ctas++)
            for (int mode = MODE_SUMS; mode <= MODE_GATED; mode++)
                for (int bf16 = mode == MODE_SUMS ? 0 : 1; bf16 >= 0; bf16--)
                    if (bf16 || mode != MODE_GATED)
                        check_run(&p, GEMM_DECODE, {0, 0, ctas, 0, 0, 0}, (run_mode)mode, bf16,
                                  n_sm, t);
        for (int parts = 1; parts <= 8; parts *= 2)
            check_run(&p, GEMM_DECODE, {0, 0, 2, parts, 0, 0}, MODE_ALL, true, n_sm, t);
        problem_fini(&p);
    }
    printf("decode [1..64, %d, %d]: %d passed, %d failed so far\n", N, K, t->passed, t->failed);
    fflush(stdout);
}

/* The kernel of older GPUs: codes of 4 x 4, 8 x 4 and 8 x 8 bits. */
static void check_sm80(int M, int N, int K, int n_sm, tally *t)
{
    static const int bits[][2] = {{4, 4}, {8, 4}, {8, 8}};
    uint64_t seed = 0x9e3779b97f4a7c15ull + (uint64_t)M * 1000003 + N * 1009 + K;
    for (size_t i = 0; i < FL_COUNT(bits); i++) {
        problem p;
        problem_init(&p, M, N, K, bits[i][1], bits[i][0], NULL, &seed);
        for (int tokens = 32; tokens <= 128; tokens *= 4)
            for (int mode = MODE_SUMS; mode <= MODE_GATED; mode++)
                for (int bf16 = mode == MODE_SUMS ? 0 : 1; bf16 >= 0; bf16--)
                    if (bf16 || mode != MODE_GATED)
                        check_run(&p, GEMM_SM80, {tokens, 1}, (run_mode)mode, bf16, n_sm, t);
        problem_fini(&p);
    }
    printf("sm80 [%d, %d, %d]: %d passed, %d failed so far\n", M, N, K, t->passed, t->failed);
    fflush(stdout);
}

/* Host only: a gated pair packs as the same rows one by one in turn. */
static void check_pack_gated(tally *t)
{
    enum { N = 24, K = 100 };
    uint64_t seed = 7;
    int8_t pair[2][N * K], rows[2 * N * K];
    for (int i = 0; i < 2 * N * K; i++) {
        const int n = i / K, k = i % K;
        rows[i] = (int8_t)next_random(&seed) >> 4;
        pair[n % 2][n / 2 * K + k] = rows[i];
    }
    for (int bits = 4; bits <= 8; bits += 4) {
        const size_t n_bytes = fl__cuda_weight_bytes(2 * N, K, bits);
        uint8_t *want = (uint8_t *)malloc(n_bytes), *got = (uint8_t *)malloc(n_bytes);
        int32_t want_sum[2 * N], got_sum[2 * N];
        fl__cuda_weight_pack(want, want_sum, rows, 2 * N, K, bits);
        fl__cuda_weight_pack_gated(got, got_sum, pair[0], pair[1], N, K, bits);
        const bool same =
            memcmp(want, got, n_bytes) == 0 && memcmp(want_sum, got_sum, sizeof want_sum) == 0;
        if (!same) printf("FAIL pack gated, %d bits\n", bits);
        t->passed += same;
        t->failed += !same;
        free(want);
        free(got);
    }
}

static tally check_all(int n_sm, bool quick, bool prefill, bool decoding, bool sm80)
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
    if (prefill) check_pack_gated(&t);
    for (size_t i = 0; prefill && i < FL_COUNT(small); i++)
        check_prefill(small[i][0], small[i][1], small[i][2], true, n_sm, workspace, &t);
    for (size_t i = 0; prefill && i < FL_COUNT(large) - (quick ? 2 : 0); i++)
        check_prefill(large[i][0], large[i][1], large[i][2], false, n_sm, workspace, &t);
    for (size_t i = 0; decoding && i < FL_COUNT(decode) - (quick ? 2 : 0); i++)
        check_decode(decode[i][0], decode[i][1], n_sm, &t);
    for (size_t i = 0; sm80 && i < FL_COUNT(small); i++)
        check_sm80(small[i][0], small[i][1], small[i][2], n_sm, &t);
    CUDA_OK(cudaFree(workspace));
    return t;
}

int main(int argc, char **argv)
{
    bool quick = false, check = true, bench = true;
    bool prefill = true, decoding = true, sm80 = true;
    bench_choice choice = {false, false, false, 1, 1 << 20};
    int n_sm = 0;
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--quick") == 0) quick = true;
        if (strcmp(argv[i], "--check") == 0) bench = false;
        if (strcmp(argv[i], "--prefill") == 0) bench = decoding = sm80 = false;
        if (strcmp(argv[i], "--decode") == 0) bench = prefill = sm80 = false;
        if (strcmp(argv[i], "--sm80") == 0) bench = prefill = decoding = false;
        if (strcmp(argv[i], "--bench") == 0) check = false;
        if (strcmp(argv[i], "--plans") == 0) choice.plans = true;
        if (strcmp(argv[i], "--zeros") == 0) choice.zeros = true;
        if (strcmp(argv[i], "--rows") == 0 && i + 1 < argc)
            sscanf(argv[i + 1], "%d,%d", &choice.min_rows, &choice.max_rows);
    }
    CUDA_OK(cudaDeviceGetAttribute(&n_sm, cudaDevAttrMultiProcessorCount, 0));
    tally t = {0, 0};
    if (check) t = check_all(n_sm, quick, prefill, decoding, sm80);
    choice.quick = quick;
    if (bench) bench_gemm(n_sm, choice);
    if (check) printf("%d passed, %d failed, 0 skipped\n", t.passed, t.failed);
    return t.failed > 0 || (check && t.passed == 0);
}
