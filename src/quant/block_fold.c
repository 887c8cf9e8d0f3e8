/* block_fold.c - smoothing folded into a block (docs/flattenquant.md, "smoothing"; methods'
 * section 1.1).
 *
 * For a site with factors s, x <- x / s at its input and W <- W diag(s) behind it. The division
 * goes into whatever produced x: the norm's gain and bias (q, k, v; gate, up; fc1), v_proj's
 * rows and bias (o: attention mixes tokens, not channels; heads of a group share their v, hence
 * their s), up_proj's or fc1's rows and bias (down, fc2: the product with silu(gate) and ReLU
 * let a positive factor through).
 * SPDX-License-Identifier: MIT */
#include "quant/block.h"

#include "base/mem.h"

#include <string.h>

/* own_w [N, K] = w * col[k] / row[n] in double; row maps output n to its factor. */
static fl_status scaled_copy(fl_linear *lin, const float *col, const float *row, int row_group,
                             int head_dim, fl_err *err)
{
    const size_t N = (size_t)lin->n_out, K = (size_t)lin->n_in;
    lin->own_w = fl__alloc(N * K, sizeof *lin->own_w);
    if (!lin->own_w) return fl__fail_nomem(err, "block in float32", N * K * sizeof(float));
    fl__dtype_to_f32(lin->own_w, lin->w_type, lin->w, N * K);
    lin->w = lin->own_w;
    lin->w_type = FL_DTYPE_F32;
    for (size_t n = 0; n < N && (col || row); n++) {
        /* v_proj: row (kv head, d) belongs to channel (first query head of the group, d) of
         * o */
        const size_t head = n / (size_t)head_dim, d = n % (size_t)head_dim;
        const double r =
            row ? row[row_group > 1 ? head * (size_t)row_group * (size_t)head_dim + d : n] : 1;
        for (size_t k = 0; k < K; k++)
            lin->own_w[n * K + k] =
                (float)((double)lin->own_w[n * K + k] * (col ? col[k] : 1) / r);
        if (lin->bias) lin->bias[n] = (float)((double)lin->bias[n] / r);
    }
    return FL_OK;
}

static void divide(float *x, const float *s, int n)
{
    for (int i = 0; x && i < n; i++) x[i] = (float)((double)x[i] / s[i]);
}

/* The factors of a norm-fed site: into the norm, or kept at the site where the norm's output is
 * also the residual. */
static fl_status fold_norm(fl_block *b, const fl_model *model, int site, const float *s,
                           fl_err *err)
{
    const int n = model->cfg.hidden_size;
    if (!s) return FL_OK;
    if (model->cfg.pre_norm) {
        fl_norm *norm = &b->norm[site == FL_SITE_QKV ? 0 : 1];
        divide(norm->gain, s, n);
        divide(norm->bias, s, n);
        return FL_OK;
    }
    float *premul = fl__alloc((size_t)n, sizeof *premul);
    if (!premul) return fl__fail_nomem(err, "input multiplier", (size_t)n * sizeof *premul);
    for (int i = 0; i < n; i++) premul[i] = (float)(1.0 / s[i]);
    b->site[site].premul = premul;
    return FL_OK;
}

bool fl__key_bias_is_dropped(const fl_model *model)
{
    return model->cfg.rope.kind == FL_ROPE_NONE &&
           fl__kv_code_bits(model->stream_k_format) != 0;
}

fl_status fl__block_fold(fl_block *folded, const fl_model *model, int layer,
                         const fl_site_plan *plan, fl_err *err)
{
    const fl_model_config *cfg = &model->cfg;
    const float *s[FL_N_SITES] = {0};
    fl_status st = fl__block_load(folded, model, layer, err);
    if (st) return st;
    for (int i = 0; plan && i < FL_N_SITES; i++) s[i] = plan[i].smooth;
    for (int i = 0; i < FL_N_SITES && !st; i++) {
        int linears[FL_SITE_MAX_LINEARS];
        const int n = fl__site_linears(linears, cfg, i);
        for (int k = 0; k < n && !st; k++) {
            const int lin = linears[k];
            const float *row = lin == FL_LIN_V    ? s[FL_SITE_O]
                               : lin == FL_LIN_UP ? s[FL_SITE_DOWN]
                                                  : NULL;
            const int group = lin == FL_LIN_V ? cfg->n_heads / cfg->n_kv_heads : 1;
            st = scaled_copy(&folded->linear[lin], s[i], row, group, cfg->head_dim, err);
        }
        if (!st && (i == FL_SITE_QKV || i == FL_SITE_UP))
            st = fold_norm(folded, model, i, s[i], err);
    }
    if (!st && fl__key_bias_is_dropped(model)) {
        fl_linear *k = &folded->linear[FL_LIN_K];
        if (k->bias) memset(k->bias, 0, (size_t)k->n_out * sizeof *k->bias);
    }
    if (st) fl__block_fini(folded);
    return st;
}
