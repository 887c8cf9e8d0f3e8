/* stream.c - walks of calibration batches through a block. SPDX-License-Identifier: MIT */
#include "quant/stream.h"

#include "base/mem.h"
#include "quant/checkpoint.h"

#include <math.h>
#include <string.h>

enum { BATCH_ROWS = 2048 };

static int windows_per_batch(int n_windows, int seq_len)
{
    const int n = BATCH_ROWS / seq_len;
    return n < 1 ? 1 : FL_MIN(n, n_windows);
}

static int widest_site(const fl_model *model)
{
    int widest = 0;
    for (int b = 0; b < FL_N_BUFS; b++) widest = FL_MAX(widest, model->program.width[b]);
    return widest;
}

static fl_kv_options kv_options(const fl_model *model, int n_windows, int seq_len, fl_lane lane)
{
    fl_kv_options o = fl__model_kv_options(model, n_windows, seq_len);
    const bool quant = lane == FL_LANE_QUANT;
    o.n_layers = 1;
    o.k_format = quant ? model->stream_k_format : FL_KV_F32;
    o.v_format = quant ? model->stream_v_format : FL_KV_F32;
    return o;
}

fl_stream_bytes fl__stream_bytes(const fl_model *model, const fl_exec *ex, int n_windows,
                                 int seq_len, bool follow_quant)
{
    const int batch = windows_per_batch(n_windows, seq_len), rows = batch * seq_len;
    const fl_kv_options f = kv_options(model, batch, seq_len, FL_LANE_FLOAT);
    const fl_kv_options q = kv_options(model, batch, seq_len, FL_LANE_QUANT);
    const size_t tokens = (size_t)n_windows * (size_t)seq_len;
    fl_stream_bytes b;
    b.activations =
        tokens * (size_t)model->cfg.hidden_size * sizeof(float) * (follow_quant ? 2 : 1);
    b.workspace = fl__workspace_bytes(model, ex, rows) + fl__kv_bytes(&f) +
                  2 * (size_t)rows * (size_t)widest_site(model) * sizeof(float) +
                  (size_t)rows * (size_t)model->cfg.hidden_size * sizeof(float);
    if (follow_quant) b.workspace += fl__kv_bytes(&q);
    return b;
}

fl_status fl__stream_new(fl_stream **out, const fl_model *model, const fl_exec *ex,
                         const fl_calib *calib, bool follow_quant, fl_err *err)
{
    const int L = calib->seq_len, batch = windows_per_batch(calib->n_windows, L);
    const size_t n = (size_t)calib->n_windows * (size_t)L * (size_t)model->cfg.hidden_size;
    const size_t site = (size_t)batch * (size_t)L * (size_t)widest_site(model);
    const fl_kv_options f = kv_options(model, batch, L, FL_LANE_FLOAT);
    const fl_kv_options q = kv_options(model, batch, L, FL_LANE_QUANT);
    fl_status st = FL_OK;
    fl_stream *s;

    *out = NULL;
    s = fl__calloc(1, sizeof *s);
    if (!s) return fl__fail_nomem(err, "calibration", sizeof *s);
    *s = (fl_stream){.model = model, .ex = ex, .calib = calib, .batch_windows = batch,
                     .batch_rows = batch * L};
    s->x_float = fl__alloc(n, sizeof(float));
    s->x_quant = follow_quant ? fl__alloc(n, sizeof(float)) : NULL;
    s->site_float = fl__alloc(site, sizeof(float));
    s->site_quant = fl__alloc(site, sizeof(float));
    s->first_batch =
        fl__alloc((size_t)batch * (size_t)L * (size_t)model->cfg.hidden_size, sizeof(float));
    s->spans = fl__alloc((size_t)batch, sizeof *s->spans);
    if (!s->x_float || (follow_quant && !s->x_quant) || !s->site_float || !s->site_quant ||
        !s->first_batch || !s->spans)
        st = fl__fail_nomem(err, "calibration activations", n * sizeof(float) * 2);
    if (!st) st = fl__workspace_new(&s->ws, model, ex, batch * L, err);
    if (!st) st = fl__kv_new(&s->kv_float, &f, err);
    if (!st && follow_quant) st = fl__kv_new(&s->kv_quant, &q, err);
    if (st)
        fl__stream_free(&s);
    else
        *out = s;
    return st;
}

void fl__stream_free(fl_stream **s)
{
    if (!*s) return;
    fl__free(&(*s)->x_float);
    fl__free(&(*s)->x_quant);
    fl__free(&(*s)->site_float);
    fl__free(&(*s)->site_quant);
    fl__free(&(*s)->first_batch);
    fl__free(&(*s)->target);
    fl__free(&(*s)->spans);
    fl__workspace_free(&(*s)->ws);
    fl__kv_free(&(*s)->kv_float);
    fl__kv_free(&(*s)->kv_quant);
    fl__free(s);
}

/* ---- batches ----------------------------------------------------------------------------- */

typedef struct batch {
    int n_windows, n_rows;
    size_t at, n; /* first float and floats of its rows in the activation buffers */
    int64_t first_row;
} batch;

static int n_batches(const fl_stream *s)
{
    return (s->calib->n_windows + s->batch_windows - 1) / s->batch_windows;
}

static batch batch_of(const fl_stream *s, int i)
{
    batch b;
    const int first = i * s->batch_windows, L = s->calib->seq_len;
    const size_t hidden = (size_t)s->model->cfg.hidden_size;
    b.n_windows = FL_MIN(s->batch_windows, s->calib->n_windows - first);
    b.n_rows = b.n_windows * L;
    b.first_row = (int64_t)first * L;
    b.at = (size_t)b.first_row * hidden;
    b.n = (size_t)b.n_rows * hidden;
    return b;
}

static void prepare_spans(fl_stream *s, const batch *b, fl_kv_cache *kv)
{
    for (int w = 0; w < b->n_windows; w++) {
        s->spans[w] = (fl_span){.seq = w, .pos = 0, .n_rows = s->calib->seq_len};
        if (kv) fl__kv_resize(kv, w, s->calib->seq_len);
    }
}

static float *lane_of(const fl_stream *s, fl_lane lane)
{
    return lane == FL_LANE_FLOAT ? s->x_float : s->x_quant;
}

void fl__stream_embed_lane(fl_stream *s, fl_lane lane)
{
    float *x = lane_of(s, lane);
    for (int i = 0; i < n_batches(s); i++) {
        const batch b = batch_of(s, i);
        prepare_spans(s, &b, NULL);
        fl__model_embed(s->model, s->ex, s->ws, s->calib->ids + b.first_row, s->spans,
                        b.n_windows);
        memcpy(x + b.at, s->ws->buf[FL_BUF_X], b.n * sizeof(float));
    }
}

void fl__stream_embed(fl_stream *s)
{
    const size_t n = (size_t)s->calib->n_windows * (size_t)s->calib->seq_len *
                     (size_t)s->model->cfg.hidden_size;
    fl__stream_embed_lane(s, FL_LANE_FLOAT);
    if (s->x_quant) memcpy(s->x_quant, s->x_float, n * sizeof(float));
}

static void walk_batch(fl_stream *s, fl_lane lane, const fl_block *block, fl_half half,
                       const batch *b, const float *x, fl_site_hook *hook, void *user)
{
    fl_kv_cache *kv = lane == FL_LANE_FLOAT ? s->kv_float : s->kv_quant;
    prepare_spans(s, b, kv);
    memcpy(s->ws->buf[FL_BUF_X], x, b->n * sizeof(float));
    fl__block_run(s->model, block, 0, half, s->ex, s->ws, kv, s->spans, b->n_windows, hook,
                  user);
}

static bool must_stop(const fl_stream *s)
{
    return s->should_stop && s->should_stop(s->stop_user);
}

bool fl__stream_walk(fl_stream *s, fl_lane lane, const fl_block *block, fl_half half,
                     bool store, fl_site_hook *hook, void *user)
{
    for (int i = 0; i < n_batches(s); i++) {
        const batch b = batch_of(s, i);
        float *x = lane_of(s, lane) + b.at;
        if (must_stop(s)) return false;
        walk_batch(s, lane, block, half, &b, x, hook, user);
        if (store) memcpy(x, s->ws->buf[FL_BUF_X], b.n * sizeof(float));
    }
    return true;
}

fl_status fl__stream_target(fl_stream *s, const fl_block *block, fl_site_hook *hook, void *user,
                            fl_err *err)
{
    const size_t n = (size_t)s->calib->n_windows * (size_t)s->calib->seq_len *
                     (size_t)s->model->cfg.hidden_size;
    if (!s->target) s->target = fl__alloc(n, sizeof(float));
    if (!s->target) return fl__fail_nomem(err, "wanted outputs", n * sizeof(float));
    for (int i = 0; i < n_batches(s); i++) {
        const batch b = batch_of(s, i);
        if (must_stop(s))
            return fl__checkpoint_interrupted(err);
        walk_batch(s, FL_LANE_FLOAT, block, FL_HALF_BOTH, &b, s->x_float + b.at, hook, user);
        memcpy(s->target + b.at, s->ws->buf[FL_BUF_X], b.n * sizeof(float));
    }
    return FL_OK;
}

void fl__stream_take_target(fl_stream *s)
{
    float *old = s->x_float;
    s->x_float = s->target;
    s->target = old;
}

size_t fl__stream_first_batch(fl_stream *s, const fl_block *block, float *to)
{
    const batch b = batch_of(s, 0);
    walk_batch(s, FL_LANE_FLOAT, block, FL_HALF_BOTH, &b, s->first_batch, NULL, NULL);
    memcpy(to, s->ws->buf[FL_BUF_X], b.n * sizeof *to);
    return b.n;
}

/* ---- statistics -------------------------------------------------------------------------- */

typedef struct observer {
    fl_site_stats *stats; /* [FL_N_SITES] */
    const fl_block *block;
    const fl_stream *s;
} observer;

static bool collect_stats(void *user, int site, const float *x, int n_rows)
{
    const observer *o = user;
    const fl_stream *s = o->s;
    const fl_site *at = &o->block->site[site];
    if (at->transform.n1 || at->premul) {
        fl__site_input(s->ex, at, s->site_quant, x, n_rows, s->ws->scratch);
        x = s->site_quant;
    }
    fl__site_stats_add(&o->stats[site], x, n_rows);
    return true;
}

static fl_status collect(fl_site_stats stats[FL_N_SITES], fl_stream *s, fl_lane lane,
                         const fl_block *block, bool store, int n_sample, fl_err *err)
{
    const int64_t n = (int64_t)s->calib->n_windows * s->calib->seq_len;
    observer o = {stats, block, s};
    fl_status st = FL_OK;
    memset(stats, 0, FL_N_SITES * sizeof *stats);
    for (int i = 0; i < FL_N_SITES && !st; i++)
        st = fl__site_stats_init(&stats[i], block->site[i].n_in, n, n_sample, err);
    if (!st && !fl__stream_walk(s, lane, block, FL_HALF_BOTH, store, collect_stats, &o))
        st = fl__checkpoint_interrupted(err);
    for (int i = 0; i < FL_N_SITES; i++) {
        if (st)
            fl__site_stats_fini(&stats[i]);
        else
            fl__site_stats_finish(&stats[i]);
    }
    return st;
}

fl_status fl__stream_stats(fl_site_stats stats[FL_N_SITES], fl_stream *s, const fl_block *block,
                           int n_sample, fl_err *err)
{
    memcpy(s->first_batch, s->x_float, batch_of(s, 0).n * sizeof(float));
    return collect(stats, s, FL_LANE_FLOAT, block, true, n_sample, err);
}

fl_status fl__stream_learned_stats(fl_site_stats stats[FL_N_SITES], fl_stream *s,
                                   const fl_block *block, int n_sample, fl_err *err)
{
    return collect(stats, s, FL_LANE_QUANT, block, false, n_sample, err);
}

/* ---- second moments ---------------------------------------------------------------------- */

typedef struct capture {
    int site;
    float *to;
    size_t n_in;
} capture;

static bool capture_site(void *user, int site, const float *x, int n_rows)
{
    const capture *c = user;
    if (site != c->site) return true;
    memcpy(c->to, x, (size_t)n_rows * c->n_in * sizeof *x);
    return false;
}

void fl__site_dequantized(const fl_exec *ex, const fl_site *site, int linear, const float *x,
                          int n_rows, float *out, void *scratch)
{
    const size_t K = (size_t)site->n_in, ld = (size_t)site->code_ld;
    if (site->act == FL_ACT_FLOAT) {
        fl__site_input(ex, site, out, x, n_rows, scratch);
        return;
    }
    const fl_site_codes all = fl__site_quantize(ex, site, linear, x, n_rows, scratch);
    for (int r = 0; r < n_rows; r++) {
        const int8_t *q = all.codes + (size_t)r * ld;
        const float scale = all.scales[r * all.stride];
        const int zero = all.zeros[r * all.stride];
        float *y = out + (size_t)r * K;
        for (size_t c = 0; c < K; c++) y[c] = (float)(q[c] - zero) * scale;
        for (int e = 0; site->act == FL_ACT_STATIC && e < site->spec.n_extra; e++)
            if (site->extra_weight[e] == site->extra_src[e]) /* else a repeat for a weight */
                y[site->extra_src[e]] += (float)(q[K + (size_t)e] - zero) * scale;
    }
}

bool fl__stream_gram(fl_gram *gram, fl_stream *s, const fl_block *float_block,
                     const fl_block *quant_block, int site, const fl_site *probe, int linear)
{
    const size_t n_in = (size_t)float_block->site[site].n_in;
    const fl_half half = site <= FL_SITE_O ? FL_HALF_ATTENTION : FL_HALF_MLP;
    capture f = {site, s->site_float, n_in}, q = {site, s->site_quant, n_in};
    for (int i = 0; i < n_batches(s); i++) {
        const batch b = batch_of(s, i);
        if (must_stop(s)) return false;
        walk_batch(s, FL_LANE_FLOAT, float_block, half, &b, s->x_float + b.at, capture_site,
                   &f);
        walk_batch(s, FL_LANE_QUANT, quant_block, half, &b, s->x_quant + b.at, capture_site,
                   &q);
        /* the float lane's input as the folded weights expect it */
        fl__site_input(s->ex, probe, s->site_float, s->site_float, b.n_rows, s->ws->scratch);
        fl__site_dequantized(s->ex, probe, linear, s->site_quant, b.n_rows, s->site_quant,
                             s->ws->scratch);
        fl__gram_add(gram, s->ex, s->site_quant, s->site_float, b.n_rows);
    }
    fl__gram_finish(gram);
    return true;
}

double fl__stream_distance(const fl_stream *s)
{
    const size_t n = (size_t)s->calib->n_windows * (size_t)s->calib->seq_len *
                     (size_t)s->model->cfg.hidden_size;
    double error = 0, energy = 0;
    if (!s->x_quant) return NAN;
    for (size_t i = 0; i < n; i++) {
        const double d = (double)s->x_quant[i] - s->x_float[i];
        error += d * d;
        energy += (double)s->x_float[i] * s->x_float[i];
    }
    return energy > 0 ? error / energy : 0;
}
