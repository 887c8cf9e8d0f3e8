/* plan.h - what is decided for every site before any weight is rounded.
 *
 * The plan is made in one pass of the float model over the calibration tokens, kept as
 * plan.json in the partial output, and read back on resume.
 * SPDX-License-Identifier: MIT */
#ifndef FL_QUANT_PLAN_H
#define FL_QUANT_PLAN_H

#include "base/json.h"
#include "model/family.h"

typedef struct fl_site_plan {
    fl_act_kind act;
    int w_bits, a_bits;
    bool is_unsigned;
    bool asymmetric; /* per token */
    int n_in;
    float *smooth;    /* [n_in] owned: x / s, s W; NULL: no smoothing */
    uint16_t *copies; /* [n_in] owned; NULL: all 1 */
    float scale;      /* static activations */
    double alpha, threshold, ratio, effective_bits, error, clipped;
    double d4, d8, cost4; /* bit selection; NaN where not computed */
    int64_t n_outliers;
} fl_site_plan;

typedef struct fl_plan {
    int n_layers;
    fl_site_plan *sites; /* [n_layers, FL_N_SITES] owned */
} fl_plan;

fl_status fl__plan_new(fl_plan **out, int n_layers, fl_err *err);
void fl__plan_free(fl_plan **plan);
void fl__site_plan_fini(fl_site_plan *p);

/* All of it as JSON (for plan.json); new reference, NULL: memory. */
json_t *fl__plan_to_json(const fl_plan *plan);
/* FL_E_INPUT when it does not fit the model. */
fl_status fl__plan_from_json(fl_plan **out, const json_t *root, const fl_model_config *cfg,
                             const char *where, fl_err *err);

/* The report's entry of one site: everything but the vectors. New reference. */
json_t *fl__site_plan_report(const fl_site_plan *p, int layer, int site);

#endif
