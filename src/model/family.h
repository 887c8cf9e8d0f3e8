/* family.h - what distinguishes one model family from another: tensor names and the ops of a
 * block.
 *
 * A family is one row of a table and one file (llama.c, opt.c). Everything else in src/model
 * works on the program and the roles (FL_SITE_*, FL_LIN_*) and does not know families.
 * SPDX-License-Identifier: MIT */
#ifndef FL_MODEL_FAMILY_H
#define FL_MODEL_FAMILY_H

#include "model/model.h"

typedef struct fl_family_def {
    const char *const *prefixes; /* tried in order, NULL-terminated: "model.", ... */
    const char *embed, *positions, *final_norm, *project_in, *project_out; /* after the
                                                                              prefix */
    const char *head;                     /* whole name */
    const char *layers;                   /* "layers." after the prefix */
    const char *linear[FL_N_LINEARS];     /* after "layers.N.", NULL: no such layer */
    const char *norm[2];                  /* attention norm, MLP norm */
    int position_offset;                  /* row of position 0 in the position table */
    void (*build)(fl_program *p, const fl_model_config *cfg);
    bool (*has_bias)(const fl_model_config *cfg, int linear);
} fl_family_def;

extern const fl_family_def fl__family_llama, fl__family_opt;
const fl_family_def *fl__family(const fl_model_config *cfg);

/* Output and input channels of a linear of this model; 0, 0 where the family has none. */
void fl__linear_shape(int *n_out, int *n_in, const fl_model_config *cfg, int linear);
/* Linears of a site, in order; returns how many. */
int fl__site_linears(int linears[FL_SITE_MAX_LINEARS], const fl_model_config *cfg, int site);
/* "qkv", "o", "up", "down" as written in model files and reports. */
extern const char *const fl__site_names[FL_N_SITES];
/* Full name of a tensor of a block's linear: "<prefix>layers.<layer>.<linear><suffix>" into
 * name. */
#define FL_MAX_TENSOR_NAME 160
void fl__linear_tensor_name(char name[FL_MAX_TENSOR_NAME], const fl_model *model, int layer,
                            int linear, const char *suffix);
/* Full name of a tensor of a block's attention, beside its linears:
 * "<prefix>layers.<layer>.self_attn<suffix>". */
void fl__attention_tensor_name(char name[FL_MAX_TENSOR_NAME], const fl_model *model, int layer,
                               const char *suffix);
void fl__norm_tensor_name(char name[FL_MAX_TENSOR_NAME], const fl_model *model, int layer,
                          int norm, const char *suffix);

/* Appends an op to a program under construction. */
void fl__program_add(fl_program *p, fl_op op);

#endif
