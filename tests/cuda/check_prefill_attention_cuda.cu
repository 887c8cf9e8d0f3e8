/* check_prefill_attention_cuda.cu - prefill attention against a double reference over the
 * values that the cache holds.
 *
 * Every output has its own limit, from what prefill rounds to bf16, u = 2^-8 each: keys (a
 * score moves by at most e = u scale sum |q k|, and by 2^-16 of the same for sums in the tensor
 * core), p, values, and y where it is bf16; of a bf16 cache neither keys nor values. With
 * weights w of the softmax
 *
 *   |error| <= sum w |v| (exp(e) (1 + u)^2 - 1) + |y| (sum w (exp(e) - 1)) + u |y|
 *
 * with 5 % for terms of second order. Besides: at most 2e-2 of the row's largest |y|, 3e-3 on
 * average. Outputs start as NaN, guards around them must keep their bytes, the workspace starts
 * as NaN, and the second run must repeat the first bit for bit.
 * SPDX-License-Identifier: MIT */
#include "check_attention_cuda.h"

typedef struct prefill_case {
    int bits, D, n_kv, group, from; /* rows from, .. of each sequence; those before: cached */
    std::vector<int> n;
    float sharp;
    bool y_bf16;
    int step; /* every step-th row is compared */
} prefill_case;

typedef struct prefill_error {
    double worst, sum, over; /* relative to the row; sum of count; largest error / limit */
    size_t count;
} prefill_error;

enum { GUARD = 4096 };

static double limit_of(double spread, double y, double shift, bool y_bf16)
{
    const double u = ldexp(1, -8);
    return 1.05 * (spread + fabs(y) * shift + (y_bf16 ? u * fabs(y) : 0)) + 1e-12;
}

/* A row of q over tokens 0 .. n - 1; k and v [n][D]. */
static void compare_row(prefill_error *e, const prefill_case *c, const float *q, const float *k,
                        const float *v, int n, const float *got)
{
    const int D = c->D;
    const double u = ldexp(1, -8), scale = 1 / sqrt((double)D);
    std::vector<double> s(n), moved(n), y(D, 0.0), spread(D, 0.0);
    double m = -1e300, l = 0, shift = 0, top = 0;
    for (int t = 0; t < n; t++) {
        double sum = 0, size = 0;
        for (int d = 0; d < D; d++) {
            const double x = (double)q[d] * k[(size_t)t * D + d];
            sum += x, size += fabs(x);
        }
        s[t] = sum * scale;
        moved[t] = exp(((c->bits < 16 ? u : 0) + ldexp(1, -16)) * size * scale);
        m = fmax(m, s[t]);
    }
    for (int t = 0; t < n; t++) l += s[t] = exp(s[t] - m);
    for (int t = 0; t < n; t++) {
        const double w = s[t] / l;
        shift += w * (moved[t] - 1);
        for (int d = 0; d < D; d++) {
            const double x = w * v[(size_t)t * D + d];
            y[d] += x;
            spread[d] += fabs(x) * (moved[t] * (1 + u) * (c->bits < 16 ? 1 + u : 1) - 1);
        }
    }
    for (int d = 0; d < D; d++) top = fmax(top, fabs(y[d]));
    for (int d = 0; d < D; d++) {
        const double error = fabs(got[d] - y[d]);
        const double over = error / limit_of(spread[d], y[d], shift, c->y_bf16);
        e->worst = error / top <= e->worst ? e->worst : error / top; /* NaN sticks */
        e->over = over <= e->over ? e->over : over;
        e->sum += error / top, e->count++;
    }
}

static void compare(prefill_error *e, const prefill_case *c, const problem *p,
                    const std::vector<int> &first, const std::vector<float> &q,
                    const std::vector<float> &y)
{
    const std::vector<uint8_t> pages = fetch_pages(p);
    for (int i = 0; i < p->B * p->n_kv; i++) {
        const int b = i / p->n_kv, head = i % p->n_kv, n = p->n[b];
        const int rows = first[b + 1] - first[b];
        std::vector<float> k((size_t)n * p->D), v(k.size());
        for (int t = 0; t < n; t++) {
            const token_view kt = view(p, pages, b, head, t, false),
                             vt = view(p, pages, b, head, t, true);
            view_values(&kt, &k[(size_t)t * p->D]);
            view_values(&vt, &v[(size_t)t * p->D]);
        }
        for (int r = 0; r < rows; r += (r + 1 < rows && r + c->step >= rows) ? 1 : c->step)
            for (int h = 0; h < c->group; h++) {
                const size_t at =
                    ((size_t)(first[b] + r) * p->n_heads + head * c->group + h) * p->D;
                compare_row(e, c, &q[at], k.data(), v.data(), n - rows + r + 1, &y[at]);
            }
    }
}

/* y [n] as floats, and whether the guards on both sides are untouched. */
static std::vector<float> fetch_output(const void *gpu, size_t n, bool bf16, bool *clean)
{
    const size_t n_bytes = n * (bf16 ? 2 : 4);
    std::vector<uint8_t> raw(n_bytes + 2 * GUARD);
    std::vector<float> y(n);
    CUDA_OK(cudaMemcpy(raw.data(), gpu, raw.size(), cudaMemcpyDeviceToHost));
    for (size_t i = 0; i < n; i++) {
        uint16_t v = 0;
        memcpy(&v, raw.data() + GUARD + 2 * i, 2);
        if (bf16) y[i] = fl__bf16_to_f32(v);
        else memcpy(&y[i], raw.data() + GUARD + 4 * i, 4);
    }
    for (size_t i = 0; i < GUARD; i++)
        *clean &= raw[i] == 0xff && raw[n_bytes + GUARD + i] == 0xff;
    return y;
}

static void check_case(const prefill_case *c, tally *total)
{
    static const float clip[4] = {1, 1, 1, 1};
    uint64_t seed = 0x1234567abcdefull + c->bits * 7919 + c->D * 31 + c->n[0] + 7 * c->from;
    problem p;
    problem_init(&p, c->bits, c->D, c->n_kv, c->group, c->n, &seed);
    if (c->from > 0) append(&p, clip, 0, c->from);
    append(&p, clip, c->from, p.max_n);
    std::vector<int> first(1, 0), position;
    int max_rows = 0;
    for (int n : c->n) {
        const int rows = n - FL_MIN(n, c->from);
        first.push_back(first.back() + rows);
        position.push_back(n - rows);
        max_rows = rows > max_rows ? rows : max_rows;
    }
    std::vector<float> q((size_t)first.back() * p.n_heads * c->D), y, again;
    std::vector<uint16_t> q16(q.size());
    for (size_t i = 0; i < q.size(); i++) {
        q16[i] = fl__f32_to_bf16(c->sharp * uniform(&seed));
        q[i] = fl__bf16_to_f32(q16[i]);
    }
    const size_t y_bytes = q.size() * (c->y_bf16 ? 2 : 4) + 2 * GUARD;
    const size_t ws = fl__cuda_attention_prefill_workspace_bytes(c->D, c->n_kv, p.B, p.max_n);
    uint8_t *out = (uint8_t *)gpu_alloc(y_bytes);
    fl_cuda_attention_prefill a = {};
    a.kv = &p.kv;
    a.q = (uint16_t *)gpu_copy(q16.data(), q16.size() * 2);
    a.y = out + GUARD, a.y_bf16 = c->y_bf16;
    a.n_heads = p.n_heads, a.n_seqs = p.B;
    a.first_row = (int32_t *)gpu_copy(first.data(), first.size() * 4);
    a.position = (int32_t *)gpu_copy(position.data(), position.size() * 4);
    a.max_rows = max_rows, a.max_tokens = p.max_n;
    a.scale = (float)(1 / sqrt((double)c->D));
    a.workspace = gpu_alloc(ws);
    CUDA_OK(cudaMemset(a.workspace, 0xff, ws));
    bool clean = true;
    for (int i = 0; i < 2; i++) {
        CUDA_OK(cudaMemset(out, 0xff, y_bytes));
        FL_OK_OR_EXIT(fl__cuda_attention_prefill(&a, NULL, &err));
        CUDA_OK(cudaDeviceSynchronize());
        (i ? again : y) = fetch_output(out, q.size(), c->y_bf16, &clean);
    }
    prefill_error e = {};
    compare(&e, c, &p, first, q, y);
    const bool same = memcmp(y.data(), again.data(), y.size() * 4) == 0;
    const bool good =
        e.over <= 1 && e.worst < 2e-2 && e.sum < 3e-3 * e.count && same && clean && e.count > 0;
    printf("%s prefill kv%-2d D %-3d kv heads %d x %d, %2d seqs, first %4d from %3d, y %s: max "
           "%.1e mean %.1e, of the limit %.2f%s%s\n",
           good ? "ok  " : "FAIL", c->bits, c->D, c->n_kv, c->group, p.B, c->n[0], c->from,
           c->y_bf16 ? "bf16" : "f32", e.worst, e.sum / e.count, e.over,
           same ? "" : ", not deterministic", clean ? "" : ", wrote outside");
    fflush(stdout);
    *(good ? &total->passed : &total->failed) += 1;
    CUDA_OK(cudaFree((void *)a.q));
    CUDA_OK(cudaFree(out));
    CUDA_OK(cudaFree((void *)a.first_row));
    CUDA_OK(cudaFree((void *)a.position));
    CUDA_OK(cudaFree(a.workspace));
    problem_fini(&p);
}

tally check_prefill(prefill_choice choice)
{
    static const int dims[] = {64, 80, 128};
    tally t = {0, 0};
    for (int bits = 4; bits <= 16; bits *= 2)
        for (int D : dims) {
            const prefill_case cases[] = {
                {bits, D, 2, 4, 0, {1, 15, 64, 65, 200, 131}, 1, true, 1},
                {bits, D, 2, 4, 70, {71, 64, 129, 300, 256, 70}, 3, false, 1},
                {bits, D, 3, 1, 0, {257, 5, 128}, 1, false, 1},
                {bits, D, 1, 8, 33, {500, 34, 97}, 6, true, 3},
                {bits, D, 2, 5, 0, {127, 1, 77}, 3, true, 1},
                {bits, D, 1, 4, 777, {1500}, 2, true, 17},
            };
            const size_t less = choice == PREFILL_QUICK && D != 128 ? 2 : 0;
            const size_t n = choice == PREFILL_TINY ? 1 : FL_COUNT(cases) - less;
            for (size_t i = 0; i < n; i++) check_case(&cases[i], &t);
        }
    if (choice == PREFILL_TINY) return t;
    std::vector<int> ragged;
    for (int b = 0; b < 40; b++) ragged.push_back(1 + b * b * 37 % 401);
    const prefill_case many = {4, 128, 8, 4, 0, ragged, 1, true, 29};
    check_case(&many, &t);
    return t;
}
