/* compare_devices.c - logits of the GPU beside the CPU's on the same tokens of a text.
 *
 *   compare_devices TEXT MODEL[=FLOAT_MODEL]...
 *
 * For each model: PROMPT tokens of the text at once, then STEPS more one at a time, on both
 * devices. Prints the root mean square of the difference, and the largest one, and how often
 * the first-ranked tokens differ, with the largest gap between the two on the CPU. Limits, of
 * the root mean square over the logits' standard deviation:
 *
 *   float model      4 sqrt(6 n_layers) 2^-9 / sqrt(3): the GPU rounds what six ops of a block
 *                    put out to bfloat16, each by 2^-9 / sqrt(3) of its size at most, and the
 *                    roundings add up like random numbers; times 4 for what a block amplifies
 *   quantised model  what quantising itself changed, the CPU's logits against those of the
 *                    float model: a value that bfloat16 moved across a border between two codes
 *                    is as well rounded as it was, so that two ways to run one quantised model
 *                    may differ by the errors that rounding makes, and not by more
 *
 * Closes with 'N passed, N failed, N skipped', a model being one.
 * SPDX-License-Identifier: MIT */
#include <flatiron/flatiron.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { PROMPT = 150, STEPS = 24, MAX_TEXT = 1 << 16 };

typedef struct side {
    fl_engine *engine;
    fl_session *session;
} side;

typedef struct tally {
    double largest, squares, variance;
    long n;
    int rows, differ;
    double gap;
} tally;

static void must(fl_status st, const fl_err *err)
{
    if (st == FL_OK) return;
    (void)fprintf(stderr, "compare_devices: %s\n", err->text);
    exit(1);
}

static void open_side(side *s, const char *dir, const char *device)
{
    fl_engine_options o;
    fl_err err;
    fl_engine_options_defaults(&o);
    o.device = device;
    must(fl_engine_open(&s->engine, dir, &o, &err), &err);
    must(fl_session_new(&s->session, s->engine, NULL, &err), &err);
}

static void close_side(side *s)
{
    fl_session_free(&s->session);
    fl_engine_close(&s->engine);
}

static int argmax(const float *x, int n)
{
    int best = 0;
    for (int i = 1; i < n; i++)
        if (x[i] > x[best]) best = i;
    return best;
}

static void compare(tally *t, const float *cpu, const float *gpu, int n)
{
    double mean = 0, square = 0;
    for (int i = 0; i < n; i++) {
        const double d = fabs((double)cpu[i] - (double)gpu[i]);
        if (!(d <= t->largest)) t->largest = d; /* a NaN too */
        t->squares += d * d;
        mean += (double)cpu[i] / n;
        square += (double)cpu[i] * (double)cpu[i] / n;
    }
    t->variance += square - mean * mean;
    t->n += n;
    t->rows++;
    const int a = argmax(cpu, n), b = argmax(gpu, n);
    if (a == b) return;
    t->differ++;
    t->gap = fmax(t->gap, (double)cpu[a] - (double)cpu[b]);
}

static void feed(tally *t, side both[2], const int32_t *ids, size_t n, int n_vocab)
{
    const float *logits[2];
    fl_err err;
    for (int i = 0; i < 2; i++)
        must(fl_session_feed(both[i].session, ids, n, &logits[i], &err), &err);
    compare(t, logits[0], logits[1], n_vocab);
}

/* Of the difference, over the logits' deviation. */
static double relative(const tally *t)
{
    return sqrt(t->squares / (double)t->n) / sqrt(t->variance / t->rows);
}

static void report(const char *what, const char *dir, const tally *t, double limit)
{
    (void)printf("%s %s: rms %.2e (limit %.2e) of the logits' deviation, largest difference "
                 "%.4f, %d of %d first tokens differ, gap %.4f\n",
                 dir, what, relative(t), limit, t->largest, t->differ, t->rows, t->gap);
}

/* b: what is compared with a, a tally each for the prompt and the steps. */
static void run_pair(tally t[2], side *a, side *b, const char *text, size_t n_bytes)
{
    fl_engine_info info;
    side both[2] = {*a, *b};
    int32_t *ids;
    size_t n_ids;
    fl_err err;
    fl_engine_get_info(a->engine, &info);
    must(fl_engine_encode(&ids, &n_ids, a->engine, text, n_bytes, false, &err), &err);
    if (n_ids < PROMPT + STEPS) {
        (void)fprintf(stderr, "compare_devices: the text has %zu tokens\n", n_ids);
        exit(1);
    }
    fl_session_truncate(a->session, 0);
    fl_session_truncate(b->session, 0);
    memset(t, 0, 2 * sizeof *t);
    feed(&t[0], both, ids, PROMPT, info.vocab_size);
    for (int i = 0; i < STEPS; i++) feed(&t[1], both, ids + PROMPT + i, 1, info.vocab_size);
    fl_ids_free(&ids);
}

/* float_dir NULL: a float model. */
static bool run(const char *dir, const char *float_dir, const char *text, size_t n_bytes)
{
    side cpu, gpu, exact;
    tally t[2], rounding[2];
    fl_engine_info info;
    double limit[2];
    bool good = true;
    open_side(&cpu, dir, "cpu");
    open_side(&gpu, dir, "cuda");
    run_pair(t, &cpu, &gpu, text, n_bytes);
    fl_engine_get_info(cpu.engine, &info);
    limit[0] = limit[1] = 4 * sqrt(6.0 * info.n_layers) / 512 / sqrt(3.0);
    if (float_dir) {
        open_side(&exact, float_dir, "cpu");
        run_pair(rounding, &cpu, &exact, text, n_bytes);
        close_side(&exact);
        for (int i = 0; i < 2; i++) limit[i] = relative(&rounding[i]);
    }
    report("prompt", dir, &t[0], limit[0]);
    report("decode", dir, &t[1], limit[1]);
    for (int i = 0; i < 2; i++) good = good && relative(&t[i]) <= limit[i];
    close_side(&cpu);
    close_side(&gpu);
    return good;
}

int main(int argc, char **argv)
{
    static char text[MAX_TEXT];
    int passed = 0;
    FILE *f = argc > 2 ? fopen(argv[1], "rb") : NULL;
    if (!f) {
        (void)fprintf(stderr, "usage: compare_devices TEXT MODEL[=FLOAT_MODEL]...\n");
        return 1;
    }
    const size_t n = fread(text, 1, sizeof text, f);
    (void)fclose(f);
    for (int i = 2; i < argc; i++) {
        char *float_dir = strchr(argv[i], '=');
        if (float_dir) *float_dir++ = '\0';
        passed += run(argv[i], float_dir, text, n);
    }
    (void)printf("%d passed, %d failed, 0 skipped\n", passed, argc - 2 - passed);
    return passed == argc - 2 ? 0 : 1;
}
