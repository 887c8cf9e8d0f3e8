/* linear.c - sites and integer linears: preparing them, and running them.
 *
 * Extra columns: a channel with k copies needs ceil(k / fold) int8 columns, where fold is how
 * many digits one int8 column can carry as a sum (docs/flattenquant.md, "folded flattening"):
 * 18 for signed 4-bit codes (18 * 7 = 126), 8 for unsigned ones (8 * 15 = 120), 1 for 8-bit
 * codes. Columns beyond the first are appended behind the n_in plain ones, channel by channel,
 * and their weights are the channel's weights again.
 * SPDX-License-Identifier: MIT */
#include "model/linear.h"

#include "base/mem.h"

#include <string.h>

static int site_qmax(const fl_site *site)
{
    return site->is_unsigned ? (1 << site->a_bits) - 1 : (1 << (site->a_bits - 1)) - 1;
}

static int site_fold(const fl_site *site)
{
    if (site->a_bits != 4 || site->explicit_copies) return 1;
    return 127 / site_qmax(site);
}

static int extra_columns(const fl_site *site, int channel)
{
    const int fold = site_fold(site);
    return site->copies ? (site->copies[channel] + fold - 1) / fold - 1 : 0;
}

int fl__site_n_extra(const fl_site *site)
{
    int n = 0;
    for (int c = 0; site->act == FL_ACT_STATIC && c < site->n_in; c++)
        n += extra_columns(site, c);
    return n;
}

static void spec_free(fl_site *site)
{
    fl__free(&site->spec_lo);
    fl__free(&site->spec_hi);
    fl__free(&site->extra_src);
    fl__free(&site->extra_off);
    memset(&site->spec, 0, sizeof site->spec);
}

static void fill_extras(fl_site *site)
{
    int e = 0;
    for (int c = 0; c < site->n_in; c++) {
        const int n = extra_columns(site, c);
        for (int i = 1; i <= n; i++, e++) {
            site->extra_src[e] = c;
            site->extra_off[e] = i * site->spec.cap;
        }
    }
}

fl_status fl__site_prepare(fl_site *site, fl_err *err)
{
    spec_free(site);
    /* unsigned 8-bit codes 0..255 live in int8 as code - 128 */
    site->zero =
        site->act == FL_ACT_STATIC && site->is_unsigned && site->a_bits == 8 ? -128 : 0;
    const int n_extra = fl__site_n_extra(site);
    site->code_ld = (site->n_in + n_extra + 63) / 64 * 64;
    if (site->act != FL_ACT_STATIC) return FL_OK;

    const int qmax = site_qmax(site), cap = qmax * site_fold(site);
    site->spec_lo = fl__alloc((size_t)site->n_in, sizeof(float));
    site->spec_hi = fl__alloc((size_t)site->n_in, sizeof(float));
    site->extra_src = fl__alloc((size_t)n_extra, sizeof(int32_t));
    site->extra_off = fl__alloc((size_t)n_extra, sizeof(int32_t));
    if (!site->spec_lo || !site->spec_hi || !site->extra_src || !site->extra_off) {
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
    int8_t *spread = NULL;

    fl__weight_fini(&lin->packed);
    if (n_extra > 0) {
        spread = fl__alloc((size_t)lin->n_out * (size_t)K, 1);
        if (!spread) return fl__fail_nomem(err, "weight codes", (size_t)lin->n_out * (size_t)K);
        for (int n = 0; n < lin->n_out; n++) {
            const int8_t *from = codes + (size_t)n * (size_t)lin->n_in;
            int8_t *to = spread + (size_t)n * (size_t)K;
            memcpy(to, from, (size_t)lin->n_in);
            for (int e = 0; e < n_extra; e++) to[lin->n_in + e] = from[site->extra_src[e]];
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
    fl__free(&site->premul);
    memset(site, 0, sizeof *site);
}

/* ---- running ----------------------------------------------------------------------------- */

static size_t align64(size_t n)
{
    return (n + 63) / 64 * 64;
}

size_t fl__site_scratch_bytes(const fl_exec *ex, int n_rows, int max_n_in, int max_code_ld)
{
    const size_t codes = align64((size_t)n_rows * (size_t)max_code_ld);
    const size_t sums = align64((size_t)n_rows * sizeof(int32_t));
    const size_t as_int = codes + 2 * sums + fl__gemm_scratch_bytes(ex);
    const size_t premultiplied = align64((size_t)n_rows * (size_t)max_n_in * sizeof(float));
    const size_t as_float = premultiplied + fl__linear_float_scratch_bytes(ex);
    return FL_MAX(as_int, as_float);
}

static void run_int(const fl_exec *ex, const fl_site *site, const float *x, int n_rows,
                    float *const y[FL_SITE_MAX_LINEARS], void *scratch)
{
    unsigned char *at = scratch;
    int8_t *codes = scratch;
    int32_t *sums = (int32_t *)(void *)(at += align64((size_t)n_rows * (size_t)site->code_ld));
    float *scales = (float *)(void *)(at += align64((size_t)n_rows * sizeof *sums));
    at += align64((size_t)n_rows * sizeof *scales);

    if (site->act == FL_ACT_STATIC) {
        fl__quantize_static_run(ex, codes, sums, x, site->n_in, n_rows, &site->spec);
        scales[0] = site->scale;
    } else {
        fl__quantize_token_run(ex, codes, sums, scales, x, site->n_in, n_rows, site->premul,
                               site->n_in, site->code_ld, site_qmax(site));
    }
    for (int i = 0; i < site->n_linears; i++) {
        const fl_linear *lin = site->linears[i];
        const fl_gemm g = {
            .x = codes,
            .ldx = site->code_ld,
            .x_sum = sums,
            .x_scale = scales,
            .x_scale_stride = site->act == FL_ACT_TOKEN,
            .x_zero = site->zero ? &site->zero : NULL,
            .w = &lin->packed,
            .w_scale = lin->w_scale,
            .w_scale_stride = lin->w_scale_stride,
            .bias = lin->bias,
            .y = y[i],
            .ldy = lin->n_out,
            .M = n_rows,
        };
        fl__gemm_run(ex, &g, at);
    }
}

static void run_float(const fl_exec *ex, const fl_site *site, const float *x, int n_rows,
                      float *const y[FL_SITE_MAX_LINEARS], void *scratch)
{
    unsigned char *at = scratch;
    if (site->premul) {
        float *scaled = scratch;
        const size_t n = (size_t)n_rows * (size_t)site->n_in;
        for (size_t i = 0; i < n; i++) scaled[i] = x[i] * site->premul[i % (size_t)site->n_in];
        at += align64(n * sizeof *scaled);
        x = scaled;
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
    else
        run_int(ex, site, x, n_rows, y, scratch);
}
