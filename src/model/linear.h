/* linear.h - linear layers, grouped by the input they share ("site").
 *
 * A site is where an activation meets weights: q, k, v share one; o; gate, up (OPT: fc1) share
 * one; down (OPT: fc2). What quantisation does to an activation belongs to the site and is done
 * once; each linear then multiplies the same codes by its own weight. Three ways to run, chosen
 * by the site:
 *   FL_ACT_FLOAT   float activations; weights float (mapped, any float type) or int codes
 *                  expanded tile by tile (weight-only W4A16, W8A16); float32 GEMM
 *   FL_ACT_STATIC  one scale per tensor, fixed at calibration; FlattenQuant's flattening; int
 *                  GEMM
 *   FL_ACT_TOKEN   one scale per token, and with asymmetric one zero point, from its own
 *                  extremes; int GEMM
 * Before that, the input is multiplied by premul and goes through the site's transform, where
 * it has one. Linears that clip for themselves (FL_ACT_TOKEN) share the transform only: each
 * has codes of its own.
 * SPDX-License-Identifier: MIT */
#ifndef FL_MODEL_LINEAR_H
#define FL_MODEL_LINEAR_H

#include "base/exec.h"
#include "format/dtype.h"
#include "kernels/gemm.h"
#include "kernels/quantize.h"
#include "kernels/transform.h"

struct fl_linear;
/* Another way to compute a float linear, bias included, on dense x and y: the opponent in a
 * bench. run is false where it has none for this number of rows. */
typedef struct fl_linear_rival {
    bool (*run)(const struct fl_linear *lin, const float *x, int n_rows, float *y);
} fl_linear_rival;

typedef struct fl_linear {
    int n_out, n_in; /* 0, 0: the family has no such layer */
    /* float weight: */
    fl_dtype w_type;  /* FL_DTYPE_F32, F16 or BF16 */
    const void *w;    /* [n_out, n_in] row-major, borrowed from the checkpoint's map, or
                         own_w */
    float *own_w;     /* owned memory behind w, of w_type, or NULL */
    /* integer weight (w_bits 4 or 8; 16: float): */
    int w_bits;
    fl_weight packed;   /* owned; K counts the extra columns of flattening */
    float *w_scale;     /* [n_out] or [1], owned */
    int w_scale_stride; /* 1 or 0 */
    float *bias;        /* [n_out] f32 or NULL, owned */
    const struct fl_linear_rival *rival; /* borrowed; NULL but for opponents in the bench */
} fl_linear;

typedef enum fl_act_kind { FL_ACT_FLOAT, FL_ACT_STATIC, FL_ACT_TOKEN } fl_act_kind;

#define FL_SITE_MAX_LINEARS 3

typedef struct fl_site {
    fl_act_kind act;
    int a_bits;            /* 16, 8, 4 */
    bool is_unsigned;      /* static: codes 0..2^bits-1 */
    bool asymmetric;       /* token: a zero point per row, codes 0..2^bits-1 */
    /* token: of the row's extremes, above 0 and up to 1, 0: 1. One pair for all linears, or
     * with own_clips one for each, which then quantises the input for itself. */
    bool own_clips;
    float clip_max[FL_SITE_MAX_LINEARS], clip_min[FL_SITE_MAX_LINEARS];
    float scale;           /* static: x = scale * (code - zero) */
    int32_t zero;
    int n_in;              /* channels */
    uint16_t *copies;      /* [n_in] k_c of flattening, or NULL: all 1; owned */
    uint16_t *weight_copies; /* static: [n_in] digits of each column of the weights behind
                                the site, or NULL: all 1; owned */
    float *premul;         /* [n_in] or NULL, owned: applied to x first */
    fl_transform transform; /* n1 * n2 = n_in, owned; n1 0: none */
    bool explicit_copies;  /* one column per digit even where an int8 column could carry the
                              sum: what a 4-bit multiplier needs; gives the same integers */
    int code_ld;           /* row stride of codes, fl__gemm_ldx of all columns */
    double *quantize_s;    /* borrowed; seconds of quantising in fl__site_run are added
                              to it; NULL: not measured */
    fl_quantize_static spec; /* built by fl__site_prepare from the fields above */
    fl_quantize_token token[FL_SITE_MAX_LINEARS]; /* likewise; [0] is all linears' without
                                                     own_clips */
    float *spec_lo, *spec_hi;         /* [n_in] owned */
    int32_t *extra_src, *extra_off;   /* [spec.n_extra] owned */
    int32_t *extra_weight; /* [spec.n_extra] owned: column of the weight's codes that meets it;
                              extra_src[e] where that is the channel's first digit */
    int n_linears;
    fl_linear *linears[FL_SITE_MAX_LINEARS]; /* borrowed from the block */
} fl_site;

/* Builds spec and code_ld from the fields above them. FL_E_NOMEM. */
fl_status fl__site_prepare(fl_site *site, fl_err *err);
/* Code columns that flattening of activations and weights adds to the site's n_in: 0 unless
 * static with copies. 2^30 stands for more than that. */
int fl__site_n_extra(const fl_site *site);
/* Columns of a channel's activation, of those 1 is plain. */
int fl__site_channel_columns(const fl_site *site, int channel);
/* Columns of the weights' codes: n_in and those of digits beyond the first. At most 2^30. */
int fl__site_weight_columns(const fl_site *site);
/* Codes [n_out, fl__site_weight_columns] of the linear, row-major, spread over the site's extra
 * columns and packed into lin->packed. FL_E_NOMEM. */
fl_status fl__linear_pack(fl_linear *lin, const fl_site *site, const int8_t *codes, int bits,
                          fl_err *err);
void fl__linear_fini(fl_linear *lin);
void fl__site_fini(fl_site *site);

/* Scratch of the functions below for up to n_rows rows of sites up to these sizes;
 * transform_bytes: fl__transform_scratch_bytes of the largest transform; own_clips: of any. */
size_t fl__site_scratch_bytes(const fl_exec *ex, int n_rows, int max_n_in, int max_code_ld,
                              size_t transform_bytes, bool own_clips);

/* Codes of a site's input, in scratch. */
typedef struct fl_site_codes {
    int8_t *codes;      /* [n_rows, code_ld] */
    int32_t *sums;      /* [n_rows] of codes */
    float *scales;      /* [n_rows] per token, [1] static */
    int32_t *zeros;     /* likewise */
    int stride;         /* of scales and zeros: 1 or 0 */
    void *rest;         /* of scratch */
} fl_site_codes;
/* x (f32 [n_rows, n_in], dense) through premul, transform and quantiser of a site that is not
 * FL_ACT_FLOAT, for linear number `linear` of it. */
fl_site_codes fl__site_quantize(const fl_exec *ex, const fl_site *site, int linear,
                                const float *x, int n_rows, void *scratch);
/* y = x as the site's weights expect it, before quantising: after premul and transform. Both
 * f32 [n_rows, n_in], dense; y may be x. */
void fl__site_input(const fl_exec *ex, const fl_site *site, float *y, const float *x,
                    int n_rows, void *scratch);

/* y[i] (f32 [n_rows, n_out_i], dense) = linear i of the site on x (f32 [n_rows, n_in],
 * dense). */
void fl__site_run(const fl_exec *ex, const fl_site *site, const float *x, int n_rows,
                  float *const y[FL_SITE_MAX_LINEARS], void *scratch);
/* The same, bit for bit, with what stands before and behind it, for sites whose input goes
 * straight to one set of codes: x may be made row by row; residual (f32, dense like y[0], may
 * be y[0]) is added to y[0] where it is not NULL. */
static inline bool fl__site_fuses(const fl_site *site)
{
    return site->act != FL_ACT_FLOAT && !site->own_clips;
}
void fl__site_run_fused(const fl_exec *ex, const fl_site *site, fl_rows x, int n_rows,
                        float *const y[FL_SITE_MAX_LINEARS], const float *residual,
                        void *scratch);

/* y [n_rows, n_out] (row stride ldy) = x [n_rows, n_in] (row stride ldx) W^T + bias for one
 * float or weight-only linear: the float path's GEMM, also used for head and projections. */
void fl__linear_float_run(const fl_exec *ex, const fl_linear *lin, const float *x, int64_t ldx,
                          int n_rows, float *y, int64_t ldy, void *scratch);
size_t fl__linear_float_scratch_bytes(const fl_exec *ex);

#endif
