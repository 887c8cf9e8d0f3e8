/* tensor_specs.h - which tensors a checkpoint must and may hold, from its config alone.
 *
 * The loaders (model.c, quantized.c) take what they need and stop at the first thing that is
 * wrong. This is the same knowledge as a list, for whoever wants to see everything that is
 * wrong.
 * SPDX-License-Identifier: MIT */
#ifndef FL_MODEL_TENSOR_SPECS_H
#define FL_MODEL_TENSOR_SPECS_H

#include "model/model.h"

/* What the numbers of a tensor may be. */
typedef enum fl_tensor_role {
    FL_ROLE_FLOAT,  /* finite */
    FL_ROLE_CODES8, /* -127..127 */
    FL_ROLE_CODES4, /* two nibbles per byte; n_codes of each row's are used, the rest is 0 */
    FL_ROLE_WEIGHT_SCALE, /* finite, not negative; one element does for all channels */
    FL_ROLE_INPUT_SCALE,  /* finite, above 0 */
    FL_ROLE_COPIES,       /* 1..FL_MAX_COPIES */
    FL_ROLE_CLIP,         /* above 0, at most 1 */
} fl_tensor_role;

typedef struct fl_tensor_spec {
    const char *name; /* valid during the call */
    fl_tensor_role role;
    bool optional;
    uint32_t dtypes; /* FL_DTYPE_BIT mask */
    int n_dims;
    int64_t dims[2]; /* < 0: any */
    int64_t n_codes; /* CODES4: per row; < 0: not known */
} fl_tensor_spec;

/* Calls fn for every tensor that model, opened by fl__model_open or fl__model_open_config,
 * reads or would read, each once: what is around the blocks first, then block by block. */
typedef void fl_tensor_spec_fn(void *user, const fl_tensor_spec *spec);
void fl__model_tensor_specs(const fl_model *model, fl_tensor_spec_fn *fn, void *user);

/* Is the tensor there (or optional), of the right type and shape, and are all its numbers what
 * its role allows? Reads the whole tensor. FL_E_INPUT says what is wrong with which element. */
fl_status fl__tensor_check(const fl_tensors *set, const fl_tensor_spec *spec, fl_err *err);
/* The same for all tensors of the model; stops at the first problem. */
fl_status fl__model_check_tensors(const fl_model *model, fl_err *err);

#endif
