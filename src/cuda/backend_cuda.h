/* backend_cuda.h - what the parts of the plugin share; see kernels/backend.h for the contract.
 *
 * Everything runs on one stream. Weights of 4 and 8 bits lie in the layouts of gemm_cuda.h, of
 * 16 bits as row-major bfloat16 for cuBLASLt; biases in float32 and, for cuBLASLt, bfloat16.
 * SPDX-License-Identifier: MIT */
#ifndef FL_CUDA_BACKEND_CUDA_H
#define FL_CUDA_BACKEND_CUDA_H

#include "cuda/gemm_cublas.h"
#include "cuda/gemm_cuda.h"
#include "cuda/transform_cuda.h"
#include "kernels/backend.h"

#include <cuda_runtime_api.h>

enum { SEND_SLOTS = 8, SEND_BYTES = 1 << 20 };

typedef struct fl_cuda_backend_state {
    fl_backend base; /* first */
    int device, n_sm;
    cudaStream_t stream;
    cudaEvent_t marks[FL_BACKEND_MAX_MARKS];
    int n_marks; /* created so far */
    /* ring for `send`: pinned */
    unsigned char *slots; /* [SEND_SLOTS][SEND_BYTES] */
    cudaEvent_t slot_free[SEND_SLOTS];
    int next_slot;
    int32_t *gemm_workspace;
    fl_cuda_bf16 *bf16;
} fl_cuda_backend_state;

struct fl_device_weight {
    fl_cuda_weight w; /* bits 4, 8 */
    int bits, N, K;
    bool gated;
    uint8_t *codes; /* owned, what w.data is */
    int32_t *col_sum;
    float *scale;     /* [N] */
    uint16_t *values; /* bits 16: [N, K] */
    float *bias;      /* [N], NULL: none */
    uint16_t *bias_bf16;
};

struct fl_device_encoder {
    int n, bits; /* 16: no codes */
    bool by_tensor;
    fl_cuda_grid grid;
    fl_cuda_transform transform; /* n1 0: none */
    void *factors;
    void *mix; /* of a left factor alone, for bf16 rows as they are; NULL: none */
    fl_cuda_quantize_static spec;
    float *limits;   /* [2 n] lo, hi */
    int32_t *extras; /* [2 n_extra] */
    float *scale;    /* by_tensor: [1], and zero behind it */
    int32_t *zero;
    bool has_zero, keeps_negative; /* by_tensor: zero point; codes below 0 */
    float *premul;                 /* [n] or NULL */
};

struct fl_device_factor {
    uint16_t *values; /* [D, D] of fl__cuda_heads_pack */
    int D;
};

static inline fl_cuda_backend_state *fl__cuda_state(fl_backend *be)
{
    return (fl_cuda_backend_state *)be;
}

/* FL_E_FAIL, or FL_E_NOMEM for the device's. */
fl_status fl__cuda_check(cudaError_t e, const char *what, fl_err *err);

fl_status fl__cuda_alloc(fl_backend *be, void **device, size_t n_bytes, fl_err *err);
void fl__cuda_release(fl_backend *be, void *device);
fl_status fl__cuda_upload(fl_backend *be, void *device, const void *src, size_t n_bytes,
                          fl_err *err);

/* backend_objects.c, backend_ops.c: the rows of the table. */
fl_status fl__cuda_weight_new(fl_backend *be, fl_device_weight **out, int N, int K, int bits,
                              bool gated, fl_err *err);
fl_status fl__cuda_weight_fill(fl_backend *be, fl_device_weight *w, const fl_weight_rows *rows,
                               fl_err *err);
void fl__cuda_weight_free(fl_backend *be, fl_device_weight **w);
fl_status fl__cuda_encoder_new(fl_backend *be, fl_device_encoder **out, int n,
                               const fl_transform *t, const fl_quantize_static *by_tensor,
                               float scale, const fl_quantize_token *by_token,
                               const float *premul, fl_err *err);
void fl__cuda_encoder_free(fl_backend *be, fl_device_encoder **e);
fl_status fl__cuda_factor_new(fl_backend *be, fl_device_factor **out, int D, const float *right,
                              fl_err *err);
void fl__cuda_factor_free(fl_backend *be, fl_device_factor **f);

size_t fl__cuda_op_page_bytes(fl_backend *be, const fl_device_kv *kv);
size_t fl__cuda_op_attend_bytes(fl_backend *be, const fl_device_kv *kv, int max_seqs,
                                int max_tokens);
fl_status fl__cuda_op_embed(fl_backend *be, const fl_device_embed *e,
                            const fl_device_step *step, fl_err *err);
fl_status fl__cuda_op_norm(fl_backend *be, const fl_device_matrix *y,
                           const fl_device_rows *rows, int M, int n, fl_err *err);
fl_status fl__cuda_op_encode(fl_backend *be, const fl_device_encode *e, fl_err *err);
fl_status fl__cuda_op_linear(fl_backend *be, const fl_device_linear *l, fl_err *err);
fl_status fl__cuda_op_append(fl_backend *be, const fl_device_append *a,
                             const fl_device_step *step, fl_err *err);
fl_status fl__cuda_op_attend(fl_backend *be, const fl_device_attend *a,
                             const fl_device_step *step, fl_err *err);
fl_status fl__cuda_op_gather(fl_backend *be, const fl_device_matrix *y,
                             const fl_device_matrix *x, const int32_t *rows, int M, int n,
                             fl_err *err);

#endif
