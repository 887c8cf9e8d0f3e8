/* compare_devices.c - logits of the GPU beside the CPU's on the same tokens of a text.
 *
 *   compare_devices [--tolerance X] TEXT MODEL...
 *
 * For each model: PROMPT tokens of the text at once, then STEPS more one at a time, on both
 * devices. Prints the largest difference and the root mean square over the logits' standard
 * deviation, and how often the first-ranked tokens differ, with the largest gap between the
 * two on the CPU where they do. Exit 1: an error, or the mean square above the tolerance.
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

static double report(const char *what, const char *dir, const tally *t)
{
    const double rms = sqrt(t->squares / (double)t->n), sd = sqrt(t->variance / t->rows);
    (void)printf("%s %s: rms %.2e of the logits' deviation %.3f, largest difference %.4f, "
                 "%d of %d first tokens differ, gap %.4f\n",
                 dir, what, rms / sd, sd, t->largest, t->differ, t->rows, t->gap);
    return rms / sd;
}

/* Returns the larger of the two relative deviations. */
static double run(const char *dir, const char *text, size_t n_bytes)
{
    side both[2] = {{0}};
    tally prompt = {0}, steps = {0};
    fl_engine_info info;
    fl_err err;
    int32_t *ids;
    size_t n_ids;
    open_side(&both[0], dir, "cpu");
    open_side(&both[1], dir, "cuda");
    fl_engine_get_info(both[1].engine, &info);
    must(fl_engine_encode(&ids, &n_ids, both[0].engine, text, n_bytes, false, &err), &err);
    if (n_ids < PROMPT + STEPS) {
        (void)fprintf(stderr, "compare_devices: the text has %zu tokens\n", n_ids);
        exit(1);
    }
    feed(&prompt, both, ids, PROMPT, info.vocab_size);
    for (int i = 0; i < STEPS; i++) feed(&steps, both, ids + PROMPT + i, 1, info.vocab_size);
    const double a = report("prompt", dir, &prompt), b = report("decode", dir, &steps);
    fl_ids_free(&ids);
    for (int i = 0; i < 2; i++) close_side(&both[i]);
    return a > b ? a : b;
}

int main(int argc, char **argv)
{
    static char text[MAX_TEXT];
    double tolerance = INFINITY, worst = 0;
    int at = 1;
    if (argc > 2 && strcmp(argv[1], "--tolerance") == 0) {
        tolerance = strtod(argv[2], NULL);
        at = 3;
    }
    FILE *f = at + 1 < argc ? fopen(argv[at], "rb") : NULL;
    if (!f) {
        (void)fprintf(stderr, "usage: compare_devices [--tolerance X] TEXT MODEL...\n");
        return 1;
    }
    const size_t n = fread(text, 1, sizeof text, f);
    (void)fclose(f);
    for (int i = at + 1; i < argc; i++) {
        const double rms = run(argv[i], text, n);
        if (!(rms <= worst)) worst = rms;
    }
    return worst <= tolerance ? 0 : 1;
}
