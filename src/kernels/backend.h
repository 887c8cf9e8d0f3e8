/* backend.h - a device that runs a model's ops: memory, one stream, and a table of functions.
 *
 * A family file builds one list of ops (model/model.h); the CPU's executor walks it on arrays,
 * model/device_run.c walks it with the functions below, whatever device stands behind them. The
 * contract is in the terms of kernels: rows, codes, factors, pages; a backend never sees a
 * model. The arithmetic is that of gemm.h, quantize.h, transform.h and kv_codec.h: integer sums
 * are exact, what lies between ops is float32 or, where a backend says so, bfloat16.
 *
 * Pointers named `device` and those in fl_device_* structs are addresses on the device; the
 * host adds offsets to them and does nothing else. Ops are queued in order and return at once;
 * what they return is FL_OK, FL_E_UNSUPPORTED (this combination has no kernel) or FL_E_FAIL.
 * Nothing in an op allocates or waits.
 *
 * A backend of another build is refused by FL_BACKEND_VERSION: raise it with every change here.
 * SPDX-License-Identifier: MIT */
#ifndef FL_KERNELS_BACKEND_H
#define FL_KERNELS_BACKEND_H

#include "base/status.h"
#include "kernels/gemm_f32.h"
#include "kernels/quantize.h"
#include "kernels/transform.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { FL_BACKEND_VERSION = 3, FL_BACKEND_PAGE = 64, FL_BACKEND_MAX_MARKS = 4096 };

/* Rows of bfloat16 or float32. Strides are multiples of 8 elements, addresses of 16 bytes. */
typedef struct fl_device_matrix {
    void *data;
    int64_t ld;
    bool f32;
} fl_device_matrix;

/* What an encoder makes of rows: codes with their sums, scales and zero points; of an encoder
 * of 16 bits, rows of bfloat16 (float32 with f32_activations), and nothing in the others. */
typedef struct fl_device_codes {
    void *data;
    int64_t ld; /* elements, % 64 == 0 */
    int32_t *sums;
    float *scales;
    int32_t *zeros; /* [rows] each */
} fl_device_codes;

typedef struct fl_backend fl_backend;
typedef struct fl_device_weight fl_device_weight;
typedef struct fl_device_encoder fl_device_encoder;
typedef struct fl_device_factor fl_device_factor;

/* N channels of a weight, from the host: n0, n0 + step, .. */
typedef struct fl_weight_rows {
    int n0, step, N;
    /* bits 4 and 8: file packing (layout.h), [N, n_columns]; NULL: random codes from seed */
    const void *codes;
    int n_columns;
    int n_in;             /* columns that are a channel's first */
    const int32_t *extra; /* [K - n_in] column of the file that stands in column n_in + e */
    const float *scale;   /* [N], or [1] with stride 0 */
    int scale_stride;
    /* bits 16: [N, K] of `type`; NULL: random, from `least` to twice that */
    const void *values;
    fl_float_type type;
    float least;
    const float *bias; /* [N] or NULL */
    uint64_t seed;
} fl_weight_rows;

typedef enum fl_front {
    FL_FRONT_NONE,
    FL_FRONT_RMS_NORM,
    FL_FRONT_LAYER_NORM,
    FL_FRONT_SILU_MUL,
    FL_FRONT_RELU,
} fl_front;

/* Rows as the op before the quantiser makes them. */
typedef struct fl_device_rows {
    fl_front front;
    fl_device_matrix x;
    const void *up;           /* SILU_MUL: silu(x) * up, of x's type and stride */
    const float *gain, *bias; /* [n], norms */
    double eps;
} fl_device_rows;

typedef struct fl_device_encode {
    const fl_device_encoder *encoder;
    fl_device_rows rows;
    fl_device_codes out;
    int M;
} fl_device_encode;

/* y = codes times w, scaled, plus bias; accumulate: y (float32) += that; of a gated weight,
 * silu(channel 2 i) * (channel 2 i + 1) in y's channel i. */
typedef struct fl_device_linear {
    const fl_device_encoder *encoder; /* that made x */
    fl_device_codes x;
    const fl_device_weight *w;
    fl_device_matrix y;
    bool accumulate;
    int M;
} fl_device_linear;

/* New tokens of n_seqs sequences, rows one after another; arrays are on the device. */
typedef struct fl_device_step {
    const int32_t *ids;          /* [n_rows] */
    const int32_t *row_position; /* [n_rows] */
    const int32_t *first_row;    /* [n_seqs + 1] */
    const int32_t *position;     /* [n_seqs] of each one's first row */
    const int32_t *n_tokens;     /* [n_seqs] with the new ones */
    int n_seqs, n_rows;
    int max_rows, max_tokens; /* most rows, most tokens of a sequence */
} fl_device_step;

/* One layer's keys and values. Pages hold FL_BACKEND_PAGE tokens of all KV heads, in the
 * backend's own order. */
typedef struct fl_device_kv {
    int k_bits, v_bits; /* 16: bfloat16 */
    int head_dim, n_kv_heads, n_heads;
    void *pages;          /* [n_pages, kv_page_bytes] */
    const int32_t *table; /* [n_seqs, table_stride] of the step's sequences */
    int table_stride;
} fl_device_kv;

typedef struct fl_device_append {
    const fl_device_kv *kv;
    fl_device_matrix q, k, v; /* heads side by side */
    const float *cos, *sin;   /* [positions, head_dim / 2]; NULL: no rotation */
    const fl_device_factor *q_factor, *k_factor; /* behind the rotation; NULL: none */
    float clip[4];
    void *q_out;   /* [rows, n_heads * head_dim] dense, for attend */
    void *scratch; /* [rows, (n_heads + n_kv_heads) * head_dim] of the activations' type */
} fl_device_append;

typedef struct fl_device_attend {
    const fl_device_kv *kv;
    const void *q;
    fl_device_matrix y; /* [rows, n_heads * head_dim] */
    float scale;
    void *workspace; /* attend_bytes for max_seqs */
    int max_seqs;
} fl_device_attend;

typedef struct fl_device_embed {
    fl_device_matrix y;
    const void *table; /* [n_ids, n] of `type` */
    fl_float_type type;
    int n, n_ids;
    const void *positions; /* [.., n] of positions_type, row position + offset; NULL: none */
    fl_float_type positions_type;
    int offset;
} fl_device_embed;

typedef struct fl_backend_ops {
    void (*close)(fl_backend **be);

    /* memory; upload and download wait */
    fl_status (*alloc)(fl_backend *be, void **device, size_t n_bytes, fl_err *err);
    void (*release)(fl_backend *be, void *device);
    fl_status (*upload)(fl_backend *be, void *device, const void *src, size_t n_bytes,
                        fl_err *err);
    fl_status (*download)(fl_backend *be, void *dst, const void *device, size_t n_bytes,
                          fl_err *err);
    fl_status (*clear)(fl_backend *be, void *device, size_t n_bytes, fl_err *err);
    /* n random bfloat16, of random sign, from `least` (a power of 2) to twice that. */
    fl_status (*fill_random)(fl_backend *be, void *device, int64_t n, float least,
                             uint64_t seed, fl_err *err);
    /* Queued; src may change when it returns. */
    fl_status (*send)(fl_backend *be, void *device, const void *src, size_t n_bytes,
                      fl_err *err);
    fl_status (*wait)(fl_backend *be, fl_err *err);

    /* objects */
    fl_status (*weight_new)(fl_backend *be, fl_device_weight **out, int N, int K, int bits,
                            bool gated, fl_err *err);
    fl_status (*weight_fill)(fl_backend *be, fl_device_weight *w, const fl_weight_rows *rows,
                             fl_err *err);
    void (*weight_free)(fl_backend *be, fl_device_weight **w);
    /* One of the specs, or neither: 16 bits, with premul [n] or NULL. t NULL: none. */
    fl_status (*encoder_new)(fl_backend *be, fl_device_encoder **out, int n,
                             const fl_transform *t, const fl_quantize_static *by_tensor,
                             float scale, const fl_quantize_token *by_token,
                             const float *premul, fl_err *err);
    void (*encoder_free)(fl_backend *be, fl_device_encoder **e);
    /* [D, D] row-major */
    fl_status (*factor_new)(fl_backend *be, fl_device_factor **out, int D, const float *right,
                            fl_err *err);
    void (*factor_free)(fl_backend *be, fl_device_factor **f);
    /* 0: such a cache, or its attention, has no kernel. */
    size_t (*kv_page_bytes)(fl_backend *be, const fl_device_kv *kv);
    /* Cleared once before the first attend. */
    size_t (*attend_bytes)(fl_backend *be, const fl_device_kv *kv, int max_seqs,
                           int max_tokens);

    /* ops */
    fl_status (*embed)(fl_backend *be, const fl_device_embed *e, const fl_device_step *step,
                       fl_err *err);
    fl_status (*norm)(fl_backend *be, const fl_device_matrix *y, const fl_device_rows *rows,
                      int M, int n, fl_err *err);
    fl_status (*encode)(fl_backend *be, const fl_device_encode *e, fl_err *err);
    fl_status (*linear)(fl_backend *be, const fl_device_linear *l, fl_err *err);
    fl_status (*append)(fl_backend *be, const fl_device_append *a, const fl_device_step *step,
                        fl_err *err);
    fl_status (*attend)(fl_backend *be, const fl_device_attend *a, const fl_device_step *step,
                        fl_err *err);
    /* Row i of y = row rows[i] of x, float32. */
    fl_status (*gather)(fl_backend *be, const fl_device_matrix *y, const fl_device_matrix *x,
                        const int32_t *rows, int M, int n, fl_err *err);

    /* What is queued between the two becomes a graph, replayed as one op. A backend without
     * graphs has NULL in all four. */
    fl_status (*capture_begin)(fl_backend *be, fl_err *err);
    fl_status (*capture_end)(fl_backend *be, void **graph, fl_err *err);
    fl_status (*graph_run)(fl_backend *be, void *graph, fl_err *err);
    void (*graph_free)(fl_backend *be, void *graph);

    /* A mark in the queue; ms between two of them once both have passed. */
    fl_status (*mark)(fl_backend *be, int at, fl_err *err);
    fl_status (*between)(fl_backend *be, double *ms, int from, int to, fl_err *err);
    /* Bytes read and written per second by a copy of n_bytes, median of a few. */
    fl_status (*copy_rate)(fl_backend *be, double *bytes_per_s, size_t n_bytes, fl_err *err);
} fl_backend_ops;

struct fl_backend {
    const fl_backend_ops *ops;
    char name[96];                          /* "NVIDIA H200" */
    char detail[96];                        /* versions, one line */
    int n_units;                            /* multiprocessors */
    size_t memory_bytes, memory_free_bytes; /* when opened */
    size_t allocated_bytes, peak_bytes;     /* by us */
    bool gates;                             /* weights of 4 and 8 bits may be gated */
    bool f32_activations; /* what lies between ops is float32, else bfloat16 */
};

/* The one symbol of a plugin. FL_E_UNSUPPORTED: another version, no such device. */
typedef fl_status fl_backend_open_fn(fl_backend **out, int version, int ordinal, fl_err *err);

#ifdef __cplusplus
}
#endif
#endif
