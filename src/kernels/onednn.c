/* onednn.c - the only file that sees oneDNN's headers.
 *
 * Versions 2.x and 3.x differ in memory descriptors (a struct, then an opaque object), in how a
 * primitive descriptor is made (from an operation descriptor, then directly) and in scales
 * (values of the attribute, then an argument of each execution). The adapters below hide that;
 * everything after them is common.
 * SPDX-License-Identifier: MIT */
#include "kernels/onednn.h"

#include "base/exec.h"
#include "base/mem.h"
#include "base/rng.h"

#include <dnnl.h>
#include <stdio.h>
#include <string.h>

static fl_status check(dnnl_status_t status, const char *call, fl_err *err)
{
    if (status == dnnl_success) return FL_OK;
    return fl__fail(err,
                    status == dnnl_unimplemented   ? FL_E_UNSUPPORTED
                    : status == dnnl_out_of_memory ? FL_E_NOMEM
                                                   : FL_E_FAIL,
                    "oneDNN: %s: status %d; use the libdnnl that this was built for", call,
                    (int)status);
}

fl_status fl__onednn_sgemm(int M, int N, int K, float alpha, const float *A, int64_t lda,
                           const float *B, int64_t ldb, bool transpose_b, float beta, float *C,
                           int64_t ldc, fl_err *err)
{
    return check(
        dnnl_sgemm('N', transpose_b ? 'T' : 'N', M, N, K, alpha, A, lda, B, ldb, beta, C, ldc),
        "sgemm", err);
}

fl_status fl__onednn_sgemm_tn(int M, int N, int K, float alpha, const float *A, int64_t lda,
                              const float *B, int64_t ldb, float beta, float *C, int64_t ldc,
                              fl_err *err)
{
    return check(dnnl_sgemm('T', 'N', M, N, K, alpha, A, lda, B, ldb, beta, C, ldc), "sgemm",
                 err);
}

void fl__onednn_version(char *text, size_t text_bytes)
{
    const dnnl_version_t *v = dnnl_version();
    (void)snprintf(text, text_bytes, "%d.%d.%d", v->major, v->minor, v->patch);
}

#define MAX_COPIES 128
#define IMPL_BYTES 64

struct fl_onednn_matmul {
    fl_onednn_type type;
    int M, N, K, n_threads, n_copies;
    char impl[IMPL_BYTES];
    float *scales; /* [N] */
    dnnl_engine_t engine;
    dnnl_stream_t stream;
    dnnl_primitive_attr_t attr;
    dnnl_primitive_desc_t pd;
    dnnl_primitive_t primitive;
    dnnl_memory_t x, y, scale_memory; /* scale_memory: 3.x only */
    dnnl_memory_t weights[MAX_COPIES];
};

/* ---- adapters --------------------------------------------------------------------------- */

#if DNNL_VERSION_MAJOR >= 3

typedef dnnl_memory_desc_t desc_owned;
#define DESC(d)    (d)
#define SCALES_ARG (DNNL_ARG_ATTR_SCALES | DNNL_ARG_WEIGHTS)

static dnnl_status_t desc_init(desc_owned *d, int n_dims, const dnnl_dims_t dims,
                               dnnl_data_type_t type, dnnl_format_tag_t tag)
{
    return dnnl_memory_desc_create_with_tag(d, n_dims, dims, type, tag);
}

static void desc_fini(desc_owned *d)
{
    if (*d) (void)dnnl_memory_desc_destroy(*d);
}

static dnnl_status_t pd_new(fl_onednn_matmul *mm, const desc_owned *x, const desc_owned *w,
                            const desc_owned *y)
{
    if (mm->type == FL_ONEDNN_S8) {
        const dnnl_status_t status =
            dnnl_primitive_attr_set_scales_mask(mm->attr, DNNL_ARG_WEIGHTS, 1 << 1);
        if (status != dnnl_success) return status;
    }
    return dnnl_matmul_primitive_desc_create(&mm->pd, mm->engine, *x, *w, NULL, *y, mm->attr);
}

static dnnl_status_t plain_pd_new(dnnl_primitive_desc_t *pd, dnnl_engine_t engine,
                                  const_dnnl_memory_desc_t x, const_dnnl_memory_desc_t w,
                                  const_dnnl_memory_desc_t y)
{
    return dnnl_matmul_primitive_desc_create(pd, engine, x, w, NULL, y, NULL);
}

static dnnl_status_t scales_new(fl_onednn_matmul *mm)
{
    const dnnl_dims_t dims = {mm->N};
    desc_owned d = NULL;
    dnnl_status_t status = desc_init(&d, 1, dims, dnnl_f32, dnnl_a);
    if (status == dnnl_success)
        status = dnnl_memory_create(&mm->scale_memory, d, mm->engine, mm->scales);
    desc_fini(&d);
    return status;
}

#else

typedef dnnl_memory_desc_t desc_owned;
#define DESC(d)    (&(d))
#define SCALES_ARG 0 /* never passed */

static dnnl_status_t desc_init(desc_owned *d, int n_dims, const dnnl_dims_t dims,
                               dnnl_data_type_t type, dnnl_format_tag_t tag)
{
    return dnnl_memory_desc_init_by_tag(d, n_dims, dims, type, tag);
}

static void desc_fini(desc_owned *d)
{
    (void)d;
}

static dnnl_status_t pd_new(fl_onednn_matmul *mm, const desc_owned *x, const desc_owned *w,
                            const desc_owned *y)
{
    dnnl_matmul_desc_t op;
    dnnl_status_t status = dnnl_matmul_desc_init(&op, x, w, NULL, y);
    if (status == dnnl_success && mm->type == FL_ONEDNN_S8)
        status = dnnl_primitive_attr_set_output_scales(mm->attr, mm->N, 1 << 1, mm->scales);
    if (status != dnnl_success) return status;
    return dnnl_primitive_desc_create(&mm->pd, &op, mm->attr, mm->engine, NULL);
}

static dnnl_status_t plain_pd_new(dnnl_primitive_desc_t *pd, dnnl_engine_t engine,
                                  const dnnl_memory_desc_t *x, const dnnl_memory_desc_t *w,
                                  const dnnl_memory_desc_t *y)
{
    dnnl_matmul_desc_t op;
    const dnnl_status_t status = dnnl_matmul_desc_init(&op, x, w, NULL, y);
    if (status != dnnl_success) return status;
    return dnnl_primitive_desc_create(pd, &op, NULL, engine, NULL);
}

static dnnl_status_t scales_new(fl_onednn_matmul *mm)
{
    (void)mm; /* part of the attribute */
    return dnnl_success;
}

#endif

/* ---- matmul ----------------------------------------------------------------------------- */

/* Any int8 but -128; bf16 values +-[1, 2). */
static void fill(void *data, size_t n, fl_onednn_type type, int stream)
{
    fl_rng rng = fl__rng_init(0, stream, "onednn-bench");
    for (size_t i = 0; i < n; i++) {
        const uint64_t r = fl__rng_u64(&rng);
        if (type == FL_ONEDNN_S8) ((int8_t *)data)[i] = (int8_t)(r % 255 - 127);
        else ((uint16_t *)data)[i] = (uint16_t)((r & 0x807f) | 0x3f80);
    }
}

static dnnl_status_t fill_memory(dnnl_memory_t memory, size_t n, fl_onednn_type type,
                                 int stream)
{
    void *data = NULL;
    const dnnl_status_t status = dnnl_memory_get_data_handle(memory, &data);
    if (status == dnnl_success) fill(data, n, type, stream);
    return status;
}

/* Weights as models store them -> the layout that the primitive asked for. */
static dnnl_status_t reorder(dnnl_engine_t engine, dnnl_stream_t stream, dnnl_memory_t plain,
                             const desc_owned *desc, dnnl_primitive_desc_t wanted,
                             dnnl_memory_t packed)
{
    dnnl_primitive_desc_t pd = NULL;
    dnnl_primitive_t primitive = NULL;
    dnnl_exec_arg_t args[] = {{DNNL_ARG_FROM, plain}, {DNNL_ARG_TO, packed}};
    dnnl_status_t status = dnnl_reorder_primitive_desc_create(
        &pd, DESC(*desc), engine,
        dnnl_primitive_desc_query_md(wanted, dnnl_query_weights_md, 0), engine, NULL);
    if (status == dnnl_success) status = dnnl_primitive_create(&primitive, pd);
    if (status == dnnl_success)
        status = dnnl_primitive_execute(primitive, stream, FL_COUNT(args), args);
    if (status == dnnl_success) status = dnnl_stream_wait(stream);
    if (primitive) (void)dnnl_primitive_destroy(primitive);
    if (pd) (void)dnnl_primitive_desc_destroy(pd);
    return status;
}

static dnnl_status_t weights_new(fl_onednn_matmul *mm, const desc_owned *plain_desc)
{
    dnnl_memory_t plain = NULL;
    dnnl_status_t status =
        dnnl_memory_create(&plain, DESC(*plain_desc), mm->engine, DNNL_MEMORY_ALLOCATE);
    for (int i = 0; i < mm->n_copies && status == dnnl_success; i++) {
        status = fill_memory(plain, (size_t)mm->N * (size_t)mm->K, mm->type, i + 1);
        if (status == dnnl_success)
            status = dnnl_memory_create(
                &mm->weights[i], dnnl_primitive_desc_query_md(mm->pd, dnnl_query_weights_md, 0),
                mm->engine, DNNL_MEMORY_ALLOCATE);
        if (status == dnnl_success)
            status =
                reorder(mm->engine, mm->stream, plain, plain_desc, mm->pd, mm->weights[i]);
    }
    if (plain) (void)dnnl_memory_destroy(plain);
    return status;
}

/* Implementations named "ref.." are oneDNN's plain loops, minutes per call: no opponent. */
static dnnl_status_t note_impl(char text[IMPL_BYTES], dnnl_primitive_desc_t pd,
                               dnnl_data_type_t y_type)
{
    const char *impl = "";
    const dnnl_status_t status =
        dnnl_primitive_desc_query(pd, dnnl_query_impl_info_str, 0, (void *)&impl);
    if (status) return status;
    (void)snprintf(text, IMPL_BYTES, "%s, %s out", impl, y_type == dnnl_bf16 ? "bf16" : "f32");
    return strncmp(impl, "ref", 3) == 0 ? dnnl_unimplemented : dnnl_success;
}

static dnnl_status_t matmul_init(fl_onednn_matmul *mm, dnnl_data_type_t y_type)
{
    const dnnl_dims_t x_dims = {mm->M, mm->K}, w_dims = {mm->K, mm->N}, y_dims = {mm->M, mm->N};
    const dnnl_data_type_t type = mm->type == FL_ONEDNN_S8 ? dnnl_s8 : dnnl_bf16;
    desc_owned x = {0}, w_any = {0}, w_plain = {0}, y = {0};

    dnnl_status_t status = dnnl_engine_create(&mm->engine, dnnl_cpu, 0);
    if (!status)
        status = dnnl_stream_create(&mm->stream, mm->engine, dnnl_stream_default_flags);
    if (!status) status = dnnl_primitive_attr_create(&mm->attr);
    if (!status) status = desc_init(&x, 2, x_dims, type, dnnl_ab);
    if (!status) status = desc_init(&w_any, 2, w_dims, type, dnnl_format_tag_any);
    if (!status) status = desc_init(&w_plain, 2, w_dims, type, dnnl_ba);
    if (!status) status = desc_init(&y, 2, y_dims, y_type, dnnl_ab);
    if (!status) status = pd_new(mm, &x, &w_any, &y);
    if (!status) status = note_impl(mm->impl, mm->pd, y_type);
    if (!status) status = dnnl_primitive_create(&mm->primitive, mm->pd);
    if (!status) status = dnnl_memory_create(&mm->x, DESC(x), mm->engine, DNNL_MEMORY_ALLOCATE);
    if (!status) status = dnnl_memory_create(&mm->y, DESC(y), mm->engine, DNNL_MEMORY_ALLOCATE);
    if (!status) status = fill_memory(mm->x, (size_t)mm->M * (size_t)mm->K, mm->type, 0);
    if (!status) status = scales_new(mm);
    if (!status) status = weights_new(mm, &w_plain);
    desc_fini(&x);
    desc_fini(&w_any);
    desc_fini(&w_plain);
    desc_fini(&y);
    return status;
}

static fl_status matmul_new(fl_onednn_matmul **out, const fl_onednn_matmul *shape,
                            dnnl_data_type_t y_type, fl_err *err)
{
    fl_onednn_matmul *mm = fl__calloc(1, sizeof *mm);
    *out = NULL;
    if (!mm) return fl__fail_nomem(err, "oneDNN matmul", sizeof *mm);
    *mm = *shape;
    mm->scales = fl__alloc((size_t)mm->N, sizeof *mm->scales);
    if (!mm->scales) {
        fl__onednn_matmul_free(&mm);
        return fl__fail_nomem(err, "oneDNN scales", (size_t)shape->N * sizeof(float));
    }
    for (int n = 0; n < mm->N; n++) mm->scales[n] = 0.001f + 0.00001f * (float)(n % 64);

    const int saved = fl__library_threads_set(mm->n_threads); /* the blocking depends on it */
    const fl_status st = check(matmul_init(mm, y_type), "matmul", err);
    (void)fl__library_threads_set(saved);
    if (st == FL_OK) *out = mm;
    else fl__onednn_matmul_free(&mm);
    return st;
}

fl_status fl__onednn_matmul_new(fl_onednn_matmul **out, fl_onednn_type type, int M, int N,
                                int K, int n_copies, int n_threads, fl_err *err)
{
    const fl_onednn_matmul shape = {.type = type,
                                    .M = M,
                                    .N = N,
                                    .K = K,
                                    .n_copies = FL_MIN(n_copies, MAX_COPIES),
                                    .n_threads = n_threads};
    fl_status st = matmul_new(out, &shape, dnnl_bf16, err);
    /* Machines without AVX-512 have fast s8 products with float32 output only. */
    if (st == FL_E_UNSUPPORTED) st = matmul_new(out, &shape, dnnl_f32, err);
    return st;
}

void fl__onednn_matmul_free(fl_onednn_matmul **matmul)
{
    fl_onednn_matmul *mm = *matmul;
    if (!mm) return;
    for (int i = 0; i < mm->n_copies; i++)
        if (mm->weights[i]) (void)dnnl_memory_destroy(mm->weights[i]);
    if (mm->scale_memory) (void)dnnl_memory_destroy(mm->scale_memory);
    if (mm->x) (void)dnnl_memory_destroy(mm->x);
    if (mm->y) (void)dnnl_memory_destroy(mm->y);
    if (mm->primitive) (void)dnnl_primitive_destroy(mm->primitive);
    if (mm->pd) (void)dnnl_primitive_desc_destroy(mm->pd);
    if (mm->attr) (void)dnnl_primitive_attr_destroy(mm->attr);
    if (mm->stream) (void)dnnl_stream_destroy(mm->stream);
    if (mm->engine) (void)dnnl_engine_destroy(mm->engine);
    fl__free(&mm->scales);
    fl__free(matmul);
}

const char *fl__onednn_matmul_impl(const fl_onednn_matmul *matmul)
{
    return matmul->impl;
}

fl_status fl__onednn_matmul_run(fl_onednn_matmul *matmul, int copy, fl_err *err)
{
    const dnnl_exec_arg_t args[] = {
        {DNNL_ARG_SRC, matmul->x},
        {DNNL_ARG_WEIGHTS, matmul->weights[copy % matmul->n_copies]},
        {DNNL_ARG_DST, matmul->y},
        {SCALES_ARG, matmul->scale_memory},
    };
    const int n_args = matmul->scale_memory ? 4 : 3;
    const int saved = fl__library_threads_set(matmul->n_threads);
    dnnl_status_t status =
        dnnl_primitive_execute(matmul->primitive, matmul->stream, n_args, args);
    if (status == dnnl_success) status = dnnl_stream_wait(matmul->stream);
    (void)fl__library_threads_set(saved);
    return check(status, "matmul", err);
}

/* ---- linears of a model ------------------------------------------------------------------ */

struct fl_onednn_linear {
    int N, K, n_threads, n_counts;
    char impl[IMPL_BYTES];
    dnnl_engine_t engine;
    dnnl_stream_t stream;
    dnnl_memory_t weights;
    struct {
        int M;
        dnnl_primitive_desc_t pd;
        dnnl_primitive_t primitive;
        dnnl_memory_t x, y; /* their data is given with each call */
    } count[FL_ONEDNN_MAX_COUNTS];
};

/* Row count i; the first picks the layout of the weights, the others take it. */
static dnnl_status_t count_init(fl_onednn_linear *l, int i)
{
    const int M = l->count[i].M;
    const dnnl_dims_t x_dims = {M, l->K}, w_dims = {l->K, l->N}, y_dims = {M, l->N};
    char other[IMPL_BYTES];
    desc_owned x = {0}, w = {0}, y = {0};
    dnnl_status_t status = desc_init(&x, 2, x_dims, dnnl_bf16, dnnl_ab);
    if (!status) status = desc_init(&w, 2, w_dims, dnnl_bf16, dnnl_format_tag_any);
    if (!status) status = desc_init(&y, 2, y_dims, dnnl_f32, dnnl_ab);
    if (!status)
        status = plain_pd_new(
            &l->count[i].pd, l->engine, DESC(x),
            i == 0 ? DESC(w)
                   : dnnl_primitive_desc_query_md(l->count[0].pd, dnnl_query_weights_md, 0),
            DESC(y));
    if (!status) status = note_impl(i == 0 ? l->impl : other, l->count[i].pd, dnnl_f32);
    if (!status) status = dnnl_primitive_create(&l->count[i].primitive, l->count[i].pd);
    if (!status)
        status = dnnl_memory_create(&l->count[i].x, DESC(x), l->engine, DNNL_MEMORY_NONE);
    if (!status)
        status = dnnl_memory_create(&l->count[i].y, DESC(y), l->engine, DNNL_MEMORY_NONE);
    desc_fini(&x);
    desc_fini(&w);
    desc_fini(&y);
    return status;
}

static dnnl_status_t linear_init(fl_onednn_linear *l, const uint16_t *w)
{
    const dnnl_dims_t w_dims = {l->K, l->N};
    desc_owned plain_desc = {0};
    dnnl_memory_t plain = NULL;
    dnnl_status_t status = dnnl_engine_create(&l->engine, dnnl_cpu, 0);
    if (!status) status = dnnl_stream_create(&l->stream, l->engine, dnnl_stream_default_flags);
    if (!status) status = count_init(l, 0);
    for (int i = 1; i < l->n_counts && !status; i++)
        if (count_init(l, i)) l->count[i].M = 0; /* no fast product on the first one's layout */
    if (!status) status = desc_init(&plain_desc, 2, w_dims, dnnl_bf16, dnnl_ba);
    if (!status)
        status = dnnl_memory_create(&plain, DESC(plain_desc), l->engine,
                                    (void *)(uintptr_t)w); /* only read */
    if (!status)
        status = dnnl_memory_create(
            &l->weights, dnnl_primitive_desc_query_md(l->count[0].pd, dnnl_query_weights_md, 0),
            l->engine, DNNL_MEMORY_ALLOCATE);
    if (!status)
        status = reorder(l->engine, l->stream, plain, &plain_desc, l->count[0].pd, l->weights);
    if (plain) (void)dnnl_memory_destroy(plain);
    desc_fini(&plain_desc);
    return status;
}

fl_status fl__onednn_linear_new(fl_onednn_linear **out, const uint16_t *w, int N, int K,
                                const int *counts, int n_counts, int n_threads, fl_err *err)
{
    fl_onednn_linear *l = fl__calloc(1, sizeof *l);
    *out = NULL;
    if (!l) return fl__fail_nomem(err, "oneDNN matmul", sizeof *l);
    l->N = N;
    l->K = K;
    l->n_threads = n_threads;
    l->n_counts = FL_MIN(n_counts, FL_ONEDNN_MAX_COUNTS);
    for (int i = 0; i < l->n_counts; i++) l->count[i].M = counts[i];
    const int saved = fl__library_threads_set(n_threads); /* the blocking depends on it */
    const fl_status st = check(linear_init(l, w), "matmul", err);
    (void)fl__library_threads_set(saved);
    if (st == FL_OK) *out = l;
    else fl__onednn_linear_free(&l);
    return st;
}

void fl__onednn_linear_free(fl_onednn_linear **linear)
{
    fl_onednn_linear *l = *linear;
    if (!l) return;
    for (int i = 0; i < l->n_counts; i++) {
        if (l->count[i].x) (void)dnnl_memory_destroy(l->count[i].x);
        if (l->count[i].y) (void)dnnl_memory_destroy(l->count[i].y);
        if (l->count[i].primitive) (void)dnnl_primitive_destroy(l->count[i].primitive);
        if (l->count[i].pd) (void)dnnl_primitive_desc_destroy(l->count[i].pd);
    }
    if (l->weights) (void)dnnl_memory_destroy(l->weights);
    if (l->stream) (void)dnnl_stream_destroy(l->stream);
    if (l->engine) (void)dnnl_engine_destroy(l->engine);
    fl__free(linear);
}

const char *fl__onednn_linear_impl(const fl_onednn_linear *linear)
{
    return linear->impl;
}

size_t fl__onednn_linear_bytes(const fl_onednn_linear *linear)
{
    return dnnl_memory_desc_get_size(
        dnnl_primitive_desc_query_md(linear->count[0].pd, dnnl_query_weights_md, 0));
}

bool fl__onednn_linear_run(fl_onednn_linear *l, const uint16_t *x, int M, float *y)
{
    int i = 0;
    while (i < l->n_counts && l->count[i].M != M) i++;
    if (i == l->n_counts || M < 1) return false;
    const dnnl_exec_arg_t args[] = {{DNNL_ARG_SRC, l->count[i].x},
                                    {DNNL_ARG_WEIGHTS, l->weights},
                                    {DNNL_ARG_DST, l->count[i].y}};
    const int saved = fl__library_threads_set(l->n_threads);
    dnnl_status_t status = dnnl_memory_set_data_handle(l->count[i].x, (void *)(uintptr_t)x);
    if (!status) status = dnnl_memory_set_data_handle(l->count[i].y, y);
    if (!status)
        status = dnnl_primitive_execute(l->count[i].primitive, l->stream, FL_COUNT(args), args);
    if (!status) status = dnnl_stream_wait(l->stream);
    (void)fl__library_threads_set(saved);
    return status == dnnl_success;
}
