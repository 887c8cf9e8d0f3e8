/* quantized_transform.c - reading the transforms of our quantised checkpoints: the factors of a
 * site's input, and the pair that meets queries and keys head by head.
 *
 * The sizes of a site's factors are those of its tensors: squares n1 and n2 with n1 * n2 = K;
 * where one is absent it is the identity of the size that is left.
 * SPDX-License-Identifier: MIT */
#include "model/quantized.h"

#include "base/mem.h"
#include "model/family.h"

#include <math.h>

static fl_status bad_size(const fl_tensor_view *view, int n, fl_err *err)
{
    return fl__fail(err, FL_E_INPUT,
                    "quantised model: tensor %s: no square matrix whose size fits %d channels; "
                    "the file is damaged",
                    view->name, n);
}

/* *size = rows of the square matrix `name`, a divisor of n; 0 when there is none. */
static fl_status factor_size(int *size, const fl_model *model, const char *name, int n,
                             fl_err *err)
{
    const fl_tensor_view *view = fl__tensors_find(model->tensors, name);
    *size = 0;
    if (!view) return FL_OK;
    const int64_t rows = view->n_dims == 2 ? view->dims[0] : 0;
    if (rows < 1 || rows > n || n % rows != 0 || view->dims[1] != rows)
        return bad_size(view, n, err);
    *size = (int)rows;
    return FL_OK;
}

fl_status fl__quantized_transform_sizes(int *n1, int *n2, const fl_model *model, int layer,
                                        int which, fl_err *err)
{
    char left[FL_MAX_TENSOR_NAME], right[FL_MAX_TENSOR_NAME];
    int linears[FL_SITE_MAX_LINEARS], n_out, n;
    fl_status st;
    (void)fl__site_linears(linears, &model->cfg, which);
    fl__linear_shape(&n_out, &n, &model->cfg, linears[0]);
    fl__linear_tensor_name(left, model, layer, linears[0], ".transform_left");
    fl__linear_tensor_name(right, model, layer, linears[0], ".transform_right");
    if ((st = factor_size(n1, model, left, n, err)) ||
        (st = factor_size(n2, model, right, n, err)))
        return st;
    if (*n1 == 0 && *n2 == 0) return FL_OK;
    if (*n1 == 0) *n1 = n / *n2;
    if (*n2 == 0) *n2 = n / *n1;
    if (*n1 * *n2 == n) return FL_OK;
    return bad_size(fl__tensors_find(model->tensors, right), n / *n1, err);
}

/* The n x n factor `name`, borrowed from the file's map (the reader refuses data that is not
 * aligned); NULL when there is none. */
static fl_status find_factor(const float **out, const fl_model *model, const char *name, int n,
                             fl_err *err)
{
    const int64_t dims[2] = {n, n};
    const fl_tensor_view *view;
    *out = NULL;
    if (!fl__tensors_find(model->tensors, name)) return FL_OK;
    const fl_status st = fl__tensors_require(&view, model->tensors, name,
                                             FL_DTYPE_BIT(FL_DTYPE_F32), 2, dims, err);
    if (st) return st;
    const float *f = view->data;
    for (int64_t i = 0; i < view->n_elements; i++)
        if (!isfinite(f[i]))
            return fl__fail(err, FL_E_INPUT,
                            "quantised model: tensor %s: element %lld is %g, wanted a finite "
                            "number; the file is damaged",
                            name, (long long)i, (double)f[i]);
    *out = f;
    return FL_OK;
}

fl_status fl__quantized_transform_load(fl_transform *t, const fl_model *model, int layer,
                                       int which, fl_err *err)
{
    char name[FL_MAX_TENSOR_NAME];
    int linears[FL_SITE_MAX_LINEARS], n1, n2;
    const float *left, *right;
    fl_status st;
    (void)fl__site_linears(linears, &model->cfg, which);
    if ((st = fl__quantized_transform_sizes(&n1, &n2, model, layer, which, err)) || n1 == 0)
        return st;
    fl__linear_tensor_name(name, model, layer, linears[0], ".transform_left");
    if ((st = find_factor(&left, model, name, n1, err))) return st;
    fl__linear_tensor_name(name, model, layer, linears[0], ".transform_right");
    if ((st = find_factor(&right, model, name, n2, err))) return st;
    return fl__transform_init(t, n1, n2, left, right, err);
}

fl_status fl__quantized_heads_load(fl_block *block, const fl_model *model, int layer,
                                   fl_err *err)
{
    const fl_model_config *cfg = &model->cfg;
    char key[FL_MAX_TENSOR_NAME], query[FL_MAX_TENSOR_NAME];
    const float *for_k, *for_q;
    fl_status st;
    fl__attention_tensor_name(key, model, layer, ".key_transform");
    fl__attention_tensor_name(query, model, layer, ".query_transform");
    if ((st = find_factor(&for_k, model, key, cfg->head_dim, err)) ||
        (st = find_factor(&for_q, model, query, cfg->head_dim, err)))
        return st;
    if (!for_k != !for_q)
        return fl__fail(err, FL_E_INPUT,
                        "quantised model: tensor %s: missing beside %s; the file is damaged",
                        for_k ? query : key, for_k ? key : query);
    st = fl__transform_init(&block->head_transform_q, cfg->n_heads, cfg->head_dim, NULL, for_q,
                            err);
    if (st) return st;
    return fl__transform_init(&block->head_transform_k, cfg->n_kv_heads, cfg->head_dim, NULL,
                              for_k, err);
}
