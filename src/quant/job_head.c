/* job_head.c - the head as int8: one scale per output channel, rounded to nearest.
 *
 * A head of 128,256 x 4,096 is 2 GB in float32: it is widened, rounded and written a piece of
 * rows at a time.
 * SPDX-License-Identifier: MIT */
#include "quant/job.h"

#include "base/mem.h"
#include "quant/weight_scale.h"

enum { ROWS = 1024 };

void fl__quant_head_decls(fl_tensor_decl decls[FL_HEAD_TENSORS],
                          char scale_name[FL_HEAD_NAME_BYTES], const fl_model *model)
{
    const int64_t N = model->cfg.vocab_size, K = model->cfg.embed_size;
    fl__head_scale_name(scale_name, model);
    decls[0] = (fl_tensor_decl){.name = fl__family(&model->cfg)->head,
                                .dtype = FL_DTYPE_I8,
                                .n_dims = 2,
                                .dims = {N, K}};
    decls[1] = (fl_tensor_decl){.name = scale_name,
                                .dtype = FL_DTYPE_F32,
                                .n_dims = 1,
                                .dims = {N}};
}

int64_t fl__quant_head_stored_bytes(const fl_model *model)
{
    return (int64_t)model->cfg.vocab_size * (model->cfg.embed_size + (int64_t)sizeof(float));
}

static size_t piece_elements(const fl_model *model)
{
    return (size_t)FL_MIN(ROWS, model->cfg.vocab_size) * (size_t)model->cfg.embed_size;
}

size_t fl__quant_head_bytes(const fl_model *model)
{
    return piece_elements(model) * (sizeof(float) + 1) +
           (size_t)model->cfg.vocab_size * sizeof(float);
}

fl_status fl__quant_head_write(fl_safetensors_writer *w, const fl_model *model,
                               const fl_exec *ex, fl_err *err)
{
    const int N = model->cfg.vocab_size, K = model->cfg.embed_size;
    const size_t row_bytes = (size_t)K * fl__dtype_bytes(model->head.w_type);
    char scale_name[FL_HEAD_NAME_BYTES];
    float *rows = fl__alloc(piece_elements(model), sizeof *rows);
    float *scale = fl__alloc((size_t)N, sizeof *scale);
    int8_t *codes = fl__alloc(piece_elements(model), 1);
    fl_status st = rows && scale && codes
                       ? FL_OK
                       : fl__fail_nomem(err, "8-bit head", fl__quant_head_bytes(model));

    for (int n0 = 0; n0 < N && !st; n0 += ROWS) {
        const int n = FL_MIN(ROWS, N - n0);
        const size_t elements = (size_t)n * (size_t)K;
        fl__dtype_to_f32(rows, model->head.w_type,
                         (const unsigned char *)model->head.w + (size_t)n0 * row_bytes,
                         elements);
        fl__weight_scale_find(ex, scale + n0, rows, n, K, 8, false, false, NULL);
        (void)fl__weight_round(ex, codes, rows, scale + n0, 1, n, K, 8, NULL);
        st = fl__safetensors_writer_write(w, fl__family(&model->cfg)->head, codes, elements,
                                          err);
    }
    fl__head_scale_name(scale_name, model);
    if (!st)
        st = fl__safetensors_writer_write(w, scale_name, scale, (size_t)N * sizeof *scale, err);
    fl__free(&rows);
    fl__free(&scale);
    fl__free(&codes);
    return st;
}
