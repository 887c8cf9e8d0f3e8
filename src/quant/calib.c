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
        return fl__fail(err, FL_E_INPUT, "calibration text: %s: %zu tokens, a window needs %d; give more text or a "
                                         "smaller --seq-len", where, n_ids, seq_len);
    for (size_t i = 0; i < n_ids; i++)
        if (ids[i] < 0 || ids[i] >= n_vocab)
            return fl__fail(err, FL_E_INPUT, "calibration text: %s: token id %d, the model has %d; tokenizer and "
                                             "model do not belong together", where, ids[i], n_vocab);
    const fl_status st = calib_init(c, n_windows, seq_len, err);
    if (st) return st;
    for (int w = 0; w < n_windows; w++) {
        fl_rng rng = fl__rng_init(seed, w, "calibration-window");
        const size_t at = fl__rng_below(&rng, n_ids - (size_t)seq_len + 1);
        memcpy(c->ids + (size_t)w * (size_t)seq_len, ids + at, (size_t)seq_len * sizeof *ids);
    }
    return FL_OK;
}

/* ---- sampled by the model ------------------------------------------------------------------------- */

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

typedef struct sampler {
    fl_calib *c;
    const float *logits;
    int n_vocab, position;
    fl_rng *rngs; /* [n_windows] */
} sampler;

static void draw_window(void *arg, int64_t w, int thread)
{
    const sampler *s = arg;
    (void)thread;
    s->c->ids[w * s->c->seq_len + s->position] =
        draw(s->logits + (size_t)w * (size_t)s->n_vocab, s->n_vocab, &s->rngs[w]);
}

fl_status fl__calib_from_model(fl_calib *c, const fl_model *model, const fl_exec *ex,
                               int n_windows, int seq_len, uint64_t seed, fl_err *err)
{
    const int V = model->cfg.vocab_size;
    const fl_kv_options kv_options = fl__model_kv_options(model, n_windows, seq_len);
    fl_workspace *ws = NULL;
    fl_kv_cache *kv = NULL;
    float *logits = fl__alloc((size_t)n_windows * (size_t)V, sizeof *logits);
    fl_rng *rngs = fl__alloc((size_t)n_windows, sizeof *rngs);
    fl_span *spans = fl__alloc((size_t)n_windows, sizeof *spans);
    int32_t *last = fl__alloc((size_t)n_windows, sizeof *last);
    fl_status st = calib_init(c, n_windows, seq_len, err);
    if (st) goto out;
    if (!logits || !rngs || !spans || !last) {
        st = fl__fail_nomem(err, "sampling of calibration windows", (size_t)n_windows * (size_t)V * 4);
        goto out;
    }
    if ((st = fl__workspace_new(&ws, model, ex, n_windows, err))) goto out;
    if ((st = fl__kv_new(&kv, &kv_options, err))) goto out;
    for (int w = 0; w < n_windows; w++) {
        rngs[w] = fl__rng_init(seed, w, "calibration-sample");
        c->ids[(size_t)w * (size_t)seq_len] = (int32_t)fl__rng_below(&rngs[w], (uint64_t)V);
    }
    sampler s = {.c = c, .logits = logits, .n_vocab = V, .rngs = rngs};
    for (int p = 1; p < seq_len; p++) {
        for (int w = 0; w < n_windows; w++) {
            last[w] = c->ids[(size_t)w * (size_t)seq_len + (size_t)p - 1];
            spans[w] = (fl_span){.seq = w, .pos = p - 1, .n_rows = 1};
        }
        const float *hidden = fl__model_forward(model, ex, ws, kv, last, spans, n_windows);
        fl__model_logits(model, ex, ws, hidden, n_windows, logits);
        s.position = p;
        fl__parallel_for(ex, n_windows, draw_window, &s);
    }
out:
    fl__free(&logits);
    fl__free(&rngs);
    fl__free(&spans);
    fl__free(&last);
    fl__workspace_free(&ws);
    fl__kv_free(&kv);
    if (st) fl__calib_fini(c);
    return st;
}
