/* calib.c - cutting and sampling calibration windows. SPDX-License-Identifier: MIT */
#include "quant/calib.h"

#include "base/mem.h"
#include "base/rng.h"

#include <math.h>
#include <string.h>

static fl_status calib_init(fl_calib *c, int n_windows, int seq_len, fl_err *err)
{
    const size_t n = (size_t)n_windows * (size_t)seq_len;
    *c = (fl_calib){.n_windows = n_windows, .seq_len = seq_len};
    c->ids = fl__alloc(n, sizeof *c->ids);
    return c->ids ? FL_OK : fl__fail_nomem(err, "calibration windows", n * sizeof *c->ids);
}

void fl__calib_fini(fl_calib *c)
{
    fl__free(&c->ids);
}

uint64_t fl__calib_hash(const fl_calib *c)
{
    const size_t n = (size_t)c->n_windows * (size_t)c->seq_len;
    uint64_t h = 0xcbf29ce484222325u ^ (uint64_t)c->seq_len;
    for (size_t i = 0; i < n; i++) h = (h ^ (uint32_t)c->ids[i]) * 0x100000001b3u;
    return h;
}

fl_status fl__calib_from_ids(fl_calib *c, const int32_t *ids, size_t n_ids, int n_windows,
                             int seq_len, uint64_t seed, int n_vocab, const char *where,
                             fl_err *err)
{
    *c = (fl_calib){0};
    if (n_ids < (size_t)seq_len)
        return fl__fail(
            err, FL_E_INPUT,
            "calibration text: %s: %zu tokens, a window needs %d; give more text or a "
            "smaller --seq-len",
            where, n_ids, seq_len);
    for (size_t i = 0; i < n_ids; i++)
        if (ids[i] < 0 || ids[i] >= n_vocab)
            return fl__fail(
                err, FL_E_INPUT,
                "calibration text: %s: token id %d, the model has %d; tokenizer and "
                "model do not belong together",
                where, ids[i], n_vocab);
    const fl_status st = calib_init(c, n_windows, seq_len, err);
    if (st) return st;
    for (int w = 0; w < n_windows; w++) {
        fl_rng rng = fl__rng_init(seed, w, "calibration-window");
        const size_t at = fl__rng_below(&rng, n_ids - (size_t)seq_len + 1);
        memcpy(c->ids + (size_t)w * (size_t)seq_len, ids + at, (size_t)seq_len * sizeof *ids);
    }
    return FL_OK;
}

/* ---- sampled by the model ---------------------------------------------------------------- */

/* One draw from softmax(logits), in double, lowest ids first. */
static int32_t draw(const float *logits, int n, fl_rng *rng)
{
    float top = -INFINITY;
    double sum = 0;
    for (int i = 0; i < n; i++) top = FL_MAX(top, logits[i]);
    for (int i = 0; i < n; i++) sum += exp((double)logits[i] - top);
    double left = fl__rng_unit(rng) * sum;
    for (int i = 0; i < n; i++) {
        left -= exp((double)logits[i] - top);
        if (left < 0) return i;
    }
    return n - 1;
}

/* One group of windows, token by token. */
typedef struct sampler {
    fl_calib *c;
    const fl_model *model;
    const fl_exec *ex;
    uint64_t seed;
    int first, n, position; /* windows of the group; token being drawn */
    float *logits;          /* [n, vocab] */
    fl_rng *rngs;           /* [n] */
    fl_span *spans;
    int32_t *last;
    fl_workspace *ws;
    fl_kv_cache *kv;
} sampler;

static int32_t *window_of(const sampler *s, int64_t w)
{
    return s->c->ids + (size_t)(s->first + w) * (size_t)s->c->seq_len;
}

static void draw_window(void *arg, int64_t w, int thread)
{
    const sampler *s = arg;
    const int V = s->model->cfg.vocab_size;
    (void)thread;
    window_of(s, w)[s->position] = draw(s->logits + (size_t)w * (size_t)V, V, &s->rngs[w]);
}

/* false when should_stop said so. */
static bool write_group(sampler *s, fl_calib_stop_fn *should_stop, void *user)
{
    for (int w = 0; w < s->n; w++) {
        fl__kv_resize(s->kv, w, 0);
        s->rngs[w] = fl__rng_init(s->seed, s->first + w, "calibration-sample");
        window_of(s, w)[0] =
            (int32_t)fl__rng_below(&s->rngs[w], (uint64_t)s->model->cfg.vocab_size);
    }
    for (int p = 1; p < s->c->seq_len; p++) {
        if (should_stop && should_stop(user)) return false;
        for (int w = 0; w < s->n; w++) {
            s->last[w] = window_of(s, w)[p - 1];
            s->spans[w] = (fl_span){.seq = w, .pos = p - 1, .n_rows = 1};
        }
        const float *hidden =
            fl__model_forward(s->model, s->ex, s->ws, s->kv, s->last, s->spans, s->n);
        fl__model_logits(s->model, s->ex, s->ws, hidden, s->n, s->logits);
        s->position = p;
        fl__parallel_for(s->ex, s->n, draw_window, s);
    }
    return true;
}

/* As many windows at once as a cache of 1 GB holds, but 8 at least: more rows use the weights
 * better. */
static int group_size(const fl_model *model, int n_windows, int seq_len)
{
    const fl_kv_options o = fl__model_kv_options(model, 1, seq_len);
    const size_t fit = ((size_t)1 << 30) / fl__kv_bytes(&o);
    return FL_MIN(n_windows, (int)FL_MIN(FL_MAX(fit, 8), 1024));
}

size_t fl__calib_sample_bytes(const fl_model *model, const fl_exec *ex, int n_windows,
                              int seq_len)
{
    const int group = group_size(model, n_windows, seq_len);
    const fl_kv_options o = fl__model_kv_options(model, group, seq_len);
    return fl__kv_bytes(&o) + fl__workspace_bytes(model, ex, group) +
           (size_t)group * ((size_t)model->cfg.vocab_size * sizeof(float) + sizeof(fl_rng) +
                            sizeof(fl_span) + sizeof(int32_t));
}

fl_status fl__calib_from_model(fl_calib *c, const fl_model *model, const fl_exec *ex,
                               int n_windows, int seq_len, uint64_t seed,
                               fl_calib_stop_fn *should_stop, void *user, fl_err *err)
{
    const int group = group_size(model, n_windows, seq_len);
    const fl_kv_options kv_options = fl__model_kv_options(model, group, seq_len);
    const size_t n_logits = (size_t)group * (size_t)model->cfg.vocab_size;
    sampler s = {.c = c, .model = model, .ex = ex, .seed = seed};
    fl_status st = calib_init(c, n_windows, seq_len, err);
    if (st) return st;
    s.logits = fl__alloc(n_logits, sizeof *s.logits);
    s.rngs = fl__alloc((size_t)group, sizeof *s.rngs);
    s.spans = fl__alloc((size_t)group, sizeof *s.spans);
    s.last = fl__alloc((size_t)group, sizeof *s.last);
    if (!s.logits || !s.rngs || !s.spans || !s.last)
        st =
            fl__fail_nomem(err, "sampling of calibration windows", n_logits * sizeof *s.logits);
    if (!st) st = fl__workspace_new(&s.ws, model, ex, group, err);
    if (!st) st = fl__kv_new(&s.kv, &kv_options, err);
    for (s.first = 0; !st && s.first < n_windows; s.first += group) {
        s.n = FL_MIN(group, n_windows - s.first);
        if (!write_group(&s, should_stop, user))
            st = fl__fail(err, FL_E_INTERRUPTED,
                          "quantize: interrupted: while the model wrote calibration text, of "
                          "which nothing is kept; start again");
    }
    fl__free(&s.logits);
    fl__free(&s.rngs);
    fl__free(&s.spans);
    fl__free(&s.last);
    fl__workspace_free(&s.ws);
    fl__kv_free(&s.kv);
    if (st) fl__calib_fini(c);
    return st;
}
