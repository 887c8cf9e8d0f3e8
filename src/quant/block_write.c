/* block_write.c - a finished block as a safetensors shard (tensor names in model/quantized.h).
 * SPDX-License-Identifier: MIT */
#include "quant/block.h"

#include "base/mem.h"
#include "format/safetensors_write.h"

#include <stdio.h>
#include <string.h>

enum { MAX_TENSORS = FL_N_LINEARS * 3 + FL_N_SITES * 7 + 7 };

typedef struct entry {
    char name[FL_MAX_TENSOR_NAME];
    const void *data;
    size_t n_bytes;
} entry;

typedef struct shard {
    const fl_block_job *j;
    fl_tensor_decl decl[MAX_TENSORS];
    entry at[MAX_TENSORS];
    int n;
    uint8_t *nibbles[FL_N_LINEARS]; /* owned */
    float clips[FL_N_SITES][FL_SITE_MAX_LINEARS][2]; /* largest, smallest */
} shard;

static void add(shard *s, const char *name, fl_dtype dtype, int64_t rows, int64_t columns,
                const void *data)
{
    entry *e = &s->at[s->n];
    fl_tensor_decl *d = &s->decl[s->n++];
    (void)snprintf(e->name, sizeof e->name, "%s", name);
    *d = (fl_tensor_decl){.name = e->name, .dtype = dtype, .n_dims = columns ? 2 : 1,
                          .dims = {rows, columns}};
    e->data = data;
    e->n_bytes = (size_t)rows * (size_t)(columns ? columns : 1) * fl__dtype_bytes(dtype);
}

static void add_norms(shard *s)
{
    char name[FL_MAX_TENSOR_NAME];
    const int n = s->j->model->cfg.hidden_size;
    for (int i = 0; i < 2; i++) {
        const fl_norm *norm = &s->j->folded.norm[i];
        fl__norm_tensor_name(name, s->j->model, s->j->layer, i, ".weight");
        add(s, name, FL_DTYPE_F32, n, 0, norm->gain);
        fl__norm_tensor_name(name, s->j->model, s->j->layer, i, ".bias");
        if (norm->bias) add(s, name, FL_DTYPE_F32, n, 0, norm->bias);
    }
}

/* Columns of a linear's codes. */
static int columns_of(const fl_block_job *j, int which)
{
    for (int s = 0; s < FL_N_SITES; s++)
        for (int i = 0; i < j->quant.site[s].n_linears; i++)
            if (j->quant.site[s].linears[i] == &j->quant.linear[which])
                return fl__site_weight_columns(&j->quant.site[s]);
    return j->quant.linear[which].n_in;
}

static fl_status add_linear(shard *s, int which, fl_err *err)
{
    const fl_block_job *j = s->j;
    const fl_linear *lin = &j->quant.linear[which];
    const int N = lin->n_out, K = columns_of(j, which);
    char name[FL_MAX_TENSOR_NAME];
    fl__linear_tensor_name(name, j->model, j->layer, which, ".weight");
    if (!j->codes[which]) {
        add(s, name, FL_DTYPE_F32, N, K, lin->w);
    } else if (lin->w_bits == 8) {
        add(s, name, FL_DTYPE_I8, N, K, j->codes[which]);
    } else {
        const size_t n = (size_t)N * (size_t)((K + 1) / 2);
        s->nibbles[which] = fl__alloc(n, 1);
        if (!s->nibbles[which]) return fl__fail_nomem(err, "nibbles", n);
        fl__nibbles_pack(s->nibbles[which], j->codes[which], N, K);
        add(s, name, FL_DTYPE_U8, N, (K + 1) / 2, s->nibbles[which]);
    }
    fl__linear_tensor_name(name, j->model, j->layer, which, ".weight_scale");
    if (j->codes[which])
        add(s, name, FL_DTYPE_F32, lin->w_scale_stride ? N : 1, 0, lin->w_scale);
    fl__linear_tensor_name(name, j->model, j->layer, which, ".bias");
    if (lin->bias) add(s, name, FL_DTYPE_F32, N, 0, lin->bias);
    return FL_OK;
}

static void add_clips(shard *s, int which, int first_linear)
{
    const fl_site *site = &s->j->quant.site[which];
    const int n = site->own_clips ? site->n_linears : 1;
    char name[FL_MAX_TENSOR_NAME];
    bool any = false;
    for (int i = 0; i < n; i++) {
        s->clips[which][i][0] = site->token[i].clip_max;
        s->clips[which][i][1] = site->token[i].clip_min;
        any |= site->token[i].clip_max != 1 || site->token[i].clip_min != 1;
    }
    fl__linear_tensor_name(name, s->j->model, s->j->layer, first_linear, ".input_clip");
    if (any)
        add(s, name, FL_DTYPE_F32, site->own_clips ? n : 2, site->own_clips ? 2 : 0,
            s->clips[which]);
}

static void add_site(shard *s, int which)
{
    const fl_site *site = &s->j->quant.site[which];
    int linears[FL_SITE_MAX_LINEARS];
    char name[FL_MAX_TENSOR_NAME];
    (void)fl__site_linears(linears, &s->j->model->cfg, which);
    if (site->act == FL_ACT_STATIC) {
        fl__linear_tensor_name(name, s->j->model, s->j->layer, linears[0], ".input_scale");
        add(s, name, FL_DTYPE_F32, 1, 0, &site->scale);
    }
    fl__linear_tensor_name(name, s->j->model, s->j->layer, linears[0], ".input_copies");
    if (site->copies) add(s, name, FL_DTYPE_U16, site->n_in, 0, site->copies);
    fl__linear_tensor_name(name, s->j->model, s->j->layer, linears[0], ".weight_copies");
    if (site->weight_copies) add(s, name, FL_DTYPE_U16, site->n_in, 0, site->weight_copies);
    fl__linear_tensor_name(name, s->j->model, s->j->layer, linears[0], ".input_multiplier");
    if (site->premul) add(s, name, FL_DTYPE_F32, site->n_in, 0, site->premul);
    const fl_transform *t = &site->transform;
    fl__linear_tensor_name(name, s->j->model, s->j->layer, linears[0], ".transform_left");
    if (t->left) add(s, name, FL_DTYPE_F32, t->n1, t->n1, t->left);
    fl__linear_tensor_name(name, s->j->model, s->j->layer, linears[0], ".transform_right");
    if (t->right) add(s, name, FL_DTYPE_F32, t->n2, t->n2, t->right);
    if (site->act == FL_ACT_TOKEN) add_clips(s, which, linears[0]);
}

static void add_attention(shard *s)
{
    const float *clip = s->j->quant.kv_clip;
    const fl_transform *q = &s->j->quant.head_transform_q, *k = &s->j->quant.head_transform_k;
    char name[FL_MAX_TENSOR_NAME];
    fl__attention_tensor_name(name, s->j->model, s->j->layer, ".key_transform");
    if (k->right) add(s, name, FL_DTYPE_F32, k->n2, k->n2, k->right);
    fl__attention_tensor_name(name, s->j->model, s->j->layer, ".query_transform");
    if (q->right) add(s, name, FL_DTYPE_F32, q->n2, q->n2, q->right);
    if (clip[0] == 1 && clip[1] == 1 && clip[2] == 1 && clip[3] == 1) return;
    fl__attention_tensor_name(name, s->j->model, s->j->layer, ".kv_clip");
    add(s, name, FL_DTYPE_F32, 4, 0, clip);
}

size_t fl__block_write_bytes(const fl_model *model, int w_bits)
{
    size_t nibbles = 0;
    for (int i = 0; i < FL_N_LINEARS && fl__stored_bits(w_bits) == 4; i++) {
        int n_out, n_in;
        fl__linear_shape(&n_out, &n_in, &model->cfg, i);
        nibbles += (size_t)n_out * (size_t)((n_in + 1) / 2);
    }
    return nibbles + sizeof(shard);
}

fl_status fl__block_job_write(const fl_block_job *j, const char *path, json_t *names,
                              int64_t *n_bytes, fl_err *err)
{
    static const fl_metadata_pair metadata[] = {{"format", "pt"}};
    fl_safetensors_writer *w = NULL;
    fl_status st = FL_OK;
    shard *s = fl__calloc(1, sizeof *s);

    *n_bytes = 0;
    if (!s) return fl__fail_nomem(err, "shard", sizeof *s);
    s->j = j;
    add_norms(s);
    for (int i = 0; i < FL_N_LINEARS && !st; i++)
        if (j->quant.linear[i].n_out) st = add_linear(s, i, err);
    if (st) goto out;
    for (int i = 0; i < FL_N_SITES; i++) add_site(s, i);
    add_attention(s);
    st = fl__safetensors_writer_open(&w, path, s->decl, (size_t)s->n, metadata, 1, err);
    for (int i = 0; i < s->n && !st; i++) {
        st = fl__safetensors_writer_write(w, s->at[i].name, s->at[i].data, s->at[i].n_bytes,
                                          err);
        *n_bytes += (int64_t)s->at[i].n_bytes;
        if (names && json_array_append_new(names, json_string(s->at[i].name)))
            st = fl__fail_nomem(err, "tensor names", sizeof s->at[i].name);
    }
    if (!st) st = fl__safetensors_writer_commit(&w, err);
out:
    fl__safetensors_writer_discard(&w);
    for (int i = 0; i < FL_N_LINEARS; i++) fl__free(&s->nibbles[i]);
    fl__free(&s);
    return st;
}
