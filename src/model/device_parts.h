/* device_parts.h - what device.c makes and device_run.c walks. SPDX-License-Identifier: MIT */
#ifndef FL_MODEL_DEVICE_PARTS_H
#define FL_MODEL_DEVICE_PARTS_H

#include "model/device.h"

/* n_parts 1: one encoder, and one weight with the linears below each other. Otherwise an
 * encoder and a weight for each linear (clips of their own). */
typedef struct fl_device_site {
    int n_parts, n_in, n_out; /* n_out of all linears */
    int code_ld;              /* of what the encoder writes, elements */
    int a_bits;
    bool is_gated; /* gate and up, channel by channel; silu(gate) * up comes out */
    bool is_plain; /* 16 bits and nothing to do: rows may go by the encoder */
    fl_device_encoder *encoder[FL_SITE_MAX_LINEARS];
    fl_device_weight *weight[FL_SITE_MAX_LINEARS];
    int part_out[FL_SITE_MAX_LINEARS]; /* channels of each weight */
} fl_device_site;

typedef struct fl_device_norm {
    float *gain, *bias; /* device, [hidden]; bias NULL: RMSNorm */
} fl_device_norm;

typedef struct fl_device_block {
    fl_device_norm norm[2];
    fl_device_site site[FL_N_SITES];
    fl_device_factor *q_factor, *k_factor; /* NULL: none */
    float kv_clip[4];
} fl_device_block;

struct fl_device_model {
    const fl_model *model; /* borrowed: config, program, formats */
    fl_backend *be;
    fl_device_block *blocks; /* [n_layers] */
    fl_device_site head;
    fl_device_norm final_norm;
    void *embed, *positions; /* device, of the checkpoint's types; positions NULL: none */
    fl_float_type embed_type, positions_type;
    float *rope_cos, *rope_sin; /* device */
    void **memory;              /* what alloc gave, to be released */
    int n_memory;
    size_t n_bytes;
};

/* The kind of cache that the model runs with; pages and table are the caller's. */
fl_device_kv fl__device_kv_of(const fl_model *model);

#endif
