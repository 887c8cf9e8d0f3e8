/* linear.c - sites and integer linears: preparing them, and running them.
 *
 * Extra columns: a channel with k copies needs ceil(k / fold) int8 columns, where fold is how
 * many digits one int8 column can carry as a sum (docs/flattenquant.md, "folded flattening"):
 * 18 for signed 4-bit codes (18 * 7 = 126), 8 for unsigned ones (8 * 15 = 120), 1 for 8-bit
 * codes. Columns beyond the first are appended behind the n_in plain ones, channel by channel,
 * and their weights are the channel's weights again. Where the weights of a channel are digits
 * too, every column of the activation meets every digit of the weight: (sum of the ones) times
 * (sum of the others).
 * SPDX-License-Identifier: MIT */
#include "model/linear.h"

#include "base/clock.h"
#include "base/mem.h"

#include <string.h>

static const int64_t MANY_COLUMNS = 1 << 30;

static int site_qmax(const fl_site *site)
{
    return site->is_unsigned ? (1 << site->a_bits) - 1 : (1 << (site->a_bits - 1)) - 1;
}

static int site_fold(const fl_site *site)
{
    if (site->a_bits != 4 || site->explicit_copies) return 1;
    return 127 / site_qmax(site);
}

int fl__site_channel_columns(const fl_site *site, int channel)
{
    const int fold = site_fold(site);
    return site->copies ? (site->copies[channel] + fold - 1) / fold : 1;
}

static int weight_digits(const fl_site *site, int channel)
{
    return site->weight_copies ? site->weight_copies[channel] : 1;
}

int fl__site_n_extra(const fl_site *site)
{
    int64_t n = 0;
    for (int c = 0; site->act == FL_ACT_STATIC && c < site->n_in; c++)
        n += (int64_t)fl__site_channel_columns(site, c) * weight_digits(site, c) - 1;
    return (int)FL_MIN(n, MANY_COLUMNS);
}

int fl__site_weight_columns(const fl_site *site)
{
    int64_t n = site->n_in;
    for (int c = 0; site->act == FL_ACT_STATIC && c < site->n_in; c++)
        n += weight_digits(site, c) - 1;
    return (int)FL_MIN(n, MANY_COLUMNS);
}

static void spec_free(fl_site *site)
{
    fl__free(&site->spec_lo);
    fl__free(&site->spec_hi);
    fl__free(&site->extra_src);
    fl__free(&site->extra_off);
    fl__free(&site->extra_weight);
    memset(&site->spec, 0, sizeof site->spec);
}

static void fill_extras(fl_site *site)
{
    int e = 0, next = site->n_in; /* column of the weights' codes */
    for (int c = 0; c < site->n_in; c++) {
        const int columns = fl__site_channel_columns(site, c), digits = weight_digits(site, c);
        for (int i = 1; i < columns * digits; i++, e++) {
            const int digit = i / columns;
            site->extra_src[e] = c;
            site->extra_off[e] = i % columns * site->spec.cap;
            site->extra_weight[e] = digit > 0 ? next + digit - 1 : c;
        }
        next += digits - 1;
    }
}

fl_status fl__site_prepare(fl_site *site, fl_err *err)
{
    spec_free(site);
    /* unsigned 8-bit codes 0..255 live in int8 as code - 128 */
    site->zero =
        site->act == FL_ACT_STATIC && site->is_unsigned && site->a_bits == 8 ? -128 : 0;
    const int n_extra = fl__site_n_extra(site);
    site->code_ld = fl__gemm_ldx(site->n_in + n_extra);
    for (int i = 0; i < FL_SITE_MAX_LINEARS; i++)
        site->token[i] = (fl_quantize_token){
            .n_channels = site->n_in,
            .ld = site->code_ld,
            .bits = site->a_bits,
            .asymmetric = site->asymmetric,
            .clip_max = site->clip_max[i] > 0 ? site->clip_max[i] : 1,
            .clip_min = site->clip_min[i] > 0 ? site->clip_min[i] : 1,
            .premul = site->premul,
        };
    if (site->act != FL_ACT_STATIC) return FL_OK;

    const int qmax = site_qmax(site), cap = qmax * site_fold(site);
    site->spec_lo = fl__alloc((size_t)site->n_in, sizeof(float));
    site->spec_hi = fl__alloc((size_t)site->n_in, sizeof(float));
    site->extra_src = fl__alloc((size_t)n_extra, sizeof(int32_t));
    site->extra_off = fl__alloc((size_t)n_extra, sizeof(int32_t));
    site->extra_weight = fl__alloc((size_t)n_extra, sizeof(int32_t));
    if (!site->spec_lo || !site->spec_hi || !site->extra_src || !site->extra_off ||
        !site->extra_weight) {
        spec_free(site);
        return fl__fail_nomem(err, "quantiser of a site", (size_t)site->n_in * 8);
    }
    for (int c = 0; c < site->n_in; c++) {
        const float top = (float)qmax * (float)(site->copies ? site->copies[c] : 1);
        site->spec_lo[c] = site->is_unsigned ? 0 : -top;
        site->spec_hi[c] = top;
    }
    site->spec = (fl_quantize_static){
        .n_channels = site->n_in,
        .n_extra = n_extra,
        .ld = site->code_ld,
        .inv_scale = 1.0f / site->scale,
        .zero = site->zero,
        .first_lo = site->is_unsigned ? 0 : -cap,
        .first_hi = cap,
        .cap = cap,
        .premul = site->premul,
        .lo = site->spec_lo,
        .hi = site->spec_hi,
        .extra_src = site->extra_src,
        .extra_off = site->extra_off,
    };
    fill_extras(site);
    return FL_OK;
}

fl_status fl__linear_pack(fl_linear *lin, const fl_site *site, const int8_t *codes, int bits,
                          fl_err *err)
{
    const int n_extra = site->act == FL_ACT_STATIC ? site->spec.n_extra : 0;
    const int K = lin->n_in + n_extra;
    const size_t stride = (size_t)fl__site_weight_columns(site);
    int8_t *spread = NULL;

    fl__weight_fini(&lin->packed);
    if (n_extra > 0) {
        spread = fl__alloc((size_t)lin->n_out * (size_t)K, 1);
        if (!spread) return fl__fail_nomem(err, "weight codes", (size_t)lin->n_out * (size_t)K);
        for (int n = 0; n < lin->n_out; n++) {
            const int8_t *from = codes + (size_t)n * stride;
            int8_t *to = spread + (size_t)n * (size_t)K;
            memcpy(to, from, (size_t)lin->n_in);
            for (int e = 0; e < n_extra; e++) to[lin->n_in + e] = from[site->extra_weight[e]];
        }
    }
    const fl_status st =
        fl__weight_pack(&lin->packed, spread ? spread : codes, lin->n_out, K, bits, err);
    if (!st) lin->w_bits = bits;
    fl__free(&spread);
    return st;
}

void fl__linear_fini(fl_linear *lin)
{
    fl__weight_fini(&lin->packed);
    fl__free(&lin->own_w);
    fl__free(&lin->w_scale);
    fl__free(&lin->bias);
    memset(lin, 0, sizeof *lin);
}

void fl__site_fini(fl_site *site)
{
    spec_free(site);
    fl__free(&site->copies);
    fl__free(&site->weight_copies);
    fl__free(&site->premul);
    fl__transform_fini(&site->transform);
    memset(site, 0, sizeof *site);
}

/* ---- running ----------------------------------------------------------------------------- */

static size_t align64(size_t n)
{
    return (n + 63) / 64 * 64;
}

size_t fl__site_scratch_bytes(const fl_exec *ex, int n_rows, int max_n_in, int max_code_ld,
                              size_t transform_bytes, bool own_clips)
{
    const size_t codes = align64((size_t)n_rows * (size_t)max_code_ld);
    const size_t sums = align64((size_t)n_rows * sizeof(int32_t));
    const size_t quantize_bytes =
        FL_MAX(fl__quantize_scratch_bytes(ex, max_n_in), transform_bytes);
    const size_t as_int =
        codes + 3 * sums + FL_MAX(fl__gemm_scratch_bytes(ex), quantize_bytes);
    const size_t input = align64((size_t)n_rows * (size_t)max_n_in * sizeof(float));
    const size_t as_float =
        input + FL_MAX(fl__linear_float_scratch_bytes(ex), transform_bytes);
    return FL_MAX(as_int + (own_clips ? input : 0), as_float);
}

static fl_site_codes place_codes(const fl_site *site, int n_rows, void *scratch)
{
    unsigned char *at = scratch;
    const size_t rows = align64((size_t)n_rows * sizeof(int32_t));
    fl_site_codes c = {.codes = scratch, .stride = site->act == FL_ACT_TOKEN};
    c.sums = (int32_t *)(void *)(at += align64((size_t)n_rows * (size_t)site->code_ld));
    c.scales = (float *)(void *)(at += rows);
    c.zeros = (int32_t *)(void *)(at += rows);
    c.rest = at + rows;
    return c;
}

static fl_site_codes quantize(const fl_exec *ex, const fl_site *site, int linear, fl_rows x,
                              int n_rows, void *scratch)
{
    const fl_site_codes c = place_codes(site, n_rows, scratch);
    const fl_quantize_token *token = &site->token[site->own_clips ? linear : 0];
    const fl_transform *t = &site->transform;
    if (site->act == FL_ACT_STATIC) {
        if (t->n1)
            fl__transform_quantize_static_run(ex, c.codes, c.sums, x, n_rows, t, &site->spec,
                                              c.rest);
        else
            fl__quantize_static_run(ex, c.codes, c.sums, x, n_rows, &site->spec, c.rest);
        c.scales[0] = site->scale;
        c.zeros[0] = site->zero;
    } else if (t->n1) {
        fl__transform_quantize_run(ex, c.codes, c.sums, c.scales, c.zeros, x, n_rows, t, token,
                                   c.rest);
    } else {
        fl__quantize_token_run(ex, c.codes, c.sums, c.scales, c.zeros, x, n_rows, token,
                               c.rest);
    }
    return c;
}

fl_site_codes fl__site_quantize(const fl_exec *ex, const fl_site *site, int linear,
                                const float *x, int n_rows, void *scratch)
{
    return quantize(ex, site, linear, fl__rows_at(x, site->n_in), n_rows, scratch);
}

/* Linear i of the site on codes c. */
static fl_gemm product(const fl_site *site, int i, const fl_site_codes *c, int n_rows, float *y)
{
    const fl_linear *lin = site->linears[i];
    const bool has_zeros = site->act == FL_ACT_TOKEN ? site->asymmetric : site->zero != 0;
    return (fl_gemm){
        .x = c->codes,
        .ldx = site->code_ld,
        .x_sum = c->sums,
        .x_scale = c->scales,
        .x_scale_stride = c->stride,
        .x_zero = has_zeros ? c->zeros : NULL,
        .x_zero_stride = c->stride,
        .w = &lin->packed,
        .w_scale = lin->w_scale,
        .w_scale_stride = lin->w_scale_stride,
        .bias = lin->bias,
        .y = y,
        .ldy = lin->n_out,
        .M = n_rows,
    };
}

_Static_assert(FL_SITE_MAX_LINEARS <= FL_GEMM_MAX_RUN, "the linears of a site run in one loop");

void fl__site_run_fused(const fl_exec *ex, const fl_site *site, fl_rows x, int n_rows,
                        float *const y[FL_SITE_MAX_LINEARS], const float *residual,
                        void *scratch)
{
    const double start = site->quantize_s ? fl__now_s() : 0;
    const fl_site_codes c = quantize(ex, site, 0, x, n_rows, scratch);
    if (site->quantize_s) *site->quantize_s += fl__now_s() - start;
    fl_gemm g[FL_SITE_MAX_LINEARS];
    for (int i = 0; i < site->n_linears; i++) g[i] = product(site, i, &c, n_rows, y[i]);
    g[0].residual = residual;
    g[0].ldr = g[0].ldy;
    fl__gemm_run(ex, g, site->n_linears, c.rest);
}

void fl__site_input(const fl_exec *ex, const fl_site *site, float *y, const float *x,
                    int n_rows, void *scratch)
{
    const size_t K = (size_t)site->n_in, n = (size_t)n_rows * K;
    if (site->transform.n1) {
        fl__transform_run(ex, y, site->n_in, x, site->n_in, n_rows, &site->transform,
                          site->premul, scratch);
        return;
    }
    if (y != x) memcpy(y, x, n * sizeof *y);
    for (size_t i = 0; site->premul && i < n; i++) y[i] *= site->premul[i % K];
}

/* The input once through premul and transform, then quantised for each linear. */
static void run_own_clips(const fl_exec *ex, const fl_site *site, const float *x, int n_rows,
                          float *const y[FL_SITE_MAX_LINEARS], void *scratch)
{
    float *input = scratch;
    const size_t input_bytes = align64((size_t)n_rows * (size_t)site->n_in * sizeof *input);
    const fl_site_codes c =
        place_codes(site, n_rows, (unsigned char *)scratch + input_bytes);
    double start = site->quantize_s ? fl__now_s() : 0;
    fl__site_input(ex, site, input, x, n_rows, c.rest);
    for (int i = 0; i < site->n_linears; i++) {
        fl_quantize_token token = site->token[i];
        token.premul = NULL; /* in input already */
        if (site->quantize_s && i > 0) start = fl__now_s();
        fl__quantize_token_run(ex, c.codes, c.sums, c.scales, c.zeros,
                               fl__rows_at(input, site->n_in), n_rows, &token, c.rest);
        if (site->quantize_s) *site->quantize_s += fl__now_s() - start;
        const fl_gemm g = product(site, i, &c, n_rows, y[i]);
        fl__gemm_run(ex, &g, 1, c.rest);
    }
}

static void run_float(const fl_exec *ex, const fl_site *site, const float *x, int n_rows,
                      float *const y[FL_SITE_MAX_LINEARS], void *scratch)
{
    unsigned char *at = scratch;
    if (site->premul || site->transform.n1) {
        float *input = scratch;
        at += align64((size_t)n_rows * (size_t)site->n_in * sizeof *input);
        fl__site_input(ex, site, input, x, n_rows, at);
        x = input;
    }
    for (int i = 0; i < site->n_linears; i++) {
        const fl_linear *lin = site->linears[i];
        fl__linear_float_run(ex, lin, x, site->n_in, n_rows, y[i], lin->n_out, at);
    }
}

void fl__site_run(const fl_exec *ex, const fl_site *site, const float *x, int n_rows,
                  float *const y[FL_SITE_MAX_LINEARS], void *scratch)
{
    if (site->act == FL_ACT_FLOAT)
        run_float(ex, site, x, n_rows, y, scratch);
    else if (site->own_clips)
        run_own_clips(ex, site, x, n_rows, y, scratch);
    else
        fl__site_run_fused(ex, site, fl__rows_at(x, site->n_in), n_rows, y, NULL, scratch);
}
