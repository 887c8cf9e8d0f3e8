/* flatquant_centre.c - the mean of a site's input moved out of what is quantised, into biases.
 *
 * Where something with a bias makes a site's input, that bias can give up the input's mean m
 * over the calibration tokens, and the biases behind the site take W m for it:
 *
 *   site       gives m up              takes W m
 *   q, k, v    the norm in front       q, k, v
 *   o          v_proj (the weights of attention add up to 1)        o
 *   fc1        the norm in front       fc1
 *
 * The block computes what it did. But the ranges of activations, keys and values no longer
 * span a constant, and what rounding does to W no longer meets it: m W is exact. Keys whose
 * bias is dropped are about 0 then. (Shifts of channels are known from Outlier Suppression+,
 * arXiv 2304.09145.) fc2's input comes out of a ReLU and stays as it is; so do post-norm
 * blocks, whose norms' outputs are the residual too, and models without biases.
 * SPDX-License-Identifier: MIT */
#include "quant/flatquant/flatquant.h"

#include "quant/block.h"

bool fl__flatquant_can_centre(const fl_model_config *cfg)
{
    return cfg->family == FL_FAMILY_OPT && cfg->pre_norm;
}

/* bias += W m */
static void take_mean(fl_linear *lin, const double *m)
{
    const size_t K = (size_t)lin->n_in;
    for (int n = 0; n < lin->n_out; n++) {
        const float *w = lin->own_w + (size_t)n * K;
        double sum = (double)lin->bias[n];
        for (size_t k = 0; k < K; k++) sum += (double)w[k] * m[k];
        lin->bias[n] = (float)sum;
    }
}

/* Whether all of what gives and takes at a site has biases. */
static bool has_biases(const fl_site *site, const float *giver)
{
    for (int i = 0; i < site->n_linears; i++)
        if (!site->linears[i]->bias) return false;
    return giver != NULL;
}

void fl__flatquant_centre(fl_block *block, const fl_model *model,
                          double *const mean[FL_N_SITES])
{
    float *const giver[FL_N_SITES] = {[FL_SITE_QKV] = block->norm[0].bias,
                                      [FL_SITE_O] = block->linear[FL_LIN_V].bias,
                                      [FL_SITE_UP] = block->norm[1].bias};
    for (int s = 0; s < FL_N_SITES; s++) {
        const fl_site *site = &block->site[s];
        if (!has_biases(site, giver[s])) continue;
        for (int i = 0; i < site->n_linears; i++)
            if (site->linears[i] != &block->linear[FL_LIN_K] || !fl__key_bias_is_dropped(model))
                take_mean(site->linears[i], mean[s]);
        for (int k = 0; k < site->n_in; k++)
            giver[s][k] = (float)((double)giver[s][k] - mean[s][k]);
    }
}
