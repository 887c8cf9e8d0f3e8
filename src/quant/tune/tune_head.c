/* tune_head.c - KL divergence and its gradient, some hundred rows of logits at a time.
 * SPDX-License-Identifier: MIT */
#include "quant/tune/tune_head.h"

#include "base/mem.h"
#include "train/train_gemm.h"
#include "train/train_rows.h"

#include <math.h>
#include <string.h>

enum { LOGITS = 1 << 23, MIN_TILE = 64, ITEM_ROWS = 8 };

struct fl_tune_head {
    const fl_exec *ex;
    const fl_train_rows *rows;
    fl_train_gemm *gemm;
    int V, E, tile; /* vocabulary, width of hidden states, rows of logits at a time */
    float *w;       /* [V, E] */
    float *teacher, *student; /* [tile, V] */
    float *work;    /* [threads, V] */
    double *sums;   /* [tile / ITEM_ROWS up] */
};

static int tile_rows(const fl_model *model, int max_rows)
{
    const int fit = FL_MAX(LOGITS / model->cfg.vocab_size, MIN_TILE);
    return FL_MIN(fit, max_rows);
}

size_t fl__tune_head_bytes(const fl_model *model, int max_rows)
{
    const size_t V = (size_t)model->cfg.vocab_size, E = (size_t)model->cfg.embed_size;
    return V * (E + 2 * (size_t)tile_rows(model, max_rows)) * sizeof(float);
}

fl_status fl__tune_head_new(fl_tune_head **out, const fl_model *model, const fl_exec *ex,
                            int max_rows, bool bf16, fl_err *err)
{
    const size_t V = (size_t)model->cfg.vocab_size, E = (size_t)model->cfg.embed_size;
    fl_tune_head *h = fl__calloc(1, sizeof *h);
    *out = NULL;
    if (!h) return fl__fail_nomem(err, "tuning", sizeof *h);
    *h = (fl_tune_head){.ex = ex, .rows = fl__train_rows_select(ex->isa), .V = (int)V,
                        .E = (int)E, .tile = tile_rows(model, max_rows)};
    const size_t logits = (size_t)h->tile * V;
    h->w = fl__alloc(V * E, sizeof(float));
    h->teacher = fl__alloc(logits, sizeof(float));
    h->student = fl__alloc(logits, sizeof(float));
    h->work = fl__alloc((size_t)ex->n_threads * V, sizeof(float));
    h->sums = fl__alloc((size_t)(h->tile + ITEM_ROWS - 1) / ITEM_ROWS, sizeof(double));
    fl_status st = h->w && h->teacher && h->student && h->work && h->sums
                       ? fl__train_gemm_new(&h->gemm, ex, bf16, err)
                       : fl__fail_nomem(err, "tuning's head", (V * E + 2 * logits) * 4);
    if (st) {
        fl__tune_head_free(&h);
        return st;
    }
    fl__dtype_to_f32(h->w, model->head.w_type, model->head.w, V * E);
    *out = h;
    return FL_OK;
}

void fl__tune_head_free(fl_tune_head **head)
{
    fl_tune_head *h = *head;
    if (!h) return;
    fl__free(&h->w);
    fl__free(&h->teacher);
    fl__free(&h->student);
    fl__free(&h->work);
    fl__free(&h->sums);
    fl__train_gemm_free(&h->gemm);
    fl__free(head);
}

typedef struct row_job {
    fl_tune_head *h;
    int n;       /* rows */
    float share; /* of a token in the mean */
} row_job;

/* One token: student's logits become the gradient; returns KL. */
static double token(const fl_tune_head *h, float *student, float *teacher, float *difference,
                    float share)
{
    const fl_train_rows *rows = h->rows;
    float top_t, top_s;
    memcpy(difference, student, (size_t)h->V * sizeof *difference);
    rows->scale(difference, -1, h->V);
    rows->add(difference, difference, teacher, h->V);
    const float sum_t = rows->exp_row(teacher, &top_t, 1, h->V);
    const float sum_s = rows->exp_row(student, &top_s, 1, h->V);
    const double mean = (double)rows->dot(teacher, difference, h->V) / (double)sum_t;
    rows->scale(student, share / sum_s, h->V);
    rows->scale(teacher, -share / sum_t, h->V);
    rows->add(student, student, teacher, h->V);
    return mean - ((double)top_t + log((double)sum_t)) + ((double)top_s + log((double)sum_s));
}

static void rows_item(void *arg, int64_t item, int thread)
{
    const row_job *j = arg;
    fl_tune_head *h = j->h;
    const size_t V = (size_t)h->V;
    double sum = 0;
    for (int r = (int)item * ITEM_ROWS; r < FL_MIN((int)(item + 1) * ITEM_ROWS, j->n); r++)
        sum += token(h, h->student + (size_t)r * V, h->teacher + (size_t)r * V,
                     h->work + (size_t)thread * V, j->share);
    h->sums[item] = sum;
}

fl_status fl__tune_head_loss(double *kl, fl_tune_head *h, float *d, const float *student,
                             const float *teacher, int n_rows, fl_err *err)
{
    double sum = 0;
    for (int r = 0; r < n_rows; r += h->tile) {
        const int n = FL_MIN(h->tile, n_rows - r), items = (n + ITEM_ROWS - 1) / ITEM_ROWS;
        const size_t at = (size_t)r * (size_t)h->E;
        row_job j = {h, n, 1.0f / (float)n_rows};
        fl_status st;
        if ((st = fl__train_gemm_nt(h->gemm, n, h->V, h->E, teacher + at, h->w, 0, h->teacher,
                                    err)) ||
            (st = fl__train_gemm_nt(h->gemm, n, h->V, h->E, student + at, h->w, 0, h->student,
                                    err)))
            return st;
        fl__parallel_for(h->ex, items, rows_item, &j);
        for (int i = 0; i < items; i++) sum += h->sums[i];
        if ((st = fl__train_gemm_nn(h->gemm, n, h->E, h->V, h->student, h->w, 0, d + at, err)))
            return st;
    }
    *kl = sum / n_rows;
    return FL_OK;
}
