/* check_attention_cuda.cu - the GPU's cache and decode attention against the CPU's codes and a
 * double reference; then their rates.
 *
 *   check_attention [--quick | --tiny] [--prefill | --decode] [--check | --bench [--shape N]]
 *
 * Append: the codes, scales and zeros of kv_codec's reference row for the same floats, rotated
 * as on the CPU, compared bit for bit; in pieces and token by token. Decode: softmax in double
 * over the values that the cache holds; error relative to the largest |y| of a row.
 * SPDX-License-Identifier: MIT */
#include "check_attention_cuda.h"

extern "C" {
#include "kernels/kv_codec.h"
fl_kv_quantize_fn fl__kv_quantize_ref;
}

static int n_sm;

/* ---- append ------------------------------------------------------------------------------ */

static void rope(float *x, const problem *p, int t)
{
    const int half = p->D / 2;
    for (int i = 0; i < half; i++) {
        const float c = p->cos_[(size_t)t * half + i], s = p->sin_[(size_t)t * half + i];
        const volatile float ac = x[i] * c, bs = x[i + half] * s, bc = x[i + half] * c,
                             as = x[i] * s;
        x[i] = ac - bs;
        x[i + half] = bc + as;
    }
}

/* Code d of token 0 of a block of keys (kv_codec.h); a row of values has the same codes. */
static int key_code(const uint8_t *block, int bits, int d)
{
    const int in_word = d % (32 / bits), word = d / (32 / bits);
    const uint8_t byte = block[4 * word * FL_KV_PAGE + in_word % 4];
    return byte >> in_word / 4 * bits & ((1 << bits) - 1);
}

/* Mismatches of token t of (b, head): codes, scale, zero against kv_codec's reference. */
static int token_differences(const problem *p, const std::vector<uint8_t> &pages, int b,
                             int head, int t, bool is_v, const float *clip)
{
    const token_view w = view(p, pages, b, head, t, is_v);
    alignas(64) uint8_t block[64 * 128 + 192];
    float x[128];
    int wrong = 0;
    memcpy(x, (is_v ? p->v : p->k).data() + ((size_t)(p->first[b] + t) * p->n_kv + head) * p->D,
           p->D * 4);
    if (!is_v) rope(x, p, t);
    if (p->bits == 16) {
        for (int d = 0; d < p->D; d++)
            wrong += raw_value(w.words, 16, p->D, is_v, w.t, d) != fl__f32_to_bf16(x[d]);
        return wrong;
    }
    fl__kv_quantize_ref(block, FL_KV_KEYS, 0, x, p->D, p->bits, clip[2 * is_v],
                        clip[2 * is_v + 1]);
    for (int d = 0; d < p->D; d++) {
        wrong += raw_value(w.words, p->bits, p->D, is_v, w.t, d) != key_code(block, p->bits, d);
    }
    uint16_t scale;
    memcpy(&scale, block + fl__kv_scale_at(FL_KV_KEYS, p->D, p->bits), 2);
    return wrong + (scale != view_scale(&w)) +
           (block[fl__kv_zero_at(FL_KV_KEYS, p->D, p->bits)] != view_zero(&w));
}

static void check_append(int bits, int D, bool one_by_one, tally *total)
{
    static const float clip[4] = {0.95f, 0.9f, 1.0f, 0.97f};
    uint64_t seed = 0x9e3779b97f4a7c15ull + bits * 1000 + D;
    problem p;
    problem_init(&p, bits, D, 3, 1, {1, 15, 16, 17, 70, 131}, &seed);
    if (one_by_one)
        for (int t = 0; t < p.max_n; t++) append(&p, clip, t, t + 1);
    else append(&p, clip, 0, 37), append(&p, clip, 37, 50), append(&p, clip, 50, p.max_n);
    const std::vector<uint8_t> pages = fetch_pages(&p);
    int wrong = 0;
    for (int b = 0; b < p.B; b++)
        for (int t = 0; t < p.n[b]; t++)
            for (int i = 0; i < 2 * p.n_kv; i++)
                wrong += token_differences(&p, pages, b, i / 2, t, i % 2, clip);
    if (wrong)
        printf("FAIL append kv%d D %d %s: %d wrong\n", bits, D,
               one_by_one ? "singly" : "in pieces", wrong);
    *(wrong ? &total->failed : &total->passed) += 1;
    problem_fini(&p);
}

/* The q side: rotation, bf16. */
static void check_rotate_q(int D, bool bf16, tally *total)
{
    uint64_t seed = 77 + D;
    problem p;
    problem_init(&p, 4, D, 2, 2, {5, 33}, &seed);
    const int rows = 38, width = 4 * D;
    std::vector<float> q((size_t)rows * width);
    for (float &x : q) x = fl__bf16_to_f32(fl__f32_to_bf16(uniform(&seed)));
    std::vector<uint16_t> q16(q.size()), out(q.size()), k16(p.k.size(), 0x3f80);
    for (size_t i = 0; i < q.size(); i++) q16[i] = fl__f32_to_bf16(q[i]);
    const int position[2] = {0, 0};
    fl_cuda_kv_append a = {};
    a.kv = &p.kv;
    a.q = bf16 ? gpu_copy(q16.data(), q16.size() * 2) : gpu_copy(q.data(), q.size() * 4);
    a.k = a.v =
        bf16 ? gpu_copy(k16.data(), k16.size() * 2) : gpu_copy(p.k.data(), p.k.size() * 4);
    a.ldq = width, a.ldk = a.ldv = 2 * D, a.x_bf16 = bf16, a.n_heads = 4;
    a.q_out = (uint16_t *)gpu_alloc(q.size() * 2);
    a.cos = (float *)gpu_copy(p.cos_.data(), p.cos_.size() * 4);
    a.sin = (float *)gpu_copy(p.sin_.data(), p.sin_.size() * 4);
    a.first_row = (int32_t *)gpu_copy(p.first.data(), 12);
    a.position = (int32_t *)gpu_copy(position, 8);
    a.n_seqs = 2, a.max_rows = 33;
    for (int i = 0; i < 4; i++) a.clip[i] = 1;
    FL_OK_OR_EXIT(fl__cuda_kv_append(&a, NULL, &err));
    CUDA_OK(cudaMemcpy(out.data(), a.q_out, out.size() * 2, cudaMemcpyDeviceToHost));
    int wrong = 0;
    for (int r = 0; r < rows; r++)
        for (int h = 0; h < 4; h++) {
            float x[128];
            memcpy(x, &q[(size_t)r * width + h * D], D * 4);
            rope(x, &p, r < 5 ? r : r - 5);
            for (int d = 0; d < D; d++)
                wrong += out[(size_t)r * width + h * D + d] != fl__f32_to_bf16(x[d]);
        }
    if (wrong) printf("FAIL rotate q D %d bf16 %d: %d wrong\n", D, bf16, wrong);
    *(wrong ? &total->failed : &total->passed) += 1;
    problem_fini(&p);
}

/* ---- decode ------------------------------------------------------------------------------ */

static void reference(const problem *p, const std::vector<uint8_t> &pages, const float *q,
                      double *y, int b, int head)
{
    const int group = p->n_heads / p->n_kv, D = p->D, n = p->n[b];
    std::vector<double> s((size_t)n * group);
    std::vector<float> x(D);
    for (int t = 0; t < n; t++) {
        const token_view w = view(p, pages, b, head / group, t, false);
        view_values(&w, x.data());
        for (int h = 0; h < group; h++) {
            double sum = 0;
            for (int d = 0; d < D; d++) sum += (double)q[h * D + d] * x[d];
            s[(size_t)t * group + h] = sum / sqrt((double)D);
        }
    }
    for (int h = 0; h < group; h++) {
        double m = -1e300, l = 0;
        for (int t = 0; t < n; t++) m = fmax(m, s[(size_t)t * group + h]);
        for (int t = 0; t < n; t++) {
            double *e = &s[(size_t)t * group + h];
            l += *e = exp(*e - m);
        }
        for (int t = 0; t < n; t++) s[(size_t)t * group + h] /= l;
    }
    for (int i = 0; i < group * D; i++) y[i] = 0;
    for (int t = 0; t < n; t++) {
        const token_view w = view(p, pages, b, head / group, t, true);
        view_values(&w, x.data());
        for (int h = 0; h < group; h++)
            for (int d = 0; d < D; d++) y[h * D + d] += s[(size_t)t * group + h] * x[d];
    }
}

static void check_decode(int bits, int D, int n_kv, int group, const std::vector<int> &n,
                         float sharp, tally *total)
{
    static const float clip[4] = {1, 1, 1, 1};
    uint64_t seed = 0xabcdef1234567ull + bits * 7919 + D * 31 + n.size() * 1009 + n[0];
    problem p;
    problem_init(&p, bits, D, n_kv, group, n, &seed);
    append(&p, clip, 0, p.max_n);
    const std::vector<uint8_t> pages = fetch_pages(&p);
    std::vector<float> q((size_t)p.B * p.n_heads * D), y(q.size()), again(q.size());
    for (float &x : q) x = fl__bf16_to_f32(fl__f32_to_bf16(sharp * uniform(&seed)));
    fl_cuda_attention a = {};
    a.kv = &p.kv;
    a.q = gpu_copy(q.data(), q.size() * 4), a.y = gpu_alloc(y.size() * 4);
    a.n_heads = p.n_heads, a.n_seqs = p.B, a.n_tokens = p.n_gpu;
    a.scale = (float)(1 / sqrt((double)D));
    const size_t ws = fl__cuda_attention_workspace_bytes(D, n_kv, p.B, n_sm);
    a.workspace = gpu_alloc(ws);
    CUDA_OK(cudaMemset(a.workspace, 0, ws));
    for (int i = 0; i < 2; i++) {
        std::vector<float> *to = i ? &again : &y;
        CUDA_OK(cudaMemset(a.y, 0xff, y.size() * 4));
        FL_OK_OR_EXIT(fl__cuda_attention_decode(&a, n_sm, NULL, &err));
        CUDA_OK(cudaMemcpy(to->data(), a.y, y.size() * 4, cudaMemcpyDeviceToHost));
    }
    double worst = 0, sum = 0;
    size_t count = 0;
    std::vector<double> want((size_t)group * D);
    /* of many segments, some */
    const int step = p.B * n_kv > 64 ? 5 : 1;
    for (int i = 0; i < p.B * n_kv; i += step) {
        const size_t at = ((size_t)(i / n_kv) * p.n_heads + i % n_kv * group) * D;
        reference(&p, pages, &q[at], want.data(), i / n_kv, i % n_kv * group);
        for (int h = 0; h < group; h++) {
            double top = 0;
            for (int d = 0; d < D; d++) top = fmax(top, fabs(want[h * D + d]));
            for (int d = 0; d < D; d++) {
                const double e = fabs(y[at + h * D + d] - want[h * D + d]) / top;
                worst = e <= worst ? worst : e; /* NaN sticks */
                sum += e, count++;
            }
        }
    }
    const bool same = memcmp(y.data(), again.data(), y.size() * 4) == 0;
    const double typical = sum / count;
    const bool good = worst < 2e-2 && typical < 3e-3 && same;
    printf(
        "%s decode kv%-2d D %-3d kv heads %d x %d, %2d seqs, first %5d: max %.1e mean %.1e%s\n",
        good ? "ok  " : "FAIL", bits, D, n_kv, group, p.B, n[0], worst, typical,
        same ? "" : ", not deterministic");
    fflush(stdout);
    *(good ? &total->passed : &total->failed) += 1;
    CUDA_OK(cudaFree((void *)a.q));
    CUDA_OK(cudaFree(a.y));
    CUDA_OK(cudaFree(a.workspace));
    problem_fini(&p);
}

static tally check_all(bool quick)
{
    static const int lengths[] = {1, 15, 63, 64, 65, 1000};
    static const int dims[] = {64, 80, 128};
    tally t = {0, 0};
    for (int D : dims)
        for (int bits = 4; bits <= 16; bits *= 2) {
            check_append(bits, D, false, &t);
            check_append(bits, D, true, &t);
        }
    for (int D : dims) check_rotate_q(D, false, &t), check_rotate_q(D, true, &t);
    printf("append: %d passed, %d failed\n", t.passed, t.failed);
    for (int bits = 4; bits <= 16; bits *= 2)
        for (int D : dims) {
            for (int n : lengths)
                if (!quick || D == 128) check_decode(bits, D, 2, 4, {n}, 1, &t);
            check_decode(bits, D, 3, 1, {7, 129, 64, 1, 300}, 1, &t);
            check_decode(bits, D, 1, 8, {16, 33, 500}, 6, &t);
            check_decode(bits, D, 2, 5, {2050, 1}, 3, &t);
            std::vector<int> ragged;
            for (int b = 0; b < 64; b++) ragged.push_back(1 + b * b * 37 % 701);
            if (!quick || D == 128) check_decode(bits, D, 8, 4, ragged, 1, &t);
        }
    for (int bits = 4; bits <= 16; bits *= 2) check_decode(bits, 128, 1, 4, {32768}, 2, &t);
    return t;
}

/* A few small problems of each kernel, for compute-sanitizer. */
static tally check_tiny(void)
{
    tally t = check_prefill(PREFILL_TINY);
    for (int bits = 4; bits <= 16; bits *= 2) {
        check_append(bits, 128, false, &t);
        check_decode(bits, 128, 2, 4, {70, 33}, 1, &t);
        check_decode(bits, 64, 1, 8, {300}, 1, &t);
    }
    return t;
}

int main(int argc, char **argv)
{
    bool quick = false, tiny = false, check = true, bench = true, decode = true, many = true;
    tally t = {0, 0}, prefill = {0, 0};
    int only = -1;
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--quick") == 0) quick = true;
        if (strcmp(argv[i], "--tiny") == 0) tiny = true;
        if (strcmp(argv[i], "--check") == 0) bench = false;
        if (strcmp(argv[i], "--bench") == 0) check = false;
        if (strcmp(argv[i], "--prefill") == 0) decode = false;
        if (strcmp(argv[i], "--decode") == 0) many = false;
        if (strcmp(argv[i], "--shape") == 0 && i + 1 < argc)
            only = (int)strtol(argv[++i], NULL, 10);
    }
    CUDA_OK(cudaDeviceGetAttribute(&n_sm, cudaDevAttrMultiProcessorCount, 0));
    if (check && many && !tiny) prefill = check_prefill(quick ? PREFILL_QUICK : PREFILL_ALL);
    if (check && decode) t = tiny ? check_tiny() : check_all(quick);
    t.passed += prefill.passed, t.failed += prefill.failed;
    if (bench && many) bench_prefill(quick, only);
    if (bench && decode) bench_attention(n_sm, quick, only);
    if (check) printf("%d passed, %d failed, 0 skipped\n", t.passed, t.failed);
    return t.failed > 0 || (check && t.passed == 0);
}
